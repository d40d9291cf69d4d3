//! What the tests of this module and of the `jwt` filter share.

#[path = "../../tests/it/support/tokens.rs"]
mod tokens;

pub use tokens::{Signer, jwks, part};

use super::{Answer, Issuer, IssuerConfig, Issuers, Refusal};
use crate::clock::{ManualClock, SharedClock};
use crate::consumer::Consumers;
use crate::diagnostic::Diagnostics;
use crate::identity::Identity;
use crate::state::StatePool;
use crate::value::Located;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What the clock of [`world`] shows, in seconds since 1970: a day in 2027.
pub const NOW: u64 = 1_800_000_000;
pub const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A directory for keys, and a clock that stands at [`NOW`].
pub struct World {
    pub directory: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub state: Arc<StatePool>,
}

pub fn world() -> World {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(NOW));
    World { directory: tempfile::tempdir().unwrap(), clock, state: StatePool::new() }
}

impl World {
    /// Writes a file and gives its path as TOML.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("'{}'", path.display())
    }

    /// Compiles sections, each a name and the lines of its table; checks them as `gatewright check` does.
    pub fn issuers(&self, sections: &[(&str, &str)]) -> Result<Issuers, String> {
        let mut d = Diagnostics::default();
        let sections: Vec<_> = sections
            .iter()
            .map(|(name, text)| {
                let config: IssuerConfig = toml::from_str(text).unwrap_or_else(|e| panic!("{e}"));
                let name = Located::nowhere((*name).to_owned());
                config.check(&name, &mut d);
                (name, config)
            })
            .collect();
        let clock: SharedClock = self.clock.clone();
        let issuers = Issuers::build(sections.iter().map(|(name, config)| (name, config)), &self.state, &clock, &mut d);
        if d.has_errors() {
            let say = |found: &crate::diagnostic::Diagnostic| {
                let label = found.primary.as_ref().map_or("", |(_, label)| label.as_str());
                format!("{}: {label}\n", found.message)
            };
            return Err(d.list.iter().map(say).collect());
        }
        Ok(issuers)
    }

    /// One issuer `main`.
    #[track_caller]
    pub fn issuer(&self, text: &str) -> Arc<Issuer> {
        let issuers = self.issuers(&[("main", text)]).unwrap_or_else(|why| panic!("{why}"));
        Arc::clone(issuers.get("main").ok().unwrap())
    }

    /// An issuer `main` with [`SECRET`] for HS256, followed by `more` lines of its table.
    #[track_caller]
    pub fn secret_issuer(&self, more: &str) -> Arc<Issuer> {
        self.issuer(&format!("algorithms = ['HS256']\nsecret = {{ file = {} }}\n{more}", self.file("secret", SECRET)))
    }
}

pub fn hs256() -> Signer {
    Signer::hs256("k1", SECRET)
}

/// Claims that are right for an hour.
pub fn claims() -> Value {
    json!({ "sub": "alice", "iat": NOW, "exp": NOW + 3600 })
}

/// The claims of [`claims`] with some others, or others in their place.
pub fn claims_with(more: Value) -> Value {
    let mut claims = claims();
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub fn verify(issuer: &Arc<Issuer>, token: &str) -> Result<Arc<Identity>, Refusal> {
    verify_for(&[Arc::clone(issuer)], token, &Consumers::default())
}

pub fn verify_for(issuers: &[Arc<Issuer>], token: &str, consumers: &Consumers) -> Result<Arc<Identity>, Refusal> {
    match Issuer::verify(issuers, token.as_bytes(), consumers, false) {
        Answer::Accepted(identity) => Ok(identity),
        Answer::Refused(refusal) => Err(refusal),
        Answer::Wait(_) => panic!("waits without leave"),
    }
}
