//! The worker of one server: connects, asks in pipelines, notices when the server is away, and comes back.

use super::link::{Broken, Link, open_master};
use super::node::{Node, NodeState, Nodes, slot_of};
use super::options::Topology;
use super::{QUEUE, Question, Reply, Shared, What, cluster, lease, reply};
use crate::limit::{Decision, Source, Standings};
use redis::{Pipeline, Value};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The most questions of one pipeline: enough to carry any load, few enough that the first does not wait for the last.
const BATCH: usize = 256;
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// How often leases of idle keys are looked for.
const RETURNS_EVERY: Duration = Duration::from_nanos(lease::IDLE / 2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a question may be sent on before slots are believed to move in circles.
const HOPS_MAX: u8 = 4;

/// Starts the thread of the workers. It ends when `ended` does.
pub fn start(shared: Arc<Shared>, mut ended: watch::Receiver<()>) {
    let thread = std::thread::Builder::new().name("redis".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return log::error!("limits do without Redis: its workers have no runtime: {e}"),
        };
        let metrics = Arc::clone(&shared.metrics);
        runtime.block_on(async move {
            tokio::spawn(return_leases(Arc::clone(&shared)));
            match shared.topology {
                Topology::Cluster { .. } => drop(tokio::spawn(cluster::follow(Arc::clone(&shared)))),
                _ => {
                    let node = spawn(&shared, String::new());
                    shared.nodes.store(Arc::new(Nodes::one(node)));
                }
            }
            // Nothing is ever sent: it ends when the store is dropped.
            let _ = ended.changed().await;
        });
        metrics.set_up(false);
    });
    if let Err(e) = thread {
        log::error!("limits do without Redis: its workers did not start: {e}");
    }
}

async fn return_leases(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(RETURNS_EVERY).await;
        shared.book.idle(shared.now(), |set, key, errand| shared.run(set, key, errand));
    }
}

/// A server, with its worker.
pub fn spawn(shared: &Arc<Shared>, address: String) -> Node {
    let (questions, asked) = mpsc::channel(QUEUE);
    let state = Arc::new(NodeState::default());
    let worker =
        Worker { shared: Arc::clone(shared), address: address.clone(), state: Arc::clone(&state), questions: asked, turn: 0 };
    tokio::spawn(worker.run());
    Node { address, questions, state }
}

struct Worker {
    shared: Arc<Shared>,
    address: String,
    state: Arc<NodeState>,
    questions: mpsc::Receiver<Question>,
    /// Counts attempts to connect.
    turn: usize,
}

impl Worker {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = false;
        while !self.questions.is_closed() {
            let why = match self.connect().await {
                Ok(mut link) => {
                    pause = PAUSE_MIN;
                    told = false;
                    self.set_up(true);
                    match self.is_cluster() {
                        true => log::info!("the Redis node {} is reachable", self.address),
                        false => log::info!("Redis is reachable: limits are counted by {} gateways together", self.gateways()),
                    }
                    match self.serve(&mut link).await {
                        Ok(()) => break,
                        Err(why) => why,
                    }
                }
                Err(why) => why,
            };
            self.shared.metrics.errors.increment();
            self.set_up(false);
            // Whoever else has its slots now is asked from the next moment on.
            self.shared.moved.notify_one();
            if !told {
                told = true;
                match self.is_cluster() {
                    true => log::warn!(
                        "the Redis node {} is away, limits of its keys do what their on_error says: {why}",
                        self.address
                    ),
                    false => log::warn!("Redis is away, limits do what their on_error says: {why}"),
                }
            }
            // Whoever has asked before it was known gets no answer, and decides alone.
            while self.questions.try_recv().is_ok() {}
            tokio::time::sleep(jittered(pause)).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
        self.state.set_up(false);
    }

    fn set_up(&self, up: bool) {
        self.state.set_up(up);
        self.shared.note();
    }

    fn is_cluster(&self) -> bool {
        !self.address.is_empty()
    }

    fn gateways(&self) -> u64 {
        self.shared.gateways.load(Ordering::Relaxed)
    }

    async fn connect(&mut self) -> Result<Link, Broken> {
        let timeout = self.shared.timeout;
        self.turn = self.turn.wrapping_add(1);
        let mut link = match &self.shared.topology {
            Topology::Cluster { node, .. } => {
                let (host, port) = cluster::split(&self.address).ok_or("its address makes no sense")?;
                let mut link = Link::open(node.at(host, port)?, timeout).await?;
                link.check_cluster().await?;
                link
            }
            one => open_master(one, self.turn, timeout).await?,
        };
        link.load().await?;
        self.heartbeat(&mut link).await?;
        self.settle(&mut link).await?;
        Ok(link)
    }

