use super::*;
use crate::filter::testing::session;
use crate::identity::Identity;
use serde_json::{Value as Json, json};
use std::time::{Duration, SystemTime};

fn wrong(text: &str) -> (String, String) {
    match Condition::parse(text) {
        Ok(_) => panic!("{text} is accepted"),
        Err((why, help)) => (why, help.unwrap_or_default()),
    }
}

/// 2026-11-22, a Sunday, at 13:07 UTC.
const NOW: u64 = 1_795_352_820;

async fn holds(text: &str, claims: Json) -> bool {
    let raw = "PUT /orders/7?a=1 HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-B: 1\r\nX-B: 2\r\n\r\n";
    let (session, ctx) = session(raw, "/orders/{id}").await;
    let Json::Object(claims) = claims else { panic!() };
    let mut identity = Identity::nobody();
    identity.name = "alice".into();
    identity.roles = ["orders:read", "orders:write"].map(Arc::from).into();
    identity.claims = Some(Arc::new(claims));
    let facts = Facts {
        head: Some(session.req_header()),
        ctx: Some(&ctx),
        identity: Some(&identity),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW),
    };
    Condition::parse(text).unwrap_or_else(|why| panic!("{text}: {why:?}")).holds(&facts)
}

#[tokio::test]
async fn every_fact_can_be_asked_for() {
    let claims = || {
        json!({ "org": "acme", "level": 7, "share": 0.5, "big": u64::MAX, "admin": true, "none": null, "groups": ["a", "b"],
                "realm_access": { "roles": ["x"], "deep": { "er": 1 } }, "https://example.com/tenant": "t" })
    };
    for text in [
        "true",
        "request.method == 'PUT' && request.path == '/orders/7' && request.query == 'a=1'",
        "request.host == 'example.com' && request.scheme == 'http'",
        "request.address == '192.0.2.7' && request.address.inside('192.0.2.0/24') && !request.address.inside('10.0.0.0/8')",
        "request.headers['x-a'] == '1' && request.headers['x-b'] == '1, 2' && !('x-c' in request.headers)",
        "request.params.id == '7' && request.params['id'] == '7' && !has(request.params.other)",
        "identity.name == 'alice' && identity.consumer == '' && identity.tier == ''",
        "'orders:write' in identity.roles && size(identity.roles) == 2 && size(identity.scopes) == 0",
        "identity.roles.exists(role, role.startsWith('orders:')) && identity.roles.all(role, role.contains(':'))",
        "claims.org == 'acme' && claims.level > 5 && claims.level < 8.5 && claims.share == 0.5 && claims.admin",
        "claims.big == 18446744073709551615u && claims.none == null",
        "'b' in claims.groups && claims.groups[0] == 'a' && !('c' in claims.groups)",
        "claims.realm_access.roles[0] == 'x' && claims.realm_access.deep.er == 1 && has(claims.realm_access.deep)",
        "claims['https://example.com/tenant'] == 't' && 'org' in claims && !has(claims.other)",
        "has(claims.other) ? claims.other == 1 : claims.org.endsWith('me')",
        "time.hour == 13 && time.minute == 7 && time.weekday == 7 && time.unix == 1795352820",
        "time.hour >= 8 && time.hour < 18 || claims.admin",
        "claims.groups.map(group, group + '!') == ['a!', 'b!'] && claims.groups.filter(group, group != 'a').size() == 1",
        "string(claims.level) == '7' && int('7') == claims.level",
    ] {
        assert!(holds(text, claims()).await, "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_evaluated_does_not_hold() {
    for text in [
        "claims.other == 1",
        "claims.org > 5",
        "claims.org.inside('10.0.0.0/8')",
        "certificate.subject == ''",
        "request.headers['x-c'] == ''",
        "claims.groups[7] == 'a'",
        "1 / (claims.level - 7) == 1",
        "claims.org",
        "claims.many.exists(x, x == 1)",
        "9223372036854775807 + claims.level > 0",
    ] {
        let many: Vec<u32> = vec![1; facts::LIST_MAX + 1];
        assert!(!holds(text, json!({ "org": "acme", "level": 7, "groups": [], "many": many })).await, "{text}");
    }
    // The right side decides where the left one cannot.
    assert!(holds("claims.other == 1 || true", json!({})).await);
}

#[test]
fn what_is_wrong_is_told_when_it_is_written() {
    assert_eq!(wrong("request.pth == '/'"), ("there is no `request.pth`".into(), "did you mean `request.path`?".into()));
    assert_eq!(wrong("claim.org == 'a'"), ("there is no `claim`".into(), "did you mean `claims`?".into()));
    assert!(wrong("request == 1").1.contains("request.method"));
    assert!(wrong("request.path.matches('a*')").1.contains("startsWith"));
    assert!(wrong("now() > 1").0.contains("there is no function `now`"));
    assert!(wrong("request.address.inside('10.0.0.0/33')").0.contains("10.0.0.0/33"));
    assert!(wrong("request.address.inside(claims.network)").0.contains("takes one network"));
    assert!(wrong("1 + 1").0.contains("must give true or false"));
    assert!(wrong("'text'").0.contains("must give true or false"));
    for text in ["", "(", "a ==", "request.path = 'a'", "'a", "{", "a b", "\u{1b}", "request.", "..", "true &&"] {
        assert!(!wrong(text).0.is_empty(), "{text}");
    }
}

#[test]
fn a_condition_is_bounded() {
    assert!(wrong(&" ".repeat(TEXT_MAX + 1)).0.contains("the most is"));
    assert!(!wrong(&format!("{}true{}", "(".repeat(500), ")".repeat(500))).0.is_empty());
    let long = vec!["true"; NODES_MAX].join("&&");
    assert!(wrong(&long).0.contains("too large"));
    assert!(wrong("claims.a.all(x, claims.b.all(y, x == y))").0.contains("within another"));
    let body = vec!["x == 1"; LOOP_NODES_MAX].join("||");
    assert!(wrong(&format!("claims.a.all(x, {body})")).0.contains("the most is"));
    assert!(Condition::parse("claims.a.all(x, x == 1) && claims.b.exists(x, x == 2)").is_ok(), "one after the other");
    let joined = ["x"; JOINS_MAX + 2].join(" + ");
    assert!(wrong(&format!("claims.a.map(x, {joined}).size() > 0")).0.contains("joins values"));
    for few in ["x + ':' + 'b' + 'c' + 'd' + 'e' + 'f'", "x + ':' + claims.org", "x + x + x + x"] {
        assert!(Condition::parse(&format!("claims.a.map(x, {few}).size() > 0 && claims.a.all(x, {few} != '')")).is_ok(), "{few}");
    }
}

/// What is read counts as often as it is read, and where it is too much nothing holds, also not by the other side of `||`.
#[tokio::test]
async fn a_condition_reads_no_more_than_it_may() {
    let claims = || {
        let list: Vec<String> = (0..1_000).map(|number| format!("{number:03}")).collect();
        json!({ "list": list, "long": "x".repeat(30_000), "short": ["a", "b"], "matrix": vec![vec![1; 200]; 200] })
    };
    for text in [
        "claims.list.all(x, x in claims.list)",
        "claims.list.all(x, claims.long != x)",
        "claims.list.exists(x, claims.long == x) || true",
        "true || claims.list.all(x, claims.long == x)",
        "claims.list.all(x, !has(claims.nothing) && !has(claims.nothing) && !has(claims.nothing) && !has(claims.nothing) && !has(claims.nothing))",
        "claims.list.all(x, request.address != '' && request.method != '' && request.host != '' && request.path != '' && request.query != '' \
         && request.scheme != '' && time.hour < 24 && claims.size() > 0 && request.params.size() > 0)",
        "size(claims.matrix) == 200",
    ] {
        let much = text.starts_with("true");
        assert_eq!(holds(text, claims()).await, much, "{text}");
    }
    for text in [
        "claims.list.all(x, x != claims.short[0] && x != 'b') && claims.list.exists(x, x == '999')",
        "claims.short.all(x, claims.long != x) && claims.short.all(x, !(x in claims.list))",
        "identity.roles.all(x, x.startsWith('orders:')) && request.headers['x-a'] == '1'",
    ] {
        assert!(holds(text, claims()).await, "{text}");
    }
}
