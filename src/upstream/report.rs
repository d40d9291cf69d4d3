//! What an upstream says about itself to operators: on `/status`, and through the `health` filter.

use super::breaker::Breaker;
use super::{Endpoint, Upstream};
use serde_json::{Value, json};
use std::time::Instant;

impl Upstream {
    /// Name, endpoints, and what is known of each. Addresses are inside knowledge: not for strangers.
    pub fn report(&self) -> Value {
        let endpoints = self.endpoints();
        let now = self.clock().now();
        let (requests, retries) = self.guards().budget.used(now);
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
            "breaker": self.guards().breaker.as_ref().map(|breaker| breaker.report(now)),
            "overload": self.guards().overload.as_ref().map(|overload| json!({
                "limit": overload.state().limit(),
                "in_flight": overload.state().in_flight(),
                "shed": overload.state().shed.get(),
            })),
            "retry_budget": json!({ "requests": requests, "retries": retries, "refused": self.guards().budget.refused.get() }),
            "endpoints": endpoints.iter().map(|endpoint| endpoint.report(now)).collect::<Vec<_>>(),
        })
    }
}

impl Breaker {
    /// Where it stands, and what it counts.
    pub fn report(&self, now: Instant) -> Value {
        let state = self.state();
        let [calls, failed, slow] = state.counts(now);
        json!({ "state": state.state().as_str(), "calls": calls, "failed": failed, "slow": slow, "refused": state.refused.get() })
    }
}

impl Endpoint {
    fn report(&self, now: Instant) -> Value {
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
            "ejected_for_ms": self.outlier().and_then(|state| state.ejected_for(now)).map(|left| left.as_secs_f64() * 1000.0),
            "latency_ms": self.outlier().and_then(|state| state.latency()).map(|took| took.as_secs_f64() * 1000.0),
            "breaker": self.guards().breaker.as_ref().map(|breaker| breaker.report(now)),
        })
    }
}
