//! Small facts that live in Redis and are kept in memory: keys issued without a reload, tokens withdrawn before their time.
//!
//! A fact that was asked for is remembered, and Redis tells when it changes: `CLIENT TRACKING` in broadcasting mode names
//! every key under our prefix that anybody writes, deletes or lets expire
//! (<https://redis.io/docs/latest/develop/reference/client-side-caching/>). So the usual request asks nobody, and a key that
//! is revoked ceases to count within the time that a message takes. Whatever is remembered also ends by itself after `fresh`,
//! so that a lost message costs a bounded time.
//!
//! In a cluster each master tells of its own keys only, so each has a connection of its own ([`Watch`]); one that is lost takes
//! only its keys with it.
//!
//! While Redis is away, what was known goes on for `stale`, counted from the moment at which it was last known to be right;
//! what was not known cannot be told, which is [`Fact::Unavailable`] and never a pass. The memory is bounded: when a shard is
//! full, what has ended makes room, else any one.

mod worker;

use crate::clock::SharedClock;
use crate::redis_link::{Access, Alive, Server, Servers, slot_of, start, tag_of};
use crate::telemetry::metrics::Counter;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Questions that wait for a server. Further ones are answered as if Redis were away.
const QUEUE: usize = 4_096;
const SHARDS: usize = 16;
/// The longest name of a fact, in bytes.
pub const NAME_MAX: usize = 768;

/// What can be read from the value of a key in Redis. `name` is without the prefix.
pub trait Parse: Send + Sync + Sized + 'static {
    /// `None`: it makes no sense, which counts as if it were not there.
    fn parse(name: &str, value: &[u8]) -> Option<Self>;
}

/// Where the facts are, and for how long they are believed.
pub struct TrackedOptions {
    pub redis: Access,
    pub fresh: Duration,
    pub stale: Duration,
    /// How many facts are remembered.
    pub room: usize,
}

/// What is known about a name.
#[derive(Debug)]
pub enum Fact<T> {
    Is(Arc<T>),
    /// There is no such key in Redis.
    Absent,
    /// There was none when Redis was last asked; it is away now.
    WasAbsent,
    /// Redis is away, or too slow, and nothing is known.
    Unavailable,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct TrackedMetrics {
    pub asked: Counter,
    pub invalidated: Counter,
    pub outages: Counter,
    pub unavailable: Counter,
}

/// Facts of one kind under one prefix.
pub struct Tracked<T: Parse> {
    shared: Arc<Shared<T>>,
    timeout: Duration,
    _alive: Alive,
}

struct Question<T> {
    name: Box<str>,
    answer: oneshot::Sender<Option<Arc<T>>>,
}

/// One connection over which a server tells what changes.
#[derive(Default)]
struct Watch {
    /// When it was lost, in milliseconds since `started` and at least 1; 0: it lives.
    lost: AtomicU64,
    /// Told when it is lost.
    gone: Notify,
}

impl Watch {
    fn lost(&self) -> Option<u64> {
        Some(self.lost.load(Ordering::Acquire)).filter(|lost| *lost != 0)
    }
}

/// What is known of a server: the connection that it has, or had last.
#[derive(Default)]
struct Watched {
    watch: ArcSwapOption<Watch>,
}

impl Watched {
    fn living(&self) -> Option<Arc<Watch>> {
        self.watch.load_full().filter(|watch| watch.lost().is_none())
    }
}

struct Shared<T: Parse> {
    servers: Servers<Shared<T>>,
    prefix: Arc<str>,
    clock: SharedClock,
    started: Instant,
    fresh: u64,
    stale: u64,
    room: usize,
    hasher: foldhash::quality::RandomState,
    shards: [Shard<T>; SHARDS],
    /// Counts messages about changes: an answer that was under way meanwhile is not remembered.
    changes: AtomicU64,
    metrics: TrackedMetrics,
}

type Shard<T> = Mutex<HashMap<Box<str>, Known<T>, foldhash::quality::RandomState>>;

struct Known<T> {
    value: Option<Arc<T>>,
    /// In milliseconds since `started`.
    confirmed: u64,
    /// What would have told of a change.
    watch: Arc<Watch>,
}

impl<T: Parse> Tracked<T> {
    pub fn new(options: TrackedOptions, clock: SharedClock) -> Self {
        let Access { topology, timeout, prefix, connect } = options.redis;
        let shared = Arc::new(Shared {
            servers: Servers::new(topology),
            prefix,
            started: clock.now(),
            clock,
            fresh: millis(options.fresh),
            stale: millis(options.stale),
            room: options.room.div_ceil(SHARDS).max(1),
            hasher: foldhash::quality::RandomState::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            changes: AtomicU64::new(0),
            metrics: TrackedMetrics::default(),
        });
        let alive = if connect { start(Arc::clone(&shared), "redis-facts") } else { Alive::not() };
        Tracked { shared, timeout, _alive: alive }
    }

    /// Whether all facts can be asked for.
    pub fn is_up(&self) -> bool {
        self.shared.servers.nodes().all_up()
    }

