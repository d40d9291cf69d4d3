//! One GET of a key set, and how long what it brings is fresh.
//!
//! A connection of its own for each attempt: they are minutes apart.

use crate::fetch::{self, Endpoint};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Empty;
use std::time::Duration;
use tokio_rustls::TlsConnector;

/// The most bytes of a key set.
pub(super) const BODY_MAX: usize = 256 << 10;

/// What came of an attempt that worked.
pub(super) enum Fetched {
    /// 304: what is known already still holds.
    Unchanged {
        max_age: Option<Duration>,
    },
    Body {
        bytes: Bytes,
        etag: Option<HeaderValue>,
        max_age: Option<Duration>,
    },
}

/// Fetches once. Dropping the future closes the connection. The error is for the log.
pub(super) async fn fetch(at: &Endpoint, tls: Option<&TlsConnector>, etag: Option<&HeaderValue>) -> Result<Fetched, String> {
    let stream = fetch::connect(at, tls).await?;
    let mut request = http::Request::get(&at.target)
        .header(header::HOST, &at.authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION"), " (key set)"))
        .header(header::CONNECTION, "close");
    if let Some(etag) = etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let fetch::Answer { head, body } = fetch::exchange(stream, request, BODY_MAX).await?;
    let max_age = max_age(&head.headers);
    match head.status {
        StatusCode::NOT_MODIFIED if etag.is_some() => Ok(Fetched::Unchanged { max_age }),
        StatusCode::OK => Ok(Fetched::Body { bytes: body?, etag: head.headers.get(header::ETAG).cloned(), max_age }),
        status => Err(format!("the answer is {}", status.as_u16())),
    }
}

/// How long an answer is fresh by its `Cache-Control` (RFC 9111 section 5.2.2); zero for `no-cache` and `no-store`.
fn max_age(headers: &http::HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(header::CACHE_CONTROL);
    let directives = lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    directives
        .filter_map(|directive| {
            let directive = directive.trim().to_ascii_lowercase();
            match directive.split_once('=') {
                Some(("max-age", seconds)) => seconds.trim_matches('"').parse().ok().map(Duration::from_secs),
                None if directive == "no-cache" || directive == "no-store" => Some(Duration::ZERO),
                _ => None,
            }
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control_says_how_long_an_answer_is_fresh() {
        let age = |lines: &[&'static str]| {
            let mut headers = http::HeaderMap::new();
            for line in lines {
                headers.append(header::CACHE_CONTROL, HeaderValue::from_static(line));
            }
            max_age(&headers).map(|age| age.as_secs())
        };
        assert_eq!(age(&[]), None);
        assert_eq!(age(&["public, Max-Age=60, must-revalidate"]), Some(60));
        assert_eq!(age(&["max-age=60", "no-cache"]), Some(0));
        assert_eq!(age(&["max-age=\"5\", s-maxage=1"]), Some(5));
        assert_eq!(age(&["max-age=-1", "private"]), None);
    }
}
