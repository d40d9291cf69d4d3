//! Trailers of an answer for a client of HTTP/1.1 that takes them, and those of a request for an upstream of HTTP/1.1. Of an
//! answer between two ends of HTTP/2 Pingora passes them by itself.

use super::{Ctx, deadline};
use crate::http1::trailers::{Trailers, fields, may_pass};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::sync::Arc;

/// Where they are left of the answer to an attempt, if the client has said that it takes any (RFC 9110 §10.1.4).
pub fn wanted(session: &Session, ctx: &Ctx) -> Option<Arc<Trailers>> {
    // What is fetched for the cache has no client.
    let possible = !ctx.upgrade && !ctx.is_fetch() && !ctx.grpc_web.is_some();
    (possible && takes_trailers(session.req_header())).then(Arc::default)
}

/// Has the client's connection take them from there, or expect none.
pub fn expect(trailers: Option<Arc<Trailers>>, ctx: &mut Ctx) {
    if trailers.is_none() && ctx.trailers.is_none() {
        return;
    }
    if let Some(connection) = &ctx.connection {
        connection.expect_trailers(trailers.clone());
    }
    ctx.trailers = trailers;
}

/// Those of an answer that the cache serves while it comes, before the end of its body is written.
pub fn give(session: &Session, trailers: &HeaderMap, ctx: &Ctx) {
    let chunked = |head: &ResponseHeader| head.headers.contains_key(header::TRANSFER_ENCODING);
    if let Some(connection) = &ctx.connection
        && takes_trailers(session.req_header())
        && session.response_written().is_some_and(chunked)
    {
        let kept = Trailers::default();
        kept.keep_map(trailers);
        connection.expect_trailers(Some(Arc::new(kept)));
    }
}

fn takes_trailers(asked: &RequestHeader) -> bool {
    if asked.version != Version::HTTP_11 {
        return false;
    }
    let lines = asked.headers.get_all(header::TE).iter();
    let mut codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    codings.any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

/// Tells the upstream that they will be passed on, and which ones the client has announced. Pingora has removed what the client
/// said to the gateway.
pub fn request_head(asked: &RequestHeader, head: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
    let http2 = head.version == Version::HTTP_2;
    if ctx.trailers.is_some() {
        head.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
        if !http2 {
            head.append_header(header::CONNECTION, HeaderValue::from_static("te"))?;
        }
    }
    if let Some(trailers) = ctx.asked_trailers.as_ref().filter(|_| !http2) {
        if !trailers.is_empty() {
            // Sent again without data: Pingora would not make a body of that, and there would be nothing to follow.
            head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        let lines = asked.headers.get_all(header::TRAILER).iter();
        let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let announced = names.filter(|name| may_pass(name)).collect::<Vec<_>>().join(&b", "[..]);
        if !announced.is_empty()
            && let Ok(announced) = HeaderValue::from_bytes(&announced)
        {
            head.insert_header(header::TRAILER, announced)?;
        }
    }
    Ok(())
}

/// Where those of the request are left for the upstream, if it may have some: over HTTP/1.1, where they follow the last chunk.
/// Pingora drops them where the client speaks HTTP/2, and has no way to send them where the upstream does.
pub fn asked(session: &mut Session, ctx: &mut Ctx) -> Option<Arc<Trailers>> {
    if let Some(known) = &ctx.asked_trailers {
        // Of an earlier attempt. By now the body may have turned out to be empty.
        return Some(Arc::clone(known));
    }
    // Most requests have no body, and this is the least that it takes to tell.
    if session.as_mut().is_body_empty() || ctx.connection.is_none() || ctx.grpc_web.is_some() {
        return None;
    }
    let signed = ctx.request.identity.as_ref().is_some_and(|identity| identity.method == "hmac");
    if signed || ctx.request.body_digest.is_some() {
        // No signature covers them.
        return None;
    }
    let headers = &session.req_header().headers;
    if !headers.contains_key(header::TRANSFER_ENCODING) || !names_nothing(headers) {
        return None;
    }
    Some(Arc::clone(ctx.asked_trailers.get_or_insert_default()))
}

/// Lets those pass that have come with the end of the body: what would pass as a field of the head. What the gateway or a filter
/// writes, edits or removes there is theirs to say, also for an upstream that makes no difference between the two.
pub fn pass_asked(session: &Session, ctx: &mut Ctx) {
    let Some(connection) = &ctx.connection else { return };
    let section = connection.take_asked_trailers();
    if section.is_empty() {
        // There are none, or they have passed with an earlier attempt.
        return;
    }
    let underscores = connection.listener.settings_now().head.allow_underscores;
    let asked = session.req_header();
    let mut head = asked.clone();
    for (name, value) in fields(&section) {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { return };
        if head.append_header(name, value).is_err() {
            return;
        }
    }
    let before = head.headers.clone();
    ctx.snapshot.identity_headers.remove(&mut head);
    deadline::forward(asked, &mut head, ctx);
    if let Some(route) = &ctx.route
        && route.chain.upstream_request(session, &mut head, &mut ctx.request).is_err()
    {
        return;
    }
    let passes = |name: &[u8]| {
        let spelled = underscores || !name.contains(&b'_');
        spelled && HeaderName::from_bytes(name).is_ok_and(|name| before.get_all(&name).iter().eq(head.headers.get_all(&name)))
    };
    if let Some(passed) = &ctx.asked_trailers {
        passed.keep(fields(&section).filter(|(name, _)| passes(name)));
    }
}

/// Whether they can follow this head: not a body of known length, and not where a field is for the connection with the upstream
/// alone, which one of them could be.
pub fn can_follow(head: &ResponseHeader, http2: bool, ctx: &mut Ctx) -> bool {
    if ctx.trailers.is_none() {
        // Then Pingora sees to it, or there are none.
        return http2 && !ctx.attempt.checked;
    }
    let follow = !head.headers.contains_key(header::CONTENT_LENGTH) && names_nothing(&head.headers);
    if !follow {
        expect(None, ctx);
    }
    follow
}

/// Whether `Connection` names no field, which one of the trailers could be.
fn names_nothing(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    options.all(|option| [&b"keep-alive"[..], b"close", b"te", b""].iter().any(|known| option.eq_ignore_ascii_case(known)))
}
