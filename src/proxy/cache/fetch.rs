//! A fetch: a subrequest that brings an answer into the cache, for whoever waits for it.
//!
//! It has passed the filters of the request that began it, and runs as that request: same head, same identity, same upstream. Its
//! client side is a channel; what comes out of it is read here only when the answer is not stored, because stored answers reach
//! their readers through the store.

use super::super::{Ctx, attempt};
use super::note::asked;
use super::{Role, part, validate};
use crate::cache::Cache;
use crate::cache::entry::Entry;
use crate::cache::fill::{Fill, Phase};
use crate::cache::flight::Name;
use crate::cache::policy::{Asked, Refusal};
use crate::cache::storage::{STORAGE, Ticket};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::snapshot::{Choice, Route, Snapshot};
use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::cache::CacheKey;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::proxy::subrequest::Ctx as SubrequestCtx;
use pingora::{Error, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// What a fetch asks for.
pub struct Plan {
    pub fill: Arc<Fill>,
    pub ask: Ask,
    pub flight: Name,
    /// Look first whether another gateway has it.
    pub ask_tier: bool,
}

/// How a fetch asks.
#[derive(Debug, Clone)]
pub enum Ask {
    /// For the whole; these are the stored answers that the upstream may confirm instead.
    Whole(Vec<Arc<Entry>>),
    /// For what this stored part lacks.
    Rest(Arc<Entry>),
    /// With the client's own method, conditions and range.
    AsAsked,
}

/// The state of a fetch within its hooks.
pub struct Fetch {
    pub(super) fill: Arc<Fill>,
    pub(super) ask: Ask,
    pub(super) cache: Arc<Cache>,
    pub(super) asked: Asked,
    /// The 304 that came, as it came.
    pub(super) not_modified: Option<Box<ResponseHeader>>,
    /// The hash of the flight's name.
    pub(super) flight: u64,
}

/// What a subrequest is begun with.
struct Seed {
    head: RequestHeader,
    request: RequestCtx,
    snapshot: Arc<Snapshot>,
    route: Arc<Route>,
    choice: Choice,
    fetch: Fetch,
}

/// Whatever happens to the fetch, nobody waits for it for ever.
struct Landing {
    cache: Arc<Cache>,
    fill: Arc<Fill>,
    flight: Name,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.fill.close();
        self.cache.flights.leave(&self.flight, &self.fill);
    }
}

/// Starts a fetch for the request of this session. `false`: it could not be started.
pub fn start(session: &mut Session, ctx: &Ctx, cache: &Arc<Cache>, plan: Plan) -> bool {
    let Some(route) = &ctx.route else { return false };
    let flight = plan.flight.hash;
    let landing = Landing { cache: Arc::clone(cache), fill: Arc::clone(&plan.fill), flight: plan.flight };
    let mut head = session.req_header().clone();
    if !matches!(plan.ask, Ask::AsAsked) {
        // A HEAD may have begun it, and others wait for the body.
        head.set_method(Method::GET);
    }
    let asked = asked(ctx, &head.headers);
    let fill = Arc::clone(&plan.fill);
    let seed = Seed {
        head,
        request: ctx.request.fork(ctx.gateway.clock().now()),
        snapshot: Arc::clone(&ctx.snapshot),
        route: Arc::clone(route),
        choice: ctx.choice,
        fetch: Fetch { fill: plan.fill, ask: plan.ask, cache: Arc::clone(cache), asked, not_modified: None, flight },
    };
    let timeout = route.timeout;
    let tier = plan.ask_tier.then(|| (session.req_header().headers.clone(), Arc::clone(ctx.gateway.clock())));
    let context = SubrequestCtx::builder().user_ctx(Box::new(Some(Box::new(seed)))).build();
    // A subrequest is made from the bytes of a head of HTTP/1. Pingora writes that of HTTP/2 as one that it refuses to read; what
    // the fetch is made to be, in `adopt`, is what the request was.
    let version = session.req_header().version;
    session.req_header_mut().set_version(Version::HTTP_11);
    let created = session.subrequest_spawner.as_ref().map(|spawner| spawner.create_subrequest(session.as_ref(), context));
    session.req_header_mut().set_version(version);
    let Some((prepared, handle)) = created else { return false };
    tokio::spawn(async move {
        let landing = landing;
        if let Some((headers, clock)) = tier
            && let Some(entry) = fill.from_tier(&headers, clock.now()).await
        {
            fill.settle(Phase::Shared(entry));
            return;
        }
        let work = async {
            // Held to its end: without it the fetch would find its client gone.
            let _input = handle.tx;
            let run = prepared.run();
            let pump = pump(handle.rx, &fill);
            tokio::pin!(run, pump);
            tokio::select! {
                biased;
                wanted = &mut pump => if wanted { run.await },
                () = &mut run => drop(pump.await),
            }
        };
        match timeout {
            Some(timeout) => {
                if tokio::time::timeout(timeout, work).await.is_err() {
                    fill.settle(Phase::Failed(Rejection::new(&rejection::DEADLINE_EXCEEDED)));
                }
            }
            None => work.await,
        }
        drop(landing);
    });
    true
}

