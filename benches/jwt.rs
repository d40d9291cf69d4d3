//! What a token costs: verified for the first time, and remembered. The claim is that the second costs about as much as a
//! hash, whatever the algorithm: one of RS256 that takes more than [`FACTOR`] hashes, where the first takes dozens, ends the
//! benchmark with an error.
//!
//! `cold` is an issuer that remembers nothing, so each round reads, verifies and judges the token; `cached` is one that has
//! seen it. `hash` is SHA-256 of the same token, for comparison.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "a benchmark may panic")]

#[path = "../tests/it/support/tokens.rs"]
mod tokens;

use criterion::{Criterion, criterion_group, criterion_main};
use gatewright::clock::{SharedClock, SystemClock};
use gatewright::consumer::Consumers;
use gatewright::diagnostic::Diagnostics;
use gatewright::jwt::{Answer, Issuer, IssuerConfig, Issuers};
use gatewright::state::StatePool;
use gatewright::value::Located;
use serde_json::json;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokens::{Signer, jwks};

/// How many hashes of its token a cached verification may cost at most. One is for finding it; beside that it is compared, its
/// times are held against the clock, and its identity is shared.
const FACTOR: u32 = 3;

/// How long `work` takes, at best: the machine can only make a round longer.
fn fastest<T>(work: impl Fn() -> T) -> Duration {
    const TIMES: u32 = 1_000;
    let round = |_| {
        let begun = Instant::now();
        for _ in 0..TIMES {
            black_box(work());
        }
        begun.elapsed()
    };
    (0..20).map(round).min().unwrap() / TIMES
}

fn issuer(signer: &Signer, cache: usize, directory: &std::path::Path) -> [Arc<Issuer>; 1] {
    let path = directory.join("keys.json");
    std::fs::write(&path, jwks(&[signer])).unwrap();
    let text = format!(
        "issuer = 'https://id.example.com/'\naudience = ['api']\nalgorithms = ['{}']\njwks = {{ file = '{}' }}\ncache = {cache}",
        signer.algorithm,
        path.display()
    );
    let config: IssuerConfig = toml::from_str(&text).unwrap();
    let clock: SharedClock = Arc::new(SystemClock);
    let name = Located::nowhere("main".to_owned());
    let mut d = Diagnostics::default();
    let issuers = Issuers::build([(&name, &config)], &StatePool::new(), &clock, &mut d);
    [Arc::clone(issuers.get("main").unwrap_or_else(|_| panic!("{}", d.render(false))))]
}

fn verify(c: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "https://id.example.com/", "aud": ["api", "web"], "sub": "4711", "iat": now, "exp": now + 86_400, "jti": "7f0c",
        "scope": "openid orders:read orders:write", "realm_access": { "roles": ["user", "admin"] }, "name": "Zoë",
    });
    let consumers = Consumers::default();
    let signers = [Signer::hs256("k", &[7; 32]), Signer::rs256("k"), Signer::es256("k"), Signer::eddsa("k")];
    for signer in &signers {
        let token = signer.token(&claims);
        let hash = || aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, black_box(token.as_bytes()));
        let mut group = c.benchmark_group(signer.algorithm);
        for (name, cache) in [("cold", 0), ("cached", 8192)] {
            let issuers = issuer(signer, cache, directory.path());
            let ask = || Issuer::verify(&issuers, black_box(token.as_bytes()), &consumers, false);
            assert!(matches!(ask(), Answer::Accepted(_)));
            group.bench_function(name, |b| b.iter(ask));
            if (signer.algorithm, name) == ("RS256", "cached") {
                let (cached, hash) = (fastest(ask), fastest(hash));
                println!("RS256 cached takes {cached:?}, a hash of its token {hash:?}");
                // A test run executes this too, unoptimised and beside others: it only tells.
                assert!(cfg!(debug_assertions) || cached <= hash * FACTOR, "the bound is {FACTOR} hashes");
            }
        }
        group.bench_function("hash", |b| b.iter(hash));
        group.finish();
    }
}

criterion_group!(benches, verify);
criterion_main!(benches);
