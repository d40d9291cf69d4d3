//! Tokens and keys of an authorisation server that is not ours: npm's `oauth2-mock-server`, over HTTPS.

use crate::support::raw::{request, send};
use crate::support::tls::Authority;
use crate::support::{Gateway, Origin, SOON, eventually, everything_to};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Killed when dropped.
struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u16,
    issuer: String,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(authority: &Authority) -> Server {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules = root.join("target/node");
        assert!(modules.join("node_modules/oauth2-mock-server").exists(), "run `scripts/setup.sh test`, which installs it");
        let directory = tempfile::tempdir().unwrap();
        authority.issue(&["localhost"]).write(directory.path(), "server");
        let mut command = Command::new("node");
        command.arg(root.join("tests/fixtures/oauth/server.mjs")).arg(modules);
        command.arg(directory.path().join("server.key")).arg(directory.path().join("server.pem"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut server = Server { child, input, output, port: 0, issuer: String::new(), _directory: directory };
        let said: Value = serde_json::from_str(&server.line()).unwrap();
        server.port = said["port"].as_u64().unwrap().try_into().unwrap();
        server.issuer = said["issuer"].as_str().unwrap().to_owned();
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server has ended");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }

    fn token(&mut self, kid: &str, claims: &Value) -> String {
        self.ask(&format!("token {kid} {claims}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(gateway: &Gateway, token: &str) -> u16 {
    send(gateway.http(), "GET", "/a", &[("authorization", &format!("Bearer {token}"))], b"").status
}

#[test]
fn tokens_of_another_server_count_and_its_new_keys_are_found() {
    let (origin, authority) = (Origin::start("a"), Authority::new());
    let mut server = Server::start(&authority);
    let toml = format!(
        "[jwt.main]\nissuer = \"{issuer}\"\naudience = [\"orders\"]\nalgorithms = ['RS256', 'RS512', 'PS256', 'ES256', 'ES384', 'EdDSA']\n\
         jwks = {{ url = \"https://localhost:{port}/jwks\", ca = \"ca.pem\", refresh = \"1h\", cooldown = \"1s\" }}\n\
         claims = {{ roles = \"groups\" }}\n{upstream}filters = [{{ jwt = {{ issuer = \"main\" }} }}, \
         {{ require = {{ condition = \"claims.tenant == 'acme' && 'read' in identity.scopes\", roles = [\"ops\"] }} }}]\n\
         [jwt.machine]\nissuer = \"{issuer}\"\naudience = [\"orders\"]\nalgorithms = ['RS256', 'RS512', 'PS256', 'ES256', 'ES384', 'EdDSA']\n\
         jwks = {{ url = \"https://localhost:{port}/jwks\", ca = \"ca.pem\" }}\nclaims = {{ consumer = \"scope\" }}\n\
         [routes.machine]\nmatch = {{ path = \"/machine\" }}\nupstream = \"app\"\nfilters = [{{ jwt = {{ issuer = \"machine\" }} }}]\n",
        issuer = server.issuer,
        port = server.port,
        upstream = everything_to(&[&origin], ""),
    );
    let prepare = |directory: &Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let gateway = Gateway::try_start_with(&toml, prepare).unwrap_or_else(|ended| panic!("did not start: {ended:?}"));
    let good = json!({ "sub": "alice", "aud": "orders", "scope": "read write", "tenant": "acme", "groups": ["ops"] });
    // Each key is new to the gateway: it learns of it by the token.
    for algorithm in ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"] {
        let kid = server.ask(&format!("key {algorithm}"));
        let token = server.token(&kid, &good);
        eventually(&format!("the key for {algorithm} is known"), SOON, || ask(&gateway, &token) == 200);
        assert_eq!(origin.last().header("x-credential-id").as_deref(), Some("jwt:main:alice"));
    }
    let kid = server.ask("key ES256");
    let known = server.token(&kid, &good);
    eventually("the last key is known", SOON, || ask(&gateway, &known) == 200);
    for (change, status) in [
        (json!({ "aud": "billing" }), 401),
        (json!({ "aud": ["billing", "orders"] }), 200),
        (json!({ "iss": "https://evil.example" }), 401),
        (json!({ "exp": 1 }), 401),
        (json!({ "nbf": 4_000_000_000_u64 }), 401),
        (json!({ "tenant": "other" }), 403),
        (json!({ "scope": "write" }), 403),
        (json!({ "groups": ["guests"] }), 403),
        (json!({ "groups": 7 }), 401),
    ] {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let token = server.token(&kid, &claims);
        assert_eq!(ask(&gateway, &token), status, "{change}");
    }
    // Its own endpoint, as a client would use it.
    let mut client = authority.trusting().connect(([127, 0, 0, 1], server.port).into(), "localhost").or_else(|_| {
        let six = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, server.port));
        authority.trusting().connect(six, "localhost")
    });
    let form = b"grant_type=client_credentials&scope=read&aud=orders";
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("authorization", "Basic YTpi")];
    let answer = client.as_mut().unwrap().exchange(request("POST", "/token", &headers, form)).unwrap();
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    eventually("the token of the endpoint counts", SOON, || {
        send(gateway.http(), "GET", "/machine", &[("authorization", &bearer)], b"").status == 200
    });
    assert_eq!(origin.last().header("x-credential-id").as_deref(), Some("jwt:machine:read"));
    assert_eq!(ask(&gateway, &token), 401, "it names no subject");
}
