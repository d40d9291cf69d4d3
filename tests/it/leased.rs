//! Leases through the real binary: gateways that hold some together admit what the limit says, and give back what they do not use.

use crate::support::gateway::run;
use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually};

fn config(redis: &Redis, limits: &str, lease: &str) -> String {
    format!(
        "[redis]\nurl = \"{}\"\ntimeout = \"1s\"\ngateways = 2\n[routes.a]\nmatch = {{ path = \"/a\" }}\n\
         filters = [{{ rate_limit = {{ by = 'route', limits = {limits}, store = 'redis', on_error = 'closed', lease = {lease} }} }}, \
         {{ respond = {{ body = \"hello\" }} }}]\n",
        redis.url()
    )
}

#[test]
fn a_gateway_that_stops_gives_its_leases_back() {
    let redis = Redis::start();
    let config = config(&redis, "[{ quota = '1000/1mo' }]", "500");
    let mut first = Gateway::start(&config);
    eventually("redis is up", SOON, || first.metric("gatewright_redis_up", &[]) == 1.0);
    let mut client = Client::connect(first.http());
    for _ in 0..10 {
        assert_eq!(client.exchange(request("GET", "/a", &[], b"")).unwrap().status, 200);
    }
    assert!(first.metric("gatewright_redis_lease_uses", &[]) > 100.0);
    drop(client);
    first.sigterm();
    assert!(first.wait_exit(SOON).success());
    let second = Gateway::start(&config);
    eventually("redis is up", SOON, || second.metric("gatewright_redis_up", &[]) == 1.0);
    let shown = run(&["limit", "--admin", &second.admin.argument(), "show", "a"]);
    assert!(shown.stdout.contains("990 left (limit 1000)"), "{shown:?}");
}

#[test]
fn gateways_with_leases_admit_exactly_the_limit_and_give_back_what_they_do_not_use() {
    let redis = Redis::start();
    let config = config(&redis, "[{ rate = '200/1h' }, { quota = '10000/1mo' }]", "'10%'");
    let gateways = [Gateway::start(&config), Gateway::start(&config)];
    for gateway in &gateways {
        eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    }
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.http())).collect();
    let mut ask = |n: usize| clients[n % 2].exchange(request("GET", "/a", &[], b"")).unwrap().status;
    let admitted = (0..100).filter(|n| ask(*n) == 200).count();
    assert_eq!(admitted, 100);
    let leased = gateways.iter().map(|gateway| gateway.metric("gatewright_redis_leased_total", &[])).sum::<f64>();
    assert!(leased > 40.0, "{leased} of 100 without a round trip");
    // The second gateway falls idle and gives back what it has; the first gets all that is left.
    let mut rest = 0;
    eventually("the first gets all that is left", SOON, || {
        match ask(0) {
            200 => rest += 1,
            429 => {}
            other => panic!("{other}"),
        }
        rest == 100
    });
    assert_eq!(ask(0), 429, "more than the limit");
    assert_eq!(ask(1), 429, "more than the limit");
}
