//! The end of a process that has counted in Redis: what only it knows is told before, or said to be lost.

use crate::support::redis::Redis;
use crate::support::{SOON, eventually, eventually_some, runtime};
use gatewright::limit::redis::{Debts, RedisStore, SharedSet};
use gatewright::limit::{Limit, Shape};
use gatewright::redis_link::{Access, Pem, Place, Topology};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn store(redis: &Redis, timeout: Duration) -> RedisStore {
    let topology = Topology::new(&Place::Url(&redis.url()), &Pem::default()).unwrap();
    let access = Access { topology, timeout, prefix: "p".into(), connect: true };
    RedisStore::new(access, 1, Arc::new(Debts::new(Arc::default())))
}

fn ten_an_hour() -> Arc<SharedSet> {
    let shape = Shape::TokenBucket { per: 3_600_000_000_000, capacity: 10 };
    Arc::new(SharedSet::new("route:a", &[Limit { name: "t".into(), shape, number: 10 }], 0))
}

fn up(store: &RedisStore, set: &SharedSet) {
    eventually("redis is up", SOON, || store.is_up(set, b"k"));
}

fn left(store: &RedisStore, set: &Arc<SharedSet>, key: &[u8]) -> u64 {
    let look = || runtime().block_on(store.look(set, key, Duration::from_secs(2)));
    eventually_some("an answer", SOON, look)[0].remaining
}

/// Noted while Redis was there, because an answer was late or the queue full: no heartbeat comes before the end.
#[test]
fn what_is_owed_when_a_process_ends_is_charged_first() {
    let redis = Redis::start();
    let set = ten_an_hour();
    let ending = store(&redis, Duration::from_secs(2));
    up(&ending, &set);
    // More than fit into one message.
    let keys: Vec<String> = (0..300).map(|n| format!("k{n}")).collect();
    keys.iter().for_each(|key| ending.owe(&set, key.as_bytes(), 3));
    ending.charge(&set, b"told", 4);
    ending.close();
    assert_eq!(ending.metrics().lost.charges.get(), 0);
    let other = store(&redis, Duration::from_secs(2));
    up(&other, &set);
    for key in [&keys[0], &keys[150], &keys[299]] {
        assert_eq!(left(&other, &set, key.as_bytes()), 7, "{key}");
    }
    assert_eq!(left(&other, &set, b"told"), 6);
}

#[test]
fn a_process_ends_though_redis_does_not_answer() {
    let redis = Redis::start();
    let set = ten_an_hour();
    let ending = store(&redis, Duration::from_millis(200));
    up(&ending, &set);
    redis.freeze();
    ending.owe(&set, b"k", 3);
    let begun = Instant::now();
    ending.close();
    // One second, and what the machine takes besides.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // What was sent counts itself, when nobody waits for the answer any more.
    eventually("it is counted as lost", SOON, || ending.metrics().lost.charges.get() == 1);
}
