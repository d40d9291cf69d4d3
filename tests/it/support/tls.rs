//! Authorities, certificates and clients for tests of TLS. Everything is made when the test runs, so that nothing expires.

use super::http1::{Broken, Response, parse};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Pair {
    /// Writes `NAME.pem` and `NAME.key`, each by a rename.
    pub fn write(&self, directory: &Path, name: &str) {
        for (extension, text) in [("pem", &self.cert), ("key", &self.key)] {
            let temporary = directory.join(format!("{name}.{extension}.tmp"));
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(temporary, directory.join(format!("{name}.{extension}"))).unwrap();
        }
    }

    /// A server of HTTP/1.1 that shows it.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(builder.with_no_client_auth().with_single_cert(vec![self.der()], key).unwrap())
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a server with these names, valid now.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.sign(names, |_| {})
    }

    /// A certificate for a client of this name.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(&[name], |params| {
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    pub fn sign(&self, names: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        edit(&mut params);
        Pair { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A client that trusts this authority.
    pub fn trusting(&self) -> Tls {
        Tls { roots: self.roots(), own: None, alpn: Vec::new(), old: false, sessions: Arc::new(ClientSessionMemoryCache::new(8)) }
    }
}

/// How a client does its handshakes.
#[derive(Clone)]
pub struct Tls {
    roots: RootCertStore,
    own: Option<Pair>,
    alpn: Vec<Vec<u8>>,
    old: bool,
    sessions: Arc<ClientSessionMemoryCache>,
}

impl Tls {
    pub fn with_certificate(mut self, own: &Pair) -> Tls {
        self.own = Some(own.clone());
        self
    }

    pub fn offering(mut self, protocols: &[&str]) -> Tls {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Speaks TLS 1.2 and nothing newer.
    pub fn old(mut self) -> Tls {
        self.old = true;
        self
    }

    pub fn config(&self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] =
            if self.old { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(self.roots.clone());
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![own.der()], key).unwrap()
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.resumption = Resumption::store(self.sessions.clone());
        Arc::new(config)
    }

    /// The OCSP response that the server staples; certificates are not verified.
    pub fn stapled(&self, address: SocketAddr, name: &str) -> Vec<u8> {
        let seen = Arc::new(Staple::default());
        let mut config = ClientConfig::clone(&self.config());
        config.dangerous().set_certificate_verifier(seen.clone());
        self.connect_with(&Arc::new(config), address, name).unwrap();
        seen.0.lock().clone()
    }

    /// A connection after its handshake.
    pub fn connect(&self, address: SocketAddr, name: &str) -> io::Result<TlsClient> {
        self.connect_with(&self.config(), address, name)
    }

    /// The same with a configuration made before: sessions are resumed only with the one they were made with.
    pub fn connect_with(&self, config: &Arc<ClientConfig>, address: SocketAddr, name: &str) -> io::Result<TlsClient> {
        Tls::shake(config, TcpStream::connect_timeout(&address, Duration::from_secs(5))?, name)
    }

    /// The handshake on a socket that is connected already.
    pub fn over(&self, socket: TcpStream, name: &str) -> io::Result<TlsClient> {
        Tls::shake(&self.config(), socket, name)
    }

    fn shake(config: &Arc<ClientConfig>, socket: TcpStream, name: &str) -> io::Result<TlsClient> {
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        socket.set_nodelay(true)?;
        let session = ClientConnection::new(config.clone(), name.to_owned().try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsClient { stream, buffer: Vec::new() })
    }
}

/// One connection over TLS.
pub struct TlsClient {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl TlsClient {
    /// Sends a whole request and reads its response.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> Result<Response, Broken> {
        let broken = |e: io::Error| Broken::Truncated(e.to_string());
        self.stream.write_all(request.as_ref()).map_err(broken)?;
        loop {
            if let Some((response, length)) = parse(&self.buffer, false, false)? {
                self.buffer.drain(..length);
                return Ok(response);
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk).map_err(broken)? {
                0 => return Err(Broken::Closed),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// The certificate that the server showed.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    pub fn resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

/// Takes any certificate and keeps what was stapled to it.
#[derive(Debug, Default)]
struct Staple(parking_lot::Mutex<Vec<u8>>);

impl ServerCertVerifier for Staple {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock() = ocsp.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
