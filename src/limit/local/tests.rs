use super::*;
use crate::clock::ManualClock;
use crate::limit::Shape;
use crate::value::Period;
use std::sync::Arc;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;

fn bucket(number: u64, per: u64, capacity: u64) -> Limit {
    Limit { name: format!("{number}").into(), shape: Shape::TokenBucket { per: per * SECOND, capacity }, number }
}
fn store(bytes: u64) -> (LocalStore, Arc<ManualClock>) {
    let clock = ManualClock::new();
    (LocalStore::new(bytes, clock.clone()), clock)
}
fn places(store: &LocalStore) -> u64 {
    store.shards.iter().map(|shard| shard.lock().places() as u64).sum()
}
fn admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admitted(_))
}

#[test]
fn all_limits_admit_or_none_is_touched() {
    let (store, clock) = store(MEMORY_MIN);
    let daily = Limit { name: "day".into(), shape: Shape::FixedWindow { period: Period::Day }, number: 3 };
    let set = store.set("route", &[bucket(1, 1, 1), daily]);
    assert!(admitted(&store.take(&set, b"a", 1)));
    for _ in 0..100 {
        let Decision::Refused { limit, wait, standings } = store.take(&set, b"a", 1) else { panic!() };
        assert_eq!((limit, wait), (0, SECOND));
        assert_eq!(standings[1].remaining, 2, "a refused request consumed of the other limit");
    }
    for _ in 0..2 {
        clock.advance(Duration::from_secs(1));
        assert!(admitted(&store.take(&set, b"a", 1)));
    }
    clock.advance(Duration::from_secs(1));
    let Decision::Refused { limit, .. } = store.take(&set, b"a", 1) else { panic!() };
    assert_eq!(limit, 1);
    assert!(admitted(&store.take(&set, b"b", 1)), "keys are apart");
}

#[test]
fn a_set_compiled_anew_goes_on_with_the_counts() {
    let (store, _) = store(MEMORY_MIN);
    let before = store.set("route", &[bucket(5, 60, 5)]);
    (0..5).for_each(|_| assert!(admitted(&store.take(&before, b"a", 1))));
    let after = store.set("route", &[bucket(7, 60, 7)]);
    assert_eq!(store.look(&after, b"a")[0].remaining, 2);
    assert_eq!(store.look(&store.set("route", &[bucket(7, 61, 7)]), b"a")[0].remaining, 7, "another window is another limit");
    assert_eq!(store.look(&store.set("other", &[bucket(7, 60, 7)]), b"a")[0].remaining, 7, "another scope");
}

#[test]
fn a_key_that_is_being_limited_outlives_any_number_of_others() {
    let (store, clock) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(5, 3600, 5)]);
    let limited: Vec<String> = (0..1_000).map(|n| format!("bad{n}")).collect();
    for key in &limited {
        (0..5).for_each(|_| assert!(admitted(&store.take(&set, key.as_bytes(), 1))));
    }
    // Thirty times as many keys as there are places.
    for n in 0..500_000_u32 {
        store.take(&set, &n.to_be_bytes(), 1);
    }
    for key in &limited {
        assert!(!admitted(&store.take(&set, key.as_bytes(), 1)), "{key} was forgotten");
    }
    assert!(store.stats().evicted > 400_000);
    clock.advance(Duration::from_secs(721));
    assert!(limited.iter().all(|key| admitted(&store.take(&set, key.as_bytes(), 1))));
}

#[test]
fn idle_keys_go_before_busy_ones() {
    let (store, clock) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(2, 1, 2)]);
    let slow = store.set("route", &[bucket(100, 3600, 100)]);
    let places = u32::try_from(places(&store)).unwrap();
    (0..places / 2).for_each(|n| drop(store.take(&slow, &n.to_be_bytes(), 1)));
    (0..4).for_each(|round| {
        clock.advance(Duration::from_secs(2));
        (0..places / 4).for_each(|n| drop(store.take(&set, &(places * (round + 1) + n).to_be_bytes(), 1)));
    });
    let kept = (0..places / 2).filter(|n| store.look(&slow, &n.to_be_bytes())[0].remaining == 99).count();
    let lost = places as usize / 2 - kept;
    assert!(lost * 1_000 < kept, "{lost} busy keys were forgotten, {kept} kept");
}

#[test]
fn when_everything_is_being_limited_newcomers_share_and_are_not_exempt() {
    let (store, _) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(1, 3600, 1)]);
    let total = 200_000_u32;
    let first = (0..total).filter(|n| admitted(&store.take(&set, &n.to_be_bytes(), 1))).count() as u64;
    let places = places(&store);
    assert!(first <= places + 1, "{first} admitted with room for {places}");
    assert!(first > places * 9 / 10, "{first} admitted with room for {places}");
    let again = |set: &LocalSet| (0..total).filter(|n| admitted(&store.take(set, &n.to_be_bytes(), 1))).count();
    assert_eq!(again(&set), 0);
    // As a reload does it: the new set is there before the old one goes.
    let reloaded = store.set("route", &[bucket(1, 3600, 1)]);
    drop(set);
    assert_eq!(again(&reloaded), 0, "the shared bucket was filled by a reload");
    drop(reloaded);
    store.set("other", &[bucket(1, 3600, 1)]);
    assert_eq!(store.overflow.lock().len(), 1, "buckets of limits that are gone stay");
}

#[test]
fn a_charge_takes_what_is_left_of_each_limit_and_a_reset_gives_it_back() {
    let (store, _) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(5, 60, 5), bucket(100, 3600, 100)]);
    assert!(admitted(&store.take(&set, b"a", 1)));
    store.charge(&set, b"a", 7);
    let left = |key: &[u8]| store.look(&set, key).iter().map(|standing| standing.remaining).collect::<Vec<_>>();
    assert_eq!((left(b"a"), left(b"b")), (vec![0, 92], vec![5, 100]));
    store.reset(&set, b"a");
    assert_eq!(left(b"a"), [5, 100]);
    store.reset(&set, b"never seen");
}

#[test]
fn a_request_that_is_never_admitted_keeps_no_key_from_being_forgotten() {
    let (store, _) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(5, 3600, 5)]);
    for n in 0..200_000_u32 {
        assert!(admitted(&store.take(&set, &n.to_be_bytes(), 1)));
        let Decision::Refused { wait, .. } = store.take(&set, &n.to_be_bytes(), 6) else { panic!() };
        assert_eq!(wait, u64::MAX);
    }
    let stats = store.stats();
    assert!(stats.evicted > 100_000 && stats.shared == 0, "{} forgotten, {} share a count", stats.evicted, stats.shared);
}

#[test]
fn threads_together_get_exactly_the_limit() {
    let (store, _) = store(MEMORY_MIN);
    let set = store.set("route", &[bucket(10_000, 60, 10_000)]);
    let count = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mine = (0..5_000).filter(|_| admitted(&store.take(&set, b"a", 1))).count();
                count.fetch_add(mine, Ordering::SeqCst);
            });
        }
    });
    assert_eq!(count.into_inner(), 10_000);
}

/// What it really takes is counted in tests/alloc.rs.
#[test]
fn no_more_than_69_bytes_are_there_for_a_key_and_limit() {
    for bytes in [MEMORY_MIN, 64 << 20, (64 << 20) + 12_345] {
        let (places, blocks) = (places(&store(bytes).0), 64 * 64);
        assert!(places * 68 < bytes && (places + blocks) * 69 > bytes, "{places} places in {bytes} bytes");
    }
}
