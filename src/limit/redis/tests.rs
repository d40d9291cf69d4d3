//! What Redis is told while nobody waits: whatever becomes of it, it is owed or counted as lost.

use super::debts::Charge;
use super::worker::Owed;
use super::*;
use crate::limit::stores::Stores;
use crate::limit::{Limit, Shape};
use crate::state::StatePool;
use redis::Value;

fn store() -> (RedisStore, Arc<SharedSet>) {
    let shape = Shape::TokenBucket { per: 3_600_000_000_000, capacity: 10 };
    let set = SharedSet::new("route:a", &[Limit { name: "t".into(), shape, number: 10 }], 0);
    (RedisStore::new(Access::nowhere(), 1, Arc::new(Debts::new(Arc::default()))), Arc::new(set))
}

/// What is owed of all keys, and what was lost: charges and uses given back.
fn books(store: &RedisStore) -> (Vec<u64>, u64, u64) {
    let owed = store.shared.debts.collect(|_, _| true).0.iter().map(|charge| charge.costs[0]).collect();
    (owed, store.metrics().lost.charges.get(), store.metrics().lost.returns.get())
}

fn charge(store: &RedisStore, set: &Arc<SharedSet>) -> Question {
    let key: Arc<[u8]> = b"k".as_slice().into();
    let what = What::Charge(store.shared.untold(Some((Arc::clone(set), Arc::clone(&key), 3))));
    Question { set: Arc::clone(set), key, cost: 3, what, answer: None }
}

#[test]
fn a_charge_that_finds_no_room_is_owed_and_a_return_is_counted_as_lost() {
    let (store, set) = store();
    store.charge(&set, b"k", 3);
    assert_eq!(books(&store), (vec![3], 0, 0), "away");
    store.shared.servers.only_full();
    store.charge(&set, b"k", 4);
    assert_eq!(books(&store), (vec![4], 0, 0), "full");
    store.give(&set, b"k", 1, 2);
    assert_eq!(books(&store), (vec![], 0, 1));
}

#[test]
fn what_was_sent_is_lost_until_it_is_confirmed() {
    let (store, set) = store();
    let mut sent = charge(&store, &set);
    sent.what.sent(true);
    drop(sent);
    assert_eq!(books(&store), (vec![], 1, 0), "Redis may have counted it");
    let mut sent = charge(&store, &set);
    sent.what.sent(true);
    sent.what.sent(false);
    drop(sent);
    assert_eq!(books(&store), (vec![3], 1, 0), "it was refused, and not sent anew");
    let reply = Value::Array([1, 7, 0, 0, 77].map(Value::Int).to_vec());
    for what in [charge(&store, &set).what, What::Give(1, store.shared.untold(None))] {
        let mut sent = Question { set: Arc::clone(&set), key: b"k".as_slice().into(), cost: 3, what, answer: None };
        sent.what.sent(true);
        assert!(store.shared.answer(sent, &reply));
        assert_eq!(books(&store), (vec![], 1, 0), "it was confirmed");
    }
}

#[test]
fn keys_beyond_the_bound_of_debts_are_counted_as_lost() {
    let (store, set) = store();
    for key in 0..debts::KEYS_MAX {
        store.owe(&set, &key.to_be_bytes(), 1);
    }
    store.owe(&set, &7_usize.to_be_bytes(), 1);
    assert_eq!(store.metrics().lost.charges.get(), 0);
    store.owe(&set, b"one more", 1);
    assert_eq!(store.metrics().lost.charges.get(), 1);
}

#[test]
fn what_is_told_in_vain_is_owed_again_or_counted_as_lost() {
    let (store, set) = store();
    let charge = || Charge { set: Arc::clone(&set), key: b"k".as_slice().into(), costs: [4].into_iter().collect() };
    let owed = |sent| Owed { shared: &store.shared, charge: Some(charge()), sent };
    drop(owed(false));
    assert_eq!(books(&store), (vec![4], 0, 0), "never sent");
    drop(owed(true));
    assert_eq!(books(&store), (vec![], 1, 0), "Redis may have counted it");
    let error = |text: &str| {
        let text = format!("-{text}\r\n");
        redis::parse_redis_value(text.as_bytes()).unwrap()
    };
    assert!(store.shared.told(owed(true), &error("NOSCRIPT No matching script.")).is_some());
    assert_eq!(books(&store), (vec![4], 1, 0), "the script was not there, nor is it sent anew");
    assert!(store.shared.told(owed(true), &error("MOVED 7 10.0.0.1:6379")).is_none());
    assert_eq!(books(&store), (vec![4], 1, 0), "another server has the key");
    assert!(store.shared.told(owed(true), &error("OOM command not allowed")).is_none());
    assert_eq!(books(&store), (vec![], 2, 0), "refused");
    assert!(store.shared.told(owed(true), &Value::Array(vec![])).is_none());
    assert_eq!(books(&store), (vec![], 2, 0), "told");
}

#[test]
fn what_is_owed_outlives_a_reload_or_is_counted_as_lost() {
    let state = StatePool::new();
    let reload = |access: Access, gateways| {
        let stores = Stores::new(0, Some((access, gateways)));
        Arc::clone(stores.redis(&state).unwrap())
    };
    let (_, set) = store();
    let first = reload(Access::nowhere(), 1);
    first.owe(&set, b"k", 3);
    let more = reload(Access::nowhere(), 2);
    drop(first);
    assert_eq!(books(&more), (vec![3], 0, 0), "another number of gateways");
    more.owe(&set, b"k", 3);
    let slower = reload(Access { timeout: Duration::from_millis(77), ..Access::nowhere() }, 2);
    drop(more);
    assert_eq!(books(&slower), (vec![3], 0, 0), "another timeout");
    slower.owe(&set, b"k", 3);
    let elsewhere = reload(Access { prefix: "other".into(), ..Access::nowhere() }, 2);
    assert_eq!(books(&elsewhere), (vec![], 0, 0), "nothing is owed there");
    drop(slower);
    assert_eq!(books(&elsewhere), (vec![], 1, 0), "the counters go on");
}

#[test]
fn the_end_waits_for_what_is_under_way_until_it_is_confirmed() {
    let (store, set) = store();
    store.shared.servers.only_full();
    let mut sent = charge(&store, &set);
    sent.what.sent(true);
    let (store, closed) = (&store, &std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.close();
            closed.store(true, Ordering::SeqCst);
        });
        // Whoever does not wait for it has ended by then, on any machine that runs at all.
        let until = std::time::Instant::now() + CLOSING / 5;
        while std::time::Instant::now() < until && !closed.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert!(!closed.load(Ordering::SeqCst), "what was under way was left behind");
        assert!(store.shared.answer(sent, &Value::Array([1, 7, 0, 0, 77].map(Value::Int).to_vec())));
    });
    assert_eq!(books(store), (vec![], 0, 0));
}

#[test]
fn what_is_still_owed_at_the_end_is_counted_as_lost() {
    let (store, set) = store();
    store.owe(&set, b"k", 3);
    let begun = Instant::now();
    store.close();
    assert!(begun.elapsed() < CLOSING, "nobody is there to be waited for");
    assert_eq!(books(&store), (vec![], 1, 0), "Redis is away");
    // It counts as up, and nobody works for it.
    store.shared.servers.only_full();
    store.owe(&set, b"k", 3);
    let begun = Instant::now();
    store.close();
    assert!(begun.elapsed() >= CLOSING, "it might have been charged");
    assert_eq!(books(&store), (vec![], 2, 0), "Redis is slow");
}
