//! Loading as a whole: what must hold for every file, and that parser, schema and reference agree.

use super::*;
use crate::diagnostic::Diagnostics;
use crate::filter::{BuildContext, Filter, FilterConfig, Phases, Problem, Registry};
use crate::value::{Located, TextOrSecret};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// A filter with every shape of table that the schema knows.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Paint {
    /// The colour.
    #[allow(dead_code, reason = "decoded for its errors only")]
    color: Located<String>,
    /// How it is mixed.
    #[allow(dead_code, reason = "decoded for its errors only")]
    #[serde(default)]
    mix: Vec<Mix>,
    /// What comes first.
    #[allow(dead_code, reason = "decoded for its errors only")]
    primer: Option<Oil>,
    /// Where the key to the shop is.
    #[allow(dead_code, reason = "decoded for its errors only")]
    key: Option<TextOrSecret>,
    /// How often.
    #[allow(dead_code, reason = "decoded for its errors only")]
    #[serde(default)]
    coats: u8,
}

#[derive(Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "decoded for its errors only")]
enum Mix {
    Oil(Oil),
    Water {},
}

#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Oil {
    #[allow(dead_code, reason = "decoded for its errors only")]
    kind: Option<String>,
}

struct Painted;
impl Filter for Painted {
    fn phases(&self) -> Phases {
        Phases::RESPONSE
    }
}

impl FilterConfig for Paint {
    const NAME: &'static str = "paint";
    type Filter = Painted;
    fn build(self, _: &mut BuildContext<'_>) -> Result<Painted, Problem> {
        Ok(Painted)
    }
}

/// A filter that needs nothing said.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Plain {}

impl FilterConfig for Plain {
    const NAME: &'static str = "plain";
    type Filter = Painted;
    fn build(self, _: &mut BuildContext<'_>) -> Result<Painted, Problem> {
        Ok(Painted)
    }
}

fn registry() -> Registry {
    Registry::default().with::<Paint>().with::<Plain>()
}

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8080".to_owned()),
        "ON" => Some("true".to_owned()),
        _ => None,
    }
}

fn text(text: &str) -> Loaded {
    load_text("a.toml", text, &registry(), &env)
}

fn good(input: &str) -> Config {
    let loaded = text(input);
    assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics.render(false));
    loaded.config
}

/// The findings as `line:column message`, in the order of the text.
fn findings(d: &Diagnostics) -> Vec<String> {
    let mut list: Vec<_> = d
        .list
        .iter()
        .map(|found| {
            let place =
                found.primary.as_ref().and_then(|(span, _)| d.place(span)).map_or((0, 0), |(_, line, column)| (line, column));
            (place, format!("{}:{} {}", place.0, place.1, found.message))
        })
        .collect();
    list.sort();
    list.into_iter().map(|(_, text)| text).collect()
}

const GOOD: &str = r#"
[server]
threads = "${THREADS:-2}"
watch = "${ON}"
trusted_proxies = ["10.0.0.0/8"]

[log]
access = { output = "off", sample = "0.5%" }

[listeners.http]
address = "127.0.0.1:${PORT}"
max_headers = 50

[upstreams.orders]
endpoints = ["127.0.0.1:3001"]

[chains.partner]
filters = [{ paint = { color = "${request_id}", mix = [{ oil = { kind = "a" } }, { water = {} }] } }, { plain = {} }]

[routes.orders]
match = { path = "/orders" }
upstream = "orders"
filters = [{ plain = {} }, { use = "partner" }]
"#;

