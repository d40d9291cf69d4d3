//! A closed-loop load generator: so many keep-alive connections, each with one request under way at any time, every
//! response verified, every request accounted for.

use super::http1::Broken;
use super::raw::{Client, request};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Failures that are told in detail; later ones are only counted.
const DETAILS_MAX: usize = 20;

/// What each connection sends. Responses must be 200 echoes of the request's own id.
#[derive(Debug, Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    /// `GET`, or another one with a body that names the request.
    pub method: &'static str,
    pub target: String,
    /// The pause of each connection after a response: bounds what the machine is asked to do.
    pub pause: Duration,
}

/// The account of a run.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub ok: usize,
    pub failed: usize,
    /// Requests that a connection which had served before closed on without one byte of an answer. RFC 9112 §9.3.1 lets a
    /// client repeat such a GET, and ours does; a gateway that announces its closes causes none.
    pub stale: usize,
    /// Connections opened, the first ones included.
    pub connects: usize,
    pub details: Vec<String>,
    /// The longest that one request took, answered or not.
    pub slowest: Duration,
    /// The ids of the requests that were answered.
    pub ids: Vec<String>,
}

impl Report {
    /// Panics with the details unless at most so many of a thousand requests failed.
    #[track_caller]
    pub fn assert_failed_at_most(&self, permille: f64, at_least: usize) {
        let failed = self.failed as f64 / (self.ok + self.failed) as f64;
        assert!(failed * 1000.0 <= permille, "{failed} failed: {self}");
        assert!(self.ok >= at_least, "too little load to mean anything: {self}");
    }

    /// Panics with the details unless at least `at_least` requests were made and none failed or had to be repeated.
    #[track_caller]
    pub fn assert_clean(&self, at_least: usize) {
        assert!(self.failed == 0 && self.stale == 0, "{self}");
        assert!(self.ok >= at_least, "too little load to mean anything: {self}");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { ok, failed, stale, connects, details, .. } = self;
        write!(f, "{ok} ok, {failed} failed, {stale} on stale connections, {connects} connects\n{}", details.join("\n"))
    }
}

/// A run under way. Dropping it stops it.
pub struct Load {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicUsize>,
    report: Arc<Mutex<Report>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// GETs of `target` on 4 connections, at most some 800 a second.
    pub fn get(address: SocketAddr, target: &str) -> Load {
        let pause = Duration::from_millis(5);
        Load::start(Plan { address, connections: 4, method: "GET", target: target.to_owned(), pause })
    }

    pub fn start(plan: Plan) -> Load {
        let mut load = Load { stop: Arc::default(), ok: Arc::default(), report: Arc::default(), threads: Vec::new() };
        for number in 0..plan.connections {
            let (plan, stop, ok, report) = (plan.clone(), load.stop.clone(), load.ok.clone(), load.report.clone());
            load.threads.push(std::thread::spawn(move || worker(number, &plan, &stop, &ok, &report)));
        }
        load
    }

    /// Requests answered well so far.
    pub fn ok(&self) -> usize {
        self.ok.load(Ordering::SeqCst)
    }

    /// Lets the requests under way finish and gives the account.
    pub fn finish(mut self) -> Report {
        self.join();
        self.report.lock().unwrap().clone()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

fn worker(number: usize, plan: &Plan, stop: &AtomicBool, ok: &AtomicUsize, report: &Mutex<Report>) {
    let mut mine = Report::default();
    let mut connection: Option<Client> = None;
    let mut sequence = 0_usize;
    while !stop.load(Ordering::SeqCst) {
        sequence += 1;
        let id = format!("{}-{number}-{sequence}", plan.method);
        let begun = Instant::now();
        let outcome = one(plan, &id, &mut connection, &mut mine);
        mine.slowest = mine.slowest.max(begun.elapsed());
        match outcome {
            Ok(()) => {
                mine.ok += 1;
                mine.ids.push(id);
                ok.fetch_add(1, Ordering::SeqCst);
            }
            Err(why) => {
                mine.failed += 1;
                connection = None;
                if mine.details.len() < DETAILS_MAX {
                    mine.details.push(format!("{id}: {why}"));
                }
                // A gateway that is gone must not turn this loop into a busy one.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::thread::sleep(plan.pause);
    }
    let mut all = report.lock().unwrap();
    all.ok += mine.ok;
    all.failed += mine.failed;
    all.stale += mine.stale;
    all.connects += mine.connects;
    all.slowest = all.slowest.max(mine.slowest);
    all.details.extend(mine.details);
    all.details.truncate(DETAILS_MAX);
    all.ids.extend(mine.ids);
}

fn one(plan: &Plan, id: &str, connection: &mut Option<Client>, mine: &mut Report) -> Result<(), String> {
    let body = if plan.method == "GET" { String::new() } else { format!("the body of {id}") };
    let bytes = request(plan.method, &plan.target, &[("x-load-id", id)], body.as_bytes());
    let reused = connection.is_some();
    let mut response = open(plan, connection, mine)?.exchange(&bytes);
    if reused && plan.method == "GET" && matches!(response, Err(Broken::Closed)) {
        mine.stale += 1;
        *connection = None;
        response = open(plan, connection, mine)?.exchange(&bytes);
    }
    let response = response.map_err(|broken| broken.to_string())?;
    if response.status != 200 {
        return Err(format!("status {} {}", response.status, response.text()));
    }
    let echo: serde_json::Value = serde_json::from_slice(&response.body).map_err(|e| format!("{e}: {}", response.text()))?;
    if echo["id"] != id || echo["body"] != body {
        return Err(format!("the answer to another request: {echo}"));
    }
    if !response.keep_alive {
        *connection = None;
    }
    Ok(())
}

fn open<'a>(plan: &Plan, connection: &'a mut Option<Client>, mine: &mut Report) -> Result<&'a mut Client, String> {
    match connection {
        Some(client) => Ok(client),
        slot => {
            mine.connects += 1;
            Ok(slot.insert(Client::try_connect(plan.address).map_err(|broken| broken.to_string())?))
        }
    }
}
