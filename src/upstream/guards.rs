//! What stands between requests and an upstream that fails: its retries, breaker, outlier detection and overload limit, put
//! together from the configuration and from the state that outlives it.

use super::breaker::{Answer, Breaker, BreakerConfig, BreakerState, Scope, Tuning as BreakerTuning};
use super::budget::Budget;
use super::config::UpstreamConfig;
use super::exchanger::Exchanger;
use super::hedge::{self, After, HedgeState};
use super::outlier::{Group, OutlierState, Tuning as OutlierTuning, Watched};
use super::overload::{Overload, OverloadState};
use super::retry::RetryPolicy;
use crate::clock::SharedClock;
use crate::state::StatePool;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Those of an upstream.
#[derive(Debug)]
pub struct Guards {
    pub retry: Arc<RetryPolicy>,
    pub budget: Arc<Budget>,
    pub breaker: Option<Breaker>,
    pub answer: Option<Arc<FixedAnswer>>,
    pub overload: Option<Overload>,
    pub hedge: Option<Arc<HedgePlan>>,
    /// The time that a request must have left to be sent at all.
    pub least: Option<Duration>,
    pub(super) outlier: Option<Arc<OutlierTuning>>,
    group: Option<Arc<Group>>,
    endpoint_breaker: Option<Arc<BreakerTuning>>,
    observes: bool,
}

/// When and how requests are hedged.
pub struct HedgePlan {
    pub after: After,
    pub state: Arc<HedgeState>,
    pub exchanger: Arc<Exchanger>,
}

impl std::fmt::Debug for HedgePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HedgePlan").field("after", &self.after).finish_non_exhaustive()
    }
}

/// Those of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointGuards {
    pub breaker: Option<Breaker>,
    pub(super) outlier: Option<Watched>,
}

/// What is answered in place of an upstream whose breaker is open.
#[derive(Debug, Clone)]
pub struct FixedAnswer {
    pub status: StatusCode,
    pub content_type: HeaderValue,
    pub body: Bytes,
}

impl Guards {
    pub(super) fn build(name: &str, config: &UpstreamConfig, state: &StatePool, clock: &SharedClock) -> Self {
        let breaker = config.breaker.as_ref().map(|breaker| &breaker.value);
        let scoped = |scopes: &[Scope]| breaker.filter(|breaker| scopes.contains(&breaker.scope));
        let outlier = config.outlier.as_ref().map(|outlier| Arc::new(outlier.tuning()));
        let overload = config.overload.as_ref().map(|overload| {
            let tuning = overload.tuning();
            Overload::new(tuning, state.get_or_create(name, || OverloadState::new(tuning.initial, clock.now())))
        });
        Guards {
            retry: Arc::new(config.retry.policy()),
            budget: state.get_or_create(name, || Budget::new(clock.now())),
            breaker: scoped(&[Scope::Upstream, Scope::Both]).map(|config| guard("upstream", name, config, state, clock)),
            answer: breaker.and_then(|breaker| breaker.answer.as_ref()).and_then(|answer| fixed(answer)),
            hedge: config.hedge.as_ref().map(|hedge| {
                let exchanger = state.get_or_create("hedges", hedge::exchanger);
                Arc::new(HedgePlan { after: hedge.after(), state: state.get_or_create(name, HedgeState::default), exchanger })
            }),
            least: config.timeouts.least.as_ref().map(|least| least.get()),
            group: outlier.as_ref().map(|_| state.get_or_create(name, Group::default)),
            endpoint_breaker: scoped(&[Scope::Endpoint, Scope::Both]).map(|config| Arc::new(config.tuning())),
            observes: breaker.is_some() || outlier.is_some() || overload.is_some(),
            outlier,
            overload,
        }
    }

    /// Those of one of its endpoints.
    pub(super) fn of_endpoint(&self, name: &str, address: SocketAddr, state: &StatePool, clock: &SharedClock) -> EndpointGuards {
        let breaker = self.endpoint_breaker.as_ref().map(|tuning| {
            let name = format!("{name}/{address}");
            let key = format!("endpoint {name} {:?}", tuning.window);
            let of = || BreakerState::new("endpoint", &name, tuning.window, clock.now());
            Breaker::new(Arc::clone(tuning), state.get_or_create(&key, of))
        });
        let outlier = self.outlier.as_ref().zip(self.group.as_ref()).map(|(tuning, group)| {
            let key = format!("{name:?} {address} {:?}", tuning.window);
            let state = state.get_or_create(&key, || OutlierState::new(tuning.window, clock.now()));
            Watched { state, group: Arc::clone(group), consecutive: tuning.consecutive }
        });
        EndpointGuards { breaker, outlier }
    }

    /// Whether anything wants to know how requests end.
    pub fn observes(&self) -> bool {
        self.observes
    }

    /// The task that ejects its endpoints works on this.
    pub(super) fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }
}

impl EndpointGuards {
    /// Takes the end of an attempt that the endpoint has to answer for.
    pub fn record(&self, failed: bool, took: Option<Duration>, now: Instant) {
        if let Some(outlier) = &self.outlier {
            outlier.record(failed, took, now);
        }
    }
}

/// The breaker of an upstream or a route.
pub fn guard(kind: &'static str, name: &str, config: &BreakerConfig, state: &StatePool, clock: &SharedClock) -> Breaker {
    let tuning = config.tuning();
    // Another window makes other counts; everything else is only another way to read them.
    let key = format!("{kind} {name} {:?}", tuning.window);
    let of = || BreakerState::new(kind, name, tuning.window, clock.now());
    let state = state.get_or_create(&key, of);
    Breaker::new(Arc::new(tuning), state)
}

/// `None` for what the check of the configuration has reported.
pub fn fixed(answer: &Answer) -> Option<Arc<FixedAnswer>> {
    Some(Arc::new(FixedAnswer {
        status: StatusCode::from_u16(*answer.status).ok()?,
        content_type: HeaderValue::from_str(&answer.content_type).ok()?,
        body: Bytes::copy_from_slice(answer.body.as_bytes()),
    }))
}
