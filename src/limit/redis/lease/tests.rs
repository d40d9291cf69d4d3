use super::*;
use crate::limit::{Limit, Shape, Standing};

const SECOND: u64 = 1_000_000_000;

fn set(lease: u64) -> Arc<SharedSet> {
    let limit = Limit { name: "t".into(), number: 100, shape: Shape::TokenBucket { per: 60 * SECOND, capacity: 100 } };
    Arc::new(SharedSet::new("route:a", &[limit], lease))
}

fn admitted(remaining: u64) -> Decision {
    Decision::Admitted(std::iter::once(Standing { remaining, more_in: 1, idle_in: 0 }).collect())
}

fn ask(book: &Book, set: &Arc<SharedSet>, now: u64) -> Errand {
    match book.spend(set, b"k", 1, now) {
        Spent::Ask(errand) => errand,
        Spent::Here { decision, .. } => panic!("{decision:?}"),
    }
}

fn here(book: &Book, set: &Arc<SharedSet>, now: u64) -> (Decision, Option<Errand>) {
    match book.spend(set, b"k", 1, now) {
        Spent::Here { decision, errand, .. } => (decision, errand.map(|errand| *errand)),
        Spent::Ask(errand) => panic!("{errand:?}"),
    }
}

/// A book that holds a batch of `uses` for five seconds.
fn with(set: &Arc<SharedSet>, uses: u64) -> Book {
    let book = Book::default();
    let errand = ask(&book, set, 0);
    assert_eq!((errand.want, errand.back.len()), (set.batch, 0));
    book.answered(set, b"k", &errand, &admitted(50), (uses, LIFE), SECOND / 100);
    book
}

#[test]
fn what_is_held_is_spent_here_and_the_next_batch_is_fetched_in_time() {
    let (set, now) = (set(20), SECOND);
    let book = with(&set, 10);
    let mut errands = Vec::new();
    for left in (0..10).rev() {
        let (decision, errand) = here(&book, &set, now);
        assert_eq!(decision.standings()[0].remaining, 50 + left);
        errands.extend(errand);
    }
    assert_eq!((errands.len(), errands[0].want), (1, 10), "one is under way at a time");
    let empty = ask(&book, &set, now);
    assert_eq!((empty.want, empty.back.as_slice()), (0, &[(1, 10)][..]), "what is spent is reported");
}

#[test]
fn a_batch_ends_before_it_ends_in_redis() {
    let set = set(20);
    let book = with(&set, 10);
    let early = LIFE - LIFE / 50;
    assert!(matches!(here(&book, &set, early - 1).0, Decision::Admitted(_)));
    let errand = ask(&book, &set, early);
    assert!(errand.back.is_empty(), "Redis counts what has expired, so it is not told");
}

#[test]
fn after_a_lost_answer_there_is_no_other_batch_until_the_first_must_be_gone() {
    let set = set(20);
    let book = Book::default();
    let lost = ask(&book, &set, 0);
    book.lost(&set, b"k", &lost, true, SECOND);
    assert_eq!(ask(&book, &set, SECOND + LIFE - 1).want, 0);
    assert_eq!(ask(&book, &set, SECOND + LIFE).want, 10);
    // One that was never sent leaves no trace.
    let book = with(&set, 10);
    (0..10).for_each(|_| drop(here(&book, &set, 1)));
    let unsent = ask(&book, &set, 1);
    book.lost(&set, b"k", &unsent, false, 1);
    assert_eq!(ask(&book, &set, 2).back.as_slice(), unsent.back.as_slice());
}

#[test]
fn a_refusal_is_believed_for_a_tenth_of_a_second() {
    let set = set(20);
    let book = Book::default();
    let errand = ask(&book, &set, 0);
    let standings: Standings = std::iter::once(Standing { remaining: 0, more_in: 7 * SECOND, idle_in: 0 }).collect();
    let refused = Decision::Refused { standings, limit: 0, wait: 7 * SECOND };
    book.answered(&set, b"k", &errand, &refused, (0, 0), 0);
    book.refused(&set, b"k", 1, &refused, 0);
    let Decision::Refused { wait, .. } = here(&book, &set, REFUSAL - 1).0 else { panic!() };
    assert_eq!(wait, 7 * SECOND - (REFUSAL - 1), "the wait is still true");
    assert_eq!(ask(&book, &set, REFUSAL).want, 10);
}

