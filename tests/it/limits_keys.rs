//! Who is counted as whom: by the address that is theirs and no other, and by each of a consumer's credentials apart.

use crate::support::gateway::run;
use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually};

fn route(name: &str, filters: &str) -> String {
    format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nfilters = [{filters}, {{ respond = {{ body = \"hello\" }} }}]\n")
}

fn asks(gateway: &Gateway, path: &str, header: (&str, &str)) -> u16 {
    Client::connect(gateway.http()).exchange(request("GET", path, &[header], b"")).unwrap().status
}

const BY_ADDRESS: &str = "{ rate_limit = { by = 'address', limits = [{ rate = '2/1h' }] } }";

#[test]
fn a_client_that_names_other_addresses_is_counted_by_its_own() {
    let gateway = Gateway::start(&route("a", BY_ADDRESS));
    let statuses: Vec<u16> = (1..=5).map(|n| asks(&gateway, "/a", ("x-forwarded-for", &format!("198.51.100.{n}")))).collect();
    assert_eq!(statuses, [200, 200, 429, 429, 429]);
}

#[test]
fn behind_a_trusted_proxy_clients_are_counted_by_the_address_that_it_names() {
    let trusted = "[server]\ntrusted_proxies = [\"127.0.0.1/32\"]\n";
    let gateway = Gateway::start(&[trusted, &route("a", BY_ADDRESS)].concat());
    let asks = |client: &str| asks(&gateway, "/a", ("x-forwarded-for", client));
    for client in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!([(); 3].map(|()| asks(client)), [200, 200, 429], "{client}");
    }
    // What a client has put before is not the proxy's word.
    let spoofed: Vec<u16> = (1..=3).map(|n| asks(&format!("198.51.100.{n}, 192.0.2.3"))).collect();
    assert_eq!(spoofed, [200, 200, 429]);
    // A whole network is one customer, and the next is another.
    let customer = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2:3:4:5:6"].map(asks);
    assert_eq!(customer, [200, 200, 429]);
    assert_eq!(asks("2001:db8:1:3::1"), 200);
}

/// The SHA-256 of `key-15029` and of `key-8337`: two keys that logs do not tell apart.
const ALIKE: [(&str, &str); 2] = [
    ("key-15029", "7152ff1c7fe5198919d16ab6193c4d5cfed2378bf8eab56852d746e76d4ab2df"),
    ("key-8337", "7152ff1c6b7c385411cfe32625d8cf13d239f4d303c46bb25099837ffaff9e5f"),
];
/// And of `password`.
const PASSWORD: &str = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";

fn credentials_are_counted_apart(head: &str, store: &str) {
    let keys = ALIKE.map(|(_, digest)| digest).into_iter().chain([PASSWORD]);
    let keys: Vec<String> = keys.map(|digest| format!("{{ api_key = {{ sha256 = \"{digest}\" }} }}")).collect();
    let limit =
        |by: &str| format!("{{ api_key = {{}} }}, {{ rate_limit = {{ by = '{by}', limits = [{{ rate = '2/1h' }}]{store} }} }}");
    let consumer = format!("[consumers.acme]\ncredentials = [{}]\n", keys.join(", "));
    let gateway = Gateway::start(&[head, &consumer, &route("a", &limit("credential")), &route("b", &limit("consumer"))].concat());
    if !head.is_empty() {
        eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    }
    let asks = |path: &str, key: &str| asks(&gateway, path, ("x-api-key", key));
    for key in [ALIKE[0].0, ALIKE[1].0, "password"] {
        assert_eq!([(); 3].map(|()| asks("/a", key)), [200, 200, 429], "{key}");
    }
    assert_eq!(["password", ALIKE[0].0, ALIKE[1].0].map(|key| asks("/b", key)), [200, 200, 429], "all of them are acme's");

    // Operators name one as logs show it, or by more of its hash where that is not enough.
    let limit = |verb: &str, id: &str| {
        run(&["limit", "--admin", &gateway.admin.argument(), verb, "a", &format!("credential=api_key:{id}")])
    };
    let shown = limit("show", &PASSWORD[..8]);
    let counted = format!("k:api_key:{}", &PASSWORD[..32]);
    assert!(shown.stdout.contains(&counted) && shown.stdout.contains("0 left (limit 2)"), "{shown:?}");
    for (id, why) in [(&ALIKE[0].1[..8], "several API keys begin like that"), ("00000000", "no API key of the configuration")] {
        let said = limit("show", id);
        assert!(said.code == Some(1) && said.stderr.contains(why), "{said:?}");
    }
    for id in [&ALIKE[0].1[..12], ALIKE[0].1] {
        assert_eq!(asks("/a", ALIKE[0].0), 429);
        let reset = limit("reset", id);
        assert!(reset.stdout.contains("2 left (limit 2)"), "{reset:?}");
        assert_eq!([(); 3].map(|()| asks("/a", ALIKE[0].0)), [200, 200, 429]);
        assert_eq!(asks("/a", ALIKE[1].0), 429, "the other one was reset too");
    }
}

#[test]
fn keys_of_one_consumer_are_counted_apart_by_credential() {
    credentials_are_counted_apart("", "");
}

#[test]
fn keys_of_one_consumer_are_counted_apart_by_credential_in_redis() {
    let redis = Redis::start();
    let head = format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n", redis.url());
    credentials_are_counted_apart(&head, ", store = 'redis', on_error = 'closed'");
}
