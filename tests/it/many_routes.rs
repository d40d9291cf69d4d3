//! Ten thousand routes: the gateway starts with them, answers by them, and reloads them, and none of it takes more than its share
//! of the time. How long it takes where the program is optimised, `benches/wrk/run.sh --routes 10000` measures.

use crate::support::raw::{Client, request};
use crate::support::{Gateway, Origin, exclusive, upstream};
use std::fmt::Write;
use std::time::{Duration, Instant};

const FEW: usize = 1_000;
const MANY: usize = 10_000;

/// Ten routes on each host, of the kinds that an operator writes, each with a filter that tells which one it was.
fn toml(origin: &Origin, count: usize, version: &str) -> String {
    let mut toml = upstream("app", &[origin], "");
    for number in 0..count {
        let path = match number % 10 {
            0 => "/".to_owned(),
            part @ 1..=5 => format!("/part-{part}/{{*rest}}"),
            part @ 6..=8 => format!("/part-{part}/{{id}}"),
            part => format!("/part-{part}/fixed"),
        };
        write!(
            toml,
            "[routes.r{number}]\nmatch = {{ host = \"host-{}.example.com\", path = \"{path}\" }}\nupstream = \"app\"\n\
             filters = [{{ response_headers = {{ set = {{ x-which = \"${{route}} {version}\" }} }} }}]\n",
            number / 10
        )
        .unwrap();
    }
    toml
}

/// What the route says of itself that takes the request meant for `number`.
fn which(client: &mut Client, number: usize) -> String {
    let target = match number % 10 {
        0 => "/".to_owned(),
        9 => "/part-9/fixed".to_owned(),
        part => format!("/part-{part}/x"),
    };
    let host = format!("host-{}.example.com", number / 10);
    let answer = client.exchange(request("GET", &target, &[("host", &host)], b"")).unwrap();
    assert_eq!(answer.status, 200, "{host}{target}: {}", answer.text());
    answer.header("x-which").unwrap_or_default().to_owned()
}

#[test]
fn ten_thousand_routes_start_and_reload_in_their_share_of_the_time() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let mut started = Vec::new();
    let mut gateways: Vec<_> = [FEW, MANY]
        .into_iter()
        .map(|count| {
            let text = toml(&origin, count, "0");
            let begun = Instant::now();
            let gateway = Gateway::start(&text);
            started.push(begun.elapsed());
            (count, gateway)
        })
        .collect();
    // In turns, and the best of three: whoever takes the processor for a while takes it from both.
    let mut best = [f64::MAX; 2];
    for version in ["1", "2", "3"] {
        for ((count, gateway), best) in gateways.iter_mut().zip(&mut best) {
            gateway.reload_with(&toml(&origin, *count, version)).unwrap();
            let took = gateway.status()["last_reload"]["took_ms"].as_f64().unwrap();
            *best = took.min(*best);
            let mut client = Client::connect(gateway.http());
            for number in (0..*count).step_by(*count / 97) {
                assert_eq!(which(&mut client, number), format!("r{number} {version}"));
            }
            assert_eq!(gateway.status()["routes"].as_array().unwrap().len(), *count);
        }
    }
    println!("{FEW} and {MANY} routes start in {started:?} and reload in {best:.0?} ms");
    // Ten times the routes take ten times as long; where each looked at all others, it would be a hundred times.
    assert!(best[1] < best[0] * 35.0, "reloads take {best:?} ms");
    assert!(started[1] < Duration::from_secs(30) && best[1] < 20_000.0, "{started:?}, {best:?} ms");
}
