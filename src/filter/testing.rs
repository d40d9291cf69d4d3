//! What the tests of filters share: real sessions over an in-memory connection, and tables decoded as the loader does.

use super::{BuildContext, Filter, FilterConfig, Flow, Problem, Step};
use crate::clock::{SharedClock, SystemClock};
use crate::consumer::{ConsumerConfig, Consumers, TierConfig};
use crate::diagnostic::{Diagnostics, FileId, Span};
use crate::jwt::Issuers;
use crate::request::RequestCtx;
use crate::route::{Found, MatchConfig, Query, RouteEntry, Router};
use crate::state::StatePool;
use crate::value::Located;
use pingora::proxy::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// A session that has read `raw`, and a context with the params of `pattern`.
pub async fn session(raw: &str, pattern: &str) -> (Session, RequestCtx) {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    client.write_all(raw.as_bytes()).await.unwrap();
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.downstream_session.read_request().await.unwrap());
    let mut ctx = RequestCtx::for_test();
    let config: MatchConfig = toml::from_str(&format!("path = '{pattern}'")).unwrap();
    let matcher = config.compile(&mut Diagnostics::default()).unwrap();
    let router = Router::build(vec![RouteEntry { index: 0, matcher }]).unwrap();
    let head = session.req_header();
    let query =
        Query { host: &ctx.host, path: head.uri.path(), method: &head.method, headers: &head.headers, query: head.uri.query() };
    let mut params = std::mem::take(&mut ctx.params);
    assert_eq!(router.find(&query, &mut params), Found::Route(0), "{pattern} does not match {raw}");
    ctx.params = params;
    (session, ctx)
}

/// Builds a filter from its inline table.
pub fn build<C: FilterConfig>(table: &str) -> Result<C::Filter, Problem> {
    build_for::<C>(table, &Arc::default(), &(Arc::new(SystemClock) as SharedClock))
}

/// The same for a gateway with these consumers and this time.
pub fn build_for<C: FilterConfig>(table: &str, consumers: &Arc<Consumers>, clock: &SharedClock) -> Result<C::Filter, Problem> {
    let config = C::deserialize(toml::de::ValueDeserializer::parse(table).unwrap()).unwrap();
    in_context(consumers, clock, |cx| config.build(cx))
}

/// Runs `build` as the compiler of snapshots would.
pub fn in_context<T>(consumers: &Arc<Consumers>, clock: &SharedClock, build: impl FnOnce(&mut BuildContext<'_>) -> T) -> T {
    build(&mut BuildContext {
        route: "test",
        state: &Arc::new(StatePool::default()),
        clock,
        upstreams: &BTreeMap::new(),
        consumers,
        issuers: &Issuers::default(),
        redis: None,
        limits: &crate::limit::Stores::default(),
        credential_headers: &[],
        diagnostics: &mut Diagnostics::default(),
        span: Span { file: FileId(0), range: 0..0 },
    })
}

/// The consumers of a text of `[consumers.*]` and `[tiers.*]`.
pub fn consumers(text: &str) -> Arc<Consumers> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Tree {
        consumers: BTreeMap<String, ConsumerConfig>,
        tiers: BTreeMap<String, TierConfig>,
    }
    let tree: Tree = toml::from_str(text).unwrap();
    let mut d = Diagnostics::default();
    let named: Vec<_> = tree.consumers.iter().map(|(name, config)| (Located::nowhere(name.clone()), config)).collect();
    let tiers = tree.tiers.iter().map(|(name, config)| (name.as_str(), config));
    let built = Consumers::build(named.iter().map(|(name, config)| (name, *config)), tiers, &mut d);
    assert!(!d.has_errors(), "{}", d.render(false));
    Arc::new(built)
}

/// What a filter decides about a request: `Ok` if it goes on, else the code of the rejection.
pub async fn decide(filter: &dyn Filter, session: &mut Session, ctx: &mut RequestCtx) -> Result<(), &'static str> {
    let done = match filter.on_request(session, ctx) {
        Step::Ready(done) => done,
        Step::Wait(io) => io.await,
    };
    match done {
        Ok(Flow::Continue) => Ok(()),
        Ok(Flow::Respond(_)) => panic!("it answers"),
        Err(rejection) => {
            // RFC 9110 section 15.5.2.
            assert!(rejection.code.status != 401 || rejection.www_authenticate.is_some(), "{rejection:?}");
            Err(rejection.code.code)
        }
    }
}

/// Why a table builds no filter.
pub fn problem<C: FilterConfig>(table: &str) -> Problem {
    match build::<C>(table) {
        Ok(_) => panic!("{table} builds"),
        Err(problem) => problem,
    }
}
