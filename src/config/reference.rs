//! The reference page, made from the JSON Schema, so that it cannot say other things than the parser does.
//!
//! One heading for each section, in the order of the tree; one table of keys for it and for each table within it; then the
//! filters of the registry, the codes of rejections, and the access log and metrics, each from the table that the code itself goes
//! by. The admin listener adds a chapter of its own.

use super::load::{SECTIONS, is_named};
use crate::filter::Registry;
use crate::rejection;
use crate::telemetry::access_log;
use crate::telemetry::metrics::METRICS;

use serde_json::Value;

const HEAD: &str = "\
<!-- Made by `gatewright schema --format markdown`. Do not edit: change the doc comments of the structs instead. -->

# Reference

";

/// The schema of an element of `filters`, which has a chapter of its own.
const FILTER: &str = "#/$defs/Filter";

/// The reference page in Markdown.
pub fn reference(registry: &Registry) -> String {
    let schema = super::schema(registry);
    let mut page = Page { schema: &schema, out: String::from(HEAD) };
    page.paragraphs(&schema);
    for section in SECTIONS {
        let value = schema.get("properties").and_then(|list| list.get(section)).unwrap_or(&Value::Null);
        let named = is_named(section);
        let table = if named { value.get("additionalProperties").unwrap_or(&Value::Null) } else { value };
        let title = if named { format!("[{section}.NAME]") } else { format!("[{section}]") };
        page.heading(2, &title);
        page.table(page.resolve(table), &title, 3);
    }
    page.heading(2, "filters");
    page.line("What may stand in `filters` of `[routes.NAME]` and `[chains.NAME]`, each as `{ NAME = { ... } }`.\n");
    for filter in page.filters() {
        for (name, value) in properties(filter) {
            page.heading(3, &format!("{{ {name} = ... }}"));
            page.table(page.resolve(value), name, 4);
        }
    }
    page.out.push_str("## Rejections\n\n");
    page.line("Answers that the gateway makes itself are `application/problem+json` (RFC 9457) with one of these codes.\n");
    page.columns(&["code", "status", "title"]);
    for code in rejection::ALL {
        page.row(&[&quoted(code.code), &code.status.to_string(), code.title]);
    }
    telemetry(&mut page);
    page.out
}

fn telemetry(page: &mut Page<'_>) {
    page.out.push_str("\n## Access log\n\n");
    page.line(
        "One line of JSON for each request, also for those that were refused, where `[log] access` says. A field that has no value is \
         left out. Text is cut after 2 KiB, names and `user_agent` after 512 bytes, and then ends in `…(+N bytes)`. With `sample`, \
         requests without errors are thinned out by a hash of their id; rejections, 5xx, transport errors and requests without a \
         response are always written.\n",
    );
    page.columns(&["field", "meaning"]);
    for (name, meaning) in access_log::FIELDS {
        page.row(&[&quoted(name), meaning]);
    }
    page.out.push_str("\n## Metrics\n\n");
    page.line(
        "What `/metrics` of the admin listener answers. Labels have values from the configuration and from fixed lists only: no \
         request adds a series. A reason that was never met has no series yet.\n",
    );
    page.columns(&["metric", "type", "labels", "meaning"]);
    for metric in METRICS {
        let labels: Vec<_> = metric.labels.iter().map(|label| quoted(label)).collect();
        page.row(&[&quoted(metric.name), metric.kind.as_str(), &labels.join(", "), metric.help]);
    }
}

fn quoted(text: &str) -> String {
    format!("`{text}`")
}

struct Page<'a> {
    schema: &'a Value,
    out: String,
}

