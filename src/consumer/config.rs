//! `[consumers.NAME]` and `[tiers.NAME]`.

use super::digest::KeyDigest;
use super::password::PasswordHash;
use crate::diagnostic::{Diagnostics, Span};
use crate::limit::LimitConfig;
use crate::limit::config::compile_all;
use crate::signature::SignatureAlgorithm;
use crate::value::{Located, SecretSource, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The most credentials of one consumer, and the most roles.
const LIST_MAX: usize = 1_000;
/// The longest role, in bytes.
const ROLE_MAX: usize = 128;
/// The longest subject or username, in bytes.
pub(super) const SUBJECT_MAX: usize = 255;

/// Who calls: its roles, its tier, and the credentials that prove it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsumerConfig {
    /// The tier whose limits apply. Default: none.
    pub tier: Option<Located<String>>,
    /// What the consumer may do, as filters `require` it: up to 128 letters, digits and `-_.:/*@` each, at most 1,000.
    /// Default: none.
    pub roles: Vec<Located<String>>,
    /// Free text for people, name to text. The gateway makes nothing of it. Default: none.
    pub metadata: BTreeMap<String, String>,
    /// Whether the consumer may call. One that is not enabled is refused just as one that does not exist.
    pub enabled: bool,
    /// Limits that hold for this consumer instead of those of its tier, wherever a filter has `limits = "tier"`; up to 8, as in
    /// `rate_limit`. Default: those of the tier.
    pub limits: Vec<LimitConfig>,
    /// What proves it, at most 1,000. Several of one kind serve for rotation: the new one is added before the old one goes.
    /// Default: none.
    pub credentials: Vec<CredentialConfig>,
}

/// One credential: a table with exactly one key, its kind.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialConfig {
    ApiKey(ApiKeyCredential),
    Jwt(JwtCredential),
    Basic(BasicCredential),
    Hmac(HmacCredential),
    Mtls(MtlsCredential),
}

/// A key, for the filter `api_key`. `gatewright key new NAME` makes one and prints this line.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyCredential {
    /// The SHA-256 hash of the key, 64 hexadecimal digits. The key itself is kept nowhere.
    pub sha256: Located<KeyDigest>,
    /// From when on it counts. Default: at once.
    pub not_before: Option<Located<Timestamp>>,
    /// When it ceases to count. Default: never.
    pub expires: Option<Located<Timestamp>>,
}

/// The subject of tokens, for the filter `jwt`: a token whose `sub` is this belongs to the consumer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtCredential {
    /// The subject, 1 to 255 bytes, compared exactly.
    pub subject: Located<String>,
    /// The issuer, by the name of its `[jwt.NAME]`, that alone may vouch for the subject. Default: every issuer may.
    pub issuer: Option<Located<String>>,
    /// From when on it counts, besides what the token says. Default: at once.
    pub not_before: Option<Located<Timestamp>>,
    /// When it ceases to count, besides what the token says. Default: never.
    pub expires: Option<Located<Timestamp>>,
}

/// A name and a password, for the filter `basic`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicCredential {
    /// The name that is sent with the password, 1 to 255 bytes without a colon (RFC 7617).
    pub username: Located<String>,
    /// The password, as its hash.
    pub password: PasswordConfig,
    /// From when on it counts. Default: at once.
    pub not_before: Option<Located<Timestamp>>,
    /// When it ceases to count. Default: never.
    pub expires: Option<Located<Timestamp>>,
}

/// A key that requests are signed with, for the filter `hmac`: a `secret`, or a `public_key` with its `algorithm`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacCredential {
    /// What signatures name the key by, their parameter `keyid`: 1 to 255 bytes, compared exactly.
    pub key_id: Located<String>,
    /// The one algorithm that the key is used with: `"hmac-sha256"`, `"ed25519"`, `"ecdsa-p256-sha256"`, `"ecdsa-p384-sha384"`,
    /// `"rsa-pss-sha512"` or `"rsa-v1_5-sha256"`. Default: `"hmac-sha256"`.
    pub algorithm: Option<Located<SignatureAlgorithm>>,
    /// The shared secret of `hmac-sha256`, at least 32 bytes. Unlike API keys and passwords it has to be kept as it is: with a
    /// public key, whoever reads it can sign nothing.
    pub secret: Option<Located<SecretSource>>,
    /// A file with the public key in PEM, relative to this file, for the other algorithms.
    pub public_key: Option<Located<String>>,
    /// From when on it counts. Default: at once.
    pub not_before: Option<Located<Timestamp>>,
    /// When it ceases to count. Default: never.
    pub expires: Option<Located<Timestamp>>,
}

