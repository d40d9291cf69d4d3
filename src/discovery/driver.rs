//! The loop around a source: when it is asked, and what becomes of its answers.

use super::{Answer, Failure, Feed, Found, Plan, Reason};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The shortest and the longest pause after a failure. Between them it doubles, and a random part of it is taken, so that
/// gateways do not come back to a source in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The least time between two questions, whatever the source says: one that answers at once for ever must not be asked in a
/// tight loop.
const GAP: Duration = Duration::from_millis(20);

/// Asks for as long as anything else holds the feed. `news` is called after each answer, each failure and each change.
pub async fn drive(feed: Weak<Feed>, plan: Arc<Plan>, news: impl Fn() + Send) {
    let mut source = plan.source();
    let mut driver = Driver { feed, plan, pending: None, quiet_until: Instant::now(), news };
    let mut failures = 0_u32;
    while driver.feed.strong_count() > 0 {
        let patience = source.patience();
        let asked = driver.attend(timeout(patience, source.ask())).await;
        let outcome = match asked {
            Ok(Ok(answer)) => driver.take(answer),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::new(Reason::Timeout, format!("no answer within {patience:?}"))),
        };
        let pause = match outcome {
            Ok(again) => {
                failures = 0;
                again.max(GAP)
            }
            Err(failure) => {
                failures = failures.saturating_add(1);
                driver.with(|feed| feed.fail(&failure));
                backoff(failures)
            }
        };
        (driver.news)();
        driver.attend(sleep(pause)).await;
    }
}

fn backoff(failures: u32) -> Duration {
    let most = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
    let random = Duration::from_millis(fastrand::u64(0..=u64::try_from(most.as_millis()).unwrap_or(0)));
    random.max(PAUSE_MIN / 2)
}

struct Driver<N> {
    feed: Weak<Feed>,
    plan: Arc<Plan>,
    /// A change that came too soon after the one before.
    pending: Option<Vec<Found>>,
    quiet_until: Instant,
    news: N,
}

impl<N: Fn()> Driver<N> {
    fn with<T>(&self, work: impl FnOnce(&Feed) -> T) -> Option<T> {
        // Nothing is kept alive while waiting.
        self.feed.upgrade().map(|feed| work(&feed))
    }

    /// Waits for `work`, and does meanwhile what becomes due.
    async fn attend<F: Future>(&mut self, work: F) -> F::Output {
        tokio::pin!(work);
        loop {
            let due = self.due();
            let sleep = sleep_until(due.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep, if due.is_some() => self.do_due(),
            }
        }
    }

    /// When something happens without an answer: a change that was put off, or an answer that grows too old.
    fn due(&self) -> Option<Instant> {
        let change = self.pending.as_ref().map(|_| self.quiet_until);
        change.into_iter().chain(self.stale_at()).min()
    }

    fn stale_at(&self) -> Option<Instant> {
        let max_stale = self.plan.bounds.max_stale?;
        // A source that is quiet does not fail: what it said last is what it would say.
        let (failing, any) = self.with(|feed| (feed.failing_since(), !feed.found().is_empty()))?;
        failing.filter(|_| any)?.checked_add(max_stale).map(Instant::from_std)
    }

    fn do_due(&mut self) {
        let now = Instant::now();
        if self.stale_at().is_some_and(|at| at <= now) {
            self.pending = None;
            self.with(|feed| {
                log::warn!("{}: the last answer is too old to be used", feed.who);
                feed.set(Vec::new());
            });
        }
        if now >= self.quiet_until
            && let Some(found) = self.pending.take()
        {
            self.change(found);
        }
        (self.news)();
    }

    fn change(&mut self, found: Vec<Found>) {
        self.pending = None;
        self.quiet_until = Instant::now() + self.plan.bounds.debounce;
        self.with(|feed| feed.set(found));
    }

    /// The pause before the next question, or why the answer does not count.
    fn take(&mut self, answer: Answer) -> Result<Duration, Failure> {
        let said = answer.found.len();
        let (found, unused) = self.plan.bounds.apply(answer.found);
        if found.is_empty() && !self.plan.bounds.allow_empty {
            let why = if said == 0 {
                "there are no endpoints".to_owned()
            } else {
                format!("none of the {said} endpoints that were found may be used")
            };
            return Err(Failure::new(Reason::Empty, why));
        }
        let Some(current) = self.with(|feed| {
            feed.confirm(unused);
            feed.found()
        }) else {
            return Ok(answer.again);
        };
        if *current == *found {
            // Whatever was put off has been taken back.
            self.pending = None;
        } else if Instant::now() >= self.quiet_until {
            self.change(found);
        } else {
            self.pending = Some(found);
        }
        Ok(answer.again)
    }
}
