//! The store that gateways share: exact, one atomic script and one round trip for each decision, or none with a lease.
//!
//! A request hands its question to the worker of the server that has its key, and waits for the answer no longer than its
//! budget. A worker sends whatever has gathered since its last round trip as one pipeline. The workers have a thread of
//! their own with a runtime of its own, because neither a slow scrape of the control service nor a busy edge may make an
//! answer late, and because they then need nobody to start them.
//!
//! While a server is away nothing is asked of it: its worker alone tries to reach it, with growing and jittered pauses. What
//! this gateway admits meanwhile is noted ([`Debts`]) and charged before the first question after it is back.

mod debts;
pub mod lease;
mod script;
mod worker;

pub use debts::Debts;
pub use script::{SCRIPT, lease_arguments};

use super::{Decision, Limit, Shape, Source, Standing, Standings};
use crate::redis_link::{Access, Alive, Node, Servers, slot_of, start};
use crate::telemetry::metrics::RedisMetrics;
use lease::{Book, Errand, Spent};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Questions that wait for a worker. More are answered as if Redis were away.
const QUEUE: usize = 8_192;

/// How long the end of a process waits at most until Redis has been told what only this process knows: leases that are given back,
/// charges that are under way or owed.
const CLOSING: Duration = Duration::from_secs(1);

/// Limits that hold together, compiled for Redis.
#[derive(Debug)]
pub struct SharedSet {
    scope: Box<str>,
    limits: Box<[Limit]>,
    /// For each limit the first five arguments of the script.
    arguments: Box<[[String; 5]]>,
    /// The most uses that one gateway may hold of each key without having spent them; 0: none.
    lease: u64,
    /// Of one batch: half of `lease`, so that one can be fetched while another is spent.
    batch: u64,
    /// Distinguishes what leases are for.
    fingerprint: u128,
}

impl SharedSet {
    pub fn new(scope: &str, limits: &[Limit], lease: u64) -> Self {
        let micros = |nanos: u64| nanos.div_ceil(1_000).to_string();
        let arguments = limits.iter().map(|limit| {
            let (kind, window) = match limit.shape {
                Shape::TokenBucket { per, .. } => ("b", micros(per)),
                Shape::SlidingWindow { per } => ("s", micros(per)),
                Shape::FixedWindow { period } => ("f", period.as_str().trim_start_matches('1').to_owned()),
            };
            [limit.meaning(), kind.to_owned(), limit.number.to_string(), window, limit.most().to_string()]
        });
        let arguments: Box<[_]> = arguments.collect();
        let fingerprint = super::key::fnv128(format!("{scope} {arguments:?} {lease}").as_bytes());
        let batch = (lease / 2).max(lease.min(1));
        SharedSet { scope: scope.into(), arguments, limits: limits.into(), lease, batch, fingerprint }
    }

    /// The most uses that one gateway may hold of each key; 0: no leases.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    fn slot(&self, key: &[u8]) -> u16 {
        slot_of(&[self.scope.as_bytes(), b"|", key])
    }

    /// The key in Redis. The braces make all of it the hash tag of a Redis Cluster.
    pub fn name(&self, prefix: &str, key: &[u8]) -> Vec<u8> {
        let length = prefix.len().saturating_add(self.scope.len()).saturating_add(key.len()).saturating_add(4);
        let mut name = Vec::with_capacity(length);
        for part in [prefix.as_bytes(), b":{", self.scope.as_bytes(), b"|", key, b"}"] {
            name.extend_from_slice(part);
        }
        name
    }

    /// The arguments of the script that stand for the limits, six for each.
    pub fn arguments(&self, costs: impl Iterator<Item = u64>) -> impl Iterator<Item = String> {
        self.arguments.iter().zip(costs).flat_map(|(arguments, cost)| {
            let own = arguments.iter().cloned();
            own.chain([cost.to_string()])
        })
    }
}

/// What is to be done.
enum What {
    Take,
    /// Consume what is left, refuse nothing.
    Charge(Untold),
    Look,
    /// Take back what was consumed at this time of Redis, in microseconds.
    Give(u64, Untold),
    Reset,
    Lease(Pending),
}