/// Passes on what is not stored. `false`: nobody wants it any more.
async fn pump(mut tasks: mpsc::Receiver<HttpTask>, fill: &Arc<Fill>) -> bool {
    // Decided once, with the head.
    let mut stream = None;
    while let Some(task) = tasks.recv().await {
        match task {
            // Passed on where it came, see `interim`.
            HttpTask::Header(head, _) if head.status.is_informational() && head.status != 101 => {}
            HttpTask::Header(head, end) => {
                // Stored, validated or failed: whoever waits has been told.
                if fill.is_waiting() {
                    // Nobody was asked about it.
                    let _ = fill.begin(*head, Vec::new(), Err(Refusal::Status), false);
                }
                let passes = fill.passes();
                stream = Some(passes);
                if passes && end && fill.finish(None).is_err() {
                    return false;
                }
            }
            HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) if stream == Some(true) => {
                if let Some(data) = data
                    && fill.push(data).await.is_err()
                {
                    return false;
                }
                if end && fill.finish(None).is_err() {
                    return false;
                }
            }
            HttpTask::Trailer(trailers) if stream == Some(true) => {
                let finished = fill.finish(trailers.map(|trailers| *trailers));
                if finished.is_err() {
                    return false;
                }
            }
            HttpTask::Done if stream == Some(true) && fill.finish(None).is_err() => return false,
            _ => {}
        }
    }
    true
}

/// Whether the session is a fetch; then it is made to be what it was begun as.
pub fn adopt(session: &mut Session, ctx: &mut Ctx) -> bool {
    let Some(user) = session.subrequest_ctx.as_mut().and_then(|context| context.user_ctx_mut()) else { return false };
    let Some(seed) = user.downcast_mut::<Option<Box<Seed>>>().and_then(Option::take) else { return false };
    let Seed { head, request, snapshot, route, choice, fetch } = *seed;
    // The session was made from the bytes of the client's head; filters may have changed it since.
    *session.req_header_mut() = head;
    ctx.request = request;
    ctx.snapshot = snapshot;
    ctx.set_deadline(route.timeout.and_then(|timeout| ctx.request.started.checked_add(timeout)));
    ctx.route = Some(route);
    (ctx.choice, ctx.drawn) = (choice, true);
    ctx.recorded = true;
    ctx.cache = Some(Box::new(Role::Fetch(Box::new(fetch))));
    true
}

impl Fetch {
    /// What it asks the upstream to confirm.
    pub(super) fn validate(&self) -> &[Arc<Entry>] {
        match &self.ask {
            Ask::Whole(validate) => validate,
            _ => &[],
        }
    }
}

