//! The fuzz targets without a fuzzer: the committed corpus, and random mutations of it for a moment.
//!
//! `make fuzz` runs the same targets under libFuzzer, which finds what this cannot; this finds at once what a change has
//! broken. `GATEWRIGHT_FUZZ_EXECUTIONS=10000000 cargo test --release --test fuzz` runs for longer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

#[path = "../fuzz/targets.rs"]
#[allow(clippy::panic, clippy::expect_used, clippy::indexing_slicing, reason = "a finding is a panic")]
mod targets;

use std::path::Path;

/// Executions of each target: under two seconds without optimisation.
const EXECUTIONS: usize = 100_000;
/// The longest input that mutations make.
const LENGTH_MAX: usize = 4096;

/// Pieces that matter to the parsers, so that random mutations hit on more than noise.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"/",
    b"//",
    b"/../",
    b"/./",
    b"%2e",
    b"%2F",
    b"%5c",
    b"%00",
    b"%25",
    b"%",
    b"\\",
    b"..;",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"Connection: close\r\n",
    b"Upgrade: h2c\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET ",
    b"http://a/",
    b"_",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 X\r\n\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffff",
    b"PROXY TCP4 ",
    b"192.0.2.1 ",
    b"::1 ",
    b"65535",
    b"\x21\x11\x00\x0c",
    b"\xff",
    b"\xc3\xa9",
    b"\xc0\xae",
];

fn mutate(random: &mut fastrand::Rng, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    input.extend_from_slice(&corpus[random.usize(..corpus.len())]);
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        match random.u8(..7) {
            0 => input.insert(at, random.u8(..)),
            1 if at < input.len() => input[at] = random.u8(..),
            2 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            3 => drop(input.drain(at..input.len().min(at + random.usize(..8)))),
            4 => drop(input.splice(at..at, PIECES[random.usize(..PIECES.len())].iter().copied())),
            5 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            _ => {
                let piece: Vec<u8> = input[at..input.len().min(at + random.usize(..32))].to_vec();
                drop(input.splice(at..at, piece));
            }
        }
    }
    input.truncate(LENGTH_MAX);
}

fn run(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = std::fs::read_dir(&directory).unwrap();
    let mut corpus: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(corpus.len() >= 10, "{} has only {} inputs", directory.display(), corpus.len());
    corpus.sort();
    corpus.iter().for_each(|input| target(input));
    let asked = |name: &str| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let executions = asked("GATEWRIGHT_FUZZ_EXECUTIONS").unwrap_or(EXECUTIONS);
    // Another place to look at in every run; a finding is told with its seed and its input.
    let seed = asked("GATEWRIGHT_FUZZ_SEED").map_or_else(|| fastrand::u64(..), |seed: usize| seed as u64);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut input = Vec::new();
    for execution in 0..executions {
        mutate(&mut random, &corpus, &mut input);
        let found = std::panic::catch_unwind(|| target(&input));
        assert!(found.is_ok(), "{name}, seed {seed}, execution {execution}: {}", input.escape_ascii());
    }
}

#[test]
fn no_bytes_break_the_check_of_heads() {
    run("head", targets::head);
}

#[test]
fn no_bytes_break_the_canonical_path() {
    run("canonical_path", targets::canonical_path);
}

#[test]
fn no_bytes_break_the_proxy_protocol() {
    run("proxy_protocol", targets::proxy_protocol);
}

#[test]
fn no_bytes_break_the_check_of_chunks() {
    run("chunks", targets::chunks);
}

#[test]
fn no_bytes_break_the_check_of_answers() {
    run("answer", targets::answer);
}

/// `make fuzz` builds with `--locked`: a dependency that only the main lock file knows would break it unnoticed.
#[test]
fn the_fuzzers_lock_file_knows_every_dependency() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| toml::from_str::<toml::Table>(&std::fs::read_to_string(root.join(path)).unwrap()).unwrap();
    let (manifest, lock) = (read("Cargo.toml"), read("fuzz/Cargo.lock"));
    let mut packages = lock["package"].as_array().unwrap().iter();
    let gateway = packages.find(|package| package["name"].as_str() == Some("gatewright")).unwrap();
    // A name that stands for several versions is followed by one.
    let locked = gateway["dependencies"].as_array().unwrap().iter().filter_map(|name| name.as_str()?.split(' ').next());
    let locked: std::collections::BTreeSet<&str> = locked.collect();
    let optional = |dependency: &toml::Value| dependency.get("optional").is_some_and(|optional| optional.as_bool() == Some(true));
    let dependencies = manifest["dependencies"].as_table().unwrap().iter().filter(|(_, dependency)| !optional(dependency));
    let missing: Vec<&String> = dependencies.map(|(name, _)| name).filter(|name| !locked.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "run `cargo update --workspace --manifest-path fuzz/Cargo.toml`: {missing:?}");
}
