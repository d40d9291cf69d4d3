//! The thread that speaks to Redis for the cache. It alone finds out whether Redis is there, with growing and jittered pauses.

use super::super::entry::Entry;
use super::super::key::{Key, base};
use super::super::memory::MemoryStore;
use super::super::purge::{Purge, What};
use super::super::vary::normalised;
use super::codec::{self, Bad};
use super::{ACKNOWLEDGE, Job, Shared, TierOptions};
use crate::clock::SharedClock;
use futures_util::StreamExt;
use http::HeaderMap;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

const CONNECT: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Commands that may be under way at a time.
const AT_ONCE: usize = 256;
/// Commands in a row that may fail before Redis counts as away.
const FAILURES: u32 = 3;
/// How long invalidations are remembered; a fetch that takes longer than this is a fetch of something else.
const REMEMBER: u64 = 600;

#[derive(Serialize, Deserialize)]
struct Message {
    id: String,
    from: String,
    kind: String,
    value: String,
    soft: bool,
    invalidation: bool,
    sequence: u64,
}

/// Ends with the last handle of the tier.
pub fn start(options: TierOptions, memory: Arc<MemoryStore>, clock: SharedClock, jobs: mpsc::Receiver<Job>, shared: Arc<Shared>) {
    let thread = std::thread::Builder::new().name("cache-redis".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                let name = uuid::Uuid::now_v7().to_string();
                runtime.block_on(Worker { options, memory, clock, shared, name, sequence: Arc::default() }.run(jobs));
            }
            Err(e) => log::error!("the cache does without Redis: its worker has no runtime: {e}"),
        }
    });
    if let Err(e) = thread {
        log::error!("the cache does without Redis: its worker did not start: {e}");
    }
}

struct Worker {
    options: TierOptions,
    memory: Arc<MemoryStore>,
    clock: SharedClock,
    shared: Arc<Shared>,
    name: String,
    /// The latest purge that this gateway has heard of; 0: none yet.
    sequence: Arc<AtomicU64>,
}

/// What every command needs. Cheap to clone.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    prefix: Arc<str>,
    memory: Arc<MemoryStore>,
    clock: SharedClock,
    shared: Arc<Shared>,
    name: Arc<str>,
    failures: Arc<AtomicU32>,
}

impl Worker {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut pause = PAUSE_MIN;
        let mut told = false;
        loop {
            let why = match tokio::time::timeout(CONNECT, self.connect()).await {
                Ok(Ok((link, messages))) => {
                    pause = PAUSE_MIN;
                    told = false;
                    self.shared.up.store(true, Ordering::Relaxed);
                    log::info!("Redis is reachable: the cache is shared");
                    match self.serve(&link, messages, &mut jobs).await {
                        None => return,
                        Some(why) => why,
                    }
                }
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("it did not answer within {CONNECT:?}"),
            };
            self.shared.up.store(false, Ordering::Relaxed);
            if !told {
                told = true;
                log::warn!("Redis is away, the cache does without: {why}");
            }
            // Whoever has asked gets no answer, and goes on without.
            while jobs.try_recv().is_ok() {}
            if jobs.is_closed() {
                return;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    async fn connect(&self) -> RedisResult<(Link, redis::aio::PubSub)> {
        let client = Client::open(self.options.info.clone())?;
        // Commands have their own deadline; this one only bounds what nobody waits for any more.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(CONNECT));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut messages = client.get_async_pubsub().await?;
        messages.subscribe(format!("{}:cache:purge", self.options.prefix)).await?;
        let link = Link {
            connection,
            prefix: self.options.prefix.as_str().into(),
            memory: Arc::clone(&self.memory),
            clock: Arc::clone(&self.clock),
            shared: Arc::clone(&self.shared),
            name: self.name.as_str().into(),
            failures: Arc::default(),
        };
        // Listening first, then looking: nothing can be missed in between.
        let (generation, sequence): (Option<u64>, Option<u64>) = redis::pipe()
            .get(link.name_of("generation"))
            .get(link.name_of("sequence"))
            .query_async(&mut link.connection.clone())
            .await?;
        self.shared.generation.store(generation.unwrap_or(0), Ordering::Relaxed);
        let sequence = sequence.unwrap_or(0).saturating_add(1);
        let known = self.sequence.swap(sequence, Ordering::Relaxed);
        if known != 0 && known != sequence {
            // A purge was missed, or Redis has forgotten how many there were.
            let gone = self.memory.purge(&Purge::new(What::Everything, false));
            log::warn!("purges were missed while Redis was away: {gone} answers are forgotten");
        }
        Ok((link, messages))
    }

    /// `None`: nobody needs it any more.
    async fn serve(&self, link: &Link, messages: redis::aio::PubSub, jobs: &mut mpsc::Receiver<Job>) -> Option<String> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut messages = messages.into_on_message();
        let mut pulse = tokio::time::interval(Duration::from_secs(1));
        loop {
            if link.failures.load(Ordering::Relaxed) >= FAILURES {
                return Some("it does not answer in time".to_owned());
            }
            tokio::select! {
                job = jobs.recv() => {
                    let job = job?;
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        self.shared.metrics.dropped.increment();
                        continue;
                    };
                    let link = link.clone();
                    let timeout = self.options.timeout;
                    tokio::spawn(async move {
                        let _place = place;
                        link.run(job, timeout).await;
                    });
                }
                message = messages.next() => {
                    let Some(message) = message else { return Some("the subscription ended".to_owned()) };
                    if let Ok(message) = serde_json::from_slice::<Message>(message.get_payload_bytes()) {
                        self.sequence.store(message.sequence.saturating_add(1), Ordering::Relaxed);
                        let link = link.clone();
                        tokio::spawn(async move { link.heard(message).await });
                    }
                }
                // An idle worker finds out too that Redis has gone.
                _ = pulse.tick() => {
                    let mut link = link.clone();
                    // Not awaited here: look-ups must not wait behind it.
                    tokio::spawn(async move {
                        if redis::cmd("PING").exec_async(&mut link.connection).await.is_err() {
                            link.failures.store(FAILURES, Ordering::Relaxed);
                        }
                    });
                }
            }
        }
    }
}

