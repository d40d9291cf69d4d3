//! When stored answers are fetched anew: not all at once, and before they are missed.

use crate::cache::{ok, route, script};
use crate::support::{self, Gateway, Origin, SOON, eventually, raw};

/// The lifetime that is left, as `Cache-Status` tells it of a hit.
fn ttl_of_hit(answer: &support::http1::Response) -> u64 {
    let said = answer.header("cache-status").unwrap();
    assert!(said.starts_with("gatewright; hit"), "{said}");
    said.split("; ").find_map(|part| part.strip_prefix("ttl=")?.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn what_was_stored_together_does_not_expire_together() {
    let origin = Origin::start("a");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", b"x"))));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "jitter = \"50%\"")].concat());
    let mut ttls = Vec::new();
    for at in 0..40 {
        let target = format!("/c/{at}");
        assert_eq!(raw::get(gateway.http(), &target).status, 200);
        ttls.push(ttl_of_hit(&raw::get(gateway.http(), &target)));
    }
    // Shorter by up to the share; a busy machine may take some seconds between the two requests.
    assert!(ttls.iter().all(|ttl| (480..=1_000).contains(ttl)), "{ttls:?}");
    let spread = ttls.iter().max().unwrap() - ttls.iter().min().unwrap();
    assert!(spread > 200, "{ttls:?}");
}

#[test]
fn what_is_asked_for_often_is_fetched_before_it_expires() {
    let origin = Origin::start("a");
    // Half of its lifetime is over when it comes, so that about every second hit has it fetched.
    origin.answer(script(|target, _| {
        let immutable = if target == "/c/immutable" { ", immutable" } else { "" };
        Some(ok(&format!("cache-control: max-age=1000{immutable}\r\nage: 500"), b"x"))
    }));
    let gateway = Gateway::start(
        &[support::upstream("app", &[&origin], ""), route("c", "early_refresh = \"90%\""), route("d", "")].concat(),
    );
    for target in ["/c/x", "/c/immutable", "/d/x"] {
        assert_eq!(raw::get(gateway.http(), target).status, 200);
    }
    let fetches = |target: &str| origin.requests().iter().filter(|request| request.request_line().contains(target)).count();
    eventually("fetches in the background", SOON, || {
        ttl_of_hit(&raw::get(gateway.http(), "/c/x"));
        ttl_of_hit(&raw::get(gateway.http(), "/d/x"));
        ttl_of_hit(&raw::get(gateway.http(), "/c/immutable"));
        fetches("/c/x") >= 5
    });
    assert_eq!(fetches("/d/x"), 1, "where nothing is said of it, nothing is fetched early");
    assert_eq!(fetches("/c/immutable"), 1, "RFC 8246: it will not change before its end");
}
