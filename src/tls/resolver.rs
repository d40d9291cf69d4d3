//! Which certificate a client gets.

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// Certificates by name. Built once for each snapshot and never changed.
#[derive(Debug, Default)]
pub struct Resolver {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// By what follows the asterisk and its dot.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    fallback: Option<Arc<CertifiedKey>>,
}

impl Resolver {
    /// `names` in lower case.
    pub fn add(&mut self, names: &[String], key: &Arc<CertifiedKey>, fallback: bool) {
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(name.into()).or_default().push(Arc::clone(key));
        }
        if fallback || self.fallback.is_none() {
            self.fallback = Some(Arc::clone(key));
        }
    }

    /// The certificates for a name, in the order of the configuration. A wildcard stands for exactly one label (RFC 6125
    /// §6.4.3).
    fn named(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let found = self.exact.get(name).or_else(|| self.wildcard.get(name.split_once('.')?.1));
        found.map(Vec::as_slice)
    }

    fn choose(&self, name: Option<&str>, fits: impl Fn(&CertifiedKey) -> bool) -> Option<Arc<CertifiedKey>> {
        let fallback = self.fallback.as_slice();
        let named = match name {
            Some(name) if name.bytes().any(|b| b.is_ascii_uppercase()) => self.named(&name.to_ascii_lowercase()),
            Some(name) => self.named(name),
            None => None,
        };
        let candidates = named.unwrap_or(fallback);
        // If none fits, rustls ends the handshake with the reason; it knows it better.
        candidates.iter().find(|key| fits(key)).or(candidates.first()).cloned()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), |key| key.key.choose_scheme(hello.signature_schemes()).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;

    fn key(marker: u8) -> Arc<CertifiedKey> {
        let pair = rcgen::KeyPair::generate().unwrap();
        let der = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
        Arc::new(CertifiedKey::new(vec![vec![marker].into()], signer))
    }

    #[test]
    fn an_exact_name_beats_a_wildcard_and_a_wildcard_the_default() {
        let mut resolver = Resolver::default();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        resolver.add(&names(&["a.example.com"]), &key(1), false);
        resolver.add(&names(&["*.example.com", "example.com"]), &key(2), false);
        resolver.add(&names(&["other.example"]), &key(3), true);
        let chosen = |name: Option<&str>| resolver.choose(name, |_| true).unwrap().cert[0][0];
        assert_eq!(chosen(Some("a.example.com")), 1);
        assert_eq!(chosen(Some("A.Example.com")), 1);
        assert_eq!(chosen(Some("b.example.com")), 2);
        assert_eq!(chosen(Some("example.com")), 2);
        assert_eq!(chosen(Some("c.b.example.com")), 3, "a wildcard is one label deep");
        assert_eq!(chosen(Some("unknown")), 3);
        assert_eq!(chosen(None), 3);
    }

    #[test]
    fn of_several_certificates_for_a_name_the_client_gets_one_that_it_supports() {
        let mut resolver = Resolver::default();
        resolver.add(&["a".to_owned()], &key(1), false);
        resolver.add(&["a".to_owned()], &key(2), false);
        assert_eq!(resolver.choose(Some("a"), |key| key.cert[0][0] == 2).unwrap().cert[0][0], 2);
        assert_eq!(resolver.choose(Some("a"), |_| false).unwrap().cert[0][0], 1);
    }
}