#[test]
fn a_good_file_becomes_a_tree() {
    let config = good(GOOD);
    assert_eq!(config.server.threads.as_deref(), Some(&2));
    assert!(config.server.watch);
    assert_eq!(config.listeners["http"].address.to_string(), "127.0.0.1:8080");
    assert_eq!((*config.listeners["http"].max_headers, *config.listeners["http"].max_connections), (50, 50_000));
    let filters = &config.routes["orders"].filters;
    assert!(matches!(&filters[0], FilterEntry::Filter(spec) if spec.name == "plain"));
    assert!(matches!(&filters[1], FilterEntry::Use(name) if name.value == "partner"));
    assert_eq!(config.chains["partner"].filters.len(), 2);
    assert_eq!(config.summary(), "1 listener, 1 route, 1 upstream, 1 chain");
}

#[test]
fn one_bad_entry_hides_no_other() {
    let loaded = text(
        "[listeners.a]\naddress = 5\nmax_heders = 1\n[listeners.b]\naddress = '127.0.0.1:1'\nmax_uri = 7\n\
         [routes.r]\nmatch = { path = 2, hots = 3 }\nupstream = 'u'\n",
    );
    assert_eq!(
        findings(&loaded.diagnostics),
        [
            "2:11 expected an address such as \"127.0.0.1:8080\"",
            "3:1 unknown key `max_heders`",
            "6:11 expected a size such as \"512B\"",
            "8:18 expected a string",
            "8:21 unknown key `hots`",
            "9:12 there is no upstream `u`",
        ]
    );
}

#[test]
fn filters_report_all_their_errors() {
    let loaded = text(
        "[listeners.a]\naddress = '127.0.0.1:1'\n[routes.r]\nmatch = {}\nfilters = [\n  { paint = { colour = 'red', coats = 300 } },\n  \
         { paint = { color = 'red', mix = [{ oyl = {} }, { oil = { kid = 1 } }, 5] } },\n  { paint = {} },\n  { pant = {} },\n]\n",
    );
    assert_eq!(
        findings(&loaded.diagnostics),
        [
            "6:15 unknown key `colour`",
            "6:39 `300` is not possible here",
            "7:39 unknown key `oyl`",
            "7:61 unknown key `kid`",
            "7:74 expected a string or a table",
            "8:13 missing key `color`",
            "9:5 there is no filter `pant`",
        ]
    );
}

#[test]
fn references_to_broken_sections_are_not_dangling() {
    let loaded = text(
        "[listeners.a]\naddress = '127.0.0.1:1'\n[upstreams.u]\nendpoints = 5\n[chains.c]\nfilter = []\n\
         [routes.r]\nmatch = {}\nupstream = 'u'\nfilters = [{ use = 'c' }]\n",
    );
    assert_eq!(findings(&loaded.diagnostics).len(), 2, "{}", loaded.diagnostics.render(false));
}

#[test]
fn only_whole_references_become_numbers_and_booleans() {
    let loaded =
        text("[server]\nthreads = '4'\nwatch = 'x${ON}'\n[listeners.a]\naddress = '127.0.0.1:1'\nmax_headers = '${PORT}0'\n");
    assert_eq!(
        findings(&loaded.diagnostics),
        [
            "2:11 expected a whole number from 0 to 4294967295",
            "3:9 expected true or false",
            "6:15 expected a whole number from 0 to 4294967295"
        ]
    );
}

#[test]
fn errors_beyond_the_bound_are_counted() {
    let mut input = String::from("[listeners.a]\naddress = '127.0.0.1:1'\n");
    for n in 0..5_000 {
        writeln!(input, "[routes.r{n}]\nmatch = {{ pth = '/' }}").unwrap();
    }
    let loaded = text(&input);
    assert_eq!((loaded.diagnostics.list.len(), loaded.diagnostics.errors()), (100, 5_000));
}

#[test]
fn the_hash_follows_text_and_environment() {
    let hash = |input: &str, env: &dyn Fn(&str) -> Option<String>| load_text("a", input, &registry(), env).hash;
    let input = "[server]\nvia = '${NAME:-x}'\n";
    assert_eq!(hash(input, &|_| None), hash(input, &|_| Some("x".to_owned())));
    assert_ne!(hash(input, &|_| None), hash(input, &|_| Some("y".to_owned())));
    assert_ne!(hash("a = 1", &|_| None), hash("a = 2", &|_| None));
    // Fixed for good: dashboards compare it across versions.
    assert_eq!(hash("", &|_| None), "af64724c8602eb6e");
}

