//! Path patterns, and the form of a path that they and the filters rely on.

use super::params::{MAX_PARAMS, Names};
use crate::canonical::{PathRules, is_canonical};
use std::sync::Arc;

/// The most segments of one pattern; also the deepest recursion of a look-up.
pub const MAX_SEGMENTS: usize = 64;

/// A path as a route writes it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub(super) segments: Vec<Segment>,
    /// `{*rest}` or no path at all: whatever follows.
    pub(super) open: bool,
    /// The names of `{param}` and `{*rest}`, in order.
    pub(super) names: Names,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(Box<str>),
    Param,
}

impl Pattern {
    /// What a route without `path` matches.
    pub fn everything() -> Self {
        Pattern { segments: Vec::new(), open: true, names: Arc::default() }
    }

    /// Whether a canonical path fits. For those who have a path already; requests are routed by the trie.
    pub fn matches(&self, path: &str) -> bool {
        let Some(inner) = path.strip_prefix('/') else { return false };
        let mut rest = inner.split('/');
        for wanted in &self.segments {
            match (rest.next(), wanted) {
                (Some(found), Segment::Literal(text)) if **text == *found => {}
                (Some(found), Segment::Param) if !found.is_empty() => {}
                _ => return false,
            }
        }
        self.open || rest.next().is_none()
    }

    /// Parses the text of a route; a reason and a mend when it can match no canonical path.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let no = |why: String, help: &str| Err((why, help.to_owned()));
        let Some(inner) = text.strip_prefix('/') else {
            return Err(("a path starts with `/`".to_owned(), format!("write \"/{text}\"")));
        };
        let mut segments = Vec::new();
        let mut names: Vec<Box<str>> = Vec::new();
        let mut open = false;
        for segment in inner.split('/') {
            if open {
                return no("`{*…}` takes the whole remainder, so nothing can follow it".to_owned(), "put it last");
            }
            if segments.len() >= MAX_SEGMENTS {
                return no(format!("a path has at most {MAX_SEGMENTS} segments"), "end it with `{*rest}` earlier");
            }
            let braces = segment.contains(['{', '}']);
            if !braces {
                segments.push(Segment::Literal(segment.into()));
                continue;
            }
            let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')).filter(|s| !s.contains(['{', '}']))
            else {
                return no(
                    format!("`{segment}` mixes text and braces"),
                    "a param is a whole segment: `{name}`, or `{*name}` for the remainder",
                );
            };
            let name = match name.strip_prefix('*') {
                Some(name) => {
                    open = true;
                    name
                }
                None => {
                    segments.push(Segment::Param);
                    name
                }
            };
            let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
            if !starts || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                return no(
                    format!("`{name}` is not a name for a param"),
                    "use lower-case letters, digits and `_`, such as `{user_id}` or `{*rest}`",
                );
            }
            if names.iter().any(|known| **known == *name) {
                return no(format!("the param `{name}` stands twice"), "give each param its own name");
            }
            if names.len() >= MAX_PARAMS {
                return no(format!("a path has at most {MAX_PARAMS} params"), "end it with `{*rest}` earlier");
            }
            names.push(name.into());
        }
        // What is left of the pattern when each param holds a harmless value must be a path that requests can have.
        let plain: String = segments
            .iter()
            .flat_map(|segment| match segment {
                Segment::Literal(text) => ["/", text],
                Segment::Param => ["/", "x"],
            })
            .collect();
        if !plain.is_empty() && !is_canonical(&plain, PathRules::LENIENT) {
            return no(
                "this is not in the canonical form that requests are brought into, so it matches none".to_owned(),
                "leave out `//`, `.` and `..` segments and the query, and percent-encode only what must be, as in `%20`",
            );
        }
        Ok(Pattern { segments, open, names: Arc::new(names) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_paths() {
        let fits = |pattern: &str, path: &str| Pattern::parse(pattern).unwrap().matches(path);
        for (pattern, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("/a/{id}", "/a/7"),
            ("/a/{id}/b", "/a/7/b"),
            ("/a/{*rest}", "/a/7/b"),
            ("/a/{*rest}", "/a/"),
            ("/{*rest}", "/"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/", "/a"),
            ("/a", "/a/"),
            ("/a", "/A"),
            ("/a", "/ab"),
            ("/a/{id}", "/a/"),
            ("/a/{id}", "/a"),
            ("/a/{id}", "/a/7/b"),
            ("/a/{id}/b", "/a/7/c"),
            ("/a/{*rest}", "/ab"),
            ("/a", ""),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
        assert!(Pattern::everything().matches("/a/b"));
    }

    #[test]
    fn impossible_patterns_are_refused() {
        for wrong in [
            "",
            "a",
            "a/b",
            "//",
            "/a//b",
            "/./a",
            "/a/..",
            "/{*rest}/a",
            "/{a}/{a}",
            "/{a}/{*a}",
            "/{A}",
            "/{}",
            "/{*}",
            "/x{a}",
            "/{a}.json",
            "/{{a}}",
            "/{a",
            "/a}",
            "/a?b",
            "/a#b",
            "/%2e",
            "/%2f",
            "/%5C",
            "/%252F",
            "/%41",
            "/%zz",
            "/%2",
            "/\u{fc}",
            "/a\\b",
            "/a b",
            "/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}",
        ] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
        for right in [
            "/",
            "/a",
            "/a/",
            "/{a}",
            "/a/{*rest}",
            "/{*rest}",
            "/a%20b",
            "/a%2Fb",
            "/a;b",
            "/a.b/~c/@me:x",
            "/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{*h}",
        ] {
            assert!(Pattern::parse(right).is_ok(), "{right}");
        }
        assert!(Pattern::parse(&"/a".repeat(MAX_SEGMENTS)).is_ok() && Pattern::parse(&"/a".repeat(MAX_SEGMENTS + 1)).is_err());
    }
}
