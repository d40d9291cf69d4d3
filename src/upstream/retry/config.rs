//! `retry = { ... }` of an upstream or a route.

use super::RetryPolicy;
use crate::diagnostic::Diagnostics;
use crate::upstream::breaker::number;
use crate::upstream::budget::Allowance;
use crate::upstream::config::{ATTEMPTS_MAX, StatusRange};
use crate::value::{Duration, Located, Percent};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use std::borrow::Cow;
use std::str::FromStr;

/// When a request that failed is sent again, to another endpoint where there is one.
///
/// Only what a client cannot notice is repeated: a request that no part of an answer has been sent for, with a body of at
/// most 64KiB so far, whose method is idempotent (RFC 9110 section 9.2.2) or that has an `Idempotency-Key`; `methods` can
/// widen that. A connection that could not be made has carried nothing, and is repeated for every method. Whatever is
/// configured, a request that met a pooled connection which the endpoint had closed in the meantime is sent again up to
/// three times if it may be repeated; that counts neither as an attempt nor for the budget.
///
/// Retries that cost the upstream work come out of a budget: at most a share of the requests of the last ten seconds. A
/// failed connect is moved to an endpoint that does accept connections without it.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// How often a request is tried, the first time included. 1 to 10, default 2; 1 switches retries off. At the limit the
    /// client gets what the last attempt came to.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Located<u8>,
    /// What is worth another attempt: `"connect"`, no connection could be made; `"reset"`, it broke before an answer began;
    /// `"timeout"`, no answer began within `timeouts.attempt` or `timeouts.read`; a status from 400 to 599 or a range of
    /// them such as `"502-504"`; a gRPC status such as `"UNAVAILABLE"`, of a call that ends with nothing else. Default
    /// `["connect", "reset"]`. At most 32.
    pub on: Vec<Located<On>>,
    /// The pause before a retry. Where an answer has a `Retry-After`, the pause is at least that, if the request has so
    /// much time left and it is at most 10s; else the answer is passed on. There is none after a failed connect.
    pub backoff: BackoffConfig,
    /// The share of the requests of the last ten seconds that may be retries. Default `"10%"`.
    pub budget: Located<Percent>,
    /// How many retries there may be within ten seconds however few requests there are. 0 to 1000000, default 20.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub budget_floor: Located<u32>,
    /// Which requests may be repeated after they have been sent. Default `"idempotent"`.
    pub methods: RetryMethods,
}

/// The pause before a retry: between nothing and `base`, twice that for the next one, and so on up to `max`, at random.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffConfig {
    /// The longest pause before the first retry. At most 1m, default `"25ms"`.
    pub base: Located<Duration>,
    /// The longest pause before any. Not below `base`, at most 1m, default `"250ms"`.
    pub max: Located<Duration>,
}

/// Which requests may be repeated after they have been sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryMethods {
    /// Those with an idempotent method, and those with an `Idempotency-Key`.
    #[default]
    Idempotent,
    /// All. For services that recognise a request that they have had before.
    All,
}

/// One thing that is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Connect,
    Reset,
    Timeout,
    Status(StatusRange),
    Grpc(u8),
}

/// The status codes of gRPC, by their number (<https://grpc.io/docs/guides/status-codes/>). OK is none of them.
const GRPC: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl FromStr for On {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "connect" => return Ok(On::Connect),
            "reset" => return Ok(On::Reset),
            "timeout" => return Ok(On::Timeout),
            _ => {}
        }
        if let Some(code) = GRPC.iter().zip(1_u8..).find_map(|(name, code)| (*name == text).then_some(code)) {
            return Ok(On::Grpc(code));
        }
        match text.parse::<StatusRange>() {
            Ok(range) if range.first >= 400 => Ok(On::Status(range)),
            Ok(_) => Err(format!("an answer of `{text}` is no failure: write a status from 400 to 599")),
            Err(_) => Err(format!(
                "`{text}` is nothing to retry on: write \"connect\", \"reset\", \"timeout\", a status such as \"503\" or \
                 \"502-504\", or a gRPC status such as \"UNAVAILABLE\""
            )),
        }
    }
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for On {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "condition".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^(connect|reset|timeout|[45][0-9]{2}(-[45][0-9]{2})?|[A-Z_]+)$", "title": "condition",
            "description": "What is worth another attempt: connect, reset, timeout, 503, 502-504, UNAVAILABLE"
        })
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            attempts: Located::nowhere(2),
            on: vec![Located::nowhere(On::Connect), Located::nowhere(On::Reset)],
            backoff: BackoffConfig::default(),
            budget: Located::nowhere(Percent { parts_per_million: 100_000 }),
            budget_floor: Located::nowhere(20),
            methods: RetryMethods::Idempotent,
        }
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        BackoffConfig { base: Located::nowhere(Duration::from_millis(25)), max: Located::nowhere(Duration::from_millis(250)) }
    }
}

impl RetryConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, d: &mut Diagnostics) {
        if !(1..=ATTEMPTS_MAX).contains(&usize::from(*self.attempts)) {
            d.error(self.attempts.span.clone(), format!("`attempts` is {}", self.attempts.value))
                .label(format!("must be from 1 to {ATTEMPTS_MAX}"));
        }
        if let Some(extra) = self.on.get(32) {
            d.error(extra.span.clone(), "at most 32 things can be retried on").label("one too many");
        }
        let BackoffConfig { base, max } = &self.backoff;
        if base.within(Duration::from_millis(0)..=Duration::from_secs(60), d)
            && max.within(Duration::from_millis(0)..=Duration::from_secs(60), d)
            && **max < **base
        {
            let at = max.span.clone().or_else(|| base.span.clone());
            d.error(at, format!("the longest pause is {} and the first is {}", max.value, base.value))
                .label("`max` may not be below `base`");
        }
        number("budget_floor", &self.budget_floor, 0..=1_000_000, d);
    }

    pub fn policy(&self) -> RetryPolicy {
        let on = || self.on.iter().map(|on| on.value);
        let statuses = on().filter_map(|on| match on {
            On::Status(range) => Some(range),
            _ => None,
        });
        let grpc = on().filter_map(|on| match on {
            On::Grpc(code) => Some(code),
            _ => None,
        });
        RetryPolicy {
            attempts: (*self.attempts).into(),
            connect: on().any(|on| on == On::Connect),
            reset: on().any(|on| on == On::Reset),
            timeout: on().any(|on| on == On::Timeout),
            statuses: statuses.collect(),
            grpc: grpc.fold(0, |codes, code| codes | 1_u32.checked_shl(code.into()).unwrap_or(0)),
            base: self.backoff.base.get(),
            max: self.backoff.max.get(),
            allowance: Allowance { share: self.budget.parts_per_million, floor: self.budget_floor.value.into() },
            all_methods: self.methods == RetryMethods::All,
        }
    }
}
