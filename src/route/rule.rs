//! What a route asks beside its host and path, and which routes of one host and path cannot live together.

use super::Ambiguity;
use super::config::{Matcher, Wanted};
use super::method::Methods;
use super::params::Names;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// What a condition looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    Header(Box<str>),
    Query(Box<str>),
}

/// One route, without its host and path.
#[derive(Debug)]
pub(super) struct Rule {
    pub route: u32,
    /// Zero: all methods.
    pub methods: u64,
    pub present: Vec<Key>,
    pub exact: Vec<(Key, Box<[u8]>)>,
    pub names: Names,
}

impl Rule {
    /// `None` when the router has too many methods.
    pub fn new(route: u32, matcher: &Matcher, methods: &mut Methods) -> Option<Self> {
        let mut rule = Rule { route, methods: 0, present: Vec::new(), exact: Vec::new(), names: matcher.path.names.clone() };
        for method in &matcher.methods {
            rule.methods |= methods.intern(method)?;
        }
        let headers = matcher.headers.iter().map(|(name, wanted)| (Key::Header(name.as_str().into()), wanted));
        let query = matcher.query.iter().map(|(name, wanted)| (Key::Query(name.clone()), wanted));
        for (key, wanted) in headers.chain(query) {
            match wanted {
                Wanted::Present => rule.present.push(key),
                Wanted::Value(value) => rule.exact.push((key, value.clone())),
            }
        }
        rule.present.sort();
        rule.exact.sort();
        Some(rule)
    }

    /// Greater is more specific.
    fn rank(&self) -> (bool, usize, usize) {
        (self.methods != 0, self.present.len().saturating_add(self.exact.len()), self.exact.len())
    }

    /// Whether some request has one of both methods.
    fn shares_methods(&self, other: &Rule) -> bool {
        self.methods == 0 || other.methods == 0 || self.methods & other.methods != 0
    }

    /// Whether some request meets the conditions of both: it does unless both want different values of one name.
    fn compatible(&self, other: &Rule) -> bool {
        !self.exact.iter().any(|(key, value)| other.exact.iter().any(|(k, v)| k == key && v != value))
    }

    pub fn group_key(&self) -> GroupKey<'_> {
        (Reverse(self.rank()), &self.present, self.exact.iter().map(|(key, _)| key).collect())
    }
}

/// The rank and the names of the conditions: what the routes of one group share.
pub(super) type GroupKey<'a> = (Reverse<(bool, usize, usize)>, &'a [Key], Vec<&'a Key>);

/// The routes of one group by the values they want.
type ByValues<'a> = HashMap<Vec<&'a [u8]>, Vec<&'a Rule>>;

/// The routes of a leaf while the router is built.
#[derive(Debug, Default)]
pub(super) struct LeafBuilder {
    pub rules: Vec<Arc<Rule>>,
}

impl LeafBuilder {
    pub fn add(&mut self, rule: Arc<Rule>) {
        self.rules.push(rule);
    }

    /// Adds the pairs that the order cannot tell apart, until `most` are known.
    pub fn ambiguities(&self, methods: &Methods, most: usize, list: &mut Vec<Ambiguity>) {
        // Within a group only equal values can meet. Between groups of one rank all pairs are tried; such groups are few.
        let mut groups: Vec<(GroupKey<'_>, ByValues<'_>)> = Vec::new();
        let mut places: HashMap<GroupKey<'_>, usize> = HashMap::new();
        for rule in self.rules.iter().map(Arc::as_ref) {
            let place = *places.entry(rule.group_key()).or_insert_with(|| {
                groups.push((rule.group_key(), HashMap::new()));
                groups.len() - 1
            });
            let Some((_, by_values)) = groups.get_mut(place) else { continue };
            let same = by_values.entry(rule.exact.iter().map(|(_, value)| value.as_ref()).collect()).or_default();
            for earlier in same.iter() {
                collide(earlier, rule, methods, most, list);
            }
            same.push(rule);
        }
        for (at, (key, group)) in groups.iter().enumerate() {
            for (_, other) in groups.iter().skip(at.saturating_add(1)).filter(|(k, _)| k.0 == key.0) {
                for first in group.values().flatten() {
                    for second in other.values().flatten() {
                        if list.len() >= most {
                            return;
                        }
                        collide(first, second, methods, most, list);
                    }
                }
            }
        }
    }
}

fn collide(first: &Rule, second: &Rule, methods: &Methods, most: usize, list: &mut Vec<Ambiguity>) {
    if list.len() >= most || first.route == second.route || !first.shares_methods(second) || !first.compatible(second) {
        return;
    }
    let on = match first.methods & second.methods {
        0 => "for every method".to_owned(),
        shared => format!("for {}", methods.names(shared)),
    };
    let why = match first.rank() {
        (_, 0, _) => format!("the same host and path match both {on}, and neither has a condition that the other lacks"),
        _ => format!("the same host and path match both {on}, and a request can meet the conditions of both, which are as many"),
    };
    let (first, second) = (first.route.min(second.route), first.route.max(second.route));
    if !list.iter().any(|known| (known.first, known.second) == (first, second)) {
        list.push(Ambiguity { first, second, why });
    }
}
