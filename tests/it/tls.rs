//! TLS on listeners: which certificate, whose client, and how certificates come and go.

use crate::support::h2::H2Client;
use crate::support::raw::{Client, get, request, send};
use crate::support::tls::Authority;
use crate::support::{Gateway, Origin, SOON, eventually, everything_to, runtime};
use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A listener `https` with these `tls` keys beside the certificates.
fn listener(certificates: &str, more: &str) -> String {
    format!("[listeners.https]\naddress = \"127.0.0.1:0\"\ntls = {{ certificates = [{certificates}]{more} }}\n")
}

const ONE: &str = "{ cert = \"a.pem\", key = \"a.key\" }";
const HELLO: &str =
    "[routes.hello]\nmatch = { path = \"/hello\" }\nfilters = [{ respond = { status = 200, body = \"hello\" } }]\n";

fn directory(gateway: &Gateway) -> PathBuf {
    gateway.config().parent().unwrap().to_owned()
}

fn hello(host: &str) -> Vec<u8> {
    request("GET", "/hello", &[("host", host)], b"")
}

#[test]
fn a_client_gets_the_certificate_for_the_name_it_asks_for() {
    let authority = Authority::new();
    let exact = authority.issue(&["a.example.com"]);
    let wildcard = authority.issue(&["*.example.com"]);
    let default = authority.issue(&["other.example", "unknown.example", "b.b.example.com"]);
    let toml = listener(
        "{ cert = \"a.pem\", key = \"a.key\" }, { cert = \"w.pem\", key = \"w.key\" }, { cert = \"d.pem\", key = \"d.key\", default = true }",
        "",
    );
    let gateway = Gateway::try_start_with(&(toml + HELLO), |directory| {
        exact.write(directory, "a");
        wildcard.write(directory, "w");
        default.write(directory, "d");
    })
    .unwrap();
    let tls = authority.trusting();
    for (name, expected) in
        [("a.example.com", &exact), ("b.example.com", &wildcard), ("b.b.example.com", &default), ("unknown.example", &default)]
    {
        let mut client = tls.connect(gateway.address("https"), name).unwrap();
        assert_eq!(client.certificate(), expected.der(), "{name}");
        let answer = client.exchange(hello(name)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{name}");
        assert_eq!(client.exchange(hello(name)).unwrap().status, 200, "{name}: the connection carries another request");
    }
}

#[test]
fn upstreams_hear_that_the_client_came_over_https() {
    let origin = Origin::start("a");
    let authority = Authority::new();
    let toml = listener(ONE, "") + &everything_to(&[&origin], "");
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let mut client = authority.trusting().connect(gateway.address("https"), "localhost").unwrap();
    let body = vec![b'x'; 300_000];
    let answer = client.exchange(request("POST", "/", &[("x-forwarded-proto", "http")], &body)).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["body"].as_str().map(str::len), Some(body.len()));
    assert_eq!(origin.requests()[0].header_all("x-forwarded-proto"), ["https"]);
}

#[test]
fn a_plain_listener_sends_everything_to_https() {
    let redirect = "[listeners.http]\naddress = \"127.0.0.1:0\"\nredirect_to_https = true\nhttps_port = 8443\n";
    let gateway = Gateway::start(&(redirect.to_owned() + HELLO));
    let answer = send(gateway.http(), "POST", "/hello?a=1", &[("host", "API.example.com:8080")], b"body");
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://api.example.com:8443/hello?a=1")));
    assert_eq!(get(gateway.http(), "/nothing/here").status, 308);
    let trusted = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    gateway.reload_with(&format!("{trusted}{redirect}{HELLO}")).unwrap();
    assert_eq!(send(gateway.http(), "GET", "/hello", &[("x-forwarded-proto", "https")], b"").status, 200);
}

#[test]
fn a_pair_that_cannot_be_used_is_refused_and_the_old_one_stays() {
    for watch in [false, true] {
        a_pair_is_refused(watch);
    }
}

