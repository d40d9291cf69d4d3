//! One attempt to get an answer from the upstream: choose an endpoint, connect, send, read the head of the response.

use super::{Ctx, attempt, deadline, trailers};
use crate::canonical;
use crate::fields::{self, Fields};
use crate::forwarded::{self, ForwardedFacts};
use crate::http1::trailers::Passing;
use crate::identity;
use crate::listener::Pace;
use crate::rejection::{self, Rejection};
use crate::upstream::answer::INTERIM_MAX;
use crate::upstream::exchange;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType::WriteTimedout, Result};
use std::time::{Duration, Instant};

/// What belongs to the connection with the upstream, besides what `Connection` names and what frames the message. `Trailer` tells
/// of fields that may not follow here.
static HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::UPGRADE,
    header::TRAILER,
];

/// Picks the endpoint of the next attempt.
pub fn select(session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    let now = ctx.gateway.clock().now();
    let left = ctx.check_deadline_at(now)?;
    if ctx.upgrade {
        keep_upgrade_open(session)?;
    }
    // The lease of an attempt that failed goes first: it still counts as a request under way on its endpoint.
    ctx.attempt.endpoint = None;
    let endpoint = attempt::choose(session, ctx, now).map_err(|rejection| ctx.fail(rejection).into_up())?;
    let trailers = trailers::wanted(session, ctx);
    let peer = if ctx.upgrade {
        bound_upgrade(ctx, left);
        endpoint.tunnel_peer(left)
    } else {
        let passing = Passing { request: trailers::asked(session, ctx), answer: trailers.clone() };
        endpoint.http_peer(left, now, passing)
    };
    let (lease, peer) = attempt::hedge(session, ctx, endpoint.begin(), peer, now);
    // A race has connections of its own, and two of them.
    trailers::expect(trailers.filter(|_| ctx.attempt.race.is_none()), ctx);
    if ctx.attempt.count > 0
        && let Some(target) = ctx.route.as_ref().and_then(|route| route.target(ctx.choice))
    {
        target.metrics.retries.increment();
    }
    ctx.attempt.count = ctx.attempt.count.saturating_add(1);
    ctx.attempt.started = Some(now);
    ctx.attempt.connect_time = None;
    ctx.attempt.header_time = None;
    ctx.attempt.interim = 0;
    ctx.attempt.ahead = Duration::ZERO;
    ctx.attempt.endpoint = Some(lease);
    Ok(peer)
}

/// Works around cloudflare/pingora#946: when a 101 is read before the task that says "the request body is over and empty", that
/// task ends the tunnel. With a body that is said to come, there is no such task: the transport delivers none of it
/// (`listener::io`), and with the 101 Pingora begins the client's side anew. The upstream hears of no body. When it refuses, Pingora
/// misses that body, and closes the client's connection behind the answer, which says so.
fn keep_upgrade_open(session: &mut Session) -> Result<()> {
    session.req_header_mut().insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("1"))
}

/// The peer of a tunnel reads without a timeout, which could not be lifted when the tunnel begins. So the client's side knows
/// how long an answer to the upgrade may take.
fn bound_upgrade(ctx: &Ctx, left: Option<Duration>) {
    let read = ctx.route.as_ref().and_then(|route| route.target(ctx.choice)).map(|target| target.upstream.read_timeout());
    let wait = match (read, left) {
        (Some(read), Some(left)) => Some(read.min(left)),
        (read, left) => read.or(left),
    };
    if let Some(connection) = &ctx.connection {
        connection.expect_upgrade(wait.and_then(|wait| ctx.gateway.clock().now().checked_add(wait)));
    }
}

/// Nothing was sent, so another endpoint may take the request, whatever its method.
pub fn connect_failed(ctx: &mut Ctx, mut error: Box<Error>) -> Box<Error> {
    error.set_retry(attempt::connect_failed(ctx));
    error
}

/// `reused` is what Pingora knows, which is about the connections that it has made by itself.
pub fn connected(ctx: &mut Ctx, peer: &HttpPeer, reused: bool) {
    if ctx.attempt.race.is_some() {
        // To the race. Its connections are told of by whoever makes them, and checked as all others.
        ctx.attempt.checked = true;
        return;
    }
    let opened = peer.options.custom_l4.as_ref().and_then(|_| crate::upstream::take_opened());
    let reused = opened.map_or(reused, |opened| opened.reused);
    ctx.attempt.reused = reused;
    ctx.attempt.checked = opened.is_some();
    let started = ctx.attempt.started.filter(|_| !reused);
    let elapsed = started.map(|started| ctx.gateway.clock().now().saturating_duration_since(started));
    ctx.attempt.connect_time = elapsed;
    if let Some(endpoint) = &ctx.attempt.endpoint {
        endpoint.state().connected();
    }
    if let Some(target) = ctx.route.as_ref().and_then(|route| route.target(ctx.choice)) {
        if reused {
            target.metrics.reused();
        } else {
            target.metrics.connected(elapsed.unwrap_or_default());
        }
    }
}

