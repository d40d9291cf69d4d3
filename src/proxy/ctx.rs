//! What travels with one request through Pingora's hooks.

use super::Gateway;
use super::attempt::Guarded;
use super::grpc_web::GrpcWeb;
use crate::cache::fill::Trip;
use crate::compress::{Compression, Encoder};
use crate::fields;
use crate::forwarded;
use crate::http1::trailers::Trailers;
use crate::listener::{Connection, DATE_LENGTH, Date, Pace, Tolerance};
use crate::mirror::MirrorCopy;
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::snapshot::{Choice, Route, Snapshot};
use crate::telemetry::metrics::{CacheResult, UnderWay};
use crate::upstream::hedge::Ticket;
use crate::upstream::{InFlight, Tried};
use http::{HeaderValue, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One request. It holds the snapshot that it began with to its end.
pub struct Ctx {
    pub request: RequestCtx,
    pub snapshot: Arc<Snapshot>,
    pub(super) gateway: Gateway,
    pub(super) connection: Option<Arc<Connection>>,
    pub route: Option<Arc<Route>>,
    /// The rejection that was answered, or that is about to be: a hook that can only fail leaves the reason here.
    pub rejection: Option<Rejection>,
    /// What was wrong with the request, for operators.
    pub(super) fault: Option<&'static str>,
    pub(super) body: BodyCount,
    /// Whether the client asks for another protocol on its connection. Looked up once: every hook wants to know.
    pub(super) upgrade: bool,
    /// Which of its route's upstreams it goes to.
    pub(super) choice: Choice,
    /// Its part of a split is settled.
    pub(super) drawn: bool,
    /// What makes the client keep to it.
    pub(super) cookie: Option<HeaderValue>,
    /// The copy for the route's mirror, as far as it has come.
    pub(super) mirror: Option<Box<MirrorCopy>>,
    /// Whether it has been drawn if there is to be one.
    pub(super) mirror_drawn: bool,
    pub(super) attempt: Attempt,
    pub(super) grpc_web: GrpcWeb,
    pub(super) in_flight: Option<UnderWay>,
    pub(super) recorded: bool,
    /// What the cache is to do with the answer; `None` on routes without one.
    pub(super) cache: Option<Box<super::cache::Role>>,
    /// Trailers of the answer that the client of HTTP/1.1 is to get.
    pub(super) trailers: Option<Arc<Trailers>>,
    /// Trailers of the request, where its upstream may get some. Empty before the end of its body.
    pub(super) asked_trailers: Option<Arc<Trailers>>,
    /// What the cache did.
    pub(super) cached: Option<CacheResult>,
    /// How fast the client takes the answer, once more than one piece of it comes over HTTP/2.
    pub(super) pace: Option<Arc<Pace>>,
    /// Codes the body on its way to the client.
    pub(super) encoder: Option<Box<Encoder>>,
    /// The request has failed and was answered, and its connection may carry another one.
    pub(super) keep_client: bool,
    /// For the record of a request that is dropped before its end, when no session is left to ask.
    pub(super) head: Option<(http::Method, Option<http::uri::PathAndQuery>)>,
}

/// The request body as far as it has been seen.
#[derive(Debug, Default)]
pub(super) struct BodyCount {
    pub received: u64,
    pub limit: u64,
    /// How slowly it may come, where the transport does not see it.
    pub tolerance: Option<Tolerance>,
}

/// Where the request was sent, and how that goes.
#[derive(Default)]
pub(super) struct Attempt {
    /// Attempts begun.
    pub count: u32,
    pub tried: Tried,
    pub endpoint: Option<InFlight>,
    /// What makes the client come back to this endpoint.
    pub cookie: Option<HeaderValue>,
    pub started: Option<Instant>,
    pub connect_time: Option<Duration>,
    pub header_time: Option<Duration>,
    pub reused: bool,
    /// Its connection is one on which answers are checked as bytes: every one for HTTP/1.
    pub checked: bool,
    /// Interim responses (1xx) of this attempt.
    pub interim: u32,
    /// Where it is hedged: how it takes part in the race.
    pub race: Option<Ticket>,
    /// By how much it began before the request to the endpoint that answers.
    pub ahead: Duration,
    /// What breakers, the overload limit and retries know of it.
    pub guarded: Guarded,
    /// Where a fetch of the cache was sent for it, how that went.
    pub fetched: Option<Box<Trip>>,
}

impl Attempt {
    /// How it went so far, for the record.
    pub fn trip(&self) -> Trip {
        match &self.fetched {
            Some(trip) if self.count == 0 => **trip,
            _ => Trip {
                endpoint: self.endpoint.as_ref().map(|endpoint| endpoint.address()),
                attempts: self.count,
                upstream_time: self.header_time,
                connect_time: self.connect_time,
                reused: self.reused,
            },
        }
    }
}

impl Ctx {
    pub fn new(gateway: &Gateway, connection: Option<Arc<Connection>>) -> Self {
        let peer = connection.as_ref().map_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), |c| c.peer);
        let scheme = connection.as_ref().map_or(crate::request::Scheme::Http, |c| c.scheme);
        let mut request = RequestCtx::new(peer, scheme, gateway.clock().now());
        request.tls = connection.as_ref().and_then(|connection| connection.tls.clone());
        Ctx {
            request,
            snapshot: gateway.snapshot(),
            gateway: gateway.clone(),
            connection,
            route: None,
            rejection: None,
            fault: None,
            body: BodyCount::default(),
            upgrade: false,
            choice: Choice::Primary,
            drawn: false,
            cookie: None,
            mirror: None,
            mirror_drawn: false,
            attempt: Attempt::default(),
            grpc_web: GrpcWeb::default(),
            in_flight: None,
            recorded: false,
            cache: None,
            trailers: None,
            asked_trailers: None,
            cached: None,
            pace: None,
            encoder: None,
            keep_client: false,
            head: None,
        }
    }

    pub(super) fn has_upstream(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.upstream.is_some())
    }

    /// How answers of the route are compressed, if they are.
    pub(super) fn compression(&self) -> Option<&Arc<Compression>> {
        self.route.as_ref()?.compress.as_ref()
    }

    pub(super) fn has_cache(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.cache.is_some())
    }

    /// Whether the client speaks gRPC-Web and the upstream does not.
    pub fn is_grpc_web(&self) -> bool {
        self.grpc_web.is_some()
    }

    /// Whether the connection must not carry another request.
    pub fn must_close(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.must_close())
    }

    /// What every response gets, whoever made it: the route's response filters, then our own headers.
    pub fn finish_response_head(&mut self, session: &Session, head: &mut ResponseHeader) {
        if let Some(route) = &self.route {
            route.chain.response(session, head, &mut self.request);
        }
        if let Some(connection) = &self.connection {
            connection.keep_date(head.headers.get(header::DATE).and_then(dated));
        }
        self.finish_own_head(head);
    }

    /// The gateway's own headers alone.
    pub(super) fn finish_own_head(&self, head: &mut ResponseHeader) {
        let via = self.snapshot.via.value(head.version);
        fields::edit_response(head, |fields| {
            if let Some(id) = forwarded::id_value(&self.request.id) {
                fields.set(&forwarded::X_REQUEST_ID, id);
            }
            fields.add(&forwarded::VIA_HEADER, via);
        });
    }

    /// On routes with a cache every answer says what that did.
    pub fn tell_cache_status(&self, head: &mut ResponseHeader) {
        super::cache::made_here(head, self);
    }

    /// Lets the client keep to its part of a split.
    pub(super) fn give_cookie(&mut self, head: &mut ResponseHeader) -> Result<()> {
        match self.cookie.take() {
            Some(cookie) => head.append_header(header::SET_COOKIE, cookie).map(drop),
            None => Ok(()),
        }
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.request.deadline = deadline;
        if let Some(connection) = &self.connection {
            connection.deadline.set(deadline);
        }
    }

    /// The time that is left, or the error that ends the request.
    pub(super) fn check_deadline(&mut self) -> Result<Option<Duration>> {
        match self.request.deadline {
            Some(_) => self.check_deadline_at(self.gateway.clock().now()),
            None => Ok(None),
        }
    }

    /// The same where the time is known already.
    pub(super) fn check_deadline_at(&mut self, now: Instant) -> Result<Option<Duration>> {
        let Some(deadline) = self.request.deadline else {
            return Ok(None);
        };
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(self.fail(Rejection::new(&rejection::DEADLINE_EXCEEDED)));
        }
        Ok(Some(left))
    }

    pub(super) fn in_time(&self) -> bool {
        self.request.deadline.is_none_or(|deadline| self.gateway.clock().now() < deadline)
    }

    /// Ends the request from a hook that can only return an error: `fail_to_proxy` finds the rejection here.
    pub(super) fn fail(&mut self, rejection: Rejection) -> Box<Error> {
        let code = rejection.code.code;
        self.rejection = Some(rejection);
        Error::new(ErrorType::Custom(code))
    }
}

/// A date as it goes on: in the one form that is sent (RFC 9110 §5.6.7), and only if it is one.
pub(super) fn dated(value: &HeaderValue) -> Option<Date> {
    match value.as_bytes().first_chunk::<DATE_LENGTH>() {
        Some(date) if value.len() == DATE_LENGTH && date.ends_with(b" GMT") => Some(*date),
        _ => httpdate::fmt_http_date(crate::cache::date::read(value)?).as_bytes().first_chunk().copied(),
    }
}

impl Drop for Ctx {
    fn drop(&mut self) {
        // A request whose task was dropped or panicked never reached `logging`. It is counted all the same.
        if !self.recorded {
            super::record::dropped(self);
        }
    }
}
