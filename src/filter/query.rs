//! Credentials in the query: found, and taken out of the target, so that no log, cache or upstream ever sees them.

use crate::arena::with_arena;
use crate::rejection::{self, Rejection};
use bytes::BufMut;
use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;
use pingora::proxy::Session;
use std::borrow::Cow;

/// What the query had of the parameters that were asked for.
pub(super) enum Taken<T> {
    None,
    One(T),
    Several,
}

/// Takes every parameter out of the target whose name, decoded, is one of `named`. `read` is given the value as it stands there.
pub(super) fn take<T>(
    session: &mut Session,
    named: impl Fn(&[u8]) -> bool,
    read: impl FnOnce(&str) -> T,
) -> Result<Taken<T>, Rejection> {
    let uri = &session.req_header().uri;
    let Some(query) = uri.query() else { return Ok(Taken::None) };
    let is_named = |pair: &str| named(&decoded(pair.split_once('=').map_or(pair, |(name, _)| name)));
    let mut pairs = query.split('&').filter(|pair| is_named(pair));
    let taken = match (pairs.next(), pairs.next()) {
        (None, _) => return Ok(Taken::None),
        (Some(pair), None) => Taken::One(read(pair.split_once('=').map_or("", |(_, value)| value))),
        (Some(_), Some(_)) => Taken::Several,
    };
    let target = with_arena(|out| {
        out.put_slice(uri.path().as_bytes());
        let mut before = b'?';
        for pair in query.split('&').filter(|pair| !is_named(pair)) {
            out.put_u8(before);
            out.put_slice(pair.as_bytes());
            before = b'&';
        }
    });
    // Cannot fail: it is what the target was, less a part. If it could, going on would mean to pass the credential on.
    let mut parts = uri.clone().into_parts();
    let failed = || Rejection::new(&rejection::PATH_INVALID);
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(target).map_err(|_| failed())?);
    session.req_header_mut().set_uri(Uri::from_parts(parts).map_err(|_| failed())?);
    Ok(taken)
}

pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    percent_decode_str(text).into()
}
