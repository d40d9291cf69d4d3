//! How many heap allocations our own code adds to a request: none, for a look-up and a route with five local filters. Where
//! limits tell clients something, as they do by default, the head of the answer needs room for the fields, and nothing else does.
//!
//! Its own binary, because it brings its own global allocator. Counted per thread, so that the harness does not disturb it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

#[path = "it/support/tokens.rs"]
mod tokens;

use gatewright::clock::{SharedClock, SystemClock};
use gatewright::condition::{Condition, Facts};
use gatewright::consumer::{Consumer, ConsumerConfig, Consumers, KeyDigest};
use gatewright::diagnostic::{Diagnostics, FileId, Span};
use gatewright::filter::{BuildContext, Chain, Filter, Flow, Registry};
use gatewright::identity::Identity;
use gatewright::jwt::{IssuerConfig, Issuers};
use gatewright::limit::local::{LocalStore, MEMORY_MIN};
use gatewright::limit::redis::SharedSet;
use gatewright::limit::redis::lease::{Book, Spent};
use gatewright::limit::{Decision, Limit, LimitConfig, Standing};
use gatewright::request::{RequestCtx, Scheme};
use gatewright::route::{Found, MatchConfig, Params, Query, RouteEntry, Router};
use gatewright::state::StatePool;
use http::{HeaderMap, HeaderValue, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::AsyncWriteExt;

/// The allocations of this thread while `work` runs.
fn allocations<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let mut out = None;
    let info = allocation_counter::measure(|| out = Some(work()));
    (info.count_total, out.unwrap())
}

fn filter(name: &str, table: &str) -> Arc<dyn Filter> {
    filter_for(name, table, &Arc::default(), &Issuers::default())
}

fn filter_for(name: &str, table: &str, consumers: &Arc<Consumers>, issuers: &Issuers) -> Arc<dyn Filter> {
    let registration = Registry::builtin().get(name).unwrap();
    let prepared = (registration.decode)(toml::de::ValueDeserializer::parse(table).unwrap()).unwrap();
    let clock: SharedClock = Arc::new(SystemClock);
    let mut cx = BuildContext {
        route: "orders",
        state: &StatePool::new(),
        clock: &clock,
        upstreams: &BTreeMap::new(),
        consumers,
        issuers,
        redis: None,
        limits: &gatewright::limit::Stores::default(),
        credential_headers: &[],
        diagnostics: &mut Diagnostics::default(),
        span: Span { file: FileId(0), range: 0..0 },
    };
    (prepared.build)(&mut cx).unwrap_or_else(|problem| panic!("{name}: {problem:?}"))
}

fn router(tables: &[&str]) -> Router {
    let entries = tables.iter().enumerate().map(|(index, text)| {
        let config: MatchConfig = toml::from_str(text).unwrap();
        let matcher = config.compile(&mut Diagnostics::default()).unwrap();
        RouteEntry { index: u32::try_from(index).unwrap(), matcher }
    });
    Router::build(entries.collect()).unwrap()
}

const REQUEST: &str = "GET /api/orders/42/items?page=2 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: test\r\n\
                       Cookie: secret\r\nReferer: elsewhere\r\n\r\n";

fn session() -> Session {
    session_of(REQUEST.to_owned())
}

fn session_of(request: String) -> Session {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(request.as_bytes()).await.unwrap();
        let mut session = Session::new_h1(Box::new(server));
        assert!(session.downstream_session.read_request().await.unwrap());
        session
    })
}

fn identity() -> Identity {
    let consumer = Arc::new(Consumer { name: "acme".into(), enabled: true, ..Consumer::default() });
    let claims = serde_json::json!({ "realm_access": { "org": "acme" }, "seats": 7, "plans": ["a", { "b": 1.5 }] });
    let claims = claims.as_object().cloned().map(Arc::new);
    Identity { claims, ..Identity::of(&consumer, "api_key", "api_key:3f2a9c01".into()) }
}

