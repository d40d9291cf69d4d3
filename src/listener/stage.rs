//! How far a listener is on its way out, seen by all of its connections.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    Serving = 0,
    /// Still accepting, but every answer carries `Connection: close`, so that clients move on without losing a request.
    Leaving = 1,
    /// Another process accepts in our place, or nobody. Idle connections stay until their next request, which is the last that they
    /// carry: closing one now could meet a request that is on its way.
    HandedOver = 2,
    /// No longer accepting; idle connections close, requests under way finish.
    Closing = 3,
}

/// A stage that only moves forward.
#[derive(Debug)]
pub struct StageCell {
    stage: AtomicU8,
    moved: Notify,
}

impl StageCell {
    pub fn new() -> Self {
        StageCell { stage: AtomicU8::new(Stage::Serving as u8), moved: Notify::new() }
    }

    pub fn reached(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) >= stage as u8
    }

    pub fn advance(&self, to: Stage) {
        self.stage.fetch_max(to as u8, Ordering::AcqRel);
        self.moved.notify_waiters();
    }

    pub fn watch(&self, stage: Stage) -> StageWatch<'_> {
        StageWatch { cell: self, stage, moved: None, seen: Stage::Serving as u8 }
    }

    pub async fn wait_for(&self, stage: Stage) {
        while !self.reached(stage) {
            let moved = self.moved.notified();
            if self.reached(stage) {
                return;
            }
            moved.await;
        }
    }
}

/// Waits for a stage in one task, again and again: between requests a connection waits for the next one or for the end.
///
/// [`StageCell::wait_for`] enters and leaves a list that all connections share with each wait. This one enters it once, and
/// again after each step of the stage, so that the connections of all workers do not meet at one lock for every request.
pub struct StageWatch<'a> {
    cell: &'a StageCell,
    stage: Stage,
    moved: Option<Pin<Box<Notified<'a>>>>,
    /// The stage at which `moved` was entered in the list.
    seen: u8,
}

impl StageWatch<'_> {
    /// Resolves once the stage is reached. To be polled by one task only: its waker is handed over once for each step.
    pub fn poll_reached(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = self.cell.stage.load(Ordering::Acquire);
            if now >= self.stage as u8 {
                return Poll::Ready(());
            }
            if self.moved.is_some() && self.seen == now {
                return Poll::Pending;
            }
            // Entered before the stage is looked at again: a step between the two is seen by one of them.
            let mut moved = Box::pin(self.cell.moved.notified());
            let _ = moved.as_mut().poll(cx);
            self.moved = Some(moved);
            self.seen = now;
            if self.cell.stage.load(Ordering::Acquire) == now {
                return Poll::Pending;
            }
        }
    }
}

impl Default for StageCell {
    fn default() -> Self {
        StageCell::new()
    }
}

/// Counts what is under way and tells when nothing is left.
#[derive(Debug, Default)]
pub struct Active {
    count: AtomicUsize,
    empty: Notify,
}

impl Active {
    /// Takes a place if fewer than `limit` are taken. The place is given back with [`Active::leave`].
    pub fn try_enter(&self, limit: usize) -> bool {
        let taken = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then(|| n.saturating_add(1)));
        taken.is_ok()
    }

    pub fn leave(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.empty.notify_waiters();
        }
    }

    pub fn get(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub async fn wait_empty(&self) {
        while self.get() > 0 {
            let empty = self.empty.notified();
            if self.get() == 0 {
                return;
            }
            empty.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_see_the_stage_and_the_last_to_leave() {
        let (stage, active) = (StageCell::new(), Active::default());
        assert!(active.try_enter(1) && !active.try_enter(1));
        let later = async {
            stage.advance(Stage::Closing);
            stage.advance(Stage::Leaving);
            active.leave();
        };
        tokio::join!(stage.wait_for(Stage::Leaving), active.wait_empty(), later);
        assert!(stage.reached(Stage::Closing), "a stage never moves back");
    }

    #[tokio::test]
    async fn a_watch_sleeps_through_other_steps_and_wakes_at_its_own() {
        let stage = StageCell::new();
        let mut watch = stage.watch(Stage::Closing);
        let mut polls = 0_u32;
        let reached = std::future::poll_fn(|cx| {
            polls += 1;
            watch.poll_reached(cx)
        });
        let steps = async {
            tokio::task::yield_now().await;
            stage.advance(Stage::Leaving);
            tokio::task::yield_now().await;
            stage.advance(Stage::Closing);
        };
        tokio::join!(reached, steps);
        assert!(polls >= 2);
    }
}
