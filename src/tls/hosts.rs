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

    /// An exact name first, then the longest wildcard, which stands for one label or more, as in routes: a host that a route takes
    /// must not be outside of the rules for it.
    pub fn find(&self, name: &str) -> Option<&HostTls> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.find(&name.to_ascii_lowercase());
        }
        let parents = || std::iter::successors(name.split_once('.'), |(_, parent)| parent.split_once('.'));
        self.exact.get(name).or_else(|| parents().find_map(|(_, parent)| self.wildcard.get(parent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(rules: &str) -> HostTls {
        let builder = ServerConfig::builder_with_provider(Arc::clone(super::super::provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = builder.with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        HostTls { config: Arc::new(config), rules: rules.into() }
    }

    #[test]
    fn a_wildcard_holds_for_every_depth_and_the_longest_of_them_counts() {
        let mut hosts = Hosts::default();
        for pattern in ["*.example.com", "*.deep.example.com", "a.example.com"] {
            hosts.add(pattern, tls(pattern));
        }
        let found = |name: &str| hosts.find(name).map(|tls| tls.rules.to_string());
        for (name, pattern) in [
            ("a.example.com", Some("a.example.com")),
            ("b.example.com", Some("*.example.com")),
            ("b.c.example.com", Some("*.example.com")),
            ("x.y.DEEP.example.com", Some("*.deep.example.com")),
            ("deep.example.com", Some("*.example.com")),
            ("example.com", None),
            ("com", None),
            ("", None),
        ] {
            assert_eq!(found(name).as_deref(), pattern, "{name}");
        }
    }
}
