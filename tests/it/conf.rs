//! The examples in `conf/`: each is valid, fits the JSON Schema that editors use, and no key is in none of them.

use crate::support::gateway::binary;
use crate::support::tls::Authority;
use gatewright::config::load_text;
use gatewright::filter::Registry;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Session secret of `conf/secrets.toml`: base64url of 48 bytes.
const SESSION: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm";
const PLAIN: &str = "0123456789abcdef0123456789abcdef";

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

/// The examples by name.
fn examples() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(conf()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A copy of the examples with the certificates and secrets that they name.
fn with_files() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    copy(&conf(), root);
    let authority = Authority::new();
    for made in ["tls", "secrets", "run", "conf.d"] {
        std::fs::create_dir(root.join(made)).unwrap();
    }
    for certificate in ["www", "wildcard", "gateway"] {
        authority.issue(&["www.example.com"]).write(&root.join("tls"), certificate);
    }
    for trusted in ["partners", "internal", "redis-ca"] {
        std::fs::write(root.join(format!("tls/{trusted}.pem")), &authority.pem).unwrap();
    }
    // An OCSP response that says "successful" and nothing more.
    std::fs::write(root.join("tls/www.ocsp"), [0x30, 3, 0x0a, 1, 0]).unwrap();
    for secret in ["redis", "sticky", "consul", "backend"] {
        std::fs::write(root.join("secrets").join(secret), PLAIN).unwrap();
    }
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.encode(key.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n");
    std::fs::write(root.join("secrets/identity.pem"), pem).unwrap();
    std::fs::copy(conf().join("credentials/acme.pub.pem"), root.join("secrets/next.pub.pem")).unwrap();
    std::fs::write(root.join("run/session_secret"), SESSION).unwrap();
    directory
}

fn gatewright(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).current_dir(directory).env_clear();
    command.env("CREDENTIALS_DIRECTORY", directory.join("run"));
    command.env("SENTINEL_URL", "rediss://:secret@10.0.0.2:26379").env("ACME_SIGNING_SECRET", PLAIN);
    command.output().unwrap()
}

#[test]
fn every_example_is_valid() {
    let directory = with_files();
    let names: Vec<String> = examples().into_keys().collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let output = gatewright(directory.path(), &["check", "-c", &name]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        // The one that is meant to be thought about.
        assert!(said.is_empty() || (name == "cache.toml" && said.contains("1 warning")), "{name}: {said}");
    }
}

/// The schema as `gatewright schema` prints it.
fn schema() -> Value {
    let output = gatewright(&conf(), &["schema"]);
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// TOML as a validator of JSON sees it: times are text.
fn json(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(flag) => json!(flag),
        toml::Value::Datetime(time) => json!(time.to_string()),
        toml::Value::Array(list) => list.iter().map(json).collect(),
        toml::Value::Table(table) => {
            table.iter().map(|(key, value)| (key.clone(), json(value))).collect::<serde_json::Map<_, _>>().into()
        }
    }
}

fn document(text: &str) -> Value {
    json(&toml::Value::Table(text.parse().unwrap()))
}

/// The schema, compiled; one that is not valid by the schema of JSON Schema 2020-12 does not compile.
struct Validator {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.add_resource("file:///gatewright.json", schema()).unwrap();
        let index = compiler.compile("file:///gatewright.json", &mut schemas).unwrap_or_else(|why| panic!("{why:#}"));
        Validator { schemas, index }
    }

    /// What is wrong with a document.
    fn errors(&self, document: &Value) -> Option<String> {
        self.schemas.validate(document, self.index).err().map(|why| format!("{why:#}"))
    }
}

