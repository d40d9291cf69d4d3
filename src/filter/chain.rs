//! The filters of one route, sorted once into the phases that they use.

use super::{Filter, Flow, Phases, Step};
use crate::rejection::{self, Code, Rejection};
use crate::request::RequestCtx;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::sync::Arc;

/// The rejections of limits. A request that is refused with one of them is counted by no limit of the chain.
const OF_LIMITS: [&Code; 3] = [&rejection::RATE_LIMITED, &rejection::CONCURRENCY_LIMITED, &rejection::LIMIT_UNAVAILABLE];

#[derive(Default)]
pub struct Chain {
    request: Box<[Arc<dyn Filter>]>,
    upstream_request: Box<[Arc<dyn Filter>]>,
    response: Box<[Arc<dyn Filter>]>,
}

impl Chain {
    pub fn new(filters: &[Arc<dyn Filter>]) -> Self {
        let of = |phase| filters.iter().filter(move |f| f.phases().has(phase)).cloned();
        let request: Box<[Arc<dyn Filter>]> = of(Phases::REQUEST).collect();
        let limiters: Vec<_> = request.iter().filter_map(|filter| filter.limiter()).collect();
        if let Some((_, earlier)) = limiters.split_last() {
            earlier.iter().for_each(|limiter| limiter.followed());
        }
        Chain {
            request,
            upstream_request: of(Phases::UPSTREAM_REQUEST).collect(),
            response: of(Phases::RESPONSE).rev().collect(),
        }
    }

    /// Whether no filter sees a request before its upstream is asked, or a response.
    pub fn is_transparent(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }

    /// The filters that count, in their order.
    pub fn limiters(&self) -> impl Iterator<Item = &dyn super::Limiter> {
        self.request.iter().filter_map(|filter| filter.limiter())
    }

    /// Runs until a filter rejects or answers.
    pub async fn request(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        for (index, filter) in self.request.iter().enumerate() {
            let done = match filter.on_request(session, ctx) {
                Step::Ready(done) => done,
                Step::Wait(io) => io.await,
            };
            match done {
                Ok(Flow::Continue) => {}
                Ok(Flow::Respond(response)) => return Ok(Flow::Respond(response)),
                Err(rejection) => {
                    if OF_LIMITS.contains(&rejection.code) {
                        self.give_back(index, ctx);
                    }
                    return Err(rejection);
                }
            }
        }
        Ok(Flow::Continue)
    }

    /// Takes back what the filters before `index` have counted for a request that a limit has refused.
    fn give_back(&self, index: usize, ctx: &mut RequestCtx) {
        for limiter in self.request.iter().take(index).filter_map(|filter| filter.limiter()) {
            limiter.give_back(ctx);
        }
    }

    pub fn upstream_request(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        self.upstream_request.iter().try_for_each(|filter| filter.on_upstream_request(session, head, ctx))
    }

    pub fn response(&self, session: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        for filter in &self.response {
            filter.on_response(session, head, ctx);
        }
    }
}
