//! The `Date` that a response keeps.
//!
//! Pingora gives every response the date of the moment at which it is sent, hits of the cache and proxied answers alike, and
//! nothing in its API turns that off. RFC 9110 §6.6.1 leaves the date to the origin, and caches behind us would count the age
//! of what expires by `Expires` twice. So the date travels by the connection, and takes the place of Pingora's where the head
//! is collected as bytes. Over HTTP/2 there are no such bytes: heads are compressed by what went before on the connection.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long a date is in the one form that is sent (RFC 9110 §5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const DATE_LENGTH: usize = 29;

pub type Date = [u8; DATE_LENGTH];

const NAME: &[u8] = b"date: ";

/// The date of the response under way, until its head is written.
#[derive(Debug, Default)]
pub struct KeptDate {
    there: AtomicBool,
    date: Mutex<Option<Date>>,
}

impl KeptDate {
    pub fn keep(&self, date: Option<Date>) {
        if date.is_some() || self.there.load(Ordering::Relaxed) {
            self.there.store(date.is_some(), Ordering::Relaxed);
            *self.date.lock() = date;
        }
    }

    /// Said once.
    pub fn take(&self) -> Option<Date> {
        if !self.there.load(Ordering::Relaxed) {
            return None;
        }
        self.there.store(false, Ordering::Relaxed);
        self.date.lock().take()
    }
}

/// Whether these bytes begin the head of a final response.
pub fn is_final_head(data: &[u8]) -> bool {
    data.starts_with(b"HTTP/1.") && data.get(9).is_some_and(|class| *class != b'1')
}

/// Puts another date into a head.
pub fn put(head: &mut [u8], date: &Date) {
    let mut rest = head;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at_mut(end.saturating_add(1));
        if line.len() == NAME.len().saturating_add(DATE_LENGTH).saturating_add(2)
            && let Some((name, value)) = line.split_at_mut_checked(NAME.len())
            && name.eq_ignore_ascii_case(NAME)
        {
            if let Some(value) = value.get_mut(..DATE_LENGTH) {
                value.copy_from_slice(date);
            }
            return;
        }
        // The end of the head.
        if line.len() <= 2 {
            return;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_date_is_replaced_and_only_in_a_head() {
        let now = "Sat, 28 Nov 2026 18:00:00 GMT";
        let then = b"Sun, 06 Nov 1994 08:49:37 GMT";
        let of = |head: &str| {
            let mut bytes = head.replace("NOW", now).into_bytes();
            put(&mut bytes, then);
            String::from_utf8(bytes).unwrap().replace(now, "NOW").replace("Sun, 06 Nov 1994 08:49:37 GMT", "THEN")
        };
        assert_eq!(of("HTTP/1.1 200 OK\r\nA: b\r\nDate: NOW\r\n\r\n"), "HTTP/1.1 200 OK\r\nA: b\r\nDate: THEN\r\n\r\n");
        for same in [
            "HTTP/1.1 200 OK\r\nx-date: NOW\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\ndate: NOW\r\n",
            "HTTP/1.1 200 OK\r\ndate: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ndate: NOW",
            "",
        ] {
            assert_eq!(of(same), same);
        }
        assert!(is_final_head(b"HTTP/1.1 200 OK") && is_final_head(b"HTTP/1.0 404 X"));
        assert!(!is_final_head(b"HTTP/1.1 103 X") && !is_final_head(b"HTTP/1.1") && !is_final_head(b"body"));
    }

    #[test]
    fn a_date_is_kept_for_one_head() {
        let (kept, date) = (KeptDate::default(), *b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(kept.take(), None);
        kept.keep(Some(date));
        assert_eq!((kept.take(), kept.take()), (Some(date), None));
        kept.keep(Some(date));
        kept.keep(None);
        assert_eq!(kept.take(), None);
    }
}
