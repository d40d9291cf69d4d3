//! `/status`: what runs now, for people and tests, as JSON.

use super::Admin;
use crate::reload::LastReload;
use serde_json::{Value, json};
use std::time::SystemTime;

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