#[test]
fn directories_and_includes_are_one_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let main = write("main.toml", "[server]\ninclude = ['conf.d/*.toml', 'more.toml']\nthreads = 3\n");
    write("conf.d/b.toml", "[routes.b]\nmatch = { path = '/b' }\n");
    write("conf.d/a.toml", "[listeners.a]\naddress = '127.0.0.1:1'\n[server]\ninclude = ['deep/*.toml']\n");
    write("conf.d/deep/c.toml", "[routes.c]\nmatch = { path = '/c' }\n");
    write("conf.d/.hidden.toml", "not = read");
    write("more.toml", "[routes.d]\nmatch = { path = '/d' }\n");
    let load = |paths: &[PathBuf]| {
        let loaded = super::load(paths, &registry(), &env);
        assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics.render(false));
        loaded
    };
    let loaded = load(&[main]);
    let names: Vec<_> = loaded.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["main.toml", "a.toml", "c.toml", "b.toml", "more.toml"]);
    let directories: Vec<_> = loaded.directories.iter().map(|path| path.strip_prefix(dir.path()).unwrap()).collect();
    assert_eq!(directories, ["", "conf.d", "conf.d/deep"].map(std::path::Path::new));
    let config = loaded.config;
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["b", "c", "d"]);
    assert_eq!((config.server.threads.as_deref(), config.server.include.len()), (Some(&3), 3));
    // A file that is named and included is read once.
    let twice = load(&[dir.path().join("conf.d/a.toml"), dir.path().join("conf.d")]);
    assert_eq!(twice.files.len(), 3);
}

/// Looks for time that grows faster than the file: sixteen times the routes may take 64 times as long, where a quadratic
/// step would take 256. Wide, because tests share their machine.
#[test]
fn loading_is_linear_in_the_number_of_routes() {
    let file = |routes: usize| {
        let mut out = String::from(GOOD);
        for n in 0..routes {
            writeln!(
                out,
                "[routes.r{n}]\nmatch = {{ host = 'h{n}.example.com', path = '/a/{n}' }}\nupstream = 'orders'\nfilters = [{{ plain = {{}} }}]"
            )
            .unwrap();
        }
        out
    };
    let time = |input: &str| {
        let best = (0..3).map(|_| {
            let start = Instant::now();
            assert!(!text(input).diagnostics.has_errors());
            start.elapsed()
        });
        best.min().unwrap()
    };
    let (small, large) = (time(&file(750)), time(&file(12_000)));
    assert!(large < small * 64, "{small:?} against {large:?}");
}

/// The filters of this build, and those of the tests.
fn full_registry() -> Registry {
    Registry::builtin().with::<Paint>().with::<Plain>()
}

/// Every key that the schema knows is known to the parser, and the other way round. The parser is asked with an unknown key
/// at each table, and its answer names the keys that it knows.
#[test]
fn schema_and_parser_know_the_same_keys() {
    let registry = full_registry();
    let schema = schema(&registry);
    let mut tables = 0;
    for (section, value) in schema["properties"].as_object().unwrap() {
        let value = match load::is_named(section) {
            true => (vec![section.clone(), "x".to_owned()], value["additionalProperties"].clone()),
            false => (vec![section.clone()], value.clone()),
        };
        probe(&schema, &value.1, &value.0, &mut tables);
    }
    for filter in schema["$defs"]["Filter"]["oneOf"].as_array().unwrap() {
        let (name, value) = filter["properties"].as_object().unwrap().iter().next().unwrap();
        if name != "use" {
            probe(&schema, value, &["chains".into(), "x".into(), "filters".into(), "[]".into(), name.clone()], &mut tables);
        }
    }
    assert!(tables >= 100, "only {tables} tables were compared");
}

