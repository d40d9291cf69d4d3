//! `require`: what an identity must have to go on. Whatever is not permitted is refused.

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::clock::SharedClock;
use crate::condition::{Condition, Facts};
use crate::diagnostic::nearest;
use crate::identity::Identity;
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::route::Pattern;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use crate::value::Located;
use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
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
/// given must hold. Without an identity the answer is 401 `credential_missing`, without permission 403 `forbidden`; where a token
/// lacks nothing but scopes, with `WWW-Authenticate: Bearer error="insufficient_scope"` and the scopes that would do (RFC 6750).
/// With no key at all, every identity is permitted.
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
    /// What a role or scope permits, by method and path; up to 256. A request needs one permission that fits it; what no
    /// permission fits is refused: `[{ roles = ["orders:write"], methods = ["POST"], path = "/orders" }, { roles =
    /// ["orders:read"], methods = ["GET"], path = "/orders/{id}" }]`. Default: no such condition.
    pub permissions: Option<Vec<Located<PermissionConfig>>>,
    /// What must be true of the request, in the Common Expression Language (CEL, <https://cel.dev>): `"claims.org == 'acme' &&
    /// request.address.inside('10.0.0.0/8')"`. It can name `request.method`, `.path`, `.query`, `.host`, `.scheme`, `.address`,
    /// `.headers['x-name']`, `.params.NAME`; `identity.name`, `.consumer`, `.tier`, `.roles`, `.scopes`, `.method`, `.credential`;
    /// `claims.NAME` of a token; `certificate.subject`, `.sha256`, `.names` of the client; and `time.hour`, `.minute`, `.weekday`
    /// (1 is Monday) and `.unix`, in UTC. Functions are `size`, `contains`, `startsWith`, `endsWith`, `inside` (of a network),
    /// `string`, `int`, `uint`, `double`, `has`, and for lists `all`, `exists`, `exists_one`, `map`, `filter`. Up to 4KiB and 512
    /// parts; lists of up to 1,000 elements, one within none, and within one up to 4 times `+` between values of the request. A
    /// condition reads at most 512KiB of a request, where each value counts 64 bytes more than it has, and what is named twice or
    /// for each element of a list counts as often. What cannot be evaluated, such as a claim that is not there, is refused. Default:
    /// no such condition.
    pub condition: Option<Located<String>>,
}

/// One permission of `require`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PermissionConfig {
    /// At least one of these roles is needed. Default: none is, where there are `scopes`; one of the two must be written.
    pub roles: Option<Vec<Located<String>>>,
    /// At least one of these scopes of a token is needed. Default: none is.
    pub scopes: Option<Vec<Located<String>>>,
    /// The methods that it permits; `"GET"` stands for `HEAD` too. Default: every method.
    pub methods: Option<Located<Vec<String>>>,
    /// The paths that it permits, as in `match` of a route: `"/orders/{id}"`, `"/orders/{*rest}"`. Default: every path.
    pub path: Option<Located<String>>,
}

pub struct Require {
    roles: Option<Texts>,
    all_roles: Texts,
    scopes: Option<Texts>,
    all_scopes: Texts,
    scope_challenge: HeaderValue,
    consumers: Option<Texts>,
    tiers: Option<Texts>,
    methods: Option<Permissions>,
    permissions: Option<Box<[Permission]>>,
    condition: Option<Condition>,
    clock: SharedClock,
    unknown_roles: Vec<Located<String>>,
    metrics: Arc<AuthMetrics>,
}

/// One permission, compiled.
struct Permission {
    roles: Option<Texts>,
    scopes: Option<Texts>,
    scope_challenge: HeaderValue,
    methods: Permitted,
    path: Pattern,
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
        let permissions = match &self.permissions {
            None => None,
            Some(list) if list.is_empty() => {
                let problem = Problem::new("an empty list permits nobody");
                return Err(problem.help("take the key out if there is no such condition"));
            }
            Some(list) if list.len() > LIST_MAX => {
                return Err(Problem::new(format!("the most entries of a list are {LIST_MAX}")));
            }
            Some(list) => {
                let roles = list.iter().filter_map(|permission| permission.roles.as_ref()).flatten();
                unknown_roles.extend(roles.cloned());
                Some(list.iter().map(permission).collect::<Result<_, _>>()?)
            }
        };
        let condition = match &self.condition {
            None => None,
            Some(text) => Some(Condition::parse(text).map_err(|(why, help)| {
                let problem = Problem::new(why).at(text);
                match help {
                    Some(help) => problem.help(help),
                    None => problem,
                }
            })?),
        };
        unknown_roles.retain(|role| !cx.consumers.has_role(role));
        let scope_challenge = scope_challenge(self.scopes.iter().chain(&self.all_scopes).flatten());
        Ok(Require {
            roles: self.roles.map(texts),
            all_roles: self.all_roles.map(texts).unwrap_or_default(),
            scopes: self.scopes.map(texts),
            all_scopes: self.all_scopes.map(texts).unwrap_or_default(),
            scope_challenge,
            consumers: self.consumers.map(texts),
            tiers: self.tiers.map(texts),
            methods,
            permissions,
            condition,
            clock: Arc::clone(cx.clock),
            unknown_roles,
            metrics: cx.auth_metrics(Self::NAME),
        })
    }
}

fn texts(list: Vec<Located<String>>) -> Texts {
    list.into_iter().map(|text| text.value.into()).collect()
}

