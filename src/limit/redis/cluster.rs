//! Which server of a cluster has which slots, followed while they move and masters change.
//!
//! Asked for every few seconds, and at once when a server is away or says that a slot has moved. A server that answers may
//! itself be behind; then the next one is asked. Servers that stay keep their workers, connections and state.

use super::Shared;
use super::link::{Link, text};
use super::node::{Node, Nodes};
use super::options::Topology;
use super::worker::{jittered, spawn};
use redis::Value;
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

/// `host:port`; an IPv6 address may be in brackets or not.
pub fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// Never ends.
pub async fn follow(shared: Arc<Shared>) {
    let mut turn = 0_usize;
    let mut told = false;
    loop {
        match ask(&shared, turn).await {
            Ok(()) => told = false,
            Err(why) => {
                turn = turn.wrapping_add(1);
                if !told && shared.nodes.load().list().is_empty() {
                    told = true;
                    log::warn!("Redis is away, limits do what their on_error says: no node of its cluster answers: {why}");
                }
            }
        }
        shared.note();
        let well = shared.nodes.load().all_up();
        if !well {
            turn = turn.wrapping_add(1);
        }
        tokio::time::sleep(PAUSE).await;
        let next = jittered(if well { CALM } else { ALARM });
        let _ = tokio::time::timeout(next, shared.moved.notified()).await;
    }
}

/// Asks one server, those that answer before those of the configuration.
async fn ask(shared: &Arc<Shared>, turn: usize) -> Result<(), String> {
    let Topology::Cluster { seeds, node } = &shared.topology else { return Ok(()) };
    let known = shared.nodes.load_full();
    let mut candidates: Vec<_> = known
        .list()
        .iter()
        .filter(|node| node.state.is_up())
        .filter_map(|known| split(&known.address).and_then(|(host, port)| node.at(host, port).ok()))
        .collect();
    candidates.extend(seeds.iter().cloned());
    let at = turn.checked_rem(candidates.len()).unwrap_or_default();
    let Some(info) = candidates.into_iter().nth(at) else { return Err("there is none".to_owned()) };
    let host = info.addr().to_string();
    let (host, _) = split(&host).ok_or("its address makes no sense")?;
    let slots = async { Link::open(info.clone(), PATIENCE).await?.ask(&["CLUSTER", "SLOTS"]).await };
    let slots = tokio::time::timeout(PATIENCE, slots).await.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
    let ranges = read(&slots, host).ok_or("its answer to CLUSTER SLOTS makes no sense")?;
    apply(shared, &known, &ranges);
    Ok(())
}

/// First slot, last slot, and the master of both.
type Range = (u16, u16, String);

/// Reads `[[first, last, [host, port, ...], ...], ...]`. Without a host, it is that of who was asked.
fn read(slots: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = slots else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [first, last, master, ..] = parts.as_slice() else { return None };
        let Value::Array(master) = master else { return None };
        let [host, port, ..] = master.as_slice() else { return None };
        let number = |value: &Value| text(value)?.parse::<u16>().ok();
        let host = text(host).filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.to_owned());
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && usize::from(last) < super::node::SLOTS).then_some((first, last, format!("{host}:{}", number(port)?)))
    };
    ranges.iter().map(range).collect()
}

fn apply(shared: &Arc<Shared>, known: &Nodes, ranges: &[Range]) {
    let mut places: BTreeMap<&str, u16> = BTreeMap::new();
    let mut list: Vec<Arc<Node>> = Vec::new();
    let mut numbered = Vec::new();
    for (first, last, address) in ranges {
        let place = match places.get(address.as_str()) {
            Some(place) => *place,
            None if list.len() >= NODES_MAX => continue,
            None => {
                let place = u16::try_from(list.len()).unwrap_or(u16::MAX);
                list.push(known.at(address).cloned().unwrap_or_else(|| Arc::new(spawn(shared, address.clone()))));
                places.insert(address, place);
                place
            }
        };
        numbered.push((*first, *last, place));
    }
    // A server that slots are on their way to has none yet.
    for other in known.list().iter().filter(|node| node.state.is_up() && !places.contains_key(node.address.as_str())) {
        if list.len() < NODES_MAX {
            list.push(Arc::clone(other));
        }
    }
    shared.nodes.store(Arc::new(Nodes::of(list, &numbered)));
}

/// The server at an address that another one named, made if it is new.
pub fn node(shared: &Arc<Shared>, address: &str) -> Option<Arc<Node>> {
    let nodes = shared.nodes.load_full();
    if let Some(node) = nodes.at(address) {
        return Some(Arc::clone(node));
    }
    if !nodes.is_cluster() || nodes.list().len() >= NODES_MAX {
        return None;
    }
    let node = Arc::new(spawn(shared, address.to_owned()));
    shared.nodes.store(Arc::new(nodes.with(Arc::clone(&node))));
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn slots_are_read_and_missing_hosts_are_those_who_answered() {
        let range = |first, last, host: Value, port| {
            let master = Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master])
        };
        let slots = Value::Array(vec![range(0, 99, bulk("10.0.0.1"), 7000), range(100, 16_383, Value::Nil, 7001)]);
        let found = read(&slots, "10.0.0.9").unwrap();
        assert_eq!(found, [(0, 99, "10.0.0.1:7000".to_owned()), (100, 16_383, "10.0.0.9:7001".to_owned())]);
        assert_eq!(read(&Value::Array(vec![range(0, 16_384, bulk("a"), 1)]), "b"), None, "a slot that does not exist");
        assert_eq!(read(&Value::Nil, "b"), None);
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(split("10.0.0.1:7000"), Some(("10.0.0.1", 7000)));
        assert_eq!(split("[::1]:7000"), Some(("::1", 7000)));
        assert_eq!(split("::1:7000"), Some(("::1", 7000)));
        assert_eq!((split(":7000"), split("a"), split("a:b")), (None, None, None));
    }
}
