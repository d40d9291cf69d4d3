use super::*;
use crate::diagnostic::{Diagnostics, FileId, Span};
use crate::filter::testing::{consumers, decide, session};
use crate::jwt::Issuers;
use crate::jwt::testing::{NOW, Signer, World, claims, claims_with, hs256, world};
use serde_json::json;

/// Builds the filter for a gateway with these sections and consumers.
fn build_with(world: &World, sections: &[(&str, &str)], known: &str, table: &str) -> Result<Jwt, Problem> {
    let issuers = world.issuers(sections).unwrap_or_else(|why| panic!("{why}"));
    build_on(world, &issuers, known, table)
}

fn build_on(world: &World, issuers: &Issuers, known: &str, table: &str) -> Result<Jwt, Problem> {
    let config = JwtConfig::deserialize(toml::de::ValueDeserializer::parse(table).unwrap()).unwrap();
    let clock: crate::clock::SharedClock = world.clock.clone();
    config.build(&mut BuildContext {
        route: "test",
        state: &world.state,
        clock: &clock,
        upstreams: &BTreeMap::new(),
        consumers: &consumers(known),
        issuers,
        redis: None,
        limits: &crate::limit::Stores::default(),
        credential_headers: &[],
        diagnostics: &mut Diagnostics::default(),
        span: Span { file: FileId(0), range: 0..0 },
    })
}

fn section(world: &World, more: &str) -> String {
    format!("algorithms = ['HS256']\nsecret = {{ file = {} }}\n{more}", world.file("secret", crate::jwt::testing::SECRET))
}

fn build(world: &World, table: &str) -> Jwt {
    build_with(world, &[("main", &section(world, ""))], "", table).unwrap_or_else(|problem| panic!("{problem:?}"))
}

