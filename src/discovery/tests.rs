//! What becomes of answers, with a source that says what the test wants.

use super::*;
use crate::clock::SystemClock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::sleep;

type Script = Arc<Mutex<VecDeque<Result<Vec<&'static str>, Reason>>>>;

/// Says what its script says, then the last line of it for ever.
struct Scripted {
    script: Script,
    asked: Arc<AtomicUsize>,
    again: Duration,
}

#[async_trait]
impl Discovery for Scripted {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let line = {
            let mut script = self.script.lock();
            if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
        };
        match line {
            Some(Ok(list)) => {
                let found = list.iter().map(|text| Found::at(text.parse().unwrap())).collect();
                Ok(Answer { found, again: self.again })
            }
            Some(Err(reason)) => Err(Failure::new(reason, "scripted")),
            None => std::future::pending().await,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(50)
    }
}

#[derive(Default)]
struct Changes(AtomicUsize);

impl Watch for Changes {
    fn changed(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Running {
    feed: Arc<Feed>,
    script: Script,
    asked: Arc<AtomicUsize>,
    changes: Arc<Changes>,
    task: tokio::task::JoinHandle<()>,
}

fn bounds() -> Bounds {
    Bounds { allow: Vec::new(), max_endpoints: 100, allow_empty: false, debounce: Duration::ZERO, max_stale: None }
}

impl Running {
    fn start(bounds: Bounds, script: &[Result<Vec<&'static str>, Reason>]) -> Running {
        Running::start_asking(bounds, script, Duration::from_millis(1))
    }

    fn start_asking(bounds: Bounds, script: &[Result<Vec<&'static str>, Reason>], again: Duration) -> Running {
        let feed = Arc::new(Feed::new("upstream test: scripted".to_owned(), Arc::new(SystemClock)));
        let changes: Arc<Changes> = Arc::default();
        let watcher: Weak<Changes> = Arc::downgrade(&changes);
        feed.watch(watcher);
        let script: Script = Arc::new(Mutex::new(script.iter().cloned().collect()));
        let asked: Arc<AtomicUsize> = Arc::default();
        let (says, counts) = (script.clone(), asked.clone());
        let plan =
            Plan::new("scripted".to_owned(), "", bounds, move || Scripted { script: says.clone(), asked: counts.clone(), again });
        let task = tokio::spawn(drive(Arc::downgrade(&feed), Arc::new(plan), || {}));
        Running { feed, script, asked, changes, task }
    }

    fn say(&self, line: Result<Vec<&'static str>, Reason>) {
        *self.script.lock() = VecDeque::from([line]);
    }

    fn found(&self) -> Vec<String> {
        self.feed.found().iter().map(|found| found.address.to_string()).collect()
    }

    fn failures(&self, reason: Reason) -> u64 {
        self.feed.counter(reason).unwrap().get()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Running) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what} did not happen: {:?}", self.found());
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn answers_are_followed_and_sorted() {
    let running = Running::start(bounds(), &[Ok(vec!["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"])]);
    running.until("the first answer", |running| running.found() == ["10.0.0.1:80", "10.0.0.2:80"]).await;
    running.say(Ok(vec!["10.0.0.3:80"]));
    running.until("the second answer", |running| running.found() == ["10.0.0.3:80"]).await;
    let (changes, asked) = (running.changes.0.load(Ordering::SeqCst), running.asked.load(Ordering::SeqCst));
    running.until("more answers", |running| running.asked.load(Ordering::SeqCst) > asked + 2).await;
    assert_eq!((changes, running.changes.0.load(Ordering::SeqCst)), (2, 2), "the same answer again is no change");
}

#[tokio::test]
async fn failures_and_empty_answers_keep_the_last_good_one() {
    let running = Running::start(bounds(), &[Ok(vec!["10.0.0.1:80"])]);
    running.until("an answer", |running| !running.found().is_empty()).await;
    for (line, reason) in
        [(Err(Reason::Denied), Reason::Denied), (Ok(vec![]), Reason::Empty), (Ok(vec!["0.0.0.0:80"]), Reason::Empty)]
    {
        let before = running.failures(reason);
        running.say(line);
        running.until("a failure", |running| running.failures(reason) > before).await;
        assert_eq!(running.found(), ["10.0.0.1:80"]);
    }
    running.script.lock().clear();
    running.until("a source that hangs", |running| running.failures(Reason::Timeout) > 0).await;
    assert!(running.feed.standing().failing && running.found() == ["10.0.0.1:80"]);
    running.say(Ok(vec!["10.0.0.1:80"]));
    running.until("recovery", |running| !running.feed.standing().failing).await;
    assert_eq!(running.changes.0.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_empty_answer_empties_the_pool_where_that_is_allowed() {
    let running = Running::start(Bounds { allow_empty: true, ..bounds() }, &[Ok(vec!["10.0.0.1:80"])]);
    running.until("an answer", |running| !running.found().is_empty()).await;
    running.say(Ok(vec![]));
    running.until("none", |running| running.found().is_empty()).await;
    assert!(!running.feed.standing().failing);
}

#[tokio::test]
async fn what_is_not_allowed_is_left_out_and_counted() {
    let allow = vec!["10.0.0.0/8".parse().unwrap()];
    let said = vec!["10.0.0.1:80", "192.0.2.1:80", "[::ffff:10.0.0.2]:80", "[::ffff:192.0.2.2]:80", "127.0.0.1:80", "10.0.0.3:0"];
    let running = Running::start(Bounds { allow, ..bounds() }, &[Ok(said)]);
    running.until("an answer", |running| running.feed.was_tried() && running.changes.0.load(Ordering::SeqCst) > 0).await;
    assert_eq!(running.found(), ["10.0.0.1:80", "[::ffff:10.0.0.2]:80"]);
    assert_eq!(running.feed.standing().unused, 4);
}

#[tokio::test]
async fn the_number_of_endpoints_is_bounded() {
    let said = vec!["10.0.0.3:80", "10.0.0.2:80", "10.0.0.1:80"];
    let running = Running::start(Bounds { max_endpoints: 2, ..bounds() }, &[Ok(said)]);
    running.until("an answer", |running| !running.found().is_empty()).await;
    assert_eq!((running.found(), running.feed.standing().unused), (vec!["10.0.0.1:80".into(), "10.0.0.2:80".into()], 1));
}

#[tokio::test]
async fn flapping_makes_no_more_changes_than_the_debounce_lets_through() {
    let debounce = Duration::from_millis(500);
    let running = Running::start(Bounds { debounce, ..bounds() }, &[Ok(vec!["10.0.0.1:80"])]);
    running.until("the first answer", |running| !running.found().is_empty()).await;
    let began = Instant::now();
    for round in 0..20 {
        let asked = running.asked.load(Ordering::SeqCst);
        running.say(Ok(vec![if round % 2 == 0 { "10.0.0.2:80" } else { "10.0.0.1:80" }]));
        running.until("an answer", |running| running.asked.load(Ordering::SeqCst) > asked + 1).await;
    }
    let most = 2 + began.elapsed().as_millis() / debounce.as_millis();
    assert!(running.changes.0.load(Ordering::SeqCst) as u128 <= most, "more than {most} changes");
    running.say(Ok(vec!["10.0.0.9:80"]));
    running.until("the last word", |running| running.found() == ["10.0.0.9:80"]).await;
}

#[tokio::test]
async fn an_answer_that_is_too_old_is_gone() {
    let max_stale = Some(Duration::from_millis(300));
    let running = Running::start(Bounds { max_stale, ..bounds() }, &[Ok(vec!["10.0.0.1:80"]), Err(Reason::Unreachable)]);
    running.until("an answer", |running| !running.found().is_empty()).await;
    running.until("a failure", |running| running.failures(Reason::Unreachable) > 0).await;
    running.until("the end of it", |running| running.found().is_empty()).await;
    assert!(running.feed.standing().age.unwrap() >= Duration::from_millis(300));
    running.say(Ok(vec!["10.0.0.1:80"]));
    running.until("a new answer", |running| !running.found().is_empty()).await;
}

#[tokio::test]
async fn an_answer_of_a_source_that_is_quiet_is_not_too_old() {
    let max_stale = Some(Duration::from_millis(50));
    let script = [Ok(vec!["10.0.0.1:80"]), Ok(vec!["10.0.0.2:80"])];
    // Asked again after ten times what an answer may be used while it fails.
    let running = Running::start_asking(Bounds { max_stale, ..bounds() }, &script, Duration::from_millis(500));
    running.until("an answer", |running| !running.found().is_empty()).await;
    running.until("the next answer", |running| running.found() == ["10.0.0.2:80"]).await;
    assert_eq!(running.changes.0.load(Ordering::SeqCst), 2, "it was never empty in between");
}

#[tokio::test]
async fn the_work_ends_with_the_last_user_of_the_feed() {
    let running = Running::start(bounds(), &[Ok(vec!["10.0.0.1:80"])]);
    running.until("an answer", |running| !running.found().is_empty()).await;
    let Running { feed, task, .. } = running;
    drop(feed);
    tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
}
