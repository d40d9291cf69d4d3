//! Which route takes a request: the most specific one, by a total order that the configuration alone decides.
//!
//! # The order
//!
//! Of all routes whose conditions hold for a request, the first by these rules takes it; each rule decides only where the
//! ones before it are level. The place of a route in the file never matters.
//!
//! 1. **Host.** An exact host, then `*.` patterns from long to short, then a route without `host`.
//! 2. **Path**, segment by segment from the left: literal text, then `{param}`, then `{*rest}`; and a path that ends here,
//!    then one that goes on with `{*rest}`. A route without `path` counts as `/{*rest}`.
//! 3. **Method.** A route that lists the method; for HEAD, then a route that lists GET; then a route without `methods`.
//! 4. **Conditions.** More conditions on headers and query together, then fewer; of equally many, more exact values, then
//!    fewer (`"*"` is not exact).
//!
//! Two routes that are level in all four and that one request can both satisfy are an [`Ambiguity`], which is an error of
//! the configuration and not settled by chance.
//!
//! A request that fails a condition of the most specific route, or uses a method that it does not list, goes on to the
//! next in the order: from `/a/{p}` to `/{*rest}`, and from the exact host to the wildcard. Only when no route at all takes
//! it, but some would with another method, the answer is [`Found::MethodNotAllowed`] with those methods.
//!
//! # Cost
//!
//! One hash per candidate host, one per path segment, one per set of condition names: none grows with the number of
//! routes. Literals that overlap with params make a look-up try several branches; since the places tried form a tree, the
//! most that any request can cause is known when the router is built, and [`Router::build`] refuses routes that would pass
//! [`MAX_STEPS`]. A look-up allocates nothing, but for the `Allow` of a request that several routes refuse together.

mod config;
mod header;
mod host;
mod leaf;
mod method;
#[cfg(test)]
mod oracle;
mod params;
mod path;
mod query;
mod rule;
mod trie;

pub use config::{Hosts, MatchConfig, Matcher};
pub use params::{MAX_PARAMS, Params};
pub use path::Pattern;

use arrayvec::ArrayVec;
use host::HostIndex;
use http::{HeaderMap, HeaderValue, Method};
use leaf::{Leaf, Verdict};
use method::Methods;
use params::NamePool;
use rule::{LeafBuilder, Rule};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use trie::{Trie, TrieBuilder, Visit, index};

/// The most places of the tree that one look-up may try, over all hosts that can apply to it. A route costs about one a
/// segment; only overlaps of literals and params multiply.
pub const MAX_STEPS: u64 = 1024;

/// The most ambiguities that are reported at once: further ones have the same cause.
const MAX_AMBIGUITIES: usize = 100;

/// What a router looks at. Host and path are canonical: the host in lower case without port and trailing dot, the path
/// starting with `/` and without dot segments and empty segments.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub host: &'a str,
    pub path: &'a str,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    /// Without the question mark.
    pub query: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The index of the route, as given to [`Router::build`].
    Route(u32),
    NotFound,
    /// Some route would take this request with another method. The value is for `Allow`: sorted, with HEAD where GET is.
    MethodNotAllowed(HeaderValue),
}

/// One route as the router sees it.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// What [`Found::Route`] gives back.
    pub index: u32,
    pub matcher: Matcher,
}

/// Two routes that cannot live together, by their indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguity {
    pub first: u32,
    pub second: u32,
    pub why: String,
}

/// The compiled look-up. Immutable; shared by all threads.
#[derive(Debug)]
pub struct Router {
    hosts: HostIndex,
    trie: Trie,
    leaves: Box<[Leaf]>,
    methods: Methods,
}

