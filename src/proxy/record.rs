//! The end of a request: counted once, and one line in the access log.

use super::{Ctx, Gateway};
use crate::listener::{Connection, Fault, Faults};
use crate::rejection::Code;
use crate::telemetry::access_log::AccessRecord;
use crate::telemetry::metrics::{CacheResult, Method};
use http::{Version, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType::WriteTimedout};
use std::time::Duration;

/// What ended a request that nobody answered, in the `error` field.
const CLIENT_CLOSED: &str = "client_closed";
const DROPPED: &str = "dropped";

/// A request that came to its end, well or badly.
pub fn request(session: &Session, error: Option<&Error>, ctx: &mut Ctx) {
    ctx.recorded = true;
    if let Some(copy) = ctx.mirror.take() {
        let head = session.req_header();
        let none = |name| head.headers.get(name).is_none_or(|value| value == "0");
        copy.finish(
            none(&header::CONTENT_LENGTH)
                && !head.headers.contains_key(header::TRANSFER_ENCODING)
                && head.version != Version::HTTP_2,
        );
    }
    // Over HTTP/1 the transport finds that out and counts it.
    if error.is_some_and(|error| *error.etype() == WriteTimedout && *error.esource() == ErrorSource::Downstream)
        && let Some(connection) = &ctx.connection
    {
        connection.report(Fault::SlowReader);
    }
    let head = session.req_header();
    let status = session.response_written().map(|head| head.status.as_u16());
    let ends = Ends {
        status,
        method: head.method.as_str(),
        path: head.uri.path().as_bytes(),
        protocol: protocol(head.version),
        bytes_in: u64::try_from(session.body_bytes_read()).unwrap_or(u64::MAX),
        bytes_out: u64::try_from(session.body_bytes_sent()).unwrap_or(u64::MAX),
        user_agent: head.headers.get(header::USER_AGENT).map(|value| value.as_bytes()),
        error: error.map_or(ctx.fault, |error| match error.esource() {
            ErrorSource::Downstream if ctx.rejection.is_none() => Some(CLIENT_CLOSED),
            _ => Some(error.etype().as_str()),
        }),
    };
    finish(ctx, &ends);
}

/// A hit that was answered without a session.
pub fn hit(ctx: &mut Ctx, head: &RequestHeader, status: u16, bytes_out: u64, cut: bool) {
    ctx.recorded = true;
    let ends = Ends {
        status: Some(status),
        method: head.method.as_str(),
        path: head.uri.path().as_bytes(),
        protocol: protocol(head.version),
        bytes_in: 0,
        bytes_out,
        user_agent: head.headers.get(header::USER_AGENT).map(|value| value.as_bytes()),
        error: cut.then_some(CLIENT_CLOSED),
    };
    finish(ctx, &ends);
}

/// A request whose task ended without `logging`: a panic, or a deadline that it did not keep by itself.
pub fn dropped(ctx: &mut Ctx) {
    ctx.recorded = true;
    let head = ctx.head.take();
    let Some((method, target)) = &head else { return };
    let code = if ctx.in_time() { DROPPED } else { crate::rejection::DEADLINE_EXCEEDED.code };
    finish(
        ctx,
        &Ends {
            status: None,
            method: method.as_str(),
            path: target.as_ref().map_or("", |target| target.path()).as_bytes(),
            protocol: "",
            bytes_in: ctx.body.received,
            bytes_out: 0,
            user_agent: None,
            error: Some(code),
        },
    );
}

/// What only the session knows.
struct Ends<'a> {
    status: Option<u16>,
    method: &'a str,
    path: &'a [u8],
    protocol: &'static str,
    bytes_in: u64,
    bytes_out: u64,
    user_agent: Option<&'a [u8]>,
    error: Option<&'a str>,
}

fn finish(ctx: &Ctx, ends: &Ends<'_>) {
    let clock = ctx.gateway.clock();
    let duration = clock.now().saturating_duration_since(ctx.request.started);
    let metrics = ctx.route.as_ref().map_or(&ctx.snapshot.unrouted, |route| &route.metrics);
    metrics.end(Method::of(ends.method.as_bytes()), ends.status, duration, ends.bytes_in, ends.bytes_out);
    if let Some(rejection) = &ctx.rejection {
        metrics.rejected(rejection.code);
    }
    let trip = ctx.attempt.trip();
    let Some(access_log) = &ctx.snapshot.access_log else { return };
    access_log.write(&AccessRecord {
        listener: ctx.connection.as_ref().map(|connection| &*connection.listener.name),
        method: ends.method.as_bytes(),
        host: ctx.request.host.as_bytes(),
        path: ends.path,
        protocol: ends.protocol,
        route: ctx.request.route.as_deref(),
        upstream: ctx.route.as_ref().and_then(|route| Some(&**route.target(ctx.choice)?.upstream.name())),
        endpoint: trip.endpoint,
        consumer: ctx.request.identity.as_ref().and_then(|identity| identity.consumer.as_ref()).map(|consumer| &*consumer.name),
        subject: ctx.request.identity.as_ref().filter(|identity| identity.consumer.is_none()).map(|identity| &*identity.name),
        credential: ctx.request.identity.as_ref().map(|identity| &*identity.credential),
        status: ends.status,
        rejection: ctx.rejection.as_ref().map(|rejection| rejection.code.code),
        error: ends.error,
        bytes_in: ends.bytes_in,
        bytes_out: ends.bytes_out,
        duration,
        upstream_time: trip.upstream_time,
        connect_time: trip.connect_time,
        attempts: trip.attempts,
        reused: trip.endpoint.map(|_| trip.reused),
        cache: ctx.cached.map(CacheResult::as_str),
        user_agent: ends.user_agent,
        ..AccessRecord::new(wall_start(ctx, duration), &ctx.request.id, ctx.request.client)
    });
}

/// Wall time is asked for once, at the end; the start follows from the monotonic duration.
fn wall_start(ctx: &Ctx, duration: Duration) -> std::time::SystemTime {
    let now = ctx.gateway.clock().wall();
    now.checked_sub(duration).unwrap_or(now)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

impl Gateway {
    /// The line of a request that was refused before it could be parsed: what it asked for cannot be told.
    pub fn log_malformed(&self, connection: &Connection, id: &str, code: &'static Code, reason: &'static str, bytes_out: usize) {
        let snapshot = self.snapshot();
        snapshot.unrouted.end(Method::of(b""), Some(code.status), Duration::ZERO, 0, 0);
        snapshot.unrouted.rejected(code);
        let Some(access_log) = &snapshot.access_log else { return };
        access_log.write(&AccessRecord {
            listener: Some(&connection.listener.name),
            status: Some(code.status),
            rejection: Some(code.code),
            error: Some(reason),
            bytes_out: u64::try_from(bytes_out).unwrap_or(u64::MAX),
            ..AccessRecord::new(self.clock().wall(), id, connection.peer)
        });
    }
}
