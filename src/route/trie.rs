//! The tree that finds the patterns of a path in their order.

use super::path::{Pattern, Segment};
use foldhash::fast::RandomState;
use smallvec::SmallVec;
use std::collections::HashMap;

/// What a walk through the tree does on its way.
pub(super) trait Visit {
    type Out;
    /// A param takes these bytes of the path.
    fn push(&mut self, start: usize, end: usize);
    fn pop(&mut self);
    /// A pattern matches. Ends the walk with `Some`.
    fn leaf(&mut self, leaf: u32) -> Option<Self::Out>;
}

/// The text of a literal. Most are short, and then stand in the table itself: one cache miss less.
type Literal = SmallVec<[u8; 24]>;

/// All patterns of all hosts while the router is built: one tree of segments for each host, in one arena. Children come
/// after their parents.
#[derive(Debug, Default)]
pub(super) struct TrieBuilder {
    nodes: Vec<Links>,
    /// The literal children: by node and literal.
    children: HashMap<(u32, u32), u32, RandomState>,
    /// The number of each literal.
    literals: HashMap<Literal, u32, RandomState>,
}

/// What leads on from a node, but for literals.
#[derive(Debug, Default, Clone, Copy)]
struct Links {
    param: Link,
    /// The leaf of patterns that end here.
    ends: Link,
    /// The leaf of patterns that take what follows.
    rest: Link,
}

/// The finished trees, laid out for the cache: with thousands of routes a look-up costs what its cache misses cost. So a
/// node is 20 bytes, the nodes of a host lie side by side, and the text of a literal is stored once for all of them.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Box<[Node]>,
    /// Literal and child, those of one node side by side.
    edges: Box<[(u32, u32)]>,
    literals: HashMap<Literal, Known, RandomState>,
    /// The longest literal, so that a longer segment need not be hashed.
    longest: usize,
    /// The children of nodes that have more than [`FEW`], by node and literal, but for those that their literal tells of.
    wide: HashMap<(u32, u32), u32, RandomState>,
}

/// What the text of a literal tells.
#[derive(Debug, Clone, Copy)]
struct Known {
    number: u32,
    /// Where it leads on, if that is from one node only, as with the names of services: no other look-up is needed then.
    parent: Link,
    child: u32,
}

#[derive(Debug)]
struct Node {
    first_edge: u32,
    /// How many edges; more than [`FEW`]: they are in [`Trie::wide`].
    edges: u32,
    links: Links,
}

/// How many literal children are tried one after the other before a hash is cheaper.
const FEW: u32 = 8;

const _: () = assert!(size_of::<Node>() == 20, "nodes are many");

/// The index of a node or a leaf, or none, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u32);

impl Default for Link {
    fn default() -> Self {
        Link(u32::MAX)
    }
}

impl Link {
    pub fn get(self) -> Option<u32> {
        (self.0 != u32::MAX).then_some(self.0)
    }

    pub fn get_or_insert_with(&mut self, make: impl FnOnce() -> u32) -> u32 {
        if self.get().is_none() {
            self.0 = make();
        }
        self.0
    }
}

impl TrieBuilder {
    pub fn add_root(&mut self) -> u32 {
        self.nodes.push(Links::default());
        count(self.nodes.len().saturating_sub(1))
    }

    /// The place for the leaf of a pattern, with the nodes that lead there.
    pub fn leaf_slot(&mut self, root: u32, pattern: &Pattern) -> Option<&mut Link> {
        let mut at = root;
        for segment in &pattern.segments {
            let fresh = count(self.nodes.len());
            at = match segment {
                Segment::Literal(text) => {
                    let next = count(self.literals.len());
                    let literal = *self.literals.entry(text.as_bytes().into()).or_insert(next);
                    *self.children.entry((at, literal)).or_insert(fresh)
                }
                Segment::Param => self.nodes.get_mut(index(at))?.param.get_or_insert_with(|| fresh),
            };
            if at == fresh {
                self.nodes.push(Links::default());
            }
        }
        let node = self.nodes.get_mut(index(at))?;
        Some(if pattern.open { &mut node.rest } else { &mut node.ends })
    }

