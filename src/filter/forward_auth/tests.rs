use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::filter::testing::{build_for, consumers, decide, problem, session};
use crate::filter::{Filter, Step};
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A service that answers each connection's requests with `answer`, and remembers what it was asked.
async fn service(answer: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut byte = [0];
                while stream.read(&mut byte).await.is_ok_and(|read| read == 1) {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        seen.lock().unwrap().push(String::from_utf8(std::mem::take(&mut head)).unwrap());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (format!("http://{address}/verify?a=1"), asked)
}

fn filter(url: &str, more: &str) -> ForwardAuth {
    let all = consumers("[consumers.acme]\nroles = ['own']\n[consumers.off]\nenabled = false\n");
    build_for::<ForwardAuthConfig>(&format!("{{ url = '{url}', {more} }}"), &all, &(ManualClock::new() as SharedClock)).unwrap()
}

const RAW: &str = "PUT /a/b?q=1 HTTP/1.1\r\nHost: Example.com\r\nAuthorization: Basic x\r\nCookie: c=1\r\nX-Secret: s\r\n\
                   X-User: forged\r\nX-Forwarded-Uri: /forged\r\n\r\n";

async fn ask(filter: &ForwardAuth, raw: &str) -> (Result<(), &'static str>, RequestCtx, Session) {
    let (mut session, mut ctx) = session(raw, "/{*rest}").await;
    let done = decide(filter, &mut session, &mut ctx).await;
    (done, ctx, session)
}

#[tokio::test]
async fn the_service_sees_what_is_listed_and_the_upstream_what_it_says() {
    let (url, asked) =
        service("HTTP/1.1 204 No Content\r\nx-user: alice\r\nx-roles: a, b\r\nx-name: acme\r\nx-other: no\r\n\r\n").await;
    let filter = filter(&url, "response_headers = ['x-user', 'x-tenant'], identity = { name = 'x-name', roles = 'x-roles' }");
    let (done, mut ctx, session) = ask(&filter, RAW).await;
    assert_eq!(done, Ok(()));
    let question = asked.lock().unwrap()[0].to_lowercase();
    assert!(question.starts_with("get /verify?a=1 http/1.1\r\n"), "{question}");
    for line in [
        "authorization: basic x",
        "cookie: c=1",
        "x-forwarded-method: put",
        "x-forwarded-uri: /a/b?q=1",
        "x-forwarded-host: example.com",
        "x-forwarded-proto: http",
        "x-forwarded-for: 192.0.2.7",
        "x-request-id: ",
        "host: 127.0.0.1:",
    ] {
        assert!(question.contains(line), "{line} is missing in {question}");
    }
    assert!(!question.contains("secret") && !question.contains("forged"), "{question}");
    let identity = ctx.identity.clone().unwrap();
    assert_eq!((&*identity.name, &*identity.credential), ("acme", "forward_auth:acme"));
    assert!(["a", "b", "own"].iter().all(|role| identity.has_role(role)) && identity.consumer.is_some());
    let mut head = session.req_header().clone();
    for name in ["x-tenant", "x_tenant", "X_User"] {
        head.insert_header(name, "forged").unwrap();
    }
    filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
    assert_eq!(head.headers.get_all("x-user").iter().collect::<Vec<_>>(), ["alice"]);
    for name in ["x-tenant", "x_tenant", "x_user", "x-other"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn what_two_services_say_goes_upstream_once() {
    let (one, _) = service("HTTP/1.1 204 Ok\r\nx-one: 1\r\nx-both: 1\r\n\r\n").await;
    let (two, _) = service("HTTP/1.1 204 Ok\r\nx-two: 2\r\nx-both: 2\r\n\r\n").await;
    let filters =
        [filter(&one, "response_headers = ['x-one', 'x-both']"), filter(&two, "response_headers = ['x-both', 'x-two']")];
    let (mut session, mut ctx) = session(RAW, "/{*rest}").await;
    for filter in &filters {
        assert_eq!(decide(filter, &mut session, &mut ctx).await, Ok(()));
    }
    let mut head = session.req_header().clone();
    filters.iter().for_each(|filter| filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap());
    let all = |name: &str| head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-one"), all("x-two"), all("x-both")), (vec!["1"], vec!["2"], vec!["1", "2"]));
}

/// Two parsers may go by different ones of two lines: that of the service, and that of the upstream.
#[tokio::test]
async fn a_request_with_two_credentials_is_not_asked_about() {
    let (url, asked) = service("HTTP/1.1 204 Ok\r\n\r\n").await;
    let filter = filter(&url, "headers = ['X-Sign', 'Cookie']");
    let with = |lines: &str| format!("GET /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    for twice in ["X-Sign: 1\r\nx-sign: 1\r\n", "X-Sign: 1\r\nX-Sign: 2\r\n", "Authorization: a\r\nAuthorization: b\r\n"] {
        assert_eq!(ask(&filter, &with(twice)).await.0, Err("credential_duplicate"), "{twice}");
    }
    assert!(asked.lock().unwrap().is_empty());
    let once = "X-Sign: 1\r\nAuthorization: a\r\nX-Other: 1\r\nX-Other: 2\r\nCookie: a=1\r\nCookie: b=2\r\ncookie: c=3\r\n";
    assert_eq!(ask(&filter, &with(once)).await.0, Ok(()));
    let question = asked.lock().unwrap()[0].to_lowercase();
    assert!(question.contains("\r\ncookie: a=1; b=2; c=3\r\n") && question.matches("cookie:").count() == 1, "{question}");
}

#[tokio::test]
async fn what_is_not_permitted_does_not_pass() {
    for (answer, code) in [
        ("HTTP/1.1 401 No\r\nwww-authenticate: Custom\r\ncontent-length: 2\r\n\r\nno", "credential_invalid"),
        ("HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", "forbidden"),
        ("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", "authorization_unavailable"),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "authorization_unavailable"),
        ("HTTP/1.1 404 None\r\ncontent-length: 0\r\n\r\n", "authorization_unavailable"),
        ("garbage\r\n\r\n", "authorization_unavailable"),
    ] {
        let (url, _) = service(answer).await;
        let (done, ctx, _) = ask(&filter(&url, ""), RAW).await;
        assert_eq!((done, ctx.identity.is_none()), (Err(code), true), "{answer}");
    }
    let (url, _) = service("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n").await;
    let bare = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(ask(&filter(&url, ""), bare).await.0, Err("credential_missing"), "so that `any_of` goes on");
    // Nobody listens on port 1, and a service that accepts and is silent.
    assert_eq!(ask(&filter("http://127.0.0.1:1/", ""), RAW).await.0, Err("authorization_unavailable"));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    assert_eq!(ask(&filter(&url, "timeout = '50ms'"), RAW).await.0, Err("authorization_unavailable"));
}

#[tokio::test]
async fn an_answer_without_a_name_is_none_and_a_disabled_consumer_is_refused() {
    for (answer, code) in [
        ("HTTP/1.1 204 Ok\r\n\r\n", "authorization_unavailable"),
        ("HTTP/1.1 204 Ok\r\nx-name: \r\n\r\n", "authorization_unavailable"),
        ("HTTP/1.1 204 Ok\r\nx-name: off\r\n\r\n", "credential_invalid"),
    ] {
        let (url, _) = service(answer).await;
        let (done, ctx, _) = ask(&filter(&url, "identity = { name = 'x-name' }"), RAW).await;
        assert_eq!((done, ctx.identity.is_none()), (Err(code), true), "{answer}");
    }
}

#[tokio::test]
async fn redirects_go_to_the_client_where_that_is_written() {
    let (url, _) =
        service("HTTP/1.1 302 Found\r\nlocation: /login\r\nset-cookie: a=1\r\nx-other: 1\r\ncontent-length: 0\r\n\r\n").await;
    let filter = filter(&url, "redirects = true");
    let (mut session, mut ctx) = session(RAW, "/{*rest}").await;
    let Step::Wait(io) = filter.on_request(&mut session, &mut ctx) else { panic!("it did not ask") };
    let Ok(Flow::Respond(response)) = io.await else { panic!("it does not answer") };
    assert_eq!((response.status.as_u16(), &response.headers[header::LOCATION]), (302, &HeaderValue::from_static("/login")));
    assert!(response.headers.contains_key(header::SET_COOKIE) && !response.headers.contains_key("x-other"));
}

#[tokio::test]
async fn equal_requests_are_asked_for_once_while_the_answer_counts() {
    let (url, asked) = service("HTTP/1.1 204 Ok\r\n\r\n").await;
    let all = consumers("");
    let clock = ManualClock::new();
    let table = format!("{{ url = '{url}', cache = '10s' }}");
    let filter = build_for::<ForwardAuthConfig>(&table, &all, &(Arc::clone(&clock) as SharedClock)).unwrap();
    for raw in [RAW, RAW, &RAW.replace("c=1", "c=2"), &RAW.replace("/a/b", "/a/c"), &RAW.replace("PUT", "GET"), RAW] {
        assert_eq!(ask(&filter, raw).await.0, Ok(()));
    }
    assert_eq!(asked.lock().unwrap().len(), 4);
    clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(ask(&filter, RAW).await.0, Ok(()));
    assert_eq!(asked.lock().unwrap().len(), 5);
    let (url, asked) = service("HTTP/1.1 204 Ok\r\ncache-control: private, no-store\r\n\r\n").await;
    let filter = super::tests::filter(&url, "cache = '10s'");
    for _ in 0..2 {
        assert_eq!(ask(&filter, RAW).await.0, Ok(()));
    }
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    let message = |table: &str| problem::<ForwardAuthConfig>(table).message;
    assert!(message("{ url = 'ftp://a/' }").contains("is not a URL that can be asked"));
    assert_eq!(message("{ url = 'http://a/', timeout = '1ms' }"), "`1ms` is not possible here");
    assert_eq!(message("{ url = 'http://a/', headers = ['host'] }"), "`host` cannot be changed by a filter");
    assert_eq!(message("{ url = 'http://a/', ca = 'x.pem' }"), "`ca` is for an `https` URL");
    assert_eq!(message("{ url = 'https://a/', ca = '/dev/zero' }"), "cannot read /dev/zero: it is larger than 1 MiB");
}