    pub fn metrics(&self) -> &TrackedMetrics {
        &self.shared.metrics
    }

    /// How many facts are remembered, those that are absent included.
    pub fn len(&self) -> usize {
        self.shared.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What can be told without asking; `None`: ask.
    pub fn known(&self, name: &str) -> Option<Fact<T>> {
        let nodes = self.shared.servers.nodes();
        let watch = nodes.of_slot(|| self.shared.slot(name)).and_then(|node| node.server.state.living());
        match watch {
            Some(watch) => self.shared.current(name, &watch),
            None => Some(self.shared.away(name)),
        }
    }

    /// Asks Redis, and waits at most for the budget.
    pub async fn ask(&self, name: &str) -> Fact<T> {
        if name.len() > NAME_MAX {
            return Fact::Absent;
        }
        let (answer, answered) = oneshot::channel();
        let question = Question { name: name.into(), answer };
        self.shared.metrics.asked.increment();
        let node = self.shared.servers.reachable(|| self.shared.slot(name));
        let answer = match node.is_some_and(|node| node.ask(question)) {
            true => tokio::time::timeout(self.timeout, answered).await.ok().and_then(Result::ok),
            false => None,
        };
        match answer {
            Some(Some(value)) => Fact::Is(value),
            Some(None) => Fact::Absent,
            None => self.shared.away(name),
        }
    }
}

impl<T: Parse> Shared<T> {
    fn now(&self) -> u64 {
        millis(self.clock.now().saturating_duration_since(self.started))
    }

    /// The slot of a name. The prefix has no braces.
    fn slot(&self, name: &str) -> u16 {
        match tag_of(name.as_bytes()) {
            Some(tag) => slot_of(&[tag]),
            None => slot_of(&[self.prefix.as_bytes(), b":", name.as_bytes()]),
        }
    }

    fn shard(&self, name: &str) -> Option<&Shard<T>> {
        let hash = self.hasher.hash_one(name);
        // The upper bits: the lower ones choose the place within the shard.
        self.shards.get(usize::try_from(hash >> 60).unwrap_or(0) % SHARDS)
    }

    fn current(&self, name: &str, watch: &Arc<Watch>) -> Option<Fact<T>> {
        let shard = self.shard(name)?.lock();
        let known = shard.get(name)?;
        let young = self.now().saturating_sub(known.confirmed) < self.fresh;
        (young && Arc::ptr_eq(&known.watch, watch)).then(|| match &known.value {
            Some(value) => Fact::Is(Arc::clone(value)),
            None => Fact::Absent,
        })
    }

    /// What is known of it while its server cannot be asked.
    fn away(&self, name: &str) -> Fact<T> {
        let fact = self.shard(name).and_then(|shard| {
            let shard = shard.lock();
            let known = shard.get(name)?;
            // While its connection lived, a change would have been told.
            let until = known.watch.lost().map_or(known.confirmed, |lost| lost.max(known.confirmed));
            (self.now().saturating_sub(until) < self.stale).then(|| known.value.clone())
        });
        match fact {
            Some(Some(value)) => Fact::Is(value),
            Some(None) => Fact::WasAbsent,
            None => {
                self.metrics.unavailable.increment();
                Fact::Unavailable
            }
        }
    }

    /// Remembers an answer that was asked for when `changes` messages had come.
    fn learn(&self, name: Box<str>, value: Option<Arc<T>>, watch: &Arc<Watch>, changes: u64) {
        let now = self.now();
        let Some(shard) = self.shard(&name) else { return };
        let mut shard = shard.lock();
        if self.changes.load(Ordering::Acquire) != changes {
            return;
        }
        if shard.len() >= self.room && !shard.contains_key(&name) {
            let ended = self.fresh.saturating_add(self.stale);
            shard.retain(|_, known| now.saturating_sub(known.confirmed) < ended);
            if shard.len() >= self.room
                && let Some(any) = shard.keys().next().cloned()
            {
                shard.remove(&any);
            }
        }
        shard.insert(name, Known { value, confirmed: now, watch: Arc::clone(watch) });
    }

    /// Forgets a name, because somebody has changed it.
    fn forget(&self, name: &str) {
        self.metrics.invalidated.increment();
        if let Some(shard) = self.shard(name) {
            let mut shard = shard.lock();
            self.changes.fetch_add(1, Ordering::AcqRel);
            shard.remove(name);
        }
    }

    /// Forgets everything that a server has: it was flushed.
    fn forget_all(&self, server: &Server<Watched>) {
        self.metrics.invalidated.increment();
        self.changes.fetch_add(1, Ordering::AcqRel);
        for shard in &self.shards {
            shard.lock().retain(|name, _| !self.servers.has(server, || self.slot(name)));
        }
    }

    /// A server has a new connection: what an earlier one told may have changed unnoticed.
    fn watch(&self, server: &Server<Watched>, watch: Arc<Watch>) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        server.state.watch.store(Some(watch));
    }

