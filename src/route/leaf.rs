//! One host and one path shape: the routes there, told apart by method and conditions.
//!
//! Routes that condition on the same names stand in one group, keyed by a hash of the values they want, so that a
//! thousand tenants told apart by a header cost one look-up and not a thousand comparisons.

use super::method::{Methods, Wanted};
use super::params::{NamePool, Names};
use super::rule::{Key, LeafBuilder, Rule};
use super::{Query, header, query};
use foldhash::fast::RandomState;
use http::HeaderName;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

impl LeafBuilder {
    pub fn build(self, methods: &mut Methods, names: &mut NamePool) -> Leaf {
        let mut rules = self.rules;
        rules.sort_by(|a, b| a.group_key().cmp(&b.group_key()));
        methods.prepare_allow(rules.iter().fold(0, |set, rule| set | rule.methods));
        if let [rule] = rules.as_slice()
            && rule.present.is_empty()
            && rule.exact.is_empty()
        {
            let names = names.share(rule.route, &rule.names);
            return Leaf::One { route: rule.route, methods: rule.methods, names };
        }
        let mut groups: Vec<Group> = Vec::new();
        for same in rules.chunk_by(|a, b| a.group_key() == b.group_key()) {
            groups.extend(Group::new(same));
        }
        let any = groups.partition_point(|group| group.listed);
        Leaf::Many(Box::new(Groups { any: groups.split_off(any).into(), listed: groups.into(), names: names_of(&rules, names) }))
    }
}

/// The names of params, where there are any.
fn names_of(rules: &[Arc<Rule>], pool: &mut NamePool) -> Box<[(u32, Names)]> {
    let mut names: Vec<_> = rules.iter().filter_map(|rule| Some((rule.route, pool.share(rule.route, &rule.names)?))).collect();
    names.sort_by_key(|(route, _)| *route);
    names.into()
}

/// What a leaf says to a request.
pub(super) enum Verdict {
    Route(u32),
    /// None here takes it; those whose conditions hold have these methods.
    Refused {
        allow: u64,
    },
}

/// The routes of one host and one path shape.
#[derive(Debug)]
pub(super) enum Leaf {
    /// Most places have one route without conditions, which then needs no further memory to be decided.
    One {
        route: u32,
        methods: u64,
        names: Option<Names>,
    },
    Many(Box<Groups>),
}

/// Several routes, best first.
#[derive(Debug)]
pub(super) struct Groups {
    /// Groups of routes that list methods.
    listed: Box<[Group]>,
    /// Groups of routes for all methods.
    any: Box<[Group]>,
    names: Box<[(u32, Names)]>,
}

impl Leaf {
    pub fn find(&self, query: &Query<'_>, method: Wanted) -> Verdict {
        match self {
            Leaf::One { route, methods, .. } => {
                let takes = *methods == 0 || methods & (method.listed | method.implied) != 0;
                if takes { Verdict::Route(*route) } else { Verdict::Refused { allow: *methods } }
            }
            Leaf::Many(groups) => groups.find(query, method),
        }
    }

    /// The names of the params of `route`; `None` when it has none.
    pub fn names(&self, route: u32) -> Option<&Names> {
        match self {
            Leaf::One { names, .. } => names.as_ref(),
            Leaf::Many(groups) => {
                let at = groups.names.binary_search_by_key(&route, |(known, _)| *known).ok()?;
                groups.names.get(at).map(|(_, names)| names)
            }
        }
    }
}

impl Groups {
    fn find(&self, query: &Query<'_>, method: Wanted) -> Verdict {
        let mut allow = 0;
        for bits in [method.listed, method.implied] {
            for group in &self.listed {
                if let Some(route) = group.find(query, bits, &mut allow) {
                    return Verdict::Route(route);
                }
            }
            if method.implied == 0 {
                break;
            }
        }
        let any = self.any.iter().find_map(|group| group.find(query, 0, &mut 0));
        any.map_or(Verdict::Refused { allow }, Verdict::Route)
    }
}

