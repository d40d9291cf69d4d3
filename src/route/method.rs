//! Methods as bits. A router numbers the methods that its routes list, so that a set of them is one word.

use foldhash::fast::RandomState;
use http::{HeaderValue, Method};
use std::collections::HashMap;

/// The most different methods in all routes of a router together: the bits of a word. IANA registers 40.
pub(super) const MAX_METHODS: usize = 64;

const GET: u64 = 1;
const HEAD: u64 = 2;

/// The numbering, and the value of `Allow` for each set that one place in the tree can give.
#[derive(Debug)]
pub(super) struct Methods {
    /// The bit of a method is its place here. GET and HEAD come first, see [`GET`] and [`HEAD`].
    list: Vec<Method>,
    allow: HashMap<u64, HeaderValue, RandomState>,
}

impl Default for Methods {
    fn default() -> Self {
        Methods { list: vec![Method::GET, Method::HEAD], allow: HashMap::default() }
    }
}

/// The bits that a request looks for in the lists of routes, best first. A route that lists GET answers HEAD too
/// (RFC 9110 §9.3.2), unless another lists HEAD itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub listed: u64,
    /// Zero but for HEAD.
    pub implied: u64,
}

impl Methods {
    /// Numbers a method; `None` when there are too many.
    pub fn intern(&mut self, method: &Method) -> Option<u64> {
        if !self.list.contains(method) {
            if self.list.len() >= MAX_METHODS {
                return None;
            }
            self.list.push(method.clone());
        }
        Some(self.bit(method))
    }

    /// Zero for a method that no route lists.
    fn bit(&self, method: &Method) -> u64 {
        let at = self.list.iter().position(|known| known == method);
        at.and_then(|at| u32::try_from(at).ok()).and_then(|at| 1_u64.checked_shl(at)).unwrap_or(0)
    }

    pub fn wanted(&self, method: &Method) -> Wanted {
        Wanted { listed: self.bit(method), implied: if *method == Method::HEAD { GET } else { 0 } }
    }

    /// Prepares the value for a set that will be asked for.
    pub fn prepare_allow(&mut self, set: u64) {
        let set = closed(set);
        let value = self.render(set);
        self.allow.entry(set).or_insert(value);
    }

    /// The value of `Allow` (RFC 9110 §10.2.1). Prepared for what one path of one host allows; rendered for the rare union
    /// of several paths.
    pub fn allow(&self, set: u64) -> HeaderValue {
        let set = closed(set);
        self.allow.get(&set).cloned().unwrap_or_else(|| self.render(set))
    }

    pub fn names(&self, set: u64) -> String {
        let mut names: Vec<&str> = self.list.iter().filter(|method| self.bit(method) & set != 0).map(Method::as_str).collect();
        names.sort_unstable();
        names.join(", ")
    }

    fn render(&self, set: u64) -> HeaderValue {
        // A method is a token (RFC 9110 §9.1), so the value is always valid.
        HeaderValue::try_from(self.names(set)).unwrap_or(HeaderValue::from_static(""))
    }
}

fn closed(set: u64) -> u64 {
    if set & GET != 0 { set | HEAD } else { set }
}
