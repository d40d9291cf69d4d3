//! One GET of a key set over HTTP/1.1, with everything about it bounded.
//!
//! A connection of its own for each attempt: they are minutes apart. Redirects are not followed, because the operator named the
//! place that keys come from, not whoever answers there.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// The most bytes of a key set.
pub(super) const BODY_MAX: usize = 256 << 10;
/// The longest response head, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Where a key set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub https: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// As sent in `Host`.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

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

impl Endpoint {
    /// The error is a sentence.
    pub fn parse(url: &str) -> Result<Self, String> {
        let why = |why: &str| format!("`{url}` is not a URL that can be asked: {why}");
        let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| why(&e.to_string()))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(why("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| why("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(why("it must not have a user or password"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(why("it has no host"));
        }
        Ok(Endpoint {
            https,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        })
    }

    /// Whether it does not leave this machine.
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.authority, self.target)
    }
}

/// TLS that trusts the certificates of `ca`, a PEM file, or those of the system. The error is a sentence.
pub(crate) fn tls(ca: Option<&[u8]>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|e| format!("it is not PEM: {e}"))?;
                roots.add(certificate).map_err(|e| format!("it has a certificate that cannot be trusted: {e}"))?;
            }
            if roots.is_empty() {
                return Err("it has no certificate".into());
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs().map_err(|e| format!("cannot be read: {e}"))?;
            roots.add_parsable_certificates(system);
            if roots.is_empty() {
                return Err("the system has none".into());
            }
        }
    }
    // The provider is named, because with two of them compiled in rustls has no default.
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
}

/// Fetches once. Dropping the future closes the connection. The error is for the log.
pub(super) async fn fetch(at: &Endpoint, tls: Option<&TlsConnector>, etag: Option<&HeaderValue>) -> Result<Fetched, String> {
    exchange(connect(at, tls).await?, at, etag).await
}

/// A stream of bytes, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens a connection, and does the handshake where there is one. The error is for the log.
pub(crate) async fn connect(at: &Endpoint, tls: Option<&TlsConnector>) -> Result<Box<dyn Stream>, String> {
    let connected = TcpStream::connect((at.host.as_str(), at.port)).await;
    let stream = connected.map_err(|e| format!("cannot connect: {e}"))?;
    match (at.https, tls) {
        (false, _) => Ok(Box::new(stream)),
        (true, Some(tls)) => {
            let name = ServerName::try_from(at.host.clone()).map_err(|e| e.to_string())?;
            Ok(Box::new(tls.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?))
        }
        (true, None) => Err("TLS is not set up".into()),
    }
}

async fn exchange(stream: Box<dyn Stream>, at: &Endpoint, etag: Option<&HeaderValue>) -> Result<Fetched, String> {
    let mut request = http::Request::get(&at.target)
        .header(header::HOST, &at.authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION"), " (key set)"))
        .header(header::CONNECTION, "close");
    if let Some(etag) = etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| format!("the answer is not HTTP: {e}"))?;
        let (head, body) = response.into_parts();
        let max_age = max_age(&head.headers);
        match head.status {
            StatusCode::NOT_MODIFIED if etag.is_some() => Ok(Fetched::Unchanged { max_age }),
            StatusCode::OK => {
                let body = Limited::new(body, BODY_MAX).collect().await.map_err(|e| format!("the body cannot be read: {e}"))?;
                Ok(Fetched::Body { bytes: body.to_bytes(), etag: head.headers.get(header::ETAG).cloned(), max_age })
            }
            status => Err(format!("the answer is {}", status.as_u16())),
        }
    };
    // Polled side by side and not spawned, so that dropping this future closes the connection.
    tokio::pin!(talk, connection);
    tokio::select! {
        fetched = &mut talk => fetched,
        _ = &mut connection => talk.await,
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
    fn a_url_names_a_host_and_nothing_secret() {
        let endpoint = Endpoint::parse("https://id.example.com/a/jwks.json?x=1").unwrap();
        assert_eq!(
            (endpoint.host.as_str(), endpoint.port, endpoint.target.as_str()),
            ("id.example.com", 443, "/a/jwks.json?x=1")
        );
        assert_eq!(endpoint.to_string(), "https://id.example.com/a/jwks.json?x=1");
        let six = Endpoint::parse("http://[::1]:8080").unwrap();
        assert_eq!((six.host.as_str(), six.port, six.target.as_str(), six.is_local()), ("::1", 8080, "/", true));
        assert!(!Endpoint::parse("http://10.0.0.1/").unwrap().is_local());
        for wrong in
            ["", "id.example.com", "file:///etc/passwd", "ftp://a/", "https://", "https://a:b@c/", "/jwks", "https://a b/"]
        {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

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

    #[test]
    fn a_trust_store_needs_a_certificate() {
        assert!(tls(Some(b"")).is_err());
        assert!(tls(Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).is_err());
    }
}
