//! Host patterns, and the trees of paths that can apply to a host.

use foldhash::fast::RandomState;
use std::collections::HashMap;

/// A host as a route writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `api.example.com`
    Exact(Box<str>),
    /// `*.example.com`, without the `*.`: one label or more in front, never the domain itself.
    Wildcard(Box<str>),
    /// No `host`.
    Any,
}

impl HostPattern {
    /// Parses the text of a route; a reason and a mend when it can match no canonical host.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let no = |why: &str, help: &str| Err((why.to_owned(), help.to_owned()));
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let usual = "write a host such as \"api.example.com\" or \"*.example.com\"";
        if name.is_empty() {
            return no("a host cannot be empty", "leave `host` out to match every host");
        }
        if name == "*" {
            return no("`*` alone is not a host pattern", "leave `host` out to match every host");
        }
        if name.contains('*') {
            return no("`*` may stand only in front, for whole labels", usual);
        }
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            let help = format!("write \"{}\"", text.to_ascii_lowercase());
            return Err(("hosts are compared in lower case, so this matches no request".to_owned(), help));
        }
        if name.contains("://") || name.contains('/') {
            return no("this is not a host but part of a URL", usual);
        }
        if let Some(address) = name.strip_prefix('[') {
            let address = address.strip_suffix(']').and_then(|a| a.parse::<std::net::Ipv6Addr>().ok());
            return match address {
                Some(address) if !wildcard => {
                    let canonical = format!("[{address}]");
                    if canonical == name {
                        return Ok(HostPattern::Exact(name.into()));
                    }
                    Err(("this is not the canonical form of the address".to_owned(), format!("write \"{canonical}\"")))
                }
                _ => no("this is not an IPv6 address in brackets, without a port", "write an address such as \"[::1]\""),
            };
        }
        if name.contains(':') {
            let help = "leave the port out: a listener has the port, and a match looks at the host only";
            return no("a host pattern has no port", help);
        }
        if name.ends_with('.') {
            return no("the trailing dot of a host is removed before routes are tried", usual);
        }
        if name.len() > 253 || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
            return no("a host has labels of 1 to 63 bytes and at most 253 bytes", usual);
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return no("a host has letters, digits, `-` and `.` only", "write international names in their `xn--` form");
        }
        Ok(if wildcard { HostPattern::Wildcard(name.into()) } else { HostPattern::Exact(name.into()) })
    }
}

type Roots = HashMap<Box<str>, u32, RandomState>;

/// From a host to the roots of the trees that apply to it, most specific first.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: Roots,
    wildcard: Roots,
    /// The most labels of a wildcard, so that the labels of a hostile host are not all looked up.
    deepest_wildcard: usize,
    any: Option<u32>,
}

impl HostIndex {
    /// The root for a pattern, made on first use.
    pub fn root(&mut self, host: &HostPattern, make: impl FnOnce() -> u32) -> u32 {
        match host {
            HostPattern::Exact(name) => *self.exact.entry(name.clone()).or_insert_with(make),
            HostPattern::Wildcard(name) => {
                self.deepest_wildcard = self.deepest_wildcard.max(labels(name));
                *self.wildcard.entry(name.clone()).or_insert_with(make)
            }
            HostPattern::Any => *self.any.get_or_insert_with(make),
        }
    }

    pub fn candidates<'a>(&'a self, host: &'a str) -> impl Iterator<Item = u32> + 'a {
        let exact = self.exact.get(host).copied();
        exact.into_iter().chain(self.wildcards(host)).chain(self.any)
    }

    fn wildcards<'a>(&'a self, host: &'a str) -> impl Iterator<Item = u32> + 'a {
        // The longest suffix that can be a wildcard starts after the n-th dot from the right; before it must be a label.
        let mut rest = match self.deepest_wildcard {
            0 => None,
            deepest => Some(skip_to_labels(host, deepest)),
        };
        std::iter::from_fn(move || {
            while let Some(suffix) = rest {
                rest = suffix.split_once('.').map(|(_, shorter)| shorter);
                let in_front = host.len().saturating_sub(suffix.len());
                if in_front >= 2
                    && let Some(&root) = self.wildcard.get(suffix)
                {
                    return Some(root);
                }
            }
            None
        })
    }

    /// For each pattern the roots that a host of that pattern can reach.
    pub fn chains(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        let exact = self.exact.keys().map(|name| self.candidates(name).collect());
        let wildcard = self.wildcard.iter().map(|(name, &root)| {
            let mut chain: Vec<u32> = self.candidates(name).collect();
            chain.push(root);
            chain
        });
        exact.chain(wildcard).chain([self.any.into_iter().collect()])
    }
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

/// The last `count` labels of a host, or all of it.
fn skip_to_labels(host: &str, count: usize) -> &str {
    let dot = memchr::memrchr_iter(b'.', host.as_bytes()).nth(count.saturating_sub(1));
    dot.and_then(|dot| host.get(dot.checked_add(1)?..)).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_go_from_exact_over_long_to_short_wildcards() {
        let mut index = HostIndex::default();
        for (root, text) in ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com"].into_iter().enumerate() {
            index.root(&HostPattern::parse(text).unwrap(), || root as u32);
        }
        index.root(&HostPattern::Any, || 9);
        let of = |host: &str| index.candidates(host).collect::<Vec<_>>();
        assert_eq!(of("a.b.example.com"), [0, 1, 2, 3, 9]);
        assert_eq!(of("x.y.b.example.com"), [1, 2, 3, 9]);
        assert_eq!(of("b.example.com"), [2, 3, 9], "a wildcard does not match its own domain");
        assert_eq!(of("example.com"), [3, 9]);
        assert_eq!(of("com"), [9]);
        assert_eq!(of(".com"), [9], "a label cannot be empty");
        assert_eq!(of(""), [9]);
        assert_eq!(of("notexample.com"), [3, 9]);
    }

    #[test]
    fn impossible_hosts_are_refused() {
        for wrong in [
            "",
            "*",
            "*.",
            "*.*",
            "a.*.com",
            "API.example.com",
            "http://a",
            "a/b",
            "a:80",
            "a.",
            "a..b",
            ".a",
            "b\u{fc}cher.de",
            "[::1",
            "[::1]:80",
            "*.[::1]",
            "[0:0:0:0:0:0:0:1]",
            "a b",
        ] {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong}");
        }
        for right in ["localhost", "127.0.0.1", "[::1]", "a_b.example.com", "*.example.com", "xn--bcher-kva.de"] {
            assert!(HostPattern::parse(right).is_ok(), "{right}");
        }
    }
}
