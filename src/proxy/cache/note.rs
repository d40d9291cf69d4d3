//! What the cache says about itself (`Cache-Status`, RFC 9211), and what it learns from answers that go past it.

use super::super::Ctx;
use super::{Role, kept};
use crate::cache::Cache;
use crate::cache::entry::Entry;
use crate::cache::freshness::Received;
use crate::cache::key::KeyRules;
use crate::cache::policy::Asked;
use crate::cache::url;
use crate::telemetry::metrics::Bypass;
use arrayvec::ArrayString;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::fmt::Write;
use std::time::{Duration, Instant};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went upstream (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    UriMiss,
    VaryMiss,
    Stale,
    Request,
    Method,
    Bypass,
    Partial,
    /// It did not: the gateway answers for itself.
    Not,
}

impl Forwarded {
    pub const fn as_str(self) -> &'static str {
        match self {
            Forwarded::UriMiss => "uri-miss",
            Forwarded::VaryMiss => "vary-miss",
            Forwarded::Stale => "stale",
            Forwarded::Request => "request",
            Forwarded::Method => "method",
            Forwarded::Bypass => "bypass",
            Forwarded::Partial => "partial",
            Forwarded::Not => "",
        }
    }
}

/// One member of `Cache-Status`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Status {
    /// `None`: a hit.
    pub forwarded: Option<Forwarded>,
    /// What the upstream answered, if that is not what goes out.
    pub upstream: Option<u16>,
    /// Seconds; below zero for what is stale.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    pub detail: Option<&'static str>,
}

impl Status {
    pub fn hit(entry: &Entry, now: Instant) -> Self {
        Status { ttl: Some(ttl(entry, now)), ..Status::default() }
    }

    pub fn write(&self, head: &mut ResponseHeader) {
        let mut text: ArrayString<160> = ArrayString::new();
        let _ = text.write_str("gatewright");
        let _ = match self.forwarded {
            None => text.write_str("; hit"),
            Some(Forwarded::Not) => Ok(()),
            Some(why) => write!(text, "; fwd={}", why.as_str()),
        };
        if let Some(status) = self.upstream {
            let _ = write!(text, "; fwd-status={status}");
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        for (said, name) in [(self.stored, "; stored"), (self.collapsed, "; collapsed")] {
            if said {
                let _ = text.write_str(name);
            }
        }
        if let Some(detail) = self.detail {
            let _ = write!(text, "; detail={detail}");
        }
        // Letters, digits and signs only.
        if let Ok(value) = HeaderValue::from_str(&text) {
            let _ = head.append_header(CACHE_STATUS, value);
        }
    }
}

pub fn ttl(entry: &Entry, now: Instant) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match entry.freshness(now) {
        Ok(left) => seconds(left),
        Err(by) => seconds(by).saturating_neg(),
    }
}

/// Looks at an answer on its way to the client that did not come from the cache.
pub fn response(session: &Session, head: &mut ResponseHeader, ctx: &mut Ctx) {
    let Some(cache) = ctx.snapshot.cache.clone() else { return };
    let status = head.status.as_u16();
    let unsafe_method = !matches!(session.req_header().method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    if unsafe_method && (200..400).contains(&status) {
        invalidate(&cache, ctx, session.req_header(), &head.headers);
    }
    let Some(role) = ctx.cache.take() else { return };
    let mut said = Status { forwarded: Some(Forwarded::Bypass), ..Status::default() };
    match *role {
        Role::Fetch(fetch) => {
            ctx.cache = Some(Box::new(Role::Fetch(fetch)));
            return;
        }
        Role::Past(why) => {
            (said.forwarded, said.detail) = (Some(past(why)), Some(why.as_str()));
            if let Some(fill) = kept::of_post(session, ctx, &cache, head) {
                (said.stored, said.detail) = (true, None);
                ctx.cache = Some(Box::new(Role::Kept(fill)));
            }
        }
        Role::Kept(_) => {}
        Role::Failed(failed) => said = failed,
        Role::Unshared(hash, fill) => {
            said.forwarded = Some(Forwarded::UriMiss);
            let (shared, fill) = kept::of_unshared(session, ctx, &cache, fill, head);
            if shared {
                cache.flights.note_shared(hash);
            }
            said.stored = fill.is_some();
            ctx.cache = fill.map(|fill| Box::new(Role::Kept(fill)));
        }
    }
    said.write(head);
}

fn past(why: Bypass) -> Forwarded {
    if why == Bypass::Method { Forwarded::Method } else { Forwarded::Bypass }
}

/// What the cache of the route has done for a request that the gateway answers itself; the detail is why it does.
pub fn made_here(head: &mut ResponseHeader, ctx: &Ctx) {
    if !ctx.has_cache() {
        return;
    }
    let forwarded = |why| Status { forwarded: Some(why), ..Status::default() };
    let said = match ctx.cache.as_deref() {
        None | Some(Role::Fetch(_) | Role::Kept(_)) => forwarded(Forwarded::Not),
        Some(Role::Past(why)) => forwarded(past(*why)),
        Some(Role::Unshared(..)) => forwarded(Forwarded::UriMiss),
        Some(Role::Failed(said)) => *said,
    };
    Status { detail: Some(ctx.rejection.as_ref().map_or("local", |rejection| rejection.code.code)), ..said }.write(head);
}

pub fn asked(ctx: &Ctx, headers: &HeaderMap) -> Asked {
    let identity = ctx.request.identity.is_some() || !ctx.request.apart.is_empty();
    Asked { authorization: headers.contains_key(header::AUTHORIZATION), identity }
}

/// Now, after as long as the attempt has taken.
pub fn received(ctx: &Ctx) -> Received {
    let clock = ctx.gateway.clock();
    let at = clock.now();
    let delay = ctx.attempt.started.map(|started| at.saturating_duration_since(started)).unwrap_or_default();
    Received { delay, at, wall: clock.wall() }
}

/// RFC 9111 §4.4: the URL of the request, and those of the same origin that the answer names.
fn invalidate(cache: &Cache, ctx: &Ctx, head: &RequestHeader, headers: &HeaderMap) {
    let mut target = String::new();
    url::of_request(&ctx.request, &head.uri, &KeyRules::default(), &mut target);
    let mut count = cache.invalidate(&target);
    let named = [header::LOCATION, header::CONTENT_LOCATION];
    for reference in named.iter().filter_map(|name| headers.get(name)?.to_str().ok()) {
        if let Some(other) = url::of_reference(reference, &ctx.request, &head.uri, port(head)).filter(|other| *other != target) {
            count = count.saturating_add(cache.invalidate(&other));
        }
    }
    if let Some(policy) = ctx.route.as_ref().and_then(|route| route.cache.as_ref()) {
        policy.metrics.invalidations.add(count);
    }
}

/// The port that the client asked for, where it named one.
pub fn port(head: &RequestHeader) -> Option<u16> {
    let host = match head.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => head.headers.get(header::HOST)?.as_bytes(),
    };
    crate::canonical::canonical_host(host, &mut ArrayString::new()).ok()?
}
