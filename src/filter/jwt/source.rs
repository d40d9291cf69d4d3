//! Where a token may stand in a request, and how it is taken out.

use super::Problem;
use crate::fields::remove_alike;
use crate::filter::place::{Place, cookies, remove_cookie, value_of};
use crate::filter::query::{self, Taken};
use crate::rejection::Rejection;
use crate::value::Located;
use http::{HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

/// The most places.
const SOURCES_MAX: usize = 8;

/// More than one token.
#[derive(Debug)]
pub(super) struct Duplicate;

pub(super) struct Sources {
    list: Box<[Source]>,
}

enum Source {
    /// `Authorization: Bearer TOKEN` (RFC 6750 section 2.1).
    Authorization,
    Header(HeaderName),
    Cookie(Box<str>),
    Query(Box<str>),
}

impl Sources {
    pub fn compile(list: &[Located<String>]) -> Result<Self, Problem> {
        if list.is_empty() {
            return Err(Problem::new("`token` names no place").help("leave it out for `Authorization: Bearer`"));
        }
        if let Some(beyond) = list.get(SOURCES_MAX) {
            return Err(Problem::new(format!("a token can be looked for in {SOURCES_MAX} places at most")).at(beyond));
        }
        for (index, text) in list.iter().enumerate() {
            if list.iter().take(index).any(|known| known.eq_ignore_ascii_case(text)) {
                return Err(Problem::new(format!("`{}` stands twice", text.value)).at(text));
            }
        }
        Ok(Sources { list: list.iter().map(Source::compile).collect::<Result<_, _>>()? })
    }

    /// The token, if there is exactly one; `from_query` is what [`Sources::take_from_query`] has taken.
    pub fn find<'a>(&self, head: &'a RequestHeader, from_query: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, Duplicate> {
        let mut found = from_query;
        let mut add = |token: &'a [u8]| match found.replace(token) {
            None => Ok(()),
            Some(_) => Err(Duplicate),
        };
        for source in &self.list {
            match source {
                Source::Authorization => {
                    let values = head.headers.get_all(header::AUTHORIZATION);
                    // A second credential is one too many even if it is of another scheme.
                    if values.iter().nth(1).is_some() {
                        return Err(Duplicate);
                    }
                    values.iter().filter_map(bearer).try_for_each(&mut add)?;
                }
                Source::Header(name) => {
                    head.headers.get_all(name).iter().map(HeaderValue::as_bytes).try_for_each(&mut add)?;
                }
                Source::Cookie(name) => cookies(head).filter_map(|pair| value_of(pair, name)).try_for_each(&mut add)?,
                Source::Query(_) => {}
            }
        }
        Ok(found)
    }

    /// Takes the token out of the query. A token is all characters that need no escape (RFC 7515 appendix C), so that it stands there
    /// as it is.
    pub fn take_from_query(&self, session: &mut Session) -> Result<Taken<Vec<u8>>, Rejection> {
        let named =
            |name: &[u8]| self.list.iter().any(|source| matches!(source, Source::Query(wanted) if wanted.as_bytes() == name));
        query::take(session, named, |token| token.as_bytes().to_vec())
    }

    /// Where in the head a token may stand.
    pub fn places(&self) -> Vec<Place> {
        let place = |source: &Source| match source {
            Source::Authorization => Some(Place::Header(header::AUTHORIZATION)),
            Source::Header(name) => Some(Place::Header(name.clone())),
            Source::Cookie(name) => Some(Place::Cookie(name.clone())),
            Source::Query(_) => None,
        };
        self.list.iter().filter_map(place).collect()
    }

    /// Whether what stands in this place of theirs is a token, and not a credential of another kind.
    pub fn is_token(&self, place: &Place, head: &RequestHeader) -> bool {
        match place {
            Place::Header(name) if *name == header::AUTHORIZATION => head.headers.get(name).and_then(bearer).is_some(),
            _ => true,
        }
    }

    /// Removes everything that could hold a token.
    pub fn remove(&self, head: &mut RequestHeader) {
        for source in &self.list {
            match source {
                Source::Authorization => {
                    head.remove_header(&header::AUTHORIZATION);
                }
                Source::Header(name) => remove_alike(head, name),
                Source::Cookie(name) => remove_cookie(head, name),
                Source::Query(_) => {}
            }
        }
    }
}

impl Source {
    fn compile(text: &Located<String>) -> Result<Self, Problem> {
        let wrong = |why: String| Problem::new(why).at(text);
        let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        match text.split_once(':') {
            None if text.value == "authorization" => Ok(Source::Authorization),
            Some(("header", name)) => {
                let name =
                    HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(format!("`{name}` is not a header name")))?;
                match name {
                    header::AUTHORIZATION => {
                        Err(wrong("this header holds more than a token".into()).help("write `authorization`"))
                    }
                    header::COOKIE => Err(wrong("this header holds more than a token".into()).help("write `cookie:NAME`")),
                    name => Ok(Source::Header(name)),
                }
            }
            Some(("cookie", name)) if plain(name) => Ok(Source::Cookie(name.into())),
            Some(("query", name)) if plain(name) => Ok(Source::Query(name.into())),
            Some(("cookie" | "query", name)) => {
                Err(wrong(format!("`{name}` is not a plain name")).help("use letters, digits, `-`, `_` and `.`"))
            }
            _ => {
                let problem = wrong(format!("`{}` is no place where a token can be", text.value));
                Err(problem.help("known are `authorization`, `header:NAME`, `cookie:NAME` and `query:NAME`"))
            }
        }
    }
}

/// What follows `Bearer`, in whatever case, and at least one space. Other schemes are not ours.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    match rest {
        [] => Some(rest),
        [b' ', ..] => Some(rest.trim_ascii_start()),
        _ => None,
    }
}
