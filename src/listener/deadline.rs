//! The deadline of a whole request, which Pingora does not have: its timeouts are for each read and each connect.
//!
//! The request path gives every attempt no more than the time that is left, and so answers 504 by itself in almost every
//! case. This is the backstop for the rest, such as an upstream that drips one byte of its header just inside each read
//! timeout: some time after the deadline the request is dropped, whatever it is waiting for, and its connections close.

use crate::alarm::Alarm;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// How long after its deadline a request may still take to answer 504 in an orderly way.
const GRACE: Duration = Duration::from_secs(1);

/// Set by the request, read by the connection that drives it. Milliseconds since the connection began; zero is none.
#[derive(Debug)]
pub struct DeadlineCell {
    origin: Instant,
    millis: AtomicU64,
}

impl DeadlineCell {
    pub fn new() -> Self {
        DeadlineCell { origin: Instant::now(), millis: AtomicU64::new(0) }
    }

    pub fn set(&self, deadline: Option<Instant>) {
        let millis = deadline.map_or(0, |at| at.saturating_duration_since(self.origin).as_millis().max(1));
        self.millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }

    /// The deadline itself.
    pub fn instant_exact(&self) -> Option<Instant> {
        let millis = self.get();
        self.origin.checked_add(Duration::from_millis(millis)).filter(|_| millis != 0)
    }

    /// With the grace.
    fn instant(&self, millis: u64) -> Option<Instant> {
        self.origin.checked_add(Duration::from_millis(millis))?.checked_add(GRACE)
    }
}

impl Default for DeadlineCell {
    fn default() -> Self {
        DeadlineCell::new()
    }
}

/// Drives the requests of a connection and its waits for them, with one timer for all.
#[derive(Default)]
pub struct Backstop(Alarm);

impl Backstop {
    /// Drives a request and drops it when its deadline is long over: then the output is `None`.
    ///
    /// The cell is set from inside the request, in the same task, so it is enough to look at it whenever the request waits.
    pub async fn run<F: Future>(&mut self, cell: &DeadlineCell, request: F) -> Option<F::Output> {
        let mut request = std::pin::pin!(request);
        std::future::poll_fn(|cx| match request.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                let wanted = cell.get();
                match (wanted != 0).then(|| cell.instant(wanted)).flatten() {
                    Some(at) => self.0.poll_late(at, cx).map(|()| None),
                    None => Poll::Pending,
                }
            }
        })
        .await
    }

    /// Drives a wait that may take until `at`: then the output is `None`.
    pub async fn until<F: Future>(&mut self, at: Instant, wait: F) -> Option<F::Output> {
        let mut wait = std::pin::pin!(wait);
        std::future::poll_fn(|cx| match wait.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.0.poll_late(at, cx).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_outlives_its_deadline_is_dropped() {
        let mut backstop = Backstop::default();
        let cell = DeadlineCell::new();
        cell.set(Some(Instant::now() + Duration::from_secs(3600)));
        assert_eq!(backstop.run(&cell, tokio::task::yield_now()).await, Some(()), "armed for an hour");
        let stuck = async {
            cell.set(Some(Instant::now()));
            std::future::pending::<()>().await;
        };
        assert!(backstop.run(&cell, stuck).await.is_none(), "an earlier deadline moves the timer");
        cell.set(None);
        assert_eq!(backstop.run(&cell, async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn one_timer_serves_waits_and_requests_that_end_at_different_times() {
        let mut backstop = Backstop::default();
        let cell = DeadlineCell::new();
        let soon = || Instant::now() + Duration::from_millis(10);
        let never = std::future::pending::<()>;
        assert!(backstop.until(soon(), never()).await.is_none());
        assert!(backstop.until(soon(), never()).await.is_none(), "a timer that has fired is armed anew");
        let far = Instant::now() + Duration::from_secs(3600);
        assert_eq!(backstop.until(far, tokio::task::yield_now()).await, Some(()), "fired for another wait");
        assert!(backstop.until(soon(), never()).await.is_none(), "an earlier end moves the timer");
        let due = soon();
        assert!(backstop.until(due, never()).await.is_none());
        cell.set(Some(far));
        let work = tokio::time::sleep(Duration::from_millis(20));
        assert_eq!(backstop.run(&cell, work).await, Some(()), "the timer of the wait before ends no request");
    }
}
