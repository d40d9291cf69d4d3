//! `concurrency`: how many requests of a key may be under way at the same time.

use super::{BoxFuture, BuildContext, Filter, FilterConfig, Flow, Limiter, Phases, Problem, Step};
use crate::clock::SharedClock;
use crate::limit::concurrency::{Answer, Estimate, Running};
use crate::limit::{By, ByConfig, Keys, key};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{LimitMetrics, QueueMetrics};
use crate::value::{Duration, Located};
use http::HeaderMap;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Limits how many requests are under way at the same time, exactly. More are answered with 429 `concurrency_limited` and a
/// `Retry-After` of always one second, because nobody knows when a request ends.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyConfig {
    /// Who is counted, as for `rate_limit`; `"route"` counts all requests of the route together.
    pub by: ByConfig,
    /// The most requests under way for each, 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub most: Located<u32>,
    /// Let requests that come when it is full wait for a place. Default: they are refused at once.
    #[serde(default)]
    pub queue: Option<QueueConfig>,
    /// How it is counted: `"exact"`, or `"estimate"`, which takes no lock and the same memory whatever the keys are, never counts a key too
    /// low, and with many thousands of keys under way at once may count one too high. Without a queue only; not for what a
    /// contract names.
    #[serde(default)]
    pub count: Located<Count>,
    /// Filters with the same name count together, on whatever routes. Default: each filter counts by itself for each route.
    #[serde(default)]
    pub name: Option<String>,
    /// How many leading bits of an IPv6 address make one client, from 32 to 128.
    #[serde(default = "default_prefix")]
    #[schemars(range(min = 32, max = 128))]
    pub ipv6_prefix: Located<u8>,
}

/// How requests under way are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Count {
    #[default]
    Exact,
    Estimate,
}

fn default_prefix() -> Located<u8> {
    Located::nowhere(64)
}

/// A short queue, first come first served.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// The most requests that wait for each key, 1 to 10000.
    #[schemars(range(min = 1, max = 10_000))]
    pub size: Located<u32>,
    /// The longest that a request waits, up to 60s, and never beyond its own deadline.
    pub timeout: Located<Duration>,
}

pub struct Concurrency {
    keys: Keys,
    most: u32,
    queue: usize,
    timeout: std::time::Duration,
    running: Arc<Running>,
    estimate: Option<Arc<Estimate>>,
    metrics: Arc<LimitMetrics>,
    queued: Arc<QueueMetrics>,
    label: Arc<String>,
    clock: SharedClock,
    scope: Box<str>,
}

impl FilterConfig for ConcurrencyConfig {
    const NAME: &'static str = "concurrency";
    type Filter = Concurrency;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Concurrency, Problem> {
        if !(1..=1_000_000).contains(&self.most.value) {
            return Err(Problem::new("`most` is from 1 to 1000000").at(&self.most));
        }
        if !(32..=128).contains(&self.ipv6_prefix.value) {
            return Err(Problem::new("an IPv6 prefix is from 32 to 128 bits here").at(&self.ipv6_prefix));
        }
        let estimated = self.count.value == Count::Estimate;
        if estimated && self.queue.is_some() {
            let problem = Problem::new("an estimate knows nobody's turn, so it has no queue").at(&self.count);
            return Err(problem.help("take `queue` out, or count = \"exact\""));
        }
        let (queue, timeout) = match &self.queue {
            None => (0, std::time::Duration::ZERO),
            Some(queue) => {
                if !(1..=10_000).contains(&queue.size.value) {
                    return Err(Problem::new("the size of a queue is from 1 to 10000").at(&queue.size));
                }
                let timeout = queue.timeout.get();
                if timeout.is_zero() || timeout > std::time::Duration::from_secs(60) {
                    return Err(Problem::new("a request waits for 1ms to 60s").at(&queue.timeout));
                }
                (usize::try_from(queue.size.value).unwrap_or(usize::MAX), timeout)
            }
        };
        let scope = match &self.name {
            Some(name) => format!("concurrency name:{name}"),
            None => cx.limits.scope(&format!("concurrency route:{}", cx.route)),
        };
        Ok(Concurrency {
            keys: Keys::new(self.by, self.ipv6_prefix.value, cx.credential_headers),
            most: self.most.value,
            queue,
            timeout,
            estimate: estimated.then(|| cx.state.get_or_create(&scope, Estimate::default)),
            running: cx.state.get_or_create(&scope, Running::default),
            metrics: cx.state.get_or_create(&format!("{}/concurrency", cx.route), LimitMetrics::default),
            queued: cx.state.get_or_create(cx.route, QueueMetrics::default),
            label: Arc::new("concurrency".to_owned()),
            clock: Arc::clone(cx.clock),
            scope: scope.as_str().into(),
        })
    }
}

impl Concurrency {
    /// The longest that a request may wait for a place now.
    fn patience(&self, deadline: Option<Instant>) -> std::time::Duration {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(self.clock.now()));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }

    fn refuse(&self) -> Rejection {
        self.metrics.refused.increment();
        // When a place becomes free is not known; a second is soon for a person and an age for a retry loop.
        let rejection = Rejection::new(&rejection::CONCURRENCY_LIMITED).retry_after(std::time::Duration::from_secs(1));
        rejection.limit(Arc::clone(&self.label))
    }
}

