//! A limit as written in TOML, in `rate_limit` filters and in tiers.

use super::algorithm::SLIDING_MAX;
use super::{LIMITS_MAX, Limit, Shape};
use crate::diagnostic::Span;
use crate::value::{Located, NUMBER_MAX, Quota, Rate};
use schemars::JsonSchema;
use serde::Deserialize;

/// The longest name of a limit, in bytes.
const NAME_MAX: usize = 63;

/// Why a limit cannot be: a message, where, and what to do about it.
#[derive(Debug)]
pub struct Wrong {
    pub message: String,
    pub span: Option<Span>,
    pub help: Option<String>,
}

impl Wrong {
    fn new(message: impl Into<String>) -> Self {
        Wrong { message: message.into(), span: None, help: None }
    }

    fn at<T>(mut self, value: &Located<T>) -> Self {
        self.span = value.span.clone();
        self
    }

    fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

/// One limit: either a `rate` or a `quota`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// So many in so long, such as `"60/1m"`: 1 to 1e12 over 1ms to 365d.
    pub rate: Option<Located<Rate>>,
    /// So many in each minute, hour, day or month of the calendar (UTC), such as `"10_000/1d"`, `"1_000_000/1mo"`.
    pub quota: Option<Located<Quota>>,
    /// How many may come at once, 0 to 1e12; 0 is the same as 1. For a `rate` with the algorithm `token_bucket` only. In any
    /// stretch of the rate's time, at most the rate's number and `burst` together are admitted. Default: the number of the rate.
    pub burst: Option<Located<u64>>,
    /// How it is counted. A rate by `token_bucket`, which admits a burst and then at the pace of the rate, or by `sliding_window`,
    /// which admits at most the number (here up to 65535) in any stretch of the time; a use counts up to a fifteenth of the time longer
    /// than it must. A quota by `fixed_window`: the number in each period of the calendar. Default: `token_bucket` for a rate,
    /// `fixed_window` for a quota.
    pub algorithm: Option<Located<Algorithm>>,
    /// What clients, logs and metrics call it: up to 63 letters, digits and `_-./`. Default: what is written as the rate or quota.
    pub name: Option<Located<String>>,
}

/// How uses are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Algorithm {
    TokenBucket,
    SlidingWindow,
    FixedWindow,
}

impl LimitConfig {
    /// Checks what serde cannot.
    pub fn compile(&self) -> Result<Limit, Wrong> {
        let (number, shape, text) = match (&self.rate, &self.quota) {
            (Some(rate), None) => (rate.number, self.rate_shape(rate)?, rate.to_string()),
            (None, Some(quota)) => {
                if let Some(burst) = &self.burst {
                    return Err(Wrong::new("a quota has no burst").at(burst).help("`burst` belongs to `rate`"));
                }
                if let Some(algorithm) = self.algorithm.as_ref().filter(|it| it.value != Algorithm::FixedWindow) {
                    let problem = Wrong::new("a quota is counted by the calendar, in a fixed window").at(algorithm);
                    return Err(problem.help("write a `rate` for this algorithm, such as { rate = \"60/1m\" }"));
                }
                (quota.number, Shape::FixedWindow { period: quota.period }, quota.to_string())
            }
            (Some(_), Some(quota)) => {
                let problem = Wrong::new("a limit has a rate or a quota, not both").at(quota);
                return Err(problem.help("write two limits: { rate = \"...\" }, { quota = \"...\" }"));
            }
            (None, None) => {
                let problem = Wrong::new("a limit needs a `rate` or a `quota`");
                return Err(problem.help("write { rate = \"60/1m\" } or { quota = \"1000/1d\" }"));
            }
        };
        let name = match &self.name {
            None => text,
            Some(name) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
                if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) {
                    let problem = Wrong::new(format!("`{}` cannot be the name of a limit", name.value)).at(name);
                    return Err(problem.help(format!("use up to {NAME_MAX} letters, digits and `_-./`")));
                }
                name.value.clone()
            }
        };
        Ok(Limit { name: name.into(), shape, number })
    }

    fn rate_shape(&self, rate: &Located<Rate>) -> Result<Shape, Wrong> {
        let per = u64::try_from(rate.per.get().as_nanos()).unwrap_or(u64::MAX);
        let algorithm = self.algorithm.as_ref().map_or(Algorithm::TokenBucket, |algorithm| algorithm.value);
        if let Some(fixed) = self.algorithm.as_ref().filter(|it| it.value == Algorithm::FixedWindow) {
            let text = rate.to_string();
            // A rate over a period of the calendar is a quota as it stands.
            let help = match text.parse::<Quota>() {
                Ok(_) => format!("write quota = \"{text}\""),
                Err(_) => "write a quota over 1m, 1h, 1d or 1mo, such as quota = \"1000/1d\"".to_owned(),
            };
            return Err(Wrong::new("a fixed window is of the calendar, and that is a quota").at(fixed).help(help));
        }
        if algorithm == Algorithm::TokenBucket {
            if let Some(burst) = self.burst.as_ref().filter(|burst| burst.value > NUMBER_MAX) {
                return Err(Wrong::new(format!("the largest burst is {NUMBER_MAX}")).at(burst));
            }
            let capacity = self.burst.as_ref().map_or(rate.number, |burst| burst.value).max(1);
            return Ok(Shape::TokenBucket { per, capacity });
        }
        if let Some(burst) = &self.burst {
            let problem = Wrong::new("a sliding window has no burst").at(burst);
            return Err(problem.help("`burst` belongs to the algorithm `token_bucket`"));
        }
        if rate.number > SLIDING_MAX {
            let problem = Wrong::new(format!("the largest number of a sliding window is {SLIDING_MAX}")).at(rate);
            return Err(problem.help("use the algorithm `token_bucket`, which has no such bound"));
        }
        Ok(Shape::SlidingWindow { per })
    }
}

/// Compiles a list of limits that hold together.
pub fn compile_all(list: &[LimitConfig]) -> Result<Vec<Limit>, Wrong> {
    if list.is_empty() {
        return Err(Wrong::new("there is no limit").help("write limits = [{ rate = \"60/1m\" }]"));
    }
    if list.len() > LIMITS_MAX {
        return Err(Wrong::new(format!("the most limits are {LIMITS_MAX}")));
    }
    let mut limits: Vec<Limit> = Vec::with_capacity(list.len());
    for config in list {
        let limit = config.compile()?;
        if limits.iter().any(|known| known.name == limit.name || known.shape == limit.shape) {
            let problem = Wrong::new(format!("the limit `{}` stands twice", limit.name));
            return Err(match (&config.name, &config.rate, &config.quota) {
                (Some(name), ..) => problem.at(name),
                (_, Some(rate), _) => problem.at(rate),
                (_, _, Some(quota)) => problem.at(quota),
                _ => problem,
            });
        }
        limits.push(limit);
    }
    Ok(limits)
}