/// A client certificate, for the filter `mtls`: one that the listener has verified, told by exactly one of `sha256`, `subject` and
/// `name`. Where several fit, the fingerprint goes first, then the names, then the subject.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MtlsCredential {
    /// The SHA-256 of the certificate in DER, 64 hexadecimal digits, with colons or without (`openssl x509 -fingerprint -sha256`).
    pub sha256: Option<Located<String>>,
    /// The whole subject, such as `"C=DE, O=Example, CN=orders"`, compared exactly: in the order of the certificate, with `, ` between its
    /// parts, and with a backslash before what RFC 4514 escapes in values (`CN=svc\, Ltd`).
    pub subject: Option<Located<String>>,
    /// A subject alternative name with its kind: `"DNS:orders.example.com"`, `"URI:spiffe://example.com/orders"`,
    /// `"email:a@example.com"` or `"IP:192.0.2.1"`.
    pub name: Option<Located<String>>,
    /// From when on it counts. Default: at once.
    pub not_before: Option<Located<Timestamp>>,
    /// When it ceases to count. Default: never.
    pub expires: Option<Located<Timestamp>>,
}

impl MtlsCredential {
    /// What it is found by: `sha256:…`, `subject:…`, `name:…`. `None` if it is not exactly one, or cannot be.
    pub fn key(&self) -> Option<(String, &Located<String>)> {
        match (&self.sha256, &self.subject, &self.name) {
            (Some(text), None, None) => {
                let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
                let hexadecimal = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
                hexadecimal.then(|| (format!("sha256:{digits}"), text))
            }
            (None, Some(text), None) => (!text.is_empty()).then(|| (format!("subject:{}", text.value), text)),
            (None, None, Some(text)) => {
                let known =
                    ["DNS:", "URI:", "email:", "IP:"].iter().any(|kind| text.len() > kind.len() && text.starts_with(kind));
                known.then(|| (format!("name:{}", text.value), text))
            }
            _ => None,
        }
    }

    /// Where it is written, whatever is wrong with it.
    pub fn span(&self) -> Option<Span> {
        [&self.sha256, &self.subject, &self.name].into_iter().flatten().find_map(|text| text.span.clone())
    }
}

/// The hash of a password.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PasswordConfig {
    /// As `gatewright key password NAME` prints it: Argon2id in PHC format (`$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`), with at most 64 MiB of memory, 10 passes and 4
    /// lanes, because each wrong guess makes the gateway spend as much.
    Argon2(Located<PasswordHash>),
}

/// Limits that consumers share by `tier = "NAME"`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TierConfig {
    /// The limits, each of which must have room for a request; up to 8, as in `rate_limit`. Default: none.
    pub limits: Vec<LimitConfig>,
    /// Who is refused last while an upstream with `overload` has more to do than it can: of several priorities the highest
    /// may fill the whole limit, each lower one four fifths of what the next higher one may. 0 to 100; those who belong to no
    /// tier have 0. Default 0.
    #[schemars(range(min = 0, max = 100))]
    pub priority: Located<u8>,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            tier: None,
            roles: Vec::new(),
            metadata: BTreeMap::new(),
            enabled: true,
            limits: Vec::new(),
            credentials: Vec::new(),
        }
    }
}

impl ConsumerConfig {
    /// Checks what serde cannot.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        for (what, count) in [("credentials", self.credentials.len()), ("roles", self.roles.len())] {
            if count > LIST_MAX {
                d.error(name.span.clone(), format!("consumer `{}` has {count} {what}, and the most is {LIST_MAX}", name.value));
            }
        }
        for role in &self.roles {
            check_role(role, d);
        }
        for credential in &self.credentials {
            credential.check(d);
        }
        check_limits(&self.limits, name, d);
    }
}

/// Roles are listed in one header, separated by commas, so they are kept plain.
fn check_role(role: &Located<String>, d: &mut Diagnostics) {
    if !is_role(role) {
        d.error(role.span.clone(), format!("`{}` cannot be a role", role.value))
            .help(format!("use up to {ROLE_MAX} letters, digits, and -_.:/*@"));
    }
}