impl Limiter for Concurrency {
    fn counts_addresses(&self) -> bool {
        self.keys.facts.contains(&By::Address)
    }

    /// Requests under way cannot be forgotten: a reset changes nothing.
    fn inspect<'a>(&'a self, ctx: &'a RequestCtx, headers: &'a HeaderMap, _reset: bool) -> BoxFuture<'a, Value> {
        let mut key = Vec::new();
        self.keys.write(ctx, headers, &mut key);
        let running = match &self.estimate {
            Some(estimate) => estimate.count(&key),
            None => self.running.count(&key),
        };
        let left = self.most.saturating_sub(running);
        let limit = json!({ "name": "concurrency", "number": self.most, "remaining": left, "more_in_seconds": 0.0 });
        let key = String::from_utf8_lossy(&key).into_owned();
        Box::pin(std::future::ready(
            json!({ "scope": &*self.scope, "store": "local", "key": key, "limits": [limit], "shadow": false }),
        ))
    }
}

impl Filter for Concurrency {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn needs_identity(&self) -> bool {
        self.keys.need_identity()
    }

    fn limiter(&self) -> Option<&dyn Limiter> {
        Some(self)
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        key::scratch(move |key| {
            self.keys.write(ctx, &session.req_header().headers, key);
            if let Some(estimate) = &self.estimate {
                let Some(guard) = estimate.ask(key, self.most) else { return Step::reject(self.refuse()) };
                self.metrics.allowed.increment();
                ctx.held.hold_estimate(guard);
                return Step::CONTINUE;
            }
            match self.running.ask(key, self.most, self.queue) {
                Answer::Go(permit) => {
                    self.metrics.allowed.increment();
                    ctx.held.hold(permit);
                    Step::CONTINUE
                }
                Answer::Full => Step::reject(self.refuse()),
                Answer::Wait(place) => Step::Wait(Box::pin(async move {
                    let _waits = self.queued.waiting.enter();
                    match tokio::time::timeout(self.patience(ctx.deadline), place).await {
                        Ok(Ok(permit)) => {
                            self.metrics.allowed.increment();
                            ctx.held.hold(permit);
                            Ok(Flow::Continue)
                        }
                        _ => Err(self.refuse()),
                    }
                })),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build_for, decide, session};
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use std::time::Duration;

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    fn filter(clock: &Arc<ManualClock>, timeout: &str) -> Concurrency {
        let clock: SharedClock = Arc::<ManualClock>::clone(clock);
        let table = format!("{{ by = 'address', most = 1, queue = {{ size = 2, timeout = '{timeout}' }} }}");
        build_for::<ConcurrencyConfig>(&table, &Arc::default(), &clock).unwrap()
    }

    /// Panics where something waits that should not.
    async fn soon<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), work).await.expect("it waits")
    }

    #[test]
    fn nobody_waits_beyond_the_deadline_nor_longer_than_the_queue_lets_them() {
        let clock = ManualClock::new();
        let filter = filter(&clock, "2s");
        let ms = Duration::from_millis;
        let deadline = |left: u64| clock.now().checked_add(ms(left));
        for (deadline, longest) in [(None, 2_000), (deadline(700), 700), (deadline(5_000), 2_000), (deadline(0), 0)] {
            assert_eq!(filter.patience(deadline), ms(longest), "{deadline:?}");
        }
        let soon = deadline(700);
        clock.advance(ms(600));
        assert_eq!(filter.patience(soon), ms(100));
        clock.advance(ms(600));
        assert_eq!(filter.patience(soon), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_place_comes_to_who_waits_and_may_still_have_it() {
        let clock = ManualClock::new();
        let filter = filter(&clock, "60s");
        let (mut first, mut holder) = session(REQUEST, "/").await;
        assert_eq!(soon(decide(&filter, &mut first, &mut holder)).await, Ok(()));
        // The deadline is over: refused now, and not when the queue would refuse.
        let (mut session_late, mut late) = session(REQUEST, "/").await;
        late.deadline = clock.now().checked_add(Duration::from_secs(3));
        clock.advance(Duration::from_secs(3));
        assert_eq!(soon(decide(&filter, &mut session_late, &mut late)).await, Err("concurrency_limited"));
        let (mut session_early, mut early) = session(REQUEST, "/").await;
        early.deadline = clock.now().checked_add(Duration::from_secs(3_600));
        let give_back = async {
            // Only once the other one waits.
            while filter.running.waiting(b"a:192.0.2.7") == 0 {
                tokio::task::yield_now().await;
            }
            holder.held = Default::default();
        };
        let (waited, ()) = soon(async { tokio::join!(decide(&filter, &mut session_early, &mut early), give_back) }).await;
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn the_queue_refuses_who_has_waited_long_enough() {
        let clock = ManualClock::new();
        let filter = filter(&clock, "20ms");
        let (mut first, mut holder) = session(REQUEST, "/").await;
        assert_eq!(soon(decide(&filter, &mut first, &mut holder)).await, Ok(()));
        for deadline in [None, clock.now().checked_add(Duration::from_secs(3_600))] {
            let (mut session, mut ctx) = session(REQUEST, "/").await;
            ctx.deadline = deadline;
            assert_eq!(soon(decide(&filter, &mut session, &mut ctx)).await, Err("concurrency_limited"));
        }
    }
}
