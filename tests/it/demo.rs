//! `gatewright demo`: it starts, and every command that it prints does what the line above it says.

use crate::support::gateway::binary;
use crate::support::{SOON, eventually};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command must print: where it is found in the command, and what in its output.
const EXPECTED: [(&str, &[&str]); 19] = [
    ("-s http://GATEWAY/\n", &["\"origin\""]),
    ("/api/orders", &["\"/orders?page=2\"", "\"x-request-id\"", "\"x-route\": \"api\"", "\"via\""]),
    ("/echo\n", &["hello"]),
    ("/hello", &["HTTP/1.1 200", "hello from the gateway"]),
    ("-si http://GATEWAY/private", &["HTTP/1.1 401", "www-authenticate: ApiKey", "credential_missing"]),
    ("x-api-key", &["HTTP/1.1 200", "\"x-consumer-name\": \"demo\"", "\"x-consumer-roles\": \"orders:read\""]),
    ("authorization", &["HTTP/1.1 200", "\"x-user\": \"alice\""]),
    ("/limited", &["200 200 200 429 429"]),
    ("/limits/top", &["\"limited\""]),
    ("/cached", &["HTTP/1.1 200", "fwd=uri-miss"]),
    ("/purge?all", &["\"purged\": 1"]),
    ("/old/page", &["HTTP/1.1 308", "location: /api/page"]),
    ("/nowhere", &["HTTP/1.1 404", "application/problem+json", "route_not_found"]),
    ("DELETE", &["HTTP/1.1 405", "allow: POST"]),
    ("/slow", &["HTTP/1.1 504", "deadline_exceeded"]),
    ("/healthz", &["\"endpoints\""]),
    ("/status", &["\"config_hash\""]),
    ("/metrics", &["gatewright_http_requests_total"]),
    ("/reload", &["\"applied\""]),
];

#[test]
fn every_line_of_the_demo_does_what_it_says() {
    let mut child = Command::new(binary());
    child.args(["demo", "--free-ports"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = Demo(child.spawn().unwrap());
    let mut pipe = demo.0.stdout.take().unwrap();
    let printed = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&printed);
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut chunk) {
            sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
    });
    let so_far = || printed.lock().unwrap().clone();
    eventually("it says what to try", SOON, || so_far().contains("/reload\n"));
    let text = so_far();
    let gateway = text.split_once("http://").unwrap().1.split_once(',').unwrap().0.to_owned();
    assert!(!text.contains(":8080") && !text.contains(":9101"), "{text}");
    let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("curl ") || line.starts_with("for ")).collect();
    assert_eq!(commands.len(), EXPECTED.len(), "{text}");
    let run = |command: &str| {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (command, (part, expected)) in commands.iter().zip(EXPECTED) {
        let shown = format!("{command}\n").replace(&gateway, "GATEWAY");
        assert!(shown.contains(part), "{shown} is not the line of {part}");
        let said = run(command);
        for expected in expected {
            assert!(
                said.to_ascii_lowercase().contains(&expected.to_ascii_lowercase()),
                "{command} says:\n{said}\nwithout {expected}"
            );
        }
        if part == "/cached" {
            let again = run(command);
            assert!(again.to_ascii_lowercase().contains("; hit"), "{again}");
        }
        if part == "x-api-key" {
            assert!(!said.contains("demo-key"), "the origin sees the key: {said}");
        }
    }
}
