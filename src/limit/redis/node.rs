//! The servers of a Redis and which keys are whose.
//!
//! A single Redis is one node with all slots. Each node has its own queue, connection and breaker, so that a master of a
//! cluster that is away only takes its own keys with it.

use super::Question;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// The slots of a cluster (Redis Cluster specification, "Key distribution model").
pub const SLOTS: usize = 16_384;

/// Whether a node answers, as its worker knows it.
#[derive(Debug, Default)]
pub struct NodeState {
    up: AtomicBool,
}

impl NodeState {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }
}

/// One server. Its worker ends when the last of these is dropped.
pub struct Node {
    /// `host:port` in a cluster, empty otherwise.
    pub address: String,
    pub questions: mpsc::Sender<Question>,
    pub state: Arc<NodeState>,
}

/// All servers that have slots.
#[derive(Default)]
pub struct Nodes {
    list: Vec<Arc<Node>>,
    /// For each slot the place in `list`; empty: all slots are of the first.
    slots: Box<[u16]>,
}

impl Nodes {
    pub fn one(node: Node) -> Self {
        Nodes { list: vec![Arc::new(node)], slots: Box::default() }
    }

    /// `ranges` name the nodes by their place in `list`. Slots that nobody has are nobody's.
    pub fn of(list: Vec<Arc<Node>>, ranges: &[(u16, u16, u16)]) -> Self {
        let mut slots = vec![u16::MAX; SLOTS];
        for (first, last, node) in ranges {
            for slot in slots.iter_mut().take(usize::from(*last).saturating_add(1)).skip((*first).into()) {
                *slot = *node;
            }
        }
        Nodes { list, slots: slots.into() }
    }

    /// The same slots, and a server that has none.
    pub fn with(&self, node: Arc<Node>) -> Self {
        let list = self.list.iter().cloned().chain([node]).collect();
        Nodes { list, slots: self.slots.clone() }
    }

    pub fn is_cluster(&self) -> bool {
        !self.slots.is_empty()
    }

    pub fn list(&self) -> &[Arc<Node>] {
        &self.list
    }

    pub fn of_slot(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = if self.slots.is_empty() { 0 } else { self.slots.get(usize::from(slot)).copied()? };
        self.list.get(usize::from(at))
    }

    pub fn at(&self, address: &str) -> Option<&Arc<Node>> {
        self.list.iter().find(|node| node.address == address)
    }

    /// Whether every key can be asked for.
    pub fn all_up(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|node| node.state.is_up()) && !self.slots.contains(&u16::MAX)
    }
}

/// The slot of a key whose hash tag is made of these parts: CRC16 (XMODEM) modulo 16384.
pub fn slot_of(parts: &[&[u8]]) -> u16 {
    let mut crc = 0_u16;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        let at = usize::from(crc >> 8 ^ u16::from(*byte)) & 0xff;
        crc = crc << 8 ^ CRC.get(at).copied().unwrap_or_default();
    }
    crc % 16_384
}

const CRC: [u16; 256] = table();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // Evaluated by the compiler, which refuses what is out of bounds.
const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = (at as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // The check value of the specification, and what `CLUSTER KEYSLOT` says.
        assert_eq!(slot_of(&[b"123456789"]), 0x31c3);
        assert_eq!(slot_of(&[b"foo"]), 12_182);
        assert_eq!(slot_of(&[b"f", b"o", b"o"]), 12_182);
        assert_eq!(slot_of(&[]), 0);
    }

    #[test]
    fn slots_that_nobody_has_are_nobodys() {
        let (questions, _asked) = mpsc::channel(1);
        let node = Arc::new(Node { address: "a:1".to_owned(), questions, state: Arc::default() });
        let nodes = Nodes::of(vec![Arc::clone(&node)], &[(0, 99, 0), (200, 16_383, 0)]);
        assert!(nodes.of_slot(99).is_some() && nodes.of_slot(100).is_none() && nodes.of_slot(16_383).is_some());
        node.state.set_up(true);
        assert!(!nodes.all_up(), "the keys of slots without a node cannot be asked for");
    }
}
