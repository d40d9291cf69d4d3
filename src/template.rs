//! Values that filters write, with places for facts of the request: `"${request_id}-${client_ip}"`.
//!
//! Compiled when the configuration is loaded. A text without places is a finished header value, whose clone costs a
//! counter. Others are written into the thread's [`arena`](crate::arena) and cost no allocation of their own.
//!
//! A fact that a request does not have (no consumer is known, the route has no such param) takes the whole value away
//! rather than leaving a hole in it, and so does a value that could not stand in a header. The caller decides what then
//! happens; none may let through what the client sent under the same name.

use crate::arena::with_arena;
use crate::request::{ClientCertificate, RequestCtx};
use crate::value::Secret;
use bytes::{BufMut, BytesMut};
use http::HeaderValue;
use std::fmt::{self, Write as _};

/// The longest value that a template renders to, in bytes; beyond it there is no value. Only path params can be long.
pub const MAX_VALUE: usize = 2048;

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    pub message: String,
    pub help: String,
}

/// A compiled value.
#[derive(Debug, Clone)]
pub struct Template(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Fixed(HeaderValue),
    Parts(Box<[Part]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Fact(Fact),
    PathParam(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    RequestId,
    ClientIp,
    Route,
    Consumer,
    Host,
    Scheme,
    Path,
    ClientCertSubject,
    ClientCertSha256,
    ClientCertNames,
}

const FACTS: [(&str, Fact); 10] = [
    ("request_id", Fact::RequestId),
    ("client_ip", Fact::ClientIp),
    ("route", Fact::Route),
    ("consumer", Fact::Consumer),
    ("host", Fact::Host),
    ("scheme", Fact::Scheme),
    ("path", Fact::Path),
    ("client_cert_subject", Fact::ClientCertSubject),
    ("client_cert_sha256", Fact::ClientCertSha256),
    ("client_cert_names", Fact::ClientCertNames),
];

impl Template {
    /// Compiles a text with places `${request_id}`, `${client_ip}`, `${route}`, `${consumer}`, `${host}`, `${scheme}`,
    /// `${path}` (as the client asked, before any rewrite), `${client_cert_subject}`, `${client_cert_sha256}` and
    /// `${client_cert_names}` (of the certificate that a listener has verified), and `${path.NAME}` (a param of the route); `$$` stands for one dollar sign. `${VARIABLE}` in upper case is the environment's and has been
    /// replaced before.
    pub fn compile(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_VALUE {
            return Err(error(format!("a value has at most {MAX_VALUE} bytes"), "shorten it"));
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                plain.push('$');
                rest = after;
                continue;
            }
            let Some((name, after)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) else {
                return Err(error("`$` starts no `${name}`".to_owned(), "write `$$` for a dollar sign"));
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(place(name)?);
            rest = after;
        }
        plain.push_str(rest);
        if parts.is_empty() {
            return Ok(Template(Inner::Fixed(header_value(&plain)?)));
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        for part in &parts {
            if let Part::Text(text) = part {
                header_value(text)?;
            }
        }
        Ok(Template(Inner::Parts(parts.into())))
    }

    /// A secret, taken as it is. None if it cannot stand in a header. Marked as sensitive, so that HTTP/2 does not index it.
    pub fn secret(secret: &Secret) -> Option<Self> {
        let mut value = HeaderValue::from_str(secret.expose()).ok()?;
        value.set_sensitive(true);
        Some(Template(Inner::Fixed(value)))
    }

    /// Whether it has a place for a fact of the client's certificate.
    pub fn names_certificate(&self) -> bool {
        let of_certificate =
            |part: &Part| matches!(part, Part::Fact(Fact::ClientCertSubject | Fact::ClientCertSha256 | Fact::ClientCertNames));
        self.parts().iter().any(of_certificate)
    }

    /// Whether it has a place for the consumer.
    pub fn names_consumer(&self) -> bool {
        self.parts().contains(&Part::Fact(Fact::Consumer))
    }

    fn parts(&self) -> &[Part] {
        match &self.0 {
            Inner::Fixed(_) => &[],
            Inner::Parts(parts) => parts,
        }
    }

    /// The path params that it has places for.
    pub fn path_params(&self) -> impl Iterator<Item = &str> {
        self.parts().iter().filter_map(|part| match part {
            Part::PathParam(name) => Some(&**name),
            _ => None,
        })
    }

    /// The value for one request, or none: see the module. `path` is the canonical path that the route was found by.
    pub fn render(&self, ctx: &RequestCtx, path: &str) -> Option<HeaderValue> {
        match &self.0 {
            Inner::Fixed(value) => Some(value.clone()),
            Inner::Parts(parts) => {
                let mut written = Ok(());
                let value = with_arena(|buffer| {
                    let mut out = Bounded { buffer };
                    written = parts.iter().try_for_each(|part| part.write(&mut out, ctx, path));
                });
                // Checks every byte, so that nothing a client sent can end the field.
                written.ok().and_then(|()| HeaderValue::from_maybe_shared(value).ok())
            }
        }
    }
}

/// The first place for a fact in a text that is none of a template, where it was hardly meant as it stands.
pub fn first_place(text: &str) -> Option<&str> {
    text.match_indices("${").find_map(|(at, _)| {
        let found = text.get(at..)?;
        let found = found.get(..=found.find('}')?)?;
        place(found.strip_prefix("${")?.strip_suffix('}')?).is_ok().then_some(found)
    })
}

fn place(name: &str) -> Result<Part, TemplateError> {
    if let Some((_, fact)) = FACTS.iter().find(|(known, _)| *known == name) {
        return Ok(Part::Fact(*fact));
    }
    if let Some(param) = name.strip_prefix("path.") {
        if !param.is_empty() && param.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Ok(Part::PathParam(param.into()));
        }
        return Err(error(
            format!("`{param}` cannot be a path param"),
            "write a name from the route's path, such as `${path.id}`",
        ));
    }
    let known = FACTS.iter().map(|(known, _)| *known);
    let near = known.clone().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    let help = match near {
        Some((distance, near)) if distance <= 3 && distance < near.len() => format!("did you mean `${{{near}}}`?"),
        _ => {
            let all: Vec<String> = known.chain(["path.NAME"]).map(|known| format!("`${{{known}}}`")).collect();
            format!("known are {}", all.join(", "))
        }
    };
    Err(TemplateError { message: format!("`${{{name}}}` is not known"), help })
}

fn error(message: String, help: &str) -> TemplateError {
    TemplateError { message, help: help.to_owned() }
}

fn header_value(text: &str) -> Result<HeaderValue, TemplateError> {
    if text.bytes().any(|b| (b.is_ascii_control() && b != b'\t') || !b.is_ascii()) {
        return Err(error(
            "a header value holds visible ASCII, spaces and tabs only".to_owned(),
            "leave out line breaks, control characters and letters with accents",
        ));
    }
    HeaderValue::from_str(text).map_err(|_| error("this is not a header value".to_owned(), "use visible ASCII"))
}

impl Part {
    fn write(&self, out: &mut Bounded<'_>, ctx: &RequestCtx, path: &str) -> fmt::Result {
        match self {
            Part::Text(text) => out.write_str(text),
            Part::PathParam(name) => out.write_str(ctx.params.get(path, name).ok_or(fmt::Error)?),
            Part::Fact(Fact::RequestId) => out.write_str(&ctx.id),
            Part::Fact(Fact::ClientIp) => write!(out, "{}", ctx.client),
            Part::Fact(Fact::Route) => out.write_str(ctx.route.as_deref().ok_or(fmt::Error)?),
            Part::Fact(Fact::Consumer) => out.write_str(&ctx.identity.as_ref().ok_or(fmt::Error)?.name),
            // HTTP/1.0 may come without one; `https:///x` would be another host's.
            Part::Fact(Fact::Host) if ctx.host.is_empty() => Err(fmt::Error),
            Part::Fact(Fact::Host) => out.write_str(&ctx.host),
            Part::Fact(Fact::Scheme) => out.write_str(ctx.scheme.as_str()),
            Part::Fact(Fact::Path) => out.write_str(path),
            Part::Fact(Fact::ClientCertSubject) => out.write_str(&certificate(ctx)?.subject),
            Part::Fact(Fact::ClientCertSha256) => out.write_str(&certificate(ctx)?.sha256),
            Part::Fact(Fact::ClientCertNames) => certificate(ctx)?.names.iter().enumerate().try_for_each(|(at, name)| {
                out.write_str(if at == 0 { "" } else { ", " })?;
                out.write_str(name)
            }),
        }
    }
}

/// The client's certificate, verified by its listener.
fn certificate(ctx: &RequestCtx) -> Result<&ClientCertificate, fmt::Error> {
    ctx.tls.as_ref().and_then(|tls| tls.client.as_ref()).ok_or(fmt::Error)
}

/// Writes up to [`MAX_VALUE`] bytes.
struct Bounded<'a> {
    buffer: &'a mut BytesMut,
}

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.buffer.len().saturating_add(text.len()) > MAX_VALUE {
            return Err(fmt::Error);
        }
        self.buffer.put_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::route::{Found, MatchConfig, Query, RouteEntry, Router};
    use proptest::prelude::*;

    fn render(text: &str, ctx: &RequestCtx, path: &str) -> Option<String> {
        let value = Template::compile(text).unwrap().render(ctx, path)?;
        Some(value.to_str().unwrap().to_owned())
    }

    /// A request whose path has the params of `pattern`.
    fn routed(pattern: &str, path: &str) -> RequestCtx {
        let config: MatchConfig = toml::from_str(&format!("path = '{pattern}'")).unwrap();
        let matcher = config.compile(&mut crate::diagnostic::Diagnostics::default()).unwrap();
        let router = Router::build(vec![RouteEntry { index: 0, matcher }]).unwrap();
        let headers = http::HeaderMap::new();
        let query = Query { host: "", path, method: &http::Method::GET, headers: &headers, query: None };
        let mut ctx = RequestCtx::for_test();
        assert_eq!(router.find(&query, &mut ctx.params), Found::Route(0));
        ctx
    }

    #[test]
    fn facts_of_the_request_stand_in_their_places() {
        let mut ctx = RequestCtx::for_test();
        ctx.route = Some("orders".into());
        ctx.identity = Some(Identity::for_test("acme"));
        let id = ctx.id;
        assert_eq!(render("${request_id}-${client_ip}", &ctx, "/"), Some(format!("{id}-192.0.2.7")));
        let all = "${scheme}://${host} ${route}/${consumer}";
        assert_eq!(render(all, &ctx, "/").as_deref(), Some("http://example.com orders/acme"));
        assert_eq!(render("plain $$5 $${host}", &ctx, "/").as_deref(), Some("plain $5 ${host}"));
        assert_eq!(render("", &ctx, "/").as_deref(), Some(""));
        let ctx = routed("/u/{id}/{*rest}", "/u/7/a/b");
        assert_eq!(render("${path.id}:${path.rest}", &ctx, "/u/7/a/b").as_deref(), Some("7:a/b"));
    }

    #[test]
    fn a_missing_fact_takes_the_value_away() {
        let ctx = RequestCtx::for_test();
        assert_eq!(render("c=${consumer}", &ctx, "/"), None);
        assert_eq!(render("${path.id}", &ctx, "/"), None);
    }

    #[test]
    fn a_wrong_text_is_refused_with_the_mend() {
        let help = |text| Template::compile(text).unwrap_err().help;
        assert_eq!(help("${requst_id}"), "did you mean `${request_id}`?");
        assert_eq!(help("${clientip}"), "did you mean `${client_ip}`?");
        assert!(help("${whatever}").starts_with("known are `${request_id}`, "));
        assert_eq!(help("5 $"), "write `$$` for a dollar sign");
        for wrong in ["$", "${", "${}", "${host", "$host", "a\nb", "a\u{0}${host}", "${path.}", "${path.ID}", "\u{e4}"] {
            assert!(Template::compile(wrong).is_err(), "{wrong:?}");
        }
        assert!(Template::compile(&"x".repeat(MAX_VALUE + 1)).is_err());
    }

    #[test]
    fn a_value_longer_than_the_bound_is_none_and_spoils_no_later_one() {
        let path = format!("/u/{}", "a".repeat(MAX_VALUE));
        let ctx = routed("/u/{id}", &path);
        assert_eq!(render("${path.id}", &ctx, &path).map(|v| v.len()), Some(MAX_VALUE));
        assert_eq!(render("x${path.id}", &ctx, &path), None);
        assert_eq!(render("${host}", &ctx, &path).as_deref(), Some("example.com"));
    }

    #[test]
    fn values_that_live_on_are_not_overwritten() {
        let mut ctx = RequestCtx::for_test();
        let template = Template::compile("<${consumer}>").unwrap();
        let kept: Vec<HeaderValue> = (0..5_000)
            .map(|n| {
                ctx.identity = Some(Identity::for_test(&format!("consumer-{n}")));
                template.render(&ctx, "/").unwrap()
            })
            .collect();
        assert!(kept.iter().enumerate().all(|(n, value)| *value == format!("<consumer-{n}>")));
    }

    proptest! {
        #[test]
        fn no_byte_of_a_request_gets_out_of_its_field(text in any::<String>()) {
            let mut ctx = RequestCtx::for_test();
            ctx.identity = Some(Identity::for_test(&text));
            let value = Template::compile("a${consumer}b").unwrap().render(&ctx, "/");
            let unsafe_byte = text.bytes().any(|b| b != b'\t' && (b < 32 || b == 127));
            prop_assert_eq!(value.is_none(), unsafe_byte || text.len() + 2 > MAX_VALUE);
            if let Some(value) = value {
                prop_assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
        }
    }
}
