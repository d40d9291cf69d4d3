use super::*;
use crate::clock::{SharedClock, SystemClock};
use crate::consumer::{KeyDigest, cheap_password};
use crate::diagnostic::{FileId, Span};
use crate::filter::Registry;
use crate::filter::testing::{consumers, decide, in_context, session};
use base64::Engine as _;
use toml::de::ValueDeserializer;

/// Builds `{ any_of = { methods = [{ NAME = {} }, ...], anonymous = ... } }` as the loader does; a method may be `NAME TABLE`.
fn build(anonymous: bool, methods: &[&str]) -> Result<Arc<dyn Filter>, Problem> {
    let (key, hash) = (KeyDigest::of(b"key"), cheap_password("pass"));
    let all = consumers(&format!(
        "[consumers.by_key]\ncredentials = [{{ api_key = {{ sha256 = '{key}' }} }}]\n\
         [consumers.by_name]\ncredentials = [{{ basic = {{ username = 'u', password = {{ argon2 = '{hash}' }} }} }}]"
    ));
    let registry = Registry::builtin();
    let specs = methods.iter().zip(1..).map(|(method, place)| {
        let (name, table) = method.split_once(' ').unwrap_or((method, "{}"));
        let registration = registry.get(name).unwrap();
        let prepared = (registration.decode)(ValueDeserializer::parse(table).unwrap()).unwrap();
        FilterSpec { name: registration.name, span: Span { file: FileId(0), range: place..place }, prepared }
    });
    let table = format!("{{ methods = [], anonymous = {anonymous} }}");
    let decode = registry.get("any_of").unwrap().decode_nested;
    let prepared = decode(ValueDeserializer::parse(&table).unwrap(), specs.collect()).unwrap();
    in_context(&all, &(Arc::new(SystemClock) as SharedClock), |cx| (prepared.build)(cx))
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
