//! Where connections enter: what is checked before Pingora sees a byte of them.

pub mod head;
