//! `jwt`: only requests with a valid token go on, as whoever the token says.
//!
//! What makes a token valid is said once, in `[jwt.NAME]`, see [`crate::jwt`]; here is where the token is found, and what the
//! upstream is told about it.

mod claim_headers;
mod source;

use super::place::Place;
use super::query::Taken;
use super::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Step};
use crate::consumer::Consumers;
use crate::consumer::issued::{Standing, denial_names};
use crate::identity::Identity;
use crate::jwt::{Answer, Issuer, Refusal};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use crate::value::Located;
use claim_headers::ClaimHeaders;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use source::{Duplicate, Sources};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The most issuers of one filter.
const ISSUERS_MAX: usize = 16;
/// When to come back after keys could not be had.
const RETRY: Duration = Duration::from_secs(2);

// RFC 6750 section 3.1. A request without any credential is told no error, only what is asked for.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer");
const INVALID_TOKEN: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_token\"");
const INVALID_REQUEST: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_request\"");
const EXPIRED: HeaderValue =
    HeaderValue::from_static("Bearer error=\"invalid_token\", error_description=\"The token has expired\"");

/// Lets requests with a valid JSON Web Token pass, as whoever the token names. A request without a token is rejected with
/// `credential_missing`, one with two with `credential_duplicate`, one with a token that does not count with `token_invalid` or
/// `token_expired`, and all with `keys_unavailable` while there are no keys to decide by. Where requests may come without a token, put
/// it into `any_of`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// Whose tokens count: the name of a `[jwt.NAME]` section, or a list of up to 16. Several are told apart by the claim `iss`, so that
    /// each needs an `issuer` of its own.
    pub issuer: Located<Names>,
    /// Where the token is: `"authorization"` (`Authorization: Bearer ...`), `"header:NAME"`, `"cookie:NAME"` or `"query:NAME"`; up to 8 of
    /// them. All are looked at. A token is always taken out of the query before the upstream, logs, the cache and filters behind this
    /// one see it. Default `["authorization"]`.
    #[serde(default = "authorization")]
    #[schemars(default)]
    pub token: Vec<Located<String>>,
    /// Whether the token is sent to the upstream. With `false` the headers and cookies of `token` are removed, whatever they hold.
    /// One in the query never goes further. Default `true`.
    #[serde(default = "yes")]
    pub forward: bool,
    /// Headers for the upstream, name to claim (written as in `claims` of the issuer); up to 32. What the client sent under these
    /// names is removed. Text, numbers, `true` and `false` are written as they are, lists of them with commas between; where the
    /// claim is missing or cannot be written in a header, the header is left out. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, Located<String>>,
}

fn yes() -> bool {
    true
}

fn authorization() -> Vec<Located<String>> {
    vec![Located::nowhere("authorization".to_owned())]
}

