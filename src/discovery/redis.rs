//! A sorted set in Redis, in which services keep themselves.
//!
//! A member is an address, its score the Unix time in seconds at which it lapses: a service writes itself with
//! `ZADD KEY <now + 10> 10.0.0.5:3000` every few seconds, and is gone 10 seconds after it has stopped. No
//! registry process is needed. What the time is, is Redis' own clock to say, so that gateways agree. After the address
//! there may be settings: `10.0.0.5:3000 weight=2 priority=1 zone=a`.

use super::config::RedisConfig;
use super::{Answer, Discovery, Failure, Found, PRIORITY_MAX, Reason, WEIGHT_MAX};
use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, ServerErrorKind};
use std::time::Duration;

/// Reads one set at intervals.
pub struct RedisSource {
    client: Client,
    /// Without its password.
    key: String,
    interval: Duration,
    timeout: Duration,
    most: usize,
    connection: Option<MultiplexedConnection>,
}

impl RedisSource {
    pub fn new(config: &RedisConfig, client: Client, most: usize) -> Self {
        RedisSource {
            client,
            key: config.key.value.clone(),
            interval: config.interval.get(),
            timeout: config.timeout.get(),
            most,
            connection: None,
        }
    }

    async fn members(&mut self) -> Result<Vec<String>, RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let limit = Some(self.timeout);
                let config = AsyncConnectionConfig::new().set_connection_timeout(limit).set_response_timeout(limit);
                self.client.get_multiplexed_async_connection_with_config(&config).await?
            }
        };
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let now = format!("({seconds}.{micros:06}");
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(&self.key).arg(now).arg("+inf").arg("LIMIT").arg(0).arg(self.most.saturating_add(1));
        let members = range.query_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(members)
    }
}

#[async_trait]
impl Discovery for RedisSource {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        let members = self.members().await.map_err(|error| {
            let reason = match error.kind() {
                ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => Reason::Denied,
                ErrorKind::UnexpectedReturnType | ErrorKind::Server(_) => Reason::Invalid,
                _ if error.is_timeout() => Reason::Timeout,
                _ => Reason::Unreachable,
            };
            // Without the URL, which may have a password.
            Failure::new(reason, format!("Redis: {}", error.category()))
        })?;
        let unreadable = members.iter().find(|member| read(member).is_none());
        if let Some(member) = unreadable {
            log::debug!("Redis set {}: `{}` is no endpoint", self.key, member.escape_debug());
        }
        Ok(Answer { found: members.iter().filter_map(|member| read(member)).collect(), again: self.interval })
    }

    fn patience(&self) -> Duration {
        // Connecting, and two questions.
        self.timeout.saturating_mul(3)
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
