//! TLS to the endpoints of an upstream: for Pingora's connector, and for our own health checks.

use super::certificate;
use super::config::UpstreamTlsConfig;
use super::files::Files;
use crate::value::Located;
use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How an upstream is spoken to over TLS.
pub struct ClientTls {
    pub sni: String,
    /// `None`: the authorities of the system.
    pub ca: Option<Arc<CaType>>,
    pub cert: Option<Arc<CertKey>>,
    pub insecure: bool,
    /// For connections that Pingora does not make, offering HTTP/1.1 or HTTP/2. Each remembers the sessions that it may resume.
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Stands for all of it. Two upstreams that differ in what they trust must not share connections, and Pingora's pool
    /// does not look at the authorities.
    pub identity: String,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The same if it trusts and shows the same.
impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for ClientTls {}

impl ClientTls {
    /// Reads the files and builds, or reports everything that is wrong.
    pub fn build(config: &UpstreamTlsConfig, files: &mut Files<'_>) -> Option<Arc<ClientTls>> {
        let insecure = config.insecure.as_ref().is_some_and(|insecure| insecure.value);
        let ca = match &config.ca {
            Some(path) => {
                // Checks that each of them can be used.
                let (roots, _) = super::server::authorities(path, files)?;
                Some((roots, readable(path, files)?))
            }
            None => None,
        };
        let own = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => Some((readable(cert, files)?, files.key(key)?)),
            _ => None,
        };
        let mut identity = format!("{} {insecure}", config.sni.value);
        for der in ca.iter().flat_map(|(_, list)| list).chain(own.iter().flat_map(|(chain, _)| chain)) {
            identity.push(' ');
            identity.push_str(&certificate::fingerprint(der));
        }
        let roots = match &ca {
            Some((roots, _)) => Arc::clone(roots),
            None => Arc::clone(system_roots()),
        };
        let provider = super::provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| files.error(None, format!("TLS cannot be set up: {error}"))).ok()?;
        let builder = builder.with_root_certificates(roots);
        let client = match &own {
            Some((chain, key)) => match builder.with_client_auth_cert(chain.clone(), key.clone_key()) {
                Ok(client) => Ok(client),
                Err(error) => Err(format!("this key cannot be used with the certificate: {error}")),
            },
            None => Ok(builder.with_no_client_auth()),
        };
        let mut client = match client {
            Ok(client) => client,
            Err(why) => {
                files.error(config.key.as_ref().and_then(|key| key.span.clone()), why);
                return None;
            }
        };
        if insecure {
            client.dangerous().set_certificate_verifier(Arc::new(AnyCertificate));
        }
        // The check of the configuration has reported what is no name.
        let name = ServerName::try_from(config.sni.value.clone()).ok()?;
        let offering = |protocol: &[u8]| {
            let mut config = client.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            // A clone would share what it remembers with the original, and sessions belong to their protocol.
            config.resumption = Resumption::default();
            Arc::new(config)
        };
        Some(Arc::new(ClientTls {
            http1: offering(b"http/1.1"),
            http2: offering(b"h2"),
            name,
            sni: config.sni.value.clone(),
            ca: ca.map(|(_, list)| list.iter().map(wrap).collect::<Vec<_>>().into()),
            cert: own.map(|(chain, key)| Arc::new(cert_key(&chain, &key))),
            insecure,
            identity,
        }))
    }
}

impl ClientTls {
    /// The handshake that requests use, its verification included. The caller bounds the time.
    pub async fn handshake(&self, stream: TcpStream, http2: bool) -> io::Result<TlsStream<TcpStream>> {
        let config = if http2 { &self.http2 } else { &self.http1 };
        TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), stream).await
    }
}

/// Certificates that [`wrap`] can take.
fn readable(path: &Located<PathBuf>, files: &mut Files<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let list = files.certificates(path)?;
    let wrong = list.iter().find_map(|der| certificate::leaf(der).err());
    match wrong {
        None => Some(list),
        Some(why) => {
            files.error(path.span.clone(), format!("{} cannot be used: {why}", path.display()));
            None
        }
    }
}

/// Pingora's own form of a certificate. `parse_x509` panics on what is none: only for what is [`readable`].
fn wrap(der: &CertificateDer<'static>) -> WrappedX509 {
    WrappedX509::new(der.to_vec(), parse_x509)
}

fn cert_key(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> CertKey {
    CertKey::new(chain.iter().map(|der| der.to_vec()).collect(), key.secret_der().to_vec())
}

/// The authorities that the system trusts, read once. Pingora reads them for itself as well.
fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        match rustls_native_certs::load_native_certs() {
            Ok(found) => {
                roots.add_parsable_certificates(found);
            }
            // Every verification then fails, which is said where it happens.
            Err(error) => log::warn!("the system's certificate authorities cannot be read: {error}"),
        }
        Arc::new(roots)
    })
}

/// `insecure = true`: any certificate will do, but its owner must have its key.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &super::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &super::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        super::provider().signature_verification_algorithms.supported_schemes()
    }
}
