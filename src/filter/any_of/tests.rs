use super::*;
use crate::clock::{SharedClock, SystemClock};
use crate::consumer::{KeyDigest, cheap_password};
use crate::diagnostic::{FileId, Span};
use crate::filter::Registry;
use crate::filter::testing::{consumers, decide, in_context, session};
use crate::jwt::testing::{SECRET, claims, hs256, world};
use base64::Engine as _;
use toml::de::ValueDeserializer;

/// Decodes `{ any_of = { methods = [{ NAME = {} }, ...], anonymous = ... } }` as the loader does; a method may be `NAME TABLE`, or
/// `[METHOD|METHOD]` for an `any_of` of these.
fn spec(anonymous: bool, methods: &[&str], place: usize) -> FilterSpec {
    let registry = Registry::builtin();
    let specs = methods.iter().zip(1..).map(|(method, place)| {
        if let Some(inner) = method.strip_prefix('[').and_then(|method| method.strip_suffix(']')) {
            return spec(false, &inner.split('|').collect::<Vec<_>>(), place);
        }
        let (name, table) = method.split_once(' ').unwrap_or((method, "{}"));
        let registration = registry.get(name).unwrap();
        let prepared = (registration.decode)(ValueDeserializer::parse(table).unwrap()).unwrap();
        FilterSpec { name: registration.name, span: Span { file: FileId(0), range: place..place }, prepared }
    });
    let table = format!("{{ methods = [], anonymous = {anonymous} }}");
    let registration = registry.get("any_of").unwrap();
    let prepared = (registration.decode_nested)(ValueDeserializer::parse(&table).unwrap(), specs.collect()).unwrap();
    FilterSpec { name: registration.name, span: Span { file: FileId(0), range: place..place }, prepared }
}

/// Builds it for a gateway with an API key, a password, and an issuer of tokens.
fn build(anonymous: bool, methods: &[&str]) -> Result<Arc<dyn Filter>, Problem> {
    let (key, hash) = (KeyDigest::of(b"key"), cheap_password("pass"));
    let all = consumers(&format!(
        "[consumers.by_key]\ncredentials = [{{ api_key = {{ sha256 = '{key}' }} }}]\n\
         [consumers.by_name]\ncredentials = [{{ basic = {{ username = 'u', password = {{ argon2 = '{hash}' }} }} }}]"
    ));
    let world = world();
    let section = format!("algorithms = ['HS256']\nsecret = {{ file = {} }}", world.file("secret", SECRET));
    let issuers = world.issuers(&[("main", &section)]).unwrap();
    let prepared = spec(anonymous, methods, 0).prepared;
    in_context(&all, &(Arc::new(SystemClock) as SharedClock), |cx| {
        (prepared.build)(&mut BuildContext {
            issuers: &issuers,
            route: cx.route,
            state: cx.state,
            clock: cx.clock,
            upstreams: cx.upstreams,
            consumers: cx.consumers,
            redis: cx.redis,
            limits: cx.limits,
            credential_headers: cx.credential_headers,
            diagnostics: &mut *cx.diagnostics,
            span: cx.span.clone(),
        })
    })
}

async fn ask(filter: &Arc<dyn Filter>, lines: &str) -> Result<Option<String>, &'static str> {
    let (mut session, mut ctx) = session(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), "/").await;
    let done = decide(&**filter, &mut session, &mut ctx).await;
    done.map(|()| ctx.identity.as_ref().map(|identity| identity.name.to_string()))
}

