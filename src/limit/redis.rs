//! The store that gateways share: exact, one atomic script and one round trip for each decision.
//!
//! A request hands its question to one worker, a thread with a runtime of its own, and waits for the answer no longer than
//! its budget. The worker sends whatever has gathered since its last round trip as one pipeline. A thread of its own, because
//! neither a slow scrape of the control service nor a busy edge may make an answer late, and because it then needs
//! nobody to start it.
//!
//! While Redis is away nothing is asked: the worker alone tries to reach it, with growing and jittered pauses. What this gateway
//! admits meanwhile is noted ([`Debts`]) and charged to Redis before the first question after it is back.

mod debts;
mod worker;

use super::{Decision, Limit, Shape, Standing, Standings};
use crate::telemetry::metrics::RedisMetrics;
use debts::Debts;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait for the worker. More are answered as if Redis were away.
const QUEUE: usize = 8_192;

/// Where Redis is and how it is used.
pub struct RedisOptions {
    info: redis::ConnectionInfo,
    /// Distinguishes stores in the state pool; holds the URL, so it is never shown.
    identity: String,
    timeout: Duration,
    gateways: u64,
    prefix: Arc<str>,
}

impl RedisOptions {
    /// The error never holds the URL, which may have a password.
    pub fn new(url: &str, timeout: Duration, gateways: u64, prefix: &str) -> Result<Self, String> {
        use redis::IntoConnectionInfo;
        if url.starts_with("rediss:") {
            return Err("this build speaks to Redis without TLS: use redis:// over a network that you trust".to_owned());
        }
        let info = url.into_connection_info().map_err(|_| {
            "this is not the URL of a Redis, such as redis://127.0.0.1:6379 or redis://user:password@host:6379/0".to_owned()
        })?;
        let identity = format!("{url} {timeout:?} {gateways} {prefix}");
        Ok(RedisOptions { info, identity, timeout, gateways, prefix: prefix.into() })
    }

    pub fn identity(&self) -> String {
        self.identity.clone()
    }
}

/// Limits that hold together, compiled for Redis.
#[derive(Debug)]
pub struct SharedSet {
    scope: Box<str>,
    limits: Box<[Limit]>,
    /// For each limit the first five arguments of the script.
    arguments: Box<[[String; 5]]>,
}

impl SharedSet {
    pub fn new(scope: &str, limits: &[Limit]) -> Self {
        let micros = |nanos: u64| nanos.div_ceil(1_000).to_string();
        let arguments = limits.iter().map(|limit| {
            let (kind, window) = match limit.shape {
                Shape::TokenBucket { per, .. } => ("b", micros(per)),
                Shape::SlidingWindow { per } => ("s", micros(per)),
                Shape::FixedWindow { period } => ("f", period.as_str().trim_start_matches('1').to_owned()),
            };
            [limit.meaning(), kind.to_owned(), limit.number.to_string(), window, limit.most().to_string()]
        });
        SharedSet { scope: scope.into(), arguments: arguments.collect(), limits: limits.into() }
    }
}

struct Question {
    set: Arc<SharedSet>,
    key: Box<[u8]>,
    cost: u64,
    answer: oneshot::Sender<Decision>,
}

/// What the store and its worker both see.
struct Shared {
    metrics: Arc<RedisMetrics>,
    gateways: AtomicU64,
    debts: Debts,
}

pub struct RedisStore {
    questions: mpsc::Sender<Question>,
    shared: Arc<Shared>,
    timeout: Duration,
}

impl RedisStore {
    /// Begins to connect, unless it is only made to see whether a configuration is right.
    pub fn new(options: RedisOptions, connect: bool) -> Self {
        let (questions, asked) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            metrics: Arc::default(),
            gateways: AtomicU64::new(options.gateways.max(1)),
            debts: Debts::default(),
        });
        let timeout = options.timeout;
        if connect {
            worker::start(options, asked, Arc::clone(&shared));
        }
        RedisStore { questions, shared, timeout }
    }

    pub fn metrics(&self) -> &Arc<RedisMetrics> {
        &self.shared.metrics
    }

    /// Whether it is worth asking.
    pub fn is_up(&self) -> bool {
        self.shared.metrics.is_up()
    }

    /// How many gateways share it, as last known.
    pub fn gateways(&self) -> u64 {
        self.shared.gateways.load(Ordering::Relaxed)
    }

    /// Asks, and waits at most for the budget. `None`: decide without Redis.
    pub async fn take(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) -> Option<Decision> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question { set: Arc::clone(set), key: key.into(), cost, answer }).ok()?;
        tokio::time::timeout(self.timeout, answered).await.ok()?.ok()
    }

    /// Notes what was admitted without Redis.
    pub fn owe(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) {
        self.shared.debts.note(set, key, cost);
    }
}

/// Reads the script's reply.
fn decision(set: &SharedSet, reply: &redis::Value) -> Option<Decision> {
    let redis::Value::Array(values) = reply else { return None };
    let number = |value: &redis::Value| match value {
        redis::Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let (admitted, rest) = values.split_first()?;
    let (triples, odd) = rest.as_chunks::<3>();
    if triples.len() != set.limits.len() || !odd.is_empty() {
        return None;
    }
    let nanos = |micros: u64| micros.saturating_mul(1_000);
    let mut standings = Standings::new();
    let mut longest = (0, 0);
    for (limit, [remaining, more, wait]) in triples.iter().enumerate() {
        let standing = Standing { remaining: number(remaining)?, more_in: nanos(number(more)?), idle_in: 0 };
        standings.try_push(standing).ok()?;
        let wait = nanos(number(wait)?);
        if wait > longest.1 {
            longest = (limit, wait);
        }
    }
    Some(match number(admitted)? {
        0 => Decision::Refused { standings, limit: longest.0, wait: longest.1 },
        _ => Decision::Admitted(standings),
    })
}
