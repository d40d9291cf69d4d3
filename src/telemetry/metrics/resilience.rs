//! What breakers, ejections, retry budgets and overload limits show at a scrape.

use super::encode::Page;
use super::table as t;

/// A breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerSample {
    /// `upstream`, `endpoint` or `route`.
    pub kind: &'static str,
    pub name: String,
    /// 0: closed, 1: half open, 2: open.
    pub state: u8,
    /// How often each state was entered.
    pub entered: Vec<(&'static str, u64)>,
    pub refused: u64,
}

/// An endpoint that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EjectionSample {
    pub upstream: String,
    pub endpoint: String,
    pub ejected: bool,
    /// How often, by reason.
    pub ejections: Vec<(&'static str, u64)>,
}

/// An upstream with an overload limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverloadSample {
    pub upstream: String,
    pub limit: u64,
    pub in_flight: u64,
    pub shed: u64,
}

/// Everything of the kind. A name must stand only once in its list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResilienceSample {
    pub breakers: Vec<BreakerSample>,
    pub ejections: Vec<EjectionSample>,
    pub overloads: Vec<OverloadSample>,
    /// Retries that were refused, by upstream.
    pub budgets: Vec<(String, u64)>,
    /// Hedges sent and won, by upstream.
    pub hedges: Vec<(String, u64, u64)>,
}

pub(super) fn encode(page: &mut Page, sample: &ResilienceSample) {
    let mut family = page.family(&t::RETRIES_REFUSED);
    for (upstream, refused) in &sample.budgets {
        family.sample(&[upstream], refused);
    }
    let mut family = page.family(&t::HEDGES);
    for (upstream, sent, won) in &sample.hedges {
        family.sample(&[upstream, "sent"], sent);
        family.sample(&[upstream, "won"], won);
    }
    let mut family = page.family(&t::BREAKER_STATE);
    for breaker in &sample.breakers {
        family.sample(&[breaker.kind, &breaker.name], breaker.state);
    }
    let mut family = page.family(&t::BREAKER_CHANGES);
    for breaker in &sample.breakers {
        for (state, times) in &breaker.entered {
            family.sample(&[breaker.kind, &breaker.name, state], times);
        }
    }
    let mut family = page.family(&t::BREAKER_REFUSED);
    for breaker in &sample.breakers {
        family.sample(&[breaker.kind, &breaker.name], breaker.refused);
    }
    let mut family = page.family(&t::ENDPOINT_EJECTED);
    for endpoint in &sample.ejections {
        family.sample(&[&endpoint.upstream, &endpoint.endpoint], u8::from(endpoint.ejected));
    }
    let mut family = page.family(&t::ENDPOINT_EJECTIONS);
    for endpoint in &sample.ejections {
        for (reason, times) in &endpoint.ejections {
            family.sample(&[&endpoint.upstream, &endpoint.endpoint, reason], times);
        }
    }
    let mut overloads = |metric, value: fn(&OverloadSample) -> u64| {
        let mut family = page.family(metric);
        for upstream in &sample.overloads {
            family.sample(&[&upstream.upstream], value(upstream));
        }
    };
    overloads(&t::OVERLOAD_LIMIT, |upstream| upstream.limit);
    overloads(&t::OVERLOAD_IN_FLIGHT, |upstream| upstream.in_flight);
    overloads(&t::OVERLOAD_SHED, |upstream| upstream.shed);
}
