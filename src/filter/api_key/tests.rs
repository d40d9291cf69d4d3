use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::filter::testing::{build, build_for, consumers, decide, problem, session};
use std::time::Duration;

/// A gateway with one key for each state that a key can be in. It is 1000 seconds past the epoch.
fn filter(table: &str) -> ApiKey {
    let line = |name: &str, key: &str, more: &str, enabled: bool| {
        let sha256 = KeyDigest::of(key.as_bytes());
        format!("[consumers.{name}]\nenabled = {enabled}\ncredentials = [{{ api_key = {{ sha256 = '{sha256}'{more} }} }}]\n")
    };
    let all = consumers(&format!(
        "{}{}{}{}",
        line("acme", "good", "", true),
        line("late", "expired", ", expires = 1970-01-01T00:16:40Z", true),
        line("early", "notyet", ", not_before = 1970-01-01T00:16:41Z", true),
        line("off", "disabled", "", false),
    ));
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1000));
    build_for::<ApiKeyConfig>(table, &all, &(clock as SharedClock)).unwrap()
}

/// What becomes of a request with this target and these header lines: the consumer or the code, and the target afterwards.
async fn ask(filter: &ApiKey, target: &str, lines: &str) -> (Result<String, &'static str>, String) {
    let (mut session, mut ctx) = session(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), "/p").await;
    let done = decide(filter, &mut session, &mut ctx).await;
    let name = done.map(|()| ctx.identity.as_ref().unwrap().name.to_string());
    if name.is_err() {
        assert!(ctx.identity.is_none());
    }
    (name, session.req_header().uri.to_string())
}

#[tokio::test]
async fn only_a_key_that_counts_now_is_a_consumer() {
    let filter = filter("{}");
    let code = async |lines: &str| ask(&filter, "/p", lines).await.0;
    assert_eq!(code("X-API-Key: good\r\n").await.as_deref(), Ok("acme"));
    assert_eq!(code("").await, Err("credential_missing"));
    let long = format!("x-api-key: {}\r\n", "g".repeat(KEY_MAX + 1));
    for wrong in ["unknown", "expired", "notyet", "disabled", "Good", "goo", "good,good", "good2", ""] {
        assert_eq!(code(&format!("x-api-key: {wrong}\r\n")).await, Err("credential_invalid"), "{wrong}");
    }
    assert_eq!(code(&long).await, Err("credential_invalid"));
    assert_eq!(code("x-api-key: good\r\nx-api-key: good\r\n").await, Err("credential_duplicate"));
    assert_eq!(code("authorization: good\r\n").await, Err("credential_missing"));
}

#[tokio::test]
async fn refusals_differ_in_nothing_that_a_client_sees() {
    let filter = filter("{}");
    let mut seen = Vec::new();
    for wrong in ["unknown", "expired", "notyet", "disabled"] {
        let (mut session, mut ctx) = session(&format!("GET /p HTTP/1.1\r\nHost: a\r\nX-Api-Key: {wrong}\r\n\r\n"), "/p").await;
        let Step::Ready(Err(rejection)) = filter.on_request(&mut session, &mut ctx) else { panic!("{wrong} passes") };
        seen.push(format!("{rejection:?}"));
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn a_key_in_the_query_is_taken_out_whatever_comes_of_it() {
    let filter = filter("{ query = 'key' }");
    let ok = Ok("acme".to_owned());
    for (target, done, left) in [
        ("/p?key=good", ok.clone(), "/p"),
        ("/p?a=1&key=good&b=%20", ok.clone(), "/p?a=1&b=%20"),
        ("/p?k%65y=g%6Fod&a", ok.clone(), "/p?a"),
        ("/p?key=bad&a=1", Err("credential_invalid"), "/p?a=1"),
        ("/p?key=&a=1", Err("credential_invalid"), "/p?a=1"),
        ("/p?key", Err("credential_invalid"), "/p"),
        ("/p?key=good&a=1&key=good", Err("credential_duplicate"), "/p?a=1"),
        ("/p?keys=good&akey=good", Err("credential_missing"), "/p?keys=good&akey=good"),
        ("/p?&&", Err("credential_missing"), "/p?&&"),
    ] {
        assert_eq!(ask(&filter, target, "x-api-key: good\r\n").await, (done, left.to_owned()), "{target}");
    }
    let both = self::filter("{ query = 'key', header = 'x-key' }");
    assert_eq!(ask(&both, "/p?key=good", "x-key: good\r\n").await, (Err("credential_duplicate"), "/p".to_owned()));
    assert_eq!(ask(&both, "/p", "x-key: good\r\n").await.0, ok);
}

#[tokio::test]
async fn the_key_goes_upstream_only_where_that_is_written() {
    for (table, forwarded) in [("{}", false), ("{ forward = true }", true)] {
        let filter = filter(table);
        let raw = "GET /p HTTP/1.1\r\nHost: a\r\nX-Api-Key: good\r\nX_API-Key: other\r\n\r\n";
        let (mut session, mut ctx) = session(raw, "/p").await;
        decide(&filter, &mut session, &mut ctx).await.unwrap();
        let mut head = session.req_header().clone();
        filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
        assert_eq!(head.headers.contains_key("x-api-key"), forwarded);
        assert_eq!(head.headers.contains_key("x_api-key"), forwarded, "services may read it as the other");
    }
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    for (table, message) in [
        ("{ header = 'a b' }", "`a b` is not a header name"),
        ("{ header = 'Host' }", "`host` cannot be changed by a filter"),
        ("{ query = 'a=b' }", "`a=b` cannot be the parameter of a key"),
        ("{ query = '' }", "`` cannot be the parameter of a key"),
        ("{ query = 'key', forward = true }", "a key in the query is never forwarded"),
    ] {
        assert_eq!(problem::<ApiKeyConfig>(table).message, message);
    }
    assert!(build::<ApiKeyConfig>("{ header = 'authorization' }").is_ok());
}