#[test]
fn an_idle_key_gives_back_what_it_holds_and_is_forgotten() {
    let set = set(20);
    let book = with(&set, 10);
    drop(here(&book, &set, SECOND));
    let mut back = Vec::new();
    book.idle(SECOND + IDLE - 1, |_, _, errand| back.push(errand));
    assert!(back.is_empty());
    book.idle(SECOND + IDLE, |_, key, errand| {
        assert_eq!(key, b"k");
        back.push(errand);
    });
    assert_eq!((back.len(), back[0].back.as_slice(), back[0].want), (1, &[(1, 1)][..], 0));
    assert_eq!(book.held(SECOND + IDLE), (0, 0));
    assert!(book.shards.iter().all(|shard| shard.lock().is_empty()));
}

/// A batch that is on its way may carry the last uses of the limit: Redis then refuses who asks behind it.
#[test]
fn what_redis_refuses_is_paid_by_a_batch_that_came_meanwhile() {
    let set = set(4);
    let book = with(&set, 2);
    let (_, refill) = here(&book, &set, SECOND);
    let refill = refill.unwrap();
    here(&book, &set, SECOND);
    let behind = ask(&book, &set, SECOND);
    assert_eq!(behind.want, 0);
    book.answered(&set, b"k", &refill, &admitted(0), (1, LIFE), SECOND);
    let refused = Decision::Refused { standings: Standings::new(), limit: 0, wait: SECOND };
    book.answered(&set, b"k", &behind, &refused, (0, 0), SECOND);
    let (decision, batch) = book.spend_instead(&set, b"k", 1, SECOND).unwrap();
    assert!(matches!(decision, Decision::Admitted(_)) && batch == Some(refill.id));
    assert!(book.spend_instead(&set, b"k", 1, SECOND).is_none(), "it was one");
}

#[test]
fn a_use_can_be_taken_back_until_redis_has_been_told_of_it() {
    let set = set(20);
    let book = with(&set, 10);
    let spend = |book: &Book, cost| match book.spend(&set, b"k", cost, SECOND) {
        Spent::Here { decision: Decision::Admitted(_), batch: Some(batch), errand } => (batch, errand),
        other => panic!("{other:?}"),
    };
    let batch = (0..10).map(|_| spend(&book, 1).0).last().unwrap();
    book.unspend(&set, b"k", batch, 1);
    assert_eq!(spend(&book, 1).0, batch, "the last use of a batch goes back");
    let mut errand = ask(&book, &set, SECOND);
    assert_eq!(errand.back.as_slice(), &[(batch, 10)]);
    book.unspend(&set, b"k", batch, 1);
    errand = ask(&book, &set, SECOND);
    assert!(errand.back.is_empty());
    // One that is finished and was not told yet: its use goes back to Redis.
    let book = with(&set, 10);
    let (first, refill) = spend(&book, 6);
    book.answered(&set, b"k", &refill.unwrap(), &admitted(40), (10, LIFE), SECOND);
    spend(&book, 4);
    let (second, _) = spend(&book, 1);
    assert_ne!(first, second);
    book.unspend(&set, b"k", first, 2);
    let mut back = Vec::new();
    book.surrender(SECOND, |_, _, errand| back.push(errand.back));
    assert_eq!(back[0].as_slice(), &[(first, 8), (second, 1)]);
}

#[test]
fn all_is_surrendered_at_the_end() {
    let set = set(20);
    let book = with(&set, 10);
    assert_eq!(book.held(SECOND), (1, 10));
    let mut back = Vec::new();
    book.surrender(SECOND, |_, _, errand| back.push(errand.back));
    assert_eq!((back.len(), back[0].as_slice(), book.held(SECOND)), (1, &[(1, 0)][..], (0, 0)));
}
