//! From `[consumers.*]` and `[tiers.*]` to [`Consumers`].

use super::config::{CredentialConfig, HmacCredential, PasswordConfig};
use super::{BasicUser, Consumer, ConsumerConfig, Consumers, Credential, Map, Signer, Tier, TierConfig};
use crate::diagnostic::{Diagnostics, Span};
use crate::identity::Identity;
use crate::limit::config::compile_all;
use crate::signature::VerifyKey;
use crate::value::{Located, read_file};
use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;

/// The largest file with a public key, in bytes.
const PEM_MAX: u64 = 64 << 10;

/// The kinds of credential, in access logs, limits and code.
const JWT: &str = "jwt";
const BASIC: &str = "basic";
const HMAC: &str = "hmac";
const MTLS: &str = "mtls";

/// Which part of a limit, in percent, requests of this priority may fill: all of it for the highest, and four fifths of what
/// the next higher one may for every other. Who belongs to no tier has priority 0.
fn share(priority: u8, tiers: &[(&str, u8)]) -> u32 {
    let higher: BTreeSet<u8> = tiers.iter().map(|(_, known)| *known).filter(|known| *known > priority).collect();
    higher.iter().fold(100, |share, _| share * 4 / 5)
}

impl Consumers {
    /// Builds the indexes. Credentials that two consumers share are reported with both places: a request that carries one
    /// could be either's. Names of tiers that do not exist were reported before.
    pub fn build<'a, C, T>(consumers: C, tiers: T, d: &mut Diagnostics) -> Consumers
    where
        C: ExactSizeIterator<Item = (&'a Located<String>, &'a ConsumerConfig)> + Clone,
        T: Iterator<Item = (&'a str, &'a TierConfig)>,
    {
        let tiers: Vec<(&str, u8)> = tiers.map(|(name, tier)| (name, tier.priority.value)).collect();
        let tier = |(name, priority): &(&str, u8)| {
            let name = Arc::<str>::from(*name);
            (Arc::clone(&name), Arc::new(Tier { name, share: share(*priority, &tiers) }))
        };
        let share_without_tier = Some(share(0, &tiers));
        let mut built = Consumers { tiers: tiers.iter().map(tier).collect(), share_without_tier, ..Consumers::default() };
        built.by_name.reserve(consumers.len());
        built.by_key.reserve(consumers.len());
        for (name, config) in consumers.clone() {
            let consumer = Arc::new(Consumer {
                name: name.value.as_str().into(),
                tier: config.tier.as_ref().and_then(|tier| built.tiers.get(tier.as_str())).cloned(),
                roles: config.roles.iter().map(|role| shared(&mut built.roles, role)).collect(),
                metadata: config.metadata.clone(),
                // What is wrong with them was told when the file was read.
                limits: compile_all(&config.limits).unwrap_or_default().into(),
                enabled: config.enabled,
            });
            for credential in &config.credentials {
                if let Err((taken, what)) = built.add(&consumer, credential, d) {
                    let first = consumers
                        .clone()
                        .find(|(name, _)| *name.value == *taken)
                        .and_then(|(_, first)| first.place_of(credential));
                    report(d, credential, what, &consumer.name, &taken, first);
                }
            }
            built.by_name.insert(Arc::clone(&consumer.name), consumer);
        }
        built
    }

    /// Fails with the name of the consumer that has the credential already, and what it is.
    fn add(
        &mut self,
        consumer: &Arc<Consumer>,
        config: &CredentialConfig,
        d: &mut Diagnostics,
    ) -> Result<(), (Arc<str>, String)> {
        let (not_before, expires) = config.validity();
        let (not_before, expires) = (not_before.map(|at| at.value.0), expires.map(|at| at.value.0));
        let proving = |identity| Credential { identity: Arc::new(identity), consumer: Arc::clone(consumer), not_before, expires };
        let credential = |method, id: String| proving(Identity::of(consumer, method, id.into()));
        match config {
            CredentialConfig::ApiKey(key) => {
                let digest = key.sha256.value;
                let credential = proving(Identity::of_api_key(consumer, &digest));
                insert(&mut self.by_key, digest, credential, "this API key".to_owned())
            }
            CredentialConfig::Jwt(jwt) => {
                let subject: Arc<str> = jwt.subject.as_str().into();
                let what = format!("the subject `{subject}`");
                match &jwt.issuer {
                    Some(issuer) => {
                        let credential = credential(JWT, format!("{JWT}:{}:{subject}", issuer.value));
                        insert(self.by_issuer.entry(issuer.as_str().into()).or_default(), subject, credential, what)
                    }
                    // Which issuer vouches for it shows with the token; the filter says so in the id that it makes.
                    None => insert(&mut self.by_subject, Arc::clone(&subject), credential(JWT, format!("{JWT}:{subject}")), what),
                }
            }
            CredentialConfig::Basic(basic) => {
                let username: Arc<str> = basic.username.as_str().into();
                let PasswordConfig::Argon2(password) = &basic.password;
                let credential = credential(BASIC, format!("{BASIC}:{username}"));
                let user = BasicUser { credential, password: password.value.clone() };
                insert(&mut self.by_username, Arc::clone(&username), user, format!("the username `{username}`"))
            }
            CredentialConfig::Hmac(hmac) => {
                // What is wrong with it is reported, so that nothing of this is ever used.
                let Some(key) = signing_key(hmac, d) else { return Ok(()) };
                let id: Arc<str> = hmac.key_id.as_str().into();
                let signer = Signer { credential: credential(HMAC, format!("{HMAC}:{id}")), key };
                insert(&mut self.by_signer, Arc::clone(&id), signer, format!("the key id `{id}`"))
            }
            CredentialConfig::Mtls(mtls) => {
                let Some((key, text)) = mtls.key() else { return Ok(()) };
                let credential = credential(MTLS, certificate_id(&key));
                let what = format!("the certificate `{}`", text.value);
                insert(&mut self.by_certificate, key.into(), credential, what)
            }
        }
    }
}

