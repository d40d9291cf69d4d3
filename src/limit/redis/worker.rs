//! The one connection to Redis: connects, asks in pipelines, notices when Redis is away, and comes back.

use super::{Question, RedisOptions, Shared, SharedSet, decision};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, Value};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

const SCRIPT: &str = include_str!("limits.lua");
/// Adds this gateway to those that are alive, drops those that have not been heard of for ten seconds, and counts.
const HEARTBEAT: &str = "\
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 10)
redis.call('PEXPIRE', KEYS[1], 20000)
return redis.call('ZCARD', KEYS[1])";

/// The most questions of one pipeline: enough to carry any load, few enough that the first does not wait for the last.
const BATCH: usize = 256;
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// To connect, log in and load the script. No request waits for it.
const CONNECT: Duration = Duration::from_millis(500);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Starts the worker's thread. It ends when the store is dropped.
pub fn start(options: RedisOptions, questions: mpsc::Receiver<Question>, shared: Arc<Shared>) {
    let thread = std::thread::Builder::new().name("redis".to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(Worker::new(options, questions, shared).run()),
            Err(e) => log::error!("limits do without Redis: its worker has no runtime: {e}"),
        }
    });
    if let Err(e) = thread {
        log::error!("limits do without Redis: its worker did not start: {e}");
    }
}

struct Worker {
    options: RedisOptions,
    questions: mpsc::Receiver<Question>,
    shared: Arc<Shared>,
    /// What the others know this gateway by.
    name: String,
}

/// Whatever ends a connection.
type Broken = String;

struct Link {
    connection: MultiplexedConnection,
    script: String,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.metrics.set_up(false);
    }
}

impl Worker {
    fn new(options: RedisOptions, questions: mpsc::Receiver<Question>, shared: Arc<Shared>) -> Self {
        Worker { options, questions, shared, name: uuid::Uuid::now_v7().to_string() }
    }

    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = false;
        while !self.questions.is_closed() {
            let why = match self.connect().await {
                Ok(mut link) => {
                    pause = PAUSE_MIN;
                    told = false;
                    self.shared.metrics.set_up(true);
                    log::info!("Redis is reachable: limits are counted by {} gateways together", self.gateways());
                    match self.serve(&mut link).await {
                        Ok(()) => return,
                        Err(why) => why,
                    }
                }
                Err(why) => why,
            };
            self.shared.metrics.errors.increment();
            self.shared.metrics.set_up(false);
            if !told {
                told = true;
                log::warn!("Redis is away, limits do what their on_error says: {why}");
            }
            // Whoever has asked before it was known gets no answer, and decides alone.
            while self.questions.try_recv().is_ok() {}
            tokio::time::sleep(jittered(pause)).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    fn gateways(&self) -> u64 {
        self.shared.gateways.load(Ordering::Relaxed)
    }

    async fn connect(&mut self) -> Result<Link, Broken> {
        match tokio::time::timeout(CONNECT, self.try_connect()).await {
            Ok(result) => result,
            Err(_) => Err(format!("it did not answer within {CONNECT:?}")),
        }
    }

    async fn try_connect(&mut self) -> Result<Link, Broken> {
        let client = Client::open(self.options.info.clone()).map_err(|e| e.to_string())?;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(self.options.timeout));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| e.to_string())?;
        let mut link = Link { connection, script: String::new() };
        link.load().await?;
        self.heartbeat(&mut link).await?;
        self.settle(&mut link).await?;
        Ok(link)
    }

    /// Until the store is dropped (`Ok`) or the connection is of no more use.
    async fn serve(&mut self, link: &mut Link) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
        loop {
            tokio::select! {
                count = self.questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.ask(link, &mut batch).await?;
                }
                () = tokio::time::sleep_until(next_beat) => {
                    self.heartbeat(link).await?;
                    // Requests that gave up waiting while Redis was slow.
                    self.settle(link).await?;
                    next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
                }
            }
        }
    }

    async fn ask(&self, link: &mut Link, batch: &mut Vec<Question>) -> Result<(), Broken> {
        // Whoever waits no more is not asked for: it has decided alone.
        batch.retain(|question| !question.answer.is_closed());
        // Twice: Redis may have lost the script, by a restart or SCRIPT FLUSH.
        for _ in 0..2 {
            if batch.is_empty() {
                return Ok(());
            }
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for Question { set, key, cost, .. } in batch.iter() {
                let costs = std::iter::repeat(*cost);
                call(&mut pipeline, &link.script, "take", &self.options.prefix, set, key, costs);
            }
            let replies = link.send(&pipeline, batch.len()).await;
            let replies = replies.inspect_err(|_| batch.clear())?;
            self.shared.metrics.pipelines.increment();
            let mut again = Vec::new();
            let mut failed = None;
            for (question, reply) in batch.drain(..).zip(&replies) {
                match (reply, decision(&question.set, reply)) {
                    (_, Some(decision)) => {
                        self.shared.metrics.decisions.increment();
                        // The request may have given up.
                        let _ = question.answer.send(decision);
                    }
                    (Value::ServerError(error), None) if error.code() == "NOSCRIPT" => again.push(question),
                    (Value::ServerError(error), None) => failed = Some(format!("it answered {}", error.code())),
                    (_, None) => failed = Some("its answer makes no sense".to_owned()),
                }
            }
            if let Some(why) = failed {
                return Err(why);
            }
            if !again.is_empty() {
                link.load().await?;
            }
            *batch = again;
        }
        batch.clear();
        Ok(())
    }

    /// Tells the others that this gateway is alive, and learns how many there are.
    async fn heartbeat(&self, link: &mut Link) -> Result<(), Broken> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("EVAL").arg(HEARTBEAT).arg(1).arg(format!("{}:gateways", self.options.prefix)).arg(&self.name);
        match link.send(&pipeline, 1).await?.first() {
            Some(Value::Int(count)) => {
                // Those that have not been heard of yet are there as well, if somebody says so.
                let count = u64::try_from(*count).unwrap_or(1).max(self.options.gateways).max(1);
                self.shared.gateways.store(count, Ordering::Relaxed);
                Ok(())
            }
            Some(Value::ServerError(error)) => Err(format!("it answered {}", error.code())),
            _ => Err("its answer makes no sense".to_owned()),
        }
    }

    /// Charges what was admitted without Redis.
    async fn settle(&self, link: &mut Link) -> Result<(), Broken> {
        let charges = self.shared.debts.collect();
        for part in charges.chunks(BATCH) {
            let mut pipeline = Pipeline::with_capacity(part.len());
            for charge in part {
                let costs = charge.costs.iter().copied();
                call(&mut pipeline, &link.script, "charge", &self.options.prefix, &charge.set, &charge.key, costs);
            }
            link.send(&pipeline, part.len()).await?;
        }
        Ok(())
    }
}

