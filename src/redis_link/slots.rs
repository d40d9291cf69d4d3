//! Which slot a key has, and which server a slot (Redis Cluster specification, "Key distribution model").

use super::link::text;
use redis::Value;

/// The slots of a cluster.
pub const SLOTS: usize = 16_384;

/// `host:port`; an IPv6 address may be in brackets or not.
pub fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// First slot, last slot, and the master of both.
pub type Range = (u16, u16, String);

/// Reads `[[first, last, [host, port, ...], ...], ...]`. Without a host, it is that of who was asked.
pub fn read(slots: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = slots else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [first, last, master, ..] = parts.as_slice() else { return None };
        let Value::Array(master) = master else { return None };
        let [host, port, ..] = master.as_slice() else { return None };
        let number = |value: &Value| text(value)?.parse::<u16>().ok();
        let host = text(host).filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.to_owned());
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && usize::from(last) < SLOTS).then_some((first, last, format!("{host}:{}", number(port)?)))
    };
    ranges.iter().map(range).collect()
}

/// The slot of a key whose hash tag is made of these parts: CRC16 (XMODEM) modulo 16384.
pub fn slot_of(parts: &[&[u8]]) -> u16 {
    let mut crc = 0_u16;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        let at = usize::from(crc >> 8 ^ u16::from(*byte)) & 0xff;
        crc = crc << 8 ^ CRC.get(at).copied().unwrap_or_default();
    }
    crc % 16_384
}

/// The part of a key that its slot is made of, if it is not the whole: what is in the first braces, unless that is nothing.
pub fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let rest = key.get(open.checked_add(1)?..)?;
    let close = rest.iter().position(|byte| *byte == b'}')?;
    rest.get(..close).filter(|tag| !tag.is_empty())
}

/// The slot of a whole key.
pub fn slot_of_key(key: &[u8]) -> u16 {
    slot_of(&[tag_of(key).unwrap_or(key)])
}

const CRC: [u16; 256] = table();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // Evaluated by the compiler, which refuses what is out of bounds.
const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = (at as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        // The check value of the specification, and what `CLUSTER KEYSLOT` says.
        assert_eq!(slot_of(&[b"123456789"]), 0x31c3);
        assert_eq!(slot_of(&[b"foo"]), 12_182);
        assert_eq!(slot_of(&[b"f", b"o", b"o"]), 12_182);
        assert_eq!(slot_of(&[]), 0);
    }

    #[test]
    fn the_slot_of_a_key_is_that_of_its_first_braces() {
        // The examples of the specification.
        assert_eq!(slot_of_key(b"{user1000}.following"), slot_of_key(b"{user1000}.followers"));
        assert_eq!(slot_of_key(b"foo{}{bar}"), slot_of(&[b"foo{}{bar}"]));
        assert_eq!(slot_of_key(b"foo{{bar}}zap"), slot_of(&[b"{bar"]));
        assert_eq!(slot_of_key(b"foo{bar}{zap}"), slot_of(&[b"bar"]));
        assert_eq!(slot_of_key(b"foo{bar"), slot_of(&[b"foo{bar"]));
    }

    #[test]
    fn slots_are_read_and_missing_hosts_are_those_who_answered() {
        let range = |first, last, host: Value, port| {
            let master = Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master])
        };
        let slots = Value::Array(vec![range(0, 99, bulk("10.0.0.1"), 7000), range(100, 16_383, Value::Nil, 7001)]);
        let found = read(&slots, "10.0.0.9").unwrap();
        assert_eq!(found, [(0, 99, "10.0.0.1:7000".to_owned()), (100, 16_383, "10.0.0.9:7001".to_owned())]);
        assert_eq!(read(&Value::Array(vec![range(0, 16_384, bulk("a"), 1)]), "b"), None, "a slot that does not exist");
        assert_eq!(read(&Value::Nil, "b"), None);
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(split("10.0.0.1:7000"), Some(("10.0.0.1", 7000)));
        assert_eq!(split("[::1]:7000"), Some(("::1", 7000)));
        assert_eq!(split("::1:7000"), Some(("::1", 7000)));
        assert_eq!((split(":7000"), split("a"), split("a:b")), (None, None, None));
    }
}
