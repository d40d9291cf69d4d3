//! `[listeners.NAME] tls` and `[upstreams.NAME] tls`. Paths are relative to the file that they are written in.

use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The most certificates of one listener.
pub const CERTIFICATES_MAX: usize = 10_000;
/// The most hosts of one listener with rules for client certificates.
const HOSTS_MAX: usize = 1_000;

/// TLS on a listener. The files are read at each start and reload, SIGHUP included, and with `[server] watch` whenever one
/// of them changes. A pair that cannot be read, does not belong together or is not valid now refuses the whole reload, and
/// what runs stays. Connections keep the certificate that they were made with; session tickets survive a reload.
///
/// Tickets are stateless; their keys change every 6 hours and open sessions of up to 12 hours of age. A resumed session is not
/// asked for its client certificate again: other `client_ca` files or another `client_auth` end all of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTlsConfig {
    /// Pairs of a certificate and its key, 1 to 10000. Which one a client gets follows from the name it asks for (SNI) and
    /// the names in the certificates: an exact name first, then a wildcard (`*.example.com` is one label deep), then the default
    /// one. Where several have the same name, such as one with an RSA and one with an ECDSA key, the first one that the client
    /// supports is used.
    pub certificates: Located<Vec<Located<CertificateConfig>>>,
    /// The oldest version that is spoken, `"1.2"` or `"1.3"`. Default `"1.2"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// A PEM file with the certificates of the authorities that client certificates must come from. Without it clients are
    /// not asked for one.
    pub client_ca: Option<Located<PathBuf>>,
    /// `"required"`: a client without a certificate of `client_ca` gets no connection. `"optional"`: it may come without one,
    /// but not with a wrong one. Default `"required"`; needs `client_ca`.
    pub client_auth: Option<Located<ClientAuth>>,
    /// Hosts with rules of their own for client certificates, by name: `"partner.example.com"`, or `"*.example.com"` for one label or
    /// more, as in routes; the longest one holds. Which rules a handshake follows depends on the name that the client asks for (SNI); a request for a
    /// host under other rules than those that its connection was made by is answered with 421 `misdirected_request`. At most
    /// 1000. Default: the rules of the listener hold for all hosts.
    #[serde(default)]
    pub hosts: BTreeMap<String, Located<HostTlsConfig>>,
    /// How long a handshake may take in all, from 100ms to 2m. Afterwards the connection is closed, and counted. Default
    /// `"10s"`.
    #[serde(default = "handshake_timeout")]
    pub handshake_timeout: Located<Duration>,
    /// How many handshakes may be under way at once, 1 to 1000000. Further connections are closed and counted. A handshake begins with
    /// the client's first message: until then a connection is bounded by `handshake_timeout` and `max_connections` alone. Default 1000.
    #[serde(default = "max_handshakes")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_handshakes: Located<u32>,
}

/// What clients of one host must show.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostTlsConfig {
    /// `"required"` or `"optional"` as for a listener; `"off"`: clients are not asked for a certificate.
    pub client_auth: HostClientAuth,
    /// A PEM file with the authorities that client certificates of this host must come from. Default: those of the listener.
    pub client_ca: Option<Located<PathBuf>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HostClientAuth {
    Required,
    Optional,
    Off,
}

/// A certificate and its key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// A PEM file: the certificate itself first, then those that lead to its authority. At most 1MiB.
    pub cert: Located<PathBuf>,
    /// A PEM file with its private key (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key: Located<PathBuf>,
    /// A DER file with an OCSP response, which is stapled to handshakes as it is. Fetching a fresh one is up to whoever writes
    /// the file. At most 64KiB.
    pub ocsp: Option<Located<PathBuf>>,
    /// Whether clients get this one that ask for no name, or for one that no certificate has. Default: the first of the list.
    #[serde(default)]
    pub default: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    #[default]
    Required,
    Optional,
}

/// TLS to the endpoints of an upstream. Their certificates are always verified unless `insecure` says otherwise.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTlsConfig {
    /// The name that endpoints are asked for and that their certificates must have.
    pub sni: Located<String>,
    /// A PEM file with the authorities that certificates of endpoints must come from, in place of the system's. At most 1MiB.
    pub ca: Option<Located<PathBuf>>,
    /// A PEM file with the certificate that the gateway shows to endpoints, with those that lead to its authority. Needs `key`.
    pub cert: Option<Located<PathBuf>>,
    /// A PEM file with the key of `cert`.
    pub key: Option<Located<PathBuf>>,
    /// `true`: any certificate will do. Whoever is on the way can then read and change everything; a warning says so at each
    /// start and reload. Default `false`.
    #[serde(default)]
    pub insecure: Option<Located<bool>>,
}

