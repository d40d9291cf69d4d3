//! The only file that writes an answer that the gateway makes itself.
//!
//! A rejection becomes an RFC 9457 problem document with a stable `code` and the request id as `instance`, and nothing
//! about our insides. The connection stays open when that is safe: when the request's body was read, or is short enough
//! to be read and dropped. Otherwise it closes, because what follows on it could not be told from the rest of that body.

mod grpc;

use crate::proxy::{Ctx, http10};
use crate::rejection::{LocalResponse, Rejection};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::fmt::Write as _;
use std::time::Duration;

/// An unread request body up to this long is read and dropped, to keep the connection. A longer one costs more to read
/// than a new connection costs to make.
const DRAIN_BYTES: u64 = 64 << 10;
/// How long the rest of such a body may take.
const DRAIN_TIME: Duration = Duration::from_secs(1);

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Answers with a rejection. Nothing may have been written for this request before.
pub async fn reject(session: &mut Session, ctx: &mut Ctx, rejection: Rejection) -> Result<()> {
    ctx.request.rejected = Some(rejection.code);
    if session.req_header().headers.get(header::CONTENT_TYPE).is_some_and(grpc::is_grpc) {
        let head = grpc::trailers_only(&rejection, ctx.is_grpc_web())?;
        let close = rejection.close;
        ctx.rejection = Some(rejection);
        return write(session, ctx, head, Bytes::new(), close).await;
    }
    let body = problem(&rejection, &ctx.request.id);
    let mut head = ResponseHeader::build(status_of(&rejection), Some(8))?;
    head.insert_header(header::CONTENT_TYPE, PROBLEM_JSON)?;
    // An error is about this moment; a cache between us and the client must not serve it later.
    head.insert_header(header::CACHE_CONTROL, NO_STORE)?;
    if let Some(wait) = rejection.retry_after {
        head.insert_header(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)))?;
    }
    if let Some(allow) = &rejection.allow {
        head.insert_header(header::ALLOW, allow.clone())?;
    }
    if let Some(challenge) = &rejection.www_authenticate {
        head.insert_header(header::WWW_AUTHENTICATE, challenge.clone())?;
    }
    let close = rejection.close;
    ctx.rejection = Some(rejection);
    write(session, ctx, head, body, close).await
}

/// Answers with what a filter made.
pub async fn local(session: &mut Session, ctx: &mut Ctx, response: LocalResponse) -> Result<()> {
    let mut head = ResponseHeader::build(response.status, Some(response.headers.len().saturating_add(4)))?;
    for (name, value) in &response.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    write(session, ctx, head, response.body, false).await
}

async fn write(session: &mut Session, ctx: &mut Ctx, mut head: ResponseHeader, body: Bytes, close: bool) -> Result<()> {
    let bodyless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    // A gRPC answer of trailers only is all header; over HTTP/2 a length would promise a message. Over HTTP/1 it says that there is
    // none.
    let all_header = head.headers.contains_key(grpc::STATUS) && session.as_downstream().is_http2();
    if !bodyless && !all_header {
        head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    }
    ctx.tell_cache_status(&mut head);
    ctx.finish_response_head(session, &mut head);
    http10::frame(session, &head, ctx);
    if close || ctx.must_close() {
        session.set_keepalive(None);
    } else if !session.is_body_done() {
        settle_body(session);
    }
    let headless = bodyless || session.req_header().method == Method::HEAD || body.is_empty();
    session.write_response_header(Box::new(head), headless).await?;
    if !headless {
        session.write_response_body(Some(body), true).await?;
    } else {
        session.as_downstream_mut().finish_body().await?;
    }
    Ok(())
}

/// Decides between draining an unread request body and closing.
fn settle_body(session: &mut Session) {
    let headers = &session.req_header().headers;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // A client that expects `100 Continue` has not begun to send, and after a final answer may never do so.
    let short = length.is_some_and(|length| length <= DRAIN_BYTES) && !headers.contains_key(header::EXPECT);
    if short {
        session.set_close_on_response_before_downstream_finish(false);
        session.set_total_drain_timeout(Some(DRAIN_TIME));
    } else {
        session.set_keepalive(None);
    }
}

/// The whole answer as bytes, for requests that never became one: there is no session to write through, and the
/// connection is always closed.
pub fn raw(rejection: &Rejection, id: &str) -> Vec<u8> {
    let body = problem(rejection, id);
    let status = status_of(rejection);
    let mut out = String::with_capacity(body.len().saturating_add(256));
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {} {}\r\ndate: {date}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         x-request-id: {id}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error"),
        body.len(),
    );
    let mut out = out.into_bytes();
    out.extend_from_slice(&body);
    out
}

/// RFC 9457. The id holds only characters that need no escaping (see `forwarded::request_id`), titles and codes are ours.
fn problem(rejection: &Rejection, id: &str) -> Bytes {
    let code = rejection.code;
    let mut body = BytesMut::with_capacity(256);
    body.put_slice(br#"{"type":"urn:gatewright:problem:"#);
    body.put_slice(code.code.as_bytes());
    body.put_slice(br#"","title":""#);
    body.put_slice(code.title.as_bytes());
    // `write_str` to a BytesMut grows it and cannot fail.
    let _ = write!(body, r#"","status":{},"code":"{}","instance":"{id}""#, code.status, code.code);
    if let Some(limit) = &rejection.limit {
        let _ = write!(body, r#","limit":"{limit}""#);
    }
    body.put_slice(b"}\n");
    body.freeze()
}

fn status_of(rejection: &Rejection) -> StatusCode {
    StatusCode::from_u16(rejection.code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Rounded up: a client that waits exactly so long is not too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection;

    #[test]
    fn every_code_makes_a_valid_problem_document() {
        for code in rejection::ALL {
            let rejection = Rejection::new(code);
            let body: serde_json::Value = serde_json::from_slice(&problem(&rejection, "0198-x")).unwrap();
            assert_eq!(body["code"], code.code);
            assert_eq!(body["status"], code.status);
            assert_eq!(body["title"], code.title);
            assert_eq!(body["instance"], "0198-x");
            let raw = String::from_utf8(raw(&rejection, "id")).unwrap();
            let (head, body) = raw.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        }
    }

    #[test]
    fn retry_after_is_never_too_early() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2_001)), 3);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }
}