impl<'a> Page<'a> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// The head of a table.
    fn columns(&mut self, names: &[&str]) {
        self.row(names);
        self.line(&format!("{}|", "|---".repeat(names.len())));
    }

    fn row(&mut self, cells: &[&str]) {
        let cells: Vec<_> = cells.iter().map(|text| cell(text)).collect();
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    fn heading(&mut self, level: usize, title: &str) {
        self.line(&format!("{} `{title}`\n", "#".repeat(level)));
    }

    fn paragraphs(&mut self, value: &Value) {
        if let Some(text) = description(value) {
            for paragraph in text.split("\n\n") {
                self.line(&format!("{}\n", paragraph.replace('\n', " ")));
            }
        }
    }

    /// What a `$ref` points at.
    fn resolve(&self, value: &'a Value) -> &'a Value {
        let name = value.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
        name.and_then(|name| self.schema.get("$defs")?.get(name)).unwrap_or(value)
    }

    fn filters(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let list = self.schema.pointer("/$defs/Filter/oneOf").and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default().iter()
    }

    /// The keys of a table, then the tables that stand within it.
    fn table(&mut self, value: &'a Value, path: &str, level: usize) {
        self.paragraphs(value);
        let mut inner = Vec::new();
        if !properties(value).is_empty() {
            self.keys(value, &mut inner);
        } else {
            self.alternatives(value, &mut inner);
        }
        for (key, value) in inner {
            // A way to write the value itself: its keys belong right here.
            if key.is_empty() {
                self.table(value, path, level);
                continue;
            }
            let title = format!("{path} {key}");
            self.heading(level.min(6), &title);
            self.table(value, &title, level + 1);
        }
    }

    fn keys(&mut self, table: &'a Value, inner: &mut Vec<(String, &'a Value)>) {
        let required: Vec<&str> = strings(table.get("required")).collect();
        self.columns(&["key", "type", "default", ""]);
        for (key, value) in properties(table) {
            let kind = self.kind(value);
            let default = match value.get("default") {
                _ if required.contains(&key) => "required".to_owned(),
                None | Some(Value::Null) => String::new(),
                Some(default) if is_plain(default) => format!("`{}`", toml_text(default)),
                Some(_) => String::new(),
            };
            let text = description(value).or_else(|| description(self.resolve(value))).unwrap_or_default();
            self.row(&[&quoted(key), &kind, &default, text]);
            self.inner(key, value, inner);
        }
        self.out.push('\n');
    }

    /// Enumerations with a description of each value, and values that may be written in several ways.
    fn alternatives(&mut self, value: &'a Value, inner: &mut Vec<(String, &'a Value)>) {
        let list = variants(value);
        if list.is_empty() {
            let kind = self.kind(value);
            return self.line(&format!("Written as {kind}.\n"));
        }
        for variant in list {
            let variant = self.resolve(variant);
            let kind = self.kind(variant);
            let text = description(variant).unwrap_or_default().replace('\n', " ");
            let colon = if text.is_empty() { "" } else { ": " };
            self.line(&format!("- {kind}{colon}{text}"));
            match properties(variant).as_slice() {
                [] => {}
                [(key, value)] if strings(variant.get("required")).count() == 1 => self.inner(key, value, inner),
                _ => inner.push((String::new(), variant)),
            }
        }
        self.out.push('\n');
    }

    /// Remembers the tables that a value is made of, but for those that the page explains once for all.
    fn inner(&self, key: &str, value: &'a Value, inner: &mut Vec<(String, &'a Value)>) {
        let target = self.resolve(value);
        let filter = value.get("$ref").and_then(Value::as_str) == Some(FILTER);
        if filter || target.get("title").and_then(Value::as_str).is_some_and(|title| title.ends_with("secret")) {
            return;
        }
        if let Some(items) = target.get("items") {
            return self.inner(key, items, inner);
        }
        if let Some(values) = target.get("additionalProperties").filter(|values| values.is_object()) {
            return self.inner(&format!("{key}.NAME"), values, inner);
        }
        let has_tables = |value: &Value| !properties(self.resolve(value)).is_empty();
        let has_texts = |value: &Value| description(self.resolve(value)).is_some();
        let variants = variants(target);
        let real: Vec<&Value> =
            variants.iter().copied().filter(|v| v.get("type").and_then(Value::as_str) != Some("null")).collect();
        match real.as_slice() {
            [] if has_tables(target) => inner.push((key.to_owned(), target)),
            [] => {}
            [one] => self.inner(key, one, inner),
            many if many.iter().any(|v| has_tables(v) || has_texts(v)) => inner.push((key.to_owned(), target)),
            _ => {}
        }
    }

    /// A value's type in a few words.
    fn kind(&self, value: &'a Value) -> String {
        let target = self.resolve(value);
        if value.get("$ref").and_then(Value::as_str) == Some(FILTER) {
            return "filter".to_owned();
        }
        if let Some(title) = target.get("title").and_then(Value::as_str) {
            return title.to_owned();
        }
        if let Some(text) = target.get("const") {
            return format!("`{}`", toml_text(text));
        }
        if let Some(list) = target.get("enum").and_then(Value::as_array) {
            let list: Vec<_> =
                list.iter().filter(|value| !value.is_null()).map(|value| format!("`{}`", toml_text(value))).collect();
            return list.join(", ");
        }
        let variants = variants(target);
        if !variants.is_empty() {
            let mut list: Vec<_> =
                variants.into_iter().map(|variant| self.kind(variant)).filter(|kind| !kind.is_empty()).collect();
            list.dedup();
            return list.join(" or ");
        }
        let kinds: Vec<&str> = match target.get("type") {
            Some(Value::String(kind)) => vec![kind],
            kinds => strings(kinds).collect(),
        };
        let bounds = match (target.get("minimum"), target.get("maximum")) {
            (Some(low), Some(high)) => format!(" from {low} to {high}"),
            (Some(low), None) => format!(", {low} or more"),
            _ => String::new(),
        };
        let one = |kind: &str| match kind {
            "null" => String::new(),
            "integer" => format!("whole number{bounds}"),
            "number" => format!("number{bounds}"),
            "array" => match target.get("items").map(|items| self.kind(items)) {
                Some(kind) if kind.contains(" or ") => format!("list of ({kind})"),
                Some(kind) if kind.bytes().all(|b| b.is_ascii_lowercase() || b == b' ') => format!("list of {kind}s"),
                Some(kind) => format!("list of {kind}"),
                None => "list".to_owned(),
            },
            "object" => match properties(target).as_slice() {
                [(key, _)] if strings(target.get("required")).count() == 1 => format!("`{{ {key} = ... }}`"),
                _ => "table".to_owned(),
            },
            kind => kind.to_owned(),
        };
        if kinds.is_empty() {
            return "any value".to_owned();
        }
        let kinds: Vec<_> = kinds.into_iter().map(one).filter(|kind| !kind.is_empty()).collect();
        kinds.join(" or ")
    }
}

fn properties(value: &Value) -> Vec<(&str, &Value)> {
    let map = value.get("properties").and_then(Value::as_object);
    map.map(|map| map.iter().map(|(key, value)| (key.as_str(), value)).collect()).unwrap_or_default()
}

/// The ways in which a value may be written.
fn variants(value: &Value) -> Vec<&Value> {
    let list = value.get("oneOf").or_else(|| value.get("anyOf")).and_then(Value::as_array);
    list.map(|list| list.iter().collect()).unwrap_or_default()
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn description(value: &Value) -> Option<&str> {
    value.get("description").and_then(Value::as_str)
}

/// Whether a default fits into a cell.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().all(|value| !value.is_array() && is_plain(value)),
        Value::Object(_) => false,
        _ => true,
    }
}

/// JSON and TOML write strings, numbers, booleans and lists of them alike.
fn toml_text(value: &Value) -> String {
    value.to_string()
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace("\n\n", "<br>").replace('\n', " ").replace('|', "\\|")
}
