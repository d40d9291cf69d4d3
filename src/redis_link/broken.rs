//! Why a connection, or an attempt at one, is of no more use.

use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};
use std::borrow::Cow;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer in time.
    Timeout,
    /// It cannot be reached, or has broken off.
    Unreachable,
    /// It wants a password, or a right.
    Denied,
    /// Another server of the cluster has the key.
    Elsewhere,
    /// What it says makes no sense here.
    Invalid,
}

/// Whatever ends a connection, without values and passwords.
#[derive(Debug, Clone)]
pub struct Broken {
    pub fault: Fault,
    why: Cow<'static, str>,
}

pub const NONSENSE: &str = "its answer makes no sense";

impl Broken {
    pub fn new(fault: Fault, why: impl Into<Cow<'static, str>>) -> Self {
        Broken { fault, why: why.into() }
    }

    pub fn nonsense() -> Self {
        Broken::new(Fault::Invalid, NONSENSE)
    }

    /// A server has answered a command with an error.
    pub fn answered(error: &ServerError, command: &str) -> Self {
        let fault = match error.code() {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Fault::Denied,
            "MOVED" | "ASK" => Fault::Elsewhere,
            _ => Fault::Invalid,
        };
        let to = if command.is_empty() { String::new() } else { format!(" to {command}") };
        Broken::new(fault, format!("it answered {}{to}", error.code()))
    }
}

impl From<&'static str> for Broken {
    fn from(why: &'static str) -> Self {
        Broken::new(Fault::Invalid, why)
    }
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Broken::new(Fault::Invalid, why)
    }
}

impl From<RedisError> for Broken {
    fn from(error: RedisError) -> Self {
        let fault = match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => Fault::Denied,
            ErrorKind::UnexpectedReturnType | ErrorKind::Parse | ErrorKind::Server(_) => Fault::Invalid,
            _ if error.is_timeout() => Fault::Timeout,
            _ => Fault::Unreachable,
        };
        Broken::new(fault, error.to_string())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
