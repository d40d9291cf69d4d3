//! What one use of Redis does with each of its servers, and the thread on which it does so.

use super::broken::Broken;
use super::cluster;
use super::link::Link;
use super::node::{Node, Nodes, Redirection, Sent, Server, Servers};
use redis::{Pipeline, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One use of a Redis. All of it runs on one thread, except that anybody may ask.
pub trait Work: Send + Sync + Sized + 'static {
    /// What a server is asked.
    type Question: Send + 'static;
    /// A connection that is ready to be asked.
    type Link: Send;
    /// What is known of a server, besides whether it is up.
    type State: Default + Send + Sync + 'static;
    /// The most questions that wait for one server.
    const QUEUE: usize;

    fn servers(&self) -> &Servers<Self>;

    /// `turn` counts attempts.
    fn connect(
        self: &Arc<Self>,
        server: &Arc<Server<Self::State>>,
        turn: usize,
    ) -> impl Future<Output = Result<Self::Link, Broken>> + Send;

    /// Until nobody can ask any more (`Ok`) or the connection is of no more use.
    fn serve(
        self: &Arc<Self>,
        server: &Arc<Server<Self::State>>,
        link: &mut Self::Link,
        questions: &mut mpsc::Receiver<Sent<Self::Question>>,
    ) -> impl Future<Output = Result<(), Broken>> + Send;

    /// What else is done as long as it goes on.
    fn beside(self: Arc<Self>) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// A connection is ready; from the next moment on the server counts as up.
    fn came(&self, _server: &Server<Self::State>) {}

    /// A connection is lost, or an attempt has failed; the server counts as away.
    fn went(&self, _server: &Server<Self::State>) {}

    /// The first failure since a server was up, for people to know; `None`: of all of them.
    fn away(&self, server: Option<&Server<Self::State>>, why: &str);

    /// A server has come or gone.
    fn noted(&self) {}
}

/// The work ends when this is dropped.
#[derive(Debug)]
pub struct Alive {
    _alive: Option<watch::Sender<()>>,
}

impl Alive {
    /// Of work that was not begun.
    pub fn not() -> Self {
        Alive { _alive: None }
    }
}

/// Begins. The thread has a runtime of its own, because neither a slow scrape of the control service nor a busy edge may make an
/// answer late, and because it then needs nobody to start it.
pub fn start<W: Work>(work: Arc<W>, name: &str) -> Alive {
    let (alive, mut ended) = watch::channel(());
    let own = Arc::clone(&work);
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                tokio::spawn(Arc::clone(&own).beside());
                if own.servers().topology.is_cluster() {
                    tokio::spawn(cluster::follow(Arc::clone(&own)));
                } else {
                    let node = spawn(&own, String::new());
                    own.servers().nodes.store(Arc::new(Nodes::one(node)));
                }
                // Nothing is ever sent: it ends when the sender is dropped.
                let _ = ended.changed().await;
            }),
            Err(e) => own.away(None, &format!("there is no runtime for it: {e}")),
        }
        // Whoever still holds the work finds nobody to ask.
        for node in own.servers().nodes.swap(Arc::default()).list() {
            lose(&own, &node.server);
        }
        own.noted();
    });
    if let Err(e) = thread {
        work.away(None, &format!("there is no thread for it: {e}"));
    }
    Alive { _alive: Some(alive) }
}

/// A server, with its worker.
pub fn spawn<W: Work>(work: &Arc<W>, address: String) -> Arc<Node<W>> {
    let (questions, asked) = mpsc::channel(W::QUEUE);
    let server = Arc::new(Server::new(address));
    tokio::spawn(keep(Arc::clone(work), Arc::clone(&server), asked));
    Arc::new(Node::new(server, questions))
}

fn lose<W: Work>(work: &Arc<W>, server: &Server<W::State>) {
    server.set_up(false);
    work.went(server);
}

/// Connects, serves, notices when the server is away, and comes back, until nobody can ask any more.
async fn keep<W: Work>(work: Arc<W>, server: Arc<Server<W::State>>, mut questions: mpsc::Receiver<Sent<W::Question>>) {
    let mut pause = PAUSE_MIN;
    let mut told = false;
    let mut turn = 0_usize;
    while !questions.is_closed() {
        turn = turn.wrapping_add(1);
        let why = match work.connect(&server, turn).await {
            Ok(mut link) => {
                (pause, told) = (PAUSE_MIN, false);
                work.came(&server);
                server.set_up(true);
                work.noted();
                match work.serve(&server, &mut link, &mut questions).await {
                    Ok(()) => break,
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        lose(&work, &server);
        work.noted();
        // Whoever else has its slots now is asked from the next moment on.
        work.servers().suspect();
        if !told {
            told = true;
            work.away(Some(&server), &why.to_string());
        }
        // Whoever has asked before it was known gets no answer, and decides alone.
        while questions.try_recv().is_ok() {}
        tokio::time::sleep(jittered(pause)).await;
        pause = pause.saturating_mul(2).min(PAUSE_MAX);
    }
    lose(&work, &server);
}

/// One round trip for all questions of a batch, one command each. What belongs to another server is sent on there. Returns what was
/// answered, and what an error that was answered says of the connection.
pub async fn ask_all<W: Work>(
    work: &Arc<W>,
    server: &Server<W::State>,
    link: &mut Link,
    batch: &mut Vec<Sent<W::Question>>,
    add: impl Fn(&mut Pipeline, &W::Question),
) -> Result<(Vec<(W::Question, Value)>, Result<(), Broken>), Broken> {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    let mut count = 0_usize;
    for sent in batch.iter() {
        if sent.asking {
            pipeline.cmd("ASKING");
        }
        add(&mut pipeline, &sent.question);
        count = count.saturating_add(if sent.asking { 2 } else { 1 });
    }
    let mut replies = link.send(&pipeline, count).await.inspect_err(|_| batch.clear())?.into_iter();
    let (mut answered, mut sound) = (Vec::with_capacity(batch.len()), Ok(()));
    for sent in batch.drain(..) {
        let refused = sent.asking && server.refuses_asking(replies.next().as_ref());
        match replies.next() {
            Some(Value::ServerError(error)) => match Redirection::of(&error, server.address()) {
                Some(_) if refused => {}
                Some(to) => to.follow(work, sent),
                None => sound = Err(Broken::answered(&error, "")),
            },
            Some(reply) => answered.push((sent.question, reply)),
            None => return Err(Broken::nonsense()),
        }
    }
    Ok((answered, sound))
}

/// From half of it to all of it, so that gateways that lost Redis together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_that_lose_redis_together_do_not_come_back_together() {
        let draws: Vec<u128> = (0..1_000).map(|_| jittered(Duration::from_secs(1)).as_micros()).collect();
        let (shortest, longest) = (*draws.iter().min().unwrap(), *draws.iter().max().unwrap());
        assert!(shortest >= 500_000 && longest <= 1_000_000, "{shortest} to {longest} us");
        // The chance that a thousand even draws leave a quarter at either end out is nothing.
        assert!(shortest < 625_000 && longest > 875_000, "{shortest} to {longest} us");
        let different: std::collections::HashSet<u128> = draws.into_iter().collect();
        assert!(different.len() > 900, "{} of 1,000", different.len());
    }
}
