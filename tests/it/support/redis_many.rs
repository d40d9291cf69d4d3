//! Redis as several servers: a master with a replica under sentinels, and a cluster of three masters with a replica each.
//!
//! Time-outs are short, so that a failover takes two or three seconds.

use super::redis::{Redis, User, free_port};
use super::{SOON, eventually, eventually_some};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Long enough for an election on a loaded machine.
const ELECTION: Duration = Duration::from_secs(30);

fn text(redis: &Redis, words: &[&str]) -> Option<String> {
    let mut connection = redis::Client::open(redis.url()).ok()?.get_connection_with_timeout(Duration::from_millis(500)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let (name, arguments) = words.split_first()?;
    match redis::cmd(name).arg(arguments).query(&mut connection).ok()? {
        redis::Value::Int(number) => Some(number.to_string()),
        value => redis::from_redis_value(value).ok(),
    }
}

fn is(redis: &Redis, section: &str, line: &str) -> bool {
    text(redis, &["INFO", section]).is_some_and(|info| info.lines().any(|found| found.starts_with(line)))
}

/// Waits until the replica of a master has all that it was told. Writes are answered before.
#[track_caller]
pub fn replicated(master: &Redis) {
    let line = |info: &str, name: &str| info.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    eventually("the replica has everything", ELECTION, || {
        let info = text(master, &["INFO", "replication"]).unwrap_or_default();
        let replica = line(&info, "slave0:").unwrap_or_default();
        let offset = replica.split(',').find_map(|part| part.strip_prefix("offset=").map(str::to_owned));
        offset.is_some() && offset == line(&info, "master_repl_offset:")
    });
}

/// One master, one replica, three sentinels.
pub struct Sentinels {
    pub servers: [Redis; 2],
    sentinels: Vec<Redis>,
    master: usize,
    /// Who logs in at the servers, and who at the sentinels.
    users: Option<[User; 2]>,
}

impl Sentinels {
    #[track_caller]
    pub fn start() -> Sentinels {
        Sentinels::start_as(None)
    }

    /// The configuration logs in as these at the servers and at the sentinels.
    #[track_caller]
    pub fn start_as(users: Option<[User; 2]>) -> Sentinels {
        let [at_servers, at_sentinels] = users.as_ref().map(|users| users.each_ref().map(User::option)).unwrap_or_default();
        let server = |more: &[&str]| {
            let options = [&["--repl-diskless-sync-delay", "0"], more].concat().into_iter().map(str::to_owned);
            let options: Vec<String> = options.chain(at_servers.clone()).collect();
            Redis::start_picking(|| options.clone())
        };
        let master = server(&[]);
        let port = master.address().port().to_string();
        let replica = server(&["--replicaof", "127.0.0.1", &port]);
        eventually("the replica has joined", SOON, || is(&replica, "replication", "master_link_status:up"));
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(&port, &at_sentinels)).collect();
        let known = |redis: &Redis| {
            let info = text(redis, &["INFO", "sentinel"]).unwrap_or_default();
            info.contains("slaves=1,sentinels=3")
        };
        eventually("the sentinels know each other", SOON, || sentinels.iter().all(known));
        Sentinels { servers: [master, replica], sentinels, master: 0, users }
    }

    /// The lines of `[redis]`.
    pub fn config(&self) -> String {
        let at = |redis: &Redis| self.users.as_ref().map_or_else(|| redis.url(), |[_, user]| user.at(redis));
        let list: Vec<_> = self.sentinels.iter().map(|redis| format!("\"{}\"", at(redis))).collect();
        let login =
            self.users.as_ref().map(|[user, _]| format!(", username = \"{}\", password = \"{}\"", user.name(), User::PASSWORD));
        let login = login.unwrap_or_default();
        format!("[redis]\nsentinel = {{ master = \"main\", addresses = [{}]{login} }}\n", list.join(", "))
    }

    pub fn master(&mut self) -> &mut Redis {
        &mut self.servers[self.master]
    }

    /// Kills the master, waits until the other one is it, and brings the old one back as its replica.
    #[track_caller]
    pub fn fail_over(&mut self) {
        self.master().kill();
        let other = 1 - self.master;
        eventually("the replica is master", ELECTION, || is(&self.servers[other], "replication", "role:master"));
        let port = self.servers[other].address().port().to_string();
        self.servers[self.master].restart();
        // The sentinels do this too, but only after a while; whoever asks them before must not be sent back.
        let old = &self.servers[self.master];
        eventually("the old master is a replica", ELECTION, || {
            let _ = text(old, &["REPLICAOF", "127.0.0.1", &port]);
            is(old, "replication", "role:slave")
        });
        eventually("it has the data", ELECTION, || is(old, "replication", "master_link_status:up"));
        let named = |redis: &Redis| text(redis, &["INFO", "sentinel"]).is_some_and(|info| info.contains("slaves=1"));
        let right = format!("address=127.0.0.1:{port}");
        let all = |redis: &Redis| text(redis, &["INFO", "sentinel"]).is_some_and(|info| info.contains(&right)) && named(redis);
        eventually("the sentinels agree", ELECTION, || self.sentinels.iter().all(all));
        self.master = other;
    }
}