#[test]
fn the_schema_is_one_and_takes_every_example() {
    assert_eq!(schema()["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let validator = Validator::new();
    for (name, text) in examples() {
        assert_eq!(validator.errors(&document(&text)), None, "{name}");
    }
}

/// What `check` says of the shape of a file, an editor says too.
#[test]
fn the_schema_refuses_what_has_the_wrong_shape() {
    let validator = Validator::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut refused = 0;
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        let (Ok(text), Ok(said)) = (std::fs::read_to_string(&path), std::fs::read_to_string(path.with_extension("stderr")))
        else {
            continue;
        };
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        let wrong = [
            "error: unknown key",
            "error: missing key",
            "error: unknown section",
            "error: expected a table",
            "error: there is no filter",
        ];
        // Not in a file that it includes.
        let here = format!("--> tests/golden/{}:", name(&path));
        let lines: Vec<&str> = said.lines().collect();
        if lines.windows(2).any(|two| two[1].contains(&here) && wrong.iter().any(|wrong| two[0].starts_with(wrong))) {
            assert!(validator.errors(&json(&toml::Value::Table(table))).is_some(), "{} is valid by the schema", path.display());
            refused += 1;
        }
    }
    assert!(refused >= 10, "only {refused}");
    let gateway = "[listeners.a]\naddress = \"127.0.0.1:1\"\n";
    assert_eq!(validator.errors(&document(gateway)), None);
    for wrong in ["header_timeout = \"soon\"", "max_headers = \"many\"", "http2 = \"maybe\"", "tls = []"] {
        assert!(validator.errors(&document(&format!("{gateway}{wrong}\n"))).is_some(), "{wrong} is valid by the schema");
    }
}

/// What is written, in which text, and values of it that are possible and that are not.
type Case<'a> = (&'a str, &'a dyn Fn(&str) -> String, &'a [&'a str], &'a [&'a str]);

/// Values that have a parser and a schema of their own, written by hand: the two agree on each.
#[test]
fn schema_and_parser_take_the_same_values() {
    let validator = Validator::new();
    let listener = |line: &str| format!("[listeners.a]\naddress = \"127.0.0.1:1\"\n{line}\n");
    let filter = |table: &str| listener(&format!("[chains.c]\nfilters = [{table}]"));
    let limited = |rest: &str| filter(&format!("{{ rate_limit = {{ {rest} }} }}"));
    let by = |by: &str| limited(&format!("by = {by}, limits = [{{ rate = \"1/1s\" }}]"));
    let rate = |rate: &str| limited(&format!("by = \"route\", limits = [{{ rate = {rate} }}]"));
    let quota = |quota: &str| limited(&format!("by = \"route\", limits = [{{ quota = {quota} }}]"));
    let lease = |lease: &str| {
        limited(&format!("by = \"route\", limits = [{{ rate = \"1000/1s\" }}], store = \"redis\", lease = {lease}"))
    };
    let named = |name: &str| filter(&format!("{{ jwt = {{ issuer = {name} }} }}"));
    let header = |value: &str| filter(&format!("{{ request_headers = {{ set = {{ x-a = {value} }} }} }}"));
    let until = |time: &str| {
        let digest = "a".repeat(64);
        listener(&format!("[consumers.c]\ncredentials = [{{ api_key = {{ sha256 = \"{digest}\", expires = {time} }} }}]"))
    };
    let host = |hosts: &str| listener(&format!("[routes.r]\nmatch = {{ host = {hosts} }}\nfilters = [{{ health = {{}} }}]"));
    let upstream = |line: &str| listener(&format!("[upstreams.u]\nendpoints = [\"127.0.0.1:1\"]\n{line}"));
    let cases: &[Case] = &[
        ("http2", &|value| listener(&format!("http2 = {value}")), &["false", "\"cleartext\""], &["\"on\"", "1", "[]"]),
        (
            "duration",
            &|value| listener(&format!("header_timeout = {value}")),
            &["\"1s\"", "\"250ms\"", "\"2m\""],
            &["\"1\"", "\"s\"", "1", "\"1.5s\"", "\"-1s\""],
        ),
        (
            "size",
            &|value| listener(&format!("[server]\nmax_body = {value}")),
            &["\"32KiB\"", "\"2048B\"", "\"1MB\""],
            &["\"32kb\"", "32768", "\"KiB\""],
        ),
        (
            "by",
            &by,
            &["\"route\"", "[\"address\", \"header:x-a\"]", "\"claim:a\""],
            &["\"nobody\"", "\"header:\"", "[]", "1", "\"claim:\""],
        ),
        ("rate", &rate, &["\"60/1m\"", "\"10_000/1d\""], &["\"60\"", "60", "\"60/m\"", "\"/1m\""]),
        ("quota", &quota, &["\"1000/1d\"", "\"5/1mo\""], &["\"5/1y\"", "5", "\"5/2d\""]),
        ("lease", &lease, &["\"2%\"", "10"], &["\"2\"", "-1", "true"]),
        ("names", &named, &["\"main\"", "[\"main\", \"other\"]"], &["1", "[1]", "{}"]),
        (
            "text or secret",
            &header,
            &["\"a\"", "{ env = \"A\" }"],
            &["1", "{ env = \"A\", file = \"b\" }", "{ envv = \"A\" }", "[]"],
        ),
        ("time", &until, &["2099-01-01", "2099-01-01T00:00:00Z"], &["\"tomorrow\"", "1"]),
        ("hosts", &host, &["\"a.example\"", "[\"a.example\", \"*.b.example\"]"], &["1", "[1]"]),
        (
            "statuses",
            &|value| upstream(&format!("health = {{ path = \"/\", expect = {value} }}")),
            &["\"200-299\"", "\"200\""],
            &["[200]"],
        ),
        (
            "share",
            &|value| listener(&format!("[log]\naccess = {{ sample = {value} }}")),
            &["\"50%\"", "\"0.1%\""],
            &["\"50\"", "0.5", "\"%\""],
        ),
        ("address", &|value| listener("").replace("\"127.0.0.1:1\"", value), &["\"[::]:80\"", "\"unix:/a\""], &["80", "[]"]),
    ];
    let registry = Registry::builtin();
    let mut differ = Vec::new();
    for (what, text, good, bad) in cases {
        // Where names point to and what can be read is told later, when it is compiled.
        let shape = |text: &str| {
            let found = load_text("gatewright.toml", text, &registry, &|_| None).diagnostics;
            found.has_errors().then(|| found.render(false))
        };
        for value in *good {
            let text = text(value);
            differ.extend(shape(&text).map(|why| format!("the parser refuses {what} = {value}: {why}")));
            differ.extend(validator.errors(&document(&text)).map(|why| format!("the schema refuses {what} = {value}: {why}")));
        }
        for value in *bad {
            let text = text(value);
            if shape(&text).is_none() {
                differ.push(format!("the parser takes {what} = {value}"));
            }
            if validator.errors(&document(&text)).is_none() {
                differ.push(format!("the schema takes {what} = {value}"));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// A key of the schema: the table that it is a key of, by the name of its struct, and the key.
type Key = (String, String);

/// Where a secret comes from is explained once for all keys that may be one.
fn is_secret(schema: &Value) -> bool {
    schema["title"].as_str().is_some_and(|title| title.ends_with("secret"))
}

/// Follows a `$ref`; the table is known by the name of its struct from there on.
fn resolve<'a>(root: &'a Value, schema: &'a Value, owner: &str) -> (&'a Value, String) {
    match schema["$ref"].as_str().and_then(|target| target.strip_prefix("#/$defs/")) {
        Some(name) => (&root["$defs"][name], name.to_owned()),
        None => (schema, owner.to_owned()),
    }
}

fn list<'a>(schema: &'a Value, key: &str) -> &'a [Value] {
    schema[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// All keys that there are.
fn known(root: &Value, schema: &Value, owner: &str, seen: &mut BTreeSet<*const Value>, keys: &mut BTreeSet<Key>) {
    let (schema, owner) = resolve(root, schema, owner);
    if !seen.insert(schema) {
        return;
    }
    let owner = if is_secret(schema) { "secret".to_owned() } else { owner };
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        keys.insert((owner.clone(), key.clone()));
        known(root, value, &format!("{owner}.{key}"), seen, keys);
    }
    for variant in list(schema, "oneOf").iter().chain(list(schema, "anyOf")) {
        known(root, variant, &owner, seen, keys);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", ".NAME")] {
        if schema[key].is_object() {
            known(root, &schema[key], &format!("{owner}{suffix}"), seen, keys);
        }
    }
}

/// The keys that a document has.
fn used(root: &Value, schema: &Value, owner: &str, value: &Value, keys: &mut BTreeSet<Key>) {
    let (schema, owner) = resolve(root, schema, owner);
    let owner = if is_secret(schema) { "secret".to_owned() } else { owner };
    for (key, value) in value.as_object().into_iter().flatten() {
        if let Some(below) = schema["properties"].get(key) {
            keys.insert((owner.clone(), key.clone()));
            used(root, below, &format!("{owner}.{key}"), value, keys);
        } else if schema["additionalProperties"].is_object() {
            used(root, &schema["additionalProperties"], &format!("{owner}.NAME"), value, keys);
        }
    }
    for element in value.as_array().into_iter().flatten().filter(|_| schema["items"].is_object()) {
        used(root, &schema["items"], &format!("{owner}[]"), element, keys);
    }
    for variant in list(schema, "oneOf").iter().chain(list(schema, "anyOf")) {
        used(root, variant, &owner, value, keys);
    }
}

#[test]
fn every_key_stands_in_an_example() {
    let schema = schema();
    let (mut all, mut shown) = (BTreeSet::new(), BTreeSet::new());
    known(&schema, &schema, "", &mut BTreeSet::new(), &mut all);
    assert!(all.len() > 400, "{}", all.len());
    for text in examples().values() {
        used(&schema, &schema, "", &document(text), &mut shown);
    }
    let missing: Vec<_> = all.difference(&shown).map(|(owner, key)| format!("{owner}: {key}")).collect();
    assert!(missing.is_empty(), "in no file of conf/:\n{}", missing.join("\n"));
}
