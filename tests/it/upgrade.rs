//! The binary is replaced while it serves: nobody notices, and what goes wrong leaves the old process as it was.

use crate::support::admin::Admin;
use crate::support::gateway::{self, run};
use crate::support::h2::H2Client;
use crate::support::load::Plan;
use crate::support::raw::{Client, get, request, reserved_port};
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, eventually_some, everything_to, exclusive, runtime};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Upgrades in a row under load; `GATEWRIGHT_TEST_UPGRADES` asks for others.
const ROUNDS: usize = 50;

/// Kills the processes that took over from the one that the test has started.
struct Successors(Admin);

impl Successors {
    fn of(gateway: &Gateway) -> Self {
        Successors(gateway.admin.clone())
    }

    fn pid(&self) -> Option<i32> {
        let answer = self.0.exchange("GET", "/status").ok()?;
        let document: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
        i32::try_from(document["pid"].as_i64()?).ok()
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            kill(pid, Signal::SIGKILL);
        }
    }
}

/// Whether this process has the socket that listens on the address.
fn listens(pid: i32, address: SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let Some(row) = rows.into_iter().find(|row| row.len() > 9 && row[1].ends_with(&port) && row[3] == "0A") else { return false };
    let socket = format!("socket:[{}]", row[9]);
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == &*socket))
}

fn pid(gateway: &Gateway) -> i32 {
    gateway.status()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap()
}

/// Both processes accept for a moment, until the old one has heard that it is not to any more.
fn serves(address: SocketAddr, version: &str) {
    eventually(version, SOON, || get(address, "/version").text() == version);
}

fn kill(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

fn upgrade(gateway: &Gateway) -> Result<String, String> {
    let ended = run(&["upgrade", "--admin", &gateway.admin.argument()]);
    if ended.code == Some(0) { Ok(ended.stdout) } else { Err(format!("{}{}", ended.stdout, ended.stderr)) }
}

/// So short that a test of something else does not wait for it.
const PROBATION: &str = "upgrade_probation = \"20ms\"\n";

fn server() -> String {
    format!("[server]\n{PROBATION}")
}

fn version(version: &str) -> String {
    format!("\n[routes.version]\nmatch = {{ path = \"/version\" }}\nfilters = [{{ respond = {{ body = \"{version}\" }} }}]\n")
}

#[test]
fn upgrades_under_load_fail_no_request() {
    let _machine = exclusive();
    let rounds = std::env::var("GATEWRIGHT_TEST_UPGRADES").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&(server() + &everything_to(&[&origin], "")));
    let address = gateway.http();
    let pause = Duration::from_millis(3);
    let gets = Load::start(Plan { address, connections: 4, method: "GET", target: "/load".into(), pause });
    let posts = Load::start(Plan { address, connections: 3, method: "POST", target: "/load".into(), pause });
    eventually("load", SOON, || gets.ok() > 20 && posts.ok() > 20);

    let started = std::time::Instant::now();
    let mut pids = vec![pid(&gateway)];
    for round in 0..rounds {
        upgrade(&gateway).unwrap_or_else(|said| panic!("round {round}: {said}"));
        let serves = pid(&gateway);
        assert!(!pids.contains(&serves), "round {round}: process {serves} serves again");
        pids.push(serves);
        let (before_gets, before_posts) = (gets.ok(), posts.ok());
        eventually("load goes on", SOON, || gets.ok() >= before_gets + 10 && posts.ok() >= before_posts + 10);
    }
    let took = started.elapsed();
    let _successors = Successors::of(&gateway);
    let (gets, posts) = (gets.finish(), posts.finish());
    println!("{rounds} upgrades in {took:?}: GET {gets}POST {posts}");
    gets.assert_clean(rounds * 10);
    posts.assert_clean(rounds * 10);
    let seen = origin.ids();
    let odd: Vec<_> = posts.ids.iter().filter(|id| seen.get(*id) != Some(&1)).collect();
    assert!(odd.is_empty(), "POSTs that were lost or repeated: {odd:?}");
    drop(_successors);
    // The processes that were replaced have all gone by themselves.
    assert!(gateway.wait_exit(SOON).success());
}

