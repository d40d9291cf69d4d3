//! What an upstream says about itself to operators: on `/status`, and through the `health` filter.

use super::{Endpoint, Upstream};
use serde_json::{Value, json};

impl Upstream {
    /// Name, endpoints, and what is known of each. Addresses are inside knowledge: not for strangers.
    pub fn report(&self) -> Value {
        let endpoints = self.endpoints();
        json!({
            "name": &**self.name(),
            "available": self.available(),
            "discovery": self.found().map(|(feed, plan)| {
                let standing = feed.standing();
                json!({
                    "from": plan.what,
                    "endpoints": standing.endpoints,
                    "unused": standing.unused,
                    "age_seconds": standing.age.map(|age| age.as_secs()),
                    "failing": standing.failing,
                    "failures": standing.failures.into_iter().map(|(reason, count)| (reason.to_owned(), Value::from(count))).collect::<serde_json::Map<_, _>>(),
                })
            }),
            "endpoints": endpoints.iter().map(|endpoint| endpoint.report()).collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    fn report(&self) -> Value {
        let check = self.health().map(|health| {
            let report = health.report();
            json!({
                "ok": report.checks_ok,
                "failed": report.checks_failed,
                "response_time_ms": report.last_response_time.map(|took| took.as_secs_f64() * 1000.0),
                "error": report.last_error.map(|error| error.to_string()),
            })
        });
        let state = self.state();
        json!({
            "address": self.address().to_string(),
            "written": &**self.written(),
            "weight": self.weight(),
            "priority": self.priority(),
            "zone": self.zone().map(|zone| &**zone),
            "drained": self.state().is_drained(),
            "healthy": self.is_healthy(),
            "in_flight": state.in_flight(),
            "requests": state.requests(),
            "connect_failures": state.connect_failures(),
            "errors": state.errors(),
            "check": check,
        })
    }
}
