//! Connections for whoever asks seldom: opened when they are needed, to whichever server has the key.

use super::broken::{Broken, Fault};
use super::cluster::slots;
use super::link::{Link, find};
use super::node::Redirection;
use super::slots::{Range, slot_of_key};
use super::topology::{Kind, Topology};
use redis::{Cmd, Pipeline, Value};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often a command is sent on before slots are believed to move in circles.
const HOPS_MAX: usize = 5;
/// What has not been used for so long is tried before it is used again: it may have ceased to be the master.
const IDLE: Duration = Duration::from_secs(1);

pub struct OnDemand {
    topology: Topology,
    /// To connect, and for each answer.
    timeout: Duration,
    turn: usize,
    /// In a cluster, who has which slots; empty: not known.
    slots: Vec<Range>,
    /// By address; that of the only server is empty.
    links: HashMap<String, (Link, Instant)>,
}

impl OnDemand {
    pub fn new(topology: Topology, timeout: Duration) -> Self {
        OnDemand { topology, timeout, turn: 0, slots: Vec::new(), links: HashMap::new() }
    }

    /// One command about a key, answered by who has it. No answer is an error.
    pub async fn ask(&mut self, key: &[u8], command: &Cmd) -> Result<Value, Broken> {
        let mut address = self.address_of(key).await?;
        let mut asking = false;
        for _ in 0..HOPS_MAX {
            match self.send(&address, command, asking).await? {
                Value::ServerError(error) => match Redirection::of(&error, &address) {
                    Some(to) => {
                        self.slots.clear();
                        (address, asking) = (to.address, to.asking);
                    }
                    None => return Err(Broken::answered(&error, "")),
                },
                value => return Ok(value),
            }
        }
        Err(Broken::new(Fault::Elsewhere, "its slots move in circles"))
    }

    /// One command that is not about a key, to one of [`OnDemand::masters`].
    pub async fn ask_at(&mut self, address: &str, command: &Cmd) -> Result<Value, Broken> {
        match self.send(address, command, false).await? {
            Value::ServerError(error) => Err(Broken::answered(&error, "")),
            value => Ok(value),
        }
    }

    /// The servers that have all keys together.
    pub async fn masters(&mut self) -> Result<Vec<String>, Broken> {
        if !self.topology.is_cluster() {
            return Ok(vec![String::new()]);
        }
        self.learn().await?;
        let mut masters: Vec<String> = self.slots.iter().map(|(_, _, address)| address.clone()).collect();
        masters.sort();
        masters.dedup();
        Ok(masters)
    }

    async fn address_of(&mut self, key: &[u8]) -> Result<String, Broken> {
        if !self.topology.is_cluster() {
            return Ok(String::new());
        }
        self.learn().await?;
        let slot = slot_of_key(key);
        let found = self.slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        match found.map(|(_, _, address)| address.clone()) {
            Some(address) => Ok(address),
            None => {
                self.slots.clear();
                Err(Broken::new(Fault::Unreachable, format!("no server of the cluster has the slot {slot}")))
            }
        }
    }

    /// Asks the nodes of the configuration for the slots, one after the other, unless they are known.
    async fn learn(&mut self) -> Result<(), Broken> {
        let Kind::Cluster { seeds, .. } = self.topology.kind() else { return Ok(()) };
        if !self.slots.is_empty() {
            return Ok(());
        }
        let mut why = Broken::from("there is no node to ask");
        for seed in seeds.iter().cycle().skip(self.turn % seeds.len().max(1)).take(seeds.len()) {
            self.turn = self.turn.wrapping_add(1);
            match slots(seed.clone()).await {
                Ok(slots) => {
                    self.slots = slots;
                    return Ok(());
                }
                Err(broken) => why = broken,
            }
        }
        Err(why)
    }

    /// One round trip. Whatever goes wrong, the next one begins anew.
    async fn send(&mut self, address: &str, command: &Cmd, asking: bool) -> Result<Value, Broken> {
        let reply = self.send_once(address, command, asking).await;
        if reply.is_err() {
            self.links.remove(address);
            self.slots.clear();
        }
        reply
    }

    async fn send_once(&mut self, address: &str, command: &Cmd, asking: bool) -> Result<Value, Broken> {
        let mut link = self.link(address).await?;
        let mut pipeline = Pipeline::new();
        if asking {
            pipeline.cmd("ASKING");
        }
        pipeline.add_command(command.clone());
        let replies = link.send(&pipeline, if asking { 2 } else { 1 }).await?;
        self.links.insert(address.to_owned(), (link, Instant::now()));
        let mut replies = replies.into_iter();
        let refused = if asking { replies.next() } else { None };
        match (refused, replies.next()) {
            // What is asked behind it is sent back to where the key was.
            (Some(Value::ServerError(error)), Some(Value::ServerError(_))) => Err(Broken::answered(&error, "ASKING")),
            (_, Some(reply)) => Ok(reply),
            (_, None) => Err(Broken::nonsense()),
        }
    }

    async fn link(&mut self, address: &str) -> Result<Link, Broken> {
        if let Some((mut link, used)) = self.links.remove(address)
            && (used.elapsed() < IDLE || link.check(&self.topology).await.is_ok())
        {
            return Ok(link);
        }
        self.turn = self.turn.wrapping_add(1);
        let info = find(&self.topology, address, self.turn).await?;
        let mut link = Link::open_within(info, self.timeout, self.timeout).await?;
        link.check(&self.topology).await?;
        Ok(link)
    }
}
