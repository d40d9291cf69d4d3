//! A new config takes effect as one, or not at all, and no request notices.

use crate::support::gateway::{binary, run};
use crate::support::h2::H2Origin;
use crate::support::load::Plan;
use crate::support::raw::{Client, get, request, reserved_port, send};
use crate::support::tls::Authority;
use crate::support::tokens::Signer;
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, everything_to, exclusive};
use crate::upstream_tls::behind_tls;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
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
    let checked = run(&["check", "-c", gateway.config().to_str().unwrap()]);
    assert!(checked.stderr.contains("nowhere") && said.contains(checked.stderr.trim_end()), "{said}\ncheck: {}", checked.stderr);
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
fn what_needs_a_restart_is_told_of_what_is_applied_and_not_of_what_is_refused() {
    let gateway = Gateway::start(&version("one"));
    let other = "[server]\nthreads = 7\n".to_owned() + &version("two");
    let said =
        gateway.reload_with(&(other.clone() + "[routes.broken]\nmatch = {}\nupstream = \"nowhere\"\n")).expect_err("accepted");
    assert!(said.contains("nowhere") && !said.contains("server.threads"), "{said}");
    gateway.write_config(&other);
    let ended = gateway.reload();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("`server.threads` has changed"), "{ended:?}");
}

/// The verbs that ask a running gateway find its admin listener where the gateway has it from.
#[test]
fn verbs_find_the_admin_listener_in_the_configuration() {
    let gateway = Gateway::start(&version("one"));
    let config = gateway.config();
    let config = config.to_str().unwrap();
    gateway.write_config(&version("two"));
    let ended = run(&["reload", "-c", config]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(get(gateway.http(), "/version").text(), "two");
    // Each of them has been understood by the gateway.
    assert_eq!(run(&["limit", "-c", config, "top"]).code, Some(0));
    for (verb, said) in [
        (&["purge", "--all", "-c", config][..], "no route of this gateway has a cache"),
        (&["drain", "nowhere", "127.0.0.1:1", "-c", config], "there is no upstream"),
    ] {
        let ended = run(verb);
        assert!(ended.code == Some(1) && ended.stderr.contains(said), "{verb:?}: {ended:?}");
    }
    // What is wrong elsewhere is for the gateway to say.
    gateway.write_config(&(version("three") + "[routes.broken]\nupstream = \"nowhere\"\n"));
    let ended = run(&["reload", "-c", config]);
    assert!(ended.code == Some(1) && ended.stderr.contains("the running configuration stays"), "{ended:?}");
    std::fs::write(config, "[admin]\nlisten = 9901\n").unwrap();
    let ended = run(&["reload", "-c", config]);
    assert!(ended.code == Some(1) && ended.stderr.contains("mend this, or use --admin"), "{ended:?}");
    assert_eq!(run(&["reload", "-c", config, "--admin", &gateway.admin.argument()]).code, Some(2), "both");
    let mut command = std::process::Command::new(binary());
    let output = command.args(["limit", "top"]).env("GATEWRIGHT_ADMIN", gateway.admin.argument()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
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
fn nothing_is_watched_unless_it_is_asked_for() {
    let gateway = Gateway::start(&version("one"));
    let watching = Gateway::start(&("[server]\nwatch = true\n".to_owned() + &version("0")));
    gateway.write_config(&version("two"));
    // Written later, and seen: whoever watches would have seen the first long before the last of these.
    for round in ["1", "2", "3"] {
        watching.write_config(&("[server]\nwatch = true\n".to_owned() + &version(round)));
        eventually("the next configuration", SOON, || get(watching.http(), "/version").text() == round);
    }
    assert_eq!(get(gateway.http(), "/version").text(), "one");
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "success")]), 0.0);
}

/// Files and whole directories that includes match come and go, and what is written in several steps is read when it is whole.
#[test]
fn watch_mode_sees_files_and_directories_that_come_and_go() {
    let toml = "[server]\nwatch = true\ninclude = [\"conf.d/*.toml\", \"later/deep/*.toml\"]\n";
    let gateway = Gateway::try_start_with(toml, |directory| std::fs::create_dir(directory.join("conf.d")).unwrap()).unwrap();
    let root = gateway.config().parent().unwrap().to_owned();
    let route = |name: &str| {
        format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nfilters = [{{ respond = {{ body = \"{name}\" }} }}]\n")
    };
    let answers = |name: &str, status| {
        eventually(&format!("/{name} answers {status}"), SOON, || get(gateway.http(), &format!("/{name}")).status == status);
    };
    for round in ["one", "two"] {
        std::fs::write(root.join("conf.d/new.toml"), route(round)).unwrap();
        answers(round, 200);
        std::fs::remove_file(root.join("conf.d/new.toml")).unwrap();
        answers(round, 404);
    }
    // Twice: a directory that was removed takes its watch with it.
    for round in ["three", "four"] {
        std::fs::create_dir_all(root.join("later/deep")).unwrap();
        std::fs::write(root.join("later/deep/a.toml"), route(round)).unwrap();
        answers(round, 200);
        std::fs::remove_dir_all(root.join("later")).unwrap();
        answers(round, 404);
    }
    // A deployment of many files in pieces, none of which is valid by itself until its end.
    let refused = gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]);
    let text = route("five") + &"# a comment\n".repeat(100);
    for number in 0..20 {
        let path = root.join(format!("conf.d/{number}.toml"));
        std::fs::write(&path, "[routes.").unwrap();
        std::fs::write(&path, text.replace("five", &format!("five-{number}"))).unwrap();
    }
    answers("five-19", 200);
    assert_eq!(gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]), refused, "it was read half done");
}

