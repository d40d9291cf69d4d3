//! Listeners that change with a reload: their address, TLS and HTTP/2; and which addresses one takes.

use crate::cache::{ok, threaded};
use crate::support::gateway;
use crate::support::h2::{self, H2Client};
use crate::support::raw::{Client, get, request, reserved_port, send};
use crate::support::tls::Authority;
use crate::support::{Answer, Gate, Gateway, Origin, SOON, eventually, everything_to, runtime};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn listener(address: SocketAddr, more: &str) -> String {
    format!("[listeners.http]\naddress = \"{address}\"\n{more}\n")
}

#[test]
fn a_listener_moves_to_another_address_and_finishes_what_it_has() {
    let origin = Origin::start("a");
    let ((first, _first), (second, _second)) = (reserved_port(), reserved_port());
    let toml = |address| "[server]\ngrace_period = \"4s\"\n".to_owned() + &listener(address, "") + &everything_to(&[&origin], "");
    let gateway = Gateway::start(&toml(first));
    let mut idle = [(); 2].map(|()| Client::connect(first));
    for client in &mut idle {
        assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    }
    origin.answer(Answer::Delay(Duration::from_secs(2)));
    let mut busy = Client::connect(first);
    busy.send(request("GET", "/slow", &[], b""));
    eventually("the request is under way", SOON, || origin.count() == 3);
    gateway.reload_with(&toml(second)).unwrap();
    assert_eq!(gateway.http(), second);
    // What was begun is answered, and says that it was the last.
    let answer = busy.response();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(busy.closes_within(SOON));
    origin.answer(Answer::Echo);
    // What comes on a connection that was idle is answered too; after the grace period none is left.
    let [mut late, mut idle] = idle;
    let answer = late.exchange(request("POST", "/", &[], b"late")).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(late.closes_within(SOON) && idle.closes_within(SOON));
    assert_eq!(get(second, "/").status, 200);
    eventually("the old address is closed", SOON, || Client::try_connect(first).is_err());
}

#[test]
fn a_request_on_a_listener_that_goes_is_answered() {
    let origin = Origin::start("a");
    let (gate, asked) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (held, count) = (gate.clone(), Arc::clone(&asked));
    let holding = threaded(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        held.pass();
        ok("x-held: yes", b"whole")
    });
    let other = "[listeners.other]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";
    let toml = |other: &str| {
        format!(
            "[listeners.http]\naddress = \"127.0.0.1:0\"\n{other}{}[upstreams.held]\nendpoints = [\"{holding}\"]\n\
             [routes.held]\nmatch = {{ path = \"/held\" }}\nupstream = \"held\"\n",
            everything_to(&[&origin], "")
        )
    };
    let gateway = Gateway::start(&toml(other));
    let address = gateway.address("other");
    origin.answer(Answer::Drip(Duration::from_millis(5)));
    let mut client = Client::connect(address);
    client.send(request("POST", "/slow", &[], b"body"));
    let (stream, http2) = runtime().block_on(async {
        let http2 = H2Client::plain(address).await;
        let request = http::Request::get("http://localhost/held").body(()).unwrap();
        let (response, _) = http2.sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        (response, http2)
    });
    eventually("the requests are under way", SOON, || origin.count() == 1 && asked.load(Ordering::SeqCst) == 1);
    gateway.reload_with(&toml("")).unwrap();
    eventually("the listener is gone", SOON, || Client::try_connect(address).is_err());
    gate.open();
    // Over HTTP/2 the stream has its whole answer too, and a GOAWAY without error ends the connection; nothing new is taken on it.
    runtime().block_on(async {
        let answer = h2::answer(stream.await.unwrap()).await.unwrap();
        assert!(answer.status == 200 && answer.body == b"whole", "{answer:?}");
        assert!(http2.get("/late").await.is_err());
        assert!(http2.ended().await.is_ok(), "not by a GOAWAY without error");
    });
    let answer = client.response();
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with('}'), "{}", answer.text());
    // Its head was sent before, and said that the connection stays: there is one more.
    origin.answer(Answer::Echo);
    let last = client.exchange(request("POST", "/last", &[], b"body")).unwrap();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(client.closes_within(SOON));
    assert_eq!((origin.count(), asked.load(Ordering::SeqCst)), (2, 1));
}

