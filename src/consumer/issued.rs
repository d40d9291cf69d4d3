//! Consumers and keys that are issued and revoked in Redis, without a reload.
//!
//! In Redis, under the prefix of `[consumer_source]`, each value a text:
//!
//! - `key:SHA256` is `{"consumer": "acme", "expires": 1767225600}`: a key, by its hash in lower-case hexadecimal digits.
//! - `consumer:NAME` is `{"roles": ["orders:read"], "tier": "gold"}`: a consumer that is not in the configuration; one that is
//!   goes before it.
//! - `denied:ISSUER:jti:ID` and `denied:ISSUER:sub:SUBJECT`: tokens that count no more, for issuers with `deny_list`.
//!
//! `gatewright key` writes the first two. What a request needs is made once for each change: a known key costs its hash and
//! two look-ups in memory.

use super::config::is_role;
use super::{Consumer, Consumers, Credential, KeyDigest};
use crate::diagnostic::Diagnostics;
use crate::identity::Identity;
use crate::tracked::{Fact, Parse, Tracked};
use crate::value::{Duration, Located};
use arc_swap::ArcSwapOption;
use arrayvec::ArrayString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// The longest subject or token id that is looked up, in bytes. A longer one counts as withdrawn.
pub const ID_MAX: usize = 512;
/// What is an earlier time than this is none: such a value withdraws every token of its subject.
const EARLIEST: u64 = 1_000_000_000;

/// A second source of consumers and API keys, so that keys can be issued and revoked without a reload: `gatewright key new
/// --redis`, `key revoke`, `key rotate`. What is in this file goes first. The gateway remembers what it has looked up, and Redis
/// tells it at once of what changes (`CLIENT TRACKING`). A key that cannot be looked up is answered with 503 `credentials_unavailable`,
/// never let through.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsumerSourceConfig {
    /// Where else consumers are, `"redis"`: the one that `[redis]` names. Default: nowhere.
    pub source: Option<Located<SourceKind>>,
    /// What the keys in Redis begin with, up to 64 letters, digits and `_-.:`. Default: the `prefix` of `[redis]`.
    pub prefix: Option<Located<String>>,
    /// How long what was looked up counts without asking again, from 1s to 1d; it ends earlier when Redis tells of a change.
    pub fresh: Located<Duration>,
    /// How long known keys go on when Redis is away, from 0s to 30d, counted from when they were last known to be right. Keys
    /// that are not known are answered with 503.
    pub stale: Located<Duration>,
    /// How many keys, consumers and withdrawn tokens are remembered, unknown ones included, from 100 to 10,000,000; some 300 bytes
    /// each. When it is full, what has ended makes room, else any one.
    #[schemars(range(min = 100, max = 10_000_000))]
    pub entries: Located<u64>,
    /// The longest that a request waits for an answer, from 1ms to 5s.
    pub timeout: Located<Duration>,
}

/// Where consumers can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SourceKind {
    Redis,
}

impl Default for ConsumerSourceConfig {
    fn default() -> Self {
        ConsumerSourceConfig {
            source: None,
            prefix: None,
            fresh: Located::nowhere(Duration::from_secs(60)),
            stale: Located::nowhere(Duration::from_secs(600)),
            entries: Located::nowhere(100_000),
            timeout: Located::nowhere(Duration::from_millis(250)),
        }
    }
}

impl ConsumerSourceConfig {
    /// Checks what serde cannot. `has_redis`: `[redis]` says where it is.
    pub fn check(&self, has_redis: bool, d: &mut Diagnostics) {
        if let Some(source) = &self.source
            && !has_redis
        {
            d.error(source.span.clone(), "consumers are in Redis, and there is none")
                .help("write [redis] with url = \"redis://127.0.0.1:6379\"");
        }
        let seconds = |from: u64, to: u64| Duration::from_secs(from)..=Duration::from_secs(to);
        self.fresh.within(seconds(1, 86_400), d);
        self.stale.within(seconds(0, 30 * 86_400), d);
        self.timeout.within(Duration::from_millis(1)..=Duration::from_secs(5), d);
        self.entries.within(100..=10_000_000, d);
        if let Some(prefix) = &self.prefix {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
            if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(plain) {
                d.error(prefix.span.clone(), format!("`{}` cannot be the prefix of keys", prefix.value))
                    .help("use up to 64 letters, digits and `_-.:`");
            }
        }
    }

