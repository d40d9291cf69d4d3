//! Consumers: who calls, with which credentials, in which tier.
//!
//! [`Consumers`] is built once for each snapshot and answers every look-up in constant time, however many there are. Keys
//! and passwords are only known as hashes. What is needed to admit a request, its identity included, is made here, so that
//! a request with a good key costs one hash of the key, one look-up and one counter.

mod build;
pub mod config;
mod digest;
pub mod issued;
mod password;
#[cfg(test)]
mod tests;

pub use config::{ConsumerConfig, CredentialConfig, TierConfig, is_role};
pub use digest::{KeyDigest, LONG};
pub use issued::{ConsumerSourceConfig, Issued};
pub use password::{PASSWORD_MAX, PasswordHash};
#[cfg(test)]
pub(crate) use password::{cheap as cheap_password, with_passes as password_with_passes};

use crate::identity::Identity;
use crate::limit::Limit;
use crate::request::ClientCertificate;
use crate::signature::VerifyKey;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

/// Who calls.
#[derive(Debug, Default)]
pub struct Consumer {
    pub name: Arc<str>,
    pub tier: Option<Arc<Tier>>,
    pub roles: Arc<[Arc<str>]>,
    /// Free text for people and templates; means nothing to the gateway.
    pub metadata: BTreeMap<String, String>,
    /// What holds instead of the limits of its tier; empty: nothing does.
    pub limits: Box<[Limit]>,
    /// A consumer that is not enabled is refused by whatever credential, exactly as if it were unknown.
    pub enabled: bool,
}

/// Named limits that consumers share.
#[derive(Debug)]
pub struct Tier {
    pub name: Arc<str>,
    /// Which part of the limit of an overloaded upstream its requests may fill, in percent.
    pub share: u32,
}

/// One credential of a consumer, with the identity that it proves.
#[derive(Debug, Clone)]
pub struct Credential {
    pub identity: Arc<Identity>,
    pub consumer: Arc<Consumer>,
    pub not_before: Option<SystemTime>,
    pub expires: Option<SystemTime>,
}

/// A name and password.
#[derive(Debug)]
pub struct BasicUser {
    pub credential: Credential,
    pub password: PasswordHash,
}

/// A key that requests are signed with.
#[derive(Debug)]
pub struct Signer {
    pub credential: Credential,
    pub key: VerifyKey,
}

/// Why a credential that is known does not count. For metrics and logs only: clients are told the same in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    NotYet,
    Expired,
    Disabled,
}

impl Credential {
    /// Whether it counts at `now`: from `not_before` on, before `expires`, and while the consumer is enabled.
    pub fn check(&self, now: SystemTime) -> Result<(), Unusable> {
        if !self.consumer.enabled {
            Err(Unusable::Disabled)
        } else if self.not_before.is_some_and(|start| now < start) {
            Err(Unusable::NotYet)
        } else if self.expires.is_some_and(|end| now >= end) {
            Err(Unusable::Expired)
        } else {
            Ok(())
        }
    }
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// All consumers of a snapshot, by whatever a request can name them by.
#[derive(Debug, Default)]
pub struct Consumers {
    by_name: Map<Arc<str>, Arc<Consumer>>,
    by_key: Map<KeyDigest, Credential>,
    by_username: Map<Arc<str>, BasicUser>,
    by_signer: Map<Arc<str>, Signer>,
    /// By fingerprint, name and subject, see [`config::MtlsCredential::key`].
    by_certificate: Map<Box<str>, Credential>,
    /// Subjects that one issuer alone may vouch for, by issuer and subject.
    by_issuer: Map<Arc<str>, Map<Arc<str>, Credential>>,
    /// Subjects that every issuer may vouch for.
    by_subject: Map<Arc<str>, Credential>,
    tiers: BTreeMap<Arc<str>, Arc<Tier>>,
    roles: BTreeSet<Arc<str>>,
    /// Those that Redis knows besides.
    issued: Option<Issued>,
    /// What those who belong to no tier may fill, if tiers differ in that.
    share_without_tier: Option<u32>,
}

impl Consumers {
    pub fn get(&self, name: &str) -> Option<&Arc<Consumer>> {
        self.by_name.get(name)
    }

    /// The credential of an API key, by its digest.
    pub fn by_api_key(&self, key: &KeyDigest) -> Option<&Credential> {
        self.by_key.get(key)
    }

    /// The API keys of the configuration whose digests begin with these digits.
    pub fn api_keys_like(&self, digits: &str) -> impl Iterator<Item = &Credential> {
        self.by_key.iter().filter(move |(digest, _)| digest.to_string().starts_with(digits)).map(|(_, credential)| credential)
    }

    /// The credential `{ basic = { username = "..." } }`.
    pub fn by_username(&self, username: &str) -> Option<&BasicUser> {
        self.by_username.get(username)
    }

    /// The credential `{ jwt = { subject = "..." } }` for a token of the issuer `[jwt.ISSUER]`. One that names the issuer goes
    /// before one that does not.
    pub fn by_jwt_subject(&self, issuer: &str, subject: &str) -> Option<&Credential> {
        let own = self.by_issuer.get(issuer).and_then(|subjects| subjects.get(subject));
        own.or_else(|| self.by_subject.get(subject))
    }

    /// The credential `{ hmac = { key_id = "..." } }`.
    pub fn by_signer(&self, key_id: &str) -> Option<&Signer> {
        self.by_signer.get(key_id)
    }

    /// The credential `{ mtls = { ... } }` of a certificate that was verified: by its fingerprint, else by one of its names in
    /// their order, else by its subject.
    pub fn by_certificate(&self, certificate: &ClientCertificate) -> Option<&Credential> {
        if self.by_certificate.is_empty() {
            return None;
        }
        let find = |kind: &str, text: &str| self.by_certificate.get(format!("{kind}:{text}").as_str());
        find("sha256", &certificate.sha256)
            .or_else(|| certificate.names.iter().find_map(|name| find("name", name)))
            .or_else(|| find("subject", &certificate.subject))
    }

    /// The hash of someone's password for each cost that a password has, in the order of their costs.
    pub fn passwords_by_cost(&self) -> Vec<PasswordHash> {
        let by_cost: BTreeMap<_, _> = self.by_username.values().map(|user| (user.password.cost(), &user.password)).collect();
        by_cost.into_values().cloned().collect()
    }

    pub fn tier(&self, name: &str) -> Option<&Arc<Tier>> {
        self.tiers.get(name)
    }

    pub fn tiers(&self) -> impl Iterator<Item = &Arc<Tier>> + Clone {
        self.tiers.values()
    }

    /// Which part of the limit of an overloaded upstream the requests of this identity may fill, in percent.
    pub fn share(&self, identity: Option<&Identity>) -> u32 {
        let tier = identity.and_then(|identity| match &identity.consumer {
            Some(consumer) => consumer.tier.as_ref(),
            None => self.tiers.get(identity.tier.as_deref()?),
        });
        tier.map(|tier| tier.share).or(self.share_without_tier).unwrap_or(100)
    }

    /// Whether any consumer has the role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// Every role that some consumer has, in the order of their names.
    pub fn roles(&self) -> impl Iterator<Item = &str> + Clone {
        self.roles.iter().map(|role| &**role)
    }

    /// The keys and consumers that Redis knows besides these.
    pub fn issued(&self) -> Option<&Issued> {
        self.issued.as_ref()
    }

    /// Adds what Redis knows.
    pub fn with_issued(self, issued: Option<Issued>) -> Self {
        Consumers { issued, ..self }
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Consumer>> + Clone {
        self.by_name.values()
    }
}