impl Ctx {
    fn fetch(&self) -> Option<&Fetch> {
        match self.cache.as_deref() {
            Some(Role::Fetch(fetch)) => Some(fetch),
            _ => None,
        }
    }

    pub(super) fn fetch_mut(&mut self) -> Option<&mut Fetch> {
        match self.cache.as_deref_mut() {
            Some(Role::Fetch(fetch)) => Some(fetch),
            _ => None,
        }
    }

    pub(in crate::proxy) fn is_fetch(&self) -> bool {
        self.fetch().is_some()
    }
}

/// Enables Pingora's cache for fetches.
pub fn to_enable(session: &mut Session, ctx: &Ctx) {
    // The answer to a HEAD is not stored; the cache would make it a GET.
    if ctx.is_fetch() && session.req_header().method == Method::GET {
        session.cache.enable(&STORAGE, None, None, None, None);
    }
}

pub fn key(ctx: &Ctx) -> Result<CacheKey> {
    let Some(fetch) = ctx.fetch() else { return Error::e_explain(ErrorType::InternalError, "not a fetch") };
    let mut key = CacheKey::new(&fetch.fill.key.bytes[..], "");
    // Whatever it asks, a 304 may come back; Pingora only expects one where something is stored. What really is goes out below.
    let mut stale = ResponseHeader::build(StatusCode::OK, Some(1))?;
    stale.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
    key.extensions.insert(Ticket { fill: Arc::clone(&fetch.fill), stale: Arc::new(stale) });
    Ok(key)
}

/// The head of a fetch as it goes upstream. Pingora has taken out the client's conditions and its range.
pub fn head_of_fetch(session: &Session, head: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
    let Some(fetch) = ctx.fetch() else { return Ok(()) };
    match &fetch.ask {
        Ask::Whole(validate) => validate::conditions(validate, head),
        Ask::Rest(part) => part::conditions(part, fetch.fill.policy.max_object, head),
        // Nothing was taken out: Pingora's cache is not enabled for it.
        Ask::AsAsked if session.req_header().method == Method::HEAD => Ok(()),
        Ask::AsAsked => {
            let own = &session.req_header().headers;
            for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE] {
                for value in own.get_all(&name) {
                    head.append_header(name.clone(), value.clone())?;
                }
            }
            Ok(())
        }
    }
}

/// Keeps a 304: Pingora merges five fields of it, and RFC 9111 §3.2 wants all.
pub fn not_modified(head: &ResponseHeader, ctx: &mut Ctx) {
    if !head.status.is_informational() {
        note_trip(ctx);
    }
    if head.status == StatusCode::NOT_MODIFIED
        && let Some(fetch) = ctx.fetch_mut()
    {
        fetch.not_modified = Some(Box::new(head.clone()));
    }
}

/// The request that has begun the fetch is to know how it went.
fn note_trip(ctx: &Ctx) {
    if let Some(fetch) = ctx.fetch() {
        fetch.fill.note_trip(ctx.attempt.trip());
    }
}

/// An interim response goes to the client whose request it is, before what the final one is known to be.
pub fn interim(head: &ResponseHeader, ctx: &mut Ctx) {
    if let Some(fetch) = ctx.fetch_mut().filter(|_| head.status != 101) {
        fetch.fill.interim(head.clone());
    }
}

/// The wall clock as a number, for what is remembered for seconds.
pub(super) fn millis(received: &crate::cache::freshness::Received) -> u64 {
    let since = received.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A fetch that failed tells those who wait. `false`: it is not one.
pub fn settle_failure(ctx: &mut Ctx, rejection: Option<Rejection>) -> bool {
    note_trip(ctx);
    let instead = attempt::instead(ctx);
    let Some(fetch) = ctx.fetch() else { return false };
    if let Some(answer) = instead {
        fetch.fill.answer_instead(answer);
    }
    let rejection = rejection.unwrap_or_else(|| Rejection::new(&rejection::UPSTREAM_RESET));
    fetch.fill.settle(Phase::Failed(rejection));
    true
}