/// Whether a text can be a role of a consumer, and be sent upstream in a list of roles.
pub fn is_role(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/*@".contains(&b);
    !text.is_empty() && text.len() <= ROLE_MAX && text.bytes().all(plain)
}

impl CredentialConfig {
    fn check(&self, d: &mut Diagnostics) {
        let (not_before, expires) = self.validity();
        if let (Some(not_before), Some(expires)) = (not_before, expires)
            && not_before.value >= expires.value
        {
            d.error(expires.span.clone(), "the credential ceases to count before it begins to").label("not after `not_before`");
        }
        let (subject, what) = match self {
            CredentialConfig::ApiKey(_) => return,
            CredentialConfig::Jwt(jwt) => (&jwt.subject, "subject"),
            CredentialConfig::Basic(basic) => (&basic.username, "username"),
            CredentialConfig::Hmac(hmac) => {
                hmac.check(d);
                (&hmac.key_id, "key id")
            }
            CredentialConfig::Mtls(mtls) => {
                if mtls.key().is_none() {
                    d.error(mtls.span(), "this tells no certificate").help(
                        "write one of sha256 = \"64 hexadecimal digits\", subject = \"CN=...\" and name = \"DNS:...\", \"URI:...\", \
                         \"email:...\" or \"IP:...\"",
                    );
                }
                return;
            }
        };
        let controls = subject.chars().any(char::is_control);
        let colon = matches!(self, CredentialConfig::Basic(_)) && subject.contains(':');
        if subject.is_empty() || subject.len() > SUBJECT_MAX || controls || colon {
            let found = d.error(subject.span.clone(), format!("`{}` cannot be a {what}", subject.value));
            let but = if colon { "without a colon, which ends the name (RFC 7617)" } else { "without control characters" };
            found.help(format!("use 1 to {SUBJECT_MAX} bytes {but}"));
        }
    }

    /// From when and until when it counts.
    pub(super) fn validity(&self) -> (Option<&Located<Timestamp>>, Option<&Located<Timestamp>>) {
        match self {
            CredentialConfig::ApiKey(key) => (key.not_before.as_ref(), key.expires.as_ref()),
            CredentialConfig::Jwt(jwt) => (jwt.not_before.as_ref(), jwt.expires.as_ref()),
            CredentialConfig::Basic(basic) => (basic.not_before.as_ref(), basic.expires.as_ref()),
            CredentialConfig::Hmac(hmac) => (hmac.not_before.as_ref(), hmac.expires.as_ref()),
            CredentialConfig::Mtls(mtls) => (mtls.not_before.as_ref(), mtls.expires.as_ref()),
        }
    }
}

impl HmacCredential {
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm.as_ref().map_or(SignatureAlgorithm::HmacSha256, |algorithm| algorithm.value)
    }

    fn check(&self, d: &mut Diagnostics) {
        let algorithm = self.algorithm();
        match (&self.secret, &self.public_key, algorithm.is_secret()) {
            (Some(_), None, true) | (None, Some(_), false) => {}
            (_, _, true) => {
                d.error(self.key_id.span.clone(), "hmac-sha256 needs a `secret`, and no `public_key`")
                    .help("write secret = { file = \"...\" }, or name the `algorithm` of the public key");
            }
            (_, _, false) => {
                d.error(self.key_id.span.clone(), format!("{} needs a `public_key`, and no `secret`", algorithm.name()))
                    .help("write public_key = \"FILE.pem\"");
            }
        }
    }
}

impl TierConfig {
    /// Checks what serde cannot.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        if self.priority.value > 100 {
            let span = self.priority.span.clone();
            d.error(span, format!("`priority` is {}", self.priority.value)).label("must be from 0 to 100");
        }
        check_limits(&self.limits, name, d);
    }
}

/// No limits at all are none.
fn check_limits(limits: &[LimitConfig], name: &Located<String>, d: &mut Diagnostics) {
    if limits.is_empty() {
        return;
    }
    if let Err(wrong) = compile_all(limits) {
        let diagnostic = d.error(wrong.span.or_else(|| name.span.clone()), wrong.message);
        if let Some(help) = wrong.help {
            diagnostic.help(help);
        }
    }
}