/// Of a fingerprint the first 64 bits, as logs show it: `mtls:3f2a9c01d4e5b6a7`, `mtls:DNS:orders.example.com`, `mtls:CN=orders`.
fn certificate_id(key: &str) -> String {
    match key.split_once(':') {
        Some(("sha256", digits)) => format!("{MTLS}:{}", digits.get(..16).unwrap_or(digits)),
        Some((_, text)) => format!("{MTLS}:{text}"),
        None => MTLS.to_owned(),
    }
}

/// Reads the key that requests are signed with.
fn signing_key(hmac: &HmacCredential, d: &mut Diagnostics) -> Option<VerifyKey> {
    let source = hmac.key_id.span.as_ref().and_then(|span| d.source(span.file));
    let directory = source.and_then(|source| source.path.parent()).map(PathBuf::from).unwrap_or_default();
    let (span, key) = match (&hmac.secret, &hmac.public_key) {
        (Some(secret), None) if hmac.algorithm().is_secret() => {
            let key = secret.resolve(&directory).and_then(|secret| VerifyKey::secret(secret.expose().as_bytes()));
            (secret.span.clone(), key)
        }
        (None, Some(path)) if !hmac.algorithm().is_secret() => {
            let read = read_file(&directory.join(&path.value), PEM_MAX);
            let key = read.and_then(|pem| VerifyKey::public(hmac.algorithm(), &pem));
            (path.span.clone(), key.map_err(|why| format!("the public key {} cannot be used: {why}", path.value)))
        }
        // Told when the file was read.
        _ => return None,
    };
    match key {
        Ok(key) => Some(key),
        Err(why) => {
            d.error(span, why);
            None
        }
    }
}

/// What knows whose it is.
trait Owned {
    fn owner(&self) -> &Arc<str>;
}

impl Owned for Credential {
    fn owner(&self) -> &Arc<str> {
        &self.consumer.name
    }
}

impl Owned for Signer {
    fn owner(&self) -> &Arc<str> {
        self.credential.owner()
    }
}

impl Owned for BasicUser {
    fn owner(&self) -> &Arc<str> {
        self.credential.owner()
    }
}

fn insert<K: Eq + Hash, V: Owned>(map: &mut Map<K, V>, key: K, value: V, what: String) -> Result<(), (Arc<str>, String)> {
    match map.entry(key) {
        Entry::Occupied(taken) => Err((Arc::clone(taken.get().owner()), what)),
        Entry::Vacant(free) => {
            free.insert(value);
            Ok(())
        }
    }
}

/// One copy of each role, however many have it.
fn shared(roles: &mut BTreeSet<Arc<str>>, role: &str) -> Arc<str> {
    match roles.get(role) {
        Some(known) => Arc::clone(known),
        None => {
            let role: Arc<str> = role.into();
            roles.insert(Arc::clone(&role));
            role
        }
    }
}

impl ConsumerConfig {
    /// Where the first credential that is the same as `other` is written.
    fn place_of(&self, other: &CredentialConfig) -> Option<Span> {
        self.credentials.iter().find(|credential| credential.is(other)).and_then(CredentialConfig::span)
    }
}

impl CredentialConfig {
    /// Whether a request could carry one and mean the other.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (CredentialConfig::ApiKey(a), CredentialConfig::ApiKey(b)) => a.sha256.value == b.sha256.value,
            (CredentialConfig::Basic(a), CredentialConfig::Basic(b)) => a.username.value == b.username.value,
            (CredentialConfig::Hmac(a), CredentialConfig::Hmac(b)) => a.key_id.value == b.key_id.value,
            (CredentialConfig::Mtls(a), CredentialConfig::Mtls(b)) => a.key().map(|(key, _)| key) == b.key().map(|(key, _)| key),
            (CredentialConfig::Jwt(a), CredentialConfig::Jwt(b)) => {
                let issuer = |config: &super::config::JwtCredential| config.issuer.as_ref().map(|issuer| issuer.value.clone());
                a.subject.value == b.subject.value && issuer(a) == issuer(b)
            }
            _ => false,
        }
    }

    fn span(&self) -> Option<Span> {
        match self {
            CredentialConfig::ApiKey(key) => key.sha256.span.clone(),
            CredentialConfig::Jwt(jwt) => jwt.subject.span.clone(),
            CredentialConfig::Basic(basic) => basic.username.span.clone(),
            CredentialConfig::Hmac(hmac) => hmac.key_id.span.clone(),
            CredentialConfig::Mtls(mtls) => mtls.span(),
        }
    }
}

fn report(d: &mut Diagnostics, again: &CredentialConfig, what: String, by: &str, taken: &str, first: Option<Span>) {
    let message = if by == taken {
        format!("consumer `{by}` has {what} twice")
    } else {
        format!("{what} belongs to consumer `{taken}` already")
    };
    let found = d.error(again.span(), message);
    if let Some(first) = first {
        found.related(first, "first here");
    }
}
