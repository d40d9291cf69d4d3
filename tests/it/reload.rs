//! A new config takes effect as one, or not at all, and no request notices.

use crate::support::load::Plan;
use crate::support::raw::{Client, get, request};
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, everything_to, exclusive};
use std::time::{Duration, Instant};

const HEALTH: &str = "health = { path = \"/health\", interval = \"200ms\", timeout = \"190ms\", rise = 2, fall = 3 }";

/// A route `/version` that answers with this text.
fn version(text: &str) -> String {
    format!(
        "\n[routes.version]\nmatch = {{ path = \"/version\" }}\nfilters = [{{ respond = {{ status = 200, body = \"{text}\" }} }}]\n"
    )
}

#[test]
fn reload_takes_a_new_config() {
    let gateway = Gateway::start(&version("one"));
    let before = gateway.status()["config_hash"].clone();
    assert_eq!(get(gateway.http(), "/version").text(), "one");
    gateway.reload_with(&version("two")).unwrap();
    assert_eq!(get(gateway.http(), "/version").text(), "two");
    assert_ne!(gateway.status()["config_hash"], before);
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "success")]), 1.0);
}

#[test]
fn refused_reload_exits_non_zero_with_diagnostics_and_keeps_the_old_config() {
    let gateway = Gateway::start(&version("one"));
    let before = gateway.status()["config_hash"].clone();
    let wrong = version("two") + "[routes.broken]\nmatch = { path = \"/b\" }\nupstream = \"nowhere\"\n";
    let said = gateway.reload_with(&wrong).expect_err("accepted");
    for part in ["nowhere", "gatewright.toml", "upstream"] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert_eq!(get(gateway.http(), "/version").text(), "one");
    let status = gateway.status();
    assert_eq!(status["config_hash"], before);
    assert_eq!(status["last_reload"]["result"], "refused");
    assert!(status["last_reload"].to_string().contains("nowhere"), "{status}");
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]), 1.0);
    assert_eq!(gateway.metric("gatewright_config_last_reload_successful", &[]), 0.0);

    std::fs::write(gateway.config(), &wrong[..wrong.len() / 2]).unwrap();
    assert_ne!(gateway.reload().code, Some(0), "a half-written file");
    std::fs::remove_file(gateway.config()).unwrap();
    assert_ne!(gateway.reload().code, Some(0), "no file");
    assert_eq!(get(gateway.http(), "/version").text(), "one");

    gateway.reload_with(&version("three")).unwrap();
    assert_eq!(get(gateway.http(), "/version").text(), "three");
    assert_eq!(gateway.metric("gatewright_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn sighup_reloads() {
    let gateway = Gateway::start(&version("one"));
    gateway.write_config(&version("two"));
    gateway.sighup();
    eventually("the new config", SOON, || get(gateway.http(), "/version").text() == "two");
    gateway.write_config("[routes.x]\nunknown = 1\n");
    gateway.sighup();
    let failed = || gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]) == 1.0;
    eventually("the refusal", SOON, failed);
    assert_eq!(get(gateway.http(), "/version").text(), "two");
}

#[test]
fn watch_mode_reloads_when_the_file_is_replaced() {
    let watch = "[server]\nwatch = true\n";
    let gateway = Gateway::start(&(watch.to_owned() + &version("one")));
    gateway.write_config(&(watch.to_owned() + &version("two")));
    eventually("the new config", SOON, || get(gateway.http(), "/version").text() == "two");
}

#[test]
fn request_runs_on_the_snapshot_that_it_began_with() {
    let origin = Origin::start("a");
    let toml = |version: &str| {
        let filters = format!("filters = [{{ response_headers = {{ set = {{ x-version = \"{version}\" }} }} }}]\n");
        everything_to(&[&origin], "") + &filters
    };
    let gateway = Gateway::start(&toml("one"));
    origin.answer(Answer::Delay(Duration::from_secs(1)));
    let mut client = Client::connect(gateway.http());
    client.send(request("GET", "/", &[], b""));
    eventually("the request is under way", SOON, || origin.count() == 1);
    gateway.reload_with(&toml("two")).unwrap();
    assert_eq!(client.response().header("x-version"), Some("one"));
    origin.answer(Answer::Echo);
    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().header("x-version"), Some("two"));
}

#[test]
fn listeners_come_and_go_with_reloads() {
    let http = "[listeners.http]\naddress = \"127.0.0.1:0\"\n";
    let other = "[listeners.other]\naddress = \"127.0.0.1:0\"\n";
    let gateway = Gateway::start(&format!("{http}{}", version("one")));
    let before = gateway.http();
    gateway.reload_with(&format!("{http}{other}{}", version("two"))).unwrap();
    assert_eq!(gateway.http(), before, "an unchanged listener keeps its port");
    let added = gateway.address("other");
    assert_eq!(get(added, "/version").text(), "two");
    gateway.reload_with(&format!("{http}{}", version("three"))).unwrap();
    eventually("the removed listener is closed", SOON, || Client::try_connect(added).is_err());
    assert_eq!(get(before, "/version").text(), "three");

    let taken = Origin::start("a");
    let busy = format!("{http}[listeners.busy]\naddress = \"{}\"\n{}", taken.address(), version("four"));
    let said = gateway.reload_with(&busy).expect_err("bound a port that is taken");
    assert!(said.contains(&taken.address().to_string()), "{said}");
    assert_eq!(get(before, "/version").text(), "three");
}

