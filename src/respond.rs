//! The only file that writes an answer that the gateway makes itself.

use bytes::Bytes;
use http::HeaderMap;

/// An answer made by a filter: `respond`, `redirect`, or a custom one.
#[derive(Debug, Clone)]
pub struct LocalResponse {
    pub status: http::StatusCode,
    /// Without `content-length`, which follows from the body.
    pub headers: HeaderMap,
    pub body: Bytes,
}