impl Router {
    /// Compiles the routes. The cost is linear in their number unless many share one host and one path.
    pub fn build(entries: Vec<RouteEntry>) -> Result<Router, Vec<Ambiguity>> {
        let mut hosts = HostIndex::default();
        let mut trie = TrieBuilder::default();
        // The first and the last route of each tree, to name them.
        let mut roots: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut leaves: Vec<LeafBuilder> = Vec::new();
        let mut methods = Methods::default();
        let mut problems = Vec::new();
        for RouteEntry { index: route, matcher } in entries {
            let Some(rule) = Rule::new(route, &matcher, &mut methods) else {
                let why = format!("there are more than {} different methods in all routes together", method::MAX_METHODS);
                return Err(vec![Ambiguity { first: route, second: route, why }]);
            };
            let rule = Arc::new(rule);
            for host in matcher.hosts() {
                let root = hosts.root(host, || trie.add_root());
                roots.entry(root).or_insert((route, route)).1 = route;
                let Some(slot) = trie.leaf_slot(root, &matcher.path) else { continue };
                let leaf = slot.get_or_insert_with(|| {
                    leaves.push(LeafBuilder::default());
                    u32::try_from(leaves.len() - 1).unwrap_or(u32::MAX)
                });
                if let Some(leaf) = leaves.get_mut(index(leaf)) {
                    leaf.add(rule.clone());
                }
            }
        }
        for leaf in &leaves {
            leaf.ambiguities(&methods, MAX_AMBIGUITIES, &mut problems);
        }
        if problems.is_empty() {
            problems.extend(steps_exceeded(&hosts, &trie, &roots));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut names = NamePool::default();
        let leaves = leaves.into_iter().map(|leaf| leaf.build(&mut methods, &mut names)).collect();
        Ok(Router { hosts, trie: trie.build(), leaves, methods })
    }

    /// Finds the route of one request and leaves the values of its path parameters in `params`.
    pub fn find(&self, query: &Query<'_>, params: &mut Params) -> Found {
        params.clear();
        let mut search =
            Search { router: self, query, method: self.methods.wanted(query.method), captures: ArrayVec::new(), allow: 0 };
        for root in self.hosts.candidates(query.host) {
            let found = self.trie.walk(root, query.path, &mut search);
            if let Some((leaf, route)) = found {
                params.fill(leaf.names(route), &search.captures);
                return Found::Route(route);
            }
        }
        match search.allow {
            0 => Found::NotFound,
            methods => Found::MethodNotAllowed(self.methods.allow(methods)),
        }
    }
}

/// One look-up under way.
struct Search<'a> {
    router: &'a Router,
    query: &'a Query<'a>,
    method: method::Wanted,
    captures: ArrayVec<Range<u32>, MAX_PARAMS>,
    /// The methods of routes that refused only the method.
    allow: u64,
}

impl<'a> Visit for Search<'a> {
    type Out = (&'a Leaf, u32);

    fn push(&mut self, start: usize, end: usize) {
        if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) {
            // Patterns with more params than fit are refused when they are compiled.
            let _ = self.captures.try_push(start..end);
        }
    }

    fn pop(&mut self) {
        self.captures.pop();
    }

    fn leaf(&mut self, leaf: u32) -> Option<Self::Out> {
        let leaf = self.router.leaves.get(index(leaf))?;
        match leaf.find(self.query, self.method) {
            Verdict::Route(route) => Some((leaf, route)),
            Verdict::Refused { allow } => {
                self.allow |= allow;
                None
            }
        }
    }
}

/// Adds up, for each host pattern, the most steps of its own tree and of those that are tried after it.
fn steps_exceeded(hosts: &HostIndex, trie: &TrieBuilder, roots: &HashMap<u32, (u32, u32)>) -> Option<Ambiguity> {
    let costs = trie.costs();
    let cost = |root: u32| costs.get(index(root)).copied().unwrap_or(0);
    let (steps, chain) = hosts
        .chains()
        .map(|chain| (chain.iter().fold(0_u64, |sum, &root| sum.saturating_add(cost(root))), chain))
        .max_by_key(|(steps, _)| *steps)
        .filter(|(steps, _)| *steps > MAX_STEPS)?;
    let &(first, second) = roots.get(&chain.into_iter().max_by_key(|&root| cost(root))?)?;
    let why = format!(
        "a request could make the router try {steps} places, and the bound is {MAX_STEPS}: \
         too many literal segments overlap with {{params}} at the same depth"
    );
    Some(Ambiguity { first, second, why })
}