fn context() -> RequestCtx {
    let client = [192, 0, 2, 7].into();
    RequestCtx {
        id: arrayvec::ArrayString::from("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        host: arrayvec::ArrayString::from("api.example.com").unwrap(),
        route: Some("orders".into()),
        identity: Some(Arc::new(identity())),
        ..RequestCtx::new(client, Scheme::Https, Instant::now())
    }
}

/// Runs all phases of a chain on one request; gives the allocations of each run but the first few, which warm up.
fn runs(router: &Router, chain: &Chain) -> Vec<u64> {
    let (mut session, mut ctx) = (session(), context());
    let run = |session: &mut Session, ctx: &mut RequestCtx| {
        let mut upstream = RequestHeader::build("GET", b"/", Some(32)).unwrap();
        upstream.set_uri(session.req_header().uri.clone());
        for (name, value) in &session.req_header().headers {
            upstream.append_header(name.clone(), value.clone()).unwrap();
        }
        let mut response = ResponseHeader::build(200, Some(32)).unwrap();
        response.append_header("server", "origin").unwrap();
        let (count, ()) = allocations(|| {
            let mut params = std::mem::take(&mut ctx.params);
            let head = session.req_header();
            let query = Query {
                host: &ctx.host,
                path: head.uri.path(),
                method: &head.method,
                headers: &head.headers,
                query: head.uri.query(),
            };
            assert_eq!(router.find(&query, &mut params), Found::Route(0));
            ctx.params = params;
            let flow = pin!(chain.request(session, ctx)).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(flow, Poll::Ready(Ok(_))));
            chain.upstream_request(session, &mut upstream, ctx).unwrap();
            chain.response(session, &mut response, ctx);
        });
        assert_eq!(upstream.uri, "/v2/42/entries?page=2");
        assert_eq!(upstream.headers.get("from").unwrap(), "192.0.2.7;0190163d-8694-739b-aea5-966c26f8ad91");
        assert!(!upstream.headers.contains_key("cookie"));
        assert_eq!(response.headers.get("server").unwrap(), "gate");
        count
    };
    (0..1_000).map(|_| run(&mut session, &mut ctx)).skip(100).collect()
}

/// Three limiters over facts of every kind. A key that is known costs nothing; what responses tell of it is the next test's business.
fn limiters(headers: &str) -> Chain {
    Chain::new(&[
        filter(
            "rate_limit",
            &format!(
                "{{ by = ['address', 'route'], limits = [{{ rate = '1000000/1s' }}, {{ quota = '1000000/1d' }}]{headers} }}"
            ),
        ),
        filter(
            "rate_limit",
            &format!(
                "{{ by = ['consumer', 'header:user-agent', 'claim:realm_access.org', 'claim:seats', 'claim:plans', 'claim:none'], \
                 limits = [{{ rate = '60000/1s', algorithm = 'sliding_window' }}]{headers} }}"
            ),
        ),
        filter("rate_limit", "{ by = 'route', limits = [{ rate = '1/1h' }], shadow = true }"),
    ])
}

/// How the fields are spelled that tell of limits.
const SPELLINGS: [&str; 5] = ["RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"];

#[test]
fn a_local_limit_allocates_nothing_for_a_known_key() {
    let chain = limiters(", headers = 'off'");
    let response = ResponseHeader::build(200, Some(32)).unwrap();
    for run in 0..1_000 {
        let (count, admitted, _) = exchange(&chain, &response);
        assert!(admitted && (count == 0 || run == 0), "{count} allocations in run {run}");
    }
}

