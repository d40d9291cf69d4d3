//! Answers that come from the cache, or through it.

use super::super::{Ctx, http10, trailers};
use super::note::Status;
use crate::cache::conditional;
use crate::cache::entry::{Body, Entry};
use crate::cache::fill::{Broken, Head, Reader};
use crate::cache::freshen::Own;
use crate::cache::range::{self, Wanted};
use crate::compress;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use std::fmt::Write;

/// What a 304 leaves out of the stored head: what describes a body (RFC 9110 §15.4.5).
const OF_THE_BODY: [http::HeaderName; 5] =
    [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE, header::CONTENT_RANGE];

/// Answers with a stored response, or as much of it as is asked for, with the fields that are this client's `own`. Returns the bytes
/// that came from the cache.
pub async fn entry(session: &mut Session, ctx: &mut Ctx, stored: &Entry, own: &Own, said: Status) -> Result<u64> {
    let (head, pieces) = of_entry(session.req_header(), ctx, stored, own, said)?;
    send(session, ctx, head, pieces).await
}

/// The head and the body of that answer.
pub fn of_entry(
    request: &RequestHeader,
    ctx: &Ctx,
    stored: &Entry,
    own: &Own,
    said: Status,
) -> Result<(ResponseHeader, Vec<Bytes>)> {
    let now = ctx.gateway.clock().now();
    let mut head = stored.head.clone();
    let ok = head.status == StatusCode::OK;
    head.insert_header(header::AGE, HeaderValue::from(stored.age(now).as_secs()))?;
    for (name, value) in own {
        head.append_header(name.clone(), value.clone())?;
    }
    if let Some(compression) = ctx.compression() {
        compression.mark(&mut head);
    }
    if ok && conditional::not_modified(&request.headers, &head.headers) {
        said.write(&mut head);
        without_body(&mut head)?;
        return Ok((head, Vec::new()));
    }
    let wanted = match request.headers.get(header::RANGE) {
        Some(range) if ok && request.method == Method::GET && conditional::range_applies(&request.headers, &head.headers) => {
            range::wanted(range, stored.body.total)
        }
        _ => Wanted::Whole,
    };
    said.write(&mut head);
    let pieces = match wanted {
        Wanted::Whole if request.method == Method::HEAD => Vec::new(),
        Wanted::Whole => stored.body.pieces.to_vec(),
        Wanted::One(start, end) => {
            part(&mut head, start, end, stored.body.total)?;
            stored.body.slices(start, end).collect()
        }
        Wanted::Many(ranges) => multipart(&mut head, &stored.body, &ranges)?,
        Wanted::None => {
            for name in OF_THE_BODY {
                head.remove_header(&name);
            }
            head.set_status(StatusCode::RANGE_NOT_SATISFIABLE)?;
            head.insert_header(header::CONTENT_RANGE, format!("bytes */{}", stored.body.total))?;
            head.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
            Vec::new()
        }
    };
    Ok((head, pieces))
}

/// A response without a body that is one of somebody else's: 304.
pub async fn not_modified(session: &mut Session, ctx: &mut Ctx, mut head: ResponseHeader) -> Result<u64> {
    without_body(&mut head)?;
    send(session, ctx, head, Vec::new()).await
}

fn without_body(head: &mut ResponseHeader) -> Result<()> {
    for name in OF_THE_BODY {
        head.remove_header(&name);
    }
    head.set_status(StatusCode::NOT_MODIFIED)
}

fn part(head: &mut ResponseHeader, start: u64, end: u64, total: u64) -> Result<()> {
    head.set_status(StatusCode::PARTIAL_CONTENT)?;
    head.insert_header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", end.saturating_sub(1)))?;
    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(end.saturating_sub(start)))?;
    Ok(())
}