/// By a reload that is asked for, or by what the gateway sees itself.
fn a_pair_is_refused(watch: bool) {
    let authority = Authority::new();
    let good = authority.issue(&["localhost"]);
    let toml = format!("[server]\nwatch = {watch}\n{}{HELLO}", listener(ONE, ""));
    let gateway = Gateway::try_start_with(&toml, |directory| good.write(directory, "a")).unwrap();
    let directory = directory(&gateway);
    let other = authority.issue(&["localhost"]);
    let day = |year| rcgen::date_time_ymd(year, 1, 1);
    let expired = authority.sign(&["localhost"], |params| (params.not_before, params.not_after) = (day(2001), day(2002)));
    let early = authority.sign(&["localhost"], |params| (params.not_before, params.not_after) = (day(2900), day(2901)));
    let mut mixed = good.clone();
    mixed.key.clone_from(&other.key);
    let mut garbage = good.clone();
    "no certificate".clone_into(&mut garbage.cert);
    let mut keyless = good.clone();
    keyless.key.clear();
    for (pair, why) in [
        (mixed, "this key does not belong to the certificate"),
        (expired, "expired"),
        (early, "is not valid yet"),
        (garbage, "it has no PEM section CERTIFICATE"),
        (keyless, "has no private key that can be used"),
    ] {
        // Only what differs: each file is watched by itself.
        for (name, text) in [("a.pem", &pair.cert), ("a.key", &pair.key)] {
            if std::fs::read(directory.join(name)).unwrap() != text.as_bytes() {
                std::fs::write(directory.join("next"), text).unwrap();
                std::fs::rename(directory.join("next"), directory.join(name)).unwrap();
            }
        }
        let text = if watch {
            let last = || gateway.status()["last_reload"].clone();
            eventually(&format!("refused: {why}"), SOON, || last()["result"] == "refused" && last().to_string().contains(why));
            last().to_string()
        } else {
            let said = gateway.reload();
            assert_eq!(said.code, Some(1), "{why}: {said:?}");
            said.stdout + &said.stderr
        };
        assert!(text.contains(why) && text.contains("gatewright.toml:") && !text.contains("BEGIN"), "{why}: {text}");
        let mut client = authority.trusting().connect(gateway.address("https"), "localhost").unwrap();
        assert_eq!(client.certificate(), good.der(), "{why}");
        assert_eq!(client.exchange(hello("localhost")).unwrap().status, 200);
    }
    other.write(&directory, "a");
    if !watch {
        assert_eq!(gateway.reload().code, Some(0));
    }
    eventually("the pair that can be used is", SOON, || {
        authority.trusting().connect(gateway.address("https"), "localhost").unwrap().certificate() == other.der()
    });
    let ended = Gateway::try_start_with(&toml, |_| {}).err().expect("started without its certificate");
    assert_eq!(ended.code, Some(78), "{ended:?}");
}

#[test]
fn certificates_are_exchanged_by_sighup_and_by_watching_without_losing_a_handshake() {
    for watch in [false, true] {
        let authority = Authority::new();
        let toml = format!("[server]\nwatch = {watch}\n{}{HELLO}", listener(ONE, ""));
        let first = authority.issue(&["localhost"]);
        let gateway = Gateway::try_start_with(&toml, |directory| first.write(directory, "a")).unwrap();
        let address = gateway.address("https");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut done = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut client = authority.trusting().connect(address, "localhost").expect("a handshake was lost");
                    assert_eq!(client.exchange(hello("localhost")).expect("a request was lost").status, 200);
                    done += 1;
                }
                done
            });
            for _ in 0..5 {
                let next = authority.issue(&["localhost"]);
                next.write(&directory(&gateway), "a");
                if !watch {
                    gateway.sighup();
                }
                eventually("the new certificate is shown", SOON, || {
                    authority.trusting().connect(address, "localhost").unwrap().certificate() == next.der()
                });
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(load.join().unwrap() > 5);
        });
        assert_eq!(gateway.metric("gatewright_listener_connections_refused_total", &[]), 0.0);
    }
}

