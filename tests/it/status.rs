//! What the admin listener and the `health` filter tell.

use crate::support::raw::get;
use crate::support::{Gateway, Origin, everything_to};

const HEALTH: &str = "health = { path = \"/health\", interval = \"100ms\", timeout = \"90ms\", rise = 1, fall = 1 }";

#[test]
fn status_tells_version_config_listeners_routes_and_endpoints() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], HEALTH));
    gateway.wait_healthy(origin.address(), true);
    let status = gateway.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["config_hash"].as_str().is_some_and(|hash| hash.len() >= 8), "{status}");
    assert_eq!(status["upstreams"][0]["name"], "app");
    assert!(status["routes"].to_string().contains("all"), "{status}");
    assert_eq!(gateway.admin.get("/livez").status, 200);
    assert_eq!(gateway.admin.get("/nowhere").status, 404);
}

#[test]
fn admin_changes_nothing_on_a_get() {
    let gateway = Gateway::start("");
    let answer = gateway.admin.exchange("GET", "/reload").unwrap();
    assert_eq!(answer.status, 405, "{}", answer.text());
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "success")]), 0.0);
}

#[test]
fn health_filter_answers_what_readyz_says_with_every_endpoint() {
    let origins = Origin::start_many(2);
    let health = "[routes.health]\nmatch = { path = \"/healthz\" }\nfilters = [{ health = { detail = true } }]\n";
    let gateway = Gateway::start(&(everything_to(&[&origins[0], &origins[1]], HEALTH) + health));
    origins[1].set_healthy(false);
    gateway.wait_healthy(origins[1].address(), false);
    let response = get(gateway.http(), "/healthz");
    assert_eq!(response.status, gateway.admin.get("/readyz").status);
    let text = response.text();
    for origin in &origins {
        assert!(text.contains(&origin.address().to_string()), "{} is not in {text}", origin.address());
    }
    response.json();
}
