//! TLS by rustls: what listeners do handshakes with, and what upstreams are spoken to with.
//!
//! The cryptography is aws-lc-rs. Measured against ring on the server's side of a handshake, in microseconds of one core,
//! the better of two runs of seven times 300 (rustls 0.23.46, x86-64):
//!
//! | handshake | ring | aws-lc-rs |
//! |---|---|---|
//! | TLS 1.3, RSA 2048 | 1036 | 514 |
//! | TLS 1.2, RSA 2048 | 940 | 435 |
//! | TLS 1.3, ECDSA P-256 | 167 | 110 |
//! | TLS 1.2, ECDSA P-256 | 118 | 72 |
//! | TLS 1.3 resumed | 116 | 130 |
//! | TLS 1.2 resumed | 16 | 14 |
//!
//! Full handshakes are what a flood costs, and most certificates are still RSA. It also brings X25519MLKEM768. What it takes is
//! a C compiler and cmake for the build, which Pingora needs anyway. Pingora's connector uses it as well ([`install`]).

mod certificate;
pub mod client;
pub mod config;
pub mod files;
mod resolver;
pub mod server;

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

/// The cryptography of the process.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}