fn probe(schema: &Value, value: &Value, path: &[String], tables: &mut usize) {
    if let Some(target) = value.get("$ref").and_then(Value::as_str) {
        if target != "#/$defs/Filter" {
            probe(schema, schema.pointer(target.strip_prefix('#').unwrap()).unwrap(), path, tables);
        }
        return;
    }
    let below = |key: &str| path.iter().cloned().chain([key.to_owned()]).collect::<Vec<_>>();
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        let expected: Vec<_> = properties.keys().cloned().collect();
        let mut known = parser_keys(path);
        known.sort();
        assert_eq!(known, expected, "at {path:?}");
        *tables += 1;
        for (key, value) in properties {
            probe(schema, value, &below(key), tables);
        }
    }
    if let Some(items) = value.get("items") {
        probe(schema, items, &below("[]"), tables);
    }
    if let Some(values) = value.get("additionalProperties").filter(|values| values.is_object()) {
        probe(schema, values, &below("x"), tables);
    }
    let variants: Vec<&Value> = ["oneOf", "anyOf"].iter().filter_map(|key| value.get(key)?.as_array()).flatten().collect();
    // The variants of an enum are one table to the parser: each has one key of all that it knows.
    let keys: Vec<_> = variants.iter().filter_map(|variant| only_key(variant)).collect();
    if keys.len() > 1 {
        let mut known = parser_keys(path);
        let plain =
            variants.iter().flat_map(|v| v.get("enum").and_then(Value::as_array).into_iter().flatten().chain(v.get("const")));
        let mut expected: Vec<String> = keys.iter().map(|(key, _)| (*key).clone()).collect();
        expected.extend(plain.map(|value| value.as_str().unwrap().to_owned()));
        known.sort();
        expected.sort();
        assert_eq!(known, expected, "at {path:?}");
        *tables += 1;
        for (key, value) in keys {
            probe(schema, value, &below(key), tables);
        }
    } else {
        variants.iter().for_each(|variant| probe(schema, variant, path, tables));
    }
}

fn only_key(variant: &Value) -> Option<(&String, &Value)> {
    let properties = variant.get("properties")?.as_object()?;
    let required = variant.get("required")?.as_array()?.len() == 1;
    properties.iter().next().filter(|_| required && properties.len() == 1)
}

/// What the parser says it knows at a path.
fn parser_keys(path: &[String]) -> Vec<String> {
    let inner = path.iter().rev().fold("{ \"?\" = 0 }".to_owned(), |inner, key| match key.as_str() {
        "[]" => format!("[{inner}]"),
        key => format!("{{ \"{key}\" = {inner} }}"),
    });
    let document = inner.strip_prefix("{ ").unwrap().strip_suffix(" }").unwrap();
    let (tree, errors) = toml::de::DeTable::parse_recoverable(document);
    assert!(errors.is_empty(), "{document}");
    let mut tree = tree.into_inner();
    let message = ask(&mut tree, path);
    let (_, known) = message.split_once("`, ").unwrap_or_else(|| panic!("{document}: {message}"));
    suggest::quoted(known).map(str::to_owned).collect()
}