#[test]
fn idle_connections_stay_until_their_next_request() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&(server() + &everything_to(&[&origin], "")));
    let address = gateway.http();
    let mut idle = Client::connect(address);
    assert!(idle.exchange(request("GET", "/", &[], b"")).unwrap().keep_alive);
    origin.answer(Answer::Delay(Duration::from_secs(5)));
    let mut busy = Client::connect(address);
    busy.send(request("POST", "/", &[], b"body"));
    eventually("the request is under way", SOON, || origin.count() == 2);
    upgrade(&gateway).unwrap();
    let _successors = Successors::of(&gateway);
    let answered = busy.response();
    assert_eq!((answered.status, answered.keep_alive), (200, false), "finished by the process that began it");
    assert!(gateway.runs(), "the old process waits for the idle connection");
    let answered = idle.exchange(request("GET", "/", &[], b"")).unwrap();
    assert_eq!((answered.status, answered.keep_alive), (200, false), "its last request on this connection");
    assert!(get(address, "/").keep_alive, "the new process keeps connections");
    assert!(gateway.wait_exit(SOON).success());
}

#[test]
fn sigusr2_upgrades_to_the_configuration_of_now() {
    let mut gateway = Gateway::start(&(server() + &version("one")));
    let (address, before) = (gateway.http(), pid(&gateway));
    gateway.write_config(&(server() + "threads = 1\n" + &version("two")));
    kill(before, Signal::SIGUSR2);
    eventually("another process", SOON, || pid(&gateway) != before);
    let successors = Successors::of(&gateway);
    serves(address, "two");
    assert_eq!(gateway.http(), address);
    // The new one takes reloads, and stops in order.
    let next = successors.pid().unwrap();
    std::mem::forget(successors);
    assert!(gateway.wait_exit(SOON).success());
    gateway.reload_with(&(server() + "threads = 1\n" + &version("three"))).unwrap();
    serves(address, "three");
    kill(next, Signal::SIGTERM);
    eventually("the port is closed", SOON, || Client::try_connect(address).is_err());
}

#[test]
fn who_was_let_in_by_the_admin_listener_is_answered_across_an_upgrade() {
    let gateway = Gateway::start(&version("one"));
    let before = pid(&gateway);
    let Admin::Unix(path) = &gateway.admin else { panic!("the admin listener is no unix socket") };
    // Accepted before the request for the upgrade is, and silent until the process has been replaced.
    let mut early = UnixStream::connect(path).unwrap();
    early.set_read_timeout(Some(SOON)).unwrap();
    upgrade(&gateway).unwrap();
    let successors = Successors::of(&gateway);
    assert_ne!(successors.pid(), Some(before));
    early.write_all(&request("GET", "/status", &[("connection", "close")], b"")).unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!("\"pid\": {before}")), "{answer}");
}

#[test]
fn an_upgrade_comes_to_its_end_when_whoever_asked_has_gone() {
    let mut gateway = Gateway::start(&version("one"));
    let (before, address) = (pid(&gateway), gateway.http());
    let Admin::Unix(path) = gateway.admin.clone() else { panic!("the admin listener is no unix socket") };
    let mut asker = UnixStream::connect(path).unwrap();
    asker.write_all(&request("POST", "/upgrade", &[], b"")).unwrap();
    eventually("the upgrade has begun", SOON, || gateway.stderr().contains("taking over 1 sockets"));
    drop(asker);
    // The new one has the admin socket, and the old one goes.
    eventually("another process", SOON, || gateway.status()["pid"] != before);
    let successors = Successors::of(&gateway);
    assert!(gateway.wait_exit(SOON).success());
    assert_eq!(get(address, "/version").text(), "one");
    drop(successors);
}