/// RFC 9110 §14.6.
fn multipart(head: &mut ResponseHeader, body: &Body, ranges: &[(u64, u64)]) -> Result<Vec<Bytes>> {
    let boundary = format!("{:032x}", fastrand::u128(..));
    let kind = head.headers.get(header::CONTENT_TYPE).cloned();
    let mut pieces = Vec::with_capacity(ranges.len().saturating_mul(2).saturating_add(1));
    for (start, end) in ranges {
        let mut intro = BytesMut::with_capacity(192);
        // Writing to a BytesMut grows it and cannot fail.
        let _ = write!(intro, "\r\n--{boundary}\r\n");
        if let Some(kind) = &kind {
            intro.extend_from_slice(b"Content-Type: ");
            intro.extend_from_slice(kind.as_bytes());
            intro.extend_from_slice(b"\r\n");
        }
        let _ = write!(intro, "Content-Range: bytes {start}-{}/{}\r\n\r\n", end.saturating_sub(1), body.total);
        pieces.push(intro.freeze());
        pieces.extend(body.slices(*start, *end));
    }
    pieces.push(Bytes::from(format!("\r\n--{boundary}--\r\n")));
    let length: usize = pieces.iter().map(Bytes::len).sum();
    head.set_status(StatusCode::PARTIAL_CONTENT)?;
    head.insert_header(header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"))?;
    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
    Ok(pieces)
}

async fn send(session: &mut Session, ctx: &mut Ctx, mut head: ResponseHeader, pieces: Vec<Bytes>) -> Result<u64> {
    ctx.give_cookie(&mut head)?;
    ctx.finish_response_head(session, &mut head);
    http10::frame(session, &head, ctx);
    if ctx.must_close() {
        session.set_keepalive(None);
    }
    let bodyless = pieces.iter().all(Bytes::is_empty);
    session.write_response_header(Box::new(head), bodyless).await?;
    if bodyless {
        session.as_downstream_mut().finish_body().await?;
        return Ok(0);
    }
    let mut sent = 0_u64;
    let last = pieces.len().saturating_sub(1);
    for (at, piece) in pieces.into_iter().enumerate() {
        sent = sent.saturating_add(u64::try_from(piece.len()).unwrap_or(0));
        session.write_response_body(Some(piece), at == last).await?;
    }
    Ok(sent)
}

/// Answers with what a fetch is bringing in.
pub async fn stream(session: &mut Session, ctx: &mut Ctx, of: &Head, mut reader: Reader, said: Status) -> Result<()> {
    let mut head = of.header.clone();
    for (name, value) in of.own.iter().filter(|_| !said.collapsed) {
        head.append_header(name.clone(), value.clone())?;
    }
    let request = session.req_header();
    let status = head.status;
    let to_head = request.method == Method::HEAD;
    let stored = of.outcome.as_ref().ok().filter(|stored| stored.part.is_none());
    if let Ok(stored) = &of.outcome
        && (stored.aged || said.collapsed)
    {
        // What another cache had is as old as it said, and older by the way here; what was fetched for another is not new either.
        head.insert_header(header::AGE, HeaderValue::from(stored.terms.initial_age.as_secs()))?;
    }
    if stored.is_some() && status == StatusCode::OK && conditional::not_modified(&request.headers, &head.headers) {
        said.write(&mut head);
        drop(reader);
        not_modified(session, ctx, head).await?;
        return Ok(());
    }
    let mut window = (0, u64::MAX);
    if stored.is_some()
        && status == StatusCode::OK
        && request.method == Method::GET
        && let (Some(range), Some(length)) = (request.headers.get(header::RANGE), of.length)
        && conditional::range_applies(&request.headers, &head.headers)
        && let Wanted::One(start, end) = range::wanted(range, length)
    {
        part(&mut head, start, end, length)?;
        window = (start, end);
    }
    said.write(&mut head);
    let mut encoder = None;
    if let Some(compression) = ctx.compression().filter(|_| window == (0, u64::MAX)) {
        let coding = compression.choose(&session.req_header().method, &session.req_header().headers, &mut head);
        encoder = coding.filter(|_| of.length != Some(0)).and_then(|coding| compress::begin(&mut head, coding));
    }
    let bodyless = to_head || matches!(status.as_u16(), 204 | 304) || of.length == Some(0);
    if !bodyless && !head.headers.contains_key(header::CONTENT_LENGTH) {
        head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    } else {
        head.remove_header(&header::TRANSFER_ENCODING);
    }
    head.set_version(Version::HTTP_11);
    ctx.give_cookie(&mut head)?;
    ctx.finish_response_head(session, &mut head);
    http10::frame(session, &head, ctx);
    if ctx.must_close() {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(head), bodyless).await?;
    if bodyless {
        session.as_downstream_mut().finish_body().await?;
        return Ok(());
    }
    let mut at = 0_u64;
    loop {
        ctx.check_deadline()?;
        let Some(chunk) = next(session, &mut reader).await? else { break };
        let end = at.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
        let chunk = cut(chunk, at, window);
        at = end;
        if !chunk.is_empty() {
            let mut chunk = Some(chunk);
            if let Some(encoder) = &mut encoder {
                compress::piece(encoder, &mut chunk, false)?;
            }
            session.write_response_body(chunk, false).await?;
        }
        if at >= window.1 {
            break;
        }
    }
    if let Some(encoder) = &mut encoder {
        let mut last = None;
        compress::piece(encoder, &mut last, true)?;
        session.write_response_body(last, false).await?;
    }
    match reader.trailers() {
        Some(trailers) if session.as_downstream().is_http2() => trail(session, trailers).await,
        trailers => {
            if let Some(trailers) = trailers {
                trailers::give(session, &trailers, ctx);
            }
            session.write_response_body(None, true).await
        }
    }
}

async fn trail(session: &mut Session, trailers: HeaderMap) -> Result<()> {
    session
        .as_downstream_mut()
        .response_duplex_vec(vec![pingora::protocols::http::HttpTask::Trailer(Some(Box::new(trailers)))])
        .await?;
    Ok(())
}

/// The next bytes. While there are none the client is listened to: that sends it what it has not been sent yet, and tells when
/// it is gone.
async fn next(session: &mut Session, reader: &mut Reader) -> Result<Option<Bytes>> {
    let read = tokio::select! {
        biased;
        read = reader.next() => read,
        heard = session.as_downstream_mut().read_body_or_idle(true) => {
            heard.map_err(|e| e.into_down())?;
            reader.next().await
        }
    };
    read.map_err(|Broken| broken())
}

/// What of a chunk that begins at `at` lies within the window.
fn cut(chunk: Bytes, at: u64, window: (u64, u64)) -> Bytes {
    let length = u64::try_from(chunk.len()).unwrap_or(0);
    let place = |edge: u64| usize::try_from(edge.saturating_sub(at).min(length)).unwrap_or(0);
    let (first, last) = (place(window.0), place(window.1));
    if first >= last { Bytes::new() } else { chunk.slice(first..last) }
}

/// Too late for another answer: the connection ends within this one, so that the client can tell.
fn broken() -> Box<Error> {
    Error::explain(ErrorType::ReadError, "the upstream's answer ended before its end").into_up()
}