impl What {
    /// It is under way, or will be sent anew.
    fn sent(&mut self, sent: bool) {
        match self {
            What::Lease(pending) => pending.sent = sent,
            What::Charge(untold) | What::Give(_, untold) => untold.sent = sent,
            What::Take | What::Look | What::Reset => {}
        }
    }
}

/// What Redis is told while nobody waits. If it is dropped before Redis has confirmed it, nobody else would know.
struct Untold {
    shared: Arc<Shared>,
    /// What is owed instead of a charge that was never sent.
    owed: Option<(Arc<SharedSet>, Arc<[u8]>, u64)>,
    sent: bool,
    confirmed: bool,
}

impl Drop for Untold {
    fn drop(&mut self) {
        match self.owed.take() {
            _ if self.confirmed => {}
            Some((set, key, cost)) if !self.sent => self.shared.owe(&set, &key, cost),
            // Redis may have counted it: charged anew, it could count twice.
            Some(_) => self.shared.metrics.lost.charges.increment(),
            None => self.shared.metrics.lost.returns.increment(),
        }
        // Not before it is owed, if it is.
        self.shared.untold.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An errand on its way. One that is dropped before it is answered is lost, and the book is told.
struct Pending {
    shared: Arc<Shared>,
    set: Arc<SharedSet>,
    key: Arc<[u8]>,
    errand: Errand,
    sent: bool,
    answered: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.book.lost(&self.set, &self.key, &self.errand, self.sent, self.shared.now());
        }
        self.shared.untold.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A question to a worker.
pub struct Question {
    set: Arc<SharedSet>,
    key: Arc<[u8]>,
    cost: u64,
    what: What,
    /// `None`: nobody waits.
    answer: Option<oneshot::Sender<(Decision, Source)>>,
}

impl Question {
    /// Whether nobody wants to know any more.
    fn is_stale(&self) -> bool {
        self.answer.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// What the store and its workers see.
struct Shared {
    servers: Servers<Shared>,
    timeout: Duration,
    prefix: Arc<str>,
    /// At least so many gateways there are.
    least: u64,
    metrics: Arc<RedisMetrics>,
    gateways: AtomicU64,
    debts: Arc<Debts>,
    /// Messages that Redis has not confirmed and whose loss would be somebody's.
    untold: AtomicUsize,
    /// Tells the workers that the process ends, and that what is owed is to be charged at once; more than once, if more is owed then.
    ends: watch::Sender<()>,
    book: Book,
    epoch: Instant,
    /// What the others know this gateway by.
    name: String,
}

impl Shared {
    /// Nanoseconds since the store was made.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn node(&self, set: &SharedSet, key: &[u8]) -> Option<Arc<Node<Shared>>> {
        self.servers.reachable(|| set.slot(key))
    }

    /// Notes what is to be charged when the server is there again.
    fn owe(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) {
        if !self.debts.note(set, key, cost) {
            self.metrics.lost.charges.increment();
        }
    }
}

pub struct RedisStore {
    shared: Arc<Shared>,
    _alive: Alive,
}

impl RedisStore {
    /// `gateways`: at least so many share it. `debts`: what is owed there.
    pub fn new(redis: Access, gateways: u64, debts: Arc<Debts>) -> Self {
        let metrics = Arc::new(RedisMetrics::new(Arc::clone(debts.lost())));
        let shared = Arc::new(Shared {
            gateways: AtomicU64::new(gateways.max(1)),
            least: gateways.max(1),
            servers: Servers::new(redis.topology),
            timeout: redis.timeout,
            prefix: redis.prefix,
            metrics,
            debts,
            untold: AtomicUsize::new(0),
            ends: watch::Sender::new(()),
            book: Book::default(),
            epoch: Instant::now(),
            name: uuid::Uuid::now_v7().to_string(),
        });
        let alive = if redis.connect { start(Arc::clone(&shared), "redis") } else { Alive::not() };
        RedisStore { shared, _alive: alive }
    }

    pub fn metrics(&self) -> &Arc<RedisMetrics> {
        &self.shared.metrics
    }

    /// Whether it is worth asking for this key.
    pub fn is_up(&self, set: &SharedSet, key: &[u8]) -> bool {
        self.shared.metrics.is_up() || self.shared.node(set, key).is_some()
    }

    /// How many gateways share it, as last known.
    pub fn gateways(&self) -> u64 {
        self.shared.gateways.load(Ordering::Relaxed)
    }

    /// The longest that a request waits.
    pub fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// Decisions that were made by leases, without a round trip.
    pub fn leased(&self) -> u64 {
        self.shared.book.spent.load(Ordering::Relaxed)
    }

    /// Uses that this gateway holds on leases, without having spent them.
    pub fn held(&self) -> u64 {
        self.shared.book.held(self.shared.now()).1
    }

    /// Gives leases back, and charges what is owed or under way before the process ends, as far as Redis confirms it within a moment.
    /// What is not charged then is lost, and said to be; what is not given back counts as used when it expires.
    pub fn close(&self) {
        let shared = &self.shared;
        shared.book.surrender(shared.now(), |set, key, errand| shared.run(set, key, errand));
        let begun = Instant::now();
        loop {
            // In this order: what is not told becomes owed, and nothing the other way round.
            let untold = shared.untold.load(Ordering::Acquire);
            let owed = shared.debts.left();
            let reachable = shared.servers.nodes().list().iter().any(|node| node.is_up());
            if (untold == 0 && owed == 0) || !reachable || begun.elapsed() >= CLOSING {
                shared.debts.give_up("the process ends");
                // Those that are on their way count themselves, when nobody waits for them any more.
                let unconfirmed = untold.saturating_add(shared.debts.left());
                if unconfirmed > 0 {
                    log::warn!("the process ends, and Redis has not confirmed {unconfirmed} charges, returns and leases");
                }
                return;
            }
            if owed > 0 {
                shared.ends.send_replace(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks, and waits at most for the budget. `None`: decide without Redis.
    pub async fn take(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) -> Option<(Decision, Source)> {
        self.ask(set, key, cost, |_| What::Take, self.shared.timeout).await
    }

    /// Spends from a lease, and from which batch if it was one; the error is what must be asked with [`RedisStore::fetch`].
    pub fn spend(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) -> Result<(Decision, Option<u64>), Box<Errand>> {
        match self.shared.book.spend(set, key, cost, self.shared.now()) {
            Spent::Here { decision, batch, errand } => {
                if let Some(errand) = errand {
                    self.shared.run(set, key, *errand);
                }
                Ok((decision, batch))
            }
            Spent::Ask(errand) => Err(Box::new(errand)),
        }
    }

    /// As [`RedisStore::take`], with an errand of the lease on the same way.
    pub async fn fetch(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64, errand: Box<Errand>) -> Option<(Decision, Source)> {
        let what = |key: &Arc<[u8]>| self.shared.pending(set, key, *errand);
        self.ask(set, key, cost, what, self.shared.timeout).await
    }

    /// An errand that is not run after all, because Redis is away.
    pub fn drop_errand(&self, set: &SharedSet, key: &[u8], errand: &Errand) {
        self.shared.book.lost(set, key, errand, false, self.shared.now());
    }

    /// What is left, without taking anything. For operators: waits up to `patience`.
    pub async fn look(&self, set: &Arc<SharedSet>, key: &[u8], patience: Duration) -> Option<Standings> {
        self.ask(set, key, 0, |_| What::Look, patience).await.map(|(decision, _)| decision.standings().clone())
    }

    /// Forgets a key, and what this gateway owes for it. What gateways hold of it on leases they still spend.
    pub async fn reset(&self, set: &Arc<SharedSet>, key: &[u8], patience: Duration) -> bool {
        // Before, so that it is not charged after.
        self.shared.debts.forget(set, key);
        self.ask(set, key, 0, |_| What::Reset, patience).await.is_some()
    }

    async fn ask(
        &self,
        set: &Arc<SharedSet>,
        key: &[u8],
        cost: u64,
        what: impl FnOnce(&Arc<[u8]>) -> What,
        patience: Duration,
    ) -> Option<(Decision, Source)> {
        let (answer, answered) = oneshot::channel();
        let key: Arc<[u8]> = key.into();
        let what = what(&key);
        let node = self.shared.node(set, &key)?;
        let set = Arc::clone(set);
        let question = Question { set, key, cost, what, answer: Some(answer) };
        if !node.ask(question) {
            return None;
        }
        tokio::time::timeout(patience, answered).await.ok()?.ok()
    }

    /// Charges what a request has turned out to cost beyond what was taken for it. Nobody waits; while Redis is away, or the queue
    /// is full, it is owed.
    pub fn charge(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) {
        let Some(node) = self.shared.node(set, key) else { return self.owe(set, key, cost) };
        let (set, key): (_, Arc<[u8]>) = (Arc::clone(set), key.into());
        let what = What::Charge(self.shared.untold(Some((Arc::clone(&set), Arc::clone(&key), cost))));
        node.ask(Question { set, key, cost, what, answer: None });
    }

    /// Gives back what was taken at `taken`. Nobody waits; what cannot be told to Redis stays taken.
    pub fn give(&self, set: &Arc<SharedSet>, key: &[u8], taken: u64, cost: u64) {
        let what = What::Give(taken, self.shared.untold(None));
        let Some(node) = self.shared.node(set, key) else { return };
        node.ask(Question { set: Arc::clone(set), key: key.into(), cost, what, answer: None });
    }

    /// Gives back what was spent of a batch, unless Redis has been told of it.
    pub fn unspend(&self, set: &SharedSet, key: &[u8], batch: u64, cost: u64) {
        self.shared.book.unspend(set, key, batch, cost);
    }

    /// What was admitted without Redis at `taken` has been refused after all.
    pub fn owe_less(&self, set: &Arc<SharedSet>, key: &[u8], taken: Instant, cost: u64) {
        self.shared.debts.forgive(set, key, taken, cost);
    }

    /// Notes what was admitted without Redis.
    pub fn owe(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) {
        self.shared.owe(set, key, cost);
    }
}

impl Shared {
    fn untold(self: &Arc<Self>, owed: Option<(Arc<SharedSet>, Arc<[u8]>, u64)>) -> Untold {
        self.untold.fetch_add(1, Ordering::AcqRel);
        Untold { shared: Arc::clone(self), owed, sent: false, confirmed: false }
    }

    fn pending(self: &Arc<Self>, set: &Arc<SharedSet>, key: &Arc<[u8]>, errand: Errand) -> What {
        let (set, key) = (Arc::clone(set), Arc::clone(key));
        self.untold.fetch_add(1, Ordering::AcqRel);
        What::Lease(Pending { shared: Arc::clone(self), set, key, errand, sent: false, answered: false })
    }

    /// Sends an errand that nobody waits for.
    fn run(self: &Arc<Self>, set: &Arc<SharedSet>, key: &[u8], errand: Errand) {
        let key: Arc<[u8]> = key.into();
        let what = self.pending(set, &key, errand);
        let Some(node) = self.node(set, &key) else { return };
        let question = Question { set: Arc::clone(set), key, cost: 0, what, answer: None };
        // A full queue loses it, of which the book hears.
        node.ask(question);
    }
}

/// What the script replies.
#[derive(Debug)]
pub struct Reply {
    pub decision: Decision,
    /// The new lease: its uses and its life in nanoseconds.
    pub lease: (u64, u64),
    /// When it was decided, in microseconds of the clock of Redis.
    pub at: u64,
}

/// Reads the script's reply.
pub fn reply(set: &SharedSet, reply: &redis::Value) -> Option<Reply> {
    let redis::Value::Array(values) = reply else { return None };
    let number = |value: &redis::Value| match value {
        redis::Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let (admitted, rest) = values.split_first()?;
    let (triples, rest) = rest.split_at_checked(set.limits.len().checked_mul(3)?)?;
    let nanos = |micros: u64| micros.saturating_mul(1_000);
    let (lease, at) = match rest {
        [at] => ((0, 0), number(at)?),
        [uses, life, at] => ((number(uses)?, nanos(number(life)?)), number(at)?),
        _ => return None,
    };
    let mut standings = Standings::new();
    let mut longest = (0, 0);
    for (limit, [remaining, more, wait]) in triples.as_chunks::<3>().0.iter().enumerate() {
        let standing = Standing { remaining: number(remaining)?, more_in: nanos(number(more)?), idle_in: 0 };
        standings.try_push(standing).ok()?;
        let wait = nanos(number(wait)?);
        if wait > longest.1 {
            longest = (limit, wait);
        }
    }
    let decision = match number(admitted)? {
        0 => Decision::Refused { standings, limit: longest.0, wait: longest.1 },
        _ => Decision::Admitted(standings),
    };
    Some(Reply { decision, lease, at })
}

#[cfg(test)]
mod tests;
