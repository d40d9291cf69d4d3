//! How long a request may take, as the route and the client say it, and as the upstream is told.
//!
//! There is one deadline for a request and all its attempts. The client can only shorten it, and only where its word counts
//! (`timeouts.client` of the route). What is left of it goes on with every attempt, so that the upstream need not work on
//! what nobody waits for any more.

use super::Ctx;
use crate::config::ClientDeadline;
use crate::snapshot::Route;
use arrayvec::ArrayString;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::http::RequestHeader;
use std::fmt::Write as _;
use std::time::Duration;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The longest that a client can ask for; more is the same as not asking.
const MOST: Duration = Duration::from_secs(86_400);

/// Shortens the deadline to what the client says.
pub fn of_client(headers: &HeaderMap, route: &Route, ctx: &mut Ctx) {
    let counts = match route.deadline.client {
        ClientDeadline::Ignore => false,
        ClientDeadline::Trusted => ctx.request.peer_trusted,
        ClientDeadline::Any => true,
    };
    if !counts {
        return;
    }
    let named = route.deadline.header.as_ref().and_then(|name| milliseconds(headers.get(name)?));
    let grpc = headers.get(GRPC_TIMEOUT).and_then(parse_grpc);
    let Some(wait) = named.into_iter().chain(grpc).min().filter(|wait| *wait < MOST) else { return };
    let Some(deadline) = ctx.request.started.checked_add(wait) else { return };
    if ctx.request.deadline.is_none_or(|known| deadline < known) {
        ctx.set_deadline(Some(deadline));
        ctx.attempt.guarded.deadline_of_client = true;
    }
}

/// Tells the upstream what is left.
pub fn forward(asked: &RequestHeader, head: &mut RequestHeader, ctx: &Ctx) {
    let Some(deadline) = ctx.request.deadline else { return };
    let name = ctx.route.as_ref().and_then(|route| route.deadline.header.as_ref());
    // gRPC is HTTP/2 only, so that other requests need not be looked at, but for gRPC-Web.
    let grpc = (asked.version == Version::HTTP_2 || ctx.grpc_web.is_some())
        && asked.headers.get(header::CONTENT_TYPE).is_some_and(is_grpc);
    if name.is_none() && !grpc {
        return;
    }
    let left = deadline.saturating_duration_since(ctx.gateway.clock().now());
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    if let Some(name) = name {
        let _ = head.insert_header(name.clone(), HeaderValue::from(millis));
    }
    if grpc {
        // Eight digits are the most that the protocol allows, which is a day of milliseconds.
        let _ = head.insert_header(GRPC_TIMEOUT, grpc_millis(millis.min(99_999_999)));
    }
}

/// The value of `grpc-timeout`, of at most nine characters.
fn grpc_millis(millis: u64) -> HeaderValue {
    let mut text = ArrayString::<16>::new();
    let _ = write!(text, "{millis}m");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1m"))
}

fn is_grpc(value: &HeaderValue) -> bool {
    value.as_bytes().starts_with(b"application/grpc")
}

fn milliseconds(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok().map(Duration::from_millis)).flatten()
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: at most eight digits, and H, M, S, m, u or n.
fn parse_grpc(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_has_them() {
        let parse = |text: &str| parse_grpc(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for wrong in ["", "5", "S", "-1S", "123456789S", "1s", "1 S", "+1S", "1ä"] {
            let value = HeaderValue::from_bytes(wrong.as_bytes()).unwrap();
            assert_eq!(parse_grpc(&value), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_left_is_written_in_milliseconds() {
        assert_eq!(grpc_millis(99_999_999), "99999999m");
        assert_eq!(milliseconds(&HeaderValue::from_static("1500")), Some(Duration::from_millis(1500)));
        for wrong in ["1.5", "-1", "1s", "+1"] {
            assert_eq!(milliseconds(&HeaderValue::from_str(wrong).unwrap()), None, "{wrong}");
        }
    }
}
