//! `Max-Forwards` (RFC 9110 §7.6.2): how many hops an OPTIONS or TRACE may still go.
//!
//! Who asks wants to know which of the gateways on the way answers, so that the one at which the count ends does so itself, after
//! its filters have let the request pass.

use crate::filter::Flow;
use crate::rejection::{self, LocalResponse, Rejection};
use bytes::Bytes;
use http::header::MAX_FORWARDS;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;

/// What this gateway would answer to instead of TRACE, which shows clients what proxies have added to their requests.
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Takes one hop, or answers if none is left. What is no number is for whoever understands it.
pub fn count_down(head: &mut RequestHeader) -> Result<Flow, Rejection> {
    if head.method != Method::OPTIONS && head.method != Method::TRACE {
        return Ok(Flow::Continue);
    }
    // There must be one line only; of several the least is what is safe.
    let Some(left) = head.headers.get_all(MAX_FORWARDS).iter().filter_map(hops).min() else { return Ok(Flow::Continue) };
    match left.checked_sub(1) {
        Some(left) => {
            let _ = head.insert_header(MAX_FORWARDS, HeaderValue::from(left));
            Ok(Flow::Continue)
        }
        None if head.method == Method::TRACE => Err(Rejection::new(&rejection::METHOD_NOT_ALLOWED).allow(ALLOWED)),
        None => {
            let answer = LocalResponse { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: Bytes::new() };
            Ok(Flow::Respond(Box::new(answer)))
        }
    }
}

/// More than can be told is more than there are hops.
fn hops(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_number_counts() {
        for (text, want) in [
            ("0", Some(0)),
            (" 12 ", Some(12)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("-1", None),
            ("1, 2", None),
            ("+3", None),
        ] {
            assert_eq!(hops(&HeaderValue::from_static(text)), want, "{text:?}");
        }
    }
}
