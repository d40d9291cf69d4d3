//! `redirect`: sends the client elsewhere. Nothing goes upstream.
//!
//! Whoever can choose the host that a redirect of ours leads to can borrow our name for theirs. So the host of a target is
//! written by the operator or is that of the request, a client's text comes only behind it, and a target that is a path can
//! never turn into `//host`, which browsers read as another site.

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::arena::with_arena;
use crate::rejection::{LocalResponse, PATH_INVALID, Rejection};
use crate::request::RequestCtx;
use crate::template::Template;
use crate::value::Located;
use bytes::{BufMut, Bytes};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;

/// Sends the client to another address. The filters after it do not run, but all response filters of the route do.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedirectConfig {
    /// Where to: a path (`"/new/${path.rest}"`) or an address (`"https://${host}${path}"`). `${path}` is the path of the
    /// request, `${path.NAME}` a param of the route's path, `${host}` and `${scheme}` those of the request. In front of the
    /// path only `${scheme}` and `${host}` may stand. A fragment (`#`) is not possible. At most 2,048 bytes; when what it becomes is longer,
    /// or would lead to another site, the request is rejected with `path_invalid`.
    pub to: Located<String>,
    /// 301, 302, 303, 307 or 308. The last two keep the method and the body. Clients may keep 301 and 308 for ever.
    /// Default: 308.
    #[serde(default)]
    pub status: Option<Located<u16>>,
    /// Whether the query of the request is put behind the target (after `&` if that has one). Default: true.
    #[serde(default = "keep_query")]
    pub keep_query: bool,
}

fn keep_query() -> bool {
    true
}

pub struct Redirect {
    to: Template,
    /// The target is a path on the same site.
    local: bool,
    status: StatusCode,
    keep_query: bool,
}

impl FilterConfig for RedirectConfig {
    const NAME: &'static str = "redirect";
    type Filter = Redirect;

    fn build(self, _: &mut BuildContext<'_>) -> Result<Redirect, Problem> {
        let status = match &self.status {
            None => StatusCode::PERMANENT_REDIRECT,
            Some(status) => match **status {
                301 => StatusCode::MOVED_PERMANENTLY,
                302 => StatusCode::FOUND,
                303 => StatusCode::SEE_OTHER,
                307 => StatusCode::TEMPORARY_REDIRECT,
                308 => StatusCode::PERMANENT_REDIRECT,
                other => {
                    let problem = Problem::new(format!("{other} does not redirect")).at(status);
                    return Err(problem.help("use 301, 302, 303, 307 or 308"));
                }
            },
        };
        let local = is_local(&self.to).map_err(|(message, help)| Problem::new(message).at(&self.to).help(help))?;
        let to = Template::compile(&self.to).map_err(|error| Problem::from(error).at(&self.to))?;
        Ok(Redirect { to, local, status, keep_query: self.keep_query })
    }
}

/// Whether the target is a path; why it cannot be one at all.
fn is_local(to: &str) -> Result<bool, (&'static str, &'static str)> {
    if !to.bytes().all(|b| b.is_ascii_graphic()) || to.contains('\\') {
        return Err(("a target holds visible ASCII without spaces and backslashes", "percent-encode other characters"));
    }
    if to.contains('#') {
        return Err(("a target has no fragment", "take out the `#` and what follows: the client keeps its own"));
    }
    if to.starts_with("//") {
        return Err(("`//` begins an address without its scheme", "write \"https://...\", or a path with a single slash"));
    }
    if to.starts_with('/') || to.starts_with("${path}") {
        return Ok(true);
    }
    let Some(rest) = ["https://", "http://", "${scheme}://"].iter().find_map(|scheme| to.strip_prefix(scheme)) else {
        return Err(("this is neither a path nor an http address", "start it with `/`, `https://` or `http://`"));
    };
    let end = ["/", "?", "${path}"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or(rest);
    let plain = authority.replace("${host}", "host");
    if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)) {
        return Err((
            "the host of a target may hold only text and `${host}`",
            "begin what a client can choose after a `/`, so that it cannot choose the site",
        ));
    }
    Ok(false)
}

impl Filter for Redirect {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn answers(&self) -> bool {
        true
    }

    fn names_consumer(&self) -> bool {
        self.to.names_consumer()
    }

    fn path_params(&self) -> Vec<&str> {
        self.to.path_params().collect()
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let uri = &session.req_header().uri;
        let Some(location) = self.location(ctx, uri.path(), uri.query()) else {
            return Step::reject(Rejection::new(&PATH_INVALID));
        };
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(header::LOCATION, location);
        Step::respond(LocalResponse { status: self.status, headers, body: Bytes::new() })
    }
}

