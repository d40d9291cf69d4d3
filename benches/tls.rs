//! What handshakes cost the server: aws-lc-rs, which is what the gateway uses, against ring.
//!
//! Only the server's work is counted, in memory and without a socket: certificates of RSA 2048 and of ECDSA P-256, full and
//! resumed, TLS 1.3 and 1.2. Both sides agree on X25519, so that the two libraries do the same work; the last group shows what
//! the post-quantum X25519MLKEM768 adds, which only aws-lc-rs has. The client is aws-lc-rs in all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark may panic")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Pair {
    cert: CertificateDer<'static>,
    key: Vec<u8>,
}

fn pair(key: &KeyPair) -> Pair {
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let cert = params.self_signed(key).expect("a certificate");
    Pair { cert: cert.der().clone(), key: key.serialize_der() }
}

fn provider(mut base: CryptoProvider, group: &'static dyn SupportedKxGroup) -> Arc<CryptoProvider> {
    base.kx_groups = vec![group];
    Arc::new(base)
}

fn server(provider: &Arc<CryptoProvider>, pair: &Pair, tickets: Arc<dyn rustls::server::ProducesTickets>) -> Arc<ServerConfig> {
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions().expect("versions");
    let key = PrivateKeyDer::try_from(pair.key.clone()).expect("a key");
    let mut config = builder.with_no_client_auth().with_single_cert(vec![pair.cert.clone()], key).expect("a pair");
    config.ticketer = tickets;
    Arc::new(config)
}

fn client(group: &'static dyn SupportedKxGroup, pair: &Pair, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.clone()).expect("a root");
    let provider = provider(aws_lc_rs::default_provider(), group);
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("a version");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// One handshake: the time that the server took, and whether it resumed a session.
fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> (Duration, bool) {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let begun = Instant::now();
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    let mut spent = begun.elapsed();
    let mut wire = Vec::new();
    loop {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let quiet = wire.is_empty();
        let mut rest = wire.as_slice();
        let begun = Instant::now();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().expect("a client");
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).expect("memory");
        }
        spent += begun.elapsed();
        if quiet && answer.is_empty() {
            break;
        }
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("a server");
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "the handshake stopped");
    (spent, server.handshake_kind() == Some(HandshakeKind::Resumed))
}

fn handshakes(c: &mut Criterion) {
    let rsa = pair(&KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key"));
    let ecdsa = pair(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"));
    let aws = (provider(aws_lc_rs::default_provider(), aws_lc_rs::kx_group::X25519), aws_lc_rs::Ticketer::new().expect("random"));
    let ring = (provider(ring::default_provider(), ring::kx_group::X25519), ring::Ticketer::new().expect("random"));
    for (what, pair) in [("rsa2048", &rsa), ("p256", &ecdsa)] {
        for (version, name) in [(&rustls::version::TLS13, "1.3"), (&rustls::version::TLS12, "1.2")] {
            for resumed in [false, true] {
                let kind = if resumed { "resumed" } else { "full" };
                let mut group = c.benchmark_group(format!("tls/{what}/{name}/{kind}"));
                for (library, (provider, tickets)) in [("aws-lc-rs", &aws), ("ring", &ring)] {
                    let server = server(provider, pair, Arc::clone(tickets));
                    group.bench_function(BenchmarkId::from_parameter(library), |b| {
                        b.iter_custom(|times| {
                            let keeps = client(aws_lc_rs::kx_group::X25519, pair, version);
                            if resumed {
                                handshake(&server, &keeps);
                            }
                            let mut spent = Duration::ZERO;
                            for _ in 0..times {
                                // A client that has been here has a ticket; a new one has none.
                                let fresh = (!resumed).then(|| client(aws_lc_rs::kx_group::X25519, pair, version));
                                let (took, was_resumed) = handshake(&server, fresh.as_ref().unwrap_or(&keeps));
                                assert_eq!(was_resumed, resumed);
                                spent += took;
                            }
                            spent
                        });
                    });
                }
                group.finish();
            }
        }
    }
    let hybrid = provider(aws_lc_rs::default_provider(), aws_lc_rs::kx_group::X25519MLKEM768);
    let server = server(&hybrid, &ecdsa, Arc::clone(&aws.1));
    c.bench_function("tls/p256/1.3/full/X25519MLKEM768", |b| {
        b.iter_custom(|times| {
            let one = || handshake(&server, &client(aws_lc_rs::kx_group::X25519MLKEM768, &ecdsa, &rustls::version::TLS13)).0;
            (0..times).map(|_| one()).sum()
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = handshakes
}
criterion_main!(benches);
