//! Requests that any of the gateways has seen already, in Redis.
//!
//! One `SET NX PX` remembers a signature and says whether it was there, in one round trip and for no longer than it would count.
//! Gateways may differ in what time it is by [`CLOCKS`] before one of them takes what another has forgotten.

use crate::redis_link::{Access, Alive, Broken, Link, Sent, Server, Servers, Work, ask_all, slot_of_key, start};
use redis::{Pipeline, Value};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The most questions that wait for one server. Further ones are answered as if it were away.
const QUEUE: usize = 8_192;
/// The most questions of one pipeline.
const BATCH: usize = 256;
/// An idle connection is tried this often.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How much longer than it counts here a signature is remembered, in seconds.
const CLOCKS: u64 = 60;

/// What all gateways have seen.
pub struct SharedReplays {
    shared: Arc<Shared>,
    _alive: Alive,
}

struct Question {
    key: String,
    /// How long it is remembered.
    seconds: u64,
    /// Whether it is the first.
    answer: oneshot::Sender<bool>,
}

struct Shared {
    servers: Servers<Shared>,
    prefix: Arc<str>,
    timeout: Duration,
}

impl SharedReplays {
    pub fn new(redis: Access) -> Self {
        let shared = Shared { servers: Servers::new(redis.topology), prefix: redis.prefix, timeout: redis.timeout };
        let shared = Arc::new(shared);
        let alive = if redis.connect { start(Arc::clone(&shared), "redis-replays") } else { Alive::not() };
        SharedReplays { shared, _alive: alive }
    }

    /// Remembers a signature until a time in seconds since 1970. Whether it is the first; `None`: Redis does not say in time.
    pub async fn note(&self, fingerprint: [u8; 32], until: u64, now: u64) -> Option<bool> {
        let key = self.shared.key(&fingerprint);
        let node = self.shared.servers.reachable(|| slot_of_key(key.as_bytes()))?;
        let (answer, answered) = oneshot::channel();
        let seconds = until.saturating_sub(now).saturating_add(CLOCKS);
        if !node.ask(Question { key, seconds, answer }) {
            return None;
        }
        tokio::time::timeout(self.shared.timeout, answered).await.ok()?.ok()
    }
}

impl Shared {
    fn key(&self, fingerprint: &[u8; 32]) -> String {
        let mut key = String::with_capacity(self.prefix.len().saturating_add(75));
        key.push_str(&self.prefix);
        key.push_str(":signature:");
        for byte in fingerprint {
            // Writing to a String cannot fail.
            let _ = write!(key, "{byte:02x}");
        }
        key
    }
}

impl Work for Shared {
    type Question = Question;
    type Link = Link;
    type State = ();
    const QUEUE: usize = QUEUE;

    fn servers(&self) -> &Servers<Self> {
        &self.servers
    }

    async fn connect(self: &Arc<Self>, server: &Arc<Server<()>>, turn: usize) -> Result<Link, Broken> {
        Link::reach(&self.servers.topology, server.address(), turn, self.timeout).await
    }

    async fn serve(
        self: &Arc<Self>,
        server: &Arc<Server<()>>,
        link: &mut Link,
        questions: &mut mpsc::Receiver<Sent<Question>>,
    ) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_check = Instant::now() + CHECK_EVERY;
        let set = |pipeline: &mut Pipeline, question: &Question| {
            pipeline.cmd("SET").arg(&question.key).arg(1).arg("NX").arg("PX").arg(question.seconds.saturating_mul(1_000));
        };
        loop {
            tokio::select! {
                count = questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    // Whoever waits no more has decided without, and must not use up what it did not accept.
                    batch.retain(|sent| !sent.question.answer.is_closed());
                    if batch.is_empty() {
                        continue;
                    }
                    let (answered, sound) = ask_all(self, server, link, &mut batch, set).await?;
                    for (question, reply) in answered {
                        let first = match reply {
                            Value::Okay => true,
                            Value::Nil => false,
                            _ => return Err(Broken::nonsense()),
                        };
                        // The request may have given up.
                        let _ = question.answer.send(first);
                    }
                    sound?;
                }
                () = tokio::time::sleep_until(next_check) => {
                    link.check(&self.servers.topology).await?;
                    next_check = Instant::now() + CHECK_EVERY;
                }
            }
        }
    }

    fn came(&self, server: &Server<()>) {
        match server.address() {
            "" => log::info!("Redis is reachable: signatures count once at all gateways"),
            address => log::info!("the Redis node {address} is reachable: signatures of its slots count once at all gateways"),
        }
    }

    fn away(&self, server: Option<&Server<()>>, why: &str) {
        match server.map(Server::address) {
            None | Some("") => log::warn!("Redis is away, signed requests are treated as on_error says: {why}"),
            Some(address) => {
                log::warn!("the Redis node {address} is away, signed requests of its slots are treated as on_error says: {why}");
            }
        }
    }
}
