//! `require`: what an identity must have to go on. Whatever is not permitted is refused.

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::diagnostic::nearest;
use crate::identity::Identity;
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use crate::value::Located;
use http::{HeaderValue, Method};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most entries of one list.
const LIST_MAX: usize = 256;
/// What a 401 asks for where no filter has said it: any credential that the route takes.
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

/// Lets only those pass who are permitted; a filter that establishes an identity must stand before it. All keys that are
/// given must hold. Without an identity the answer is 401 `credential_missing`, without permission 403 `forbidden`. With no
/// key at all, every identity is permitted.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequireConfig {
    /// At least one of these roles. A role that no consumer has is an error, unless a filter before it can grant roles.
    /// Default: no such condition.
    pub roles: Option<Vec<Located<String>>>,
    /// Every one of these roles. Default: no such condition.
    pub all_roles: Option<Vec<Located<String>>>,
    /// At least one of these scopes of a token. Default: no such condition.
    pub scopes: Option<Vec<Located<String>>>,
    /// Every one of these scopes. Default: no such condition.
    pub all_scopes: Option<Vec<Located<String>>>,
    /// One of these consumers, by the names of their `[consumers.NAME]`. Default: no such condition.
    pub consumers: Option<Vec<Located<String>>>,
    /// One of these tiers. Default: no such condition.
    pub tiers: Option<Vec<Located<String>>>,
    /// Which methods a role permits: `{ "orders:read" = ["GET"], "orders:write" = ["POST", "PUT", "DELETE"] }`. A request needs
    /// one role that permits its method; a method that no role permits is refused. `"GET"` stands for `HEAD` too, `"*"` for every
    /// method. Default: no such condition.
    pub methods: Option<BTreeMap<String, Located<Vec<String>>>>,
}

pub struct Require {
    roles: Option<Texts>,
    all_roles: Texts,
    scopes: Option<Texts>,
    all_scopes: Texts,
    consumers: Option<Texts>,
    tiers: Option<Texts>,
    methods: Option<Permissions>,
    unknown_roles: Vec<Located<String>>,
    metrics: Arc<AuthMetrics>,
}

type Texts = Box<[Box<str>]>;
/// Which methods each role permits.
type Permissions = Box<[(Box<str>, Permitted)]>;

enum Permitted {
    All,
    Some(Box<[Method]>),
}

impl FilterConfig for RequireConfig {
    const NAME: &'static str = "require";
    type Filter = Require;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Require, Problem> {
        let lists = [&self.roles, &self.all_roles, &self.scopes, &self.all_scopes, &self.consumers, &self.tiers];
        for list in lists.into_iter().flatten() {
            if list.is_empty() {
                let problem = Problem::new("an empty list permits nobody");
                return Err(problem.help("take the key out if there is no such condition"));
            }
            if list.len() > LIST_MAX {
                return Err(Problem::new(format!("the most entries of a list are {LIST_MAX}")));
            }
        }
        for name in self.consumers.iter().flatten() {
            if cx.consumers.get(name).is_none() {
                return Err(dangling("consumer", name, cx.consumers.iter().map(|consumer| &*consumer.name)));
            }
        }
        for name in self.tiers.iter().flatten() {
            if cx.consumers.tier(name).is_none() {
                return Err(dangling("tier", name, cx.consumers.tiers().map(|tier| &*tier.name)));
            }
        }
        let mut unknown_roles: Vec<_> = self.roles.iter().chain(&self.all_roles).flatten().cloned().collect();
        let methods = self.methods.as_ref().map(|methods| permitted(methods, &mut unknown_roles)).transpose()?;
        unknown_roles.retain(|role| !cx.consumers.has_role(role));
        Ok(Require {
            roles: self.roles.map(texts),
            all_roles: self.all_roles.map(texts).unwrap_or_default(),
            scopes: self.scopes.map(texts),
            all_scopes: self.all_scopes.map(texts).unwrap_or_default(),
            consumers: self.consumers.map(texts),
            tiers: self.tiers.map(texts),
            methods,
            unknown_roles,
            metrics: cx.auth_metrics(Self::NAME),
        })
    }
}

