//! The `Connection` header: what it says about this connection, and what it must not have removed.
//!
//! A proxy removes every header that `Connection` names (RFC 9110 §7.6.1). A client that names one on which a decision
//! rests, such as the header in which the gateway tells the service who calls, has it taken away between the decision and
//! the service. No honest client names such a header, so doing it is refused. Other names are removed, as the RFC says.

use super::Malformed;
use crate::http1::line::{is_token, trim};

/// What the options of one `Connection` line say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

/// Names that `Connection` may not have, in lower case.
pub const PROTECTED: &[&str] = &[
    "age",
    "api-key",
    "apikey",
    "authorization",
    "baggage",
    "cache-control",
    "cdn-loop",
    "cookie",
    "cookie2",
    "date",
    "early-data",
    "expect",
    "forwarded",
    "from",
    "host",
    "idempotency-key",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "range",
    "referer",
    "signature",
    "signature-input",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "true-client-ip",
    "user-agent",
    "vary",
    "via",
];

/// Beginnings of names that `Connection` may not have, in lower case.
pub const PROTECTED_PREFIXES: &[&str] = &[
    "accept",
    "access-control-",
    "cf-",
    "content-",
    "grpc-",
    "if-",
    "proxy-",
    "sec-",
    "set-cookie",
    "x-api-",
    "x-auth",
    "x-client-",
    "x-consumer-",
    "x-credential-",
    "x-forwarded-",
    "x-identity",
    "x-original-",
    "x-real-",
    "x-remote-",
    "x-request-id",
    "x-role",
    "x-token",
    "x-user",
];

/// Reads one `Connection` line.
///
/// # Errors
/// [`Malformed::Connection`] for an option that is not a token, [`Malformed::ConnectionNominates`] for a protected name.
/// Empty list elements are skipped (RFC 9110 §5.6.1.2).
pub fn check(value: &[u8]) -> Result<Options, Malformed> {
    let mut options = Options::default();
    for option in value.split(|&byte| byte == b',') {
        let option = trim(option);
        match option.len() {
            0 => {}
            5 if option.eq_ignore_ascii_case(b"close") => options.close = true,
            7 if option.eq_ignore_ascii_case(b"upgrade") => options.upgrade = true,
            10 if option.eq_ignore_ascii_case(b"keep-alive") => options.keep_alive = true,
            _ if !is_token(option) => return Err(Malformed::Connection),
            _ if is_protected(option) => return Err(Malformed::ConnectionNominates),
            _ => {}
        }
    }
    Ok(options)
}

fn is_protected(option: &[u8]) -> bool {
    let begins = |prefix: &&str| option.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()));
    PROTECTED.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes())) || PROTECTED_PREFIXES.iter().any(begins)
}