/// The request as the upstream will see it. Pingora has removed the hop-by-hop headers by now, and those that the client
/// named in `Connection`: what is written here stays.
pub fn request_head(session: &Session, head: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
    if head.version != Version::HTTP_2 && !ctx.attempt.checked {
        // `protocol = "auto"`, and the endpoint has taken HTTP/1. Nobody would check its answer.
        return Err(attempt::again_by_http1(ctx));
    }
    if let Some(digest) = &mut ctx.request.body_digest {
        // Each attempt sends the body from its beginning.
        digest.restart();
    }
    let asked = session.req_header();
    let host = canonical::host_as_sent(&asked.uri, &asked.headers).and_then(|host| std::str::from_utf8(host).ok());
    let facts = ForwardedFacts {
        peer: ctx.request.peer,
        client: ctx.request.client,
        scheme: ctx.request.scheme,
        host: host.unwrap_or(&ctx.request.host),
    };
    fields::edit_request(head, |fields| {
        forwarded::write_forwarded(fields, &facts, &ctx.snapshot.trusted_proxies, ctx.snapshot.forwarded_headers);
        if let Some(id) = forwarded::id_value(&ctx.request.id) {
            fields.set(&forwarded::X_REQUEST_ID, id);
        }
        fields.add(&forwarded::VIA_HEADER, ctx.snapshot.via.value(asked.version));
    });
    if let Some(identity) = &ctx.request.identity {
        identity::write(identity, head);
    }
    if let Some(signer) = &ctx.snapshot.signer {
        signer.write(ctx.request.identity.as_deref(), ctx.gateway.clock().wall(), head);
    }
    deadline::forward(asked, head, ctx);
    ctx.grpc_web.request_head(head)?;
    if ctx.upgrade {
        // See `keep_upgrade_open`. Without a length Pingora would announce a chunked body.
        head.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
        // Pingora passes WebSocket on and removes the header of every other protocol. Which ones there are is the upstream's to
        // know: until its 101 nothing but this head reaches it, and h2c is not among them (`intake`).
        if let (Some(protocols), None) = (asked.headers.get(header::UPGRADE), head.headers.get(header::UPGRADE)) {
            head.insert_header(header::CONNECTION, HeaderValue::from_static("Upgrade"))?;
            head.insert_header(header::UPGRADE, protocols.clone())?;
        }
    }
    // HTTP/2 has no such header; its connections are bounded by their streams.
    let http1 = head.version != Version::HTTP_2 && !ctx.upgrade;
    let keep = ctx.attempt.endpoint.as_ref().is_none_or(|endpoint| endpoint.may_pool());
    if http1 && !keep && ctx.attempt.race.is_none() {
        head.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
    }
    trailers::request_head(asked, head, ctx)?;
    if let Some(endpoint) = ctx.attempt.endpoint.as_ref().filter(|_| host.is_none()) {
        // HTTP/1.0 asks without one, HTTP/1.1 must not: what is asked for now is what is at the endpoint.
        head.insert_header(header::HOST, endpoint.address().to_string())?;
    }
    if let Some(route) = &ctx.route
        && let Err(rejection) = route.chain.upstream_request(session, head, &mut ctx.request)
    {
        return Err(ctx.fail(rejection));
    }
    if let Some(copy) = &mut ctx.mirror {
        // The body is sent once more, from its beginning.
        copy.restart();
    } else if let Some(mirror) = ctx.route.as_ref().and_then(|route| route.mirror.as_ref())
        && !ctx.upgrade
        && !std::mem::replace(&mut ctx.mirror_drawn, true)
    {
        ctx.mirror = mirror.begin(head);
    }
    Ok(())
}

/// Where either side speaks HTTP/2, Pingora passes no `100 Continue` on, and whoever waits for it would wait until the answer. So the
/// upstream is not asked for one there, and a client of HTTP/1.1 is told by us to go on (RFC 9110 §10.1.1), once the request is on
/// its way.
pub async fn expectation(session: &mut Session, head: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
    let of_http2 = session.req_header().version == Version::HTTP_2;
    if !of_http2 && head.version != Version::HTTP_2 && ctx.attempt.race.is_none() {
        return Ok(());
    }
    head.remove_header(&header::EXPECT);
    if !of_http2 && !ctx.is_fetch() {
        session.as_downstream_mut().write_continue_response().await.map_err(|e| e.into_down())?;
    }
    Ok(())
}