fn texts(list: Vec<Located<String>>) -> Texts {
    list.into_iter().map(|text| text.value.into()).collect()
}

fn permitted(methods: &BTreeMap<String, Located<Vec<String>>>, roles: &mut Vec<Located<String>>) -> Result<Permissions, Problem> {
    if methods.is_empty() {
        return Err(Problem::new("`methods` permits no method to anybody").help("take the key out if there is no such condition"));
    }
    let each = methods.iter().map(|(role, list)| {
        roles.push(Located { value: role.clone(), span: list.span.clone() });
        if list.iter().any(|method| method == "*") {
            return Ok((role.as_str().into(), Permitted::All));
        }
        let mut permitted = Vec::new();
        for text in &list.value {
            // Methods are case-sensitive (RFC 9110 section 9.1), and all that anybody uses are in upper case.
            let known = Method::from_bytes(text.as_bytes()).ok().filter(|_| !text.bytes().any(|b| b.is_ascii_lowercase()));
            let method = known.ok_or_else(|| {
                let problem = Problem::new(format!("`{text}` is not a method")).at(list);
                problem.help("write it in upper case, such as \"GET\", or \"*\" for every method")
            })?;
            permitted.extend((method == Method::GET).then_some(Method::HEAD));
            permitted.push(method);
        }
        if permitted.is_empty() {
            return Err(Problem::new(format!("the role `{role}` permits no method")).at(list));
        }
        Ok((role.as_str().into(), Permitted::Some(permitted.into())))
    });
    each.collect()
}

fn dangling<'a>(kind: &str, name: &Located<String>, known: impl Iterator<Item = &'a str>) -> Problem {
    let problem = Problem::new(format!("there is no {kind} `{}`", name.value)).at(name);
    match nearest(name, known) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem,
    }
}

impl Filter for Require {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn needs_identity(&self) -> bool {
        true
    }

    fn unknown_roles(&self) -> &[Located<String>] {
        &self.unknown_roles
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let Some(identity) = &ctx.identity else {
            self.metrics.count(AuthOutcome::Missing);
            let challenge = ctx.challenge.clone().unwrap_or(BEARER);
            return Step::reject(Rejection::new(&rejection::CREDENTIAL_MISSING).www_authenticate(challenge));
        };
        if self.permits(identity, &session.req_header().method) {
            self.metrics.count(AuthOutcome::Accepted);
            Step::CONTINUE
        } else {
            self.metrics.count(AuthOutcome::Forbidden);
            Step::reject(Rejection::new(&rejection::FORBIDDEN))
        }
    }
}

impl Require {
    fn permits(&self, identity: &Identity, method: &Method) -> bool {
        let any = |texts: &Option<Texts>, holds: &dyn Fn(&str) -> bool| {
            texts.as_ref().is_none_or(|texts| texts.iter().any(|text| holds(text)))
        };
        // A token's subject may be spelt as a consumer is named; only a configured consumer is one.
        let consumer = |name: &str| identity.consumer.as_ref().is_some_and(|consumer| *consumer.name == *name);
        any(&self.roles, &|role| identity.has_role(role))
            && self.all_roles.iter().all(|role| identity.has_role(role))
            && any(&self.scopes, &|scope| identity.has_scope(scope))
            && self.all_scopes.iter().all(|scope| identity.has_scope(scope))
            && any(&self.consumers, &consumer)
            && any(&self.tiers, &|tier| identity.tier.as_deref() == Some(tier))
            && self
                .methods
                .as_ref()
                .is_none_or(|roles| roles.iter().any(|(role, permitted)| identity.has_role(role) && permitted.has(method)))
    }
}

impl Permitted {
    fn has(&self, method: &Method) -> bool {
        match self {
            Permitted::All => true,
            Permitted::Some(methods) => methods.contains(method),
        }
    }
}

#[cfg(test)]
mod tests;