impl Link {
    fn name_of(&self, what: &str) -> String {
        format!("{}:cache:{what}", self.prefix)
    }

    fn url_of(&self, kind: char, url: &str) -> String {
        let sum = codec::sum(url.as_bytes());
        format!("{}:cache:{kind}:{}", self.prefix, sum.get(..32).unwrap_or(&sum))
    }

    async fn run(self, job: Job, timeout: Duration) {
        let failed = match job {
            Job::Get { key, request, most, answer } => {
                match tokio::time::timeout(timeout, self.get(&key, &request, most)).await {
                    Ok(Ok(found)) => {
                        // Nobody may be waiting any more.
                        let _ = answer.send(found);
                        false
                    }
                    _ => true,
                }
            }
            Job::Put { key, entry, generation } => self.put(&key, &entry, generation).await.is_err(),
            Job::Purge { purge, answer } => match self.purge(&purge, answer.is_some()).await {
                Ok(done) => {
                    if let Some(answer) = answer {
                        let _ = answer.send(done);
                    }
                    false
                }
                Err(_) => true,
            },
        };
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    async fn get(&self, key: &Key, request: &HeaderMap, most: u64) -> RedisResult<Option<Entry>> {
        let mut connection = self.connection.clone();
        let name = self.url_of('u', base_of(key));
        let plain = codec::field(key, "", |_| String::new());
        type Reply = (Option<u64>, Option<u64>, Option<String>, Option<Vec<u8>>);
        let (generation, since, names, first): Reply = redis::pipe()
            .get(self.name_of("generation"))
            .get(self.url_of('i', base_of(key)))
            .hget(&name, format!("v:{plain}"))
            .hget(&name, &plain)
            .query_async(&mut connection)
            .await?;
        let generation = generation.unwrap_or(0);
        self.shared.generation.store(generation, Ordering::Relaxed);
        let (field, first) = match names.filter(|names| !names.is_empty()) {
            Some(names) => {
                let field = codec::field(key, &names, |name| normalised(name, request));
                let first: Option<Vec<u8>> = redis::cmd("HGET").arg(&name).arg(&field).query_async(&mut connection).await?;
                (field, first)
            }
            None => (plain, first),
        };
        let Some(mut bytes) = first else { return Ok(None) };
        let count = codec::pieces(&bytes).unwrap_or(0);
        let most_pieces = most.saturating_add(2 << 20) / (codec::PIECE as u64);
        if count == 0 || u64::from(count) > most_pieces.saturating_add(1) {
            self.shared.metrics.corrupt.increment();
            return Ok(None);
        }
        if count > 1 {
            let mut command = redis::cmd("HMGET");
            command.arg(&name);
            for piece in 1..count {
                command.arg(format!("{field}#{piece}"));
            }
            let rest: Vec<Option<Vec<u8>>> = command.query_async(&mut connection).await?;
            for piece in rest {
                let Some(piece) = piece else { return Ok(None) };
                bytes.extend_from_slice(&piece);
            }
        }
        match codec::decode(&bytes, key, generation, since.unwrap_or(0), most, &self.clock) {
            Ok(entry) => Ok(Some(entry).filter(|entry| entry.selecting.matches(request))),
            Err(Bad::Other) => Ok(None),
            Err(Bad::Corrupt) => {
                self.shared.metrics.corrupt.increment();
                Ok(None)
            }
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, generation: u64) -> RedisResult<()> {
        let Some(pieces) = codec::encode(key, entry, generation) else { return Ok(()) };
        let name = self.url_of('u', base_of(key));
        let plain = codec::field(key, "", |_| String::new());
        let names = codec::names(&entry.selecting);
        let value = |name: &http::HeaderName| {
            let stored = entry.selecting.fields.iter().find(|(known, _)| known == name);
            stored.map(|(_, value)| value.to_string()).unwrap_or_default()
        };
        let field = codec::field(key, &names, value);
        let terms = &entry.terms;
        let left = terms.lifetime.saturating_sub(terms.initial_age);
        let kept = left.saturating_add(terms.stale_while_revalidate.max(terms.stale_if_error)).as_secs().clamp(1, 86_400 * 30);
        let mut pipe = redis::pipe();
        pipe.hset(&name, format!("v:{plain}"), &names).ignore();
        for (at, piece) in pieces.iter().enumerate() {
            let field = if at == 0 { field.clone() } else { format!("{field}#{at}") };
            pipe.hset(&name, field, piece.as_slice()).ignore();
        }
        pipe.cmd("EXPIRE").arg(&name).arg(kept).arg("NX").ignore();
        pipe.cmd("EXPIRE").arg(&name).arg(kept).arg("GT").ignore();
        pipe.exec_async(&mut self.connection.clone()).await?;
        self.shared.metrics.stored.increment();
        Ok(())
    }

    /// Takes effect in Redis first, then everywhere.
    async fn purge(&self, purge: &Purge, wait: bool) -> RedisResult<(u64, u64)> {
        let mut connection = self.connection.clone();
        let (kind, value) = match &purge.what {
            What::Url(url) => ("url", url.to_string()),
            What::Prefix(prefix) => ("prefix", prefix.to_string()),
            What::Tag(tag) => ("tag", tag.to_string()),
            What::Route(route) => ("route", route.to_string()),
            What::Everything => ("all", String::new()),
        };
        let mut pipe = redis::pipe();
        if let Some(url) = purge.url() {
            let now = codec::unix_millis(self.clock.wall());
            pipe.del(self.url_of('u', base(url))).ignore();
            pipe.cmd("SET").arg(self.url_of('i', base(url))).arg(now).arg("EX").arg(REMEMBER).ignore();
        } else {
            pipe.cmd("INCR").arg(self.name_of("generation")).ignore();
        }
        pipe.cmd("INCR").arg(self.name_of("sequence"));
        let (sequence,): (u64,) = pipe.query_async(&mut connection).await?;
        let id = uuid::Uuid::now_v7().to_string();
        let message = Message {
            id: id.clone(),
            from: self.name.to_string(),
            kind: kind.to_owned(),
            value,
            soft: purge.is_soft(),
            invalidation: purge.is_invalidation(),
            sequence,
        };
        let text = serde_json::to_string(&message).unwrap_or_default();
        let heard: u64 = redis::cmd("PUBLISH").arg(self.name_of("purge")).arg(text).query_async(&mut connection).await?;
        if !wait {
            return Ok((heard, 0));
        }
        let end = std::time::Instant::now().checked_add(ACKNOWLEDGE);
        loop {
            let done: Option<u64> =
                redis::cmd("GET").arg(self.name_of(&format!("done:{id}"))).query_async(&mut connection).await?;
            let done = done.unwrap_or(0);
            if done >= heard || end.is_none_or(|end| std::time::Instant::now() >= end) {
                return Ok((heard, done));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Another gateway, or this one, has purged.
    async fn heard(&self, message: Message) {
        let what = match message.kind.as_str() {
            "url" => What::Url(message.value.into()),
            "prefix" => What::Prefix(message.value.into()),
            "tag" => What::Tag(message.value.into()),
            "route" => What::Route(message.value.into()),
            _ => What::Everything,
        };
        if *message.from != *self.name {
            let purge = match &what {
                What::Url(url) if message.invalidation => Purge::invalidation(url),
                _ => Purge::new(what, message.soft),
            };
            self.memory.purge(&purge);
        }
        let name = self.name_of(&format!("done:{}", message.id));
        let done = redis::pipe()
            .cmd("INCR")
            .arg(&name)
            .ignore()
            .cmd("EXPIRE")
            .arg(&name)
            .arg(60)
            .ignore()
            .exec_async(&mut self.connection.clone())
            .await;
        if let Err(e) = done {
            log::debug!("a purge could not be acknowledged: {e}");
        }
    }
}

fn base_of(key: &Key) -> &str {
    base(&key.url)
}
