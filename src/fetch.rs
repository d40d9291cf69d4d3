//! One request over HTTP/1.1 on a connection of its own, with everything about it bounded: key sets, registries, the admin listener,
//! the service behind `forward_auth`.
//!
//! Redirects are not followed: the operator named the place to ask, not whoever answers there.

use bytes::Bytes;
use http::{Request, response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The longest response head, in bytes.
pub const HEAD_MAX: usize = 64 << 10;

/// A URL that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub https: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// As sent in `Host`.
    pub authority: String,
    /// Path and query.
    pub target: String,
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
pub fn tls(ca: Option<&[u8]>) -> Result<TlsConnector, String> {
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
    let builder = ClientConfig::builder_with_provider(Arc::clone(crate::tls::provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
}

/// A stream of bytes, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens a connection, and does the handshake where there is one. The error is for the log.
pub async fn connect(at: &Endpoint, tls: Option<&TlsConnector>) -> Result<Box<dyn Stream>, String> {
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

/// What came back.
pub struct Answer {
    pub head: response::Parts,
    /// The whole body, or why it is not there. What the head says may be enough.
    pub body: Result<Bytes, String>,
}

/// Asks once; the body of the answer has at most `body_max` bytes. The caller bounds the time: dropping the future closes the
/// connection. The error is for the log.
pub async fn exchange<S: Stream + 'static>(stream: S, request: Request<Empty<Bytes>>, body_max: usize) -> Result<Answer, String> {
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| format!("the answer is not HTTP: {e}"))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, body_max).collect().await;
        Ok(Answer { head, body: body.map(|body| body.to_bytes()).map_err(|e| format!("the body cannot be read: {e}")) })
    };
    beside(talk, connection).await
}

/// What comes of talking over a connection of hyper. It is polled beside the talk and not spawned, so that dropping this future
/// closes it.
pub async fn beside<T>(talk: impl Future<Output = T>, connection: impl Future) -> T {
    tokio::pin!(talk, connection);
    tokio::select! {
        answer = &mut talk => answer,
        _ = &mut connection => talk.await,
    }
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
    fn a_trust_store_needs_a_certificate() {
        assert!(tls(Some(b"")).is_err());
        assert!(tls(Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).is_err());
    }

    /// One that only aws-lc-rs has tells which library it is: ring knows no P-521.
    #[test]
    fn its_cryptography_is_that_of_the_process() {
        use tokio_rustls::rustls::SignatureScheme;
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let connector = tls(Some(own.cert.pem().as_bytes())).unwrap();
        let schemes = connector.config().crypto_provider().signature_verification_algorithms.supported_schemes();
        assert!(schemes.contains(&SignatureScheme::ECDSA_NISTP521_SHA512), "{schemes:?}");
        assert!(Arc::ptr_eq(connector.config().crypto_provider(), crate::tls::provider()));
    }
}
