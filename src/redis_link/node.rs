//! The servers of a Redis and which keys are whose.
//!
//! A single Redis is one node with all slots. Each node has its own queue, connection and breaker, so that a master of a
//! cluster that is away only takes its own keys with it.

use super::broken::Broken;
use super::cluster;
use super::slots::{SLOTS, split};
use super::topology::Topology;
use super::work::Work;
use arc_swap::ArcSwap;
use redis::{ServerError, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, mpsc};

/// How often a question may be sent on before slots are believed to move in circles.
const HOPS_MAX: u8 = 4;

/// A question on its way.
pub struct Sent<Q> {
    pub question: Q,
    /// Another server said that this one is to be asked, and that it would not know (`ASK`).
    pub asking: bool,
    /// How often it was sent on to another server.
    hops: u8,
}

/// One server, as its worker and those who ask know it.
#[derive(Default)]
pub struct Server<S> {
    /// `host:port` in a cluster, empty otherwise.
    address: String,
    up: AtomicBool,
    /// It was told that this server refuses `ASKING`, since it was last reached.
    told: AtomicBool,
    /// What else is known of it.
    pub state: S,
}

impl<S: Default> Server<S> {
    pub fn new(address: String) -> Self {
        Server { address, up: AtomicBool::new(false), told: AtomicBool::new(false), state: S::default() }
    }
}

impl<S> Server<S> {
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it answers, as its worker knows it.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        self.told.store(false, Ordering::Relaxed);
    }

    /// Whether `ASKING` was answered with an error. What is asked behind it this server then sends back to where the key was, from
    /// where it would come here again, so it is no use to follow.
    pub fn refuses_asking(&self, reply: Option<&Value>) -> bool {
        let Some(Value::ServerError(error)) = reply else { return false };
        if !self.told.swap(true, Ordering::Relaxed) {
            let (address, why) = (&self.address, Broken::answered(error, "ASKING"));
            log::warn!("keys on their way to the Redis node {address} cannot be asked for until they are there: {why}");
        }
        true
    }
}

/// A server that can be asked. Its worker ends when the last of these is dropped.
pub struct Node<W: Work> {
    pub server: Arc<Server<W::State>>,
    questions: mpsc::Sender<Sent<W::Question>>,
}

impl<W: Work> Node<W> {
    pub(super) fn new(server: Arc<Server<W::State>>, questions: mpsc::Sender<Sent<W::Question>>) -> Self {
        Node { server, questions }
    }

    pub fn is_up(&self) -> bool {
        self.server.is_up()
    }

    /// Whether there was room for it.
    pub fn ask(&self, question: W::Question) -> bool {
        self.questions.try_send(Sent { question, asking: false, hops: 0 }).is_ok()
    }
}

/// All servers that have slots.
pub struct Nodes<W: Work> {
    list: Vec<Arc<Node<W>>>,
    /// For each slot the place in `list`; empty: all slots are of the first.
    slots: Box<[u16]>,
}

impl<W: Work> Default for Nodes<W> {
    fn default() -> Self {
        Nodes { list: Vec::new(), slots: Box::default() }
    }
}

impl<W: Work> Nodes<W> {
    pub(super) fn one(node: Arc<Node<W>>) -> Self {
        Nodes { list: vec![node], slots: Box::default() }
    }

    /// `ranges` name the nodes by their place in `list`. Slots that nobody has are nobody's.
    pub(super) fn of(list: Vec<Arc<Node<W>>>, ranges: &[(u16, u16, u16)]) -> Self {
        let mut slots = vec![u16::MAX; SLOTS];
        for (first, last, node) in ranges {
            for slot in slots.iter_mut().take(usize::from(*last).saturating_add(1)).skip((*first).into()) {
                *slot = *node;
            }
        }
        Nodes { list, slots: slots.into() }
    }

    /// The same slots, and a server that has none.
    pub(super) fn with(&self, node: Arc<Node<W>>) -> Self {
        let list = self.list.iter().cloned().chain([node]).collect();
        Nodes { list, slots: self.slots.clone() }
    }

    pub fn is_cluster(&self) -> bool {
        !self.slots.is_empty()
    }

    pub fn list(&self) -> &[Arc<Node<W>>] {
        &self.list
    }

    /// Who has a key; its slot is only needed, and made, in a cluster.
    pub fn of_slot(&self, slot: impl FnOnce() -> u16) -> Option<&Arc<Node<W>>> {
        let at = if self.slots.is_empty() { 0 } else { self.slots.get(usize::from(slot())).copied()? };
        self.list.get(usize::from(at))
    }

    pub fn at(&self, address: &str) -> Option<&Arc<Node<W>>> {
        self.list.iter().find(|node| node.server.address() == address)
    }

    /// Whether every key can be asked for.
    pub fn all_up(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|node| node.is_up()) && !self.slots.contains(&u16::MAX)
    }
}

