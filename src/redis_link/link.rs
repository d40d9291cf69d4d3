//! One connection to one server, and how the server is found.

use super::broken::{Broken, Fault};
use super::slots::split;
use super::topology::{Kind, Topology};
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Pipeline, ProtocolVersion, Value};
use std::time::Duration;

/// To connect and log in. No request waits for it.
const CONNECT: Duration = Duration::from_millis(500);
/// For each of the sentinels that are asked in turn.
const SENTINEL: Duration = Duration::from_millis(200);

/// Cheap to clone: clones share the connection.
#[derive(Clone)]
pub struct Link {
    connection: MultiplexedConnection,
}

impl Link {
    /// Connects and logs in. Each later answer takes at most `timeout`.
    pub async fn open(info: ConnectionInfo, timeout: Duration) -> Result<Link, Broken> {
        Link::open_within(info, CONNECT, timeout).await
    }

    /// The same, with another time to connect and log in.
    pub async fn open_within(info: ConnectionInfo, connect: Duration, timeout: Duration) -> Result<Link, Broken> {
        Link::connect(info, AsyncConnectionConfig::new(), connect, timeout).await
    }

    /// The same, and `heard` is told what the server says without having been asked, in its order, on the connection's own task.
    pub async fn open_heard(info: ConnectionInfo, timeout: Duration, heard: impl AsyncPushSender) -> Result<Link, Broken> {
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let config = AsyncConnectionConfig::new().set_push_sender(heard);
        Link::connect(info.set_redis_settings(settings), config, CONNECT, timeout).await
    }

    async fn connect(
        info: ConnectionInfo,
        config: AsyncConnectionConfig,
        connect: Duration,
        timeout: Duration,
    ) -> Result<Link, Broken> {
        let client = Client::open(info)?;
        let config = config.set_connection_timeout(Some(connect)).set_response_timeout(Some(timeout));
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(connect, connecting).await {
            Ok(connected) => Ok(Link { connection: connected? }),
            Err(_) => Err(Broken::new(Fault::Timeout, format!("it did not answer within {connect:?}"))),
        }
    }

    /// To the server that is now the one at `address`: empty for the only one, or the master that sentinels name; `host:port` of a
    /// cluster. `turn` chooses which sentinel is asked first.
    pub async fn reach(topology: &Topology, address: &str, turn: usize, timeout: Duration) -> Result<Link, Broken> {
        let mut link = Link::open(find(topology, address, turn).await?, timeout).await?;
        link.check(topology).await?;
        Ok(link)
    }

    /// One round trip, with one reply for each command, errors included.
    pub async fn send(&mut self, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Broken> {
        let replies = self.connection.send_packed_commands(pipeline, 0, count).await?;
        if replies.len() == count { Ok(replies) } else { Err("it answered too little".into()) }
    }

    /// One command. An error that is answered breaks the connection.
    pub async fn ask(&mut self, words: &[&str]) -> Result<Value, Broken> {
        let mut pipeline = Pipeline::new();
        if let Some((name, arguments)) = words.split_first() {
            pipeline.cmd(name).arg(arguments);
        }
        match self.send(&pipeline, 1).await?.pop() {
            Some(Value::ServerError(error)) => Err(Broken::answered(&error, words.first().copied().unwrap_or_default())),
            Some(value) => Ok(value),
            None => Err(Broken::nonsense()),
        }
    }

    /// Of a connection that is heard.
    pub async fn subscribe(&mut self, channel: &str) -> Result<(), Broken> {
        Ok(self.connection.subscribe(channel).await?)
    }

    /// Refuses a server that does not answer, or is not what it is asked for: one that sentinels name and that is no master (any
    /// more), or a node of a cluster that is not in a state to serve, which would otherwise be tried again and again.
    pub async fn check(&mut self, topology: &Topology) -> Result<(), Broken> {
        match topology.kind() {
            Kind::One(_) => self.ask(&["PING"]).await.map(drop),
            // A master that was replaced while it could not be reached believes that it still is one, until it is told.
            Kind::Sentinel { .. } => match self.ask(&["ROLE"]).await? {
                Value::Array(role) if role.first().and_then(text).is_some_and(|role| role == "master") => Ok(()),
                Value::Array(_) => Err("its sentinel names a replica".into()),
                _ => Err(Broken::nonsense()),
            },
            Kind::Cluster { .. } => {
                let info = text(&self.ask(&["CLUSTER", "INFO"]).await?).unwrap_or_default();
                let serves = info.contains("cluster_state:ok");
                if serves { Ok(()) } else { Err("its cluster is not in a state to serve".into()) }
            }
        }
    }
}

/// Where it is now: the one server, the one that a sentinel names, or the one of a cluster that has this address. `turn` is the
/// sentinel that is asked first.
pub async fn find(topology: &Topology, address: &str, turn: usize) -> Result<ConnectionInfo, Broken> {
    let (master, sentinels, node) = match topology.kind() {
        Kind::One(info) => return Ok(info.clone()),
        Kind::Sentinel { master, sentinels, node } => (master, sentinels, node),
        Kind::Cluster { node, .. } => {
            let (host, port) = split(address).ok_or("its address makes no sense")?;
            return Ok(node.at(host, port)?);
        }
    };
    let mut why = Broken::from("there is no sentinel");
    for sentinel in sentinels.iter().cycle().skip(turn % sentinels.len().max(1)).take(sentinels.len()) {
        let found = tokio::time::timeout(SENTINEL, async {
            let mut link = Link::open(sentinel.clone(), SENTINEL).await?;
            match link.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", master]).await? {
                Value::Array(address) => match address.iter().map(text).collect::<Option<Vec<_>>>().as_deref() {
                    Some([host, port]) => Ok((host.clone(), port.parse::<u16>().map_err(|_| Broken::nonsense())?)),
                    _ => Err(Broken::nonsense()),
                },
                Value::Nil => Err(format!("its sentinel knows no master `{master}`").into()),
                _ => Err(Broken::nonsense()),
            }
        });
        match found.await {
            Ok(Ok((host, port))) => return Ok(node.at(&host, port)?),
            Ok(Err(wrong)) => why = wrong,
            Err(_) => why = Broken::new(Fault::Timeout, format!("a sentinel did not answer within {SENTINEL:?}")),
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
