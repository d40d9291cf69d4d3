//! What is done with each server: asks in pipelines, counts the gateways, charges what was admitted without it.

use super::debts::Charge;
use super::script::ScriptLink;
use super::{Question, Reply, Shared, What, lease, reply};
use crate::limit::{Decision, Source, Standings};
use crate::redis_link::{Broken, Fault, Link, Redirection, Sent, Server, Servers, Work, jittered, slot_of};
use redis::{Pipeline, Value};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The most questions of one pipeline: enough to carry any load, few enough that the first does not wait for the last.
const BATCH: usize = 256;
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// How often leases of idle keys are looked for.
const RETURNS_EVERY: Duration = Duration::from_nanos(lease::IDLE / 2);

impl Work for Shared {
    type Question = Question;
    type Link = ScriptLink;
    type State = ();
    const QUEUE: usize = super::QUEUE;

    fn servers(&self) -> &Servers<Self> {
        &self.servers
    }

    async fn connect(self: &Arc<Self>, server: &Arc<Server<()>>, turn: usize) -> Result<ScriptLink, Broken> {
        let link = Link::reach(&self.servers.topology, server.address(), turn, self.timeout).await?;
        let mut link = ScriptLink::new(link).await?;
        self.heartbeat(server, &mut link).await?;
        self.settle(server, &mut link).await?;
        Ok(link)
    }

    async fn serve(
        self: &Arc<Self>,
        server: &Arc<Server<()>>,
        link: &mut ScriptLink,
        questions: &mut mpsc::Receiver<Sent<Question>>,
    ) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
        let mut ends = self.ends.subscribe();
        loop {
            tokio::select! {
                count = questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.ask(server, link, &mut batch).await?;
                }
                () = tokio::time::sleep_until(next_beat) => {
                    self.heartbeat(server, link).await?;
                    // Requests that gave up waiting while Redis was slow.
                    self.settle(server, link).await?;
                    next_beat = Instant::now() + jittered(HEARTBEAT_EVERY);
                }
                Ok(()) = ends.changed() => self.settle(server, link).await?,
            }
        }
    }

    /// Gives back what idle keys have on lease.
    async fn beside(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RETURNS_EVERY).await;
            self.book.idle(self.now(), |set, key, errand| self.run(set, key, errand));
        }
    }

    fn came(&self, server: &Server<()>) {
        match server.address() {
            "" => {
                let gateways = self.gateways.load(Ordering::Relaxed);
                log::info!("Redis is reachable: limits are counted by {gateways} gateways together");
            }
            address => log::info!("the Redis node {address} is reachable"),
        }
    }

    fn went(&self, _: &Server<()>) {
        self.metrics.errors.increment();
    }

    fn away(&self, server: Option<&Server<()>>, why: &str) {
        match server.map(Server::address) {
            None | Some("") => log::warn!("Redis is away, limits do what their on_error says: {why}"),
            Some(address) => {
                log::warn!("the Redis node {address} is away, limits of its keys do what their on_error says: {why}");
            }
        }
    }

    fn noted(&self) {
        self.metrics.set_up(self.servers.nodes().all_up());
    }
}

