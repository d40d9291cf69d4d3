//! `rewrite`: changes the path of the request that goes upstream.
//!
//! The path was authorised in its canonical form, so whatever comes out must be canonical too: a service behind the gateway
//! would resolve `/public/../admin` by itself, past every filter that allowed `/public/`.

mod pattern;

use super::{BuildContext, Filter, FilterConfig, Phases, Problem};
use crate::arena::with_arena;
use crate::canonical::{PathRules, is_canonical};
use crate::rejection::{PATH_INVALID, Rejection};
use crate::request::RequestCtx;
use crate::value::Located;
use bytes::{BufMut, Bytes, BytesMut};
use http::Uri;
use http::uri::PathAndQuery;
use pattern::Replacer;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;

/// The longest path that a rewrite makes, in bytes; beyond it the request is rejected.
const MAX_PATH: usize = 8 * 1024;

/// Changes the path that the upstream sees: takes a prefix off, then replaces by a pattern, then puts a prefix in front. At
/// least one of the three. The query stays as it is. A result that is not in canonical form (`..`, `//`, an encoded slash)
/// or is longer than 8 KiB is rejected with `path_invalid`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewriteConfig {
    /// A prefix of whole segments to take off, such as `"/api/orders"`: `/api/orders/7` becomes `/7`, and `/api/orders`
    /// becomes `/`. Other paths, such as `/api/orders2`, stay as they are. Default: none.
    pub strip_prefix: Option<Located<String>>,
    /// Replaces every match of a regular expression. Default: none.
    pub replace: Option<ReplaceConfig>,
    /// A prefix of whole segments to put in front, such as `"/v2"`: `/7` becomes `/v2/7`, and `/` becomes `/v2/`.
    /// Default: none.
    pub add_prefix: Option<Located<String>>,
}

/// What `replace` looks for, and what it writes instead.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceConfig {
    /// A regular expression in the syntax of <https://docs.rs/regex/1/regex/#syntax>, matched against the path after
    /// `strip_prefix`. It may match anywhere: anchor it with `^` and `$` to match the whole. Takes linear time for every path. At
    /// most 1,024 bytes.
    pub pattern: Located<String>,
    /// The text for each match: `$1` or `${name}` is what a group matched (nothing if it took no part), `$0` the whole match,
    /// `$$` a dollar sign. At most 1,024 bytes. Groups cost an allocation for each match; plain text costs none.
    pub with: Located<String>,
}

pub struct Rewrite {
    strip: Option<Box<str>>,
    replace: Option<Replacer>,
    add: Box<str>,
}

impl FilterConfig for RewriteConfig {
    const NAME: &'static str = "rewrite";
    type Filter = Rewrite;

    fn build(self, _: &mut BuildContext<'_>) -> Result<Rewrite, Problem> {
        if self.strip_prefix.is_none() && self.replace.is_none() && self.add_prefix.is_none() {
            let problem = Problem::new("this filter changes nothing");
            return Err(problem.help("give it `strip_prefix`, `replace` or `add_prefix`, or take it out"));
        }
        Ok(Rewrite {
            strip: self.strip_prefix.as_ref().map(prefix).transpose()?,
            replace: self.replace.as_ref().map(Replacer::new).transpose()?,
            add: self.add_prefix.as_ref().map(prefix).transpose()?.unwrap_or_default(),
        })
    }
}

fn prefix(text: &Located<String>) -> Result<Box<str>, Problem> {
    if !is_canonical(text, PathRules::LENIENT) {
        let problem = Problem::new(format!("`{}` is not a prefix of canonical paths", **text)).at(text);
        return Err(problem.help("start it with `/`, and leave out `//`, `.` and `..` segments and the query"));
    }
    if text.ends_with('/') {
        let problem = Problem::new(format!("the prefix `{}` ends with a slash", **text)).at(text);
        return Err(problem.help("leave the slash out: a prefix ends where a segment ends"));
    }
    Ok(text.as_str().into())
}

impl Filter for Rewrite {
    fn phases(&self) -> Phases {
        Phases::UPSTREAM_REQUEST
    }

    fn on_upstream_request(&self, _: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let old = head.uri.path();
        let Some((target, path_len)) = self.target(old, head.uri.query())? else { return Ok(()) };
        let path = target.get(..path_len).and_then(|path| std::str::from_utf8(path).ok());
        if !path.is_some_and(|path| is_canonical(path, ctx.path_rules)) {
            return Err(Rejection::new(&PATH_INVALID));
        }
        let mut parts = head.uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(target).map_err(|_| Rejection::new(&PATH_INVALID))?);
        head.set_uri(Uri::from_parts(parts).map_err(|_| Rejection::new(&PATH_INVALID))?);
        Ok(())
    }
}

impl Rewrite {
    /// The new target with its query, and the length of its path; `None` when nothing changes.
    fn target(&self, old: &str, query: Option<&str>) -> Result<Option<(Bytes, usize)>, Rejection> {
        let stripped = match &self.strip {
            Some(prefix) => strip(old, prefix),
            None => old,
        };
        let mut path_len = None;
        let target = with_arena(|buffer| {
            let mut out = Target { buffer };
            path_len = self.write(stripped, query, &mut out);
        });
        match path_len {
            None => Err(Rejection::new(&PATH_INVALID)),
            Some(len) if target.get(..len) == Some(old.as_bytes()) => Ok(None),
            Some(len) => Ok(Some((target, len))),
        }
    }

    fn write(&self, path: &str, query: Option<&str>, out: &mut Target<'_>) -> Option<usize> {
        out.path(&self.add)?;
        match &self.replace {
            Some(replace) => replace.write(path, |text| out.path(text))?,
            None => out.path(path)?,
        }
        let len = out.buffer.len();
        if let Some(query) = query {
            out.buffer.put_u8(b'?');
            out.buffer.put_slice(query.as_bytes());
        }
        Some(len)
    }
}

/// `path` without `prefix` if that ends at a segment's end.
fn strip<'a>(path: &'a str, prefix: &str) -> &'a str {
    match path.strip_prefix(prefix) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// The target under way.
struct Target<'a> {
    buffer: &'a mut BytesMut,
}

impl Target<'_> {
    /// `None` when the path gets too long.
    fn path(&mut self, text: &str) -> Option<()> {
        if self.buffer.len().saturating_add(text.len()) > MAX_PATH {
            return None;
        }
        self.buffer.put_slice(text.as_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests;
