//! How Redis is reached, whatever it is used for: one server, a master that sentinels name, or the masters of a cluster.
//!
//! [`Topology`] says where it is, [`Link`] is one connection. Whoever asks often implements [`Work`]: each server gets a worker
//! with a queue, a connection and a breaker of its own, on a thread that nothing else can delay; while a server is away its
//! worker alone tries to reach it, with growing and jittered pauses. In a cluster the map of slots is followed ([`cluster`]),
//! and questions go on to whom `MOVED` and `ASK` name. Whoever asks seldom has [`OnDemand`].

mod broken;
mod cluster;
mod link;
mod node;
mod on_demand;
mod slots;
mod topology;
mod work;

pub use broken::{Broken, Fault, NONSENSE};
pub use link::{Link, find, text};
pub use node::{Node, Nodes, Redirection, Sent, Server, Servers};
pub use on_demand::OnDemand;
pub use slots::{slot_of, slot_of_key, tag_of};
pub use topology::{Access, Pem, Place, Topology};
pub use work::{Alive, Work, ask_all, jittered, start};