#[test]
fn clients_show_a_certificate_where_one_is_asked_for() {
    let authority = Authority::new();
    let partners = Authority::new();
    let partner = partners.client("orders.partner.example");
    let stranger = Authority::new().client("stranger");
    for required in [true, false] {
        let auth = if required { "" } else { ", client_auth = \"optional\"" };
        let toml = listener(ONE, &format!(", client_ca = \"ca.pem\"{auth}")) + HELLO;
        let gateway = Gateway::try_start_with(&toml, |directory| {
            authority.issue(&["localhost"]).write(directory, "a");
            std::fs::write(directory.join("ca.pem"), &partners.pem).unwrap();
        })
        .unwrap();
        let status = |tls: crate::support::tls::Tls| {
            let mut client = tls.connect(gateway.address("https"), "localhost").ok()?;
            // With TLS 1.3 the client learns of a refusal only when it reads.
            client.exchange(hello("localhost")).ok().map(|answer| answer.status)
        };
        let refused = || gateway.metric("gatewright_listener_connections_refused_total", &[("reason", "handshake_failed")]);
        assert_eq!(status(authority.trusting().with_certificate(&partner)), Some(200));
        assert_eq!(refused(), 0.0);
        assert_eq!(status(authority.trusting().with_certificate(&stranger)), None);
        assert_eq!(status(authority.trusting()), if required { None } else { Some(200) });
        eventually("refusals are counted", SOON, || refused() == if required { 2.0 } else { 1.0 });
    }
}

#[test]
fn sessions_resume_across_reloads_until_their_rules_change() {
    let authority = Authority::new();
    let partners = Authority::new();
    let partner = partners.client("orders");
    let toml = listener(ONE, ", client_ca = \"ca.pem\"") + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| {
        authority.issue(&["localhost"]).write(directory, "a");
        std::fs::write(directory.join("ca.pem"), &partners.pem).unwrap();
    })
    .unwrap();
    let address = gateway.address("https");
    for tls in [authority.trusting(), authority.trusting().old()] {
        let tls = tls.with_certificate(&partner);
        let config = tls.config();
        // One configuration for all: sessions belong to what they were made with.
        let resumed = || {
            let mut client = tls.connect_with(&config, address, "localhost").unwrap();
            // Tickets of TLS 1.3 come after the handshake.
            client.exchange(hello("localhost")).unwrap();
            client.resumed()
        };
        std::fs::write(directory(&gateway).join("ca.pem"), &partners.pem).unwrap();
        assert_eq!(gateway.reload().code, Some(0));
        assert!(!resumed());
        assert!(resumed());
        assert_eq!(gateway.reload().code, Some(0));
        assert!(resumed(), "a reload ended all sessions");
        std::fs::write(directory(&gateway).join("ca.pem"), partners.pem.clone() + &Authority::new().pem).unwrap();
        assert_eq!(gateway.reload().code, Some(0));
        assert!(!resumed(), "a session outlived the authorities that it was verified by");
    }
}

#[test]
fn old_versions_and_plain_text_are_refused_and_counted() {
    let authority = Authority::new();
    let toml = listener(ONE, ", min_version = \"1.3\"") + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    assert!(authority.trusting().old().connect(gateway.address("https"), "localhost").is_err());
    assert!(authority.trusting().connect(gateway.address("https"), "localhost").is_ok());
    let mut plain = Client::connect(gateway.address("https"));
    plain.send(hello("localhost"));
    plain.read_until_closed();
    let refused = || gateway.metric("gatewright_listener_connections_refused_total", &[("reason", "handshake_failed")]);
    eventually("refusals are counted", SOON, || refused() == 2.0);
}

