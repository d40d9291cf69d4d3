//! What is done with each server: asks in pipelines, listens for changes, and notices when it is away.

use super::{Parse, Question, Shared, Watch, Watched};
use crate::redis_link::{Broken, Fault, Link, Sent, Server, Servers, Work, ask_all, find};
use redis::{Pipeline, PushInfo, PushKind, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The most questions of one pipeline.
const BATCH: usize = 256;
/// The longest that an answer may take before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that nobody uses is tried this often: one that is dead would never tell of a change.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl<T: Parse> Work for Shared<T> {
    type Question = Question<T>;
    type Link = (Link, Arc<Watch>);
    type State = Watched;
    const QUEUE: usize = super::QUEUE;

    fn servers(&self) -> &Servers<Self> {
        &self.servers
    }

    async fn connect(self: &Arc<Self>, server: &Arc<Server<Watched>>, turn: usize) -> Result<Self::Link, Broken> {
        let info = find(&self.servers.topology, server.address(), turn).await?;
        let watch = Arc::new(Watch::default());
        let heard = {
            let (shared, server, watch) = (Arc::clone(self), Arc::clone(server), Arc::clone(&watch));
            move |push: PushInfo| {
                shared.hear(&server, &watch, &push);
                Ok::<(), Infallible>(())
            }
        };
        let mut link = Link::open_heard(info, PATIENCE, heard).await?;
        link.check(&self.servers.topology).await?;
        let prefix = format!("{}:", self.prefix);
        match link.ask(&["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", &prefix]).await? {
            Value::Okay => {}
            _ => return Err(Broken::nonsense()),
        }
        self.watch(server, Arc::clone(&watch));
        Ok((link, watch))
    }

    async fn serve(
        self: &Arc<Self>,
        server: &Arc<Server<Watched>>,
        (link, watch): &mut Self::Link,
        questions: &mut mpsc::Receiver<Sent<Question<T>>>,
    ) -> Result<(), Broken> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_check = Instant::now() + CHECK_EVERY;
        loop {
            tokio::select! {
                count = questions.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.ask(server, link, watch, &mut batch).await?;
                }
                () = watch.gone.notified() => return Err(Broken::new(Fault::Unreachable, "the connection was closed")),
                () = tokio::time::sleep_until(next_check) => {
                    link.check(&self.servers.topology).await?;
                    next_check = Instant::now() + CHECK_EVERY;
                }
            }
        }
    }

    fn came(&self, server: &Server<Watched>) {
        match server.address() {
            "" => log::info!("Redis is reachable: `{}:*` is looked up there", self.prefix),
            address => {
                log::info!("the Redis node {address} is reachable: keys `{}:*` that are its own are looked up there", self.prefix)
            }
        }
    }

    fn went(&self, server: &Server<Watched>) {
        if let Some(watch) = &*server.state.watch.load() {
            self.lose(watch);
        }
    }

    fn away(&self, server: Option<&Server<Watched>>, why: &str) {
        let prefix = &self.prefix;
        match server.map(Server::address) {
            None | Some("") => log::warn!("Redis is away: of `{prefix}:*` only what is known goes on, for a time: {why}"),
            Some(address) => {
                log::warn!(
                    "the Redis node {address} is away: of its keys `{prefix}:*` only what is known goes on, for a time: {why}"
                );
            }
        }
    }
}

impl<T: Parse> Shared<T> {
    async fn ask(
        self: &Arc<Self>,
        server: &Server<Watched>,
        link: &mut Link,
        watch: &Arc<Watch>,
        batch: &mut Vec<Sent<Question<T>>>,
    ) -> Result<(), Broken> {
        batch.retain(|sent| !sent.question.answer.is_closed());
        if batch.is_empty() {
            return Ok(());
        }
        let changes = self.changes.load(Ordering::Acquire);
        let get = |pipeline: &mut Pipeline, question: &Question<T>| {
            pipeline.cmd("GET").arg(format!("{}:{}", self.prefix, question.name));
        };
        let (answered, sound) = ask_all(self, server, link, batch, get).await?;
        for (Question { name, answer }, reply) in answered {
            let value = match reply {
                Value::Nil => None,
                Value::BulkString(bytes) => {
                    let parsed = T::parse(&name, &bytes);
                    if parsed.is_none() {
                        log::warn!("a value under `{}:` in Redis makes no sense and counts as absent", self.prefix);
                    }
                    parsed.map(Arc::new)
                }
                _ => return Err(Broken::nonsense()),
            };
            self.learn(name, value.clone(), watch, changes);
            // The request may have given up.
            let _ = answer.send(value);
        }
        sound
    }

    /// What a server says without having been asked. Called on the connection's own task, in the order in which it speaks.
    fn hear(&self, server: &Server<Watched>, watch: &Watch, push: &PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.lose(watch),
            PushKind::Invalidate => match push.data.first() {
                Some(Value::Array(names)) => {
                    for name in names {
                        if let Value::BulkString(name) = name
                            && let Ok(name) = std::str::from_utf8(name)
                            && let Some(name) = name.strip_prefix(&*self.prefix)
                            && let Some(name) = name.strip_prefix(':')
                        {
                            self.forget(name);
                        }
                    }
                }
                // FLUSHALL, FLUSHDB.
                _ => self.forget_all(server),
            },
            _ => {}
        }
    }
}
