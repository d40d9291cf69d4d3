//! Which server of a cluster has which slots, followed while they move and masters change.
//!
//! Asked for every few seconds, and at once when a server is away or says that a slot has moved. A server that answers may
//! itself be behind; then the next one is asked. Servers that stay keep their workers, connections and state.

use super::broken::{Broken, Fault};
use super::link::{Link, find};
use super::node::{Node, Nodes};
use super::slots::{Range, read, split};
use super::topology::Kind;
use super::work::{Work, jittered, spawn};
use redis::ConnectionInfo;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// While all is well.
const CALM: Duration = Duration::from_secs(3);
/// While a server is away.
const ALARM: Duration = Duration::from_millis(150);
/// The least time between two questions, whatever happens.
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(300);
/// The most masters that are believed: a cluster has at most about a thousand nodes.
const NODES_MAX: usize = 1_024;

/// Never ends.
pub async fn follow<W: Work>(work: Arc<W>) {
    let mut turn = 0_usize;
    let mut told = false;
    let servers = work.servers();
    loop {
        match ask(&work, turn).await {
            Ok(()) => told = false,
            Err(why) => {
                turn = turn.wrapping_add(1);
                if !told && servers.nodes().list().is_empty() {
                    told = true;
                    work.away(None, &format!("no node of its cluster answers: {why}"));
                }
            }
        }
        work.noted();
        let well = servers.nodes().all_up();
        if !well {
            turn = turn.wrapping_add(1);
        }
        tokio::time::sleep(PAUSE).await;
        let next = jittered(if well { CALM } else { ALARM });
        let _ = tokio::time::timeout(next, servers.moved.notified()).await;
    }
}

/// Asks one server, those that answer before those of the configuration.
async fn ask<W: Work>(work: &Arc<W>, turn: usize) -> Result<(), Broken> {
    let servers = work.servers();
    let Kind::Cluster { seeds, .. } = servers.topology.kind() else { return Ok(()) };
    let known = servers.nodes.load_full();
    let mut candidates = Vec::new();
    for node in known.list().iter().filter(|node| node.is_up()) {
        candidates.extend(find(&servers.topology, node.server.address(), turn).await);
    }
    candidates.extend(seeds.iter().cloned());
    let at = turn.checked_rem(candidates.len()).unwrap_or_default();
    let Some(info) = candidates.into_iter().nth(at) else { return Err("there is none".into()) };
    apply(work, &known, &slots(info).await?);
    Ok(())
}

/// The slots, as one server of a cluster knows them.
pub async fn slots(info: ConnectionInfo) -> Result<Vec<Range>, Broken> {
    let address = info.addr().to_string();
    let (host, _) = split(&address).ok_or("its address makes no sense")?;
    let slots = async { Link::open(info, PATIENCE).await?.ask(&["CLUSTER", "SLOTS"]).await };
    let slots = tokio::time::timeout(PATIENCE, slots).await;
    let slots = slots.map_err(|_| Broken::new(Fault::Timeout, format!("no answer within {PATIENCE:?}")))??;
    read(&slots, host).ok_or_else(|| "its answer to CLUSTER SLOTS makes no sense".into())
}

fn apply<W: Work>(work: &Arc<W>, known: &Nodes<W>, ranges: &[Range]) {
    let mut places: BTreeMap<&str, u16> = BTreeMap::new();
    let mut list: Vec<Arc<Node<W>>> = Vec::new();
    let mut numbered = Vec::new();
    for (first, last, address) in ranges {
        let place = match places.get(address.as_str()) {
            Some(place) => *place,
            None if list.len() >= NODES_MAX => continue,
            None => {
                let place = u16::try_from(list.len()).unwrap_or(u16::MAX);
                list.push(known.at(address).cloned().unwrap_or_else(|| spawn(work, address.clone())));
                places.insert(address, place);
                place
            }
        };
        numbered.push((*first, *last, place));
    }
    // A server that slots are on their way to has none yet.
    for other in known.list().iter().filter(|node| node.is_up() && !places.contains_key(node.server.address())) {
        if list.len() < NODES_MAX {
            list.push(Arc::clone(other));
        }
    }
    work.servers().nodes.store(Arc::new(Nodes::of(list, &numbered)));
}

/// The server at an address that another one named, made if it is new.
pub fn node<W: Work>(work: &Arc<W>, address: &str) -> Option<Arc<Node<W>>> {
    let servers = work.servers();
    let nodes = servers.nodes.load_full();
    if let Some(node) = nodes.at(address) {
        return Some(Arc::clone(node));
    }
    if !nodes.is_cluster() || nodes.list().len() >= NODES_MAX {
        return None;
    }
    let node = spawn(work, address.to_owned());
    servers.nodes.store(Arc::new(nodes.with(Arc::clone(&node))));
    Some(node)
}
