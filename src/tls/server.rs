//! TLS of one listener, ready for handshakes.

use super::certificate;
use super::config::{CertificateConfig, ClientAuth, ListenerTlsConfig, TlsVersion};
use super::files::Files;
use super::resolver::Resolver;
use crate::request::TlsFacts;
use crate::state::StatePool;
use crate::value::Located;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a listener does handshakes with. A reload makes a new one; handshakes under way keep theirs.
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    pub handshake_timeout: Duration,
    pub max_handshakes: usize,
    pub certificates: Vec<CertificateFacts>,
}

/// One certificate as `/metrics` shows it.
#[derive(Debug, Clone)]
pub struct CertificateFacts {
    /// The path as written.
    pub path: String,
    pub not_after: SystemTime,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Tickets are encrypted with keys that outlive a reload, as long as what a ticket stands for stays the same.
struct Tickets(Arc<dyn ProducesTickets>);

/// What building needs besides the configuration.
pub struct ServerParts<'a> {
    pub listener: &'a str,
    pub state: &'a StatePool,
    /// Wall time: certificates are valid by it.
    pub now: SystemTime,
    /// Whether to offer HTTP/2.
    pub http2: bool,
}

impl ServerTls {
    /// Reads the files and builds, or reports everything that is wrong.
    pub fn build(config: &ListenerTlsConfig, parts: &ServerParts<'_>, files: &mut Files<'_>) -> Option<Arc<ServerTls>> {
        let provider = super::provider();
        let mut resolver = Resolver::default();
        let mut facts = Vec::new();
        let mut whole = !config.certificates.is_empty();
        for pair in config.certificates.iter() {
            match certified(pair, parts.now, provider, files) {
                Some((key, leaf)) => {
                    resolver.add(&leaf.names, &Arc::new(key), pair.default);
                    facts.push(CertificateFacts { path: pair.cert.display().to_string(), not_after: leaf.not_after });
                }
                None => whole = false,
            }
        }
        let clients = match &config.client_ca {
            Some(path) => Some(authorities(path, files)?),
            None => None,
        };
        if !whole {
            return None;
        }
        let versions: &[&rustls::SupportedProtocolVersion] = match config.min_version {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions);
        // It can only fail for a provider without cipher suites for these versions.
        let builder = builder.map_err(|error| files.error(None, format!("TLS cannot be set up: {error}"))).ok()?;
        let auth = config.client_auth.as_ref().map_or(ClientAuth::default(), |auth| auth.value);
        let builder = match &clients {
            Some((roots, _)) => builder.with_client_cert_verifier(verifier(roots, auth, config, files)?),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::new(resolver));
        server.alpn_protocols = if parts.http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        // A resumed session skips the client's certificate, so tickets must not outlive the rules that it was checked by.
        let rules = clients.as_ref().map(|(_, fingerprints)| (auth, fingerprints));
        let key = format!("tls tickets {} {rules:?}", parts.listener);
        let tickets = parts.state.try_get_or_create(&key, || rustls::crypto::aws_lc_rs::Ticketer::new().map(Tickets));
        match tickets {
            Ok(tickets) => server.ticketer = Arc::new(SharedTickets(tickets)),
            Err(error) => {
                files.error(None, format!("session tickets cannot be set up: {error}"));
                return None;
            }
        }
        Some(Arc::new(ServerTls {
            config: Arc::new(server),
            handshake_timeout: config.handshake_timeout.get(),
            max_handshakes: usize::try_from(config.max_handshakes.value).unwrap_or(usize::MAX),
            certificates: facts,
        }))
    }
}

/// Holds the pool's entry for as long as a config uses it.
struct SharedTickets(Arc<Tickets>);

impl std::fmt::Debug for SharedTickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedTickets")
    }
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        self.0.0.enabled()
    }
    fn lifetime(&self) -> u32 {
        self.0.0.lifetime()
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.0.encrypt(plain)
    }
    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.0.decrypt(cipher)
    }
}

fn certified(
    pair: &Located<CertificateConfig>,
    now: SystemTime,
    provider: &CryptoProvider,
    files: &mut Files<'_>,
) -> Option<(CertifiedKey, certificate::Leaf)> {
    let (chain, key) = (files.certificates(&pair.cert), files.key(&pair.key));
    let ocsp = pair.ocsp.as_ref().map(|path| files.ocsp(path));
    let (chain, key) = (chain?, key?);
    let shown = files.resolve(&pair.cert).display().to_string();
    let leaf = match chain.first().map(|leaf| certificate::leaf(leaf)) {
        Some(Ok(leaf)) => leaf,
        Some(Err(why)) => {
            files.error(pair.cert.span.clone(), format!("{shown} cannot be used: {why}"));
            return None;
        }
        None => return None,
    };
    if now >= leaf.not_after || now < leaf.not_before {
        let (word, at) = if now >= leaf.not_after { ("expired", leaf.not_after) } else { ("is not valid yet", leaf.not_before) };
        let since = httpdate::fmt_http_date(at);
        let found = files.d.error(pair.cert.span.clone(), format!("the certificate in {shown} {word}"));
        found.label(if word == "expired" { format!("since {since}") } else { format!("valid from {since}") });
        return None;
    }
    let mut certified = match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => certified,
        Err(rustls::Error::InconsistentKeys(_)) => {
            let found = files.d.error(pair.key.span.clone(), "this key does not belong to the certificate");
            if let Some(span) = pair.cert.span.clone() {
                found.related(span, "the certificate");
            }
            return None;
        }
        Err(error) => {
            files.error(pair.key.span.clone(), format!("the key cannot be used: {error}"));
            return None;
        }
    };
    if let Some(ocsp) = ocsp {
        certified.ocsp = Some(ocsp?);
    }
    Some((certified, leaf))
}

type Authorities = (Arc<RootCertStore>, Vec<String>);

/// The authorities of a file, and their fingerprints.
pub fn authorities(path: &Located<std::path::PathBuf>, files: &mut Files<'_>) -> Option<Authorities> {
    let list = files.certificates(path)?;
    let mut roots = RootCertStore::empty();
    let fingerprints = list.iter().map(|der| certificate::fingerprint(der)).collect();
    for certificate in list {
        if let Err(error) = roots.add(certificate) {
            files.error(path.span.clone(), format!("{} has a certificate that cannot be used: {error}", path.display()));
            return None;
        }
    }
    Some((Arc::new(roots), fingerprints))
}

fn verifier(
    roots: &Arc<RootCertStore>,
    auth: ClientAuth,
    config: &ListenerTlsConfig,
    files: &mut Files<'_>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(super::provider()));
    let builder = match auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    match builder.build() {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            let span = config.client_ca.as_ref().and_then(|path| path.span.clone());
            files.error(span, format!("these authorities cannot be used: {error}"));
            None
        }
    }
}

/// What a handshake has settled.
pub fn facts(session: &ServerConnection) -> TlsFacts {
    let client = session.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    TlsFacts {
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown"),
        server_name: session.server_name().map(Into::into),
        http2: session.alpn_protocol() == Some(b"h2"),
        resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        client: client.and_then(|der| certificate::client(der)),
    }
}
