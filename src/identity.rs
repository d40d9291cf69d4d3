//! Who a request is from, as far as it has been proved.
//!
//! Authentication filters (`api_key`, `jwt`, `basic`, `hmac`, `mtls`, `forward_auth`) establish an [`Identity`]; what comes after them (`require`, limits,
//! the access log, headers for the upstream) reads it and asks nobody again. It is immutable and shared: credentials from
//! the configuration have theirs made when the snapshot is compiled, so that a request costs a counter and no allocation.

mod headers;
mod keys;
mod signed;

pub use headers::{IdentityHeaders, write};
pub use signed::{IdentityConfig, IdentitySigner, Signed};

use crate::consumer::{Consumer, KeyDigest};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The kind of credential that keys are.
pub const API_KEY: &str = "api_key";

/// Who the request is from. Holds no secret, so that any part of it may be logged or sent upstream.
#[derive(Debug)]
pub struct Identity {
    /// The configured consumer, if the credential belongs to one.
    pub consumer: Option<Arc<Consumer>>,
    /// The consumer's name, or the subject of a token that belongs to no consumer.
    pub name: Arc<str>,
    /// What proved it, for logs and upstreams, never a secret: `api_key:3f2a9c01`, `jwt:main:SUBJECT`, `basic:USERNAME`.
    pub credential: Arc<str>,
    /// What limits count it by, where `credential` is too short to tell any two apart: that of an API key.
    pub counted: Option<Arc<str>>,
    /// The kind of credential: `api_key`, `jwt`, `basic`, `hmac`, `mtls`, `forward_auth`.
    pub method: &'static str,
    /// The `[jwt.NAME]` whose token it was.
    pub issuer: Option<Arc<str>>,
    /// What it may do: those of the consumer, and those that a token grants where the issuer is allowed to.
    pub roles: Arc<[Arc<str>]>,
    /// What a token was issued for (RFC 6749 section 3.3); empty for other credentials.
    pub scopes: Arc<[Arc<str>]>,
    /// The tier whose limits apply.
    pub tier: Option<Arc<str>>,
    /// The verified claims of a token.
    pub claims: Option<Arc<Map<String, Value>>>,
    /// The gateway's own token for the upstream, while it is good.
    pub signed: Signed,
}

impl Identity {
    /// The identity that a credential of a configured consumer proves.
    pub fn of(consumer: &Arc<Consumer>, method: &'static str, credential: Arc<str>) -> Self {
        Identity {
            consumer: Some(Arc::clone(consumer)),
            name: Arc::clone(&consumer.name),
            credential,
            counted: None,
            method,
            issuer: None,
            roles: Arc::clone(&consumer.roles),
            scopes: Arc::default(),
            tier: consumer.tier.as_ref().map(|tier| Arc::clone(&tier.name)),
            claims: None,
            signed: Signed::default(),
        }
    }

    /// The identity that an API key with this digest proves.
    pub fn of_api_key(consumer: &Arc<Consumer>, digest: &KeyDigest) -> Self {
        let id = |digits: String| Arc::from(format!("{API_KEY}:{digits}"));
        Identity { counted: Some(id(digest.long())), ..Identity::of(consumer, API_KEY, id(digest.short())) }
    }

    /// The credential as limits tell it from any other.
    pub fn counted(&self) -> &str {
        self.counted.as_ref().unwrap_or(&self.credential)
    }

    /// No consumer, and nothing that it may do: what an identity begins with that no credential of the configuration proves.
    pub fn nobody() -> Self {
        Identity {
            consumer: None,
            name: Arc::from(""),
            credential: Arc::from(""),
            counted: None,
            method: "",
            issuer: None,
            roles: Arc::default(),
            scopes: Arc::default(),
            tier: None,
            claims: None,
            signed: Signed::default(),
        }
    }

    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| **held == *role)
    }

    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| **held == *scope)
    }
}

#[cfg(test)]
impl Identity {
    /// An identity of a consumer that is in no configuration.
    pub fn for_test(name: &str) -> Arc<Self> {
        let consumer = Arc::new(Consumer { name: name.into(), enabled: true, ..Consumer::default() });
        Arc::new(Identity::of(&consumer, "api_key", "api_key:00000000".into()))
    }
}