    /// What keys begin with, without the colon that follows; `default` is the prefix of `[redis]`.
    pub fn prefix<'a>(&'a self, default: &'a str) -> &'a str {
        self.prefix.as_ref().map_or(default, |prefix| prefix.as_str())
    }
}

/// The value of `key:SHA256`. Times in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyRecord {
    pub consumer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// The value of `consumer:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerRecord {
    pub roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    pub enabled: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Default for ConsumerRecord {
    fn default() -> Self {
        ConsumerRecord { roles: Vec::new(), tier: None, enabled: true, metadata: BTreeMap::new() }
    }
}

/// One value of Redis, read.
pub enum Record {
    Key(Key),
    Consumer(ConsumerRecord),
    /// Tokens that were issued up to this second count no more.
    Denied(u64),
}

/// A key, with the credential that was made of it last.
pub struct Key {
    record: KeyRecord,
    made: ArcSwapOption<Made>,
}

/// A credential, and what it was made from: it is good for these alone.
struct Made {
    consumers: Weak<Consumers>,
    record: Option<Arc<Record>>,
    credential: Credential,
}

impl Parse for Record {
    fn parse(name: &str, value: &[u8]) -> Option<Self> {
        match name.split_once(':')?.0 {
            "key" => {
                let record: KeyRecord = serde_json::from_slice(value).ok()?;
                // A beginning that no clock can show must not read as none.
                let begins = record.not_before.is_none_or(|start| at(start).is_some());
                (begins && !record.consumer.is_empty()).then(|| Record::Key(Key { record, made: ArcSwapOption::empty() }))
            }
            "consumer" => serde_json::from_slice(value).ok().map(Record::Consumer),
            // Whatever it says, somebody wanted it withdrawn.
            "denied" => {
                let until = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse::<u64>().ok());
                Some(Record::Denied(until.filter(|until| *until >= EARLIEST).unwrap_or(u64::MAX)))
            }
            _ => None,
        }
    }
}

/// Whose a key is.
#[derive(Debug)]
pub enum Found {
    Credential(Credential),
    Nobody,
    /// Redis is away, and the key is not among those that are known.
    Unavailable,
}

/// Whether a token was withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    Denied,
    /// Redis is away, and nothing is known.
    Unavailable,
}

/// The consumers and keys in Redis.
#[derive(Clone)]
pub struct Issued {
    facts: Arc<Tracked<Record>>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issued")
    }
}

impl Issued {
    pub fn new(facts: Arc<Tracked<Record>>) -> Self {
        Issued { facts }
    }

    pub fn facts(&self) -> &Tracked<Record> {
        &self.facts
    }

    /// Whose the key is, if that can be told without asking.
    pub fn known(&self, consumers: &Arc<Consumers>, digest: &KeyDigest) -> Option<Found> {
        let key = self.facts.known(&key_name(digest))?;
        match owner(&key, consumers) {
            Ok(None) => found(consumers, &key, None, digest),
            Ok(Some(name)) => found(consumers, &key, Some(self.facts.known(&consumer_name(name))?), digest),
            Err(found) => Some(found),
        }
    }

    /// The same, asking Redis for what is not known.
    pub async fn find(&self, consumers: &Arc<Consumers>, digest: &KeyDigest) -> Found {
        let key = self.fact(&key_name(digest)).await;
        let found = match owner(&key, consumers) {
            Ok(None) => found(consumers, &key, None, digest),
            Ok(Some(name)) => found(consumers, &key, Some(self.fact(&consumer_name(name)).await), digest),
            Err(found) => Some(found),
        };
        found.unwrap_or(Found::Nobody)
    }

    async fn fact(&self, name: &str) -> Fact<Record> {
        match self.facts.known(name) {
            Some(fact) => fact,
            None => self.facts.ask(name).await,
        }
    }

    /// Whether any of these names of tokens was withdrawn, if that can be told without asking. `issued` is the token's `iat`.
    pub fn standing(&self, names: &[String], issued: Option<u64>) -> Option<Standing> {
        let mut all = Standing::Good;
        for name in names {
            match stands(&self.facts.known(name)?, issued) {
                Standing::Good => {}
                other => all = other,
            }
        }
        Some(all)
    }

