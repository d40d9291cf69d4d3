//! What is done with each server: look-ups, answers to keep, URLs to forget.
//!
//! Commands are under way side by side, so that none waits behind the bytes of a large answer. A key that has just moved to
//! another server is a miss; the next look-up finds it.

use super::super::entry::Entry;
use super::super::key::Key;
use super::super::vary::normalised;
use super::codec::{self, Bad};
use super::{Job, PATIENCE, ROOM, Shared, UrlHash};
use crate::redis_link::{Broken, Fault, Link, Redirection, Sent, Server, Servers, Work, text};
use http::HeaderMap;
use redis::{Pipeline, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Commands that may be under way at a time, at each server.
const AT_ONCE: usize = 256;
/// Commands in a row that may fail before a server counts as away.
const FAILURES: u32 = 3;
/// How long invalidations are remembered; a fetch that takes longer than this is a fetch of something else.
const REMEMBER: u64 = 600;
/// How many fields what is stored of one URL without its query may have, of 256 KiB at most each: every answer has two and one more
/// for each further piece. With more, all of it goes.
const FIELDS_MAX: u64 = 4_096;
/// How often an idle connection is tried.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl Work for Shared {
    type Question = Job;
    type Link = Link;
    type State = ();
    const QUEUE: usize = super::QUEUE;

    fn servers(&self) -> &Servers<Self> {
        &self.servers
    }

    async fn connect(self: &Arc<Self>, server: &Arc<Server<()>>, turn: usize) -> Result<Link, Broken> {
        // Look-ups have their own deadline; this one bounds what nobody waits for.
        Link::reach(&self.servers.topology, server.address(), turn, PATIENCE).await
    }

    async fn serve(
        self: &Arc<Self>,
        server: &Arc<Server<()>>,
        link: &mut Link,
        jobs: &mut mpsc::Receiver<Sent<Job>>,
    ) -> Result<(), Broken> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        // What is to be forgotten does not wait behind what is looked up.
        let urgent = Arc::new(Semaphore::new(AT_ONCE));
        let failures = Arc::new(AtomicU32::new(0));
        let mut pulse = tokio::time::interval(CHECK_EVERY);
        loop {
            if failures.load(Ordering::Relaxed) >= FAILURES {
                return Err(Broken::new(Fault::Timeout, "it does not answer in time"));
            }
            let commands = || Commands {
                link: link.clone(),
                server: Arc::clone(server),
                shared: Arc::clone(self),
                failures: Arc::clone(&failures),
            };
            tokio::select! {
                sent = jobs.recv() => {
                    let Some(sent) = sent else { return Ok(()) };
                    let places = if matches!(sent.question, Job::Forget(..)) { &urgent } else { &places };
                    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
                        self.metrics.dropped.increment();
                        continue;
                    };
                    let commands = commands();
                    tokio::spawn(async move {
                        let _place = place;
                        commands.run(sent.question).await;
                    });
                }
                // An idle worker finds out too that its server has gone.
                _ = pulse.tick() => {
                    let mut commands = commands();
                    // Not awaited here: look-ups must not wait behind it.
                    tokio::spawn(async move {
                        if commands.link.check(&commands.shared.servers.topology).await.is_err() {
                            commands.failures.store(FAILURES, Ordering::Relaxed);
                        }
                    });
                }
            }
        }
    }

    async fn beside(self: Arc<Self>) {
        super::hub::follow(self).await
    }

    fn away(&self, server: Option<&Server<()>>, why: &str) {
        match server.map(Server::address) {
            None | Some("") => log::warn!("Redis is away, the cache does without: {why}"),
            Some(address) => log::warn!("the Redis node {address} is away, the cache does without: {why}"),
        }
    }

    fn noted(&self) {
        let whole = self.hub.is_up() && self.servers.nodes().all_up();
        if !self.whole.swap(whole, Ordering::Relaxed) && whole {
            log::info!("Redis is reachable: the cache is shared");
        }
    }
}

/// What one job needs.
struct Commands {
    link: Link,
    server: Arc<Server<()>>,
    shared: Arc<Shared>,
    failures: Arc<AtomicU32>,
}

/// Why there is no reply.
enum Without {
    /// The key is elsewhere, or not to be had just now.
    Elsewhere,
    Broken,
}

type Reply<T> = Result<T, Without>;