/// As Kubernetes mounts a ConfigMap: the file is a link into a directory that is a link, and only that one is exchanged. And a
/// deployment by a link to the release.
#[test]
fn watch_mode_sees_links_on_the_way_to_a_file_change() {
    let releases = tempfile::tempdir().unwrap();
    let root = releases.path();
    let toml = |text: &str, more: &str| {
        format!("[server]\nwatch = true\n{more}[listeners.http]\naddress = \"127.0.0.1:0\"\n{}", version(text))
    };
    let release = |name: &str, text: &str| {
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("routes.toml"), version(text)).unwrap();
    };
    let exchange = |link: &str, to: &str| {
        std::os::unix::fs::symlink(to, root.join("next")).unwrap();
        std::fs::rename(root.join("next"), root.join(link)).unwrap();
    };
    release("..1", "one");
    exchange("..data", "..1");
    std::os::unix::fs::symlink("..data/routes.toml", root.join("routes.toml")).unwrap();
    std::os::unix::fs::symlink(root, root.join("current")).unwrap();
    for file in ["routes.toml", "current/routes.toml"] {
        let include = format!("include = [\"{}\"]\n", root.join(file).display());
        let gateway = Gateway::start(&toml("x", &include).replace(&version("x"), ""));
        let answers = |text: &str| eventually(text, SOON, || get(gateway.http(), "/version").text() == text);
        answers("one");
        release("..2", "two");
        exchange("..data", "..2");
        answers("two");
        release("..3", "three");
        exchange("..data", "..3");
        answers("three");
        exchange("..data", "..1");
        answers("one");
        for name in ["..2", "..3"] {
            std::fs::remove_dir_all(root.join(name)).unwrap();
        }
    }
}

/// What is read for the configuration is watched as it is: keys and secrets beside certificates.
#[test]
fn watch_mode_sees_keys_and_secrets_change() {
    let signers = ["first-secret-0123456789abcdef0123", "other-secret-0123456789abcdef0123"]
        .map(|secret| (secret, Signer::hs256("k", secret.as_bytes())));
    let origin = Origin::start("a");
    let toml = format!(
        "[server]\nwatch = true\n[jwt.main]\nalgorithms = [\"HS256\"]\nsecret = {{ file = \"keys/secret\" }}\nrequire_expiry = false\n{}\
         filters = [{{ jwt = {{ issuer = \"main\" }} }}, {{ request_headers = {{ set = {{ x-key = {{ file = \"keys/backend\" }} }} }} }}]\n",
        everything_to(&[&origin], "")
    );
    let gateway = Gateway::try_start_with(&toml, |directory| {
        std::fs::create_dir(directory.join("keys")).unwrap();
        std::fs::write(directory.join("keys/secret"), signers[0].0).unwrap();
        std::fs::write(directory.join("keys/backend"), "first").unwrap();
    })
    .unwrap();
    let keys = gateway.config().parent().unwrap().join("keys");
    let ask = |signer: &Signer| {
        let token = format!("Bearer {}", signer.token(&serde_json::json!({ "sub": "a" })));
        send(gateway.http(), "GET", "/", &[("authorization", &token)], b"").status
    };
    assert_eq!((ask(&signers[0].1), ask(&signers[1].1)), (200, 401));
    std::fs::write(keys.join("next"), signers[1].0).unwrap();
    std::fs::rename(keys.join("next"), keys.join("secret")).unwrap();
    eventually("the new secret counts", SOON, || ask(&signers[1].1) == 200);
    assert_eq!(ask(&signers[0].1), 401);
    std::fs::write(keys.join("backend"), "second").unwrap();
    eventually("the new header is sent", SOON, || {
        ask(&signers[1].1);
        origin.last().header("x-key").as_deref() == Some("second")
    });
}

