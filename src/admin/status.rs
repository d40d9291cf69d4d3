//! `/status`: what runs now, for people and tests, as JSON.

use super::Admin;
use crate::reload::LastReload;
use serde_json::{Value, json};
use std::time::SystemTime;

/// The members of the document and their meanings; `[]` stands for the elements of a list. The reference page is made of it.
pub const STATUS: &[(&str, &str)] = &[
    ("version", "The version of the binary"),
    ("pid", "The process"),
    ("ready", "What `/readyz` says"),
    ("stopping", "Whether the process is about to leave"),
    ("config_hash", "The hash of the configuration in force"),
    ("config_loaded_at", "When it was loaded, as an HTTP date"),
    ("last_reload", "The last attempt to load another one; null before the first"),
    ("last_reload.result", "`applied` or `refused`"),
    ("last_reload.at", "When it was, as an HTTP date"),
    ("last_reload.took_ms", "How long it took, in milliseconds"),
    ("last_reload.config_hash", "The hash of what was applied"),
    ("last_reload.unchanged", "Whether that was what had been in force before"),
    ("last_reload.warnings", "What `gatewright check` would print of it"),
    ("last_reload.report", "Why it was refused, as `gatewright check` would print it"),
    ("last_reload.error", "The same; null if it was applied"),
    ("last_reload.diagnostics", "The same as `gatewright check --format json` would print it"),
    ("connections", "Connections of clients that are open, on all listeners"),
    ("listeners[].name", "The name in `[listeners.NAME]`"),
    ("listeners[].address", "The address that it is bound to, with the port that was taken for port 0"),
    ("routes[].name", "The name in `[routes.NAME]`"),
    ("routes[].upstream", "Where the route sends requests"),
    ("routes[].breaker", "The breaker of the route; its members are those of `upstreams[].breaker`"),
    ("upstreams[].name", "The name in `[upstreams.NAME]`"),
    ("upstreams[].available", "Whether any endpoint may be chosen"),
    ("upstreams[].discovery", "The source of the endpoints, if they are discovered"),
    ("upstreams[].discovery.from", "What is asked"),
    ("upstreams[].discovery.endpoints", "Endpoints of its last good answer that are in use"),
    ("upstreams[].discovery.unused", "Addresses of that answer that are not"),
    ("upstreams[].discovery.age_seconds", "How old that answer is"),
    ("upstreams[].discovery.failing", "Why the last question had no good answer; null if it had"),
    ("upstreams[].discovery.failures", "How often there was none, by reason"),
    ("upstreams[].breaker", "The breaker of the upstream"),
    ("upstreams[].breaker.state", "`closed`, `half_open` or `open`"),
    ("upstreams[].breaker.calls", "Calls in its window"),
    ("upstreams[].breaker.failed", "Those that failed"),
    ("upstreams[].breaker.slow", "Those that were slow"),
    ("upstreams[].breaker.refused", "Attempts that it has refused"),
    ("upstreams[].overload", "The concurrency limit that follows latency"),
    ("upstreams[].overload.limit", "How many requests the upstream may work on at once"),
    ("upstreams[].overload.in_flight", "How many count against it now"),
    ("upstreams[].overload.shed", "Requests that were refused for it"),
    ("upstreams[].retry_budget.requests", "Requests in the window of the budget"),
    ("upstreams[].retry_budget.retries", "Retries in it"),
    ("upstreams[].retry_budget.refused", "Retries that were not made because it had no room"),
    ("upstreams[].endpoints[].address", "The address that is connected to"),
    ("upstreams[].endpoints[].written", "The address as it was configured or discovered"),
    ("upstreams[].endpoints[].weight", "Its weight"),
    ("upstreams[].endpoints[].priority", "Its priority"),
    ("upstreams[].endpoints[].zone", "Its zone"),
    ("upstreams[].endpoints[].drained", "Whether an operator has taken it out of use"),
    ("upstreams[].endpoints[].healthy", "Whether it may be chosen by its health checks"),
    ("upstreams[].endpoints[].in_flight", "Requests that it is working on"),
    ("upstreams[].endpoints[].requests", "Attempts at it so far"),
    ("upstreams[].endpoints[].connect_failures", "Connections to it that could not be opened"),
    ("upstreams[].endpoints[].errors", "Attempts that failed"),
    ("upstreams[].endpoints[].check", "Its health checks"),
    ("upstreams[].endpoints[].check.ok", "Those that went well"),
    ("upstreams[].endpoints[].check.failed", "Those that did not"),
    ("upstreams[].endpoints[].check.response_time_ms", "What the last good one took, in milliseconds"),
    ("upstreams[].endpoints[].check.error", "Why the last one failed; null if it went well"),
    ("upstreams[].endpoints[].ejected_for_ms", "For how long it is ejected yet, in milliseconds; null if it is not"),
    ("upstreams[].endpoints[].latency_ms", "Its latency as the outlier detection sees it, in milliseconds"),
    ("upstreams[].endpoints[].breaker", "The breaker of the endpoint; its members are those of `upstreams[].breaker`"),
];

pub fn document(admin: &Admin) -> Value {
    let snapshot = admin.gateway.snapshot();
    let listeners = admin.listeners.addresses();
    let routes = snapshot.routes().map(|route| {
        let upstream = route.upstream.as_ref().map(|target| &**target.upstream.name());
        let breaker = route.breaker.as_ref().map(|breaker| breaker.report(admin.gateway.clock().now()));
        json!({ "name": &*route.name, "upstream": upstream, "breaker": breaker })
    });
    json!({
        "version": crate::VERSION,
        "pid": std::process::id(),
        "ready": admin.readiness.is_ready(),
        "stopping": admin.readiness.is_stopping(),
        "config_hash": snapshot.hash,
        "config_loaded_at": date(snapshot.loaded_at),
        "last_reload": admin.reloader.last.lock().as_ref().map(last_reload),
        "connections": admin.listeners.connections.get(),
        "listeners": listeners.iter().map(|(name, address)| json!({ "name": &**name, "address": address.to_string() })).collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "upstreams": snapshot.upstreams.values().map(|upstream| upstream.report()).collect::<Vec<_>>(),
    })
}

fn last_reload(last: &LastReload) -> Value {
    let mut document = last.outcome.document();
    if let Value::Object(fields) = &mut document {
        fields.insert("error".to_owned(), fields.get("report").cloned().unwrap_or_default());
        fields.insert("at".to_owned(), Value::from(date(last.at)));
        fields.insert("took_ms".to_owned(), Value::from(last.took.as_secs_f64() * 1000.0));
    }
    document
}

fn date(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}
