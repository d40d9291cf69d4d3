//! Rejections for gRPC calls: a client library reads a status from `grpc-status`, and only from a 200
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, "Trailers-Only").

use crate::rejection::Rejection;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use std::time::Duration;

pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Which rejection it is. Not part of gRPC; clients see it as metadata.
const CODE: HeaderName = HeaderName::from_static("x-gatewright-code");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
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
        head.insert_header(DETAILS, details(status(rejection.code.status), rejection.code.title, wait))?;
    }
    Ok(head)
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo` (google/rpc/error_details.proto), which client libraries know how to read:
/// Protocol Buffers in base64 without padding, as binary metadata is sent.
fn details(code: u16, message: &str, wait: Duration) -> String {
    let mut delay = Vec::with_capacity(16);
    number(1, wait.as_secs(), &mut delay);
    number(2, wait.subsec_nanos().into(), &mut delay);
    let mut retry_info = Vec::with_capacity(24);
    bytes(1, &delay, &mut retry_info);
    let mut any = Vec::with_capacity(80);
    bytes(1, RETRY_INFO.as_bytes(), &mut any);
    bytes(2, &retry_info, &mut any);
    let mut whole = Vec::with_capacity(160);
    number(1, code.into(), &mut whole);
    bytes(2, message.as_bytes(), &mut whole);
    bytes(3, &any, &mut whole);
    STANDARD_NO_PAD.encode(whole)
}

/// A field of wire type 0; one that is zero is left out.
fn number(field: u8, value: u64, out: &mut Vec<u8>) {
    if value > 0 {
        out.push(field << 3);
        varint(value, out);
    }
}

/// A field of wire type 2.
fn bytes(field: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(u64::try_from(value.len()).unwrap_or_default(), out);
    out.extend_from_slice(value);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
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

    /// Code 8, message "m" and a delay of 300.5 s, encoded by hand.
    #[test]
    fn retry_info_is_encoded_as_its_definition_says() {
        let details = STANDARD_NO_PAD.decode(details(8, "m", Duration::from_millis(300_500))).unwrap();
        let mut wanted = vec![0x08, 0x08, 0x12, 0x01, b'm', 0x1a, 0x37, 0x0a, 0x28];
        wanted.extend_from_slice(RETRY_INFO.as_bytes());
        wanted.extend_from_slice(&[0x12, 0x0b, 0x0a, 0x09, 0x08, 0xac, 0x02, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01]);
        assert_eq!(details, wanted);
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
