//! Tokens of the form that RFC 7519 describes: who issues them, with which keys, and what must hold for one to count.
//!
//! An [`Issuer`] is one `[jwt.NAME]` section, compiled: its keys, the rules for its claims, and the tokens that it has
//! verified already. The `jwt` filter finds a token in a request and asks its issuers. Signatures are `jsonwebtoken`'s
//! business, with AWS-LC below it; everything around them is done here, because that is where tokens are forged: which key
//! may be used with which algorithm, how strictly a token is read, what its claims must say, and at which time.
//!
//! The rules of this module, each with its test: an algorithm is used only if the issuer lists it, and only with a key of
//! its kind; nothing that a token says decides where a key comes from; what is not exactly in the canonical form of RFC 7515
//! is refused, and so is a claim of the wrong type; what cannot be decided is refused.

mod cache;
mod claims;
mod config;
mod fetch;
mod issuer;
mod json;
mod keys;
mod remote;
mod rules;
mod supervisor;
mod token;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use claims::ClaimPath;
pub use config::{ClaimsConfig, IssuerConfig, JwksConfig, SecretEncoding};
pub use issuer::{Answer, Issuer, Issuers};
pub use keys::{Algorithm, KeyKind};
pub use remote::{RemoteKeys, Ticket};
pub use supervisor::{Job, KeySupervisor};
pub use token::TOKEN_MAX;

use crate::rejection::{self, Code};
use crate::telemetry::metrics::AuthOutcome;

/// Why a token does not count. Clients are told far less, see [`Refusal::code`]; logs and tests see this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Longer than [`TOKEN_MAX`].
    TooLong,
    /// Not three parts of canonical base64url with JSON objects without duplicate members in the first two.
    Malformed,
    /// The header names an algorithm that the issuer does not list, `none` included.
    Algorithm,
    /// The header has `crit` (RFC 7515 section 4.1.11): none of the extensions that it could name are understood here.
    Critical,
    /// The `typ` is not one that the issuer allows.
    Type,
    /// No key of the issuer has this id and fits the algorithm.
    UnknownKey,
    Signature,
    /// A claim has a type that RFC 7519 or the issuer's mapping does not allow.
    WrongType,
    /// A claim that must be there is not.
    ClaimMissing,
    Expired,
    NotYet,
    Lifetime,
    WrongIssuer,
    Audience,
    /// The consumer of the token is not enabled, or its credential is outside of its time, or there must be one and is none.
    Consumer,
    /// Withdrawn before its time.
    Denied,
    /// Whether it was withdrawn cannot be told.
    StandingUnknown,
    /// The keys could not be fetched, or are older than they may be.
    KeysUnavailable,
}

impl Refusal {
    /// What the client is told. Only who holds a token with a good signature learns that it has expired.
    pub fn code(self) -> &'static Code {
        match self {
            Refusal::Expired => &rejection::TOKEN_EXPIRED,
            Refusal::KeysUnavailable => &rejection::KEYS_UNAVAILABLE,
            Refusal::StandingUnknown => &rejection::CREDENTIALS_UNAVAILABLE,
            _ => &rejection::TOKEN_INVALID,
        }
    }

    /// What it is counted as.
    pub fn outcome(self) -> AuthOutcome {
        match self {
            Refusal::TooLong | Refusal::Malformed | Refusal::Critical | Refusal::WrongType => AuthOutcome::Malformed,
            Refusal::Expired => AuthOutcome::Expired,
            Refusal::NotYet => AuthOutcome::NotYet,
            Refusal::Consumer => AuthOutcome::Disabled,
            Refusal::Denied => AuthOutcome::Revoked,
            Refusal::KeysUnavailable | Refusal::StandingUnknown => AuthOutcome::Unavailable,
            _ => AuthOutcome::Unknown,
        }
    }
}