    /// The same, asking Redis for what is not known.
    pub async fn find_standing(&self, names: &[String], issued: Option<u64>) -> Standing {
        for name in names {
            match stands(&self.fact(name).await, issued) {
                Standing::Good => {}
                other => return other,
            }
        }
        Standing::Good
    }
}

fn stands(fact: &Fact<Record>, issued: Option<u64>) -> Standing {
    match fact {
        Fact::Absent | Fact::WasAbsent => Standing::Good,
        Fact::Unavailable => Standing::Unavailable,
        Fact::Is(record) => match &**record {
            Record::Denied(until) if issued.is_some_and(|issued| issued > *until) => Standing::Good,
            _ => Standing::Denied,
        },
    }
}

/// The names under which a token can be withdrawn; `None` if one is too long to be looked up.
pub fn denial_names(issuer: &str, id: Option<&str>, subject: Option<&str>) -> Option<Vec<String>> {
    let parts = [("jti", id), ("sub", subject)].into_iter().filter_map(|(kind, value)| Some((kind, value?)));
    parts.map(|(kind, value)| (value.len() <= ID_MAX).then(|| format!("denied:{issuer}:{kind}:{value}"))).collect()
}

fn key_name(digest: &KeyDigest) -> ArrayString<72> {
    let mut name = ArrayString::new();
    // Four and 64 characters.
    let _ = write!(name, "key:{digest}");
    name
}

fn consumer_name(name: &str) -> String {
    format!("consumer:{name}")
}

/// The name of the consumer, if Redis must know it: `None` for one of the configuration.
fn owner<'a>(key: &'a Fact<Record>, consumers: &Consumers) -> Result<Option<&'a str>, Found> {
    match key {
        Fact::Is(record) => match &**record {
            Record::Key(key) if consumers.get(&key.record.consumer).is_some() => Ok(None),
            Record::Key(key) => Ok(Some(&key.record.consumer)),
            _ => Err(Found::Nobody),
        },
        Fact::Absent => Err(Found::Nobody),
        // It may have been issued since.
        Fact::WasAbsent | Fact::Unavailable => Err(Found::Unavailable),
    }
}

fn found(consumers: &Arc<Consumers>, key: &Fact<Record>, consumer: Option<Fact<Record>>, digest: &KeyDigest) -> Option<Found> {
    let Fact::Is(record) = key else { return Some(Found::Nobody) };
    let Record::Key(key) = &**record else { return Some(Found::Nobody) };
    let consumer = match consumer {
        None => None,
        Some(Fact::Is(record)) => Some(record),
        Some(Fact::Absent) => return Some(Found::Nobody),
        Some(Fact::WasAbsent | Fact::Unavailable) => return Some(Found::Unavailable),
    };
    Some(key.credential(consumers, consumer, digest).map_or(Found::Nobody, Found::Credential))
}

impl Key {
    fn credential(&self, consumers: &Arc<Consumers>, record: Option<Arc<Record>>, digest: &KeyDigest) -> Option<Credential> {
        let same = |made: &&Arc<Made>| {
            // The `Weak` keeps its address from being used again.
            std::ptr::eq(made.consumers.as_ptr(), Arc::as_ptr(consumers))
                && made.record.as_ref().map(Arc::as_ptr) == record.as_ref().map(Arc::as_ptr)
        };
        let made = self.made.load();
        if let Some(made) = made.as_ref().filter(same) {
            return Some(made.credential.clone());
        }
        let consumer = match record.as_deref() {
            None => Arc::clone(consumers.get(&self.record.consumer)?),
            Some(Record::Consumer(record)) => Arc::new(record.consumer(&self.record.consumer, consumers)),
            Some(_) => return None,
        };
        let credential = Credential {
            identity: Arc::new(Identity::of_api_key(&consumer, digest)),
            consumer,
            not_before: self.record.not_before.and_then(at),
            expires: self.record.expires.and_then(at),
        };
        let made = Made { consumers: Arc::downgrade(consumers), record, credential: credential.clone() };
        self.made.store(Some(Arc::new(made)));
        Some(credential)
    }
}

