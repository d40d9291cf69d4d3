//! Checking passwords without letting it take the machine: off the async workers, a bounded number at a time, a bounded
//! number waiting, and not again what was right a moment ago.

use crate::consumer::PasswordHash;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SystemRandom;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// The most requests whose passwords are being checked or wait for it.
const ADMITTED_MAX: usize = 64;
/// What is said to the one too many.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The most pairs in each of the two generations of the cache.
const GENERATION_MAX: usize = 5_000;

/// Shared by every `basic` filter of the process.
pub(super) struct Checks {
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// Drawn at the start of the process, so that what is in the cache tells nothing to anyone who reads it elsewhere.
    key: hmac::Key,
    recent: Mutex<Recent>,
}

/// Stands for a name, a password and the hash that it was right for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mark([u8; 32]);

/// When each pair was last verified. When the younger generation is full the older is forgotten: bounded, and never a pause
/// to tidy up.
#[derive(Default)]
struct Recent {
    younger: HashMap<Mark, Instant>,
    older: HashMap<Mark, Instant>,
}

/// Too many passwords are being checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy;

impl Checks {
    pub fn new() -> Result<Self, String> {
        // The other half goes on serving requests, whatever is guessed.
        let running = available_parallelism().map_or(1, |cores| cores.get() / 2).max(1);
        Checks::with(ADMITTED_MAX, running)
    }

