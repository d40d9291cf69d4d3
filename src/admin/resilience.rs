//! What breakers, ejections, budgets and overload limits show on `/metrics`.

use crate::snapshot::Snapshot;
use crate::telemetry::metrics::{BreakerSample, EjectionSample, OverloadSample, ResilienceSample};
use crate::upstream::breaker::{Breaker, State};

pub fn sample(snapshot: &Snapshot) -> ResilienceSample {
    let mut sample = ResilienceSample::default();
    for upstream in snapshot.upstreams.values() {
        let (name, guards) = (upstream.name(), upstream.guards());
        sample.budgets.push((name.to_string(), guards.budget.refused.get()));
        let hedges = guards.hedge.as_ref().map(|plan| (name.to_string(), plan.state.sent.get(), plan.state.won.get()));
        sample.hedges.extend(hedges);
        sample.breakers.extend(guards.breaker.as_ref().map(breaker));
        sample.overloads.extend(guards.overload.as_ref().map(|overload| OverloadSample {
            upstream: name.to_string(),
            limit: overload.state().limit().into(),
            in_flight: overload.state().in_flight().into(),
            shed: overload.state().shed.get(),
        }));
        for endpoint in upstream.endpoints().iter() {
            sample.breakers.extend(endpoint.guards().breaker.as_ref().map(breaker));
            sample.ejections.extend(endpoint.outlier().map(|state| EjectionSample {
                upstream: name.to_string(),
                endpoint: endpoint.address().to_string(),
                ejected: state.is_ejected(),
                ejections: state.ejections().map(|(reason, times)| (reason.as_str(), times)).collect(),
            }));
        }
    }
    sample.breakers.extend(snapshot.routes().filter_map(|route| route.breaker.as_ref()).map(breaker));
    sample
}

fn breaker(breaker: &Breaker) -> BreakerSample {
    let state = breaker.state();
    BreakerSample {
        kind: state.kind(),
        name: state.name().to_owned(),
        state: match state.state() {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        },
        entered: state.entered().map(|(state, times)| (state.as_str(), times)).collect(),
        refused: state.refused.get(),
    }
}