fn call(
    pipeline: &mut Pipeline,
    script: &str,
    mode: &str,
    prefix: &str,
    set: &SharedSet,
    key: &[u8],
    costs: impl Iterator<Item = u64>,
) {
    // The braces make all of it the hash tag of a Redis Cluster.
    let mut name = Vec::with_capacity(prefix.len().saturating_add(set.scope.len()).saturating_add(key.len()).saturating_add(4));
    for part in [prefix.as_bytes(), b":{", set.scope.as_bytes(), b"|", key, b"}"] {
        name.extend_from_slice(part);
    }
    let command = pipeline.cmd("EVALSHA").arg(script).arg(1).arg(name).arg(mode);
    for (arguments, cost) in set.arguments.iter().zip(costs) {
        for argument in arguments {
            command.arg(argument);
        }
        command.arg(cost);
    }
}

impl Link {
    async fn load(&mut self) -> Result<(), Broken> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SCRIPT").arg("LOAD").arg(SCRIPT);
        match self.send(&pipeline, 1).await?.pop() {
            Some(Value::BulkString(sha)) => {
                self.script = String::from_utf8(sha).map_err(|_| "its answer makes no sense".to_owned())?;
                Ok(())
            }
            Some(Value::ServerError(error)) => Err(format!("it answered {} to SCRIPT LOAD", error.code())),
            _ => Err("its answer makes no sense".to_owned()),
        }
    }

    /// One round trip, with one reply for each command, errors included.
    async fn send(&mut self, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Broken> {
        let replies = self.connection.send_packed_commands(pipeline, 0, count).await.map_err(|e| e.to_string())?;
        if replies.len() == count { Ok(replies) } else { Err("it answered too little".to_owned()) }
    }
}

/// From half of it to all of it, so that gateways that lost Redis together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = std::hash::RandomState::new().hash_one(0_u8);
    let half = pause / 2;
    let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half.saturating_add(Duration::from_nanos(random.checked_rem(span).unwrap_or(0)))
}
