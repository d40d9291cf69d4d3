//! `health`: answers what `/readyz` says on a route, for load balancers that cannot reach the admin listener.

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::readiness::Readiness;
use crate::rejection::LocalResponse;
use crate::request::RequestCtx;
use crate::upstream::Upstream;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Answers 200 while the gateway takes requests and 503 when it is about to leave, as `/readyz` does on the admin listener.
/// The route needs no upstream.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Also tell, for every upstream, the state of each endpoint and the time of its last check. These are addresses of
    /// your network: put a filter in front that keeps strangers out. The status does not depend on them. Default false.
    pub detail: bool,
}

pub struct Health {
    readiness: Arc<Readiness>,
    upstreams: Option<Vec<Arc<Upstream>>>,
}

impl FilterConfig for HealthConfig {
    const NAME: &'static str = "health";
    type Filter = Health;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Health, Problem> {
        let upstreams = self.detail.then(|| cx.upstreams.values().cloned().collect());
        Ok(Health { readiness: Readiness::of(cx.state), upstreams })
    }
}

impl Filter for Health {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn answers(&self) -> bool {
        true
    }

    fn on_request<'a>(&'a self, _session: &'a mut Session, _ctx: &'a mut RequestCtx) -> Step<'a> {
        Step::respond(self.response())
    }
}

impl Health {
    fn response(&self) -> LocalResponse {
        let (status, word) = match (self.readiness.is_ready(), self.readiness.is_stopping()) {
            (true, _) => (StatusCode::OK, "ready"),
            (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        };
        let mut document = json!({ "status": word });
        if let (Some(upstreams), Some(fields)) = (&self.upstreams, document.as_object_mut()) {
            fields.insert("upstreams".to_owned(), upstreams.iter().map(|upstream| upstream.report()).collect());
        }
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        LocalResponse { status, headers, body: Bytes::from(format!("{document}\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_readiness_says() {
        let readiness = Arc::new(Readiness::default());
        let health = Health { readiness: Arc::clone(&readiness), upstreams: None };
        let answer = || (health.response().status.as_u16(), String::from_utf8(health.response().body.to_vec()).unwrap());
        assert_eq!(answer(), (503, "{\"status\":\"starting\"}\n".to_owned()));
        readiness.set_ready();
        assert_eq!(answer(), (200, "{\"status\":\"ready\"}\n".to_owned()));
        readiness.set_stopping();
        assert_eq!(answer(), (503, "{\"status\":\"stopping\"}\n".to_owned()));
    }
}
