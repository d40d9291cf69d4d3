//! Origins are restarted one after another while traffic flows.

use crate::support::load::Plan;
use crate::support::{Gateway, Load, Origin, SOON, eventually, everything_to, exclusive};
use std::time::Duration;

const HEALTH: &str = "health = { path = \"/health\", interval = \"300ms\", timeout = \"290ms\", rise = 1, fall = 2 }";

#[test]
fn rolling_restart_of_three_origins_fails_no_get() {
    let _machine = exclusive();
    let origins = Origin::start_many(3);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1], &origins[2]], HEALTH));
    let load = Load::get(gateway.http(), "/load");
    eventually("load", SOON, || load.ok() >= 100);
    for round in 0..2 {
        for origin in &origins {
            origin.stop();
            let before = load.ok();
            eventually("load without it", SOON, || load.ok() >= before + 50);
            gateway.wait_healthy(origin.address(), false);
            origin.start_again();
            gateway.wait_healthy(origin.address(), true);
            let before = origin.count();
            eventually(&format!("traffic on it again, round {round}"), SOON, || origin.count() >= before + 20);
        }
    }
    load.finish().assert_clean(500);
}

#[test]
fn restarts_neither_lose_nor_repeat_a_post() {
    let _machine = exclusive();
    let origins = Origin::start_many(3);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1], &origins[2]], HEALTH));
    let plan =
        Plan { address: gateway.http(), connections: 4, method: "POST", target: "/load".into(), pause: Duration::from_millis(5) };
    let load = Load::start(plan);
    eventually("load", SOON, || load.ok() >= 100);
    for origin in &origins {
        origin.kill();
        gateway.wait_healthy(origin.address(), false);
        origin.start_again();
        gateway.wait_healthy(origin.address(), true);
    }
    // A POST that was cut off in the middle may fail, since repeating it is not the gateway's to decide.
    let report = load.finish();
    assert!(report.ok >= 200, "{report}");
    let mut times = std::collections::HashMap::<String, usize>::new();
    for (id, count) in origins.iter().flat_map(Origin::ids) {
        *times.entry(id).or_default() += count;
    }
    let repeated: Vec<_> = times.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "repeated: {repeated:?}");
    let lost: Vec<_> = report.ids.iter().filter(|id| !times.contains_key(*id)).collect();
    assert!(lost.is_empty(), "answered, but by no origin: {lost:?}");
}
