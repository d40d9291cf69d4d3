//! DNS: A and AAAA, or SRV, asked again when the answer lapses. A headless service of Kubernetes is this.
//!
//! hickory's cache is off, because the driver keeps the answer anyway, and one that is served from a cache has the age of
//! that cache. A name counts as gone only where a server says so (NXDOMAIN, or no records of either family). As long as one
//! family cannot be asked, the answer of the other is not the whole and does not count: half of a pool would be lost.

use super::config::{DnsConfig, RecordType as Asked};
use super::{Answer, Discovery, Failure, Found, PRIORITY_MAX, Reason, WEIGHT_MAX};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The most targets of an SRV answer that are looked up, the preferred ones first, and how many of them at once.
const TARGETS_MAX: usize = 256;
const TARGETS_AT_ONCE: usize = 8;

/// Looks one name up.
pub struct DnsSource {
    resolver: Option<TokioResolver>,
    name: String,
    port: u16,
    asked: Asked,
    least: Duration,
    most: Duration,
    timeout: Duration,
    servers: Vec<SocketAddr>,
}

impl DnsSource {
    pub fn new(config: &DnsConfig) -> Self {
        DnsSource {
            resolver: None,
            name: config.name.value.clone(),
            port: config.port.as_ref().map_or(0, |port| port.value),
            asked: config.record,
            least: config.min_interval.get(),
            most: config.max_interval.get(),
            timeout: config.timeout.get(),
            servers: config.servers.iter().map(|server| server.value).collect(),
        }
    }

    /// Anew after a failure: the system's list of name servers may have changed.
    fn resolver(&mut self) -> Result<&TokioResolver, Failure> {
        if self.resolver.is_none() {
            let failed = |error: NetError| Failure::new(Reason::Invalid, format!("the resolver cannot be set up: {error}"));
            let mut builder = if self.servers.is_empty() {
                TokioResolver::builder_tokio().map_err(failed)?
            } else {
                let servers = self.servers.iter().map(|server| {
                    let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                    (udp.port, tcp.port) = (server.port(), server.port());
                    NameServerConfig::new(server.ip(), true, vec![udp, tcp])
                });
                let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            };
            self.tune(builder.options_mut());
            self.resolver = Some(builder.build().map_err(failed)?);
        }
        self.resolver.as_ref().ok_or_else(|| Failure::new(Reason::Invalid, "no resolver"))
    }

    fn tune(&self, options: &mut ResolverOpts) {
        options.cache_size = 0;
        options.attempts = 1;
        // A server that is silent is asked twice, over UDP and TCP; both must fit.
        options.timeout = self.timeout / 3;
        options.use_hosts_file = ResolveHosts::Never;
    }

    /// The time that answers are valid, within the bounds for it.
    fn again(&self, valid: Option<Duration>) -> Duration {
        valid.unwrap_or(self.most).clamp(self.least, self.most.max(self.least))
    }

    async fn addresses(&mut self) -> Result<Answer, Failure> {
        let (name, port, asked) = (self.name.clone(), self.port, self.asked);
        let found = lookup_addresses(self.resolver()?, &name, asked).await?;
        let written: Arc<str> = format!("{}:{port}", name.trim_end_matches('.')).into();
        let endpoint = |ip: &IpAddr| Found { name: Some(Arc::clone(&written)), ..Found::at(SocketAddr::new(*ip, port)) };
        Ok(Answer { found: found.list.iter().map(endpoint).collect(), again: self.again(found.valid) })
    }

    async fn services(&mut self) -> Result<Answer, Failure> {
        let name = self.name.clone();
        let resolver = self.resolver()?;
        let (records, mut valid) = lookup(resolver, &name, RecordType::SRV).await?;
        let mut services: Vec<_> = records
            .into_iter()
            .filter_map(|data| match data {
                RData::SRV(srv) => Some(srv),
                _ => None,
            })
            // RFC 2782: a target of `.` says that the service is not available.
            .filter(|srv| !srv.target.is_root() && srv.port != 0)
            .collect();
        services.sort_by(|a, b| (a.priority, &a.target, a.port).cmp(&(b.priority, &b.target, b.port)));
        services.truncate(TARGETS_MAX);
        let targets: Vec<String> = services.iter().map(|srv| srv.target.to_utf8()).collect();
        let looked_up = stream::iter(targets).map(|target| {
            // A resolver is a handle.
            let resolver = resolver.clone();
            async move { lookup_addresses(&resolver, &target, Asked::Address).await }
        });
        let looked_up: Vec<_> = looked_up.buffered(TARGETS_AT_ONCE).collect().await;
        // The priorities of RFC 2782 are any numbers: what counts is their order.
        let mut priorities: Vec<u16> = services.iter().map(|srv| srv.priority).collect();
        priorities.dedup();
        let heaviest = services.iter().map(|srv| u32::from(srv.weight)).max().unwrap_or(0);
        let mut found = Vec::new();
        for (srv, addresses) in services.iter().zip(looked_up) {
            let addresses = match addresses {
                Ok(addresses) => addresses,
                Err(failure) if failure.reason == Reason::Empty => continue,
                Err(failure) => return Err(failure),
            };
            valid = valid.into_iter().chain(addresses.valid).min();
            let rank = priorities.iter().position(|known| *known == srv.priority).unwrap_or(0);
            let target = srv.target.to_utf8();
            let written: Arc<str> = format!("{}:{}", target.trim_end_matches('.'), srv.port).into();
            found.extend(addresses.list.iter().map(|ip| Found {
                address: SocketAddr::new(*ip, srv.port),
                weight: weight(srv.weight.into(), heaviest),
                priority: u8::try_from(rank).unwrap_or(PRIORITY_MAX).min(PRIORITY_MAX),
                zone: None,
                name: Some(Arc::clone(&written)),
            }));
        }
        Ok(Answer { found, again: self.again(valid) })
    }
}

