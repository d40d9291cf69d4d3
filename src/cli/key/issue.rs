//! Keys in Redis: issued, listed, revoked and rotated without a reload. Every gateway hears of it from Redis.

use super::at_redis::Redis;
use super::make::generate;
use crate::cli::{ConfigArgs, Exit};
use crate::config::Config;
use crate::consumer::issued::{ConsumerRecord, KeyRecord};
use crate::consumer::{CredentialConfig, KeyDigest, is_role};
use crate::diagnostic::Diagnostics;
use crate::filter::Registry;
use crate::redis_link::Broken;
use crate::snapshot::redis_topology;
use crate::telemetry::timestamp::{Precision, push_rfc3339};
use clap::Args;
use redis::cmd;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

/// The most keys in Redis that are listed.
const LIST_MAX: usize = 1_000_000;
/// The shortest part of a hash that names a key: what logs show.
const ID_MIN: usize = 8;

/// What a key and its consumer may do; only with --redis
#[derive(Args, Debug, Default)]
pub(in crate::cli) struct IssueArgs {
    /// A role of the consumer, if it is not in the configuration; may repeat, and takes the place of those that it has
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// The tier of the consumer, if it is not in the configuration
    #[arg(long)]
    tier: Option<String>,
    /// How long the key counts, such as 90d; for ever if it is not given
    #[arg(long)]
    expires_in: Option<crate::value::Duration>,
}

impl IssueArgs {
    pub fn is_given(&self) -> bool {
        !self.roles.is_empty() || self.tier.is_some() || self.expires_in.is_some()
    }
}

/// Why nothing was done: a sentence for people, and how the process ends.
struct Failed(String, Exit);

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Failed(format!("Redis: {broken}"), Exit::Failure)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed(error.to_string(), Exit::Failure)
    }
}

fn fail<T>(why: impl Into<String>) -> Result<T, Failed> {
    Err(Failed(why.into(), Exit::Failure))
}

fn end(done: Result<(), Failed>) -> io::Result<Exit> {
    match done {
        Ok(()) => Ok(Exit::Success),
        Err(Failed(why, exit)) => {
            writeln!(io::stderr(), "error: {why}")?;
            Ok(exit)
        }
    }
}

/// The configuration, and the Redis that it names.
struct Store {
    config: Config,
    diagnostics: Diagnostics,
    prefix: String,
    redis: Option<Redis>,
}

/// A key that was found by its id.
enum Known {
    /// In the configuration: whose, and where.
    Written(String, String),
    InRedis(String, KeyRecord),
}

impl Store {
    fn open(config: &ConfigArgs, registry: &Registry) -> Result<Self, Failed> {
        let loaded = config.load(registry);
        let (config, mut diagnostics) = (loaded.config, loaded.diagnostics);
        if diagnostics.has_errors() {
            return Err(Failed(format!("the configuration is not valid\n{}", diagnostics.render(false)), Exit::InvalidConfig));
        }
        let prefix = config.consumer_source.prefix(&config.redis.prefix).to_owned();
        let topology = config.consumer_source.source.as_ref().and_then(|_| redis_topology(&config, &mut diagnostics));
        if diagnostics.has_errors() {
            return Err(Failed(format!("the configuration is not valid\n{}", diagnostics.render(false)), Exit::InvalidConfig));
        }
        let redis = match topology {
            None => None,
            Some(topology) => Some(Redis::new(topology)?),
        };
        Ok(Store { config, diagnostics, prefix, redis })
    }

    fn redis(&mut self) -> Result<&mut Redis, Failed> {
        match &mut self.redis {
            Some(redis) => Ok(redis),
            None => fail("the configuration names no Redis for keys: write [consumer_source] with source = \"redis\""),
        }
    }

    fn name(&self, kind: &str, name: &str) -> String {
        format!("{}:{kind}:{name}", self.prefix)
    }

    /// The keys of the configuration: their hash, consumer, place and end.
    fn written(&self) -> impl Iterator<Item = (String, &str, String, Option<SystemTime>)> {
        self.config.consumers.iter().flat_map(|(name, consumer)| {
            consumer.credentials.iter().filter_map(|credential| match credential {
                CredentialConfig::ApiKey(key) => {
                    let place = key.sha256.span.as_ref().and_then(|span| self.diagnostics.place(span));
                    let place = place.map(|(path, line, _)| format!("{}:{line}", path.display())).unwrap_or_default();
                    Some((key.sha256.value.to_string(), name.as_str(), place, key.expires.as_ref().map(|at| at.value.0)))
                }
                _ => None,
            })
        })
    }

    /// The keys in Redis by their hash, in its order.
    fn in_redis(&mut self, pattern: &str) -> Result<Vec<(String, KeyRecord)>, Failed> {
        let (prefix, pattern) = (self.name("key", ""), self.name("key", pattern));
        let Some(redis) = &mut self.redis else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        let names = redis.scan(&pattern, LIST_MAX)?;
        if names.len() > LIST_MAX {
            return fail(format!("there are more than {LIST_MAX} keys"));
        }
        for name in names {
            let value = redis.get(&name)?;
            let record = value.and_then(|value| serde_json::from_str::<KeyRecord>(&value).ok());
            if let (Some(hash), Some(record)) = (name.strip_prefix(&prefix), record) {
                keys.push((hash.to_owned(), record));
            }
        }
        Ok(keys)
    }

