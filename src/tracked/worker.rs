//! The one connection to Redis: asks in pipelines, listens for changes, notices when Redis is away, and comes back.

use super::{Parse, Question, Shared, TrackedOptions};
use crate::limit::redis::find_master;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, ProtocolVersion, PushInfo, PushKind, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The most questions of one pipeline.
const BATCH: usize = 256;
/// To connect and to begin tracking; also the longest that an answer may take before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that nobody uses is tried this often: one that is dead would never tell of a change.
const PING_EVERY: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Starts the worker's thread. It ends when nobody can ask any more.
pub fn start<T: Parse>(options: TrackedOptions, questions: mpsc::Receiver<Question<T>>, shared: Arc<Shared<T>>) {
    let thread = std::thread::Builder::new().name("redis-facts".to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(Worker { options, questions, shared }.run()),
            Err(e) => log::error!("what Redis knows cannot be asked for: its worker has no runtime: {e}"),
        }
    });
    if let Err(e) = thread {
        log::error!("what Redis knows cannot be asked for: its worker did not start: {e}");
    }
}

struct Worker<T> {
    options: TrackedOptions,
    questions: mpsc::Receiver<Question<T>>,
    shared: Arc<Shared<T>>,
}

/// Whatever ends a connection.
type Broken = String;

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.shared.went_down();
    }
}

impl<T: Parse> Worker<T> {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = false;
        // Which sentinel is asked first: one that is away costs one attempt.
        let mut turn = 0_usize;
        while !self.questions.is_closed() {
            turn = turn.wrapping_add(1);
            let connected = tokio::time::timeout(PATIENCE, self.connect(turn)).await;
            let connected = connected.unwrap_or_else(|_| Err(format!("it did not answer within {PATIENCE:?}")));
            let why = match connected {
                Ok(mut connection) => {
                    (pause, told) = (PAUSE_MIN, false);
                    self.shared.went_up();
                    log::info!("Redis is reachable: `{}:*` is looked up there", self.options.prefix);
                    match self.serve(&mut connection).await {
                        Ok(()) => return,
                        Err(why) => why,
                    }
                }
                Err(why) => why,
            };
            self.shared.went_down();
            if !told {
                told = true;
                log::warn!("Redis is away: of `{}:*` only what is known goes on, for a time: {why}", self.options.prefix);
            }
            // Whoever waits decides by what is known.
            while self.questions.try_recv().is_ok() {}
            // Gateways that lost Redis together do not come back together.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    async fn connect(&self, turn: usize) -> Result<MultiplexedConnection, Broken> {
        let info = find_master(&self.options.topology, turn).await?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(|e| e.to_string())?;
        let shared = Arc::clone(&self.shared);
        let prefix = format!("{}:", self.options.prefix);
        // Called on the connection's own task, in the order in which Redis speaks.
        let heard = move |push: PushInfo| {
            hear(&shared, &prefix, &push);
            Ok::<(), Infallible>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_push_sender(heard);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|e| e.to_string())?;
        let mut tracking = Pipeline::new();
        tracking.cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(format!("{}:", self.options.prefix));
        match send(&mut connection, &tracking, 1).await?.first() {
            Some(Value::Okay) => Ok(connection),
            Some(Value::ServerError(error)) => Err(format!("it answered {} to CLIENT TRACKING", error.code())),
            _ => Err("its answer makes no sense".to_owned()),
        }
    }

    /// Until nobody can ask any more (`Ok`) or the connection is of no more use.
    async fn serve(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_ping = Instant::now() + PING_EVERY;
        loop {
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                count = self.questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.ask(connection, &mut batch).await?;
                }
                () = shared.lost_link.notified() => return Err("the connection was closed".to_owned()),
                () = tokio::time::sleep_until(next_ping) => {
                    let mut ping = Pipeline::new();
                    ping.cmd("PING");
                    send(connection, &ping, 1).await?;
                    next_ping = Instant::now() + PING_EVERY;
                }
            }
        }
    }

    async fn ask(&self, connection: &mut MultiplexedConnection, batch: &mut Vec<Question<T>>) -> Result<(), Broken> {
        batch.retain(|question| !question.answer.is_closed());
        if batch.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for question in batch.iter() {
            pipeline.cmd("GET").arg(format!("{}:{}", self.options.prefix, question.name));
        }
        let changes = self.shared.changes.load(Ordering::Acquire);
        let replies = send(connection, &pipeline, batch.len()).await.inspect_err(|_| batch.clear())?;
        for (question, reply) in batch.drain(..).zip(replies) {
            let value = match reply {
                Value::Nil => None,
                Value::BulkString(bytes) => {
                    let parsed = T::parse(&question.name, &bytes);
                    if parsed.is_none() {
                        log::warn!("a value under `{}:` in Redis makes no sense and counts as absent", self.options.prefix);
                    }
                    parsed.map(Arc::new)
                }
                Value::ServerError(error) => return Err(format!("it answered {}", error.code())),
                _ => return Err("its answer makes no sense".to_owned()),
            };
            self.shared.learn(question.name, value.clone(), changes);
            // The request may have given up.
            let _ = question.answer.send(value);
        }
        Ok(())
    }
}

/// What Redis says without having been asked.
fn hear<T>(shared: &Shared<T>, prefix: &str, push: &PushInfo) {
    match push.kind {
        PushKind::Disconnection => {
            shared.went_down();
            shared.lost_link.notify_one();
        }
        PushKind::Invalidate => match push.data.first() {
            Some(Value::Array(names)) => {
                for name in names {
                    if let Value::BulkString(name) = name
                        && let Ok(name) = std::str::from_utf8(name)
                        && let Some(name) = name.strip_prefix(prefix)
                    {
                        shared.forget(name);
                    }
                }
            }
            // FLUSHALL, FLUSHDB.
            _ => shared.forget_all(),
        },
        _ => {}
    }
}

/// One round trip, with one reply for each command, errors included.
async fn send(connection: &mut MultiplexedConnection, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Broken> {
    let replies = connection.send_packed_commands(pipeline, 0, count).await.map_err(|e| e.to_string())?;
    if replies.len() == count { Ok(replies) } else { Err("it answered too little".to_owned()) }
}
