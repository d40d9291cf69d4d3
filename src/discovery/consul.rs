//! Consul's health API, with blocking queries (<https://developer.hashicorp.com/consul/api-docs/features/blocking>).
//!
//! Each answer has an index. The next question gives it back, and Consul answers when something has changed or the wait is
//! over. Its documentation demands of clients: an index that goes backwards (a restored snapshot, another cluster behind
//! the address) is forgotten; an index below 1 is never sent, because 0 means "do not block", and a loop without waiting is the
//! result; an answer without a change is normal; the server adds up to a sixteenth to the wait.

use super::config::ConsulConfig;
use super::{Answer, Discovery, Failure, Found, PRIORITY_MAX, Reason, WEIGHT_MAX, http as client};
use crate::tls::ClientTls;
use crate::value::Secret;
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// The least time between two questions: a server that answers each at once must not be asked in a tight loop.
const GAP: Duration = Duration::from_millis(100);

/// Asks for the instances of one service that pass their checks.
pub struct ConsulSource {
    address: String,
    /// The target of the request, without index and wait.
    target: String,
    headers: HeaderMap,
    tls: Option<Arc<ClientTls>>,
    wait: Duration,
    timeout: Duration,
    /// What the last answer had; 0 before the first.
    index: u64,
}

impl ConsulSource {
    pub fn new(config: &ConsulConfig, token: Option<&Secret>, tls: Option<Arc<ClientTls>>) -> Self {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut target = format!("/v1/health/service/{}?passing=1", encode(&config.service));
        for tag in config.tags.iter() {
            target.push_str(&format!("&tag={}", encode(tag)));
        }
        if let Some(datacenter) = &config.datacenter {
            target.push_str(&format!("&dc={}", encode(datacenter)));
        }
        let mut headers = HeaderMap::new();
        // One with characters that a header cannot have is no token of Consul's; it will say so.
        if let Some(mut token) = token.and_then(|token| HeaderValue::from_str(token.expose()).ok()) {
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        let (wait, timeout) = (config.wait.get(), config.timeout.get());
        ConsulSource { address: config.address.value.clone(), target, headers, tls, wait, timeout, index: 0 }
    }

    async fn query(&mut self, before: u64) -> Result<Answer, Failure> {
        let target = match before {
            0 => self.target.clone(),
            index => format!("{}&index={index}&wait={}ms", self.target, self.wait.as_millis()),
        };
        let answer = client::get(&self.address, &target, &self.headers, self.tls.as_deref()).await?;
        if answer.status != StatusCode::OK {
            let reason = match answer.status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Reason::Denied,
                _ => Reason::Unreachable,
            };
            return Err(Failure::new(reason, format!("Consul at {} answers {}", self.address, answer.status)));
        }
        let index = answer.headers.get(INDEX).and_then(|index| index.to_str().ok()?.parse::<u64>().ok());
        let Some(index) = index else {
            return Err(Failure::new(Reason::Invalid, format!("{} answers without X-Consul-Index", self.address)));
        };
        let entries: Vec<Entry> = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::new(Reason::Invalid, format!("Consul at {}: {error}", self.address)))?;
        // Backwards: forget it, so that the next question does not wait for an index that may be long in coming.
        self.index = if index < before { 0 } else { index.max(1) };
        Ok(Answer { found: entries.iter().filter_map(Entry::found).collect(), again: GAP })
    }
}

#[async_trait]
impl Discovery for ConsulSource {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        // Forgotten until there is an answer, also where this future is dropped: after a failure Consul answers at once.
        let before = std::mem::take(&mut self.index);
        self.query(before).await
    }

    fn patience(&self) -> Duration {
        match self.index {
            0 => self.timeout,
            _ => self.wait.saturating_add(self.wait / 16).saturating_add(self.timeout),
        }
    }
}

/// What of an instance matters.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default)]
    address: String,
    port: u16,
    weights: Option<Weights>,
    meta: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
}

impl Entry {
    /// `None` for an address that is a name: Consul gives addresses unless an instance was registered otherwise.
    fn found(&self) -> Option<Found> {
        let address = if self.service.address.is_empty() { &self.node.address } else { &self.service.address };
        let ip: IpAddr = address.parse().ok()?;
        let meta = |key: &str| self.service.meta.as_ref()?.get(key);
        let weight = self.service.weights.as_ref().map_or(1, |weights| weights.passing);
        Some(Found {
            weight: u16::try_from(weight.clamp(1, WEIGHT_MAX.into())).unwrap_or(1),
            priority: meta("priority").and_then(|number| number.parse().ok()).unwrap_or(0).min(PRIORITY_MAX),
            zone: meta("zone").map(|zone| zone.as_str().into()),
            ..Found::at(SocketAddr::new(ip, self.service.port))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(service: &str) -> Option<Found> {
        let text = format!(r#"{{ "Node": {{ "Address": "10.1.2.3" }}, "Service": {service}, "Checks": [] }}"#);
        serde_json::from_str::<Entry>(&text).unwrap().found()
    }

    #[test]
    fn the_address_is_the_services_or_else_the_nodes() {
        let found = entry(r#"{ "Address": "", "Port": 80, "Weights": { "Passing": 5, "Warning": 1 } }"#).unwrap();
        assert_eq!((found.address.to_string().as_str(), found.weight), ("10.1.2.3:80", 5));
        let found = entry(r#"{ "Address": "fd00::1", "Port": 81, "Meta": { "zone": "a", "priority": "2" } }"#).unwrap();
        assert_eq!((found.address.to_string().as_str(), found.zone.as_deref(), found.priority), ("[fd00::1]:81", Some("a"), 2));
        assert_eq!(entry(r#"{ "Address": "db.internal", "Port": 80 }"#), None);
        assert_eq!(entry(r#"{ "Address": "10.0.0.1", "Port": 80, "Weights": { "Passing": 0 } }"#).unwrap().weight, 1);
    }

    #[test]
    fn the_question_says_what_is_wanted_and_the_token_stays_out_of_it() {
        let text = "service = 'a b'\ntags = ['v2', 'x&y']\ndatacenter = 'dc1'\ntoken = { env = 'T' }";
        let source = ConsulSource::new(&toml::from_str(text).unwrap(), Some(&Secret::new("hush")), None);
        assert_eq!(source.target, "/v1/health/service/a%20b?passing=1&tag=v2&tag=x%26y&dc=dc1");
        assert!(source.headers[TOKEN].is_sensitive());
    }
}