/// Files that only a refused configuration has read are watched too, whoever asked for it: to mend one of them is enough.
#[test]
fn watch_mode_sees_what_mends_a_refused_configuration() {
    let watch = "[server]\nwatch = true\n";
    let gateway = Gateway::start(&(watch.to_owned() + &version("one")));
    let secrets = gateway.config().parent().unwrap().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let keyed = |key: &str, version: &str| {
        let filters = format!(
            "filters = [{{ response_headers = {{ set = {{ x-key = {{ file = \"secrets/{key}\" }} }} }} }}, {{ respond = {{ body = \"{version}\" }} }}]"
        );
        format!("{watch}[routes.all]\nmatch = {{ path = \"/version\" }}\n{filters}\n")
    };
    let refused = || gateway.metric("gatewright_config_reloads_total", &[("result", "failure")]);
    let answered = |text: &str| eventually(&format!("{text} runs"), SOON, || get(gateway.http(), "/version").text() == text);
    // Noticed by the watch, and its directory is not known to what runs.
    gateway.write_config(&keyed("two", "two"));
    eventually("the refusal", SOON, || refused() > 0.0);
    std::fs::write(secrets.join("two"), "a secret").unwrap();
    answered("two");
    std::fs::remove_dir_all(&secrets).unwrap();
    // Asked for by somebody else, before the watch has had its turn or after it.
    let told = gateway.reload_with(&keyed("three", "three")).unwrap_err();
    assert!(told.contains("secrets/three"), "{told}");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("three"), "a secret").unwrap();
    answered("three");
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

/// An idle connection to an endpoint is used again after reloads, whatever it speaks.
#[test]
fn connections_to_upstreams_survive_reloads() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    let tls = "tls = { sni = \"orders.internal\", ca = \"ca.pem\" }\n";
    let (plain, secure) = (Origin::start("plain"), Origin::start("secure"));
    let (plain_h2, secure_h2) = (H2Origin::plain(), H2Origin::secure(&pair, None));
    let in_front = behind_tls(secure.address(), (*pair.server()).clone());
    let of_h2 = |origin: &H2Origin| origin.seen.connections.load(Ordering::SeqCst);
    let cases: [(&str, SocketAddr, &str, &dyn Fn() -> usize); 4] = [
        ("http1", plain.address(), "", &|| plain.connections()),
        ("http1", in_front, tls, &|| secure.connections()),
        ("h2c", plain_h2.address, "", &|| of_h2(&plain_h2)),
        ("h2", secure_h2.address, tls, &|| of_h2(&secure_h2)),
    ];
    for (protocol, address, tls, connections) in cases {
        let app = format!(
            "[upstreams.app]\nendpoints = [\"{address}\"]\nprotocol = \"{protocol}\"\n{tls}\
             [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
        );
        let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
        let gateway = Gateway::try_start_with(&(app.clone() + &version("0")), write).unwrap();
        // All on one connection of the client: the next of its requests is read when the last has given back what it used.
        let mut client = Client::connect(gateway.http());
        let mut ask = |target: &str| client.exchange(request("GET", target, &[], b"")).unwrap();
        for round in 1..4 {
            assert_eq!(ask("/").status, 200, "{protocol} {tls}");
            assert_eq!(connections(), 1, "{protocol} {tls}, reload {round}");
            // Another route first, and then another policy of the upstream itself.
            let timeouts = if round < 3 { "" } else { "timeouts = { read = \"9s\" }\n" };
            let changed = app.replace("[routes.all]", &format!("{timeouts}[routes.all]"));
            gateway.reload_with(&(changed + &version(&round.to_string()))).unwrap();
            assert_eq!(ask("/version").text(), round.to_string());
        }
        assert_eq!((ask("/").status, connections()), (200, 1), "{protocol} {tls}");
    }
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
    let (port, _reserved) = reserved_port();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("g.sock");
    let toml = |name: &str| {
        let unix = format!("[listeners.{name}-unix]\naddress = \"unix:{}\"\n", socket.display());
        format!("[listeners.{name}]\naddress = \"{port}\"\n{unix}{}", everything_to(&[&origin], ""))
    };
    let gateway = Gateway::start(&toml("before"));
    let pause = Duration::from_millis(4);
    // POSTs cannot be repeated: none may meet a connection that is closed while it is on its way.
    let loads =
        ["GET", "POST"].map(|method| Load::start(Plan { address: port, connections: 3, method, target: "/load".into(), pause }));
    let go_on = |more: usize| {
        for load in &loads {
            let more = load.ok() + more;
            eventually("load goes on", SOON, || load.ok() >= more);
        }
    };
    go_on(20);
    for name in ["after", "again", "once", "more", "last"] {
        gateway.reload_with(&toml(name)).unwrap();
        assert_eq!(gateway.address(name), port);
        go_on(20);
    }
    for load in loads {
        load.finish().assert_clean(100);
    }
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "the file of the socket is gone");
}