    /// The one key that an id means.
    fn find(&mut self, id: &str) -> Result<Known, Failed> {
        let hash = id.strip_prefix("api_key:").unwrap_or(id).to_ascii_lowercase();
        if hash.len() < ID_MIN || hash.len() > 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            // It may be the key itself, so it is not repeated.
            return Err(Failed("an id is at least 8 hexadecimal digits, as `key list` shows them".to_owned(), Exit::Usage));
        }
        let written = self.written().filter(|(known, ..)| known.starts_with(&hash));
        let mut found: Vec<Known> = written.map(|(_, consumer, place, _)| Known::Written(consumer.to_owned(), place)).collect();
        let issued = self.in_redis(&format!("{hash}*"))?;
        found.extend(issued.into_iter().map(|(hash, record)| Known::InRedis(hash, record)));
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (None, _) => fail("there is no such key"),
            (Some(_), false) => fail("several keys begin like that: write more of the hash"),
        }
    }

    fn write(&mut self, digest: &KeyDigest, record: &KeyRecord) -> Result<(), Failed> {
        let name = self.name("key", &digest.to_string());
        put(self.redis()?, &name, record)
    }
}

fn put(redis: &mut Redis, name: &str, record: &KeyRecord) -> Result<(), Failed> {
    let Ok(value) = serde_json::to_string(record) else { return fail("the record cannot be written") };
    let mut command = cmd("SET");
    command.arg(name).arg(value);
    if let Some(expires) = record.expires {
        // Redis forgets it by itself, and tells the gateways.
        command.arg("EXAT").arg(expires);
    }
    redis.ask(name, &command)?;
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn random_key() -> Result<String, Failed> {
    match generate() {
        Some(key) => Ok(key),
        None => fail("the system has no random numbers"),
    }
}

pub(in crate::cli) fn new(consumer: &str, config: &ConfigArgs, args: &IssueArgs, registry: &Registry) -> io::Result<Exit> {
    end(issue(consumer, config, args, registry))
}

fn issue(consumer: &str, config: &ConfigArgs, args: &IssueArgs, registry: &Registry) -> Result<(), Failed> {
    let mut store = Store::open(config, registry)?;
    let described = !args.roles.is_empty() || args.tier.is_some();
    if let Some(role) = args.roles.iter().find(|role| !is_role(role)) {
        return Err(Failed(format!("`{}` cannot be a role", role.escape_debug()), Exit::Usage));
    }
    if let Some(tier) = args.tier.as_ref().filter(|tier| !store.config.tiers.contains_key(*tier)) {
        return fail(format!("there is no tier `{}` in the configuration", tier.escape_debug()));
    }
    if store.config.consumers.contains_key(consumer) {
        if described {
            return fail(format!("consumer `{consumer}` is in the configuration, which says its roles and tier"));
        }
    } else {
        let name = store.name("consumer", consumer);
        let redis = store.redis()?;
        let known = match redis.get(&name)?.map(|value| serde_json::from_str::<ConsumerRecord>(&value)) {
            Some(Ok(record)) if !record.enabled => {
                return fail(format!("consumer `{consumer}` is disabled, as {name} in Redis says: no key of it counts"));
            }
            Some(Ok(record)) => Some(record),
            Some(Err(why)) => return fail(format!("{name} in Redis is not the record of a consumer: {why}")),
            None => None,
        };
        if described || known.is_none() {
            // What is not said stays as it is.
            let mut record = known.unwrap_or_default();
            if !args.roles.is_empty() {
                record.roles.clone_from(&args.roles);
            }
            record.tier = args.tier.clone().or(record.tier);
            let Ok(value) = serde_json::to_string(&record) else { return fail("the record cannot be written") };
            redis.ask(&name, cmd("SET").arg(&name).arg(value))?;
        }
    }
    let key = random_key()?;
    let digest = KeyDigest::of(key.as_bytes());
    let expires = args.expires_in.map(|time| now().saturating_add(time.get().as_secs()));
    store.write(&digest, &KeyRecord { consumer: consumer.to_owned(), issued: Some(now()), not_before: None, expires })?;
    writeln!(io::stdout(), "{key}")?;
    writeln!(io::stderr(), "The key above is shown this once. It counts now, as api_key:{} of `{consumer}`.", digest.short())?;
    Ok(())
}

pub(in crate::cli) fn list(consumer: Option<&str>, config: &ConfigArgs, registry: &Registry) -> io::Result<Exit> {
    end(show(consumer, config, registry))
}

fn show(consumer: Option<&str>, config: &ConfigArgs, registry: &Registry) -> Result<(), Failed> {
    let mut store = Store::open(config, registry)?;
    let mut lines: Vec<[String; 4]> = Vec::new();
    for (hash, name, place, expires) in store.written() {
        lines.push([name.to_owned(), id(&hash), expires.map_or_else(|| "never".to_owned(), shown), place]);
    }
    for (hash, record) in store.in_redis("*")? {
        let expires =
            record.expires.map_or_else(|| "never".to_owned(), |at| shown(SystemTime::UNIX_EPOCH + Duration::from_secs(at)));
        lines.push([record.consumer, id(&hash), expires, "redis".to_owned()]);
    }
    lines.retain(|[name, ..]| consumer.is_none_or(|wanted| wanted == name));
    lines.sort();
    let heads = ["CONSUMER", "ID", "EXPIRES", "WHERE"].map(str::to_owned);
    let mut widths = [0; 4];
    for line in lines.iter().chain([&heads]) {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut out = io::stdout().lock();
    for line in [&heads].into_iter().chain(&lines) {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{:width$}", printable(cell))).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Values of Redis go to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn id(hash: &str) -> String {
    format!("api_key:{}", hash.get(..ID_MIN).unwrap_or(hash))
}

fn shown(at: SystemTime) -> String {
    let mut out = Vec::new();
    push_rfc3339(&mut out, at, Precision::Millis);
    let text = String::from_utf8_lossy(&out).into_owned();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

pub(in crate::cli) fn revoke(key: &str, config: &ConfigArgs, registry: &Registry) -> io::Result<Exit> {
    end(remove(key, config, registry))
}

fn remove(key: &str, config: &ConfigArgs, registry: &Registry) -> Result<(), Failed> {
    let mut store = Store::open(config, registry)?;
    match store.find(key)? {
        Known::Written(consumer, place) => {
            fail(format!("this key of `{consumer}` is in the configuration: take out {place}, and reload"))
        }
        Known::InRedis(hash, record) => {
            let name = store.name("key", &hash);
            let gone = store.redis()?.delete(&name)?;
            if !gone {
                return fail("it was revoked by somebody else just now");
            }
            writeln!(io::stdout(), "revoked {} of `{}`", id(&hash), printable(&record.consumer))?;
            Ok(())
        }
    }
}

pub(in crate::cli) fn rotate(key: &str, overlap: Duration, config: &ConfigArgs, registry: &Registry) -> io::Result<Exit> {
    end(replace(key, overlap, config, registry))
}

/// What takes the place of a key: it counts for as long as that was made to, and where nobody knows how long that was, it ends with it.
fn renewed(old: &KeyRecord, now: u64) -> KeyRecord {
    let end = |expires: u64| old.issued.map_or(expires, |issued| now.saturating_add(expires.saturating_sub(issued)));
    KeyRecord { consumer: old.consumer.clone(), issued: Some(now), not_before: None, expires: old.expires.map(end) }
}

fn replace(old: &str, overlap: Duration, config: &ConfigArgs, registry: &Registry) -> Result<(), Failed> {
    let mut store = Store::open(config, registry)?;
    let found = store.find(old)?;
    let key = random_key()?;
    let digest = KeyDigest::of(key.as_bytes());
    let until = now().saturating_add(overlap.as_secs());
    match found {
        Known::Written(consumer, place) => {
            writeln!(io::stdout(), "{key}")?;
            let end = shown(SystemTime::UNIX_EPOCH + Duration::from_secs(until));
            writeln!(
                io::stderr(),
                "The key above is shown this once. Add its hash to the credentials of `{consumer}`:\n\n  \
                 {{ api_key = {{ sha256 = \"{digest}\" }} }},\n\nand let the old one at {place} end: expires = {end}"
            )?;
        }
        Known::InRedis(hash, record) => {
            // The new one first: nothing in between leaves the consumer without a key.
            let next = renewed(&record, now());
            store.write(&digest, &next)?;
            let name = store.name("key", &hash);
            let redis = store.redis()?;
            if overlap.is_zero() {
                redis.delete(&name)?;
            } else {
                let expires = record.expires.map_or(until, |earlier| earlier.min(until));
                put(redis, &name, &KeyRecord { expires: Some(expires), ..record.clone() })?;
            }
            writeln!(io::stdout(), "{key}")?;
            let until = next.expires.map(|at| format!(" until {}", shown(SystemTime::UNIX_EPOCH + Duration::from_secs(at))));
            writeln!(
                io::stderr(),
                "The key above is shown this once. It counts now{}, as api_key:{} of `{}`; the old one ends in {}s.",
                until.unwrap_or_default(),
                digest.short(),
                printable(&record.consumer),
                overlap.as_secs()
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_place_of_a_key_counts_as_long() {
        let old = |issued, expires| KeyRecord { consumer: "a".to_owned(), issued, not_before: Some(7), expires };
        let ends = |issued, expires| renewed(&old(issued, expires), 1_000);
        assert_eq!(ends(Some(100), Some(190)), KeyRecord { issued: Some(1_000), not_before: None, ..old(None, Some(1_090)) });
        assert_eq!(ends(None, Some(1_200)).expires, Some(1_200), "nobody knows how long it was to be");
        assert_eq!(ends(Some(100), None).expires, None);
        assert_eq!(ends(Some(0), Some(u64::MAX)).expires, Some(u64::MAX));
    }
}