pub fn response_head(session: &Session, head: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    let now = ctx.gateway.clock().now();
    ctx.check_deadline_at(now)?;
    if head.status.is_informational() && head.status != 101 {
        ctx.attempt.interim = ctx.attempt.interim.saturating_add(1);
        if ctx.attempt.interim > u32::from(INTERIM_MAX) {
            return Err(ctx.fail(Rejection::new(&rejection::UPSTREAM_PROTOCOL_ERROR)));
        }
        return Ok(());
    }
    attempt::settle(ctx);
    let elapsed = ctx.attempt.started.map(|started| now.saturating_duration_since(started));
    ctx.attempt.header_time = elapsed;
    if let (Some(endpoint), Some(elapsed)) = (&ctx.attempt.endpoint, elapsed) {
        endpoint.answered(elapsed.saturating_sub(ctx.attempt.ahead), now);
    }
    if let Some(target) = ctx.route.as_ref().and_then(|route| route.target(ctx.choice)) {
        target.metrics.attempted(Some(head.status.as_u16()));
        target.metrics.response_time.observe(elapsed.unwrap_or_default());
    }
    attempt::answered(session, head, ctx)?;
    let switches = head.status == 101;
    let trailers = trailers::can_follow(head, session.as_downstream().is_http2(), ctx);
    let edit = |fields: &mut dyn Fields| {
        // The headers of a switch belong to it; Pingora checks them.
        if !switches {
            remove_hop_by_hop(fields, trailers);
        }
    };
    if ctx.snapshot.preserve_header_case {
        fields::edit_response(head, edit);
    } else {
        fields::edit_unspelled_response(head, edit);
    }
    // Not on what is fetched for the cache, and so for more than one client.
    for cookie in [ctx.attempt.cookie.take(), ctx.cookie.take()].into_iter().flatten().filter(|_| !ctx.is_fetch()) {
        head.append_header(header::SET_COOKIE, cookie)?;
    }
    if head.status == 101 {
        // A tunnel lives as long as its ends want; its own idle bounds are the read timeouts.
        ctx.set_deadline(None);
    }
    Ok(())
}

/// RFC 9110 §7.6.1: what belongs to the connection with the upstream ends there. Pingora does this for requests only.
fn remove_hop_by_hop(fields: &mut dyn Fields, trailers: bool) {
    // Most responses have none of them: to look through the names once is cheaper than to look each of them up.
    if !fields.map().keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    // These two name nothing, or what is removed anyway; to parse them as names would allocate.
    let plain = |option: &[u8]| option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close");
    // What frames the message is not the connection's to remove.
    let framing = |name: &HeaderName| name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING;
    let lines = fields.map().get_all(header::CONNECTION);
    let options = lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let named = options.filter(|option| !plain(option)).filter_map(|option| HeaderName::from_bytes(option).ok());
    for name in named.filter(|name| !framing(name)).collect::<Vec<_>>() {
        fields.remove(&name);
    }
    for name in HOP_BY_HOP.iter().filter(|name| !(trailers && **name == header::TRAILER)) {
        fields.remove(name);
    }
}

/// Sends a hedged request on its way, once its head is as it should be: from here on its race has it.
pub fn send_hedged(head: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
    if let Some(race) = &mut ctx.attempt.race {
        race.send(head);
        // The way to the race is used once.
        head.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
    }
    Ok(())
}

pub fn attempt_failed(session: &Session, ctx: &mut Ctx, mut error: Box<Error>) -> Box<Error> {
    exchange::name_late(&mut error);
    if let Some(failed) = attempt::settle(ctx) {
        error = failed.error;
        if failed.unsent {
            return connect_failed(ctx, error);
        }
    }
    error.set_retry(attempt::failed(session, ctx, &error));
    error
}

/// Has the client of an HTTP/2 stream take the next piece of its answer in time. An answer of one piece is bounded by itself.
pub fn pace(session: &mut Session, body: &mut Option<Bytes>, last: bool, ctx: &mut Ctx) -> Result<()> {
    let Some(tolerance) = ctx.connection.as_ref().and_then(|connection| connection.pace) else { return Ok(()) };
    let Some(piece) = body.as_mut().filter(|piece| !piece.is_empty()) else { return Ok(()) };
    let now = Instant::now();
    if ctx.pace.is_none() && !last {
        ctx.pace = Pace::new(tolerance, now);
    }
    let Some(pace) = &ctx.pace else { return Ok(()) };
    let Some(allowed) = pace.hand_over(piece, last, now) else {
        return Err(Error::explain(WriteTimedout, "the client takes its answer too slowly").into_down());
    };
    session.set_write_timeout(Some(allowed));
    Ok(())
}
