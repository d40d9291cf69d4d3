//! The labels whose values are a fixed set: method and status class.

/// The values of the label `method`: the methods of RFC 9110 §9 and PATCH (RFC 5789). Clients can send any token as a method;
/// all others count as `_OTHER`, so that they cannot make series.
pub const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "_OTHER"];

/// A place in [`METHODS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(u8);

impl Method {
    /// Methods are case-sensitive (RFC 9110 §9.1).
    pub fn of(method: &[u8]) -> Self {
        Method(match method {
            b"GET" => 0,
            b"HEAD" => 1,
            b"POST" => 2,
            b"PUT" => 3,
            b"DELETE" => 4,
            b"PATCH" => 5,
            b"OPTIONS" => 6,
            b"TRACE" => 7,
            b"CONNECT" => 8,
            _ => 9,
        })
    }

    /// Its place in [`METHODS`].
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// The values of the label `class`. `none`: no response was sent, as when the client went away first.
pub const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// A place in [`STATUS_CLASSES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusClass(u8);

impl StatusClass {
    pub const NONE: StatusClass = StatusClass(5);

    /// Statuses outside 100 to 599 have no class of their own and are taken for 5xx, as clients are to do (RFC 9110 §15).
    pub fn of(status: u16) -> Self {
        StatusClass(match status / 100 {
            1 => 0,
            2 => 1,
            3 => 2,
            4 => 3,
            _ => 4,
        })
    }

    /// The class of a response that may not have been sent.
    pub fn of_sent(status: Option<u16>) -> Self {
        status.map_or(Self::NONE, Self::of)
    }

    pub(super) fn index(self) -> usize {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_has_its_own_label() {
        for (index, name) in METHODS.iter().enumerate() {
            assert_eq!(Method::of(name.as_bytes()).index(), index);
        }
        for other in ["get", "", "PROPFIND", "GET "] {
            assert_eq!(METHODS[Method::of(other.as_bytes()).index()], "_OTHER");
        }
    }

    #[test]
    fn each_status_has_a_class() {
        for status in 100..600_u16 {
            let class = STATUS_CLASSES[StatusClass::of(status).index()];
            assert_eq!(class, format!("{}xx", status / 100));
        }
        for odd in [0, 99, 600, u16::MAX] {
            assert_eq!(STATUS_CLASSES[StatusClass::of(odd).index()], "5xx");
        }
        assert_eq!(STATUS_CLASSES[StatusClass::of_sent(None).index()], "none");
    }
}
