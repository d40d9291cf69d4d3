//! `match = { ... }` of a route as it is written, and its compiled form.

use super::header;
use super::host::HostPattern;
use super::path::Pattern;
use crate::diagnostic::{Diagnostics, Span};
use crate::value::Located;
use http::{HeaderName, Method};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The most hosts of one route.
const MAX_HOSTS: usize = 64;
/// The most conditions of one route on headers, and as many on the query.
const MAX_CONDITIONS: usize = 8;

/// Which requests a route takes. Everything that is written here must hold; an empty table takes every request that no
/// other route takes. When several routes fit, the most specific takes the request: exact host before wildcard before none;
/// then, segment by segment, literal path before `{param}` before `{*rest}`; then listed methods before all; then more
/// conditions before fewer. Two routes that this leaves level, and that one request can both fit, are an error.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MatchConfig {
    /// A host, or a list of at most 64: exact (`"api.example.com"`), or with `*.` in front for one label or more
    /// (`"*.example.com"` fits `a.example.com` and `a.b.example.com`, not `example.com`). Lower case, without a port.
    /// Default: every host.
    pub host: Option<Hosts>,
    /// A path: literal (`"/a/b"`), with `{name}` for one segment that is not empty, or with `{*name}` at the end for the
    /// remainder, which may be empty: `"/api/{*rest}"` fits `/api`, `/api/` and `/api/x/y`. Case counts, and so does a
    /// trailing slash: `"/a"` does not fit `/a/`. At most 8 params and 64 segments. It is compared with the one form that paths are
    /// brought into, see `[listeners.NAME]`. Default: every path.
    pub path: Option<Located<String>>,
    /// The methods, in upper case. A route that lists GET takes HEAD too unless another lists HEAD. Other methods of a
    /// path that is known get 405 with `Allow`. Default: all methods.
    pub methods: Option<Vec<Located<String>>>,
    /// Headers that the request must have, at most 8: a value, which the header must have exactly (case counts) in a single
    /// line of that name, or `"*"` for any. Default: none.
    pub headers: BTreeMap<String, Located<String>>,
    /// Query parameters that the request must have, at most 8: a value that the parameter must have exactly once, after
    /// percent-decoding of both its name and its value, or `"*"` for any. Default: none.
    pub query: BTreeMap<String, Located<String>>,
}

/// One host, or a list of them.
#[derive(Debug, Clone)]
pub struct Hosts(pub Vec<Located<String>>);

/// What a condition asks of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Present,
    Value(Box<[u8]>),
}

/// A compiled [`MatchConfig`]: only possible values.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// Empty: every host.
    hosts: Vec<HostPattern>,
    pub(super) path: Pattern,
    /// Empty: all methods.
    pub(super) methods: Vec<Method>,
    pub(super) headers: Vec<(HeaderName, Wanted)>,
    pub(super) query: Vec<(Box<str>, Wanted)>,
}

impl Matcher {
    /// The names of the path's `{param}` and `{*rest}`, in order.
    pub fn path_params(&self) -> &[Box<str>] {
        &self.path.names
    }

    pub(super) fn hosts(&self) -> &[HostPattern] {
        const ANY: &[HostPattern] = &[HostPattern::Any];
        if self.hosts.is_empty() { ANY } else { &self.hosts }
    }
}

impl MatchConfig {
    /// Reports values that no request can match.
    pub fn check(&self, d: &mut Diagnostics) {
        self.compile(d);
    }

    /// Reports like [`MatchConfig::check`], and gives the compiled form when there is nothing to report but warnings.
    pub fn compile(&self, d: &mut Diagnostics) -> Option<Matcher> {
        let hosts = self.compile_hosts(d);
        let path = match &self.path {
            None => Some(Pattern::everything()),
            Some(text) => match Pattern::parse(text) {
                Ok(pattern) => Some(pattern),
                Err((why, help)) => {
                    d.error(text.span.clone(), format!("`{}` is not a path to match", **text)).label(why).help(help);
                    None
                }
            },
        };
        let methods = self.compile_methods(d);
        let headers = conditions(&self.headers, "headers", d, header::parse_name, header::parse_value);
        let query = conditions(
            &self.query,
            "query",
            d,
            |name| if name.is_empty() { Err("a parameter has a name".to_owned()) } else { Ok(Box::from(name)) },
            |value| Ok(value.as_bytes().into()),
        );
        Some(Matcher { hosts: hosts?, path: path?, methods: methods?, headers: headers?, query: query? })
    }

    fn compile_hosts(&self, d: &mut Diagnostics) -> Option<Vec<HostPattern>> {
        let Some(Hosts(list)) = &self.host else { return Some(Vec::new()) };
        let mut hosts = Some(Vec::new());
        if list.is_empty() {
            d.error(None, "`host = []` matches no request").help("leave `host` out to match every host");
            return None;
        }
        if let Some(extra) = list.get(MAX_HOSTS) {
            d.error(extra.span.clone(), format!("a route has at most {MAX_HOSTS} hosts")).label("one too many");
            hosts = None;
        }
        for (at, text) in list.iter().enumerate() {
            if let Some(first) = list.iter().take(at).find(|first| first.value == text.value) {
                let report = d.error(text.span.clone(), format!("the host `{}` stands twice", **text));
                relate(report, first.span.as_ref(), "first here");
                hosts = None;
                continue;
            }
            match HostPattern::parse(text) {
                Ok(host) => {
                    if let Some(hosts) = &mut hosts {
                        hosts.push(host);
                    }
                }
                Err((why, help)) => {
                    d.error(text.span.clone(), format!("`{}` is not a host to match", **text)).label(why).help(help);
                    hosts = None;
                }
            }
        }
        hosts
    }

