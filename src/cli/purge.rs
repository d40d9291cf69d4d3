//! `gatewright purge`: has the caches of all gateways that share a Redis, or of this one, forget.

use super::Exit;
use super::admin::{AdminArgs, Answer};
use crate::filter::Registry;
use clap::Args;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::io::{self, Write};
use std::time::Duration;

/// Have the running gateway, and those that share its Redis, forget stored answers
#[derive(Args)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    what: What,
    /// Mark stale instead of removing: what may be used stale still is, while it is fetched anew
    #[arg(long)]
    soft: bool,
    /// How long to wait for the answer, in seconds
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// All answers of one URL, such as https://api.example.com/a?b=c
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// All answers of the URLs that begin so
    #[arg(long, value_name = "URL")]
    prefix: Option<String>,
    /// All answers that carry this tag in Surrogate-Key or Cache-Tag
    #[arg(long)]
    tag: Option<String>,
    /// All answers of this route
    #[arg(long)]
    route: Option<String>,
    /// All answers
    #[arg(long)]
    all: bool,
}

impl What {
    fn query(&self) -> String {
        let named = [("url", &self.url), ("prefix", &self.prefix), ("tag", &self.tag), ("route", &self.route)];
        let given = named.into_iter().find_map(|(name, value)| Some((name, value.as_ref()?)));
        given.map_or("all".to_owned(), |(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
    }
}

pub(super) fn run(args: &PurgeArgs, registry: &Registry) -> io::Result<Exit> {
    let path = format!("/purge?{}{}", args.what.query(), if args.soft { "&soft" } else { "" });
    let timeout = Duration::from_secs(args.timeout);
    let Some(Answer { status, document, .. }) = args.admin.ask(registry, Method::POST, &path, timeout)? else {
        return Ok(Exit::Failure);
    };
    let mut err = io::stderr().lock();
    if status != StatusCode::OK {
        let why = document.get("error").and_then(|why| why.as_str()).unwrap_or("it does not say why");
        writeln!(err, "error: the gateway answered {status}: {why}")?;
        return Ok(Exit::Failure);
    }
    let number = |name: &str| document.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let (gateways, acknowledged) = (number("gateways"), number("acknowledged"));
    writeln!(io::stdout(), "purged {} answers here; {acknowledged} of {gateways} gateways have done so", number("purged"))?;
    if acknowledged < gateways {
        writeln!(err, "warning: {} gateways have not said that they are done", gateways.saturating_sub(acknowledged))?;
        return Ok(Exit::Failure);
    }
    Ok(Exit::Success)
}
