//! Ways of choosing an endpoint as a client sees them, and taking one out by hand.

use crate::support::gateway::run;
use crate::support::raw::{Client, get, request, send};
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, everything_to, upstream};
use std::collections::HashMap;
use std::time::Duration;

/// How often each origin answers.
fn spread(gateway: &Gateway, requests: usize, headers: &[(&str, &str)]) -> HashMap<String, usize> {
    let mut client = Client::connect(gateway.http());
    let mut seen = HashMap::new();
    for _ in 0..requests {
        let response = client.exchange(request("GET", "/?user=ada", headers, b"")).unwrap();
        *seen.entry(response.origin()).or_default() += 1;
    }
    seen
}

#[test]
fn a_key_goes_to_one_endpoint_wherever_it_is_written() {
    let origins = Origin::start_many(4);
    let list: Vec<&Origin> = origins.iter().collect();
    for (by, headers) in [
        ("header:x-user", vec![("x-user", "ada")]),
        ("cookie:session", vec![("cookie", "a=b; session=ada")]),
        ("query:user", vec![]),
        ("address", vec![]),
    ] {
        let gateway = Gateway::start(&everything_to(&list, &format!("balance = {{ hash = {{ by = [\"{by}\"] }} }}")));
        assert_eq!(spread(&gateway, 20, &headers).len(), 1, "{by}");
    }
    let gateway = Gateway::start(&everything_to(&list, "balance = { hash = { by = [\"header:x-user\"] } }"));
    let users: HashMap<String, usize> = (0..40).fold(HashMap::new(), |mut seen, user| {
        let response = send(gateway.http(), "GET", "/", &[("x-user", &user.to_string())], b"");
        *seen.entry(response.origin()).or_default() += 1;
        seen
    });
    assert_eq!(users.len(), 4, "{users:?}");
    assert_eq!(spread(&gateway, 20, &[]).values().collect::<Vec<_>>(), [&5; 4], "without the header in turn");
}

#[test]
fn a_consumer_keeps_its_endpoint() {
    let origins = Origin::start_many(4);
    let list: Vec<&Origin> = origins.iter().collect();
    let toml = upstream("app", &list, "balance = { hash = { by = [\"consumer\"] } }")
        + "[consumers.ada]\ncredentials = [{ api_key = { sha256 = \"fa77b83acb8e69a2d88bb458e84f3f12669bf663be47538aca66b11f0e480c4d\" } }]\n\
           [routes.all]\nmatch = {}\nupstream = \"app\"\nfilters = [{ api_key = {} }]\n";
    let gateway = Gateway::start(&toml);
    assert_eq!(spread(&gateway, 20, &[("x-api-key", "ada-key-0123456789abcdef0123456789")]).len(), 1);
}

#[test]
fn a_sticky_client_comes_back_and_moves_only_when_it_must() {
    let origins = Origin::start_many(3);
    let list: Vec<&Origin> = origins.iter().collect();
    let health = "health = { path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }";
    let toml = everything_to(
        &list,
        &format!("balance = {{ sticky = {{ secret = {{ env = \"TEST_STICKY\" }}, cookie = \"srv\" }} }}\n{health}"),
    );
    let gateway = Gateway::start_with_environment(&toml, &[("TEST_STICKY", "0123456789abcdef")]);
    let first = get(gateway.http(), "/");
    let given = first.header("set-cookie").expect("a cookie").to_owned();
    let cookie = given.split(';').next().unwrap().to_owned();
    assert!(given.contains("; HttpOnly; SameSite=Lax") && !given.contains("Secure"), "{given}");
    for _ in 0..10 {
        let again = send(gateway.http(), "GET", "/", &[("cookie", &cookie)], b"");
        assert_eq!((again.origin(), again.header("set-cookie")), (first.origin(), None));
    }
    // Another gateway with the same secret knows it, and one with another does not.
    let friend = Gateway::start_with_environment(&toml, &[("TEST_STICKY", "0123456789abcdef")]);
    assert_eq!(send(friend.http(), "GET", "/", &[("cookie", &cookie)], b"").origin(), first.origin());
    let stranger = Gateway::start_with_environment(&toml, &[("TEST_STICKY", "another-secret-0123")]);
    assert!(send(stranger.http(), "GET", "/", &[("cookie", &cookie)], b"").header("set-cookie").is_some());

    let home = origins.iter().find(|origin| origin.name() == first.origin()).unwrap();
    home.set_healthy(false);
    gateway.wait_healthy(home.address(), false);
    let moved = send(gateway.http(), "GET", "/", &[("cookie", &cookie)], b"");
    assert!(moved.origin() != first.origin() && moved.header("set-cookie").is_some());
}

