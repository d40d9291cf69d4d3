//! Purges, told by every gateway to all: they are counted by one server, and published there.
//!
//! All gateways listen at the server that has the counters, and not at any other of a cluster, so that its answer to `PUBLISH`
//! is how many will hear of it. Whoever listens again after a pause compares the count of purges, and forgets everything if it
//! has missed one. A count that has gone back (Redis was flushed, or a failover has lost its last moments) is raised beyond all
//! that were, and so is the generation: what was purged meanwhile may be there again.

use super::super::purge::{Purge, What};
use super::worker::number;
use super::{ACKNOWLEDGE, PATIENCE, QUEUE, Shared};
use crate::redis_link::{Broken, Link, NONSENSE, find, jittered};
use parking_lot::Mutex;
use redis::{Pipeline, PushInfo, PushKind, Value};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether the server is still there, and still the one.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long acknowledgements are counted, in seconds.
const COUNTED: u64 = 60;

/// The count of purges and the generation. A count below what this gateway knows is raised beyond any that was, by the time; the
/// first of the reply is what was found.
const CATCH_UP: &str = "\
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local sequence = found
if found < tonumber(ARGV[1]) then
  local now = redis.call('TIME')
  sequence = math.max(tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000), tonumber(ARGV[1]) + 1)
  redis.call('SET', KEYS[1], string.format('%.0f', sequence))
  redis.call('INCR', KEYS[2])
end
return {found, sequence, tonumber(redis.call('GET', KEYS[2]) or '0')}";

/// A purge that all gateways are to hear of.
pub struct Announcement {
    pub purge: Purge,
    /// Whether what is stored now ceases to count, whatever it is.
    pub raise: bool,
    /// Gateways that have heard of it and gateways that have done it.
    pub answer: Option<oneshot::Sender<(u64, u64)>>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    id: String,
    from: String,
    kind: String,
    value: String,
    soft: bool,
    invalidation: bool,
    sequence: u64,
    /// The generation that begins with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

pub struct Hub {
    waiting: Mutex<Option<mpsc::Receiver<Announcement>>>,
    up: AtomicBool,
    /// What the others know this gateway by.
    name: String,
    /// One more than the latest purge that this gateway has heard of; 0: none yet.
    known: AtomicU64,
    /// Something was to be told and there was no room to say what: everything is to be forgotten.
    owed: AtomicBool,
}

impl Hub {
    pub fn new(waiting: mpsc::Receiver<Announcement>) -> Self {
        Hub {
            waiting: Mutex::new(Some(waiting)),
            up: AtomicBool::new(false),
            name: uuid::Uuid::now_v7().to_string(),
            known: AtomicU64::new(0),
            owed: AtomicBool::new(false),
        }
    }

    /// Something could not be told, and not even noted.
    pub fn owe(&self) {
        self.owed.store(true, Ordering::Relaxed);
    }

