use super::*;
use crate::diagnostic::Diagnostics;
use crate::value::Located;
use std::time::Duration;

fn consumers(text: &str) -> (Consumers, Diagnostics) {
    #[derive(serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Tree {
        consumers: BTreeMap<String, ConsumerConfig>,
        tiers: BTreeMap<String, TierConfig>,
    }
    let tree: Tree = toml::from_str(text).unwrap();
    let mut d = Diagnostics::default();
    let named: Vec<_> = tree.consumers.iter().map(|(name, config)| (Located::nowhere(name.clone()), config)).collect();
    named.iter().for_each(|(name, config)| config.check(name, &mut d));
    let tiers = tree.tiers.iter().map(|(name, config)| (name.as_str(), config));
    let built = Consumers::build(named.iter().map(|(name, config)| (name, *config)), tiers, &mut d);
    (built, d)
}

fn good(text: &str) -> Consumers {
    let (consumers, d) = consumers(text);
    assert!(!d.has_errors(), "{}", d.render(false));
    consumers
}

fn wrong(text: &str) -> String {
    consumers(text).1.list.iter().map(|found| found.message.clone()).collect::<Vec<_>>().join("; ")
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn each_credential_finds_its_consumer() {
    let key = KeyDigest::of(b"key");
    let consumers = good(&format!(
        "[tiers.gold]\nlimits = [{{ rate = '6_000/1m', burst = 500 }}, {{ quota = '10_000/1d' }}]\n\
         [consumers.acme]\ntier = 'gold'\nroles = ['orders:write', 'admin']\nmetadata = {{ owner = 'ops' }}\n\
         credentials = [{{ api_key = {{ sha256 = '{key}' }} }}, {{ jwt = {{ subject = 'acme-1' }} }}, \
         {{ jwt = {{ subject = 'acme-2', issuer = 'main' }} }}]\n[consumers.other]\nroles = ['admin']\n\
         credentials = [{{ jwt = {{ subject = 'acme-2', issuer = 'second' }} }}]\n"
    ));
    let found = consumers.by_api_key(&key).unwrap();
    let identity = &found.identity;
    assert_eq!((&*identity.name, &*identity.credential), ("acme", &*format!("api_key:{}", key.short())));
    assert_eq!((identity.method, identity.tier.as_deref()), ("api_key", Some("gold")));
    assert!(identity.has_role("admin") && identity.has_role("orders:write") && !identity.has_role("order"));
    assert_eq!(found.consumer.metadata["owner"], "ops");
    assert!(consumers.by_api_key(&KeyDigest::of(b"kez")).is_none());
    let subject = |issuer, subject| consumers.by_jwt_subject(issuer, subject).map(|found| found.consumer.name.to_string());
    assert_eq!(subject("any", "acme-1").as_deref(), Some("acme"));
    assert_eq!(subject("main", "acme-2").as_deref(), Some("acme"));
    assert_eq!(subject("second", "acme-2").as_deref(), Some("other"));
    assert_eq!(subject("third", "acme-2"), None, "a subject that is bound to an issuer is nobody's elsewhere");
    assert!(consumers.roles().eq(["admin", "orders:write"]) && consumers.len() == 2);
}

#[test]
fn a_credential_counts_from_its_start_to_before_its_end() {
    let key = KeyDigest::of(b"key");
    let text = format!(
        "[consumers.a]\ncredentials = [{{ api_key = {{ sha256 = '{key}', not_before = 1970-01-01T00:01:40Z, expires = 1970-01-01T00:03:20Z }} }}]"
    );
    let consumers = good(&text);
    let check = |consumers: &Consumers, seconds| consumers.by_api_key(&key).unwrap().check(at(seconds));
    assert_eq!(check(&consumers, 99), Err(Unusable::NotYet));
    assert_eq!(check(&consumers, 100), Ok(()));
    assert_eq!(check(&consumers, 199), Ok(()));
    assert_eq!(check(&consumers, 200), Err(Unusable::Expired));
    let disabled = good(&text.replace("[consumers.a]", "[consumers.a]\nenabled = false"));
    assert_eq!(check(&disabled, 150), Err(Unusable::Disabled));
}

#[test]
fn a_credential_has_one_owner() {
    let key = KeyDigest::of(b"key");
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$2hcwG7V7Xz1mSB3bZ1zv5KxvN8oI6w5ZCrjdhfO2Z3w";
    for (first, second, message) in [
        (format!("api_key = {{ sha256 = '{key}' }}"), None, "this API key belongs to consumer `a` already"),
        ("jwt = { subject = 's' }".to_owned(), None, "the subject `s` belongs to consumer `a` already"),
        ("jwt = { subject = 's', issuer = 'i' }".to_owned(), None, "the subject `s` belongs to consumer `a` already"),
        (
            format!("basic = {{ username = 'u', password = {{ argon2 = '{hash}' }} }}"),
            None,
            "the username `u` belongs to consumer `a` already",
        ),
        ("jwt = { subject = 's' }".to_owned(), Some("jwt = { subject = 's', issuer = 'i' }"), ""),
    ] {
        let second = second.unwrap_or(&first);
        let text = format!("[consumers.a]\ncredentials = [{{ {first} }}]\n[consumers.b]\ncredentials = [{{ {second} }}]");
        assert_eq!(wrong(&text), message);
    }
    let twice =
        format!("[consumers.a]\ncredentials = [{{ api_key = {{ sha256 = '{key}' }} }}, {{ api_key = {{ sha256 = '{key}' }} }}]");
    assert_eq!(wrong(&twice), "consumer `a` has this API key twice");
}

#[test]
fn impossible_values_are_refused_with_a_reason() {
    for (text, message) in [
        ("[consumers.a]\nroles = ['a,admin']", "`a,admin` cannot be a role"),
        ("[consumers.a]\nroles = ['']", "`` cannot be a role"),
        ("[consumers.a]\ncredentials = [{ jwt = { subject = '' } }]", "`` cannot be a subject"),
        (
            "[consumers.a]\ncredentials = [{ jwt = { subject = 's', not_before = 2027-01-01, expires = 2027-01-01 } }]",
            "the credential ceases to count before it begins to",
        ),
    ] {
        assert_eq!(wrong(text), message);
    }
}