    /// Until nobody can ask any more (`Ok`) or the connection is of no more use.
    async fn serve(&mut self, link: &mut Link) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
        loop {
            tokio::select! {
                count = self.questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.ask(link, &mut batch).await?;
                }
                () = tokio::time::sleep_until(next_beat) => {
                    self.heartbeat(link).await?;
                    // Requests that gave up waiting while Redis was slow.
                    self.settle(link).await?;
                    next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
                }
            }
        }
    }

    async fn ask(&self, link: &mut Link, batch: &mut Vec<Question>) -> Result<(), Broken> {
        // Whoever waits no more is not asked for: it has decided alone.
        batch.retain(|question| !question.is_stale());
        // Twice: Redis may have lost the script, by a restart or SCRIPT FLUSH.
        for _ in 0..2 {
            if batch.is_empty() {
                return Ok(());
            }
            let mut pipeline = Pipeline::with_capacity(batch.len());
            let mut count = 0_usize;
            for question in batch.iter_mut() {
                if let What::Lease(pending) = &mut question.what {
                    pending.sent = true;
                }
                count = count.saturating_add(link.add(&mut pipeline, &self.shared, question));
            }
            let replies = link.send(&pipeline, count).await;
            let mut replies = replies.inspect_err(|_| batch.clear())?.into_iter();
            self.shared.metrics.pipelines.increment();
            let mut again = Vec::new();
            let mut failed = None;
            for question in batch.drain(..) {
                if question.asking {
                    let _ = replies.next();
                }
                let Some(reply) = replies.next() else { break };
                match reply {
                    Value::ServerError(error) => match error.code() {
                        "NOSCRIPT" | "TRYAGAIN" => again.push(question),
                        "MOVED" => self.send_on(question, error.details(), false),
                        "ASK" => self.send_on(question, error.details(), true),
                        code => failed = Some(format!("it answered {code}")),
                    },
                    reply => {
                        if !self.answer(question, &reply) {
                            failed = Some("its answer makes no sense".to_owned());
                        }
                    }
                }
            }
            if let Some(why) = failed {
                return Err(why);
            }
            if !again.is_empty() {
                link.load().await?;
            }
            *batch = again;
        }
        batch.clear();
        Ok(())
    }

    /// Tells who asked. `false` if the reply makes no sense.
    fn answer(&self, mut question: Question, value: &Value) -> bool {
        let Reply { decision, lease, at } = match (&question.what, value) {
            (What::Reset, Value::Int(_)) => Reply { decision: Decision::Admitted(Standings::new()), lease: (0, 0), at: 0 },
            _ => match reply(&question.set, value) {
                Some(reply) => reply,
                None => return false,
            },
        };
        if let What::Lease(pending) = &mut question.what {
            pending.answered = true;
            let now = self.shared.now();
            self.shared.book.answered(&question.set, &question.key, &pending.errand, &decision, lease, now);
            self.shared.book.refused(&question.set, &question.key, question.cost, &decision, now);
        }
        if let Some(answer) = question.answer.take() {
            self.shared.metrics.decisions.increment();
            // The request may have given up.
            let _ = answer.send((decision, Source::Redis(at)));
        }
        true
    }

    /// Sends a question on to the server that `MOVED` or `ASK` names: `SLOT HOST:PORT`.
    fn send_on(&self, mut question: Question, details: Option<&str>, asking: bool) {
        if !asking {
            self.shared.moved.notify_one();
        }
        let address = details.and_then(|details| details.rsplit(' ').next()).unwrap_or_default();
        // Without a host, it is this one's (Redis Cluster specification, "MOVED Redirection").
        let own = cluster::split(&self.address).map(|(host, _)| host).unwrap_or_default();
        let address = if address.starts_with(':') { format!("{own}{address}") } else { address.to_owned() };
        question.hops = question.hops.saturating_add(1);
        question.asking = asking;
        if question.hops > HOPS_MAX || cluster::split(&address).is_none() {
            return;
        }
        // It was not done here, and is not lost by being sent again.
        if let What::Lease(pending) = &mut question.what {
            pending.sent = false;
        }
        if let Some(node) = cluster::node(&self.shared, &address) {
            let _ = node.questions.try_send(question);
        }
    }

    /// Tells the others that this gateway is alive, and learns how many there are. The count is kept by one of the servers; the
    /// others are only asked whether they are there.
    async fn heartbeat(&self, link: &mut Link) -> Result<(), Broken> {
        let key = format!("{}:gateways", self.shared.prefix);
        let nodes = self.shared.nodes.load_full();
        if nodes.is_cluster() && nodes.of_slot(slot_of(&[key.as_bytes()])).is_none_or(|node| node.address != self.address) {
            return link.ask(&["PING"]).await.map(drop);
        }
        match link.heartbeat(&key, &self.shared.name).await {
            Ok(count) => {
                // Those that have not been heard of yet are there as well, if somebody says so.
                self.shared.gateways.store(count.max(self.shared.least).max(1), Ordering::Relaxed);
                Ok(())
            }
            // The slot has moved; who has it now is asked at the next beat.
            Err(why) if self.is_cluster() && (why.contains("MOVED") || why.contains("ASK")) => {
                self.shared.moved.notify_one();
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// Charges what was admitted without this server.
    async fn settle(&self, link: &mut Link) -> Result<(), Broken> {
        let nodes = self.shared.nodes.load_full();
        let mine = |set: &super::SharedSet, key: &[u8]| {
            !nodes.is_cluster() || nodes.of_slot(set.slot(key)).is_some_and(|node| node.address == self.address)
        };
        let charges = self.shared.debts.collect(mine);
        for part in charges.chunks(BATCH) {
            let mut pipeline = Pipeline::with_capacity(part.len());
            for charge in part {
                link.charge(&mut pipeline, &self.shared, &charge.set, &charge.key, &charge.costs);
            }
            link.send(&pipeline, part.len()).await?;
        }
        Ok(())
    }
}

/// From half of it to all of it, so that gateways that lost Redis together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
