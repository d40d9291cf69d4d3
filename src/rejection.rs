//! Every answer that the gateway makes in place of the upstream's: one table of status, stable code and title.
//!
//! A code is part of the public interface: clients and alerts match on it, so it never changes its meaning. The reference
//! page lists [`ALL`], and a test keeps the two equal. What is written to the client, and how, is `respond`'s business.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// One kind of rejection.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    pub status: u16,
    /// Stable, `snake_case`; the `code` member of the problem document, of the access log and of metrics.
    pub code: &'static str,
    /// One sentence for the caller: what happened and, where they can do something, what. Nothing about our insides.
    pub title: &'static str,
}

macro_rules! codes {
    ($($name:ident = $status:literal, $code:literal, $title:literal;)*) => {
        $(pub static $name: Code = Code { status: $status, code: $code, title: $title };)*
        /// All codes of this build, in the order of the table.
        pub static ALL: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    REQUEST_MALFORMED = 400, "request_malformed", "The request is not valid HTTP or is ambiguous";
    PATH_INVALID = 400, "path_invalid", "The request path is not in a form that can be read in one way only";
    HOST_INVALID = 400, "host_invalid", "The Host of the request is missing or invalid";
    CREDENTIAL_DUPLICATE = 400, "credential_duplicate", "The request has more than one credential where one is expected";
    DIGEST_MISMATCH = 400, "digest_mismatch", "The body of the request is not the one that its Content-Digest names";
    CREDENTIAL_MISSING = 401, "credential_missing", "This needs a credential and the request has none";
    CREDENTIAL_INVALID = 401, "credential_invalid", "The credential of the request is not valid";
    TOKEN_INVALID = 401, "token_invalid", "The token of the request is not valid here";
    TOKEN_EXPIRED = 401, "token_expired", "The token of the request has expired; get a new one";
    FORBIDDEN = 403, "forbidden", "The credential of the request does not permit this";
    ADDRESS_FORBIDDEN = 403, "address_forbidden", "Requests from this address are not permitted here";
    TIER_MISSING = 403, "tier_missing", "The limits here are those of a tier, and this request belongs to none";
    ROUTE_NOT_FOUND = 404, "route_not_found", "No route matches this request";
    METHOD_NOT_ALLOWED = 405, "method_not_allowed", "This path does not allow this method";
    REQUEST_TIMEOUT = 408, "request_timeout", "The request did not arrive in time";
    LENGTH_REQUIRED = 411, "length_required", "A signed request with a body needs a Content-Length";
    BODY_TOO_LARGE = 413, "body_too_large", "The request body is larger than this route allows";
    URI_TOO_LONG = 414, "uri_too_long", "The request target is longer than this listener allows";
    MISDIRECTED_REQUEST = 421, "misdirected_request", "This host wants a connection of its own: connect again, asking for its name";
    RATE_LIMITED = 429, "rate_limited", "Too many requests; try again when Retry-After says";
    CONCURRENCY_LIMITED = 429, "concurrency_limited", "Too many requests at the same time; try again when one of them is done";
    HEADERS_TOO_LARGE = 431, "headers_too_large", "The request header is larger than this listener allows";
    INTERNAL_ERROR = 500, "internal_error", "The gateway could not process this request";
    UPSTREAM_PROTOCOL_ERROR = 502, "upstream_protocol_error", "The service behind the gateway sent an invalid response";
    UPSTREAM_CONNECT_FAILED = 502, "upstream_connect_failed", "The service behind the gateway could not be reached";
    UPSTREAM_RESET = 502, "upstream_reset", "The service behind the gateway closed the connection before it answered";
    LIMIT_UNAVAILABLE = 503, "limit_unavailable", "Whether this request is within its limits cannot be told now";
    CIRCUIT_OPEN = 503, "circuit_open", "The service behind the gateway fails too often and is given a pause; try again when Retry-After says";
    UPSTREAM_OVERLOADED = 503, "upstream_overloaded", "The service behind the gateway has more to do than it can; try again later";
    UPSTREAM_UNAVAILABLE = 503, "upstream_unavailable", "No healthy endpoint can take this request";
    AUTHENTICATION_BUSY = 503, "authentication_busy", "Too many credentials are being checked at this moment; try again later";
    CREDENTIALS_UNAVAILABLE = 503, "credentials_unavailable", "Whether the credential is valid cannot be told at this moment; try again later";
    AUTHORIZATION_UNAVAILABLE = 503, "authorization_unavailable", "Whether the request is permitted cannot be told at this moment; try again later";
    KEYS_UNAVAILABLE = 503, "keys_unavailable", "The keys that tokens are verified with are not available at this moment; try again later";
    NOT_CACHED = 504, "not_cached", "The answer is not in the cache, and the request asks for nothing else";
    UPSTREAM_TIMEOUT = 504, "upstream_timeout", "The service behind the gateway did not answer in time";
    DEADLINE_EXCEEDED = 504, "deadline_exceeded", "The request took longer than this route allows";
    VERSION_NOT_SUPPORTED = 505, "version_not_supported", "This gateway speaks HTTP/1.0, HTTP/1.1 and HTTP/2";
    LOOP_DETECTED = 508, "loop_detected", "The request has passed through this gateway too many times";
}

/// A rejection of one request: its kind, and what is particular to this one. Small and without allocations.
#[derive(Debug, Clone)]
pub struct Rejection {
    pub code: &'static Code,
    /// Sent as `Retry-After`, in whole seconds, rounded up.
    pub retry_after: Option<Duration>,
    /// Sent as `Allow`.
    pub allow: Option<HeaderValue>,
    /// Sent as `WWW-Authenticate`: what a 401 asks for (RFC 9110 section 11.6.1), or what another answer says of a token (RFC 6750).
    pub www_authenticate: Option<HeaderValue>,
    /// The limit that was reached: the `limit` member of the problem document. Only characters that need no escape. A thin
    /// pointer, because rejections are returned by value from function to function.
    pub limit: Option<Arc<String>>,
    /// Close the connection afterwards: what follows on it cannot be trusted or is not worth reading.
    pub close: bool,
}

impl Rejection {
    pub const fn new(code: &'static Code) -> Self {
        Rejection { code, retry_after: None, allow: None, www_authenticate: None, limit: None, close: false }
    }

    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub fn allow(mut self, methods: HeaderValue) -> Self {
        self.allow = Some(methods);
        self
    }

    pub fn www_authenticate(mut self, challenge: HeaderValue) -> Self {
        self.www_authenticate = Some(challenge);
        self
    }

    pub fn limit(mut self, name: Arc<String>) -> Self {
        self.limit = Some(name);
        self
    }

    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }
}

impl From<&'static Code> for Rejection {
    fn from(code: &'static Code) -> Self {
        Rejection::new(code)
    }
}

/// An answer made by a filter that is no rejection: `respond`, `redirect`, or a custom one.
#[derive(Debug, Clone)]
pub struct LocalResponse {
    pub status: StatusCode,
    /// Without `content-length`, which follows from the body.
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_speak_snake_case() {
        let mut seen = std::collections::HashSet::new();
        for code in ALL {
            assert!(seen.insert(code.code), "{} stands twice", code.code);
            assert!(code.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", code.code);
            assert!((400..600).contains(&code.status) && !code.title.ends_with('.'), "{code:?}");
        }
    }
}
