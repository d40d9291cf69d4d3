//! The life of a request, as a table of contents over Pingora's hooks.
//!
//! `request_filter` reads the request canonically, finds its route and runs the route's filters; `upstream_peer` picks a
//! healthy endpoint; the response hooks run the filters on the way back; `logging` counts and writes the access log.
//! A direct hit of the cache is answered before all this (`proxy/hit.rs`).
//! Each hook says what happens in which order; how is in `proxy/` and below.

mod attempt;
mod cache;
mod ctx;
mod deadline;
mod failure;
mod forward;
mod grpc_web;
mod hit;
pub mod http10;
mod intake;
mod max_forwards;
mod record;
mod target;
mod trailers;

pub use ctx::Ctx;
pub use hit::DirectHit;

use crate::clock::SharedClock;
use crate::filter::Flow;
use crate::rejection::{self, Rejection};
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::GatewayMetrics;
use crate::{compress, listener::Connection, respond};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;

use intake::Admitted;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, RangeType, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// The proxy that Pingora drives. Cloning shares it.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

struct Shared {
    snapshot: ArcSwap<Snapshot>,
    clock: SharedClock,
    metrics: Arc<GatewayMetrics>,
}

impl Gateway {
    pub fn new(snapshot: Arc<Snapshot>, clock: SharedClock, metrics: Arc<GatewayMetrics>) -> Self {
        Gateway(Arc::new(Shared { snapshot: ArcSwap::new(snapshot), clock, metrics }))
    }

    /// The snapshot that new requests run on.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Requests under way keep the snapshot that they began with.
    pub fn swap(&self, next: Arc<Snapshot>) {
        self.0.snapshot.store(next);
    }

    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    pub fn metrics(&self) -> &Arc<GatewayMetrics> {
        &self.0.metrics
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx::new(self, Connection::current()))
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {
        // Pingora's default adds a compression module that is off but costs every request.
    }

