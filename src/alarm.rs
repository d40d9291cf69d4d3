//! One timer for the many waits of a connection.
//!
//! A timer for each wait is set and dropped with every request, for a moment that nearly never comes. This one stays armed: for
//! the earliest end that it was asked for, whatever has come of that wait. When it fires, it looks whether what is waited for
//! now is really late, and if not, waits on. So a connection that is used costs the runtime's timers nothing, however many
//! deadlines come and go on it.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;
use tokio::time::Sleep;

/// A timer that is kept from wait to wait. It belongs to the runtime that first waited for it.
#[derive(Debug, Default)]
pub struct Alarm {
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
    /// Who is woken when it fires. Mostly the task of the connection, which stays the same; a connection to an endpoint goes
    /// from one task to another.
    wakes: Option<Waker>,
}

impl Alarm {
    /// Ready when `at` has passed. Until then it sees to it that the task is polled at that time at the latest.
    pub fn poll_late(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let armed =
            self.armed.get_or_insert_with(|| Armed { at, sleep: Box::pin(tokio::time::sleep_until(at.into())), wakes: None });
        loop {
            if at < armed.at {
                armed.move_to(at);
            }
            let known = armed.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if known && !armed.sleep.is_elapsed() {
                return Poll::Pending;
            }
            if !known {
                armed.wakes = Some(cx.waker().clone());
            }
            ready!(armed.sleep.as_mut().poll(cx));
            if at <= armed.at {
                return Poll::Ready(());
            }
            armed.move_to(at);
        }
    }
}

impl Armed {
    fn move_to(&mut self, at: Instant) {
        self.sleep.as_mut().reset(at.into());
        self.at = at;
        self.wakes = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test]
    async fn an_earlier_end_moves_it_and_a_later_one_is_waited_for() {
        let mut alarm = Alarm::default();
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let far = begun + Duration::from_secs(3600);
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll_late(far, cx).is_pending())).await);
        poll_fn(|cx| alarm.poll_late(after(10), cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(10));
        // It is still armed for the time that has passed.
        poll_fn(|cx| alarm.poll_late(after(30), cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn whoever_waits_now_is_woken() {
        let mut alarm = Alarm::default();
        let at = Instant::now() + Duration::from_millis(20);
        let (mut alarm, first) = tokio::spawn(async move {
            let first = poll_fn(|cx| Poll::Ready(alarm.poll_late(at, cx))).await;
            (alarm, first)
        })
        .await
        .unwrap();
        assert!(first.is_pending());
        let second = tokio::spawn(async move { poll_fn(|cx| alarm.poll_late(at, cx)).await });
        tokio::time::timeout(Duration::from_secs(10), second).await.expect("another task has taken it over").unwrap();
    }
}