/// Routes that condition on the same names.
#[derive(Debug)]
struct Group {
    listed: bool,
    present: Box<[Name]>,
    exact: Box<[Name]>,
    state: RandomState,
    by_values: HashMap<u64, Box<[Candidate]>, RandomState>,
}

#[derive(Debug)]
enum Name {
    Header(HeaderName),
    Query(Box<str>),
}

#[derive(Debug)]
struct Candidate {
    route: u32,
    methods: u64,
    values: Box<[Box<[u8]>]>,
}

impl Group {
    fn new(rules: &[Arc<Rule>]) -> Option<Self> {
        let first = rules.first()?;
        let state = RandomState::default();
        let mut by_values: HashMap<u64, Vec<Candidate>> = HashMap::new();
        for rule in rules {
            let mut hasher = state.build_hasher();
            for (key, value) in &rule.exact {
                match key {
                    Key::Header(_) => hash_header(&mut hasher, value),
                    Key::Query(_) => hash_query(&mut hasher, value.iter().copied()),
                }
            }
            let values = rule.exact.iter().map(|(_, value)| value.clone()).collect();
            let candidate = Candidate { route: rule.route, methods: rule.methods, values };
            by_values.entry(hasher.finish()).or_default().push(candidate);
        }
        Some(Group {
            listed: first.methods != 0,
            present: first.present.iter().filter_map(Name::new).collect(),
            exact: first.exact.iter().filter_map(|(key, _)| Name::new(key)).collect(),
            state,
            by_values: by_values.into_iter().map(|(hash, list)| (hash, list.into())).collect(),
        })
    }

    /// The route with one of the methods `bits` whose conditions hold; adds the methods of the others to `allow`.
    fn find(&self, query: &Query<'_>, bits: u64, allow: &mut u64) -> Option<u32> {
        if !self.present.iter().all(|name| name.is_present(query)) {
            return None;
        }
        let mut hasher = self.state.build_hasher();
        for name in &self.exact {
            match name {
                Name::Header(name) => hash_header(&mut hasher, header::single(query.headers, name)?),
                Name::Query(name) => hash_query(&mut hasher, query::decode(query::single(query.query?, name)?)),
            }
        }
        for candidate in self.by_values.get(&hasher.finish())? {
            if !self.exact.iter().zip(&candidate.values).all(|(name, value)| name.is(query, value)) {
                continue;
            }
            if candidate.methods == 0 || candidate.methods & bits != 0 {
                return Some(candidate.route);
            }
            *allow |= candidate.methods;
        }
        None
    }
}

impl Name {
    fn new(key: &Key) -> Option<Self> {
        Some(match key {
            Key::Header(name) => Name::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
            Key::Query(name) => Name::Query(name.clone()),
        })
    }

    fn is_present(&self, query: &Query<'_>) -> bool {
        match self {
            Name::Header(name) => query.headers.contains_key(name),
            Name::Query(name) => query.query.is_some_and(|text| query::has(text, name)),
        }
    }

    fn is(&self, query: &Query<'_>, value: &[u8]) -> bool {
        match self {
            Name::Header(name) => header::single(query.headers, name) == Some(value),
            Name::Query(name) => query.query.and_then(|text| query::single(text, name)).is_some_and(|raw| query::is(raw, value)),
        }
    }
}

fn hash_header(hasher: &mut impl Hasher, value: &[u8]) {
    hasher.write(value);
    hasher.write_usize(value.len());
}

/// Byte by byte, because a decoded value never stands in memory as a whole.
fn hash_query(hasher: &mut impl Hasher, value: impl Iterator<Item = u8>) {
    let mut length = 0_usize;
    for byte in value {
        hasher.write_u8(byte);
        length = length.wrapping_add(1);
    }
    hasher.write_usize(length);
}