#[test]
fn handshakes_have_a_deadline_and_a_bound() {
    let authority = Authority::new();
    let toml = listener(ONE, ", handshake_timeout = \"3s\", max_handshakes = 2") + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let refused = |reason| gateway.metric("gatewright_listener_connections_refused_total", &[("reason", reason)]);
    // The third says hello before the time of the first is over.
    let mut stalled: Vec<_> = (0..3).map(|_| stalled_after_hello(gateway.address("https"))).collect();
    eventually("the third is too many", SOON, || refused("max_handshakes") == 1.0);
    for client in &mut stalled {
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
    }
    // It is closed first and counted then.
    eventually("both are counted", SOON, || refused("handshake_timeout") == 2.0);
    assert!(authority.trusting().connect(gateway.address("https"), "localhost").is_ok(), "places are given back");
}

/// A connection whose client has said hello, and nothing since.
fn stalled_after_hello(address: std::net::SocketAddr) -> TcpStream {
    let config = Authority::new().trusting().config();
    let mut session = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    while session.wants_write() {
        session.write_tls(&mut socket).unwrap();
    }
    socket
}

#[test]
fn silent_connections_keep_nobody_out() {
    let authority = Authority::new();
    let toml = listener(ONE, ", handshake_timeout = \"20s\", max_handshakes = 4") + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(gateway.address("https")).unwrap()).collect();
    let active = || gateway.metric("gatewright_listener_connections_active", &[("listener", "https")]);
    eventually("all are accepted", SOON, || active() >= 200.0);
    for _ in 0..20 {
        assert!(authority.trusting().connect(gateway.address("https"), "localhost").is_ok());
    }
    assert_eq!(gateway.metric("gatewright_listener_connections_refused_total", &[]), 0.0);
    drop(silent);
}

#[test]
fn when_a_certificate_expires_is_a_metric() {
    let authority = Authority::new();
    let soon = SystemTime::now() + Duration::from_secs(10 * 86_400);
    let pair = authority.sign(&["localhost"], |params| params.not_after = soon.into());
    let gateway = Gateway::try_start_with(&(listener(ONE, "") + HELLO), |directory| pair.write(directory, "a")).unwrap();
    let name = "gatewright_tls_certificate_expiry_timestamp_seconds";
    let at = gateway.metric(name, &[("listener", "https"), ("certificate", "a.pem")]);
    let expected = soon.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((at - expected).abs() <= 1.0, "{at} against {expected}");
}

#[test]
fn an_ocsp_response_is_stapled_as_it_is_and_checked_to_be_one() {
    let authority = Authority::new();
    let certificate = "{ cert = \"a.pem\", key = \"a.key\", ocsp = \"a.ocsp\" }";
    // The shortest that begins like a successful response: nobody but the client looks further.
    let response = [0x30, 0x03, 0x0a, 0x01, 0x00];
    let start = |ocsp: Vec<u8>| {
        Gateway::try_start_with(&(listener(certificate, "") + HELLO), |directory| {
            authority.issue(&["localhost"]).write(directory, "a");
            std::fs::write(directory.join("a.ocsp"), ocsp).unwrap();
        })
    };
    let gateway = start(response.to_vec()).unwrap();
    assert_eq!(authority.trusting().stapled(gateway.address("https"), "localhost"), response);
    drop(gateway);
    let ended = start(b"<html>not found</html>".to_vec()).err().expect("stapled a web page");
    assert!(ended.stderr.contains("is not a successful OCSP response"), "{ended:?}");
}

