//! What is said to a server about limits.

use super::lease::LIFE;
use super::{Question, Shared, SharedSet, What};
use crate::redis_link::{Broken, Link, Sent};
use redis::{Pipeline, Value};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

/// Decides about all limits of a key.
pub const SCRIPT: &str = include_str!("limits.lua");
/// Adds this gateway to those that are alive, drops those that have not been heard of for ten seconds, and counts.
const HEARTBEAT: &str = "\
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 10)
redis.call('PEXPIRE', KEYS[1], 20000)
return redis.call('ZCARD', KEYS[1])";

/// A connection to a server that has the script.
pub struct ScriptLink {
    link: Link,
    script: String,
}

impl Deref for ScriptLink {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl DerefMut for ScriptLink {
    fn deref_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl ScriptLink {
    pub async fn new(link: Link) -> Result<Self, Broken> {
        let mut link = ScriptLink { link, script: String::new() };
        link.load().await?;
        Ok(link)
    }

    pub async fn load(&mut self) -> Result<(), Broken> {
        match self.ask(&["SCRIPT", "LOAD", SCRIPT]).await? {
            Value::BulkString(sha) => {
                self.script = String::from_utf8(sha).map_err(|_| Broken::nonsense())?;
                Ok(())
            }
            _ => Err(Broken::nonsense()),
        }
    }

    /// Tells the others that this gateway is alive; returns how many are.
    pub async fn heartbeat(&mut self, key: &str, name: &str) -> Result<u64, Broken> {
        match self.ask(&["EVAL", HEARTBEAT, "1", key, name]).await? {
            Value::Int(count) => Ok(u64::try_from(count).unwrap_or(1)),
            _ => Err(Broken::nonsense()),
        }
    }

    /// Adds a question; returns the number of replies that it has.
    pub fn add(&self, pipeline: &mut Pipeline, shared: &Shared, sent: &Sent<Question>) -> usize {
        if sent.asking {
            pipeline.cmd("ASKING");
        }
        let Question { set, key, cost, what, .. } = &sent.question;
        let costs = std::iter::repeat(*cost);
        match what {
            What::Take => self.call(pipeline, shared, "take", &[], set, key, costs),
            What::Charge(_) => self.call(pipeline, shared, "charge", &[], set, key, costs),
            What::Look => self.call(pipeline, shared, "look", &[], set, key, costs),
            What::Give(at, _) => self.call(pipeline, shared, "give", &[at.to_string()], set, key, costs),
            What::Reset => drop(pipeline.cmd("DEL").arg(set.name(&shared.prefix, key))),
            What::Lease(pending) => {
                let gateways = shared.gateways.load(Ordering::Relaxed);
                let extra = lease_arguments(&shared.name, &pending.errand, gateways, set.lease());
                self.call(pipeline, shared, "lease", &extra, set, key, costs);
            }
        }
        if sent.asking { 2 } else { 1 }
    }

    /// Adds a call that consumes what is left.
    pub fn charge(&self, pipeline: &mut Pipeline, shared: &Shared, set: &SharedSet, key: &[u8], costs: &[u64]) {
        self.call(pipeline, shared, "charge", &[], set, key, costs.iter().copied());
    }

    #[allow(clippy::too_many_arguments)] // The arguments of one command, named nowhere else.
    fn call(
        &self,
        pipeline: &mut Pipeline,
        shared: &Shared,
        mode: &str,
        extra: &[String],
        set: &SharedSet,
        key: &[u8],
        costs: impl Iterator<Item = u64>,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(&self.script).arg(1).arg(set.name(&shared.prefix, key)).arg(mode);
        command.arg(extra.len()).arg(extra);
        for (arguments, cost) in set.arguments.iter().zip(costs) {
            command.arg(arguments).arg(cost);
        }
    }
}

/// What the mode `lease` of the script takes besides the limits. `name` makes the ids of this gateway its own; `lease` is the most
/// that it may have out.
pub fn lease_arguments(name: &str, errand: &super::lease::Errand, gateways: u64, lease: u64) -> Vec<String> {
    let id = |id: u64| format!("{name}/{id}");
    let numbers = [errand.want, LIFE / 1_000, gateways.max(1), lease].map(|number| number.to_string());
    let mut list: Vec<String> = std::iter::once(id(errand.id)).chain(numbers).collect();
    for (back, spent) in &errand.back {
        list.push(id(*back));
        list.push(spent.to_string());
    }
    list
}
