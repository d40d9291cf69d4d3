//! What the raw head check costs for each request: a small API call and what a browser sends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark may panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gatewright::listener::head::{HeadLimits, HeadScanner};
use std::hint::black_box;

const API: &str = "GET /api/v1/orders/42?expand=lines&page=2 HTTP/1.1\r\n\
    Host: api.example.com\r\n\
    User-Agent: curl/8.9.1\r\n\
    Accept: application/json\r\n\
    Accept-Encoding: gzip\r\n\
    Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhY21lIn0.MEUCIQDx8v3zq7Yb1W5cJ0o1n2m3\r\n\
    X-Request-Id: 0192f0c1-7a3b-7cc0-8f00-1a2b3c4d5e6f\r\n\
    Connection: keep-alive\r\n\r\n";

fn browser() -> String {
    let mut head = String::from(
        "GET /search/results?q=api+gateway&sort=relevance&page=3&filter=%7B%22lang%22%3A%22en%22%7D HTTP/1.1\r\n\
        Host: www.example.com\r\nConnection: keep-alive\r\nCache-Control: max-age=0\r\n\
        sec-ch-ua: \"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\", \"Google Chrome\";v=\"128\"\r\nsec-ch-ua-mobile: ?0\r\n\
        sec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36\r\n\
        Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
        Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\
        Referer: https://www.example.com/search?q=api+gateway\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
        Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\nCookie: ",
    );
    let mut number = 0;
    while head.len() < 2_000 {
        head.push_str(&format!("session_{number}=MTcyNTAxMjM0NXxEdi1CQkFFQ180SUFBUkFCRUFBQVR; "));
        number += 1;
    }
    head.push_str("theme=dark\r\n\r\n");
    head
}

fn heads(c: &mut Criterion) {
    let browser = browser();
    let limits = HeadLimits::default();
    let mut group = c.benchmark_group("head");
    for (name, head) in [("api", API), ("browser", browser.as_str())] {
        let verdict = HeadScanner::new().scan(head.as_bytes(), &limits);
        assert!(matches!(verdict, Ok(Some(_))), "{name}: {verdict:?}");
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| HeadScanner::new().scan(black_box(head.as_bytes()), &limits));
        });
    }
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);