    fn lose(&self, watch: &Watch) {
        let lives = watch.lost.compare_exchange(0, self.now().max(1), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if lives {
            self.metrics.outages.increment();
            watch.gone.notify_one();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    struct Text(String);

    impl Parse for Text {
        fn parse(_: &str, value: &[u8]) -> Option<Self> {
            String::from_utf8(value.to_vec()).ok().map(Text)
        }
    }

    fn tracked(room: usize) -> (Tracked<Text>, Arc<ManualClock>) {
        let clock = ManualClock::new();
        let options =
            TrackedOptions { redis: Access::nowhere(), fresh: Duration::from_secs(60), stale: Duration::from_secs(600), room };
        (Tracked::new(options, clock.clone()), clock)
    }

    /// Its one server has a connection.
    fn up(tracked: &Tracked<Text>) -> Arc<Watch> {
        let server = tracked.shared.servers.only();
        let watch = Arc::new(Watch::default());
        tracked.shared.watch(&server, Arc::clone(&watch));
        watch
    }

    fn shown(fact: Option<Fact<Text>>) -> String {
        match fact {
            None => "ask".to_owned(),
            Some(Fact::Is(text)) => text.0.clone(),
            Some(Fact::Absent) => "absent".to_owned(),
            Some(Fact::WasAbsent) => "was absent".to_owned(),
            Some(Fact::Unavailable) => "unavailable".to_owned(),
        }
    }

    fn learn(tracked: &Tracked<Text>, name: &str, value: Option<&str>) {
        let changes = tracked.shared.changes.load(Ordering::Acquire);
        let watch = tracked.shared.servers.only().state.living().unwrap();
        tracked.shared.learn(name.into(), value.map(|text| Arc::new(Text(text.to_owned()))), &watch, changes);
    }

    #[test]
    fn what_is_known_counts_until_it_is_old_or_changed() {
        let (tracked, clock) = tracked(100);
        up(&tracked);
        assert_eq!(shown(tracked.known("a")), "ask");
        learn(&tracked, "a", Some("1"));
        learn(&tracked, "b", None);
        assert_eq!((shown(tracked.known("a")), shown(tracked.known("b"))), ("1".into(), "absent".into()));
        tracked.shared.forget("b");
        assert_eq!((shown(tracked.known("a")), shown(tracked.known("b"))), ("1".into(), "ask".into()));
        clock.advance(Duration::from_secs(60));
        assert_eq!(shown(tracked.known("a")), "ask");
        learn(&tracked, "a", Some("2"));
        tracked.shared.forget_all(&tracked.shared.servers.only());
        assert_eq!(shown(tracked.known("a")), "ask");
    }

    #[test]
    fn an_answer_that_a_change_overtook_is_not_remembered() {
        let (tracked, _clock) = tracked(100);
        up(&tracked);
        let watch = tracked.shared.servers.only().state.living().unwrap();
        let changes = tracked.shared.changes.load(Ordering::Acquire);
        tracked.shared.forget("a");
        tracked.shared.learn("a".into(), Some(Arc::new(Text("old".into()))), &watch, changes);
        assert_eq!(shown(tracked.known("a")), "ask");
    }

    #[test]
    fn while_redis_is_away_the_known_goes_on_for_a_time_and_the_unknown_never_does() {
        let (tracked, clock) = tracked(100);
        assert_eq!(shown(tracked.known("a")), "unavailable", "before the first connection");
        let first = up(&tracked);
        learn(&tracked, "a", Some("1"));
        learn(&tracked, "b", None);
        clock.advance(Duration::from_secs(50));
        tracked.shared.lose(&first);
        clock.advance(Duration::from_secs(599));
        assert_eq!((shown(tracked.known("a")), shown(tracked.known("b"))), ("1".into(), "was absent".into()));
        assert_eq!(shown(tracked.known("c")), "unavailable");
        clock.advance(Duration::from_secs(1));
        assert_eq!(shown(tracked.known("a")), "unavailable");
        // What was told by an earlier connection is asked for again.
        let second = up(&tracked);
        assert_eq!(shown(tracked.known("a")), "ask");
        tracked.shared.lose(&second);
        assert_eq!(shown(tracked.known("a")), "unavailable", "the second connection has not told it");
    }

    #[test]
    fn no_number_of_names_grows_it() {
        let (tracked, _clock) = tracked(160);
        up(&tracked);
        for number in 0..10_000 {
            learn(&tracked, &number.to_string(), None);
            assert_eq!(shown(tracked.known(&number.to_string())), "absent", "the newest is always there");
        }
        assert!(tracked.len() <= 160, "{}", tracked.len());
    }

    #[tokio::test]
    async fn nobody_waits_for_redis_longer_than_the_budget() {
        let (tracked, _clock) = tracked(100);
        assert_eq!(shown(Some(tracked.ask("a").await)), "unavailable");
        assert_eq!(tracked.metrics().unavailable.get(), 1);
        assert_eq!(shown(Some(tracked.ask(&"x".repeat(NAME_MAX + 1)).await)), "absent");
    }
}