    pub(super) fn with(admitted: usize, running: usize) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| "the system has no random numbers")?;
        Ok(Checks {
            admitted: Arc::new(Semaphore::new(admitted)),
            running: Arc::new(Semaphore::new(running)),
            key,
            recent: Mutex::default(),
        })
    }

    pub fn mark(&self, username: &str, password: &[u8], hash: &PasswordHash) -> Mark {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [username.as_bytes(), password, hash.expose().as_bytes()] {
            // The lengths keep the parts apart.
            context.update(&part.len().to_le_bytes());
            context.update(part);
        }
        let mut mark = [0; 32];
        for (to, from) in mark.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        Mark(mark)
    }

    /// What is checked for a name that does not exist: always the same for one name, and nobody can tell beforehand which, so that
    /// the time that a guess takes is none by which it could be told from a name that exists.
    pub fn decoy<'a>(&self, username: &str, decoys: &'a [PasswordHash]) -> Option<&'a PasswordHash> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"decoy ");
        context.update(username.as_bytes());
        let tag = context.sign();
        let drawn = tag.as_ref().iter().take(8).fold(0, |drawn: u64, byte| drawn << 8 | u64::from(*byte));
        let place = drawn.checked_rem(u64::try_from(decoys.len()).ok()?)?;
        decoys.get(usize::try_from(place).ok()?)
    }

    pub fn is_recent(&self, mark: &Mark, now: Instant, within: Duration) -> bool {
        if within.is_zero() {
            return false;
        }
        let recent = self.recent.lock();
        let at = recent.younger.get(mark).or_else(|| recent.older.get(mark));
        at.is_some_and(|at| now.saturating_duration_since(*at) < within)
    }

    pub fn remember(&self, mark: Mark, now: Instant) {
        let mut recent = self.recent.lock();
        if recent.younger.len() >= GENERATION_MAX {
            recent.older = std::mem::take(&mut recent.younger);
        }
        recent.younger.insert(mark, now);
    }

    /// Whether the password is right. A check that has begun ends even if nobody waits for it any more, and holds its place
    /// until then.
    pub async fn verify(self: Arc<Self>, hash: PasswordHash, password: Vec<u8>) -> Result<bool, Busy> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| Busy)?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Busy)?;
        let check = tokio::task::spawn_blocking(move || {
            let right = hash.verify(&password);
            drop((admitted, running));
            right
        });
        // A check that panicked has not found the password to be right.
        Ok(check.await.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::{cheap_password, password_with_passes};

    fn mark(number: usize) -> Mark {
        let mut mark = [0; 32];
        mark[..8].copy_from_slice(&number.to_le_bytes());
        Mark(mark)
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_the_oldest() {
        let checks = Checks::with(1, 1).unwrap();
        let now = Instant::now();
        (0..3 * GENERATION_MAX).for_each(|number| checks.remember(mark(number), now));
        let recent = checks.recent.lock();
        assert!(recent.younger.len() + recent.older.len() <= 2 * GENERATION_MAX);
        drop(recent);
        let minute = Duration::from_secs(60);
        assert!(checks.is_recent(&mark(3 * GENERATION_MAX - 1), now, minute) && !checks.is_recent(&mark(0), now, minute));
        assert!(!checks.is_recent(&mark(3 * GENERATION_MAX - 1), now + minute, minute));
        assert!(!checks.is_recent(&mark(3 * GENERATION_MAX - 1), now, Duration::ZERO));
    }

    #[test]
    fn a_name_that_does_not_exist_costs_what_some_name_does_and_always_the_same() {
        let checks = Checks::with(1, 1).unwrap();
        let decoys = [1, 2].map(|passes| password_with_passes("a", passes).parse::<PasswordHash>().unwrap());
        let drawn: Vec<_> = (0..200).map(|n| checks.decoy(&format!("user{n}"), &decoys).unwrap().cost().1).collect();
        // By chance alone, one in 2^199 runs has only one of them.
        assert!(drawn.contains(&1) && drawn.contains(&2), "{drawn:?}");
        let again: Vec<_> = (0..200).map(|n| checks.decoy(&format!("user{n}"), &decoys).unwrap().cost().1).collect();
        assert_eq!(drawn, again);
        let other = Checks::with(1, 1).unwrap();
        let others: Vec<_> = (0..200).map(|n| other.decoy(&format!("user{n}"), &decoys).unwrap().cost().1).collect();
        assert_ne!(drawn, others, "nobody knows which names cost what");
        assert!(checks.decoy("user", &[]).is_none());
    }

    #[test]
    fn no_two_pairs_share_a_mark() {
        let checks = Checks::with(1, 1).unwrap();
        let (a, b) = (cheap_password("a").parse().unwrap(), cheap_password("b").parse().unwrap());
        let first = checks.mark("ab", b"c", &a);
        assert!(first == checks.mark("ab", b"c", &a));
        assert!(first != checks.mark("a", b"bc", &a) && first != checks.mark("ab", b"c", &b));
        assert!(first != Checks::with(1, 1).unwrap().mark("ab", b"c", &a), "the key is of the process");
    }

    #[tokio::test]
    async fn one_too_many_is_told_so_at_once() {
        let checks = Arc::new(Checks::with(1, 1).unwrap());
        let hash: PasswordHash = cheap_password("a").parse().unwrap();
        let held = Arc::clone(&checks.running).acquire_owned().await.unwrap();
        let mut waiting = Box::pin(Arc::clone(&checks).verify(hash.clone(), b"a".to_vec()));
        assert!(futures_poll(&mut waiting).is_none());
        assert_eq!(Arc::clone(&checks).verify(hash.clone(), b"a".to_vec()).await, Err(Busy));
        drop(held);
        assert_eq!(waiting.await, Ok(true));
        assert_eq!(Arc::clone(&checks).verify(hash, b"b".to_vec()).await, Ok(false));
    }

    /// The only thread for blocking work is held, so that a check that is made on it cannot have begun. One that were made on the worker
    /// would be done when it is first polled, and the timer would never have its turn.
    #[test]
    fn a_password_is_not_checked_where_requests_are_served() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let checks = Arc::new(Checks::with(2, 2).unwrap());
            let hash: PasswordHash = cheap_password("a").parse().unwrap();
            let (release, held) = std::sync::mpsc::channel::<()>();
            let holder = tokio::task::spawn_blocking(move || held.recv());
            let mut check = Box::pin(Arc::clone(&checks).verify(hash, b"a".to_vec()));
            for _ in 0..3 {
                tokio::select! {
                    biased;
                    done = &mut check => panic!("checked on the worker: {done:?}"),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            release.send(()).unwrap();
            assert_eq!(check.await, Ok(true));
            holder.await.unwrap().unwrap();
        });
    }

    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
