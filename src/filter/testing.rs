//! What the tests of filters share: real sessions over an in-memory connection, and tables decoded as the loader does.

use super::{BuildContext, FilterConfig, Problem};
use crate::clock::{SharedClock, SystemClock};
use crate::diagnostic::{Diagnostics, FileId, Span};
use crate::jwt::Issuers;
use crate::request::RequestCtx;
use crate::route::{Found, MatchConfig, Query, RouteEntry, Router};
use crate::state::StatePool;
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
    let config = C::deserialize(toml::de::ValueDeserializer::parse(table).unwrap()).unwrap();
    let clock: SharedClock = Arc::new(SystemClock);
    config.build(&mut BuildContext {
        route: "test",
        state: &Arc::new(StatePool::default()),
        clock: &clock,
        upstreams: &BTreeMap::new(),
        consumers: &Arc::default(),
        issuers: &Issuers::default(),
        diagnostics: &mut Diagnostics::default(),
        span: Span { file: FileId(0), range: 0..0 },
    })
}

/// Why a table builds no filter.
pub fn problem<C: FilterConfig>(table: &str) -> Problem {
    match build::<C>(table) {
        Ok(_) => panic!("{table} builds"),
        Err(problem) => problem,
    }
}