/// One name, or a list of them.
#[derive(Debug, Clone)]
pub struct Names(pub Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a list of names")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Names, E> {
                Ok(Names(vec![name.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Names {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Names".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

pub struct Jwt {
    issuers: Box<[Arc<Issuer>]>,
    consumers: Arc<Consumers>,
    sources: Sources,
    forward: bool,
    headers: ClaimHeaders,
    /// Whether tokens of one of the issuers can be withdrawn.
    deny_list: bool,
    metrics: Arc<AuthMetrics>,
}

impl FilterConfig for JwtConfig {
    const NAME: &'static str = "jwt";
    type Filter = Jwt;

    fn credential_headers(&self) -> Vec<HeaderName> {
        self.token.iter().filter_map(|place| place.strip_prefix("header:")?.parse().ok()).collect()
    }

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Jwt, Problem> {
        let issuers = issuers(&self.issuer, cx)?;
        let deny_list = issuers.iter().any(|issuer| issuer.has_deny_list());
        Ok(Jwt {
            issuers,
            deny_list,
            consumers: Arc::clone(cx.consumers),
            sources: Sources::compile(&self.token)?,
            forward: self.forward,
            headers: ClaimHeaders::compile(&self.headers)?,
            metrics: cx.auth_metrics(Self::NAME),
        })
    }
}

fn issuers(names: &Located<Names>, cx: &BuildContext<'_>) -> Result<Box<[Arc<Issuer>]>, Problem> {
    let list = &names.value.0;
    if list.is_empty() || list.len() > ISSUERS_MAX {
        return Err(Problem::new(format!("this names {} issuers, and 1 to {ISSUERS_MAX} are possible", list.len())).at(names));
    }
    let mut issuers: Vec<Arc<Issuer>> = Vec::new();
    for name in list {
        let issuer = match cx.issuers.get(name) {
            Ok(issuer) => issuer,
            Err(true) => return Err(Problem::reported()),
            Err(false) => {
                let problem = Problem::new(format!("there is no issuer `{name}`")).at(names);
                let known: Vec<String> = cx.issuers.names().map(|name| format!("`{name}`")).collect();
                return Err(match known.is_empty() {
                    true => problem.help(format!("write [jwt.{name}]")),
                    false => problem.help(format!("known are {}", known.join(", "))),
                });
            }
        };
        if issuers.iter().any(|known| known.name() == issuer.name()) {
            return Err(Problem::new(format!("`{name}` stands twice")).at(names));
        }
        if list.len() > 1 {
            let Some(iss) = issuer.issuer() else {
                let problem = Problem::new(format!("the issuer `{name}` cannot be told from others")).at(names);
                return Err(problem.help(format!("give [jwt.{name}] an `issuer`, which is what `iss` of its tokens must be")));
            };
            if let Some(other) = issuers.iter().find(|known| known.issuer() == Some(iss)) {
                let problem =
                    Problem::new(format!("the issuers `{}` and `{name}` have the same `issuer`", other.name())).at(names);
                return Err(problem.help("tokens are given to one of them by it"));
            }
        }
        issuers.push(Arc::clone(issuer));
    }
    Ok(issuers.into())
}

impl Filter for Jwt {
    fn phases(&self) -> Phases {
        match self.forward && self.headers.is_empty() {
            true => Phases::REQUEST,
            false => Phases::REQUEST.and(Phases::UPSTREAM_REQUEST),
        }
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    fn grants_role(&self, role: &str) -> bool {
        self.issuers.iter().any(|issuer| issuer.grants_role(role))
    }

    fn may_wait(&self) -> bool {
        self.issuers.iter().any(|issuer| issuer.may_wait() || issuer.has_deny_list())
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let from_query = match self.sources.take_from_query(session) {
            Ok(Taken::None) => None,
            Ok(Taken::One(token)) => Some(token),
            Ok(Taken::Several) => return Step::reject(self.duplicate()),
            Err(rejection) => return Step::reject(rejection),
        };
        let token = match self.sources.find(session.req_header(), from_query.as_deref()) {
            Ok(Some(token)) => token,
            Ok(None) => return Step::reject(self.missing()),
            Err(Duplicate) => return Step::reject(self.duplicate()),
        };
        match Issuer::verify(&self.issuers, token, &self.consumers, true) {
            Answer::Accepted(identity) if self.deny_list => match self.standing(&identity) {
                Ok(Some(standing)) => Step::Ready(self.judge(standing, identity, ctx)),
                Ok(None) => Step::Wait(Box::pin(self.look_up(identity, ctx))),
                Err(refusal) => Step::reject(self.refuse(refusal)),
            },
            Answer::Accepted(identity) => Step::Ready(self.accept(identity, ctx)),
            Answer::Refused(refusal) => Step::reject(self.refuse(refusal)),
            Answer::Wait(ticket) => {
                let token = token.to_vec();
                Step::Wait(Box::pin(async move {
                    ticket.wait().await;
                    match Issuer::verify(&self.issuers, &token, &self.consumers, false) {
                        Answer::Accepted(identity) if self.deny_list => self.look_up(identity, ctx).await,
                        Answer::Accepted(identity) => self.accept(identity, ctx),
                        Answer::Refused(refusal) => Err(self.refuse(refusal)),
                        Answer::Wait(_) => Err(self.refuse(Refusal::KeysUnavailable)),
                    }
                }))
            }
        }
    }

    fn take_from_query(&self, session: &mut Session) -> Result<bool, Rejection> {
        Ok(!matches!(self.sources.take_from_query(session)?, Taken::None))
    }

    fn credential_places(&self) -> Vec<Place> {
        self.sources.places()
    }

    fn is_credential(&self, place: &Place, head: &RequestHeader) -> bool {
        self.sources.is_token(place, head)
    }

    fn on_passed_over(&self, _: &Session, head: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        self.headers.apply(head, None);
        Ok(())
    }

    fn on_upstream_request(&self, _: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        if !self.forward {
            self.sources.remove(head);
        }
        self.headers.apply(head, ctx.identity.as_ref().and_then(|identity| identity.claims.as_deref()));
        Ok(())
    }
}

/// Under which names a token can be withdrawn, and when it was issued.
fn names(identity: &Identity) -> Result<(Vec<String>, Option<u64>), Refusal> {
    let (Some(issuer), Some(claims)) = (&identity.issuer, &identity.claims) else { return Err(Refusal::StandingUnknown) };
    let text = |claim: &str| claims.get(claim).and_then(|value| value.as_str());
    let names = denial_names(issuer, text("jti"), text("sub")).ok_or(Refusal::Malformed)?;
    // Fractions of a second count for the earlier one.
    let issued = claims.get("iat").and_then(|iat| iat.as_u64().or_else(|| iat.as_f64().map(|iat| iat as u64)));
    Ok((names, issued))
}

impl Jwt {
    /// Whether a good token was withdrawn; `None`: Redis must be asked.
    fn standing(&self, identity: &Identity) -> Result<Option<Standing>, Refusal> {
        let listed = self.issuers.iter().any(|issuer| issuer.has_deny_list() && Some(issuer.name()) == identity.issuer.as_ref());
        if !listed {
            return Ok(Some(Standing::Good));
        }
        let issued = self.consumers.issued().ok_or(Refusal::StandingUnknown)?;
        let (names, at) = names(identity)?;
        Ok(issued.standing(&names, at))
    }

    async fn look_up(&self, identity: Arc<Identity>, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        let standing = match self.standing(&identity).map_err(|refusal| self.refuse(refusal))? {
            Some(standing) => standing,
            None => match (self.consumers.issued(), names(&identity)) {
                (Some(issued), Ok((names, at))) => issued.find_standing(&names, at).await,
                _ => Standing::Unavailable,
            },
        };
        self.judge(standing, identity, ctx)
    }

    fn judge(&self, standing: Standing, identity: Arc<Identity>, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        match standing {
            Standing::Good => self.accept(identity, ctx),
            Standing::Denied => Err(self.refuse(Refusal::Denied)),
            Standing::Unavailable => Err(self.refuse(Refusal::StandingUnknown)),
        }
    }

    fn accept(&self, identity: Arc<Identity>, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        self.metrics.count(AuthOutcome::Accepted);
        ctx.identity = Some(identity);
        Ok(Flow::Continue)
    }

    fn missing(&self) -> Rejection {
        self.metrics.count(AuthOutcome::Missing);
        Rejection::new(&rejection::CREDENTIAL_MISSING).www_authenticate(CHALLENGE)
    }

    fn duplicate(&self) -> Rejection {
        self.metrics.count(AuthOutcome::Duplicate);
        Rejection::new(&rejection::CREDENTIAL_DUPLICATE).www_authenticate(INVALID_REQUEST)
    }

    fn refuse(&self, refusal: Refusal) -> Rejection {
        self.metrics.count(refusal.outcome());
        log::debug!("a token is refused: {refusal:?}");
        let rejection = Rejection::new(refusal.code());
        match refusal {
            Refusal::KeysUnavailable | Refusal::StandingUnknown => rejection.retry_after(RETRY),
            Refusal::Expired => rejection.www_authenticate(EXPIRED),
            _ => rejection.www_authenticate(INVALID_TOKEN),
        }
    }
}

#[cfg(test)]
mod tests;