impl Shared {
    async fn ask(
        self: &Arc<Self>,
        server: &Server<()>,
        link: &mut ScriptLink,
        batch: &mut Vec<Sent<Question>>,
    ) -> Result<(), Broken> {
        // Whoever waits no more is not asked for: it has decided alone.
        batch.retain(|sent| !sent.question.is_stale());
        // Twice: Redis may have lost the script, by a restart or SCRIPT FLUSH.
        for _ in 0..2 {
            if batch.is_empty() {
                return Ok(());
            }
            let mut pipeline = Pipeline::with_capacity(batch.len());
            let mut count = 0_usize;
            for sent in batch.iter_mut() {
                sent.question.what.sent(true);
                count = count.saturating_add(link.add(&mut pipeline, self, sent));
            }
            let replies = link.send(&pipeline, count).await;
            let mut replies = replies.inspect_err(|_| batch.clear())?.into_iter();
            self.metrics.pipelines.increment();
            let mut again = Vec::new();
            let mut failed = None;
            for sent in batch.drain(..) {
                let refused = sent.asking && server.refuses_asking(replies.next().as_ref());
                if refused {
                    self.metrics.errors.increment();
                }
                let Some(reply) = replies.next() else { break };
                match reply {
                    Value::ServerError(error) => match error.code() {
                        "NOSCRIPT" | "TRYAGAIN" => again.push(not_done(sent)),
                        _ => match Redirection::of(&error, server.address()) {
                            // Whoever waits for it decides alone.
                            Some(_) if refused => drop(not_done(sent)),
                            Some(to) => to.follow(self, not_done(sent)),
                            None => failed = Some(Broken::answered(&error, "")),
                        },
                    },
                    reply => {
                        if !self.answer(sent.question, &reply) {
                            failed = Some(Broken::nonsense());
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
    pub(super) fn answer(&self, mut question: Question, value: &Value) -> bool {
        let Reply { mut decision, lease, at } = match (&question.what, value) {
            (What::Reset, Value::Int(_)) => Reply { decision: Decision::Admitted(Standings::new()), lease: (0, 0), at: 0 },
            _ => match reply(&question.set, value) {
                Some(reply) => reply,
                None => return false,
            },
        };
        if let What::Charge(untold) | What::Give(_, untold) = &mut question.what {
            untold.confirmed = true;
        }
        let mut source = Source::Redis(at);
        if let What::Lease(pending) = &mut question.what {
            pending.answered = true;
            let now = self.now();
            self.book.answered(&question.set, &question.key, &pending.errand, &decision, lease, now);
            let waits = question.answer.as_ref().is_some_and(|answer| !answer.is_closed());
            if matches!(decision, Decision::Refused { .. })
                && waits
                && let Some((admitted, batch)) = self.book.spend_instead(&question.set, &question.key, question.cost, now)
            {
                decision = admitted;
                source = batch.map_or(Source::Nowhere, Source::Lease);
            }
            self.book.refused(&question.set, &question.key, question.cost, &decision, now);
        }
        if let Some(answer) = question.answer.take() {
            self.metrics.decisions.increment();
            // The request may have given up.
            let _ = answer.send((decision, source));
        }
        true
    }

    /// Tells the others that this gateway is alive, and learns how many there are. The count is kept by one of the servers; the
    /// others are only asked whether they are there.
    async fn heartbeat(&self, server: &Server<()>, link: &mut ScriptLink) -> Result<(), Broken> {
        let key = format!("{}:gateways", self.prefix);
        let cluster = self.servers.topology.is_cluster();
        if cluster && !self.servers.has(server, || slot_of(&[key.as_bytes()])) {
            return link.ask(&["PING"]).await.map(drop);
        }
        match link.heartbeat(&key, &self.name).await {
            Ok(count) => {
                // Those that have not been heard of yet are there as well, if somebody says so.
                self.gateways.store(count.max(self.least).max(1), Ordering::Relaxed);
                Ok(())
            }
            // The slot has moved; who has it now is asked at the next beat.
            Err(why) if why.fault == Fault::Elsewhere => {
                self.servers.suspect();
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// Charges what was admitted without this server.
    async fn settle(&self, server: &Server<()>, link: &mut ScriptLink) -> Result<(), Broken> {
        let cluster = self.servers.topology.is_cluster();
        let (charges, _in_hand) = self.debts.collect(|set, key| !cluster || self.servers.has(server, || set.slot(key)));
        let owed = charges.into_iter().map(|charge| Owed { shared: self, charge: Some(charge), sent: false });
        // Made at once, so that none is forgotten if this ends in the middle.
        let mut owed = owed.collect::<Vec<_>>().into_iter();
        while !owed.as_slice().is_empty() {
            self.tell(link, owed.by_ref().take(BATCH).collect()).await?;
        }
        Ok(())
    }

    /// One round trip.
    async fn tell(&self, link: &mut ScriptLink, mut charges: Vec<Owed<'_>>) -> Result<(), Broken> {
        // Twice: Redis may have lost the script.
        for _ in 0..2 {
            let mut pipeline = Pipeline::with_capacity(charges.len());
            for owed in &mut charges {
                if let Some(charge) = &owed.charge {
                    link.charge(&mut pipeline, self, &charge.set, &charge.key, &charge.costs);
                    owed.sent = true;
                }
            }
            let replies = link.send(&pipeline, charges.len()).await?;
            charges = charges.into_iter().zip(replies).filter_map(|(owed, reply)| self.told(owed, &reply)).collect();
            if charges.is_empty() {
                break;
            }
            link.load().await?;
        }
        Ok(())
    }

    /// Returns what is to be told anew, to the same server.
    pub(super) fn told<'a>(&self, mut owed: Owed<'a>, reply: &Value) -> Option<Owed<'a>> {
        let Value::ServerError(error) = reply else {
            owed.charge = None;
            return None;
        };
        let moved = Redirection::of(error, "").is_some();
        // None of these has done anything.
        owed.sent = !(moved || matches!(error.code(), "NOSCRIPT" | "TRYAGAIN"));
        if moved {
            self.servers.suspect();
        }
        (error.code() == "NOSCRIPT").then_some(owed)
    }
}

/// A charge on its way. One that is dropped before it is told is still owed, unless Redis may have counted it: charged anew, it could
/// count twice.
pub(super) struct Owed<'a> {
    pub shared: &'a Shared,
    /// `None`: told.
    pub charge: Option<Charge>,
    pub sent: bool,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        if let Some(charge) = self.charge.take()
            && (self.sent || !self.shared.debts.put_back(&charge))
        {
            self.shared.metrics.lost.charges.increment();
        }
    }
}

/// What another server is to be asked was not done here, and is not lost by being sent again.
fn not_done(mut sent: Sent<Question>) -> Sent<Question> {
    sent.question.what.sent(false);
    sent
}
