//! `[log]`.

use crate::diagnostic::Diagnostics;
use crate::value::{ByteSize, Located, Percent, text_value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What is written about the process and about each request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least important kind of message that is written to stderr.
    pub level: Level,
    /// One line for each request.
    pub access: AccessLogConfig,
    /// How much may wait to be written, for each output, from 64KiB to 1GiB. When an output is slower than the traffic, lines
    /// beyond it are dropped and counted (metric `gatewright_log_records_dropped_total`); requests never wait for a log.
    pub buffer: Located<ByteSize>,
}

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl From<Level> for log::LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => log::LevelFilter::Error,
            Level::Warn => log::LevelFilter::Warn,
            Level::Info => log::LevelFilter::Info,
            Level::Debug => log::LevelFilter::Debug,
            Level::Trace => log::LevelFilter::Trace,
        }
    }
}

/// One line for each request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// How a line is written.
    pub format: AccessFormat,
    /// Where the lines go: `"stdout"`, `"stderr"`, `"off"`, or `"file:/path"`, to which they are appended. Every reload opens the
    /// file anew, so that it can be rotated.
    pub output: Located<AccessOutput>,
    /// The share of requests that are written, from 0% to 100%.
    pub sample: Percent,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AccessFormat {
    #[default]
    Json,
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccessOutput {
    Stdout,
    Stderr,
    Off,
    /// An absolute path.
    File(PathBuf),
}

text_value!(AccessOutput, "log output", "^(stdout|stderr|off|file:/.+)$", "stdout, stderr, off, or file:/path");

impl FromStr for AccessOutput {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdout" => Ok(AccessOutput::Stdout),
            "stderr" => Ok(AccessOutput::Stderr),
            "off" => Ok(AccessOutput::Off),
            _ => match text.strip_prefix("file:") {
                Some(path) if path.starts_with('/') => Ok(AccessOutput::File(path.into())),
                Some(_) => Err(format!("`{text}` is not a log output: the path must be absolute")),
                None => Err(format!("`{text}` is not a log output: write stdout, stderr, off or file:/path")),
            },
        }
    }
}

impl fmt::Display for AccessOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessOutput::Stdout => f.write_str("stdout"),
            AccessOutput::Stderr => f.write_str("stderr"),
            AccessOutput::Off => f.write_str("off"),
            AccessOutput::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: Level::Info, access: AccessLogConfig::default(), buffer: Located::nowhere(ByteSize(8 << 20)) }
    }
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        AccessLogConfig {
            format: AccessFormat::Json,
            output: Located::nowhere(AccessOutput::Stdout),
            sample: Percent { parts_per_million: 1_000_000 },
        }
    }
}

impl LogConfig {
    pub(super) fn check(&self, d: &mut Diagnostics) {
        self.buffer.within(ByteSize(64 << 10)..=ByteSize(1 << 30), d);
    }
}