/// The file is replaced by a job on the machine every few days; the certificate stays.
#[test]
fn a_newer_ocsp_response_is_stapled_after_a_reload_and_by_watching() {
    for watch in [false, true] {
        let authority = Authority::new();
        let certificate = "{ cert = \"a.pem\", key = \"a.key\", ocsp = \"a.ocsp\" }";
        let response = |mark: u8| [0x30, 0x04, 0x0a, 0x01, 0x00, mark];
        let toml = format!("[server]\nwatch = {watch}\n{}{HELLO}", listener(certificate, ""));
        let gateway = Gateway::try_start_with(&toml, |directory| {
            authority.issue(&["localhost"]).write(directory, "a");
            std::fs::write(directory.join("a.ocsp"), response(0)).unwrap();
        })
        .unwrap();
        let stapled = || authority.trusting().stapled(gateway.address("https"), "localhost");
        assert_eq!(stapled(), response(0));
        let replace = |with: &[u8]| {
            std::fs::write(directory(&gateway).join("next"), with).unwrap();
            std::fs::rename(directory(&gateway).join("next"), directory(&gateway).join("a.ocsp")).unwrap();
            if !watch {
                gateway.reload();
            }
        };
        for mark in 1..4 {
            replace(&response(mark));
            eventually("the new response is stapled", SOON, || stapled() == response(mark));
        }
        // What is none leaves the last one where it is.
        replace(b"<html>not found</html>");
        eventually("the refusal", SOON, || gateway.status()["last_reload"]["result"] == "refused");
        assert_eq!(stapled(), response(3));
    }
}

#[test]
fn a_connection_ends_with_the_rules_that_it_was_made_by() {
    let (authority, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let toml = listener(ONE, ", client_auth = \"required\", client_ca = \"ca.pem\"") + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| {
        authority.issue(&["localhost"]).write(directory, "a");
        std::fs::write(directory.join("ca.pem"), &old.pem).unwrap();
    })
    .unwrap();
    let address = gateway.address("https");
    let mut client = authority.trusting().with_certificate(&old.client("partner")).connect(address, "localhost").unwrap();
    assert_eq!(client.exchange(hello("localhost")).unwrap().status, 200);
    // A reload that changes nothing of it changes nothing for it.
    assert_eq!(gateway.reload().code, Some(0));
    assert_eq!(client.exchange(hello("localhost")).unwrap().status, 200);
    std::fs::write(directory(&gateway).join("ca.pem"), &new.pem).unwrap();
    assert_eq!(gateway.reload().code, Some(0));
    let refused = client.exchange(hello("localhost")).unwrap();
    assert_eq!((refused.status, refused.code().as_str(), refused.keep_alive), (421, "misdirected_request", false));
    let mut client = authority.trusting().with_certificate(&new.client("partner")).connect(address, "localhost").unwrap();
    assert_eq!(client.exchange(hello("localhost")).unwrap().status, 200);
}

#[test]
fn hosts_have_rules_of_their_own_for_client_certificates() {
    let authority = Authority::new();
    let (partners, staff) = (Authority::new(), Authority::new());
    let (partner, colleague) = (partners.client("orders.partner.example"), staff.client("colleague"));
    let hosts = ", hosts = { \"partner.example\" = { client_auth = \"required\", client_ca = \"partners.pem\" }, \
                 \"*.staff.example\" = { client_auth = \"optional\", client_ca = \"staff.pem\" } }";
    let toml = listener(ONE, hosts) + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| {
        authority.issue(&["localhost", "partner.example", "*.staff.example"]).write(directory, "a");
        std::fs::write(directory.join("partners.pem"), &partners.pem).unwrap();
        std::fs::write(directory.join("staff.pem"), &staff.pem).unwrap();
    })
    .unwrap();
    let address = gateway.address("https");
    let status = |tls: crate::support::tls::Tls, name: &str, host: &str| {
        let mut client = tls.connect(address, name).ok()?;
        client.exchange(hello(host)).ok().map(|answer| answer.status)
    };
    let nobody = || authority.trusting();
    for (tls, name, host, expected) in [
        (nobody(), "localhost", "localhost", Some(200)),
        (nobody(), "partner.example", "partner.example", None),
        (nobody().with_certificate(&partner), "partner.example", "partner.example", Some(200)),
        (nobody().with_certificate(&colleague), "partner.example", "partner.example", None),
        (nobody(), "a.staff.example", "a.staff.example", Some(200)),
        (nobody().with_certificate(&colleague), "a.staff.example", "b.staff.example", Some(200)),
        (nobody().with_certificate(&partner), "a.staff.example", "a.staff.example", None),
        // The name of the handshake and the host of the request are two things.
        (nobody(), "localhost", "partner.example", Some(421)),
        (nobody(), "localhost", "PARTNER.example:443", Some(421)),
        (nobody(), "a.staff.example", "partner.example", Some(421)),
        (nobody().with_certificate(&partner), "partner.example", "localhost", Some(421)),
        (nobody().with_certificate(&colleague), "a.staff.example", "partner.example", Some(421)),
    ] {
        assert_eq!(status(tls, name, host), expected, "{name} and then {host}");
    }
    // A session that was made for one host is none for another.
    let tls = nobody().with_certificate(&partner);
    let config = tls.config();
    for _ in 0..2 {
        let mut client = tls.connect_with(&config, address, "partner.example").unwrap();
        assert_eq!(client.exchange(hello("partner.example")).unwrap().status, 200);
    }
    let mut client = tls.connect_with(&config, address, "localhost").unwrap();
    assert_eq!(client.exchange(hello("partner.example")).unwrap().status, 421);
}