    /// For each node the most nodes that one walk from there can enter: one literal child and the param child are all
    /// that a segment can lead to.
    pub fn costs(&self) -> Vec<u64> {
        let mut parents = vec![Link::default(); self.nodes.len()];
        for (&(at, _), &child) in &self.children {
            if let Some(parent) = parents.get_mut(index(child)) {
                *parent = Link(at);
            }
        }
        // Children come after their parents: one pass from the back, gathering the costliest literal child of each node.
        let mut costs = vec![0_u64; self.nodes.len()];
        let mut literal = vec![0_u64; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let of = |costs: &[u64], at: usize| costs.get(at).copied().unwrap_or(0);
            let param = node.param.get().map_or(0, |child| of(&costs, index(child)));
            let cost = of(&literal, at).saturating_add(param).saturating_add(1);
            if let Some(slot) = costs.get_mut(at) {
                *slot = cost;
            }
            let parent = parents.get(at).and_then(|parent| parent.get());
            if let Some(slot) = parent.and_then(|parent| literal.get_mut(index(parent))) {
                *slot = cost.max(*slot);
            }
        }
        costs
    }

    /// Lays the trees out for look-ups.
    pub fn build(self) -> Trie {
        let mut sorted: Vec<(u32, u32, u32)> =
            self.children.into_iter().map(|((at, literal), child)| (at, child, literal)).collect();
        sorted.sort_unstable();
        // The one parent of each literal, and the child; none where there are more.
        let mut only: Vec<(usize, u32, u32)> = vec![(0, 0, 0); self.literals.len()];
        for &(at, child, literal) in &sorted {
            if let Some(seen) = only.get_mut(index(literal)) {
                *seen = (seen.0.saturating_add(1), at, child);
            }
        }
        let of = |literal: u32| only.get(index(literal)).filter(|(parents, ..)| *parents == 1);
        let mut nodes: Vec<Node> = self.nodes.into_iter().map(|links| Node { first_edge: 0, edges: 0, links }).collect();
        let mut edges = Vec::with_capacity(sorted.len());
        let mut wide = HashMap::default();
        for siblings in sorted.chunk_by(|a, b| a.0 == b.0) {
            let Some(node) = siblings.first().and_then(|first| nodes.get_mut(index(first.0))) else { continue };
            node.first_edge = count(edges.len());
            node.edges = count(siblings.len());
            if node.edges > FEW {
                let shared = siblings.iter().filter(|(.., literal)| of(*literal).is_none());
                wide.extend(shared.map(|&(at, child, literal)| ((at, literal), child)));
            } else {
                edges.extend(siblings.iter().map(|&(_, child, literal)| (literal, child)));
            }
        }
        let known = |number: u32| match of(number) {
            Some(&(_, at, child)) => Known { number, parent: Link(at), child },
            None => Known { number, parent: Link::default(), child: 0 },
        };
        let longest = self.literals.keys().map(|text| text.len()).max().unwrap_or(0);
        Trie {
            nodes: nodes.into(),
            edges: edges.into(),
            literals: self.literals.into_iter().map(|(text, number)| (text, known(number))).collect(),
            longest,
            wide,
        }
    }
}

impl Trie {
    fn child(&self, at: u32, node: &Node, literal: Known) -> Option<u32> {
        if let Some(parent) = literal.parent.get() {
            return (parent == at).then_some(literal.child);
        }
        let literal = literal.number;
        if node.edges > FEW {
            return self.wide.get(&(at, literal)).copied();
        }
        let first = index(node.first_edge);
        let edges = self.edges.get(first..first.checked_add(index(node.edges))?)?;
        edges.iter().find(|(known, _)| *known == literal).map(|(_, child)| *child)
    }

    /// Shows `visit` the leaves that match `path`, in the order of the router, until it takes one.
    pub fn walk<V: Visit>(&self, root: u32, path: &str, visit: &mut V) -> Option<V::Out> {
        path.starts_with('/').then(|| self.step(root, path, Some(1), visit)).flatten()
    }

