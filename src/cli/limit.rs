//! `gatewright limit`: how a key stands with the limits of a route, forgetting it, and who is refused most.

use super::Exit;
use super::admin::{AdminArgs, Answer};
use crate::filter::Registry;
use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::io::{self, Write};
use std::time::Duration;

/// Redis may be slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look at limits of the running gateway, and reset them
#[derive(Args)]
pub(super) struct LimitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the gateway's answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: LimitVerb,
}

#[derive(Subcommand)]
enum LimitVerb {
    /// Show how a key stands with each limit of a route
    Show(KeyArgs),
    /// Forget a key, so that it has its limits in full
    Reset(KeyArgs),
    /// Show the keys that were refused most often since the start
    Top {
        /// How many
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
}

#[derive(Args)]
struct KeyArgs {
    /// The name of the route
    route: String,
    /// What the route counts by: address=192.0.2.7, consumer=acme, subject=jwt:main:alice, credential=..., header:x-key=..., claim:org=... (claim:org:=7 and so on, by its JSON, if it is no text); and tier=gold
    #[arg(value_name = "FACT=VALUE", value_parser = fact)]
    facts: Vec<(String, String)>,
}

fn fact(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write FACT=VALUE, such as address=192.0.2.7")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl KeyArgs {
    fn query(&self) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let route = format!("route={}", encode(&self.route));
        self.facts.iter().fold(route, |query, (name, value)| format!("{query}&{}={}", encode(name), encode(value)))
    }
}

pub(super) fn run(args: &LimitArgs, registry: &Registry) -> io::Result<Exit> {
    let (method, path) = match &args.verb {
        LimitVerb::Show(key) => (Method::GET, format!("/limits?{}", key.query())),
        LimitVerb::Reset(key) => (Method::POST, format!("/limits/reset?{}", key.query())),
        LimitVerb::Top { count } => (Method::GET, format!("/limits/top?count={count}")),
    };
    let Some(Answer { status, document, .. }) = args.admin.ask(registry, method, &path, PATIENCE)? else {
        return Ok(Exit::Failure);
    };
    if status != StatusCode::OK {
        let why = document.get("error").and_then(Value::as_str).unwrap_or("the gateway does not know this");
        writeln!(io::stderr(), "error: {why}")?;
        return Ok(Exit::Failure);
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{document:#}")?;
        return Ok(Exit::Success);
    }
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or_default();
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    if let LimitVerb::Top { .. } = args.verb {
        for entry in list(&document, "refused") {
            let (count, route, limit, key) =
                (number(&entry, "refused"), text(&entry, "route"), text(&entry, "limit"), text(&entry, "key"));
            writeln!(out, "{count:>10}  {route}  {limit}  {key}")?;
        }
        return Ok(Exit::Success);
    }
    let mut exit = Exit::Success;
    for filter in list(&document, "limits") {
        writeln!(out, "{}  {}  {}", text(&filter, "scope"), text(&filter, "store"), text(&filter, "key"))?;
        let wrong = text(&filter, "error");
        if !wrong.is_empty() {
            writeln!(io::stderr(), "error: {wrong}")?;
            exit = Exit::Failure;
        }
        for limit in list(&filter, "limits") {
            let more = limit.get("more_in_seconds").and_then(Value::as_f64).unwrap_or_default();
            let (left, of) = (number(&limit, "remaining"), number(&limit, "number"));
            writeln!(out, "  {:<16} {left} left (limit {of}), more in {more:.1} s", text(&limit, "name"))?;
        }
    }
    Ok(exit)
}