#[test]
fn who_a_client_is_by_its_certificate_is_a_fact_for_filters() {
    let (authority, partners) = (Authority::new(), Authority::new());
    let partner = partners.client("orders.partner.example");
    let origin = Origin::start("a");
    let facts = "filters = [{ request_headers = { set = { x-subject = \"${client_cert_subject}\", x-names = \"${client_cert_names}\", \
                 x-print = \"${client_cert_sha256}\" } } }]\n";
    let toml = listener(ONE, ", client_ca = \"ca.pem\", client_auth = \"optional\"") + &everything_to(&[&origin], "") + facts;
    let gateway = Gateway::try_start_with(&toml, |directory| {
        authority.issue(&["localhost"]).write(directory, "a");
        std::fs::write(directory.join("ca.pem"), &partners.pem).unwrap();
    })
    .unwrap();
    // What a client says of itself does not count, with a certificate or without.
    let forged = request("GET", "/", &[("x-subject", "CN=admin"), ("x-print", "00")], b"");
    for tls in [authority.trusting().with_certificate(&partner), authority.trusting()] {
        let mut client = tls.connect(gateway.address("https"), "localhost").unwrap();
        assert_eq!(client.exchange(forged.clone()).unwrap().status, 200);
    }
    let seen = origin.requests();
    assert!(seen[0].header("x-subject").is_some_and(|subject| subject.contains("CN=orders.partner.example")), "{:?}", seen[0]);
    assert_eq!(seen[0].header("x-names").as_deref(), Some("DNS:orders.partner.example"));
    assert_eq!(seen[0].header("x-print").map(|print| print.len()), Some(64));
    for name in ["x-subject", "x-names", "x-print"] {
        assert_eq!(seen[1].header(name), None, "{name} of a client without a certificate");
    }
}

#[test]
fn a_stream_for_a_host_with_other_rules_is_refused_and_the_others_go_on() {
    let (authority, partners) = (Authority::new(), Authority::new());
    let hosts = ", hosts = { \"partner.example\" = { client_auth = \"required\", client_ca = \"partners.pem\" } }";
    let toml = listener(ONE, hosts) + "http2 = true\n" + HELLO;
    let gateway = Gateway::try_start_with(&toml, |directory| {
        authority.issue(&["localhost", "partner.example"]).write(directory, "a");
        std::fs::write(directory.join("partners.pem"), &partners.pem).unwrap();
    })
    .unwrap();
    runtime().block_on(async {
        let client = H2Client::secure(gateway.address("https"), &authority.trusting()).await;
        let ask = |host: &str| {
            let asked = http::Request::get(format!("https://{host}/hello")).body(()).unwrap();
            async { client.call(asked, &[]).await.unwrap().status.as_u16() }
        };
        let statuses = tokio::join!(ask("localhost"), ask("partner.example"), ask("localhost"));
        assert_eq!(statuses, (200, 421, 200));
        assert_eq!(ask("localhost").await, 200);
    });
}