    /// `from` is where the next segment starts; `None` after the last.
    fn step<V: Visit>(&self, at: u32, path: &str, from: Option<usize>, visit: &mut V) -> Option<V::Out> {
        let node = self.nodes.get(index(at))?;
        match from {
            Some(start) => {
                let remainder = path.get(start..)?;
                let slash = memchr::memchr(b'/', remainder.as_bytes());
                let segment = remainder.get(..slash.unwrap_or(remainder.len()))?;
                let end = start.checked_add(segment.len())?;
                let next = slash.and_then(|_| end.checked_add(1));
                if node.edges != 0
                    && segment.len() <= self.longest
                    && let Some(&literal) = self.literals.get(segment.as_bytes())
                    && let Some(child) = self.child(at, node, literal)
                    && let Some(out) = self.step(child, path, next, visit)
                {
                    return Some(out);
                }
                if !segment.is_empty()
                    && let Some(child) = node.links.param.get()
                {
                    visit.push(start, end);
                    if let Some(out) = self.step(child, path, next, visit) {
                        return Some(out);
                    }
                    visit.pop();
                }
            }
            None => {
                if let Some(out) = node.links.ends.get().and_then(|leaf| visit.leaf(leaf)) {
                    return Some(out);
                }
            }
        }
        let leaf = node.links.rest.get()?;
        visit.push(from.unwrap_or(path.len()), path.len());
        let out = visit.leaf(leaf);
        if out.is_none() {
            visit.pop();
        }
        out
    }
}

/// Nodes are numbered in four bytes. A configuration with more is larger than the loader reads.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

pub(super) fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The leaves of a path, in their order.
    fn leaves(trie: &Trie, root: u32, path: &str) -> Vec<u32> {
        struct All(Vec<u32>);
        impl Visit for All {
            type Out = ();
            fn push(&mut self, _: usize, _: usize) {}
            fn pop(&mut self) {}
            fn leaf(&mut self, leaf: u32) -> Option<()> {
                self.0.push(leaf);
                None
            }
        }
        let mut all = All(Vec::new());
        trie.walk(root, path, &mut all);
        all.0
    }

    #[test]
    fn a_literal_leads_on_from_its_own_nodes_alone() {
        let mut builder = TrieBuilder::default();
        let roots = [builder.add_root(), builder.add_root()];
        let mut number = 0;
        let mut add = |root: usize, path: &str| {
            number += 1;
            builder.leaf_slot(roots[root], &Pattern::parse(path).unwrap()).unwrap().get_or_insert_with(|| number);
            number
        };
        // More than a few in both: some literals have one parent, `both` and `deep` have two.
        let own: Vec<u32> = (0..20).map(|n| add(0, &format!("/own-{n}"))).collect();
        let other: Vec<u32> = (0..20).map(|n| add(1, &format!("/other-{n}"))).collect();
        let both = [add(0, "/both"), add(1, "/both")];
        let deep = [add(0, "/own-3/deep"), add(0, "/deep")];
        let any = add(1, "/{any}");
        let trie = builder.build();
        for n in 0..20 {
            assert_eq!(leaves(&trie, roots[0], &format!("/own-{n}")), [own[n]]);
            assert_eq!(leaves(&trie, roots[1], &format!("/other-{n}")), [other[n], any]);
            assert_eq!(leaves(&trie, roots[1], &format!("/own-{n}")), [any], "of another node");
        }
        assert_eq!(leaves(&trie, roots[0], "/both"), [both[0]]);
        assert_eq!(leaves(&trie, roots[1], "/both"), [both[1], any]);
        assert_eq!(leaves(&trie, roots[0], "/own-3/deep"), [deep[0]]);
        assert_eq!(leaves(&trie, roots[0], "/deep"), [deep[1]]);
        assert_eq!(leaves(&trie, roots[0], "/own-4/deep"), [0; 0]);
    }

    #[test]
    fn a_walk_never_costs_more_than_computed() {
        struct Count(usize);
        impl Visit for Count {
            type Out = ();
            fn push(&mut self, _: usize, _: usize) {}
            fn pop(&mut self) {}
            fn leaf(&mut self, _: u32) -> Option<()> {
                self.0 += 1;
                None
            }
        }
        let mut trie = TrieBuilder::default();
        let root = trie.add_root();
        // Every mixture of `a` and `{p}` at six depths, each with a remainder: the worst shape for its size.
        for mask in 0_u32..64 {
            let text: String = (0..6).map(|n| if mask >> n & 1 == 1 { format!("/{{p{n}}}") } else { "/a".to_owned() }).collect();
            trie.leaf_slot(root, &Pattern::parse(&text).unwrap()).unwrap().get_or_insert_with(|| 0);
        }
        let bound = trie.costs()[index(root)];
        assert_eq!(bound, 127);
        let trie = trie.build();
        let mut count = Count(0);
        assert!(trie.walk(root, "/a/a/a/a/a/a", &mut count).is_none());
        assert_eq!(count.0, 64);
    }
}