/// SRV weights go up to 65535, and 0 means "hardly any" (RFC 2782) and not "none".
fn weight(weight: u32, heaviest: u32) -> u16 {
    let most = u32::from(WEIGHT_MAX);
    let scaled = if heaviest > most { weight.saturating_mul(most) / heaviest } else { weight };
    u16::try_from(scaled.clamp(1, most)).unwrap_or(WEIGHT_MAX)
}

struct Addresses {
    list: Vec<IpAddr>,
    valid: Option<Duration>,
}

async fn lookup_addresses(resolver: &TokioResolver, name: &str, asked: Asked) -> Result<Addresses, Failure> {
    let one = async |kind: RecordType, wanted: bool| match wanted {
        true => lookup(resolver, name, kind).await.or_else(|failure| match failure.reason {
            Reason::Empty => Ok((Vec::new(), None)),
            _ => Err(failure),
        }),
        false => Ok((Vec::new(), None)),
    };
    let (v4, v6) = tokio::join!(
        one(RecordType::A, asked != Asked::Aaaa),
        one(RecordType::AAAA, matches!(asked, Asked::Address | Asked::Aaaa))
    );
    let ((v4, valid4), (v6, valid6)) = (v4?, v6?);
    let address = |data: RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    let list: Vec<IpAddr> = v4.into_iter().chain(v6).filter_map(address).collect();
    if list.is_empty() {
        return Err(Failure::new(Reason::Empty, format!("{name} has no addresses")));
    }
    Ok(Addresses { list, valid: valid4.into_iter().chain(valid6).min() })
}

/// The records of one kind, and how long they are valid.
async fn lookup(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<(Vec<RData>, Option<Duration>), Failure> {
    let answer = resolver.lookup(name, kind).await.map_err(|error| match &error {
        none if none.is_no_records_found() => Failure::new(Reason::Empty, format!("{name} has no {kind} records")),
        NetError::Timeout => Failure::new(Reason::Timeout, format!("no name server answers for {name}")),
        NetError::Dns(_) => Failure::new(Reason::Denied, format!("{name}: {error}")),
        _ => Failure::new(Reason::Unreachable, format!("{name}: {error}")),
    })?;
    let records = answer.answers();
    // Aliases on the way may lapse before the addresses that they lead to.
    let valid = records.iter().map(|record| Duration::from_secs(record.ttl.into())).min();
    Ok((records.iter().map(|record| record.data.clone()).collect(), valid))
}

#[async_trait]
impl Discovery for DnsSource {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        let answer = if self.asked == Asked::Srv { self.services().await } else { self.addresses().await };
        match answer {
            // The answer that there is nothing: what it is worth is not for a source to say.
            Err(failure) if failure.reason == Reason::Empty => Ok(Answer { found: Vec::new(), again: self.least }),
            Err(failure) => {
                self.resolver = None;
                Err(failure)
            }
            answer => answer,
        }
    }

    fn patience(&self) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_srv_records_keep_their_proportions() {
        assert_eq!([0, 1, 10].map(|w| weight(w, 10)), [1, 1, 10]);
        assert_eq!([0, 1, 30_000, 60_000].map(|w| weight(w, 60_000)), [1, 1, 500, 1000]);
    }

    #[test]
    fn the_next_question_comes_when_the_answer_lapses_within_bounds() {
        let text = "name = 'a.test'\nport = 1\nmin_interval = '2s'\nmax_interval = '60s'";
        let source = DnsSource::new(&toml::from_str(text).unwrap());
        let secs = |valid: Option<u64>| source.again(valid.map(Duration::from_secs)).as_secs();
        assert_eq!([secs(Some(0)), secs(Some(30)), secs(Some(86_400)), secs(None)], [2, 30, 60, 60]);
    }
}