fn head(lines: &str) -> String {
    format!("GET /a?x=1 HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// What the filter decides about a request with these header lines, and who it is then.
async fn ask(filter: &Jwt, lines: &str) -> Result<String, &'static str> {
    let (mut session, mut ctx) = session(&head(lines), "/{*rest}").await;
    decide(filter, &mut session, &mut ctx).await?;
    Ok(ctx.identity.unwrap().name.to_string())
}

const MAIN: &str = "{ issuer = 'main' }";
const ALICE: Result<&str, &str> = Ok("alice");

#[tokio::test]
async fn a_bearer_token_is_found_in_every_way_that_the_standard_writes_it() {
    let (world, token) = (world(), hs256().token(&claims()));
    let filter = build(&world, MAIN);
    for good in ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer ", "Bearer   "] {
        let got = ask(&filter, &format!("Authorization: {good} {token}\r\n")).await;
        assert_eq!(got.as_deref().map_err(|code| *code), ALICE, "{good}");
    }
    for (line, code) in [
        (String::new(), "credential_missing"),
        ("Authorization: Basic YWxpY2U6eA==\r\n".into(), "credential_missing"),
        (format!("Authorization: {token}\r\n"), "credential_missing"),
        (format!("Authorization: Bearer{token}\r\n"), "credential_missing"),
        (format!("Authorization: Token {token}\r\n"), "credential_missing"),
        ("Authorization: Bearer\r\n".into(), "token_invalid"),
        (format!("Authorization: Bearer {token} x\r\n"), "token_invalid"),
        (format!("Authorization: Bearer {token},{token}\r\n"), "token_invalid"),
        (format!("Authorization: Bearer \"{token}\"\r\n"), "token_invalid"),
        (format!("Authorization: Bearer {token}.\r\n"), "token_invalid"),
        (format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"), "credential_duplicate"),
        (format!("Authorization: Bearer {token}\r\nauthorization: Basic x\r\n"), "credential_duplicate"),
        (format!("X-Token: {token}\r\nCookie: token={token}\r\n"), "credential_missing"),
    ] {
        assert_eq!(ask(&filter, &line).await, Err(code), "{line}");
    }
}

#[tokio::test]
async fn other_places_count_only_where_they_are_named() {
    let (world, token) = (world(), hs256().token(&claims()));
    let filter = build(&world, "{ issuer = 'main', token = ['authorization', 'header:X-Token', 'cookie:t'] }");
    for line in [
        format!("x-token: {token}\r\n"),
        format!("Cookie: a=1; t={token}; tt=2\r\n"),
        format!("Cookie: a=1\r\nCookie: t=\"{token}\"\r\n"),
        format!("Authorization: Basic x\r\nx-token: {token}\r\n"),
    ] {
        assert_eq!(ask(&filter, &line).await.as_deref().map_err(|code| *code), ALICE, "{line}");
    }
    for line in [
        format!("x-token: {token}\r\nx-token: {token}\r\n"),
        format!("x-token: {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("Cookie: t={token}; t=x\r\n"),
        format!("Cookie: t={token}\r\nAuthorization: Bearer x\r\n"),
    ] {
        assert_eq!(ask(&filter, &line).await, Err("credential_duplicate"), "{line}");
    }
    assert_eq!(ask(&filter, &format!("Cookie: tt={token}; xt={token}\r\n")).await, Err("credential_missing"));
}

#[tokio::test]
async fn a_token_in_the_query_goes_no_further() {
    let (world, token) = (world(), hs256().token(&claims()));
    let filter = build(&world, "{ issuer = 'main', token = ['authorization', 'query:access_token'] }");
    for (target, left, decided) in [
        (format!("/a?access_token={token}"), "/a", Ok(())),
        (format!("/a?x=1&access_token={token}&y=%20&y"), "/a?x=1&y=%20&y", Ok(())),
        ("/a?x=1&access_token=bad".into(), "/a?x=1", Err("token_invalid")),
        ("/a?access_token".into(), "/a", Err("token_invalid")),
        (format!("/a?access_token={token}&access_token={token}&z"), "/a?z", Err("credential_duplicate")),
        ("/a?xaccess_token=1".into(), "/a?xaccess_token=1", Err("credential_missing")),
    ] {
        let (mut session, mut ctx) = session(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), "/{*rest}").await;
        assert_eq!(decide(&filter, &mut session, &mut ctx).await, decided, "{target}");
        assert_eq!(session.req_header().uri.to_string(), left);
    }
    let both = format!("GET /a?access_token={token} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
    let (mut session, mut ctx) = session(&both, "/{*rest}").await;
    assert_eq!(decide(&filter, &mut session, &mut ctx).await, Err("credential_duplicate"));
    assert_eq!(session.req_header().uri.to_string(), "/a");
}

#[tokio::test]
async fn upstreams_get_claims_from_us_alone_and_the_token_where_it_is_wanted() {
    let world = world();
    let headers = "headers = { X-User = 'sub', x-roles = 'roles', x-none = 'absent', x-org = 'org.id' }";
    let filter = build(
        &world,
        &format!("{{ issuer = 'main', forward = false, token = ['authorization', 'cookie:t', 'header:x-token'], {headers} }}"),
    );
    let token = hs256().token(&claims_with(json!({ "roles": ["a", "b"], "org": { "id": 7 } })));
    let lines = format!(
        "Authorization: Bearer {token}\r\nCookie: a=1; b=2\r\nx-user: admin\r\nX-USER: root\r\nx-none: 1\r\nx-roles: admin\r\n\
         x_user: admin\r\nX_None: 1\r\nx_token: {token}x\r\n"
    );
    let (mut session, mut ctx) = session(&head(&lines), "/{*rest}").await;
    assert_eq!(decide(&filter, &mut session, &mut ctx).await, Ok(()));
    let mut up = session.req_header().clone();
    filter.on_upstream_request(&session, &mut up, &mut ctx).unwrap();
    let all = |name: &str| up.headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(all("x-user"), ["alice"]);
    assert_eq!(all("x-roles"), ["a,b"]);
    assert_eq!(all("x-org"), ["7"]);
    assert!(all("x-none").is_empty() && all("authorization").is_empty());
    assert_eq!(all("cookie"), ["a=1; b=2"]);
    // CGI, and what came of it, would read them as the ones that we write or remove.
    assert!(["x_user", "x_none", "x_token"].iter().all(|name| all(name).is_empty()));
}

#[tokio::test]
async fn a_cookie_with_a_token_is_taken_out_alone() {
    let world = world();
    let filter = build(&world, "{ issuer = 'main', forward = false, token = ['cookie:t'] }");
    let token = hs256().token(&claims());
    for (cookies, left) in [(format!("a=1; t={token}; b=2"), Some("a=1; b=2")), (format!("t={token}"), None)] {
        let (mut session, mut ctx) = session(&head(&format!("Cookie: {cookies}\r\n")), "/{*rest}").await;
        assert_eq!(decide(&filter, &mut session, &mut ctx).await, Ok(()));
        let mut up = session.req_header().clone();
        filter.on_upstream_request(&session, &mut up, &mut ctx).unwrap();
        assert_eq!(up.headers.get("cookie").map(|value| value.to_str().unwrap()), left);
    }
}

#[tokio::test]
async fn challenges_say_what_rfc_6750_says() {
    let world = world();
    let filter = build(&world, MAIN);
    let expired = hs256().token(&json!({ "sub": "a", "exp": NOW - 100 }));
    for (lines, code, challenge) in [
        ("".into(), "credential_missing", "Bearer"),
        ("Authorization: Bearer x\r\n".into(), "token_invalid", "Bearer error=\"invalid_token\""),
        (
            format!("Authorization: Bearer {expired}\r\n"),
            "token_expired",
            "Bearer error=\"invalid_token\", error_description=\"The token has expired\"",
        ),
        (
            "Authorization: Bearer x\r\nAuthorization: Bearer y\r\n".into(),
            "credential_duplicate",
            "Bearer error=\"invalid_request\"",
        ),
    ] {
        let (mut session, mut ctx) = session(&head(&lines), "/{*rest}").await;
        let Step::Ready(Err(rejection)) = filter.on_request(&mut session, &mut ctx) else { panic!("{lines}") };
        assert_eq!(rejection.code.code, code);
        assert_eq!(rejection.www_authenticate.unwrap(), challenge);
        assert!(ctx.identity.is_none());
    }
}

#[tokio::test]
async fn a_token_belongs_to_the_consumer_that_its_subject_or_the_mapping_names() {
    let world = world();
    let known = "
        [consumers.acme]
        roles = ['orders:write']
        tier = 'gold'
        credentials = [{ jwt = { subject = 'alice' } }]
        [consumers.gone]
        enabled = false
        credentials = [{ jwt = { subject = 'bob' } }]
        [consumers.elsewhere]
        credentials = [{ jwt = { subject = 'carol', issuer = 'other' } }]
        [consumers.dave]
        [tiers.gold]
    ";
    let by_subject = build_with(&world, &[("main", &section(&world, "claims = { roles = 'roles' }"))], known, MAIN).unwrap();
    let by_name = build_with(&world, &[("main", &section(&world, "claims = { consumer = 'sub' }"))], known, MAIN).unwrap();
    let strict = build_with(&world, &[("main", &section(&world, "require_consumer = true"))], known, MAIN).unwrap();
    let as_whom = async |filter: &Jwt, subject: &str| {
        let token = hs256().token(&claims_with(json!({ "sub": subject, "roles": ["extra", "orders:write"] })));
        let (mut session, mut ctx) = session(&head(&format!("Authorization: Bearer {token}\r\n")), "/{*rest}").await;
        decide(filter, &mut session, &mut ctx).await?;
        let identity = ctx.identity.unwrap();
        Ok((identity.name.to_string(), identity.consumer.is_some()))
    };
    let named = |name: &str, consumer: bool| Ok((name.to_owned(), consumer));
    assert_eq!(as_whom(&by_subject, "alice").await, named("acme", true));
    assert_eq!(as_whom(&by_subject, "bob").await, Err("token_invalid"));
    assert_eq!(as_whom(&by_subject, "carol").await, named("carol", false), "only another issuer vouches for carol");
    assert_eq!(as_whom(&by_subject, "dave").await, named("dave", false), "a subject alone is not the name of a consumer");
    assert_eq!(as_whom(&by_name, "dave").await, named("dave", true));
    assert_eq!(as_whom(&by_name, "gone").await, Err("token_invalid"));
    assert_eq!(as_whom(&strict, "alice").await, named("acme", true));
    assert_eq!(as_whom(&strict, "dave").await, Err("token_invalid"));

    let token = hs256().token(&claims_with(json!({ "roles": ["extra", "orders:write"] })));
    let (mut session, mut ctx) = session(&head(&format!("Authorization: Bearer {token}\r\n")), "/{*rest}").await;
    decide(&by_subject, &mut session, &mut ctx).await.unwrap();
    let identity = ctx.identity.unwrap();
    assert_eq!(identity.roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["extra", "orders:write"]);
    assert_eq!((identity.tier.as_deref(), &*identity.credential), (Some("gold"), "jwt:main:alice"));
}

#[tokio::test]
async fn a_remembered_token_ends_with_the_credential_of_its_consumer() {
    let world = world();
    let known = "
        [consumers.acme]
        credentials = [{ jwt = { subject = 'alice', expires = 2027-01-15T08:01:00Z } }]
    ";
    // 2027-01-15T08:00:00Z.
    assert_eq!(NOW, 1_800_000_000);
    let filter = build_with(&world, &[("main", &section(&world, ""))], known, MAIN).unwrap();
    let line = format!("Authorization: Bearer {}\r\n", hs256().token(&claims()));
    assert_eq!(ask(&filter, &line).await.as_deref(), Ok("acme"));
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(ask(&filter, &line).await.as_deref(), Ok("acme"));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&filter, &line).await, Err("token_invalid"));
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    let world = world();
    let rsa = world.file("rsa.pem", Signer::rs256("r").pem());
    let named = |iss: &str| format!("issuer = '{iss}'\nalgorithms = ['RS256']\npublic_key = {rsa}");
    let sections = [("main", section(&world, "")), ("a", named("https://a/")), ("b", named("https://a/"))];
    let sections: Vec<_> = sections.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for (table, why) in [
        ("{ issuer = 'mian' }", "there is no issuer `mian`"),
        ("{ issuer = [] }", "this names 0 issuers, and 1 to 16 are possible"),
        ("{ issuer = ['a', 'a'] }", "`a` stands twice"),
        ("{ issuer = ['a', 'main'] }", "the issuer `main` cannot be told from others"),
        ("{ issuer = ['a', 'b'] }", "the issuers `a` and `b` have the same `issuer`"),
        ("{ issuer = 'main', token = [] }", "`token` names no place"),
        ("{ issuer = 'main', token = ['bearer'] }", "`bearer` is no place where a token can be"),
        ("{ issuer = 'main', token = ['header:a b'] }", "`a b` is not a header name"),
        ("{ issuer = 'main', token = ['header:Authorization'] }", "this header holds more than a token"),
        ("{ issuer = 'main', token = ['query:a&b'] }", "`a&b` is not a plain name"),
        ("{ issuer = 'main', token = ['cookie:'] }", "`` is not a plain name"),
        ("{ issuer = 'main', token = ['query:t', 'query:T'] }", "`query:T` stands twice"),
        ("{ issuer = 'main', headers = { x-a = 'a..b' } }", "`a..b` is not the name of a claim"),
        ("{ issuer = 'main', headers = { x-a = 'a', X-A = 'b' } }", "`x-a` stands twice, in two spellings"),
        ("{ issuer = 'main', headers = { Host = 'sub' } }", "`host` cannot be changed by a filter"),
    ] {
        let problem = build_with(&world, &sections, "", table).err().unwrap_or_else(|| panic!("{table} builds"));
        assert_eq!(problem.message, why, "{table}");
    }
}