/// By default a response tells of its limits, in fields that the map of its head must find room for. That is the map's cost, and the
/// only one: the same fields, there already, put into the same head by hand.
#[test]
fn what_a_response_tells_of_local_limits_costs_what_a_bare_insert_costs() {
    // With no room to spare, as an answer comes; and the same with `header_case = "preserve"`, where Pingora copies each name.
    let heads = [ResponseHeader::build_no_case(200, None).unwrap(), ResponseHeader::build(200, None).unwrap()];
    for (style, fields) in [("", 4), (", headers = 'legacy'", 3), (", headers = 'both'", 7)] {
        let chain = limiters(style);
        for response in &heads {
            let spelled = response.has_case();
            for run in 0..1_000 {
                let (count, admitted, head) = exchange(&chain, response);
                assert_eq!(head.headers.len(), fields, "{head:?}");
                // Two filters tell something. The older fields have room for one limit, and the second filter sets them anew.
                let (older, mut told): (Vec<_>, Vec<_>) =
                    head.headers.iter().partition(|(name, _)| name.as_str().starts_with("x-"));
                told.extend(older.iter().chain(&older));
                let (mut bare, mut map) = (response.clone(), response.headers.clone());
                let (theirs, ()) = allocations(|| {
                    for (name, value) in told {
                        let spelling = SPELLINGS.iter().find(|spelling| name.as_str().eq_ignore_ascii_case(spelling)).unwrap();
                        match (spelled, name.as_str().starts_with("x-")) {
                            (true, true) => bare.insert_header(*spelling, value.clone()).unwrap(),
                            (true, false) => drop(bare.append_header(*spelling, value.clone()).unwrap()),
                            (false, true) => drop(map.insert(name.clone(), value.clone())),
                            (false, false) => drop(map.append(name.clone(), value.clone())),
                        }
                    }
                });
                assert!(admitted && (count <= theirs || run < 2), "{style} {spelled}: {count} of {theirs} in run {run}");
            }
        }
    }
}

/// A request through a chain of limiters to the head of its response. The allocations of each, whether it was admitted, and the head.
fn exchange(chain: &Chain, response: &ResponseHeader) -> (u64, bool, ResponseHeader) {
    let (mut session, mut ctx, mut head) = (session(), context(), response.clone());
    let (count, admitted) = allocations(|| {
        let flow = pin!(chain.request(&mut session, &mut ctx)).poll(&mut Context::from_waker(Waker::noop()));
        chain.response(&session, &mut head, &mut ctx);
        drop(std::mem::take(&mut ctx.held));
        drop(std::mem::take(&mut ctx.uses));
        matches!(flow, Poll::Ready(Ok(Flow::Continue)))
    });
    (count, admitted, head)
}

/// Whatever is remembered of a request for later, and given back with it.
#[test]
fn limits_that_are_settled_later_allocate_nothing_for_a_known_key() {
    let rate = |more: &str| filter("rate_limit", &format!("{{ limits = [{{ rate = '1000000/1s' }}], headers = 'off', {more} }}"));
    let concurrency = |more: &str| filter("concurrency", &format!("{{ most = 5, {more} }}"));
    let mut response = ResponseHeader::build(200, Some(32)).unwrap();
    response.append_header("age", "3").unwrap();
    for (what, filters) in [
        ("places", vec![concurrency("by = ['address', 'consumer']"), concurrency("by = 'route'")]),
        ("a queue that nobody waits in", vec![concurrency("by = 'route', queue = { size = 5, timeout = '1s' }")]),
        ("an estimate", vec![concurrency("by = 'address', count = 'estimate'")]),
        ("failures", vec![rate("by = 'address', on = 'auth_failure'")]),
        ("costs", vec![rate("by = ['address', 'credential'], cost_header = 'age'")]),
        ("one after the other", vec![rate("by = 'address'"), rate("by = 'header:user-agent'"), concurrency("by = 'consumer'")]),
    ] {
        let chain = Chain::new(&filters);
        for run in 0..1_000 {
            let (count, admitted, _) = exchange(&chain, &response);
            assert!(admitted && (count == 0 || run < 2), "{what}: {count} allocations in run {run}");
        }
    }
}

/// The second filter refuses; its rejection and what the first gives back cost nothing.
#[test]
fn a_use_that_is_given_back_allocates_nothing() {
    let rate = |by: &str, rate: &str| {
        filter("rate_limit", &format!("{{ by = '{by}', limits = [{{ rate = '{rate}' }}], headers = 'off' }}"))
    };
    let chain = Chain::new(&[rate("address", "10/365d"), rate("route", "1/365d")]);
    let response = ResponseHeader::build(200, Some(32)).unwrap();
    for run in 0..1_000 {
        let (count, admitted, _) = exchange(&chain, &response);
        assert_eq!(admitted, run == 0);
        assert!(count == 0 || run < 2, "{count} allocations in run {run}");
    }
}

fn limit(text: &str) -> Limit {
    toml::from_str::<LimitConfig>(text).unwrap().compile().unwrap()
}

