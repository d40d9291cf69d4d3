//! See `head` in `targets.rs`, which `cargo test --test fuzz` runs as well.

#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "each binary runs one of them")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::answer(data));