/// What a 403 says that only scopes are missing for (RFC 6750 section 3.1). A scope that the standard knows no way to write is left
/// out.
fn scope_challenge<'a>(scopes: impl Iterator<Item = &'a Located<String>>) -> HeaderValue {
    let plain = |scope: &&str| scope.bytes().all(|b| matches!(b, b'!' | b'#'..=b'[' | b']'..=b'~'));
    let scopes: Vec<&str> = scopes.map(|scope| scope.as_str()).filter(plain).collect();
    let text = match scopes.is_empty() {
        true => "Bearer error=\"insufficient_scope\"".to_owned(),
        false => format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", scopes.join(" ")),
    };
    HeaderValue::try_from(text).unwrap_or(BEARER)
}

fn permitted(methods: &BTreeMap<String, Located<Vec<String>>>, roles: &mut Vec<Located<String>>) -> Result<Permissions, Problem> {
    if methods.is_empty() {
        return Err(Problem::new("`methods` permits no method to anybody").help("take the key out if there is no such condition"));
    }
    let each = methods.iter().map(|(role, list)| {
        roles.push(Located { value: role.clone(), span: list.span.clone() });
        if list.is_empty() {
            return Err(Problem::new(format!("the role `{role}` permits no method")).at(list));
        }
        Ok((role.as_str().into(), Permitted::compile(list)?))
    });
    each.collect()
}

fn permission(config: &Located<PermissionConfig>) -> Result<Permission, Problem> {
    if config.roles.is_none() && config.scopes.is_none() {
        let problem = Problem::new("this permission is everybody's").at(config);
        return Err(problem.help("write the `roles` or `scopes` that it belongs to"));
    }
    let empty = |list: &Option<Vec<Located<String>>>| list.as_ref().is_some_and(Vec::is_empty);
    if empty(&config.roles) || empty(&config.scopes) {
        return Err(Problem::new("an empty list permits nobody").at(config));
    }
    let methods = match &config.methods {
        None => Permitted::All,
        Some(list) if list.is_empty() => return Err(Problem::new("it permits no method").at(list)),
        Some(list) => Permitted::compile(list)?,
    };
    let path = match &config.path {
        None => Pattern::everything(),
        Some(text) => Pattern::parse(text).map_err(|(why, help)| Problem::new(why).at(text).help(help))?,
    };
    Ok(Permission {
        roles: config.roles.clone().map(texts),
        scopes: config.scopes.clone().map(texts),
        scope_challenge: scope_challenge(config.scopes.iter().flatten()),
        methods,
        path,
    })
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

    fn condition_params(&self) -> Vec<&str> {
        self.condition.iter().flat_map(Condition::path_params).collect()
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
        match self.judge(identity, session.req_header(), ctx) {
            Ok(()) => {
                self.metrics.count(AuthOutcome::Accepted);
                Step::CONTINUE
            }
            Err(missing) => {
                self.metrics.count(AuthOutcome::Forbidden);
                let mut rejection = Rejection::new(&rejection::FORBIDDEN);
                rejection.www_authenticate = missing.filter(|_| identity.method == "jwt").cloned();
                Step::reject(rejection)
            }
        }
    }
}

impl Require {
    /// `Err` is what to ask for, where the identity has all but scopes.
    fn judge(&self, identity: &Identity, head: &RequestHeader, ctx: &RequestCtx) -> Result<(), Option<&HeaderValue>> {
        let method = &head.method;
        let any = |texts: &Option<Texts>, holds: &dyn Fn(&str) -> bool| {
            texts.as_ref().is_none_or(|texts| texts.iter().any(|text| holds(text)))
        };
        // A token's subject may be spelt as a consumer is named; only a configured consumer is one.
        let consumer = |name: &str| identity.consumer.as_ref().is_some_and(|consumer| *consumer.name == *name);
        let permitted = any(&self.roles, &|role| identity.has_role(role))
            && self.all_roles.iter().all(|role| identity.has_role(role))
            && any(&self.consumers, &consumer)
            && any(&self.tiers, &|tier| identity.tier.as_deref() == Some(tier))
            && self
                .methods
                .as_ref()
                .is_none_or(|roles| roles.iter().any(|(role, permitted)| identity.has_role(role) && permitted.has(method)));
        if !permitted {
            return Err(None);
        }
        let scoped = |scopes: &Option<Texts>| any(scopes, &|scope| identity.has_scope(scope));
        if !scoped(&self.scopes) || !self.all_scopes.iter().all(|scope| identity.has_scope(scope)) {
            return Err(Some(&self.scope_challenge));
        }
        if let Some(list) = &self.permissions {
            let fits = |permission: &&Permission| {
                any(&permission.roles, &|role| identity.has_role(role))
                    && permission.methods.has(method)
                    && permission.path.matches(head.uri.path())
            };
            let mut near = list.iter().filter(fits).peekable();
            let challenge = near.peek().map(|permission| &permission.scope_challenge);
            if !near.any(|permission| scoped(&permission.scopes)) {
                return Err(challenge);
            }
        }
        let holds = self.condition.as_ref().is_none_or(|condition| {
            let facts = Facts { head: Some(head), ctx: Some(ctx), identity: Some(identity), now: self.clock.wall() };
            condition.holds(&facts)
        });
        if holds { Ok(()) } else { Err(None) }
    }
}

impl Permitted {
    /// `GET` stands for `HEAD` too, `*` for every method.
    fn compile(list: &Located<Vec<String>>) -> Result<Self, Problem> {
        if list.iter().any(|method| method == "*") {
            return Ok(Permitted::All);
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
        Ok(Permitted::Some(permitted.into()))
    }

    fn has(&self, method: &Method) -> bool {
        match self {
            Permitted::All => true,
            Permitted::Some(methods) => methods.contains(method),
        }
    }
}

#[cfg(test)]
mod tests;
