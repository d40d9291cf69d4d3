//! Rejections for gRPC calls: a client library reads a status from `grpc-status`, and only from a 200
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, "Trailers-Only").

use crate::rejection::Rejection;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora::Result;
use pingora::http::ResponseHeader;

pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Which rejection it is. Not part of gRPC; clients see it as metadata.
const CODE: HeaderName = HeaderName::from_static("x-gatewright-code");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_WEB: HeaderValue = HeaderValue::from_static("application/grpc-web");

/// `application/grpc`, with or without a suffix such as `+proto`. Not gRPC-Web, which has trailers in its body.
pub fn is_grpc(content_type: &HeaderValue) -> bool {
    let value = content_type.as_bytes();
    let prefix = b"application/grpc";
    let begins = value.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    begins && matches!(value.get(prefix.len()), None | Some(b'+' | b';' | b' '))
}

/// The answer: a header, and nothing after it.
pub fn trailers_only(rejection: &Rejection, web: bool) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(StatusCode::OK, Some(8))?;
    // Clients of gRPC-Web read a status from the header as well, when there is no body.
    head.insert_header(header::CONTENT_TYPE, if web { GRPC_WEB } else { GRPC })?;
    head.insert_header(STATUS, HeaderValue::from(status(rejection.code.status)))?;
    // Titles are ASCII without `%`, so that they need no percent-encoding.
    head.insert_header(MESSAGE, HeaderValue::from_static(rejection.code.title))?;
    head.insert_header(CODE, HeaderValue::from_static(rejection.code.code))?;
    if let Some(wait) = rejection.retry_after {
        head.insert_header(header::RETRY_AFTER, HeaderValue::from(super::whole_seconds(wait)))?;
    }
    Ok(head)
}

/// The gRPC status of a rejection. gRPC's own table (`http-grpc-status-mapping.md`) is for proxies that know nothing of gRPC;
/// where a rejection says more than that table can, the status does.
pub const fn status(http: u16) -> u16 {
    match http {
        // INVALID_ARGUMENT
        400 | 411 | 414 | 415 | 417 | 422 => 3,
        // UNAUTHENTICATED
        401 => 16,
        // PERMISSION_DENIED
        402 | 403 | 451 => 7,
        // UNIMPLEMENTED
        404 | 405 | 501 => 12,
        // DEADLINE_EXCEEDED
        408 | 504 => 4,
        // ABORTED
        409 => 10,
        // FAILED_PRECONDITION
        412 | 428 => 9,
        // RESOURCE_EXHAUSTED
        413 | 429 | 431 => 8,
        // UNAVAILABLE: worth another try
        502 | 503 => 14,
        // INTERNAL
        500 | 505 | 508 => 13,
        // UNKNOWN
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection;

    #[test]
    fn every_rejection_has_a_status_and_a_message_without_escapes() {
        for code in rejection::ALL {
            let head = trailers_only(&Rejection::new(code), false).unwrap();
            assert_eq!(head.status, 200);
            let status: u16 = head.headers["grpc-status"].to_str().unwrap().parse().unwrap();
            assert!((1..=16).contains(&status), "{}", code.code);
            assert!(code.title.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'%'), "{}", code.title);
            assert_eq!(head.headers["x-gatewright-code"], code.code);
        }
        assert_eq!(status(429), 8);
        assert_eq!(status(599), 2);
    }

    #[test]
    fn only_grpc_is_grpc() {
        for (value, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(&HeaderValue::from_static(value)), is, "{value}");
        }
    }
}
