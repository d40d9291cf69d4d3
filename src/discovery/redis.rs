//! A sorted set in Redis, in which services keep themselves.
//!
//! A member is an address, its score the Unix time in seconds at which it lapses: a service writes itself with
//! `ZADD KEY <now + 10> 10.0.0.5:3000` every few seconds, and is gone 10 seconds after it has stopped. No
//! registry process is needed. What the time is, is Redis' own clock to say, so that gateways agree. After the address
//! there may be settings: `10.0.0.5:3000 weight=2 priority=1 zone=a`.

use super::config::RedisConfig;
use super::{Answer, Discovery, Failure, Found, PRIORITY_MAX, Reason, WEIGHT_MAX};
use crate::redis_link::{Broken, Fault, OnDemand, Topology, text};
use async_trait::async_trait;
use redis::{Cmd, Value};
use std::time::Duration;

/// Finding out who has the set: which master it is, or which server of a cluster.
const LOOKING: Duration = Duration::from_secs(2);

/// Reads one set at intervals.
pub struct RedisSource {
    redis: OnDemand,
    key: String,
    interval: Duration,
    timeout: Duration,
    most: usize,
}

impl RedisSource {
    pub fn new(config: &RedisConfig, topology: Topology, most: usize) -> Self {
        RedisSource {
            redis: OnDemand::new(topology, config.timeout.get()),
            key: config.key.value.clone(),
            interval: config.interval.get(),
            timeout: config.timeout.get(),
            most,
        }
    }

    async fn members(&mut self) -> Result<Vec<String>, Broken> {
        let time = self.redis.ask(self.key.as_bytes(), &redis::cmd("TIME")).await?;
        let Value::Array(time) = time else { return Err(Broken::nonsense()) };
        let time: Option<Vec<u64>> = time.iter().map(|value| text(value)?.parse().ok()).collect();
        let Some([seconds, micros]) = time.as_deref() else { return Err(Broken::nonsense()) };
        let mut range = Cmd::new();
        range.arg("ZRANGEBYSCORE").arg(&self.key).arg(format!("({seconds}.{micros:06}")).arg("+inf");
        range.arg("LIMIT").arg(0).arg(self.most.saturating_add(1));
        let Value::Array(members) = self.redis.ask(self.key.as_bytes(), &range).await? else { return Err(Broken::nonsense()) };
        members.iter().map(text).collect::<Option<_>>().ok_or_else(Broken::nonsense)
    }
}

#[async_trait]
impl Discovery for RedisSource {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        let members = self.members().await.map_err(|broken| {
            let reason = match broken.fault {
                Fault::Timeout => Reason::Timeout,
                Fault::Unreachable | Fault::Elsewhere => Reason::Unreachable,
                Fault::Denied => Reason::Denied,
                Fault::Invalid => Reason::Invalid,
            };
            Failure::new(reason, format!("Redis: {broken}"))
        })?;
        let unreadable = members.iter().find(|member| read(member).is_none());
        if let Some(member) = unreadable {
            log::debug!("Redis set {}: `{}` is no endpoint", self.key, member.escape_debug());
        }
        Ok(Answer { found: members.iter().filter_map(|member| read(member)).collect(), again: self.interval })
    }

    fn patience(&self) -> Duration {
        // Connecting, seeing that it is the right one, and two questions.
        self.timeout.saturating_mul(4).saturating_add(LOOKING)
    }
}

/// A member of the set.
fn read(member: &str) -> Option<Found> {
    let mut words = member.split_ascii_whitespace();
    let mut found = Found::at(words.next()?.parse().ok()?);
    for word in words {
        match word.split_once('=')? {
            ("weight", number) => found.weight = number.parse().ok().filter(|weight| *weight <= WEIGHT_MAX)?,
            ("priority", number) => found.priority = number.parse().ok().filter(|priority| *priority <= PRIORITY_MAX)?,
            ("zone", zone) if zone.len() <= 63 => found.zone = Some(zone.into()),
            _ => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_an_address_and_maybe_settings() {
        assert_eq!(read("10.0.0.5:3000"), Some(Found::at("10.0.0.5:3000".parse().unwrap())));
        let found = read("[fd00::1]:80 weight=7 priority=1 zone=b").unwrap();
        assert_eq!((found.weight, found.priority, found.zone.as_deref()), (7, 1, Some("b")));
        for wrong in [
            "",
            "orders:80",
            "10.0.0.5",
            "10.0.0.5:80 weight=1001",
            "10.0.0.5:80 priority=10",
            "10.0.0.5:80 x=1",
            "10.0.0.5:80 x",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