/// Serde's own words for the unknown key, without the limits of a rendered message.
fn ask(tree: &mut toml::de::DeTable<'_>, path: &[String]) -> String {
    use toml::de::{DeValue, ValueDeserializer};
    let (section, value) = tree.iter().next().map(|(key, value)| (key.get_ref().to_string(), value.clone())).unwrap();
    fn inner<'i>(value: &toml::Spanned<DeValue<'i>>) -> toml::Spanned<DeValue<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => table.values().next().unwrap().clone(),
            DeValue::Array(list) => list[0].clone(),
            other => panic!("{other:?}"),
        }
    }
    fn error<'de, T: Deserialize<'de>>(value: toml::Spanned<DeValue<'de>>) -> String {
        T::deserialize(ValueDeserializer::from(value)).map(|_| "accepted").unwrap_err().message().to_owned()
    }
    if path.get(2).is_some_and(|key| key == "filters") && path.len() > 4 {
        let table = (0..4).fold(value, |value, _| toml::Spanned::new(0..0, inner(&value).into_inner()));
        let registration = full_registry().get(&path[4]).unwrap();
        return (registration.decode)(ValueDeserializer::from(table)).map(|_| "accepted").unwrap_err().message().to_owned();
    }
    match section.as_str() {
        "server" => error::<ServerConfig>(value),
        "admin" => error::<AdminConfig>(value),
        "log" => error::<LogConfig>(value),
        "cache" => error::<crate::cache::config::CacheConfig>(value),
        "limits" => error::<LimitsConfig>(value),
        "redis" => error::<RedisConfig>(value),
        "identity" => error::<crate::identity::IdentityConfig>(value),
        "consumer_source" => error::<crate::consumer::ConsumerSourceConfig>(value),
        "listeners" => error::<ListenerConfig>(inner(&value)),
        "tiers" => error::<crate::consumer::TierConfig>(inner(&value)),
        "consumers" => error::<crate::consumer::ConsumerConfig>(inner(&value)),
        "jwt" => error::<crate::jwt::IssuerConfig>(inner(&value)),
        "upstreams" => error::<crate::upstream::UpstreamConfig>(inner(&value)),
        "chains" => error::<ChainConfig>(inner(&value)),
        "routes" => error::<RouteConfig>(inner(&value)),
        other => panic!("the test does not know [{other}]"),
    }
}

#[test]
fn the_loader_knows_the_sections_of_the_schema() {
    let schema = schema(&registry());
    let mut known: Vec<_> = load::SECTIONS.iter().map(|section| (*section).to_owned()).collect();
    known.sort();
    let expected: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(known, expected);
    for section in load::SECTIONS {
        let loaded = text(&format!("[{section}]\n"));
        let unknown = loaded.diagnostics.list.iter().any(|found| found.message.starts_with("unknown section"));
        assert!(!unknown, "{section}");
    }
}

#[test]
fn the_reference_names_every_key_filter_and_code() {
    let page = reference(&registry());
    for word in ["`[server]`", "`[routes.NAME] match`", "`{ paint = ... }`", "`color`", "`{ plain = ... }`", "`{ oil = ... }`"] {
        assert!(page.contains(word), "{word} is missing in\n{page}");
    }
    for line in [
        "| `color` | string | required | The colour. |",
        "| `mix` | list of (`{ oil = ... }` or `{ water = ... }`) |  | How it is mixed. |",
        "| `primer` | table |  | What comes first. |",
        "| `key` | text or secret |  | Where the key to the shop is. |",
        "| `coats` | whole number from 0 to 255 | `0` | How often. |",
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
    for code in crate::rejection::ALL {
        assert!(page.contains(&format!("| `{}` | {} |", code.code, code.status)), "{}", code.code);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn half_a_file_is_an_error_and_no_panic(end in 0..GOOD.len()) {
        let loaded = text(&GOOD[..end]);
        loaded.diagnostics.render(true);
    }

    #[test]
    fn no_mutation_of_a_file_breaks_the_loader(edits in prop::collection::vec((0..GOOD.len(), "[\\x00-\\x7fé\"'\\[\\]{}=.$]{0,3}"), 1..6)) {
        let mut input = GOOD.to_owned();
        for (at, new) in edits {
            let at = at.min(input.len() - 1);
            if input.is_char_boundary(at) && input.is_char_boundary(at + 1) {
                input.replace_range(at..at + 1, &new);
            }
            prop_assume!(!input.is_empty());
        }
        let loaded = text(&input);
        loaded.diagnostics.render(false);
        loaded.diagnostics.to_json();
    }
}