#[test]
fn latency_moves_traffic_away_from_a_slow_endpoint() {
    let origins = Origin::start_many(3);
    let list: Vec<&Origin> = origins.iter().collect();
    let gateway = Gateway::start(&everything_to(&list, "balance = \"peak_ewma\""));
    origins[1].answer(Answer::Delay(Duration::from_millis(500)));
    let seen = spread(&gateway, 60, &[]);
    assert!(seen.get("b").copied().unwrap_or_default() <= 5, "{seen:?}");
}

#[test]
fn least_requests_go_around_a_busy_endpoint() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], "balance = \"least_requests\""));
    origins[0].answer(Answer::BlackHole);
    origins[1].answer(Answer::BlackHole);
    let mut held: Vec<Client> = Vec::new();
    eventually("a request at a", SOON, || {
        let mut client = Client::connect(gateway.http());
        client.send(request("GET", "/", &[], b""));
        held.push(client);
        eventually("it is under way", SOON, || origins[0].count() + origins[1].count() == held.len());
        origins[0].count() >= 1
    });
    // Whatever b holds, a holds as many at least from here on.
    origins[1].answer(Answer::Echo);
    let busy = gateway.endpoint(origins[0].address())["in_flight"].as_u64().unwrap();
    assert!(busy >= 1);
    if gateway.endpoint(origins[1].address())["in_flight"] == 0 {
        assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("b".to_owned(), 10)]));
    }
}

#[test]
fn a_client_of_two_upstreams_keeps_its_place_at_both() {
    let origins = Origin::start_many(6);
    let sticky = "balance = { sticky = { secret = { env = \"TEST_STICKY\" } } }";
    let mut toml = String::new();
    for (name, origins) in [("orders", &origins[..3]), ("users", &origins[3..])] {
        toml += &upstream(name, &origins.iter().collect::<Vec<_>>(), sticky);
        toml += &format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"{name}\"\n");
    }
    let gateway = Gateway::start_with_environment(&toml, &[("TEST_STICKY", "0123456789abcdef")]);
    let first = ["orders", "users"].map(|name| {
        let answer = get(gateway.http(), &format!("/{name}"));
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with(&format!("gatewright_endpoint_{name}=")), "{cookie}");
        (answer.origin(), cookie)
    });
    let both = format!("{}; {}", first[0].1, first[1].1);
    for _ in 0..6 {
        for (name, (origin, _)) in ["orders", "users"].iter().zip(&first) {
            let again = send(gateway.http(), "GET", &format!("/{name}"), &[("cookie", &both)], b"");
            assert_eq!((&again.origin(), again.header("set-cookie")), (origin, None), "{name}");
        }
    }
}

#[test]
fn lower_priorities_serve_when_the_first_is_gone() {
    let origins = Origin::start_many(3);
    let [a, b, c] = [0, 1, 2].map(|at| origins[at].address());
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{a}\", {{ address = \"{b}\", priority = 1 }}, {{ address = \"{c}\", priority = 2 }}]\n\
         health = {{ path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    ));
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("a".to_owned(), 10)]));
    origins[0].set_healthy(false);
    gateway.wait_healthy(a, false);
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("b".to_owned(), 10)]));
    origins[1].set_healthy(false);
    gateway.wait_healthy(b, false);
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("c".to_owned(), 10)]));
    origins[0].set_healthy(true);
    gateway.wait_healthy(a, true);
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("a".to_owned(), 10)]));
}

