//! What filters that check credentials of configured consumers have in common: how a good one is taken, how a bad one is
//! refused.
//!
//! Whoever sends a credential that does not count is told one thing, whatever is wrong with it: an unknown key, an expired
//! one and one of a disabled consumer look alike, so that nothing can be learnt by trying. The metrics tell them apart.

use super::BuildContext;
use crate::clock::SharedClock;
use crate::consumer::{Credential, Unusable};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use http::HeaderValue;
use std::sync::Arc;
use std::time::Duration;

/// When to come back after the place that knows credentials was away.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(2);

pub(super) struct Judge {
    metrics: Arc<AuthMetrics>,
    clock: SharedClock,
    challenge: HeaderValue,
}

impl Judge {
    /// `challenge` is what a 401 asks for (RFC 9110 section 11.6.1).
    pub fn new(filter: &'static str, challenge: HeaderValue, cx: &BuildContext<'_>) -> Self {
        Judge { metrics: cx.auth_metrics(filter), clock: Arc::clone(cx.clock), challenge }
    }

    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Lets the request be the credential's, if it counts now.
    pub fn accept(&self, credential: &Credential, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        match credential.check(self.clock.wall()) {
            Ok(()) => {
                self.metrics.count(AuthOutcome::Accepted);
                ctx.identity = Some(Arc::clone(&credential.identity));
                Ok(())
            }
            Err(Unusable::NotYet) => Err(self.refuse(AuthOutcome::NotYet)),
            Err(Unusable::Expired) => Err(self.refuse(AuthOutcome::Expired)),
            Err(Unusable::Disabled) => Err(self.refuse(AuthOutcome::Disabled)),
        }
    }

    /// Counts somebody who was let in without a credential of the configuration.
    pub fn accepted(&self) {
        self.metrics.count(AuthOutcome::Accepted);
    }

    /// The answer where it cannot be told whether a credential counts.
    pub fn unavailable(&self) -> Rejection {
        self.metrics.count(AuthOutcome::Unavailable);
        Rejection::new(&rejection::CREDENTIALS_UNAVAILABLE).retry_after(RETRY_AFTER)
    }

    /// The answer to a credential that does not count.
    pub fn refuse(&self, why: AuthOutcome) -> Rejection {
        self.metrics.count(why);
        let code = match why {
            AuthOutcome::Missing => &rejection::CREDENTIAL_MISSING,
            AuthOutcome::Duplicate => return Rejection::new(&rejection::CREDENTIAL_DUPLICATE),
            AuthOutcome::Unavailable => return Rejection::new(&rejection::AUTHENTICATION_BUSY),
            _ => &rejection::CREDENTIAL_INVALID,
        };
        Rejection::new(code).www_authenticate(self.challenge.clone())
    }
}