impl Commands {
    async fn run(mut self, job: Job) {
        let failed = match job {
            Job::Get { url, key, request, most, answer } => {
                let found = self.get(&url, &key, &request, most).await;
                let failed = matches!(found, Err(Without::Broken));
                if let Ok(found) = found {
                    // Nobody may be waiting any more.
                    let _ = answer.send(found);
                } else if !failed {
                    let _ = answer.send(None);
                }
                failed
            }
            Job::Put { url, key, entry, generation } => {
                matches!(self.put(&url, &key, &entry, generation).await, Err(Without::Broken))
            }
            Job::Generation(answer) => match self.generation().await {
                Ok(generation) => {
                    let _ = answer.send(generation);
                    false
                }
                Err(without) => matches!(without, Without::Broken),
            },
            Job::Forget(url, answer) => match self.forget(&url).await {
                Ok(()) => {
                    let _ = answer.send(());
                    false
                }
                Err(without) => matches!(without, Without::Broken),
            },
        };
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// One round trip without a reply that is an error.
    async fn send(&mut self, pipeline: &Pipeline, count: usize) -> Reply<Vec<Value>> {
        let replies = self.link.send(pipeline, count).await.map_err(|_| Without::Broken)?;
        for reply in &replies {
            if let Value::ServerError(error) = reply {
                let elsewhere = Redirection::of(error, self.server.address()).is_some() || error.code() == "TRYAGAIN";
                if elsewhere {
                    self.shared.servers.suspect();
                    return Err(Without::Elsewhere);
                }
                log::debug!("Redis answered {} to the cache", error.code());
                return Err(Without::Broken);
            }
        }
        Ok(replies)
    }

    async fn within<T>(end: Instant, reply: impl Future<Output = Reply<T>>) -> Reply<T> {
        timeout_at(end, reply).await.unwrap_or(Err(Without::Broken))
    }

    /// Waits for room for so many pieces.
    async fn room(&self, pieces: u32, end: Instant) -> Reply<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.shared.room).acquire_many_owned(pieces.min(ROOM));
        match timeout_at(end, room).await {
            Ok(Ok(room)) => Ok(room),
            // It says nothing of the server.
            _ => {
                self.shared.metrics.dropped.increment();
                Err(Without::Elsewhere)
            }
        }
    }

    async fn generation(&mut self) -> Reply<u64> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(self.shared.name_of("generation"));
        let end = Instant::now() + self.shared.timeout;
        let replies = Commands::within(end, self.send(&pipeline, 1)).await?;
        Ok(replies.first().and_then(number).unwrap_or(0))
    }

    async fn get(&mut self, url: &UrlHash, key: &Key, request: &HeaderMap, most: u64) -> Reply<Option<Entry>> {
        let end = Instant::now() + self.shared.timeout;
        let room = self.room(1, end).await?;
        let name = self.shared.url_of('u', url);
        let plain = codec::field(key, "", |_| String::new());
        let shared = Arc::clone(&self.shared);
        let here = shared.servers.has(&self.server, || shared.hub_slot());
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(shared.url_of('i', url));
        pipeline.cmd("HGET").arg(&name).arg(format!("v:{plain}"));
        pipeline.cmd("HGET").arg(&name).arg(&plain);
        if here {
            pipeline.cmd("GET").arg(shared.name_of("generation"));
        }
        let count = if here { 4 } else { 3 };
        let (replies, elsewhere) =
            tokio::join!(Commands::within(end, self.send(&pipeline, count)), generation_elsewhere(&shared, here, end));
        let mut replies = replies?.into_iter();
        let since = replies.next().as_ref().and_then(number).unwrap_or(0);
        let names = replies.next().as_ref().and_then(text);
        let first = replies.next().and_then(bytes);
        let generation = match here {
            true => replies.next().as_ref().and_then(number).unwrap_or(0),
            false => elsewhere.ok_or(Without::Elsewhere)?,
        };
        shared.generation.store(generation, Ordering::Relaxed);
        let (field, first) = match names.filter(|names| !names.is_empty()) {
            Some(names) => {
                let field = codec::field(key, &names, |name| normalised(name, request));
                let mut pipeline = Pipeline::new();
                pipeline.cmd("HGET").arg(&name).arg(&field);
                let first = Commands::within(end, self.send(&pipeline, 1)).await?.pop().and_then(bytes);
                (field, first)
            }
            None => (plain, first),
        };
        let Some(mut joined) = first else { return Ok(None) };
        let count = codec::pieces(&joined).unwrap_or(0);
        let most_pieces = most.saturating_add(2 << 20) / (codec::PIECE as u64);
        if count == 0 || u64::from(count) > most_pieces.saturating_add(1) {
            shared.metrics.corrupt.increment();
            return Ok(None);
        }
        // The pieces, what they are joined to, what that unpacks to, and a copy of its body.
        drop(room);
        let _room = self.room(count.saturating_mul(4), end).await?;
        if count > 1 {
            let mut pipeline = Pipeline::new();
            let command = pipeline.cmd("HMGET").arg(&name);
            for piece in 1..count {
                command.arg(format!("{field}#{piece}"));
            }
            let rest = match Commands::within(end, self.send(&pipeline, 1)).await?.pop() {
                Some(Value::Array(rest)) => rest,
                _ => return Err(Without::Broken),
            };
            for piece in rest {
                let Some(piece) = bytes(piece) else { return Ok(None) };
                joined.extend_from_slice(&piece);
            }
        }
        match codec::decode(&joined, key, generation, since, most, &shared.clock) {
            Ok(entry) => Ok(Some(entry).filter(|entry| entry.selecting.matches(request))),
            Err(Bad::Other) => Ok(None),
            Err(Bad::Corrupt) => {
                shared.metrics.corrupt.increment();
                Ok(None)
            }
        }
    }

    async fn put(&mut self, url: &UrlHash, key: &Key, entry: &Entry, generation: u64) -> Reply<()> {
        // The body, packed, in pieces, and on its way.
        let length = entry.body.length / (codec::PIECE as u64) + 1;
        let pieces = u32::try_from(length.saturating_mul(4)).unwrap_or(ROOM);
        let _room = self.room(pieces, Instant::now() + PATIENCE).await?;
        let Some(pieces) = codec::encode(key, entry, generation) else { return Ok(()) };
        let name = self.shared.url_of('u', url);
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
        let mut pipeline = Pipeline::new();
        pipeline.cmd("HSET").arg(&name).arg(format!("v:{plain}")).arg(&names);
        for (at, piece) in pieces.iter().enumerate() {
            let field = if at == 0 { field.clone() } else { format!("{field}#{at}") };
            pipeline.cmd("HSET").arg(&name).arg(field).arg(piece.as_slice());
        }
        pipeline.cmd("EXPIRE").arg(&name).arg(kept).arg("NX");
        pipeline.cmd("EXPIRE").arg(&name).arg(kept).arg("GT");
        pipeline.cmd("HLEN").arg(&name);
        let fields = self.send(&pipeline, pieces.len().saturating_add(4)).await?.pop().as_ref().and_then(number);
        self.shared.metrics.stored.increment();
        if fields.is_some_and(|fields| fields > FIELDS_MAX) {
            // Whoever invents queries makes this URL miss, and fills Redis with nothing.
            let mut pipeline = Pipeline::new();
            pipeline.cmd("DEL").arg(&name);
            self.send(&pipeline, 1).await?;
        }
        Ok(())
    }

    async fn forget(&mut self, url: &UrlHash) -> Reply<()> {
        let now = codec::unix_millis(self.shared.clock.wall());
        let mut pipeline = Pipeline::new();
        pipeline.cmd("DEL").arg(self.shared.url_of('u', url));
        pipeline.cmd("SET").arg(self.shared.url_of('i', url)).arg(now).arg("EX").arg(REMEMBER);
        self.send(&pipeline, 2).await.map(drop)
    }
}

/// Asks who has the counters, unless that is who is asked anyway. `None`: it does not say.
async fn generation_elsewhere(shared: &Arc<Shared>, here: bool, end: Instant) -> Option<u64> {
    if here {
        return None;
    }
    let (answer, answered) = oneshot::channel();
    let node = shared.servers.reachable(|| shared.hub_slot())?;
    if !node.ask(Job::Generation(answer)) {
        return None;
    }
    timeout_at(end, answered).await.ok()?.ok()
}

impl Shared {
    pub fn url_of(&self, kind: char, url: &UrlHash) -> String {
        format!("{}:cache:{kind}:{{{}}}", self.prefix, url.0)
    }
}

pub fn number(value: &Value) -> Option<u64> {
    text(value)?.parse().ok()
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