/// So its memory is bounded whatever comes: a block of 64 entries when one of its places is first written, as many as fit into
/// the bound, and then nothing more. What is in it then is what counts: the keys that are being limited.
/// `GATEWRIGHT_FULL=1`: ten million keys.
#[test]
fn a_local_store_takes_no_more_than_its_memory_however_many_keys_come() {
    let keys = if std::env::var_os("GATEWRIGHT_FULL").is_some_and(|value| value == "1") { 10_000_000 } else { 300_000 };
    let mut store = None;
    let whole = allocation_counter::measure(|| {
        let new = LocalStore::new(MEMORY_MIN, Arc::new(SystemClock));
        let set = new.set("route", &[limit("rate = '5/1h'"), limit("quota = '100/1d'")]);
        let take = |key: u64| matches!(new.take(&set, &key.to_be_bytes(), 1), Decision::Admitted(_));
        let all = |keys: std::ops::Range<u64>| keys.filter(|key| take(*key)).count();
        assert!((1..=2).contains(&allocations(|| all(0..1)).0), "a key with two limits is in two places");
        let (blocks, ()) = allocations(|| {
            // A thousand that use their limit up, before all the others.
            (1..1_000).for_each(|key| assert_eq!((0..6).filter(|_| take(key)).count(), 5));
            all(1_000..100_000);
        });
        assert!((150..=MEMORY_MIN / (64 * 64)).contains(&blocks), "{blocks} blocks");
        assert_eq!(allocations(|| all(100_000..keys)).0, 0);
        let forgotten: Vec<u64> = (1..1_000).filter(|key| take(*key)).collect();
        assert!(forgotten.is_empty(), "{forgotten:?} were being limited, and were forgotten");
        store = Some(new);
    });
    let stats = store.unwrap().stats();
    println!("{keys} keys in {} of {MEMORY_MIN} bytes at most: {stats:?}", whole.bytes_max);
    assert!(whole.bytes_max <= MEMORY_MIN, "{} bytes", whole.bytes_max);
    assert!(stats.evicted > keys / 2, "there was room for all of them: {stats:?}");
}

#[test]
fn a_use_from_a_lease_allocates_nothing() {
    let book = Book::default();
    let set = Arc::new(SharedSet::new("route", &[limit("rate = '100000/1h'")], 2_000));
    let Spent::Ask(errand) = book.spend(&set, b"k", 1, 0) else { panic!("a lease out of nothing") };
    let admitted = Decision::Admitted(std::iter::once(Standing { remaining: 98_999, more_in: 1, idle_in: 0 }).collect());
    book.answered(&set, b"k", &errand, &admitted, (1_000, 5_000_000_000), 0);
    for use_ in 0..400 {
        let (count, spent) = allocations(|| {
            matches!(book.spend(&set, b"k", 1, 1), Spent::Here { decision: Decision::Admitted(_), errand: None, .. })
        });
        assert!(spent && count == 0, "{count} allocations for use {use_}");
    }
}

const ROUTES: [&str; 3] = [
    "host = '*.example.com'\npath = '/api/orders/{id}/{*rest}'\nmethods = ['GET']\nheaders = { user-agent = 'test' }\nquery = { page = '2' }",
    "host = 'api.example.com'\npath = '/api/orders/{id}'",
    "path = '/{*rest}'",
];

#[test]
fn a_route_with_five_local_filters_allocates_nothing() {
    let chain = Chain::new(&[
        filter(
            "request_headers",
            "{ set = { from = '${client_ip};${request_id}', warning = '${path.id}' }, remove = ['cookie'] }",
        ),
        filter("rewrite", "{ strip_prefix = '/api/orders', add_prefix = '/v2' }"),
        filter("rewrite", "{ replace = { pattern = 'items$', with = 'entries' } }"),
        filter("response_headers", "{ set = { server = 'gate', etag = '${route}' }, remove = ['x-powered-by'] }"),
        filter("response_headers", "{ add = { vary = 'origin', link = '<${scheme}://${host}${path}>' } }"),
    ]);
    let runs = runs(&router(&ROUTES), &chain);
    assert_eq!(runs.iter().sum::<u64>(), 0, "{runs:?}");
}

