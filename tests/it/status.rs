//! What the admin listener and the `health` filter tell.

use crate::support::raw::get;
use crate::support::{Gateway, Origin, SOON, eventually, everything_to};
use serde_json::Value;
use std::collections::BTreeSet;

const HEALTH: &str = "health = { path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }";

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
    let http = gateway.http();
    assert_eq!(status["listeners"][0], serde_json::json!({ "name": "http", "address": http.to_string() }));
    let mut client = crate::support::raw::Client::connect(http);
    client.exchange("GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(gateway.status()["connections"], 1);
    drop(client);
    eventually("the connection is gone", SOON, || gateway.status()["connections"] == 0);
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
    let document = response.json();
    let endpoint = |origin: &Origin| {
        let endpoints = document["upstreams"][0]["endpoints"].as_array().unwrap();
        endpoints.iter().find(|endpoint| endpoint["address"] == origin.address().to_string()).unwrap().clone()
    };
    let (up, down) = (endpoint(&origins[0]), endpoint(&origins[1]));
    assert_eq!((&up["healthy"], &down["healthy"]), (&true.into(), &false.into()), "{text}");
    assert!(up["check"]["response_time_ms"].as_f64().is_some_and(|took| took > 0.0 && took < 900.0), "{text}");
    assert!(up["check"]["error"].is_null() && down["check"]["error"].is_string(), "{text}");
}

/// Every member, written as the reference writes it.
fn members(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let member = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                // Reports of diagnostics have a form of their own, and reasons are names.
                if !["last_reload.diagnostics", "upstreams[].discovery.failures"].contains(&member.as_str()) {
                    members(value, &member, found);
                }
                // A list or a table is told of by its parts, but for those that are not always there.
                found.insert(member);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| members(value, &format!("{path}[]"), found)),
        _ => {}
    }
}

#[test]
fn the_reference_names_every_member_of_status_and_no_other() {
    let origin = Origin::start("a");
    let toml = format!(
        "[upstreams.app]\nendpoints = [{{ address = \"{}\", zone = \"a\" }}]\n{HEALTH}\noutlier = {{}}\noverload = {{}}\n\
         breaker = {{ scope = \"both\" }}\n\
         [upstreams.found]\ndiscover = {{ file = {{ path = \"endpoints.toml\" }} }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\nbreaker = {{}}\n",
        origin.address()
    );
    let endpoints = format!("endpoints = [\"{}\"]\n", origin.address());
    let prepare = |directory: &std::path::Path| std::fs::write(directory.join("endpoints.toml"), &endpoints).unwrap();
    let gateway = Gateway::try_start_with(&toml, prepare).unwrap();
    gateway.wait_healthy(origin.address(), true);
    let mut found = BTreeSet::new();
    members(&gateway.status(), "", &mut found);
    gateway.reload_with(&toml.replace("zone = \"a\"", "zone = \"b\"")).unwrap();
    members(&gateway.status(), "", &mut found);
    gateway.reload_with("nonsense").unwrap_err();
    eventually("the checks have begun", SOON, || gateway.status().to_string().contains("response_time_ms"));
    members(&gateway.status(), "", &mut found);
    let known: BTreeSet<&str> = gatewright::admin::STATUS.iter().map(|(member, _)| *member).collect();
    for member in &found {
        let parts = known
            .range(member.as_str()..)
            .any(|known| known.starts_with(&format!("{member}.")) || known.starts_with(&format!("{member}[]")));
        let same = member.contains("].breaker.").then(|| format!("upstreams[].breaker{}", &member[member.rfind('.').unwrap()..]));
        assert!(
            parts || known.contains(member.as_str()) || same.is_some_and(|same| known.contains(same.as_str())),
            "{member} is not in the reference"
        );
    }
    let missing: Vec<_> = known.iter().filter(|member| !found.contains(**member)).collect();
    assert!(missing.is_empty(), "in the reference and nowhere else: {missing:?}");
}

#[test]
fn the_admin_listener_answers_to_what_the_reference_names() {
    let gateway = Gateway::start("");
    for (path, methods, _) in gatewright::admin::WAYS {
        let answer = gateway.admin.exchange("DELETE", path).unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, Some(*methods)), "{path}");
        // What changes something is tried by tests of its own.
        if methods.starts_with("GET") {
            let answer = gateway.admin.exchange("GET", path).unwrap();
            assert!(answer.status != 405 && !answer.text().starts_with("not found"), "{path}: {}", answer.text());
        }
    }
}