impl Redirect {
    fn location(&self, ctx: &RequestCtx, path: &str, query: Option<&str>) -> Option<HeaderValue> {
        let target = self.to.render(ctx, path)?;
        if self.local && !stays_here(target.as_bytes()) {
            return None;
        }
        let Some(query) = query.filter(|query| self.keep_query && !query.is_empty()) else { return Some(target) };
        let joined = with_arena(|out| {
            out.put_slice(target.as_bytes());
            out.put_u8(if target.as_bytes().contains(&b'?') { b'&' } else { b'?' });
            out.put_slice(query.as_bytes());
        });
        HeaderValue::from_maybe_shared(joined).ok()
    }
}

/// Whether a browser reads this as a path: one slash, and then neither another nor a backslash, which counts as one
/// (<https://url.spec.whatwg.org/#relative-slash-state>).
fn stays_here(target: &[u8]) -> bool {
    match target {
        [b'/', rest @ ..] => !matches!(rest.first(), Some(b'/' | b'\\')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Flow;
    use crate::filter::testing::{build, problem, session};

    /// Status and location, or the code of the rejection.
    async fn redirected(table: &str, pattern: &str, target: &str) -> Result<(u16, String), &'static str> {
        let filter = build::<RedirectConfig>(table).unwrap();
        let (mut session, mut ctx) = session(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), pattern).await;
        match filter.on_request(&mut session, &mut ctx) {
            Step::Ready(Ok(Flow::Respond(response))) => {
                assert!(response.body.is_empty());
                Ok((response.status.as_u16(), response.headers.get("location").unwrap().to_str().unwrap().to_owned()))
            }
            Step::Ready(Err(rejection)) => Err(rejection.code.code),
            _ => panic!("goes on"),
        }
    }

    #[tokio::test]
    async fn keeps_the_query_unless_told_otherwise() {
        let to = |location: &str| Ok((308, location.to_owned()));
        assert_eq!(redirected("{ to = '/new' }", "/old", "/old?a=1&b=2").await, to("/new?a=1&b=2"));
        assert_eq!(redirected("{ to = '/new?x=1' }", "/old", "/old?a=1").await, to("/new?x=1&a=1"));
        assert_eq!(redirected("{ to = '/new' }", "/old", "/old").await, to("/new"));
        assert_eq!(redirected("{ to = '/new', keep_query = false }", "/old", "/old?a=1").await, to("/new"));
        let https = "{ to = 'https://${host}${path}', status = 301 }";
        assert_eq!(redirected(https, "/{*r}", "/a/b?c").await, Ok((301, "https://example.com/a/b?c".to_owned())));
        let version = "{ to = '/v2/${path.rest}', status = 302 }";
        assert_eq!(redirected(version, "/v1/{*rest}", "/v1/a/b").await, Ok((302, "/v2/a/b".to_owned())));
    }

    #[tokio::test]
    async fn a_path_never_becomes_another_site() {
        for target in ["/old//evil.example/x", "/old/%5C", "/old//"] {
            let pattern = "/old/{*rest}";
            match redirected("{ to = '/${path.rest}' }", pattern, target).await {
                Ok((_, location)) => assert!(stays_here(location.as_bytes()), "{target} -> {location}"),
                Err(code) => assert_eq!(code, "path_invalid"),
            }
        }
        assert_eq!(redirected("{ to = '/${path.rest}' }", "/old/{*rest}", "/old//evil").await, Err("path_invalid"));
        assert_eq!(redirected("{ to = '${path}' }", "/{*rest}", "//evil").await, Err("path_invalid"));
        assert!(stays_here(b"/") && stays_here(b"/a//b") && !stays_here(b"/\\a") && !stays_here(b"a") && !stays_here(b""));
    }

    #[test]
    fn targets_whose_site_a_client_could_choose_are_refused() {
        for to in [
            "//evil",
            "https://${path.rest}",
            "https://example.com${path.rest}",
            "https://${path.t}.example.com/",
            "https://",
            "https:///x",
            "https://a@${host}/",
            "https://${consumer}/",
            "javascript:alert(1)",
            "new",
            "",
            "${path.rest}",
            "/a b",
            "/a\\b",
            "/a#b",
            "${host}/x",
            "https:/x",
            "ftp://a/",
        ] {
            let problem = problem::<RedirectConfig>(&format!("{{ to = '{to}' }}"));
            assert!(problem.span.is_some() && problem.help.is_some(), "{to}");
        }
        for to in ["/", "${path}", "https://a.example", "https://a:8443?x=1", "https://[::1]/", "${scheme}://www.${host}${path}"]
        {
            assert!(build::<RedirectConfig>(&format!("{{ to = '{to}' }}")).is_ok(), "{to}");
        }
        assert_eq!(problem::<RedirectConfig>("{ to = '/a', status = 304 }").message, "304 does not redirect");
    }
}