/// `None` for what is later than any clock can show.
fn at(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds))
}

impl ConsumerRecord {
    fn consumer(&self, name: &str, consumers: &Consumers) -> Consumer {
        Consumer {
            name: name.into(),
            // A tier that does not exist is none: `limits = "tier"` then refuses.
            tier: self.tier.as_ref().and_then(|tier| consumers.tier(tier)).cloned(),
            // What cannot be a role of the configuration cannot be one from here.
            roles: self.roles.iter().filter(|role| is_role(role)).map(|role| role.as_str().into()).collect(),
            metadata: self.metadata.clone(),
            // A consumer from Redis has the limits of its tier.
            limits: Box::default(),
            enabled: self.enabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<KeyRecord> {
        match Record::parse("key:00", text.as_bytes())? {
            Record::Key(key) => Some(key.record),
            _ => None,
        }
    }

    #[test]
    fn a_record_that_makes_no_sense_is_nobody() {
        let read = key(r#"{"consumer":"acme","expires":5,"note":"kept by somebody else"}"#).unwrap();
        assert_eq!((read.consumer.as_str(), read.expires, read.not_before), ("acme", Some(5), None));
        for wrong in ["", "{}", "[]", r#"{"consumer":""}"#, r#"{"consumer":1}"#, r#"{"consumer":"a","expires":"5"}"#, "\u{0}"] {
            assert_eq!(key(wrong), None, "{wrong}");
        }
        let begins = |start: u64| key(&format!(r#"{{"consumer":"a","not_before":{start}}}"#)).is_some();
        assert!(begins(0) && begins(1 << 40) && !begins(u64::MAX), "what begins after all time does not begin at once");
        assert!(Record::parse("other:x", b"{}").is_none() && Record::parse("key", b"{}").is_none());
    }

    #[test]
    fn a_withdrawal_counts_whatever_it_says() {
        let stands = |value: &str, issued| {
            let record = Record::parse("denied:main:sub:alice", value.as_bytes()).map(Arc::new).unwrap();
            stands(&Fact::Is(record), issued)
        };
        for value in ["1", "", "yes", "0", "-1"] {
            assert_eq!(stands(value, Some(1_700_000_000)), Standing::Denied, "{value}");
        }
        assert_eq!(stands("1700000000", Some(1_700_000_000)), Standing::Denied);
        assert_eq!(stands("1700000000", Some(1_700_000_001)), Standing::Good, "issued after the withdrawal");
        assert_eq!(stands("1700000000", None), Standing::Denied, "nobody knows when it was issued");
        assert_eq!(denial_names("main", Some("i"), Some("s")).unwrap(), ["denied:main:jti:i", "denied:main:sub:s"]);
        assert_eq!(denial_names("main", Some(&"x".repeat(ID_MAX + 1)), None), None);
    }

    #[test]
    fn a_credential_is_made_again_only_when_something_changed() {
        let consumers = Arc::new(Consumers::default());
        let digest = KeyDigest::of(b"k");
        let Some(Record::Key(key)) = Record::parse("key:00", br#"{"consumer":"acme","not_before":7}"#) else { panic!() };
        let record = |roles: &str| {
            let text = format!(r#"{{"roles":[{roles}]}}"#);
            Arc::new(Record::parse("consumer:acme", text.as_bytes()).unwrap())
        };
        let (first, second) = (record(r#""a","b,admin""#), record(r#""c""#));
        let made = |consumers: &Arc<Consumers>, record: &Arc<Record>| {
            key.credential(consumers, Some(Arc::clone(record)), &digest).unwrap()
        };
        let one = made(&consumers, &first);
        assert!(Arc::ptr_eq(&one.identity, &made(&consumers, &first).identity));
        assert_eq!(one.identity.roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["a"], "no role reads as two");
        assert_eq!(one.not_before, SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(7)));
        let two = made(&consumers, &second);
        assert!(two.identity.has_role("c") && !two.identity.has_role("a"));
        let other = Arc::new(Consumers::default());
        assert!(!Arc::ptr_eq(&two.identity, &made(&other, &second).identity), "another snapshot, another consumer");
        assert!(key.credential(&other, None, &digest).is_none(), "a consumer that is nowhere");
    }
}
