//! What operators may ask about a key: how it stands, and to forget it.

use super::{RateLimit, Set};
use crate::filter::{BoxFuture, Limiter};
use crate::limit::{By, Standings};
use crate::request::RequestCtx;
use http::HeaderMap;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An operator waits longer for Redis than a request does.
const PATIENCE: Duration = Duration::from_secs(2);

impl Limiter for RateLimit {
    fn counts_addresses(&self) -> bool {
        self.keys.facts.contains(&By::Address)
    }

    fn told(&self) -> usize {
        if self.is_silent() { 0 } else { self.sets.iter().map(|set| set.limits.len()).max().unwrap_or(0) }
    }

    fn followed(&self) {
        self.followed.store(true, Ordering::Relaxed);
    }

    fn give_back(&self, ctx: &mut RequestCtx) {
        self.undo(ctx);
    }

    fn inspect<'a>(&'a self, ctx: &'a RequestCtx, headers: &'a HeaderMap, reset: bool) -> BoxFuture<'a, Value> {
        Box::pin(async move {
            let mut key = Vec::new();
            self.keys.write(ctx, headers, &mut key);
            let store = if self.redis.is_some() { "redis" } else { "local" };
            let text = String::from_utf8_lossy(&key).into_owned();
            let Some((_, set)) = self.set(ctx) else {
                return json!({ "store": store, "key": text, "error": "these limits are those of a tier: name a consumer or a tier" });
            };
            if reset && !self.reset(set, &key).await {
                return json!({ "scope": &*set.scope, "store": store, "key": text, "error": "Redis does not answer" });
            }
            match self.look(set, &key).await {
                Some(standings) => {
                    let limits = set.limits.iter().zip(&standings).map(|(limit, standing)| {
                        json!({
                            "name": &*limit.name,
                            "number": limit.number,
                            "remaining": standing.remaining,
                            "more_in_seconds": standing.more_in as f64 / 1e9,
                        })
                    });
                    let limits: Vec<Value> = limits.collect();
                    json!({ "scope": &*set.scope, "store": store, "key": text, "limits": limits, "shadow": self.shadow })
                }
                None => json!({ "scope": &*set.scope, "store": store, "key": text, "error": "Redis does not answer" }),
            }
        })
    }
}

impl RateLimit {
    async fn look(&self, set: &Set, key: &[u8]) -> Option<Standings> {
        match (&self.redis, &set.shared) {
            (Some((redis, _)), Some(shared)) => redis.look(shared, key, PATIENCE).await,
            _ => Some(self.local.look(&set.local, key)),
        }
    }

    /// `false` if Redis did not answer.
    async fn reset(&self, set: &Set, key: &[u8]) -> bool {
        match (&self.redis, &set.shared) {
            (Some((redis, _)), Some(shared)) => {
                self.local.reset(&self.share(redis, set), key);
                redis.reset(shared, key, PATIENCE).await
            }
            _ => {
                self.local.reset(&set.local, key);
                true
            }
        }
    }
}
