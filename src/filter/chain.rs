//! The filters of one route, sorted once into the phases that they use.

use super::{Filter, Flow, Phases, Step};
use crate::rejection::Rejection;
use crate::request::RequestCtx;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::sync::Arc;

#[derive(Default)]
pub struct Chain {
    request: Box<[Arc<dyn Filter>]>,
    upstream_request: Box<[Arc<dyn Filter>]>,
    response: Box<[Arc<dyn Filter>]>,
}

impl Chain {
    pub fn new(filters: &[Arc<dyn Filter>]) -> Self {
        let of = |phase| filters.iter().filter(move |f| f.phases().has(phase)).cloned();
        Chain {
            request: of(Phases::REQUEST).collect(),
            upstream_request: of(Phases::UPSTREAM_REQUEST).collect(),
            response: of(Phases::RESPONSE).rev().collect(),
        }
    }

    /// The filters that count, in their order.
    pub fn limiters(&self) -> impl Iterator<Item = &dyn super::Limiter> {
        self.request.iter().filter_map(|filter| filter.limiter())
    }

    /// Runs until a filter rejects or answers.
    pub async fn request(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        for filter in &self.request {
            let flow = match filter.on_request(session, ctx) {
                Step::Ready(done) => done?,
                Step::Wait(io) => io.await?,
            };
            if let Flow::Respond(_) = flow {
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
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