    fn allow_spawning_subrequest(&self, _session: &Session, ctx: &Box<Ctx>) -> bool {
        ctx.snapshot.cache.is_some()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        if ctx.snapshot.cache.is_some() && cache::adopt(session, ctx) {
            return Ok(false);
        }
        let outcome = match intake::admit(session, ctx) {
            Ok(Admitted::Route(route)) => match route.chain.request(session, &mut ctx.request).await {
                Ok(Flow::Continue) => max_forwards::count_down(session.req_header_mut()),
                settled => settled,
            },
            Ok(Admitted::Redirect(response)) => Ok(Flow::Respond(response)),
            Err(rejection) => Err(rejection),
        };
        let answered = match outcome {
            Ok(Flow::Continue) if ctx.has_cache() => {
                cache::answer(session, ctx).await.map(|outcome| matches!(outcome, cache::Outcome::Answered))
            }
            Ok(Flow::Continue) if ctx.has_upstream() => Ok(false),
            Ok(Flow::Continue) => respond::reject(session, ctx, Rejection::new(&rejection::INTERNAL_ERROR)).await.map(|()| true),
            Ok(Flow::Respond(response)) => respond::local(session, ctx, *response).await.map(|()| true),
            Err(rejection) => respond::reject(session, ctx, rejection).await.map(|()| true),
        };
        answered.map_err(failure::of_writing)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if end && ctx.asked_trailers.is_some() {
            trailers::pass_asked(session, ctx);
        }
        intake::body_chunk(body, end, ctx)
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        let Err(refused) = attempt::admit(session, ctx) else { return Ok(true) };
        if ctx.is_fetch() {
            // Who waits for it has a stale answer, or passes the refusal on.
            return Err(ctx.fail(refused));
        }
        // Pingora boxes each hook: what is rare has a box of its own, so that this one stays small.
        Box::pin(attempt::refuse(session, ctx, refused)).await.map_err(failure::of_writing)?;
        Ok(false)
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<()> {
        cache::to_enable(session, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, ctx: &mut Box<Ctx>) -> Result<CacheKey> {
        cache::key(ctx)
    }

    async fn cache_hit_filter(
        &self,
        _session: &mut Session,
        _meta: &CacheMeta,
        _body: &mut HitHandler,
        _fresh: bool,
        _ctx: &mut Box<Ctx>,
    ) -> Result<Option<ForcedFreshness>> {
        // Only fetches come here, and they are there to ask the upstream.
        Ok(Some(ForcedFreshness::ForceExpired))
    }

    fn response_cache_filter(&self, session: &Session, head: &ResponseHeader, ctx: &mut Box<Ctx>) -> Result<RespCacheable> {
        Ok(cache::judge(session, head, ctx))
    }

    fn cache_not_modified_filter(&self, _session: &Session, _head: &ResponseHeader, _ctx: &mut Box<Ctx>) -> Result<bool> {
        // A fetch brings the whole; what of it a client needs is decided when the client is answered.
        Ok(false)
    }

    fn range_header_filter(&self, _session: &mut Session, _head: &mut ResponseHeader, _ctx: &mut Box<Ctx>) -> RangeType {
        RangeType::None
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        if let Some(pause) = attempt::pause(ctx) {
            Box::pin(tokio::time::sleep(pause)).await;
        }
        forward::select(session, ctx)
    }

    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut Box<Ctx>, error: Box<Error>) -> Box<Error> {
        forward::connect_failed(ctx, error)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        forward::connected(ctx, peer, reused);
        Ok(())
    }

    async fn upstream_request_filter(&self, session: &mut Session, head: &mut RequestHeader, ctx: &mut Box<Ctx>) -> Result<()> {
        forward::request_head(session, head, ctx)?;
        if head.headers.contains_key(&http::header::EXPECT) {
            Box::pin(forward::expectation(session, head, ctx)).await?;
        }
        if ctx.is_fetch() {
            cache::head_of_fetch(session, head, ctx)?;
        }
        if ctx.compression().is_some() {
            // We code for each client; one who coded already would leave nothing to choose.
            head.remove_header(&http::header::ACCEPT_ENCODING);
        }
        forward::send_hedged(head, ctx)
    }

    async fn upstream_response_filter(&self, session: &mut Session, head: &mut ResponseHeader, ctx: &mut Box<Ctx>) -> Result<()> {
        forward::response_head(session, head, ctx)?;
        cache::not_modified(head, ctx);
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, head: &mut ResponseHeader, ctx: &mut Box<Ctx>) -> Result<()> {
        if ctx.is_fetch() {
            if head.status.is_informational() {
                cache::interim(head, ctx);
            } else if session.req_header().method == http::Method::HEAD {
                cache::answered_to_head(session, head, ctx);
            }
            return Ok(());
        }
        if !head.status.is_informational() || head.status == 101 {
            ctx.grpc_web.response_head(head);
            if ctx.snapshot.cache.is_some() {
                cache::response(session, head, ctx);
            }
            if let Some(compression) = ctx.compression() {
                let coding = compression.choose(&session.req_header().method, &session.req_header().headers, head);
                ctx.encoder = coding.and_then(|coding| compress::begin(head, coding));
            }
            ctx.finish_response_head(session, head);
            http10::frame(session, head, ctx);
            if ctx.must_close() {
                session.set_keepalive(None);
            }
        }
        Ok(())
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut http::HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Bytes>> {
        if let Some(kept) = &ctx.trailers {
            kept.keep_map(trailers);
        }
        ctx.grpc_web.trailers(trailers)
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Duration>> {
        ctx.check_deadline()?;
        Ok(None)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Duration>> {
        if ctx.cache.is_some() {
            cache::keep(body.as_ref(), end, ctx);
        }
        if let Some(encoder) = &mut ctx.encoder {
            compress::piece(encoder, body, end)?;
        }
        forward::pace(session, body, end, ctx)?;
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Box<Ctx>,
        _reused: bool,
    ) -> Box<Error> {
        forward::attempt_failed(session, ctx, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        failure::conclude(session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<Ctx>) {
        if !ctx.is_fetch() {
            record::request(session, error, ctx);
        }
        if error.is_none() {
            http10::done(ctx);
        }
        if ctx.keep_client {
            Box::pin(failure::keep(session, ctx)).await;
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Box<Ctx>, _error: &Error) -> bool {
        // The access log has one line for each request, failed ones included; a second one would only be a flood.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Box<Ctx>,
        _error: &Error,
        _context: pingora::proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
