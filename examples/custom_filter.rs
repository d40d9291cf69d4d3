//! A gateway with a filter of its own: `maintenance` answers 503 while a file exists, and marks every response.
//!
//! `cargo run --example custom_filter -- run -c FILE`, with `filters = [{ maintenance = { flag = "/run/maintenance" } }]`.

use gatewright::filter::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Registry, Step};
use gatewright::rejection::{Code, Rejection};
use gatewright::request::RequestCtx;
use http::HeaderValue;
use pingora::{http::ResponseHeader, proxy::Session};
use std::{path::PathBuf, process::ExitCode, time::Duration};

static MAINTENANCE: Code = Code { status: 503, code: "maintenance", title: "The service is being maintained" };

/// Answers 503 `maintenance` while a file exists.
#[derive(Clone, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct MaintenanceConfig {
    /// The file, by its absolute path.
    flag: PathBuf,
}

struct Maintenance(PathBuf);

impl FilterConfig for MaintenanceConfig {
    const NAME: &'static str = "maintenance";
    type Filter = Maintenance;

    fn build(self, _cx: &mut BuildContext<'_>) -> Result<Maintenance, Problem> {
        if !self.flag.is_absolute() {
            return Err(Problem::new("`flag` is not an absolute path").help("write it from the root: /run/maintenance"));
        }
        Ok(Maintenance(self.flag))
    }
}

impl Filter for Maintenance {
    fn phases(&self) -> Phases {
        Phases::REQUEST.and(Phases::RESPONSE)
    }

    fn on_request<'a>(&'a self, _session: &'a mut Session, _ctx: &'a mut RequestCtx) -> Step<'a> {
        // Looking for a file is I/O: off the worker that carries other requests.
        Step::Wait(Box::pin(async {
            match tokio::fs::try_exists(&self.0).await {
                Ok(false) => Ok(Flow::Continue),
                _ => Err(Rejection::new(&MAINTENANCE).retry_after(Duration::from_secs(30))),
            }
        }))
    }

    fn on_response(&self, _session: &Session, head: &mut ResponseHeader, _ctx: &mut RequestCtx) {
        let _ = head.insert_header("x-maintained-by", HeaderValue::from_static("us"));
    }
}

fn main() -> ExitCode {
    gatewright::cli::main(Registry::builtin().with::<MaintenanceConfig>())
}