#[test]
fn two_hundred_reloads_under_load_fail_no_request_and_keep_counters_and_health() {
    let _machine = exclusive();
    let origins = Origin::start_many(3);
    let app = everything_to(&[&origins[0], &origins[1], &origins[2]], HEALTH);
    origins[2].set_healthy(false);
    let gateway = Gateway::start(&(app.clone() + &version("0")));
    gateway.wait_healthy(origins[2].address(), false);
    let unhealthy_saw = origins[2].count();

    let address = gateway.http();
    let pause = Duration::from_millis(5);
    let gets = Load::start(Plan { address, connections: 3, method: "GET", target: "/load".into(), pause });
    let posts = Load::start(Plan { address, connections: 2, method: "POST", target: "/load".into(), pause });
    eventually("load", SOON, || gets.ok() > 20 && posts.ok() > 20);

    let started = Instant::now();
    let mut last = 0;
    for n in 1..=200_u32 {
        let invalid = n % 5 == 0;
        if invalid {
            gateway.write_config(&format!("{app}{}\n[routes.broken]\nupstream = \"app\"\n", version(&n.to_string())));
        } else {
            last = n;
            gateway.write_config(&format!("{app}{}", version(&n.to_string())));
        }
        let answer = gateway.admin.exchange("POST", "/reload").unwrap();
        assert_eq!(answer.status, if invalid { 422 } else { 200 }, "reload {n}: {}", answer.text());
        assert_eq!(get(address, "/version").text(), last.to_string(), "after reload {n}");
        // Five a second leave the load time to notice; sooner or later all 200 fit into the minute.
        std::thread::sleep((started + Duration::from_millis(200) * n).saturating_duration_since(Instant::now()));
    }
    let took = started.elapsed();
    let (gets, posts) = (gets.finish(), posts.finish());
    gets.assert_clean(500);
    posts.assert_clean(300);
    assert!(took < Duration::from_secs(60), "200 reloads took {took:?}");

    let seen: Vec<_> = origins.iter().map(Origin::ids).collect();
    let times = |id: &String| seen.iter().filter_map(|ids| ids.get(id)).sum::<usize>();
    let odd: Vec<_> = posts.ids.iter().filter(|id| times(id) != 1).collect();
    assert!(odd.is_empty(), "POSTs that were lost or repeated: {odd:?}");

    let counted = || gateway.metric("gatewright_http_requests_total", &[("route", "all")]) as usize;
    eventually("the last request is counted", SOON, || counted() >= gets.ok + posts.ok);
    assert_eq!(counted(), gets.ok + posts.ok, "counters restarted or counted twice");
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "success")]), 160.0);
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]), 40.0);
    assert_eq!(origins[2].count(), unhealthy_saw, "a reload forgot that c is unhealthy");
    assert_eq!(gateway.endpoint(origins[2].address())["healthy"], false);
}

#[test]
fn a_hundred_reloads_that_add_and_remove_listeners_fail_no_request_on_the_others() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let app = "[listeners.http]\naddress = \"127.0.0.1:0\"\n".to_owned() + &everything_to(&[&origin], "");
    let gateway = Gateway::start(&app);
    let address = gateway.http();
    let pause = Duration::from_millis(4);
    let gets = Load::start(Plan { address, connections: 3, method: "GET", target: "/load".into(), pause });
    let posts = Load::start(Plan { address, connections: 2, method: "POST", target: "/load".into(), pause });
    eventually("load", SOON, || gets.ok() > 20 && posts.ok() > 20);
    for round in 1..=100 {
        // Up to three others: a new one, one whose bounds change, and one that goes.
        let others: String = (round..round + round % 4)
            .map(|n| format!("[listeners.other-{n}]\naddress = \"127.0.0.1:0\"\nmax_connections = {}\n", 100 + round))
            .collect();
        gateway.write_config(&(app.clone() + &others));
        let answer = gateway.admin.exchange("POST", "/reload").unwrap();
        assert_eq!(answer.status, 200, "reload {round}: {}", answer.text());
        let listeners = gateway.status()["listeners"].as_array().unwrap().len();
        assert_eq!(listeners, 1 + round % 4, "after reload {round}");
        if round % 4 == 3 {
            let other = gateway.address(&format!("other-{}", round + 2));
            assert_eq!(get(other, "/").status, 200, "a listener of reload {round}");
        }
        let (more_gets, more_posts) = (gets.ok() + 3, posts.ok() + 2);
        eventually("load goes on", SOON, || gets.ok() >= more_gets && posts.ok() >= more_posts);
    }
    gets.finish().assert_clean(300);
    posts.finish().assert_clean(200);
    assert_eq!(gateway.http(), address);
}

#[test]
fn a_listener_may_change_its_name_and_never_closes_its_port() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("g.sock");
    let toml = |name: &str| {
        let unix = format!("[listeners.{name}-unix]\naddress = \"unix:{}\"\n", socket.display());
        format!("[listeners.{name}]\naddress = \"{port}\"\n{unix}{}", everything_to(&[&origin], ""))
    };
    let gateway = Gateway::start(&toml("before"));
    let pause = Duration::from_millis(4);
    let load = Load::start(Plan { address: port, connections: 3, method: "GET", target: "/load".into(), pause });
    eventually("load", SOON, || load.ok() > 20);
    for name in ["after", "again"] {
        gateway.reload_with(&toml(name)).unwrap();
        assert_eq!(gateway.address(name), port);
        let more = load.ok() + 20;
        eventually("load goes on", SOON, || load.ok() >= more);
    }
    // Idle connections of a listener that goes are closed, which a client may meet; none is refused.
    let report = load.finish();
    assert_eq!(report.failed, 0, "{report}");
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "the file of the socket is gone");
}
