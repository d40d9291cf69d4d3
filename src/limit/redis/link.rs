//! One connection to one server, and what is said over it.

use super::lease::LIFE;
use super::options::Topology;
use super::{Question, Shared, SharedSet, What};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Pipeline, Value};
use std::time::Duration;

/// Decides about all limits of a key.
pub const SCRIPT: &str = include_str!("limits.lua");
/// Adds this gateway to those that are alive, drops those that have not been heard of for ten seconds, and counts.
const HEARTBEAT: &str = "\
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 10)
redis.call('PEXPIRE', KEYS[1], 20000)
return redis.call('ZCARD', KEYS[1])";

/// To connect and log in. No request waits for it.
pub const CONNECT: Duration = Duration::from_millis(500);
/// For each of the sentinels that are asked in turn.
const SENTINEL: Duration = Duration::from_millis(200);

/// Whatever ends a connection.
pub type Broken = String;

const NONSENSE: &str = "its answer makes no sense";

pub struct Link {
    connection: MultiplexedConnection,
    script: String,
}

impl Link {
    /// Connects and logs in. Each later answer takes at most `timeout`.
    pub async fn open(info: ConnectionInfo, timeout: Duration) -> Result<Link, Broken> {
        let client = Client::open(info).map_err(|e| e.to_string())?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(timeout));
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(connected) => Ok(Link { connection: connected.map_err(|e| e.to_string())?, script: String::new() }),
            Err(_) => Err(format!("it did not answer within {CONNECT:?}")),
        }
    }

    /// One round trip, with one reply for each command, errors included.
    pub async fn send(&mut self, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Broken> {
        let replies = self.connection.send_packed_commands(pipeline, 0, count).await.map_err(|e| e.to_string())?;
        if replies.len() == count { Ok(replies) } else { Err("it answered too little".to_owned()) }
    }

    /// One command. An error that is answered breaks the connection.
    pub async fn ask(&mut self, words: &[&str]) -> Result<Value, Broken> {
        let mut pipeline = Pipeline::new();
        if let Some((name, arguments)) = words.split_first() {
            pipeline.cmd(name).arg(arguments);
        }
        match self.send(&pipeline, 1).await?.pop() {
            Some(Value::ServerError(error)) => {
                Err(format!("it answered {} to {}", error.code(), words.first().copied().unwrap_or_default()))
            }
            Some(value) => Ok(value),
            None => Err(NONSENSE.to_owned()),
        }
    }

    pub async fn load(&mut self) -> Result<(), Broken> {
        match self.ask(&["SCRIPT", "LOAD", SCRIPT]).await? {
            Value::BulkString(sha) => {
                self.script = String::from_utf8(sha).map_err(|_| NONSENSE.to_owned())?;
                Ok(())
            }
            _ => Err(NONSENSE.to_owned()),
        }
    }

    /// Tells the others that this gateway is alive; returns how many are.
    pub async fn heartbeat(&mut self, key: &str, name: &str) -> Result<u64, Broken> {
        match self.ask(&["EVAL", HEARTBEAT, "1", key, name]).await? {
            Value::Int(count) => Ok(u64::try_from(count).unwrap_or(1)),
            _ => Err(NONSENSE.to_owned()),
        }
    }

    /// Refuses a node of a cluster that is not in a state to serve, which would otherwise be tried again and again.
    pub async fn check_cluster(&mut self) -> Result<(), Broken> {
        let info = text(&self.ask(&["CLUSTER", "INFO"]).await?).unwrap_or_default();
        if info.contains("cluster_state:ok") { Ok(()) } else { Err("its cluster is not in a state to serve".to_owned()) }
    }

    async fn is_master(&mut self) -> Result<bool, Broken> {
        match self.ask(&["ROLE"]).await? {
            Value::Array(role) => Ok(role.first().and_then(text).is_some_and(|role| role == "master")),
            _ => Err(NONSENSE.to_owned()),
        }
    }

    /// Adds a question; returns the number of replies that it has.
    pub fn add(&self, pipeline: &mut Pipeline, shared: &Shared, question: &Question) -> usize {
        if question.asking {
            pipeline.cmd("ASKING");
        }
        let Question { set, key, cost, what, .. } = question;
        let costs = std::iter::repeat(*cost);
        match what {
            What::Take => self.call(pipeline, shared, "take", &[], set, key, costs),
            What::Charge => self.call(pipeline, shared, "charge", &[], set, key, costs),
            What::Look => self.call(pipeline, shared, "look", &[], set, key, costs),
            What::Give(at) => self.call(pipeline, shared, "give", &[at.to_string()], set, key, costs),
            What::Reset => drop(pipeline.cmd("DEL").arg(set.name(&shared.prefix, key))),
            What::Lease(pending) => {
                let gateways = shared.gateways.load(std::sync::atomic::Ordering::Relaxed);
                let extra = lease_arguments(&shared.name, &pending.errand, gateways);
                self.call(pipeline, shared, "lease", &extra, set, key, costs);
            }
        }
        if question.asking { 2 } else { 1 }
    }

    /// Adds a call that consumes what is left.
    pub fn charge(&self, pipeline: &mut Pipeline, shared: &Shared, set: &SharedSet, key: &[u8], costs: &[u64]) {
        self.call(pipeline, shared, "charge", &[], set, key, costs.iter().copied());
    }

    #[allow(clippy::too_many_arguments)] // The arguments of one command, named nowhere else.
    fn call(
        &self,
        pipeline: &mut Pipeline,
        shared: &Shared,
        mode: &str,
        extra: &[String],
        set: &SharedSet,
        key: &[u8],
        costs: impl Iterator<Item = u64>,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(&self.script).arg(1).arg(set.name(&shared.prefix, key)).arg(mode);
        command.arg(extra.len()).arg(extra);
        for (arguments, cost) in set.arguments.iter().zip(costs) {
            command.arg(arguments).arg(cost);
        }
    }
}