    /// Whether purges are heard.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// Listens and announces for as long as the tier is there.
pub async fn follow(shared: Arc<Shared>) {
    let Some(mut waiting) = shared.hub.waiting.lock().take() else { return };
    // Taken from the queue, and not announced yet.
    let mut pending = None;
    let (mut pause, mut told, mut turn) = (PAUSE_MIN, false, 0_usize);
    loop {
        turn = turn.wrapping_add(1);
        let why = match Listener::connect(&shared, turn).await {
            Ok(mut listener) => {
                (pause, told) = (PAUSE_MIN, false);
                shared.hub.up.store(true, Ordering::Relaxed);
                crate::redis_link::Work::noted(&*shared);
                match listener.serve(&mut waiting, &mut pending).await {
                    Ok(()) => return,
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        shared.hub.up.store(false, Ordering::Relaxed);
        crate::redis_link::Work::noted(&*shared);
        // A server that is away has been told of by its worker.
        if !told && shared.servers.reachable(|| shared.hub_slot()).is_some() {
            told = true;
            log::warn!("purges of other gateways are not heard for now: {why}");
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = pause.saturating_mul(2).min(PAUSE_MAX);
    }
}

/// A connection over which purges are heard and told.
struct Listener {
    shared: Arc<Shared>,
    link: Link,
    address: String,
    heard: mpsc::Receiver<Vec<u8>>,
}

impl Listener {
    async fn connect(shared: &Arc<Shared>, turn: usize) -> Result<Self, Broken> {
        let node = shared.servers.reachable(|| shared.hub_slot()).ok_or("its server is away")?;
        let address = node.server.address().to_owned();
        let (told, heard) = mpsc::channel(QUEUE);
        let told = Mutex::new(Some(told));
        let hear = move |push: PushInfo| {
            let mut told = told.lock();
            let lost = match (push.kind, push.data.into_iter().nth(1)) {
                (PushKind::Message, Some(Value::BulkString(text))) => {
                    told.as_ref().is_some_and(|told| told.try_send(text).is_err())
                }
                (PushKind::Disconnection, _) => true,
                _ => false,
            };
            if lost {
                // What does not fit is missed, which shows when the count is compared again.
                *told = None;
            }
            Ok::<(), Infallible>(())
        };
        let mut link = Link::open_heard(find(&shared.servers.topology, &address, turn).await?, PATIENCE, hear).await?;
        link.check(&shared.servers.topology).await?;
        // Listening first, then looking: nothing can be missed in between.
        link.subscribe(&shared.channel()).await?;
        let mut listener = Listener { shared: Arc::clone(shared), link, address, heard };
        listener.catch_up().await?;
        Ok(listener)
    }

    async fn catch_up(&mut self) -> Result<(), Broken> {
        let shared = Arc::clone(&self.shared);
        let known = shared.hub.known.load(Ordering::Relaxed);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("EVAL").arg(CATCH_UP).arg(2);
        pipeline.arg(self.shared.name_of("sequence")).arg(self.shared.name_of("generation")).arg(known.saturating_sub(1));
        let reply = self.send(&pipeline, 1).await?.pop();
        let Some(Value::Array(numbers)) = reply else { return Err(Broken::nonsense()) };
        let numbers: Option<Vec<u64>> = numbers.iter().map(number).collect();
        let Some([found, sequence, generation]) = numbers.as_deref() else { return Err(Broken::nonsense()) };
        self.shared.generation.store(*generation, Ordering::Relaxed);
        shared.hub.known.store(sequence.saturating_add(1), Ordering::Relaxed);
        if known != 0 && known != found.saturating_add(1) {
            // A purge was missed, or Redis has forgotten how many there were.
            let gone = self.shared.memory.purge(&Purge::new(What::Everything, false));
            log::warn!("purges were missed while Redis was away: {gone} answers are forgotten");
        }
        Ok(())
    }

    /// Until nobody purges any more (`Ok`) or the connection is of no more use.
    async fn serve(
        &mut self,
        waiting: &mut mpsc::Receiver<Announcement>,
        pending: &mut Option<Announcement>,
    ) -> Result<(), Broken> {
        let mut pulse = tokio::time::interval(CHECK_EVERY);
        loop {
            if self.shared.hub.owed.swap(false, Ordering::Relaxed) {
                let everything = Purge::new(What::Everything, false);
                let told = self.announce(&Announcement { purge: everything, raise: true, answer: None }).await;
                told.inspect_err(|_| self.shared.hub.owe())?;
                log::warn!("more was invalidated than could be told one by one: everything is forgotten");
            }
            if let Some(announcement) = pending {
                let (id, heard) = self.announce(announcement).await?;
                if let Some(Announcement { answer: Some(answer), .. }) = pending.take() {
                    tokio::spawn(acknowledged(Arc::clone(&self.shared), self.link.clone(), id, heard, answer));
                }
            }
            tokio::select! {
                announcement = waiting.recv() => match announcement {
                    Some(announcement) => *pending = Some(announcement),
                    None => return Ok(()),
                },
                message = self.heard.recv() => {
                    let Some(message) = message else { return Err("the subscription ended".into()) };
                    if let Ok(message) = serde_json::from_slice::<Message>(&message) {
                        self.shared.hub.known.fetch_max(message.sequence.saturating_add(1), Ordering::Relaxed);
                        tokio::spawn(heed(Arc::clone(&self.shared), self.link.clone(), message));
                    }
                }
                _ = pulse.tick() => {
                    self.link.check(&self.shared.servers.topology).await?;
                    let nodes = self.shared.servers.nodes();
                    let at = nodes.of_slot(|| self.shared.hub_slot()).map(|node| node.server.address());
                    if at != Some(self.address.as_str()) {
                        return Err("another server has the counters".into());
                    }
                }
            }
        }
    }

    /// One round trip; an error that is answered ends the connection, because purges must not be told where nobody listens.
    async fn send(&mut self, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Broken> {
        let replies = self.link.send(pipeline, count).await?;
        for reply in &replies {
            if let Value::ServerError(error) = reply {
                self.shared.servers.suspect();
                return Err(Broken::answered(error, ""));
            }
        }
        Ok(replies)
    }

    /// Counts it, then tells it. Returns its name and how many gateways hear of it.
    async fn announce(&mut self, announcement: &Announcement) -> Result<(String, u64), Broken> {
        let Announcement { purge, raise, .. } = announcement;
        let mut pipeline = Pipeline::new();
        pipeline.cmd("INCR").arg(self.shared.name_of("sequence"));
        if *raise {
            pipeline.cmd("INCR").arg(self.shared.name_of("generation"));
        }
        let counts = self.send(&pipeline, if *raise { 2 } else { 1 }).await?;
        let counts: Option<Vec<u64>> = counts.iter().map(number).collect();
        let counts = counts.ok_or(NONSENSE)?;
        let generation = counts.get(1).copied();
        if let Some(generation) = generation {
            self.shared.generation.store(generation, Ordering::Relaxed);
        }
        let (kind, value) = match &purge.what {
            What::Url(url) => ("url", url.to_string()),
            What::Prefix(prefix) => ("prefix", prefix.to_string()),
            What::Tag(tag) => ("tag", tag.to_string()),
            What::Route(route) => ("route", route.to_string()),
            What::Everything => ("all", String::new()),
        };
        let id = uuid::Uuid::now_v7().to_string();
        let message = Message {
            id: id.clone(),
            from: self.shared.hub.name.clone(),
            kind: kind.to_owned(),
            value,
            soft: purge.is_soft(),
            invalidation: purge.is_invalidation(),
            sequence: counts.first().copied().ok_or(NONSENSE)?,
            generation,
        };
        let text = serde_json::to_string(&message).unwrap_or_default();
        let heard = self.link.ask(&["PUBLISH", &self.shared.channel(), &text]).await?;
        Ok((id, number(&heard).ok_or(NONSENSE)?))
    }
}

/// Another gateway, or this one, has purged.
async fn heed(shared: Arc<Shared>, mut link: Link, message: Message) {
    if let Some(generation) = message.generation {
        shared.generation.store(generation, Ordering::Relaxed);
    }
    let what = match message.kind.as_str() {
        "url" => What::Url(message.value.into()),
        "prefix" => What::Prefix(message.value.into()),
        "tag" => What::Tag(message.value.into()),
        "route" => What::Route(message.value.into()),
        _ => What::Everything,
    };
    if message.from != shared.hub.name {
        let purge = match &what {
            What::Url(url) if message.invalidation => Purge::invalidation(url),
            _ => Purge::new(what, message.soft),
        };
        shared.memory.purge(&purge);
    }
    let name = shared.name_of(&format!("done:{}", message.id));
    let mut pipeline = Pipeline::new();
    pipeline.cmd("INCR").arg(&name).cmd("EXPIRE").arg(&name).arg(COUNTED);
    if let Err(e) = link.send(&pipeline, 2).await {
        log::debug!("a purge could not be acknowledged: {e}");
    }
}

/// Answers when every gateway that has heard of a purge has done it, or has had the time for it.
async fn acknowledged(shared: Arc<Shared>, mut link: Link, id: String, heard: u64, answer: oneshot::Sender<(u64, u64)>) {
    let name = shared.name_of(&format!("done:{id}"));
    let end = std::time::Instant::now().checked_add(ACKNOWLEDGE);
    let mut done = 0;
    while done < heard && end.is_some_and(|end| std::time::Instant::now() < end) {
        match link.ask(&["GET", &name]).await {
            Ok(Value::Nil) => {}
            Ok(value) => done = number(&value).unwrap_or(done),
            Err(_) => break,
        }
        if done < heard {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // One that listens where the counters were before hears of it too.
    let _ = answer.send((heard.max(done), done));
}

impl Shared {
    fn channel(&self) -> String {
        format!("{}:cache:purge", self.prefix)
    }
}
