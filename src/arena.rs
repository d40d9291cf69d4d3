//! Header values built for one request, without an allocation for each.
//!
//! Each thread owns one buffer. A value is written to its end, split off and frozen into [`Bytes`], which shares the
//! buffer. As soon as all values in it have been dropped the buffer is used from its start again; only when its end is
//! reached while a value still lives is another one allocated. So a thread whose requests come and go allocates once for many values, and a
//! request that lives long keeps one buffer of [`CHUNK`] bytes alive, no more.

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;

/// The size of a buffer, in bytes: room for some dozens of values, small enough to be pinned by a long request.
pub const CHUNK: usize = 8 * 1024;
/// With less than this left, a buffer is changed before a value is begun, so that values rarely grow across the end (which
/// is correct, but copies).
const ROOM: usize = 512;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Runs `write` on an empty buffer and returns what it wrote. May be called inside itself: the inner call then gets a
/// buffer of its own.
pub fn with_arena(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            // Left over from a `write` that panicked; it belongs to no value.
            buffer.clear();
            // Tried each time, not only at the end of a buffer: there, the request that reaches it usually holds a value in
            // it already. While any value lives this is one atomic load.
            if buffer.capacity() < CHUNK && !buffer.try_reclaim(CHUNK) && buffer.capacity() < ROOM {
                buffer.reserve(CHUNK);
            }
            write(&mut buffer);
            buffer.split().freeze()
        }
        Err(_) => {
            let mut own = BytesMut::new();
            write(&mut own);
            own.freeze()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_values_give_their_room_back() {
        let base = with_arena(|buffer| buffer.extend_from_slice(b"first")).as_ptr() as usize;
        for round in 0..10_000_u32 {
            let text = format!("value {round}");
            let (a, b) =
                (with_arena(|buf| buf.extend_from_slice(text.as_bytes())), with_arena(|buf| buf.extend_from_slice(b"b")));
            assert_eq!((&*a, &*b), (text.as_bytes(), &b"b"[..]));
            let at = a.as_ptr() as usize;
            assert!(at.abs_diff(base) < CHUNK, "round {round} needed another buffer");
        }
    }

    #[test]
    fn values_that_live_on_are_never_written_over() {
        let kept: Vec<Bytes> =
            (0..2_000_u32).map(|n| with_arena(|buf| buf.extend_from_slice(n.to_string().as_bytes()))).collect();
        for (n, value) in kept.iter().enumerate() {
            assert_eq!(&**value, n.to_string().as_bytes());
        }
    }

    #[test]
    fn an_inner_call_and_a_panic_leave_nothing_behind() {
        let outer = with_arena(|outer| {
            outer.extend_from_slice(b"outer ");
            let inner = with_arena(|inner| inner.extend_from_slice(b"inner"));
            outer.extend_from_slice(&inner);
        });
        assert_eq!(&*outer, b"outer inner");
        let panicked = std::panic::catch_unwind(|| {
            with_arena(|buffer| {
                buffer.extend_from_slice(b"half");
                panic!("as a test");
            })
        });
        assert!(panicked.is_err());
        assert_eq!(&*with_arena(|buffer| buffer.extend_from_slice(b"whole")), b"whole");
        let long = vec![b'x'; 3 * CHUNK];
        assert_eq!(&*with_arena(|buffer| buffer.extend_from_slice(&long)), &long[..]);
    }
}
