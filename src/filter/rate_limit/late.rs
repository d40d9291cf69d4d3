//! What is only known when there is a response: that an authentication failed, or what the request has cost.

use super::{RateLimit, Set};
use crate::limit::{Decision, Standings};
use crate::rejection::{self, Code};
use crate::request::RequestCtx;
use http::StatusCode;
use pingora::http::ResponseHeader;

/// The rejections that mean that somebody tried a credential that does not count. A request without any is no attempt.
const FAILURES: [&Code; 4] =
    [&rejection::CREDENTIAL_INVALID, &rejection::CREDENTIAL_DUPLICATE, &rejection::TOKEN_INVALID, &rejection::TOKEN_EXPIRED];

/// Whom each filter of a request may still charge.
#[derive(Debug, Clone, Default)]
pub struct Late(Vec<Use>);

#[derive(Debug, Clone)]
struct Use {
    filter: u32,
    set: u16,
    key: Box<[u8]>,
    cost: u64,
}

impl Late {
    pub fn add(extensions: &mut http::Extensions, filter: u32, set: u16, key: &[u8], cost: u64) {
        extensions.get_or_insert_default::<Late>().0.push(Use { filter, set, key: key.into(), cost });
    }
}

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
        let Some(late) = ctx.extensions.get_mut::<Late>() else { return };
        let Some(at) = late.0.iter().position(|used| used.filter == self.id) else { return };
        let Use { set, key, cost, .. } = late.0.swap_remove(at);
        let Some(set) = self.sets.get(usize::from(set)) else { return };
        let charge = if self.failures {
            let ours = ctx.rejected.is_some_and(|code| FAILURES.contains(&code));
            let theirs = ctx.rejected.is_none() && head.status == StatusCode::UNAUTHORIZED;
            if ours || theirs { cost } else { 0 }
        } else {
            let told = told.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
            told.unwrap_or(cost).saturating_sub(cost)
        };
        if charge > 0 {
            self.charge(set, &key, charge);
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
}