fn handshake_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(10))
}
fn max_handshakes() -> Located<u32> {
    Located::nowhere(1_000)
}

impl ListenerTlsConfig {
    /// Reports what can be seen without the files.
    pub fn check(&self, d: &mut Diagnostics) {
        if self.certificates.is_empty() {
            d.error(self.certificates.span.clone(), "a TLS listener needs a certificate")
                .help("for example: certificates = [{ cert = \"api.pem\", key = \"api.key\" }]");
        }
        if self.certificates.len() > CERTIFICATES_MAX {
            d.error(self.certificates.span.clone(), format!("{} certificates", self.certificates.len()))
                .label(format!("at most {CERTIFICATES_MAX} are possible"));
        }
        let mut defaults = self.certificates.iter().filter(|pair| pair.default);
        if let (Some(first), Some(second)) = (defaults.next(), defaults.next()) {
            let found = d.error(second.span.clone(), "a listener has one default certificate").label("this is the second one");
            if let Some(span) = first.span.clone() {
                found.related(span, "the first one");
            }
        }
        if let (Some(auth), None) = (&self.client_auth, &self.client_ca) {
            d.error(auth.span.clone(), "`client_auth` needs `client_ca`")
                .help("name the file with the authorities that client certificates come from");
        }
        self.check_hosts(d);
        self.handshake_timeout.within(Duration::from_millis(100)..=Duration::from_secs(120), d);
        self.max_handshakes.within(1..=1_000_000, d);
    }
}

impl ListenerTlsConfig {
    fn check_hosts(&self, d: &mut Diagnostics) {
        for (name, host) in self.hosts.iter().take(HOSTS_MAX.saturating_add(1)) {
            let plain = name.strip_prefix("*.").unwrap_or(name);
            let known = plain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
            if !known || plain.is_empty() || rustls::pki_types::DnsName::try_from(plain).is_err() {
                d.error(host.span.clone(), format!("`{}` is not a host name", name.escape_debug()))
                    .help("write it in lower case, without a port: `partner.example.com` or `*.example.com`");
            }
            match (host.client_auth, host.client_ca.as_ref().or(self.client_ca.as_ref())) {
                (HostClientAuth::Required | HostClientAuth::Optional, None) => {
                    d.error(host.span.clone(), format!("`client_auth` of `{name}` needs `client_ca`"))
                        .help("name the file with the authorities that client certificates come from, here or for the listener");
                }
                (HostClientAuth::Off, _) if host.client_ca.is_some() => {
                    d.error(host.span.clone(), format!("`{name}` has a `client_ca` and asks nobody for a certificate"))
                        .help("remove `client_ca`, or write `client_auth = \"required\"`");
                }
                _ => {}
            }
        }
        if self.hosts.len() > HOSTS_MAX {
            let span = self.hosts.values().next_back().and_then(|host| host.span.clone());
            d.error(span, format!("{} hosts", self.hosts.len())).label(format!("at most {HOSTS_MAX} are possible"));
        }
    }
}

impl UpstreamTlsConfig {
    /// Reports what can be seen without the files.
    pub fn check(&self, d: &mut Diagnostics) {
        // An empty name would make Pingora skip the verification without a word.
        if rustls::pki_types::ServerName::try_from(self.sni.as_str()).is_err() {
            d.error(self.sni.span.clone(), format!("`{}` is not a server name", self.sni.value.escape_debug()))
                .label("must be the name in the certificates of the endpoints");
        }
        match (&self.cert, &self.key) {
            (Some(cert), None) => {
                d.error(cert.span.clone(), "`cert` needs `key`").label("whose key is missing");
            }
            (None, Some(key)) => {
                d.error(key.span.clone(), "`key` needs `cert`").label("whose certificate is missing");
            }
            _ => {}
        }
        if let Some(insecure) = self.insecure.as_ref().filter(|insecure| insecure.value) {
            d.warning(insecure.span.clone(), "certificates of this upstream are not verified")
                .label("anybody on the way can read and change its traffic");
        }
    }
}
