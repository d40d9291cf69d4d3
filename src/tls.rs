//! TLS by rustls: what listeners do handshakes with, and what upstreams are spoken to with.
//!
//! The cryptography is aws-lc-rs. Against ring, on the server's side (`cargo bench --bench tls`, kept in benches/runs): a full handshake of
//! TLS 1.3 with an ECDSA certificate took 153 µs of CPU instead of 237, with RSA 887 instead of 891 (half of it on a processor whose
//! vector instructions it has code for), a resumed one as much or a little less. Full handshakes are what a flood costs. It
//! also brings X25519MLKEM768, for 18 µs more. What it takes is a C compiler and cmake for the build, which Pingora needs anyway. Pingora's connector uses it as well ([`install`]).

mod certificate;
pub mod client;
pub mod config;
pub mod files;
pub mod hosts;
mod resolver;
pub mod server;
mod tickets;

pub use client::ClientTls;
pub use config::{ListenerTlsConfig, UpstreamTlsConfig};
pub use files::Files;
pub use server::{CertificateFacts, ServerParts, ServerTls};

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, OnceLock};

/// Makes [`provider`] the one that Pingora and other libraries use as well. Later calls change nothing.
pub fn install() {
    // An error means that there is one already.
    let _ = CryptoProvider::install_default(CryptoProvider::clone(provider()));
}

/// The cryptography of every TLS connection of the process.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}