/// The servers of one Redis, while they come and go.
pub struct Servers<W: Work> {
    pub topology: Topology,
    pub(super) nodes: ArcSwap<Nodes<W>>,
    /// The slots may have moved.
    pub(super) moved: Notify,
}

impl<W: Work> Servers<W> {
    pub fn new(topology: Topology) -> Self {
        Servers { topology, nodes: ArcSwap::default(), moved: Notify::new() }
    }

    pub fn nodes(&self) -> arc_swap::Guard<Arc<Nodes<W>>> {
        self.nodes.load()
    }

    /// Who has a key, if it can be asked.
    pub fn reachable(&self, slot: impl FnOnce() -> u16) -> Option<Arc<Node<W>>> {
        self.nodes.load().of_slot(slot).filter(|node| node.is_up()).cloned()
    }

    /// Whether a slot is of this server, as far as is known.
    pub fn has(&self, server: &Server<W::State>, slot: impl FnOnce() -> u16) -> bool {
        self.nodes.load().of_slot(slot).is_some_and(|node| node.server.address() == server.address())
    }

    /// The one server, which nobody works for.
    #[cfg(test)]
    pub fn only(&self) -> Arc<Server<W::State>> {
        if self.nodes.load().list().is_empty() {
            let node = Node::new(Arc::new(Server::new(String::new())), mpsc::channel(1).0);
            self.nodes.store(Arc::new(Nodes::one(Arc::new(node))));
        }
        let nodes = self.nodes.load();
        Arc::clone(&nodes.list()[0].server)
    }

    /// The same, and it counts as up: a question finds no room.
    #[cfg(test)]
    pub fn only_full(&self) {
        self.only().set_up(true);
    }

    /// A server has said something that it would not, had it still the slot.
    pub fn suspect(&self) {
        self.moved.notify_one();
    }
}

/// Where a server says that a question belongs.
pub struct Redirection {
    pub(super) address: String,
    /// It is to be asked there without being believed to know.
    pub(super) asking: bool,
}

impl Redirection {
    /// Of `MOVED SLOT HOST:PORT` or `ASK SLOT HOST:PORT`, answered by the server at `own`.
    pub fn of(error: &ServerError, own: &str) -> Option<Self> {
        let asking = match error.code() {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let address = error.details().and_then(|details| details.rsplit(' ').next()).unwrap_or_default();
        // Without a host, it is this one's (Redis Cluster specification, "MOVED Redirection").
        let own = split(own).map(|(host, _)| host).unwrap_or_default();
        let address = if address.starts_with(':') { format!("{own}{address}") } else { address.to_owned() };
        Some(Redirection { address, asking })
    }

    /// Sends a question there. One that has been sent about too often is dropped.
    pub fn follow<W: Work>(self, work: &Arc<W>, sent: Sent<W::Question>) {
        if !self.asking {
            work.servers().suspect();
        }
        let hops = sent.hops.saturating_add(1);
        if hops > HOPS_MAX || split(&self.address).is_none() {
            return;
        }
        if let Some(node) = cluster::node(work, &self.address) {
            let _ = node.questions.try_send(Sent { question: sent.question, asking: self.asking, hops });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::{Pem, Place};
    use super::*;

    struct Idle(Servers<Idle>);

    impl Work for Idle {
        type Question = ();
        type Link = ();
        type State = ();
        const QUEUE: usize = 1;

        fn servers(&self) -> &Servers<Self> {
            &self.0
        }

        async fn connect(self: &Arc<Self>, _: &Arc<Server<()>>, _: usize) -> Result<(), Broken> {
            Ok(())
        }

        async fn serve(
            self: &Arc<Self>,
            _: &Arc<Server<()>>,
            _: &mut (),
            _: &mut mpsc::Receiver<Sent<()>>,
        ) -> Result<(), Broken> {
            Ok(())
        }

        fn away(&self, _: Option<&Server<()>>, _: &str) {}
    }

    fn node() -> Arc<Node<Idle>> {
        Arc::new(Node::new(Arc::new(Server::new("a:1".to_owned())), mpsc::channel(1).0))
    }

    #[test]
    fn slots_that_nobody_has_are_nobodys() {
        let node = node();
        let nodes = Nodes::of(vec![Arc::clone(&node)], &[(0, 99, 0), (200, 16_383, 0)]);
        let of = |slot| nodes.of_slot(|| slot).is_some();
        assert!(of(99) && !of(100) && of(16_383));
        node.server.set_up(true);
        assert!(!nodes.all_up(), "the keys of slots without a node cannot be asked for");
    }

    #[test]
    fn the_slot_of_a_key_is_only_made_in_a_cluster() {
        let place = Topology::new(&Place::Url("redis://a"), &Pem::default()).unwrap();
        let servers = Servers::<Idle>::new(place);
        let node = node();
        servers.nodes.store(Arc::new(Nodes::one(Arc::clone(&node))));
        assert!(servers.reachable(|| panic!("not needed")).is_none(), "it is not up");
        node.server.set_up(true);
        assert!(servers.reachable(|| panic!("not needed")).is_some());
    }
}