/// What the mode `lease` of the script takes besides the limits. `name` makes the ids of this gateway its own.
pub fn lease_arguments(name: &str, errand: &super::lease::Errand, gateways: u64) -> Vec<String> {
    let id = |id: u64| format!("{name}/{id}");
    let mut list = vec![id(errand.id), errand.want.to_string(), (LIFE / 1_000).to_string(), gateways.max(1).to_string()];
    for (back, spent) in &errand.back {
        list.push(id(*back));
        list.push(spent.to_string());
    }
    list
}

/// The master that sentinels name, once it says of itself that it is one. `turn` chooses whom to ask first.
pub async fn open_master(topology: &Topology, turn: usize, timeout: Duration) -> Result<Link, Broken> {
    let mut link = Link::open(find_master(topology, turn).await?, timeout).await?;
    // A master that was replaced while it could not be reached believes that it still is one, until it is told.
    match topology {
        Topology::Sentinel { .. } if !link.is_master().await? => Err("its sentinel names a replica".to_owned()),
        _ => Ok(link),
    }
}

/// Where it is now: the one server, or the one that a sentinel names. `turn` is the sentinel that is asked first.
pub async fn find_master(topology: &Topology, turn: usize) -> Result<ConnectionInfo, Broken> {
    let (master, sentinels, node) = match topology {
        Topology::One(info) => return Ok(info.clone()),
        Topology::Sentinel { master, sentinels, node } => (master, sentinels, node),
        Topology::Cluster { .. } => return Err("a cluster has no one master".to_owned()),
    };
    let mut why = "there is no sentinel".to_owned();
    for sentinel in sentinels.iter().cycle().skip(turn % sentinels.len().max(1)).take(sentinels.len()) {
        let found = tokio::time::timeout(SENTINEL, async {
            let mut link = Link::open(sentinel.clone(), SENTINEL).await?;
            match link.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", master]).await? {
                Value::Array(address) => match address.iter().map(text).collect::<Option<Vec<_>>>().as_deref() {
                    Some([host, port]) => Ok((host.clone(), port.parse::<u16>().map_err(|_| NONSENSE.to_owned())?)),
                    _ => Err(NONSENSE.to_owned()),
                },
                Value::Nil => Err(format!("its sentinel knows no master `{master}`")),
                _ => Err(NONSENSE.to_owned()),
            }
        });
        match found.await {
            Ok(Ok((host, port))) => return node.at(&host, port),
            Ok(Err(wrong)) => why = wrong,
            Err(_) => why = format!("a sentinel did not answer within {SENTINEL:?}"),
        }
    }
    Err(why)
}

/// A string, however it is sent.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}
