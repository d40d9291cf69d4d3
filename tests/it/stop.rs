//! Starting and stopping: exit codes, readiness, requests under way.

use crate::support::gateway::run;
use crate::support::raw::{Client, get, request};
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to};
use std::time::{Duration, Instant};

#[test]
fn sigterm_finishes_requests_under_way_and_exits_0() {
    let origin = Origin::start("a");
    origin.answer(Answer::Delay(Duration::from_secs(2)));
    let mut gateway = Gateway::start(&everything_to(&[&origin], ""));
    let address = gateway.http();
    let mut client = Client::connect(address);
    client.send(request("GET", "/", &[], b""));
    eventually("the request is under way", SOON, || origin.count() == 1);
    gateway.sigterm();
    let response = client.response();
    assert_eq!((response.status, response.keep_alive), (200, false), "answered, and told that the connection closes");
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
    assert!(Client::try_connect(address).is_err());
}

#[test]
fn readiness_goes_off_first_and_requests_are_still_accepted() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&("[server]\ndrain_delay = \"5s\"\n".to_owned() + &everything_to(&[&origin], "")));
    let address = gateway.http();
    gateway.sigterm();
    eventually("not ready", SOON, || gateway.admin.exchange("GET", "/readyz").is_ok_and(|r| r.status == 503));
    assert_eq!(gateway.admin.get("/livez").status, 200);
    assert_eq!(get(address, "/").status, 200);
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
}

#[test]
fn idle_gateway_stops_at_once() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&("[server]\ngrace_period = \"1m\"\n".to_owned() + &everything_to(&[&origin], "")));
    let mut idle = Client::connect(gateway.http());
    assert_eq!(idle.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    let started = Instant::now();
    gateway.sigterm();
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(idle.closes_within(SOON));
}

#[test]
fn second_signal_ends_at_once() {
    let origin = Origin::start("a");
    origin.answer(Answer::BlackHole);
    let mut gateway = Gateway::start(&("[server]\ngrace_period = \"10m\"\n".to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    client.send(request("GET", "/", &[], b""));
    eventually("the request is under way", SOON, || origin.count() == 1);
    gateway.sigterm();
    eventually("not ready", SOON, || !gateway.ready());
    assert!(gateway.runs());
    gateway.sigterm();
    gateway.wait_exit(SOON);
}

#[test]
fn grace_period_ends_what_does_not_finish() {
    let origin = Origin::start("a");
    origin.answer(Answer::BlackHole);
    let mut gateway = Gateway::start(&("[server]\ngrace_period = \"1s\"\n".to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    client.send(request("GET", "/", &[], b""));
    eventually("the request is under way", SOON, || origin.count() == 1);
    let started = Instant::now();
    gateway.sigterm();
    gateway.wait_exit(SOON);
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn taken_port_is_a_clear_error_and_exit_1() {
    let taken = Origin::start("a");
    let listener = format!("[listeners.http]\naddress = \"{}\"\n", taken.address());
    let ended = Gateway::try_start(&(listener + &everything_to(&[&taken], ""))).err().expect("started on a taken port");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&taken.address().to_string()), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn wrong_config_is_exit_78_and_the_whole_list() {
    let wrong = "[routes.a]\nmatch = { path = \"/a\" }\nupstream = \"nowhere\"\n\
                 [routes.b]\nmatch = { path = \"/b\" }\nupstream = \"elsewhere\"\n";
    let ended = Gateway::try_start(wrong).err().expect("started");
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("nowhere") && ended.stderr.contains("elsewhere"), "{}", ended.stderr);
}

#[test]
fn files_that_are_no_config_are_clear_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("binary.toml"), [0, 159, 146, 150, 255]).unwrap();
    // Sparse: large without taking space.
    std::fs::File::create(path("large.toml")).unwrap().set_len(100 << 20).unwrap();
    for file in ["binary.toml", "large.toml", "absent.toml"] {
        let ended = run(&["check", "-c", &path(file)]);
        assert_eq!(ended.code, Some(78), "{file}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(file) && !said.contains("panicked") && said.len() < 4096, "{file}: {said}");
    }
}