#[test]
fn a_listener_moves_to_an_address_that_covers_its_own_or_that_its_own_covers() {
    let origin = Origin::start("a");
    let (local, _reserved) = reserved_port();
    let port = local.port();
    let toml = |address: &str| format!("[listeners.http]\naddress = \"{address}:{port}\"\n{}", everything_to(&[&origin], ""));
    let gateway = Gateway::start(&toml("127.0.0.1"));
    let other = SocketAddr::from(([127, 0, 0, 2], port));
    for (address, covers_other) in [("0.0.0.0", true), ("[::]", true), ("127.0.0.1", false), ("[::]", true), ("127.0.0.1", false)]
    {
        gateway.reload_with(&toml(address)).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(get(local, "/").status, 200, "{address}");
        eventually("only the new address accepts", SOON, || Client::try_connect(other).is_ok() == covers_other);
    }
    // What is wrong otherwise leaves everything as it was.
    let taken = Origin::start("b");
    let wrong = format!("{}[listeners.busy]\naddress = \"{}\"\n", toml("0.0.0.0"), taken.address());
    assert!(gateway.reload_with(&wrong).unwrap_err().contains("in use by another process"));
    assert!(get(local, "/").status == 200 && Client::try_connect(other).is_err());
    // Nobody else shares the port, before or after.
    let second = Gateway::try_start_with(&toml("127.0.0.1"), |_| {}).err().expect("two gateways on one port");
    assert!(second.code == Some(1) && second.stderr.contains("in use by another process"), "{second:?}");
    // An upgrade moves as well.
    gateway.write_config(&toml("0.0.0.0"));
    let upgraded = gateway::run(&["upgrade", "--admin", &gateway.admin.argument()]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let next = gateway.status()["pid"].as_i64().unwrap();
    eventually("the new address accepts", SOON, || Client::try_connect(other).is_ok());
    assert_eq!(get(local, "/").status, 200);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(next as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn tls_and_http2_come_and_go_on_one_port() {
    let (origin, authority) = (Origin::start("a"), Authority::new());
    let (address, _reserved) = reserved_port();
    let tls = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }] }";
    let toml = |more: &str| listener(address, more) + &everything_to(&[&origin], "");
    let gateway = Gateway::try_start_with(&toml(""), |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let secure = || {
        let mut client = authority.trusting().connect(address, "localhost").ok()?;
        Some(client.exchange(request("GET", "/", &[], b"")).ok()?.status)
    };
    let http2 =
        || runtime().block_on(async { H2Client::plain(address).await.get("/").await.is_ok_and(|answer| answer.status == 200) });
    let mut plain = Client::connect(address);
    assert_eq!(plain.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    assert_eq!(secure(), None);

    gateway.reload_with(&toml(tls)).unwrap();
    assert_eq!(secure(), Some(200));
    assert_ne!(Client::connect(address).exchange(request("GET", "/", &[], b"")).map_or(0, |answer| answer.status), 200);
    // A connection stays what it was.
    assert_eq!(plain.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);

    gateway.reload_with(&toml(&format!("{tls}\nhttp2 = true"))).unwrap();
    runtime().block_on(async {
        let client = H2Client::secure(address, &authority.trusting()).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
    });
    gateway.reload_with(&toml("http2 = \"cleartext\"")).unwrap();
    assert_eq!(secure(), None);
    assert!(http2() && get(address, "/").status == 200);
    gateway.reload_with(&toml("")).unwrap();
    assert!(!http2());
    assert_eq!(get(address, "/").status, 200);
    assert_eq!(gateway.http(), address);
}

/// `[::]` takes both families, and a client of IPv4 is one of IPv4 everywhere.
#[test]
fn a_listener_on_everything_takes_both_families() {
    let origin = Origin::start("a");
    let toml = "[server]\ntrusted_proxies = [\"127.0.0.1/32\"]\n[listeners.http]\naddress = \"[::]:0\"\nmax_connections_per_address = 2\n"
        .to_owned()
        + &everything_to(&[&origin], "");
    let gateway = Gateway::start(&toml);
    let port = gateway.http().port();
    let (v4, v6) = (SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    // From a trusted proxy of IPv4, and from somebody else.
    let told = [("x-forwarded-for", "203.0.113.9")];
    assert_eq!(send(v4, "GET", "/v4", &told, b"").status, 200);
    assert_eq!(origin.last().header("x-forwarded-for").as_deref(), Some("203.0.113.9, 127.0.0.1"));
    assert_eq!(send(v6, "GET", "/v6", &told, b"").status, 200);
    assert_eq!(origin.last().header("x-forwarded-for").as_deref(), Some("::1"));
    assert_eq!(gateway.logged("over IPv4", |line| line["path"] == "/v4")["client"], "203.0.113.9");
    assert_eq!(gateway.logged("over IPv6", |line| line["path"] == "/v6")["client"], "::1");
    eventually("those are gone", SOON, || {
        gateway.metric("gatewright_listener_connections_active", &[("listener", "http")]) == 0.0
    });
    // The bound for each address counts them apart.
    for address in [v4, v6] {
        let mut held: Vec<Client> = (0..2).map(|_| Client::connect(address)).collect();
        for client in &mut held {
            assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200, "{address}");
        }
        assert!(Client::connect(address).closes_within(SOON), "{address}");
    }
}

#[test]
fn workers_that_steal_from_each_other_serve_as_well() {
    let origins = Origin::start_many(2);
    let everything = everything_to(&origins.iter().collect::<Vec<_>>(), "");
    let gateway = Gateway::start(&("[server]\nthreads = 3\nwork_stealing = true\n".to_owned() + &everything));
    let address = gateway.http();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                for _ in 0..50 {
                    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(origins.iter().map(Origin::count).sum::<usize>(), 800);
}

/// Each has a runtime of its own. Four connections that come one after the other are one for each of four workers, whoever of them
/// was woken.
#[test]
fn connections_are_spread_over_the_workers_one_by_one() {
    let listener = "[server]\nthreads = 4\n[listeners.http]\naddress = \"127.0.0.1:0\"\n";
    let hello = "[routes.hello]\nmatch = { path = \"/hello\" }\nfilters = [{ respond = { body = \"hello\" } }]\n";
    let gateway = Gateway::start(&(listener.to_owned() + hello));
    let (address, process) = (gateway.http(), gateway.status()["pid"].as_u64().unwrap());
    // What each of its threads has worked so far, in nanoseconds.
    let worked = || -> Vec<u64> {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|entry| entry.unwrap().path());
        let workers =
            threads.filter(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "edge"));
        let time = |thread: std::path::PathBuf| {
            let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse().unwrap()
        };
        workers.map(time).collect()
    };
    let ask = |client: &mut Client| {
        for _ in 0..500 {
            assert_eq!(client.exchange(request("GET", "/hello", &[], b"")).unwrap().status, 200);
        }
    };
    let greeted = |mut client: Client| {
        assert_eq!(client.exchange(request("GET", "/hello", &[], b"")).unwrap().status, 200);
        client
    };
    let mut clients: Vec<Client> = (0..4).map(|_| greeted(Client::connect(address))).collect();
    let before = worked();
    assert_eq!(before.len(), 4, "workers of the edge");
    for client in &mut clients {
        // Each of them is the only one that is busy, so that nobody is helped by chance.
        ask(client);
    }
    let by: Vec<u64> = worked().iter().zip(before).map(|(after, before)| after - before).collect();
    let all: u64 = by.iter().sum();
    assert!(by.iter().all(|time| *time * 10 > all), "some did nothing: {by:?}");
}
