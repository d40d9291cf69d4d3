//! The values of path parameters, as byte ranges into the path that was matched.

use arrayvec::ArrayVec;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The most parameters of one path, `{*rest}` included. It bounds what a request carries along.
pub const MAX_PARAMS: usize = 8;

/// The names of the params of a path, in order. Behind a thin pointer, because each route has one.
pub(super) type Names = Arc<Vec<Box<str>>>;

/// Gives routes with the same names the same list, so that the lists of thousands of routes stay in the cache; but only
/// every sixteenth route, since all cores write to the counter of a list that is in use.
#[derive(Debug, Default)]
pub(super) struct NamePool {
    known: HashMap<(u32, Names), Names>,
}

impl NamePool {
    /// `None` for a route without params.
    pub fn share(&mut self, route: u32, names: &Names) -> Option<Names> {
        let key = (route % 16, names.clone());
        (!names.is_empty()).then(|| self.known.entry(key).or_insert_with(|| Arc::new(names.to_vec())).clone())
    }
}

/// The parameters of one request. Holds no text: the ranges count in the canonical path that was given to
/// [`Router::find`](super::Router::find), which the caller passes in again to read a value.
#[derive(Debug, Clone, Default)]
pub struct Params {
    /// Shared with the route. One counter for all names: a counter that all cores write to is slow.
    names: Option<Names>,
    ranges: ArrayVec<Range<u32>, MAX_PARAMS>,
}

impl Params {
    /// The value of `name`, still percent-encoded, as it stands in `path`. `{*rest}` has no leading slash and may be empty.
    pub fn get<'a>(&self, path: &'a str, name: &str) -> Option<&'a str> {
        self.iter(path).find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Names and values in the order of the path.
    pub fn iter<'a, 'p: 'a>(&'a self, path: &'p str) -> impl Iterator<Item = (&'a str, &'p str)> + 'a {
        let names = self.names.as_deref().map(Vec::as_slice).unwrap_or_default();
        names.iter().zip(&self.ranges).filter_map(move |(name, range)| {
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            Some((name.as_ref(), path.get(range)?))
        })
    }

    pub(super) fn clear(&mut self) {
        self.names = None;
        self.ranges.clear();
    }

    pub(super) fn fill(&mut self, names: Option<&Names>, ranges: &[Range<u32>]) {
        self.names = names.cloned();
        self.ranges = ranges.iter().take(MAX_PARAMS).cloned().collect();
    }
}