#[test]
fn authentication_by_key_and_role_allocates_nothing() {
    let key = KeyDigest::of(b"elsewhere");
    let text = format!("roles = ['orders:read']\ncredentials = [{{ api_key = {{ sha256 = '{key}' }} }}]");
    let config: ConsumerConfig = toml::from_str(&text).unwrap();
    let name = gatewright::value::Located::nowhere("acme".to_owned());
    let consumers = [(&name, &config)].into_iter();
    let consumers = Arc::new(Consumers::build(consumers, std::iter::empty(), &mut Diagnostics::default()));
    let of = |name, table| filter_for(name, table, &consumers, &Issuers::default());
    let chain = Chain::new(&[
        of("ip_allow", "{ networks = ['10.0.0.0/8', '192.0.2.0/24'] }"),
        of("ip_deny", "{ networks = ['198.51.100.0/24'] }"),
        of("api_key", "{ header = 'referer' }"),
        of("require", "{ roles = ['orders:read'], consumers = ['acme'], methods = { 'orders:read' = ['GET'] } }"),
    ]);
    let (mut session, mut ctx) = (session(), context());
    for round in 0..100 {
        ctx.identity = None;
        let (count, ()) = allocations(|| {
            let flow = pin!(chain.request(&mut session, &mut ctx)).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(flow, Poll::Ready(Ok(Flow::Continue))));
        });
        assert_eq!(&*ctx.identity.as_ref().unwrap().name, "acme");
        assert!(round < 10 || count == 0, "{count} in round {round}");
    }
}

#[test]
fn a_token_that_was_verified_before_allocates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let signer = tokens::Signer::es256("k");
    let path = directory.path().join("keys.json");
    std::fs::write(&path, tokens::jwks(&[&signer])).unwrap();
    let text = format!("algorithms = ['ES256']\njwks = {{ file = '{}' }}", path.display());
    let config: IssuerConfig = toml::from_str(&text).unwrap();
    let name = gatewright::value::Located::nowhere("main".to_owned());
    let clock: SharedClock = Arc::new(SystemClock);
    let issuers = Issuers::build([(&name, &config)], &StatePool::new(), &clock, &mut Diagnostics::default());
    let chain = Chain::new(&[filter_for("jwt", "{ issuer = 'main' }", &Arc::default(), &issuers)]);
    let token = signer.token(&serde_json::json!({ "sub": "alice", "exp": 4_102_444_800_u64 }));
    let request = format!("GET / HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer {token}\r\n\r\n");
    let (mut session, mut ctx) = (session_of(request), context());
    for round in 0..100 {
        ctx.identity = None;
        let (count, ()) = allocations(|| {
            let flow = pin!(chain.request(&mut session, &mut ctx)).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(flow, Poll::Ready(Ok(Flow::Continue))));
        });
        assert_eq!(&*ctx.identity.as_ref().unwrap().name, "alice");
        assert!(round < 10 || count == 0, "{count} in round {round}");
    }
}

/// Pingora copies each name that is not a standard one when it is inserted. That is its cost, and the only one.
#[test]
fn a_custom_header_costs_what_a_bare_insert_costs() {
    let value = HeaderValue::from_static("1");
    let name = bytes::Bytes::from_static(b"x-custom");
    let mut bare = RequestHeader::build("GET", b"/", Some(32)).unwrap();
    let (theirs, ()) = allocations(|| bare.insert_header(name, value).unwrap());
    let chain = Chain::new(&[
        filter(
            "request_headers",
            "{ set = { from = '${client_ip};${request_id}', x-custom = '${consumer}' }, remove = ['cookie'] }",
        ),
        filter(
            "rewrite",
            "{ strip_prefix = '/api/orders', replace = { pattern = 'items$', with = 'entries' }, add_prefix = '/v2' }",
        ),
        filter("response_headers", "{ set = { server = 'gate' } }"),
    ]);
    let runs = runs(&router(&ROUTES), &chain);
    assert!(runs.iter().all(|count| *count == theirs), "{theirs}: {runs:?}");
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| (Box::new(1), vec![0_u8; 9])).0, 2);
}