    fn compile_methods(&self, d: &mut Diagnostics) -> Option<Vec<Method>> {
        let Some(list) = &self.methods else { return Some(Vec::new()) };
        if list.is_empty() {
            d.error(None, "`methods = []` matches no request").help("leave `methods` out to match every method");
            return None;
        }
        let mut methods = Some(Vec::new());
        for (at, text) in list.iter().enumerate() {
            let problem = if let Some(first) = list.iter().take(at).find(|first| first.value == text.value) {
                let report = d.error(text.span.clone(), format!("the method `{}` stands twice", **text));
                relate(report, first.span.as_ref(), "first here");
                methods = None;
                continue;
            } else {
                method_problem(text)
            };
            match (problem, Method::from_bytes(text.as_bytes())) {
                (None, Ok(method)) => {
                    if let Some(methods) = &mut methods {
                        methods.push(method);
                    }
                }
                (problem, _) => {
                    let (why, help) = problem.unwrap_or_default();
                    d.error(text.span.clone(), format!("`{}` is not a method to match", **text)).label(why).help(help);
                    methods = None;
                }
            }
        }
        methods
    }
}

/// Methods that are registered and in use (<https://www.iana.org/assignments/http-methods>). Others are taken for typos:
/// a method is case-sensitive and unknown ones match nothing, which nobody notices until a client gets 405.
const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

fn method_problem(text: &str) -> Option<(String, String)> {
    if METHODS.contains(&text) {
        return None;
    }
    let upper = text.to_ascii_uppercase();
    if upper == "CONNECT" {
        let why = "CONNECT asks for a tunnel, and this gateway opens none".to_owned();
        return Some((why, "remove it: such requests get 405 before routes are tried".to_owned()));
    }
    if METHODS.contains(&upper.as_str()) {
        return Some(("methods are case-sensitive and in upper case".to_owned(), format!("write \"{upper}\"")));
    }
    let near = METHODS.iter().map(|known| (strsim::damerau_levenshtein(known, &upper), known)).min();
    let help = match near {
        Some((distance, known)) if distance <= 2 => format!("did you mean \"{known}\"?"),
        _ => "use a registered method, such as GET, POST, PUT, PATCH, DELETE or OPTIONS".to_owned(),
    };
    Some(("no such method is registered".to_owned(), help))
}

type Conditions<N> = Vec<(N, Wanted)>;

fn conditions<N: PartialEq>(
    table: &BTreeMap<String, Located<String>>,
    what: &str,
    d: &mut Diagnostics,
    parse_name: impl Fn(&str) -> Result<N, String>,
    parse_value: impl Fn(&str) -> Result<Box<[u8]>, String>,
) -> Option<Conditions<N>> {
    let mut list: Option<Conditions<N>> = Some(Vec::new());
    let mut fail = |value: &Located<String>, message: String, why: String| {
        d.error(value.span.clone(), message).label(why);
    };
    for (at, (name, value)) in table.iter().enumerate() {
        if at >= MAX_CONDITIONS {
            fail(value, format!("a route has at most {MAX_CONDITIONS} conditions in `{what}`"), "one too many".to_owned());
            return None;
        }
        let wanted = if **value == "*" { Ok(Wanted::Present) } else { parse_value(value).map(Wanted::Value) };
        let parsed = parse_name(name).and_then(|name| wanted.map(|wanted| (name, wanted)));
        match (parsed, &mut list) {
            (Ok((parsed, _)), Some(known)) if known.iter().any(|(other, _)| *other == parsed) => {
                fail(value, format!("`{name}` stands twice in `{what}`"), "names are compared without case".to_owned());
                list = None;
            }
            (Ok(condition), Some(list)) => list.push(condition),
            (Ok(_), None) => {}
            (Err(why), _) => {
                fail(value, format!("the condition on `{name}` in `{what}` is impossible"), why);
                list = None;
            }
        }
    }
    list
}

fn relate(report: &mut crate::diagnostic::Diagnostic, span: Option<&Span>, text: &str) {
    if let Some(span) = span {
        report.related(span.clone(), text);
    }
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would lose the places of the elements. The place of a single string is that of the whole value.
        let Located { value, span } = Located::<OneOrMany>::deserialize(deserializer)?;
        Ok(Hosts(match value {
            OneOrMany::One(value) => vec![Located { value, span }],
            OneOrMany::Many(list) => list,
        }))
    }
}

enum OneOrMany {
    One(String),
    Many(Vec<Located<String>>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor;
        impl<'de> Visitor<'de> for OneOrManyVisitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a host, or a list of hosts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany::One(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut hosts = Vec::new();
                while let Some(host) = list.next_element()? {
                    hosts.push(host);
                }
                Ok(OneOrMany::Many(hosts))
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

impl JsonSchema for Hosts {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "hosts".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": MAX_HOSTS }
            ]
        })
    }
}

#[cfg(test)]
mod tests;