#[test]
fn a_reload_during_an_upgrade_is_taken_by_the_process_that_stays() {
    let gateway = Gateway::start(&version("one"));
    let admin = gateway.admin.argument();
    let upgrading = std::thread::spawn(move || run(&["upgrade", "--admin", &admin]));
    eventually("the new process has read its configuration", SOON, || {
        gateway.stderr().matches("gatewright 0.1.0 starts").count() == 2
    });
    gateway.write_config(&version("two"));
    // It waits for the upgrade, in the process that is going.
    let reloaded = run(&["reload", "--admin", &gateway.admin.argument()]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(upgrading.join().unwrap().code, Some(0));
    let _successors = Successors::of(&gateway);
    serves(gateway.http(), "two");
}

#[test]
fn a_wrong_configuration_is_told_and_changes_nothing() {
    let gateway = Gateway::start(&version("one"));
    let before = pid(&gateway);
    gateway.write_config("[routes.x]\nmatch = { path = \"/x\" }\nupstream = \"nowhere\"\n");
    let said = upgrade(&gateway).expect_err("upgraded to a wrong configuration");
    assert!(said.contains("nowhere") && said.contains("the running process stays"), "{said}");
    assert_eq!(pid(&gateway), before);
    assert_eq!(gateway.metric("gatewright_upgrades_failed_total", &[]), 1.0);
    assert_eq!(get(gateway.http(), "/version").text(), "one");
    gateway.write_config(&version("two"));
    upgrade(&gateway).unwrap();
    let successors = Successors::of(&gateway);
    assert_ne!(successors.pid(), Some(before));
    serves(gateway.http(), "two");
}

#[test]
fn a_port_that_is_taken_is_told_and_changes_nothing() {
    let taken = Origin::start("a");
    let http = "[listeners.http]\naddress = \"127.0.0.1:0\"\n";
    let gateway = Gateway::start(&(http.to_owned() + &version("one")));
    let address = gateway.http();
    gateway.write_config(&format!("{http}[listeners.busy]\naddress = \"{}\"\n{}", taken.address(), version("two")));
    let said = upgrade(&gateway).expect_err("upgraded to a port that is taken");
    assert!(said.contains(&taken.address().to_string()), "{said}");
    assert_eq!(get(address, "/version").text(), "one");
}

#[test]
fn a_successor_that_dies_leaves_the_old_process_serving() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    // Its own binary, so that it can be replaced by one that does not work.
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("gatewright");
    std::fs::copy(gateway::binary(), &binary).unwrap();
    let gateway = Gateway::try_start_binary(&binary, &everything_to(&[&origin], "")).unwrap();
    let (address, before) = (gateway.http(), pid(&gateway));
    let load = Load::get(address, "/load");
    eventually("load", SOON, || load.ok() > 20);
    let install = |script: &str| {
        let next = directory.path().join("next");
        std::fs::write(&next, script).unwrap();
        std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&next, &binary).unwrap();
    };
    // It ends at once; it ends by a signal; it is no program.
    for (script, says) in
        [("#!/bin/sh\nexit 3\n", "exit status: 3"), ("#!/bin/sh\nkill -9 $$\n", "signal: 9"), ("", "cannot start")]
    {
        install(script);
        let said = upgrade(&gateway).expect_err(says);
        assert!(said.contains(says), "{said}");
        assert_eq!(pid(&gateway), before);
    }
    // It dies when it has the sockets: a configuration that takes long to build leaves the time to hit it.
    let number = directory.path().join("number");
    let real = gateway::binary();
    install(&format!("#!/bin/sh\necho $$ > '{}'\nexec '{real}' \"$@\"\n", number.display()));
    let many: String =
        (0..6_000).map(|n| format!("[routes.r{n}]\nmatch = {{ path = \"/r/{n}\" }}\nupstream = \"app\"\n")).collect();
    gateway.write_config(&(everything_to(&[&origin], "") + &many));
    std::thread::scope(|scope| {
        let said = scope.spawn(|| upgrade(&gateway));
        let written = || std::fs::read_to_string(&number).ok()?.trim().parse::<i32>().ok();
        let successor = eventually_some("the new process", SOON, written);
        eventually("it has the sockets", SOON, || listens(successor, address));
        kill(successor, Signal::SIGKILL);
        let said = said.join().unwrap().expect_err("upgraded to a process that was killed");
        assert!(said.contains("signal: 9"), "{said}");
    });
    assert_eq!(pid(&gateway), before);
    let before_load = load.ok();
    eventually("load goes on", SOON, || load.ok() >= before_load + 50);
    load.finish().assert_clean(100);
}

/// A gateway that answers "one", and the process that is to replace it, which answers "two" and is on probation for long.
fn on_probation() -> (Gateway, i32) {
    let long = |name: &str| "[server]\nupgrade_probation = \"30s\"\n".to_owned() + &version(name);
    let gateway = Gateway::start(&long("one"));
    gateway.write_config(&long("two"));
    let before = pid(&gateway);
    kill(before, Signal::SIGUSR2);
    // Both accept, so that either may answer.
    eventually("the new process answers", SOON, || get(gateway.http(), "/version").text() == "two");
    let children = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let tasks = std::fs::read_dir(format!("/proc/{before}/task")).unwrap().flatten();
    let children: String = tasks.filter_map(children).collect();
    let successor =
        children.split_whitespace().find_map(|pid| pid.parse().ok()).expect("the new process is a child of the old one");
    assert_eq!(pid(&gateway), before, "operators are answered by the old one");
    (gateway, successor)
}