#[test]
fn a_look_up_allocates_nothing() {
    let router = router(&[
        ROUTES[0],
        "host = 'api.example.com'\npath = '/a/{x}'\nmethods = ['PUT']",
        "host = '*.example.com'\npath = '/a/{y}/{z}'",
    ]);
    let headers = HeaderMap::new();
    let mut params = Params::default();
    for (path, want) in [
        ("/a/b/c", Found::Route(2)),
        ("/a/b", Found::MethodNotAllowed(HeaderValue::from_static("PUT"))),
        ("/nothing/here", Found::NotFound),
    ] {
        for host in ["api.example.com", "a.b.c.d.e.f.api.example.com"] {
            let query = Query { host, path, method: &Method::DELETE, headers: &headers, query: Some("a=b") };
            // The first clone of a shared value may set up its counter.
            let _ = router.find(&query, &mut params);
            let (count, found) = allocations(|| router.find(&query, &mut params));
            assert_eq!(count, 0, "{host} {path}");
            if host == "api.example.com" {
                assert_eq!(found, want);
            }
        }
    }
}

/// The worst that conditions of the largest size can be made to cost by what a client sends: as many elements as there may be, as
/// many parts for each of them, texts that grow. In allocations and bytes, because these are the same on every machine.
#[test]
fn a_condition_costs_a_bounded_amount_whatever_a_client_sends() {
    let many = |count: usize, size: usize| vec!["x".repeat(size); count];
    let claims = serde_json::json!({
        "list": many(1_000, 1), "large": many(15, 30_000), "half": many(500, 900), "long": "x".repeat(30_000), "text": "x".repeat(4_000),
    });
    let serde_json::Value::Object(claims) = claims else { panic!() };
    let identity = Identity { claims: Some(Arc::new(claims)), ..Identity::nobody() };
    let facts = Facts { identity: Some(&identity), ..Facts::none() };
    let body = |part: &str, count: usize| vec![part; count].join(" && ");
    let literal = "y".repeat(120);
    for (what, text, holds) in [
        ("comparisons", body(&format!("claims.list.all(x, {})", body("x != 'y'", 12)), 7), true),
        ("searches", body("claims.large.all(x, !x.contains('xxxxxxxxxxxy') && !x.contains('yxxxxxxxx'))", 1), true),
        ("many searches", format!("claims.large.all(x, {})", body("!x.contains('xxy')", 10)), true),
        ("joins", "claims.half.map(x, x + x + x + x + x).size() == 500".to_owned(), true),
        ("literals", format!("claims.list.map(x, x + {}).size() == 1000", vec![format!("'{literal}'"); 25].join(" + ")), true),
        ("lists", format!("claims.list.map(x, [{}]).size() == 1000", vec!["x"; 50].join(", ")), true),
        ("texts that grow", body(&format!("({}) != ''", vec!["claims.text"; 30].join(" + ")), 4), true),
        ("a list that grows", format!("({}).size() > 0", ["claims.list"; 7].join(" + ")), true),
        ("too much", "claims.list.all(x, claims.long != x)".to_owned(), false),
        ("too many", "claims.list.all(x, !(x in claims.list))".to_owned(), false),
        ("errors", format!("claims.list.exists(x, {})", ["claims.nothing == x"; 10].join(" || ")), false),
    ] {
        let condition = Condition::parse(&text).unwrap_or_else(|why| panic!("{what}: {why:?}"));
        let begun = std::time::Instant::now();
        let mut held = false;
        let counted = allocation_counter::measure(|| held = condition.holds(&facts));
        println!(
            "{what}: {} allocations, {} KiB in all, {} KiB at once, {:?}",
            counted.count_total,
            counted.bytes_total >> 10,
            counted.bytes_max >> 10,
            begun.elapsed()
        );
        assert_eq!(held, holds, "{what}");
        assert!(counted.count_total < 500_000, "{what}: {} allocations", counted.count_total);
        assert!(counted.bytes_total < 64 << 20, "{what}: {} bytes in all", counted.bytes_total);
        assert!(counted.bytes_max < 8 << 20, "{what}: {} bytes at once", counted.bytes_max);
    }
}