fn sentinel(master: &str, user: &[String]) -> Redis {
    let directory = tempfile::tempdir().unwrap().keep();
    let file = directory.join("sentinel.conf");
    let text = format!(
        "sentinel monitor main 127.0.0.1 {master} 2\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 3000\nsentinel parallel-syncs main 1\n"
    );
    std::fs::write(&file, text).unwrap();
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    Redis::start_config(&file, &[&["--sentinel"], &user[..]].concat())
}

/// Three masters and three replicas.
pub struct Cluster {
    pub servers: Vec<Redis>,
    /// Who logs in.
    user: Option<User>,
}

impl Cluster {
    #[track_caller]
    pub fn start() -> Cluster {
        Cluster::start_as(None)
    }

    /// The configuration logs in as this user, whom every server has.
    #[track_caller]
    pub fn start_as(user: Option<User>) -> Cluster {
        let servers: Vec<Redis> = (0..6).map(|_| member(user.as_ref())).collect();
        let addresses: Vec<String> = servers.iter().map(|redis| redis.address().to_string()).collect();
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Cluster { servers, user };
        cluster.settled();
        cluster
    }

    /// Waits until every master has its replica, and everybody knows.
    #[track_caller]
    pub fn settled(&self) {
        eventually("the cluster is whole", ELECTION, || {
            let ok = |redis: &Redis| {
                let info = text(redis, &["CLUSTER", "INFO"]).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6")
            };
            let synced = |redis: &Redis| {
                is(redis, "replication", "connected_slaves:1") || is(redis, "replication", "master_link_status:up")
            };
            self.servers.iter().all(|redis| ok(redis) && synced(redis))
        });
    }

    /// The lines of `[redis]`.
    pub fn config(&self) -> String {
        let at = |redis: &Redis| self.user.as_ref().map_or_else(|| redis.url(), |user| user.at(redis));
        let seeds: Vec<_> = self.servers.iter().take(3).map(|redis| format!("\"{}\"", at(redis))).collect();
        format!("[redis]\ncluster = [{}]\n", seeds.join(", "))
    }

    /// The place of the master that has a slot, as those who answer see it.
    #[track_caller]
    pub fn master_of(&self, slot: u16) -> usize {
        eventually_some("a master of the slot", ELECTION, || {
            let view = self.servers.iter().find_map(|redis| text(redis, &["CLUSTER", "NODES"]))?;
            let has = |range: &str| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse::<u16>().is_ok_and(|first| first <= slot) && last.parse::<u16>().is_ok_and(|last| slot <= last)
            };
            let line = view
                .lines()
                .find(|line| line.contains("master") && !line.contains("fail") && line.split(' ').skip(8).any(has))?;
            let address = line.split(' ').nth(1)?.split('@').next()?;
            self.servers.iter().position(|redis| redis.address().to_string() == address)
        })
    }

    /// The place of the master that has a key.
    #[track_caller]
    pub fn master_of_key(&self, key: &str) -> usize {
        self.master_of(self.slot(key))
    }

    pub fn slot(&self, key: &str) -> u16 {
        let any = self.servers.iter().find_map(|redis| text(redis, &["CLUSTER", "KEYSLOT", key]));
        any.unwrap().parse().unwrap()
    }

    /// A slot begins to move: keys that are not where they were are asked for where they go (`ASK`).
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        self.cluster(to, &["SETSLOT", &slot.to_string(), "IMPORTING", &self.id(from)]);
        self.cluster(from, &["SETSLOT", &slot.to_string(), "MIGRATING", &self.id(to)]);
    }

    /// One of its keys moves.
    pub fn move_key(&self, key: &str, from: usize, to: usize) {
        let address = self.servers[to].address();
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg(address.ip().to_string()).arg(address.port()).arg(key).arg(0).arg(1_000);
        migrate.exec(&mut self.servers[from].connection()).unwrap();
    }

    /// The slot has moved (`MOVED`).
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        for server in [to, from] {
            self.cluster(server, &["SETSLOT", &slot.to_string(), "NODE", &self.id(to)]);
        }
    }

    fn cluster(&self, server: usize, words: &[&str]) {
        redis::cmd("CLUSTER").arg(words).exec(&mut self.servers[server].connection()).unwrap();
    }

    /// The id that a server has in the cluster.
    pub fn id(&self, server: usize) -> String {
        text(&self.servers[server], &["CLUSTER", "MYID"]).unwrap()
    }
}

fn member(user: Option<&User>) -> Redis {
    Redis::start_picking(|| {
        let bus = free_port().port().to_string();
        let options = [
            ["--cluster-enabled", "yes"],
            ["--cluster-node-timeout", "1000"],
            ["--cluster-port", &bus],
            ["--repl-diskless-sync-delay", "0"],
            ["--cluster-replica-validity-factor", "0"],
            ["--cluster-require-full-coverage", "no"],
        ];
        let options = options.as_flattened().iter().map(|option| (*option).to_owned());
        options.chain(user.map(User::option).unwrap_or_default()).collect()
    })
}