#[test]
fn a_successor_that_dies_on_probation_is_done_without() {
    let (gateway, successor) = on_probation();
    let (address, before) = (gateway.http(), pid(&gateway));
    kill(successor, Signal::SIGKILL);
    eventually("the end is noticed", SOON, || gateway.stderr().contains("after it had begun to accept"));
    for _ in 0..50 {
        assert_eq!(get(address, "/version").text(), "one");
    }
    assert_eq!(gateway.metric("gatewright_upgrades_failed_total", &[]), 1.0);
    gateway.reload_with(&(server() + &version("three"))).unwrap();
    serves(address, "three");
    assert_eq!(pid(&gateway), before);
}

#[test]
fn a_stop_during_probation_ends_both_processes() {
    let (mut gateway, successor) = on_probation();
    let address = gateway.http();
    kill(pid(&gateway), Signal::SIGTERM);
    assert!(gateway.wait_exit(SOON).success());
    eventually("nobody accepts any more", SOON, || std::net::TcpStream::connect(address).is_err());
    assert!(!std::path::Path::new(&format!("/proc/{successor}/fd")).exists() || !listens(successor, address));
}

#[test]
fn unix_sockets_are_handed_over_with_their_files() {
    let directory = tempfile::tempdir().unwrap();
    let (kept, gone) = (directory.path().join("kept.sock"), directory.path().join("gone.sock"));
    let listener = |name: &str, path: &std::path::Path| format!("[listeners.{name}]\naddress = \"unix:{}\"\n", path.display());
    let ask = |path: &std::path::Path| {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        std::io::Write::write_all(&mut (&stream), &request("GET", "/version", &[("connection", "close")], b""))?;
        std::io::read_to_string(&stream)
    };
    let mut gateway = Gateway::start(&(server() + &listener("kept", &kept) + &listener("gone", &gone) + &version("one")));
    assert!(ask(&kept).unwrap().ends_with("one"));
    gateway.write_config(&(server() + &listener("kept", &kept) + &version("two")));
    upgrade(&gateway).unwrap();
    let successors = Successors::of(&gateway);
    let next = successors.pid().unwrap();
    std::mem::forget(successors);
    assert!(gateway.wait_exit(SOON).success());
    assert!(ask(&kept).unwrap().ends_with("two"), "the file is not removed by the process that leaves");
    assert!(!gone.exists(), "the file of a listener that is no more is removed");
    kill(next, Signal::SIGTERM);
    eventually("the last process removes its file", SOON, || !kept.exists());
}

#[test]
fn an_admin_port_and_the_service_manager_move_on_to_the_new_process() {
    let directory = tempfile::tempdir().unwrap();
    let notify = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hears = |line: &str| loop {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap_or_else(|e| panic!("waiting for {line}: {e}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.lines().any(|l| l.starts_with(line)) {
            return message;
        }
    };
    let (port, _reserved) = reserved_port();
    let toml = format!("[admin]\nlisten = \"{port}\"\n{}", version("one"));
    let environment = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("WATCHDOG_USEC", "2000000")];
    let mut gateway = Gateway::start_with_environment(&toml, &environment);
    hears("READY=1");
    let before = pid(&gateway);
    let said = upgrade(&gateway).unwrap();
    let successors = Successors::of(&gateway);
    let next = successors.pid().unwrap();
    assert!(said.contains(&next.to_string()) && said.contains(&before.to_string()), "{said}");
    assert_eq!(hears("MAINPID="), format!("MAINPID={next}\nREADY=1\n"));
    assert!(hears("STATUS=").contains("READY=1"), "the new process speaks for itself");
    hears("WATCHDOG=1");
    assert!(gateway.wait_exit(SOON).success());
    assert!(gateway.ready());
}

#[test]
fn http2_connections_move_over_by_goaway() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";
    let mut gateway = Gateway::start(&(server() + listener + &everything_to(&[&origin], "")));
    let address = gateway.http();
    runtime().block_on(async {
        let client = H2Client::plain(address).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        origin.answer(Answer::Delay(Duration::from_secs(3)));
        let request = http::Request::get("http://localhost/slow").body(()).unwrap();
        let (response, _) = client.sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        tokio::task::block_in_place(|| {
            eventually("the request is under way", SOON, || origin.count() == 2);
            upgrade(&gateway).unwrap();
        });
        let answer = crate::support::h2::answer(response.await.unwrap()).await.unwrap();
        assert_eq!(answer.status, 200, "finished by the process that began it");
        assert!(client.ended().await.is_ok(), "not by a GOAWAY without error");
        origin.answer(Answer::Echo);
        let next = H2Client::plain(address).await;
        assert_eq!(next.get("/").await.unwrap().status, 200);
    });
    let _successors = Successors::of(&gateway);
    assert!(gateway.wait_exit(SOON).success());
}
