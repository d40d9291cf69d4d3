//! What is only known later: that another limit has refused the request, that an authentication failed, or what the request
//! has cost.

use super::{RateLimit, Set};
use crate::limit::{Decision, Source, Standings, Use};
use crate::rejection::{self, Code};
use crate::request::RequestCtx;
use http::StatusCode;
use pingora::http::ResponseHeader;

/// The rejections that mean that somebody tried a credential that does not count. A request without any is no attempt.
const FAILURES: [&Code; 4] =
    [&rejection::CREDENTIAL_INVALID, &rejection::CREDENTIAL_DUPLICATE, &rejection::TOKEN_INVALID, &rejection::TOKEN_EXPIRED];

/// Admitted if every limit has something left.
pub fn left(standings: Standings) -> Decision {
    let empty = standings.iter().enumerate().filter(|(_, standing)| standing.remaining == 0);
    match empty.max_by_key(|(_, standing)| standing.more_in).map(|(limit, standing)| (limit, standing.more_in)) {
        Some((limit, wait)) => Decision::Refused { standings, limit, wait },
        None => Decision::Admitted(standings),
    }
}

impl RateLimit {
    /// Charges what the response says.
    pub(super) fn settle(&self, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        let told = self.cost_header.as_ref().and_then(|name| head.remove_header(name));
        let Some(used) = ctx.uses.remove(self.id) else { return };
        let Some(set) = self.sets.get(usize::from(used.set)) else { return };
        let charge = if self.failures {
            let ours = ctx.rejected.is_some_and(|code| FAILURES.contains(&code));
            let theirs = ctx.rejected.is_none() && head.status == StatusCode::UNAUTHORIZED;
            if ours || theirs { used.cost } else { 0 }
        } else {
            let told = told.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
            told.unwrap_or(used.cost).saturating_sub(used.cost)
        };
        if charge > 0 {
            self.charge(set, ctx.uses.key(&used), charge);
        }
    }

    fn charge(&self, set: &Set, key: &[u8], cost: u64) {
        match (&self.redis, &set.shared) {
            (Some((redis, _)), Some(shared)) => {
                if !redis.is_up(shared, key) {
                    self.local.charge(&self.share(redis, set), key, cost);
                }
                redis.charge(shared, key, cost);
            }
            _ => self.local.charge(&set.local, key, cost),
        }
    }

    /// Gives back what was counted for a request that another limit has refused.
    pub(super) fn undo(&self, ctx: &mut RequestCtx) {
        let Some(used) = ctx.uses.remove(self.id) else { return };
        let Some(set) = self.sets.get(usize::from(used.set)) else { return };
        self.give(set, &used, ctx.uses.key(&used));
        // What the response tells is as if it had not been counted.
        for seen in ctx.limits.iter_mut().filter(|seen| seen.filter == self.id) {
            let most = set.limits.get(usize::from(seen.limit)).map_or(0, |limit| limit.most());
            seen.standing.remaining = seen.standing.remaining.saturating_add(used.cost).min(most);
        }
    }

    fn give(&self, set: &Set, used: &Use, key: &[u8]) {
        let shared = self.redis.as_ref().zip(set.shared.as_ref());
        match (used.source, shared) {
            (Source::Local(taken), _) => self.local.give(&set.local, key, taken, used.cost),
            (Source::Share(taken), Some(((redis, _), shared))) => {
                self.local.give(&self.share(redis, set), key, taken, used.cost);
                redis.owe_less(shared, key, taken, used.cost);
            }
            (Source::Redis(taken), Some(((redis, _), shared))) => redis.give(shared, key, taken, used.cost),
            (Source::Lease(batch), Some(((redis, _), shared))) => redis.unspend(shared, key, batch, used.cost),
            (Source::Nowhere | Source::Share(_) | Source::Redis(_) | Source::Lease(_), _) => {}
        }
    }
}
