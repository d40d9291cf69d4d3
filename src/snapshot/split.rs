//! A split, ready to choose by.

use super::{Choice, Target};
use crate::config::{KeepConfig, SplitConfig};
use crate::upstream::Facts;
use crate::upstream::balance::By;
use crate::upstream::balance::key::cookie;
use http::{HeaderName, HeaderValue};

/// The whole, in parts per million.
const WHOLE: u32 = 1_000_000;

/// Where the requests of a route go besides its upstream.
pub struct Split {
    parts: Box<[Part]>,
    keep: Keep,
}

struct Part {
    target: Target,
    headers: Box<[(HeaderName, Box<str>)]>,
    cookies: Box<[(Box<str>, Box<str>)]>,
    /// Draws below this, and not below that of the part before, are its own.
    below: u32,
}

/// How a client keeps its draw.
enum Keep {
    Not,
    By(Box<[By]>),
    Cookie { name: Box<str>, attributes: Box<str> },
}

/// What is chosen, and what makes the client choose it again.
pub struct Chosen {
    pub choice: Choice,
    pub cookie: Option<HeaderValue>,
}

impl Split {
    /// From a config that was checked; `targets` are those of its parts, in order.
    pub fn new(config: &SplitConfig, targets: Vec<Target>) -> Self {
        let mut below = 0_u32;
        let parts = config.to.iter().zip(targets).map(|(part, target)| {
            below = below.saturating_add(part.share.map_or(0, |share| share.parts_per_million));
            let headers = part.headers.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str().into())));
            let cookies = part.cookies.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into()));
            Part { target, headers: headers.collect(), cookies: cookies.collect(), below }
        });
        let parts = parts.collect();
        let keep = match &config.keep {
            None => Keep::Not,
            Some(KeepConfig::By(by)) => Keep::By(by.iter().map(|by| by.value.clone()).collect()),
            Some(KeepConfig::Cookie(cookie)) => Keep::Cookie {
                name: cookie.name.value.as_str().into(),
                attributes: format!("; Path=/; HttpOnly; SameSite=Lax; Max-Age={}", cookie.max_age.get().as_secs()).into(),
            },
        };
        Split { parts, keep }
    }

    pub fn target(&self, at: u8) -> Option<&Target> {
        self.parts.get(usize::from(at)).map(|part| &part.target)
    }

    /// All upstreams of it.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.parts.iter().map(|part| &part.target)
    }

    /// A part that the request asks for by a header or a cookie; else the one that its draw falls on.
    pub fn choose(&self, facts: &Facts<'_>, https: bool) -> Chosen {
        let numbered = || self.parts.iter().zip(0_u8..);
        if let Some((_, at)) = numbered().find(|(part, _)| part.is_asked_for(facts)) {
            return Chosen { choice: Choice::Part(at), cookie: None };
        }
        let (draw, cookie) = self.draw(facts, https);
        let choice = numbered().find(|(part, _)| draw < part.below).map_or(Choice::Primary, |(_, at)| Choice::Part(at));
        Chosen { choice, cookie }
    }

    /// A number below [`WHOLE`]. A client that has drawn keeps its number, so that raising a share moves clients one way only.
    fn draw(&self, facts: &Facts<'_>, https: bool) -> (u32, Option<HeaderValue>) {
        let fresh = || fastrand::u32(..WHOLE);
        match &self.keep {
            Keep::Not => (fresh(), None),
            // The upper half of the hash: the lower one may decide about endpoints.
            Keep::By(by) => {
                let of_key = |key: u64| u32::try_from((key >> 32) % u64::from(WHOLE)).unwrap_or(0);
                (facts.key(by).map_or_else(fresh, of_key), None)
            }
            Keep::Cookie { name, attributes } => match cookie(facts.headers, name).and_then(|value| value.parse().ok()) {
                Some(known) if known < WHOLE => (known, None),
                _ => {
                    let draw = fresh();
                    let secure = if https { "; Secure" } else { "" };
                    (draw, format!("{name}={draw}{attributes}{secure}").parse().ok())
                }
            },
        }
    }
}

impl Part {
    fn is_asked_for(&self, facts: &Facts<'_>) -> bool {
        let fits = |wanted: &str, value: &[u8]| wanted == "*" || wanted.as_bytes() == value;
        let header =
            |(name, wanted): &(HeaderName, Box<str>)| facts.headers.get_all(name).iter().any(|v| fits(wanted, v.as_bytes()));
        let crumb =
            |(name, wanted): &(Box<str>, Box<str>)| cookie(facts.headers, name).is_some_and(|v| fits(wanted, v.as_bytes()));
        self.headers.iter().any(header) || self.cookies.iter().any(crumb)
    }
}
