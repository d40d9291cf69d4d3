//! How long a client may keep us waiting: a budget of time that bytes earn back.
//!
//! A timeout for each read lets a client stay for ever with one byte inside each of them. Here the time that is spent waiting
//! comes out of one budget, and each byte gives back only the time that it takes at the slowest rate that is tolerated. A
//! client that is fast on average never notices; one that drips runs out. Time in which nobody waits for the client, such as
//! while the upstream is slow, is not counted.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The budget and how it is earned back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tolerance {
    /// The longest single wait, and the budget at the start. Zero: without bound.
    pub pause: Duration,
    /// Bytes for each second that is given back; 0: the first byte gives back everything.
    pub rate: u64,
}

/// What is left of a budget.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    waiting_since: Option<Instant>,
    /// Kept from wait to wait and not moved for each of them: when it fires too early, it is set anew.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub const fn new() -> Self {
        Patience { left: Duration::ZERO, waiting_since: None, sleep: None }
    }

    /// Begins anew, with the whole budget and no timer.
    pub fn reset(&mut self, tolerance: Tolerance) {
        *self = Patience { left: tolerance.pause, waiting_since: None, sleep: None };
    }

    /// The whole budget again, by the same tolerance as before: the timer stays.
    pub fn renew(&mut self, tolerance: Tolerance) {
        self.left = tolerance.pause;
        self.waiting_since = None;
    }

    /// So many bytes went through.
    pub fn progress(&mut self, bytes: usize, tolerance: Tolerance) {
        let Some(since) = self.waiting_since.take() else { return };
        if tolerance.rate == 0 {
            self.left = tolerance.pause;
            return;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let earned = Duration::from_millis(bytes.saturating_mul(1_000).checked_div(tolerance.rate).unwrap_or_default());
        self.left = self.left.saturating_sub(since.elapsed()).saturating_add(earned).min(tolerance.pause);
    }

    /// Ready at that time, whatever the budget.
    pub fn poll_until(&mut self, end: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end.into())));
            if sleep.deadline() != end.into() {
                sleep.as_mut().reset(end.into());
            }
            std::task::ready!(sleep.as_mut().poll(cx));
        }
    }

    /// Nothing can be read or written now: ready when that has lasted too long.
    pub fn poll_exhausted(&mut self, tolerance: Tolerance, cx: &mut Context<'_>) -> Poll<()> {
        if tolerance.pause.is_zero() {
            return Poll::Pending;
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let Some(end) = since.checked_add(self.left) else { return Poll::Pending };
        loop {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end.into())));
            if sleep.as_mut().poll(cx).is_pending() {
                // Deadlines only move forward (`progress` gives back at most what the wait took and what was earned), so a
                // timer for an earlier one is good enough.
                return Poll::Pending;
            }
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(end.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { pause: Duration::from_millis(100), rate: 1_000 };

    async fn exhausted(patience: &mut Patience, within: Duration) -> bool {
        let wait = std::future::poll_fn(|cx| patience.poll_exhausted(TOLERANCE, cx));
        tokio::time::timeout(within, wait).await.is_ok()
    }

    #[tokio::test]
    async fn a_drip_runs_out_of_patience_and_a_steady_rate_does_not() {
        let mut patience = Patience::new();
        patience.reset(TOLERANCE);
        let started = Instant::now();
        // One byte, worth 1 ms, every 20 ms.
        while !exhausted(&mut patience, Duration::from_millis(20)).await {
            patience.progress(1, TOLERANCE);
            assert!(started.elapsed() < Duration::from_secs(10), "never ran out");
        }
        assert!(started.elapsed() >= Duration::from_millis(100));

        patience.reset(TOLERANCE);
        for _ in 0..20 {
            assert!(!exhausted(&mut patience, Duration::from_millis(5)).await);
            patience.progress(1_000, TOLERANCE);
        }
    }

    #[tokio::test]
    async fn time_in_which_nobody_waits_is_not_counted() {
        let mut patience = Patience::new();
        patience.reset(TOLERANCE);
        assert!(!exhausted(&mut patience, Duration::from_millis(1)).await);
        patience.progress(1, TOLERANCE);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(!exhausted(&mut patience, Duration::from_millis(1)).await);
    }
}
