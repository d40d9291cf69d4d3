//! TLS of one listener, ready for handshakes.

use super::certificate;
use super::config::{CertificateConfig, ClientAuth, HostClientAuth, ListenerTlsConfig, TlsVersion};
use super::files::Files;
use super::hosts::{HostTls, Hosts};
use super::resolver::Resolver;
use super::tickets::Tickets;
use crate::clock::SharedClock;
use crate::request::TlsFacts;
use crate::state::StatePool;
use crate::value::Located;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a listener does handshakes with. A reload makes a new one; handshakes under way keep theirs.
pub struct ServerTls {
    /// For every host that has no rules of its own.
    pub own: HostTls,
    pub hosts: Option<Hosts>,
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

/// What building needs besides the configuration.
pub struct ServerParts<'a> {
    pub listener: &'a str,
    pub state: &'a StatePool,
    /// Certificates are valid by its wall time.
    pub clock: &'a SharedClock,
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
        let now = parts.clock.wall();
        for pair in config.certificates.iter() {
            match certified(pair, now, provider, files) {
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
        let maker = Maker { config, parts, resolver: Arc::new(resolver) };
        let auth = config.client_auth.as_ref().map_or(ClientAuth::default(), |auth| auth.value);
        let asked = clients.as_ref().map(|authorities| Asked { authorities, auth, span: config.client_ca.as_ref() });
        let own = maker.make(asked, files)?;
        let mut hosts = Hosts::default();
        for (name, host) in &config.hosts {
            let auth = match host.client_auth {
                HostClientAuth::Required => Some(ClientAuth::Required),
                HostClientAuth::Optional => Some(ClientAuth::Optional),
                HostClientAuth::Off => None,
            };
            let theirs = match &host.client_ca {
                Some(path) => Some(authorities(path, files)?),
                None => None,
            };
            let span = host.client_ca.as_ref().or(config.client_ca.as_ref());
            let asked = auth.zip(theirs.as_ref().or(clients.as_ref()));
            let asked = asked.map(|(auth, authorities)| Asked { authorities, auth, span });
            hosts.add(name, maker.make(asked, files)?);
        }
        Some(Arc::new(ServerTls {
            own,
            hosts: Some(hosts).filter(|hosts| !hosts.is_empty()),
            handshake_timeout: config.handshake_timeout.get(),
            max_handshakes: usize::try_from(config.max_handshakes.value).unwrap_or(usize::MAX),
            certificates: facts,
        }))
    }
}

impl ServerTls {
    /// What clients that ask for this name do the handshake with.
    pub fn for_name(&self, name: Option<&str>) -> &HostTls {
        name.and_then(|name| self.hosts.as_ref()?.find(name)).unwrap_or(&self.own)
    }
}

/// Whose certificates are asked for.
struct Asked<'a> {
    authorities: &'a Authorities,
    auth: ClientAuth,
    span: Option<&'a Located<std::path::PathBuf>>,
}

/// Makes the handshakes of one listener, which differ in what they ask of clients.
struct Maker<'a> {
    config: &'a ListenerTlsConfig,
    parts: &'a ServerParts<'a>,
    resolver: Arc<Resolver>,
}

impl Maker<'_> {
    fn make(&self, asked: Option<Asked<'_>>, files: &mut Files<'_>) -> Option<HostTls> {
        let versions: &[&rustls::SupportedProtocolVersion] = match self.config.min_version {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(super::provider())).with_protocol_versions(versions);
        // It can only fail for a provider without cipher suites for these versions.
        let builder = builder.map_err(|error| files.error(None, format!("TLS cannot be set up: {error}"))).ok()?;
        let builder = match &asked {
            Some(asked) => builder.with_client_cert_verifier(verifier(asked, files)?),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::<Resolver>::clone(&self.resolver));
        let http2 = self.parts.http2;
        server.alpn_protocols = if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        // A resumed session skips the client's certificate, so tickets must not outlive the rules that it was checked by.
        let rules = format!("{:?}", asked.as_ref().map(|asked| (asked.auth, &asked.authorities.1)));
        let key = format!("tls tickets {} {rules}", self.parts.listener);
        match self.parts.state.try_get_or_create(&key, || Tickets::new(self.parts.clock)) {
            Ok(tickets) => server.ticketer = tickets,
            Err(error) => {
                files.error(None, format!("session tickets cannot be set up: {error}"));
                return None;
            }
        }
        Some(HostTls { config: Arc::new(server), rules: rules.into() })
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

fn verifier(asked: &Asked<'_>, files: &mut Files<'_>) -> Option<Arc<dyn ClientCertVerifier>> {
    let roots = Arc::clone(&asked.authorities.0);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(super::provider()));
    let builder = match asked.auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    match builder.build() {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            let span = asked.span.and_then(|path| path.span.clone());
            files.error(span, format!("these authorities cannot be used: {error}"));
            None
        }
    }
}

/// What a handshake has settled.
pub fn facts(session: &ServerConnection, rules: &Arc<str>) -> TlsFacts {
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
        client_rules: Arc::clone(rules),
    }
}