fn basic(pair: &str) -> String {
    format!("Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(pair))
}

#[tokio::test]
async fn the_first_credential_that_is_there_decides() {
    for methods in [["api_key", "basic"], ["basic", "api_key"]] {
        let filter = build(false, &methods).unwrap();
        let name = async |lines: &str| ask(&filter, lines).await.map(Option::unwrap);
        assert_eq!(name("X-Api-Key: key\r\n").await.as_deref(), Ok("by_key"));
        assert_eq!(name(&basic("u:pass")).await.as_deref(), Ok("by_name"));
        assert_eq!(name("").await, Err("credential_missing"));
        assert_eq!(name("X-Api-Key: bad\r\n").await, Err("credential_invalid"));
        assert_eq!(name(&basic("u:bad")).await, Err("credential_invalid"));
        assert_eq!(name("X-Api-Key: key\r\nX-Api-Key: key\r\n").await, Err("credential_duplicate"));
        let mixed = "X-Api-Key: bad\r\n".to_owned() + &basic("u:pass");
        let first_is_bad = methods[0] == "api_key";
        assert_eq!(name(&mixed).await.is_err(), first_is_bad, "a bad credential is not passed over: {methods:?}");
    }
}

#[tokio::test]
async fn anonymous_means_without_a_credential_and_never_with_a_bad_one() {
    let filter = build(true, &["api_key", "basic"]).unwrap();
    assert_eq!(ask(&filter, "").await, Ok(None));
    assert_eq!(ask(&filter, "X-Api-Key: key\r\n").await, Ok(Some("by_key".to_owned())));
    assert_eq!(ask(&filter, "X-Api-Key: bad\r\n").await, Err("credential_invalid"));
    assert_eq!(ask(&filter, &basic("u:bad")).await, Err("credential_invalid"));
}

#[tokio::test]
async fn a_401_asks_for_every_method() {
    let challenge = "ApiKey header=\"x-api-key\", Basic realm=\"restricted\", charset=\"UTF-8\"";
    let (mut session, mut ctx) = session("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "/").await;
    let known = build(false, &["api_key", "basic"]).unwrap();
    let done = match known.on_request(&mut session, &mut ctx) {
        Step::Ready(done) => done,
        Step::Wait(io) => io.await,
    };
    assert_eq!(done.err().and_then(|rejection| rejection.www_authenticate).unwrap(), challenge);
    let anonymous = build(true, &["api_key", "basic"]).unwrap();
    decide(&*anonymous, &mut session, &mut ctx).await.unwrap();
    assert_eq!(ctx.challenge.unwrap(), challenge, "for a filter behind that needs an identity after all");
}

#[tokio::test]
async fn no_credential_goes_upstream_whichever_was_taken() {
    let filter = build(false, &["api_key", "basic"]).unwrap();
    let lines = "GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: key\r\nAuthorization: Basic dTpw\r\n\r\n";
    let (mut session, mut ctx) = session(lines, "/").await;
    decide(&*filter, &mut session, &mut ctx).await.unwrap();
    let mut head = session.req_header().clone();
    filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
    assert!(!head.headers.contains_key("x-api-key") && !head.headers.contains_key("authorization"));
}

/// Whoever reads a credential behind the gateway may take it for verified.
#[tokio::test]
async fn only_what_the_method_that_decided_has_verified_goes_upstream() {
    let bearer = format!("authorization: Bearer {}", hs256().token(&claims()));
    let token = bearer.trim_start_matches("authorization: Bearer ");
    let (pair, cookie) = (basic("u:pass").replace("Authorization", "authorization"), format!("cookie: t={token}"));
    let pair = pair.trim_end();
    let (key, jwt) = ("x-api-key: key", "jwt { issuer = 'main' }");
    let (forged, said) = ("authorization: Bearer forged", "x-said: forged");
    let (passed_key, passed_pair) = ("api_key { forward = true }", "basic { forward = true }");
    let anywhere = "jwt { issuer = 'main', token = ['authorization', 'cookie:t'] }";
    let claimed = "jwt { issuer = 'main', headers = { x-said = 'sub' } }";
    let asked = "forward_auth { url = 'http://127.0.0.1:1/', headers = ['x-sign', 'cookie'], response_headers = ['x-said'], identity = \
                 { name = 'x-name' } }";
    let plus = |line: &str, more: &str| format!("{line}; {more}");
    let two = plus(&cookie, "a=1");
    let cases: [(&[&str], Vec<&str>, Vec<String>); 17] = [
        (&["api_key", jwt], vec![key, forged], vec![]),
        (&[passed_key, jwt], vec![key, forged], vec![key.into()]),
        (&[jwt, passed_key], vec![&bearer, "x-api-key: forged", "x_api-key: forged"], vec![bearer.clone()]),
        (&[passed_key, "api_key { header = 'X_Api_Key' }"], vec![key, "x_api_key: forged"], vec![key.into()]),
        (&["api_key", passed_pair], vec![key, "authorization: Basic forged"], vec![]),
        (&["api_key", "hmac"], vec![key, "signature: s=:a:", "signature-input: s=()"], vec![]),
        (&["api_key", claimed], vec![key, said, "x_said: forged"], vec![]),
        (&["api_key", asked], vec![key, said, "x-sign: forged", "cookie: a=1"], vec![]),
        // One place for both: what stands there is the credential of the one that decided, or it is not.
        (&[jwt, "basic"], vec![&bearer], vec![bearer.clone()]),
        (&["jwt { issuer = 'main', forward = false }", passed_pair], vec![&bearer], vec![]),
        (&[jwt, passed_pair], vec![pair], vec![pair.into()]),
        (&[anywhere, passed_pair], vec![&cookie, pair], vec![cookie.clone()]),
        (&[anywhere, asked], vec![&two], vec![cookie.clone()]),
        (&[passed_pair, anywhere], vec![pair, "cookie: a=1; t=forged; b=2"], vec![pair.into(), "cookie: a=1; b=2".into()]),
        (&[jwt, "[api_key|basic]"], vec![&bearer, key], vec![bearer.clone()]),
        (&["[api_key|basic { forward = true }]", jwt], vec![pair, "x-other: 1"], vec![pair.into(), "x-other: 1".into()]),
        (&["[api_key|basic { forward = true }]", jwt], vec![key, forged], vec![]),
    ];
    for (methods, lines, left) in cases {
        assert_eq!(upstream(false, methods, &lines).await, left, "{methods:?} {lines:?}");
    }
    // Not even what no method takes for a credential, and a service with a parser of its own may.
    for line in ["authorization: Bearer\tforged", "authorization: forged", "cookie: u=1"] {
        let left = if line.starts_with("cookie") { vec![line.to_owned()] } else { vec![] };
        assert_eq!(upstream(true, &[anywhere, passed_key], &[line]).await, left, "{line}");
    }
}

/// The lines that reach the upstream of those that the client has sent.
async fn upstream(anonymous: bool, methods: &[&str], lines: &[&str]) -> Vec<String> {
    let filter = build(anonymous, methods).unwrap();
    let raw = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", lines.join("\r\n"));
    let (mut session, mut ctx) = session(&raw, "/").await;
    assert_eq!(decide(&*filter, &mut session, &mut ctx).await, Ok(()), "{methods:?} {lines:?}");
    let seen = |ctx: &mut RequestCtx| {
        let mut head = session.req_header().clone();
        filter.on_upstream_request(&session, &mut head, ctx).unwrap();
        let lines = head.headers.iter().filter(|(name, _)| *name != "host");
        let mut lines: Vec<_> = lines.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    };
    let lines = seen(&mut ctx);
    assert_eq!(seen(&mut ctx.fork(std::time::Instant::now())), lines, "what is fetched on its behalf is the same");
    lines
}

/// Also where the method that decides comes before the one that would have taken the parameter out, and where it is refused.
#[tokio::test]
async fn no_credential_of_the_query_is_left_whichever_was_taken() {
    let (key, other) = ("api_key { query = 'key' }", "api_key { query = 'other' }");
    let sign = basic("u:pass");
    for methods in [[key, "basic", other], ["basic", other, key], [other, key, "basic"]] {
        let filter = build(true, &methods).unwrap();
        for (target, lines, left, done) in [
            ("/?key=bad&a=1&other=bad", sign.as_str(), "/?a=1", (methods[0] == "basic").then_some("by_name")),
            ("/?key=key&a=1&other=key", "", "/?a=1", Some("by_key")),
            ("/?a=1&k%65y=key", "", "/?a=1", Some("by_key")),
            ("/?key=bad&a=1", "", "/?a=1", None),
            ("/?key=key&key=key&other=bad", "", "/", None),
        ] {
            let (mut session, mut ctx) = session(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), "/").await;
            let got = decide(&*filter, &mut session, &mut ctx).await;
            let name = ctx.identity.as_ref().map(|identity| identity.name.to_string());
            assert_eq!((got.is_ok(), name.as_deref()), (done.is_some(), done), "{methods:?} {target}");
            assert_eq!(session.req_header().uri, left, "{methods:?} {target}");
        }
    }
}

#[test]
fn only_filters_that_tell_who_calls_can_be_methods() {
    let problem = |methods: &[&str]| build(false, methods).err().unwrap();
    let wrong = problem(&["api_key", "require"]);
    assert_eq!((wrong.message.as_str(), wrong.span.unwrap().range.start), ("`require` does not tell who calls", 2));
    assert_eq!(problem(&[]).message, "`methods` has 0 filters");
    assert_eq!(problem(&["api_key"; METHODS_MAX + 1]).message, "`methods` has 9 filters");
}