#[test]
fn another_zone_serves_while_the_own_one_is_gone() {
    let origins = Origin::start_many(3);
    let [a, b, c] = [0, 1, 2].map(|at| origins[at].address());
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nzone = \"east\"\nendpoints = [{{ address = \"{a}\", zone = \"west\" }}, {{ address = \"{b}\", zone = \"east\" }}, \
         {{ address = \"{c}\", zone = \"east\", priority = 1 }}]\n\
         health = {{ path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    ));
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("b".to_owned(), 10)]));
    origins[1].set_healthy(false);
    gateway.wait_healthy(b, false);
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("a".to_owned(), 10)]), "before the lower priority of the own zone");
    origins[1].set_healthy(true);
    gateway.wait_healthy(b, true);
    assert_eq!(spread(&gateway, 10, &[]), HashMap::from([("b".to_owned(), 10)]));
}

#[test]
fn a_connect_that_fails_goes_on_to_the_next_priority() {
    let origin = Origin::start("a");
    let (refusing, _port) = crate::support::raw::refusing_port();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{refusing}\", {{ address = \"{}\", priority = 1 }}]\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        origin.address()
    ));
    assert_eq!(spread(&gateway, 5, &[]), HashMap::from([("a".to_owned(), 5)]));
}

fn drain(gateway: &Gateway, verb: &str, endpoint: &str) -> crate::support::gateway::Ended {
    run(&[verb, "app", endpoint, "--admin", &gateway.admin.argument()])
}

#[test]
fn a_drained_endpoint_gets_nothing_new_until_it_is_brought_back() {
    let origins = Origin::start_many(2);
    let toml = everything_to(&[&origins[0], &origins[1]], "");
    let gateway = Gateway::start(&toml);
    let load = Load::get(gateway.http(), "/");
    eventually("load", SOON, || load.ok() > 50);
    let address = origins[0].address().to_string();
    let done = drain(&gateway, "drain", &address);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), &*format!("drained: {address} of upstream app; 1 take traffic\n")));
    assert_eq!(gateway.endpoint(origins[0].address())["drained"], true);
    assert_eq!(gateway.metric("gatewright_endpoint_drained", &[("endpoint", &address)]), 1.0);
    eventually("what is under way ends", SOON, || gateway.endpoint(origins[0].address())["in_flight"] == 0);
    let before = origins[0].count();
    // A reload that keeps the endpoint keeps it drained.
    gateway.reload_with(&toml.replace("upstream = \"app\"\n", "upstream = \"app\"\ntimeouts = { request = \"50s\" }\n")).unwrap();
    let (ok, elsewhere) = (load.ok(), origins[1].count());
    eventually("load goes on", SOON, || load.ok() > ok + 100 && origins[1].count() > elsewhere + 100);
    assert_eq!(origins[0].count(), before);
    assert_eq!(drain(&gateway, "undrain", &address).code, Some(0));
    eventually("it is back", SOON, || origins[0].count() > before + 10);
    load.finish().assert_clean(100);
}

#[test]
fn what_cannot_be_drained_is_told() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let wrong = drain(&gateway, "drain", "127.0.0.1:9");
    assert_eq!((wrong.code, wrong.stderr.as_str()), (Some(1), "error: upstream `app` has no endpoint `127.0.0.1:9`\n"));
    let wrong = run(&["drain", "ap", "x", "--admin", &gateway.admin.argument()]);
    assert_eq!((wrong.code, wrong.stderr.as_str()), (Some(1), "error: there is no upstream `ap`\n"));
    assert_eq!(gateway.admin.exchange("GET", "/drain?upstream=app&endpoint=x").unwrap().status, 405);
    assert_eq!(gateway.admin.exchange("POST", "/drain?upstream=app").unwrap().status, 400);
    let last = drain(&gateway, "drain", &origin.address().to_string());
    assert_eq!((last.code, last.stderr.as_str()), (Some(0), "warning: no endpoint of upstream app takes traffic now\n"));
    assert_eq!(get(gateway.http(), "/").code(), "upstream_unavailable");
}
