//! A double of Consul's health API. It is not Consul: no package of Consul exists where these tests run.
//!
//! It has what the API's documentation says about blocking queries and what makes clients fail: an index that a query is held
//! back for until it grows or the wait (and up to a sixteenth more) is over; an index that goes backwards, for which a
//! query is held back all the same; 403 for a token without rights; 500; answers without a change.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Ends with the test process; queries are held on threads of their own.
pub struct Consul {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    index: u64,
    instances: Vec<Value>,
    token: Option<String>,
    failure: Option<u16>,
    queries: Vec<Query>,
}

/// A query as it arrived.
#[derive(Debug, Clone)]
pub struct Query {
    pub path: String,
    pub parameters: HashMap<String, String>,
    pub token: Option<String>,
}

impl Consul {
    pub fn start() -> Consul {
        Consul::serve(None)
    }

    /// Over TLS.
    pub fn secure(config: Arc<rustls::ServerConfig>) -> Consul {
        Consul::serve(Some(config))
    }

    fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> Consul {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared: Arc<Shared> = Arc::default();
        shared.state.lock().unwrap().index = 10;
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, tls) = (serving.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => shared.converse(stream),
                    Some(tls) => {
                        let connection = rustls::ServerConnection::new(tls).unwrap();
                        shared.converse(rustls::StreamOwned::new(connection, stream));
                    }
                });
            }
        });
        Consul { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn edit(&self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }

    /// Replaces the instances of the service.
    pub fn register(&self, addresses: &[SocketAddr]) {
        self.edit(|state| {
            state.index += 1;
            state.instances = addresses.iter().map(|address| instance(*address)).collect();
        });
    }

    /// As a restored snapshot does: other instances, and an index that has gone back.
    pub fn restore(&self, addresses: &[SocketAddr], index: u64) {
        self.edit(|state| {
            state.index = index;
            state.instances = addresses.iter().map(|address| instance(*address)).collect();
        });
    }

    /// Only this token may read.
    pub fn demand_token(&self, token: Option<&str>) {
        self.edit(|state| state.token = token.map(str::to_owned));
    }

    /// Every query gets this status.
    pub fn fail(&self, status: Option<u16>) {
        self.edit(|state| state.failure = status);
    }

    /// Lets queries that are held back return without a change.
    pub fn wake(&self) {
        self.edit(|state| state.index += 1);
    }

    pub fn queries(&self) -> Vec<Query> {
        self.shared.state.lock().unwrap().queries.clone()
    }
}

fn instance(address: SocketAddr) -> Value {
    json!({
        "Node": { "ID": "", "Node": "n1", "Address": "192.0.2.200", "Datacenter": "dc1", "Meta": {} },
        "Service": {
            "ID": address.to_string(), "Service": "orders", "Tags": ["v2"], "Address": address.ip().to_string(),
            "Port": address.port(), "Weights": { "Passing": 1, "Warning": 1 }, "Meta": { "zone": "a" },
        },
        "Checks": [{ "CheckID": "serfHealth", "Status": "passing" }],
    })
}

impl Shared {
    fn converse(&self, mut stream: impl Read + Write) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.extend_from_slice(&byte),
                _ => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let (status, index, body) = self.answer(&query(&head));
        let index = index.map_or(String::new(), |index| format!("X-Consul-Index: {index}\r\n"));
        let head = format!("HTTP/1.1 {status} x\r\n{index}Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
        let _ = stream.flush();
    }

    fn answer(&self, query: &Query) -> (u16, Option<u64>, String) {
        let mut state = self.state.lock().unwrap();
        state.queries.push(query.clone());
        let wanted = query.parameters.get("index").map(|index| index.parse::<u64>().unwrap());
        let wait = query.parameters.get("wait").map(|wait| wait.strip_suffix("ms").unwrap().parse().unwrap());
        let wait = Duration::from_millis(wait.unwrap_or(300_000));
        let end = Instant::now() + wait + wait / 16;
        loop {
            if let Some(status) = state.failure {
                return (status, None, "failed".to_owned());
            }
            if state.token.is_some() && state.token != query.token {
                return (403, None, "Permission denied: token lacks permission 'service:read'".to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if wanted.is_none_or(|wanted| state.index > wanted) || left.is_zero() {
                return (200, Some(state.index), Value::from(state.instances.clone()).to_string());
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

fn query(head: &str) -> Query {
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let token =
        head.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case("x-consul-token"));
    Query {
        path: path.to_owned(),
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        token: token.map(|(_, value)| value.to_owned()),
    }
}
