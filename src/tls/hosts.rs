//! Rules for client certificates that hold for some hosts of a listener only.
//!
//! Which rules a handshake follows can only depend on the name that the client asks for (SNI), and that need not be the host
//! of its requests. So the rules that a connection was made by stay with it, and a request for a host under other rules is
//! refused (421, RFC 9110 §15.5.20): nobody gets to a host that wants a certificate by asking for another one first.

use rustls::ServerConfig;
use std::collections::HashMap;
use std::sync::Arc;

/// The handshake of a host, and what identifies its rules: two hosts with equal rules share connections.
#[derive(Debug, Clone)]
pub struct HostTls {
    pub config: Arc<ServerConfig>,
    pub rules: Arc<str>,
}

/// Hosts by name. Built once for each snapshot.
#[derive(Debug, Default)]
pub struct Hosts {
    exact: HashMap<Box<str>, HostTls>,
    /// By what follows the asterisk and its dot.
    wildcard: HashMap<Box<str>, HostTls>,
}

impl Hosts {
    pub fn add(&mut self, pattern: &str, tls: HostTls) {
        match pattern.strip_prefix("*.") {
            Some(parent) => self.wildcard.insert(parent.into(), tls),
            None => self.exact.insert(pattern.into(), tls),
        };
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }

    /// An exact name first, then a wildcard, which is one label deep, as for certificates.
    pub fn find(&self, name: &str) -> Option<&HostTls> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.find(&name.to_ascii_lowercase());
        }
        self.exact.get(name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }
}
