//! What a transport finds out about a client, and tells whoever answers.

use super::date::Date;
use std::time::Instant;

/// What a client did to have its connection ended in the middle of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// The request body came too slowly.
    SlowBody = 1,
    /// The response was read too slowly.
    SlowReader = 2,
    /// Nothing went through a tunnel for too long.
    IdleTunnel = 3,
    /// Bytes came after an upgrade request before its 101.
    EarlyBytes = 4,
    /// The framing of a chunked body has no reading, or more than one.
    BadChunk = 5,
    /// The upstream has not answered an upgrade in time.
    UpgradeUnanswered = 6,
}

/// The names of [`Fault`] in its order, as metric labels.
pub const FAULTS: &[&str] =
    &["slow_body", "slow_reader", "idle_tunnel", "early_upgrade_bytes", "malformed_chunk", "upgrade_unanswered"];

/// Where an [`super::io::EdgeIo`] leaves what it found, for whoever answers.
pub trait Faults: Send + Sync + 'static {
    fn report(&self, fault: Fault);
    /// Until when the upgrade under way must be answered.
    fn upgrade_deadline(&self) -> Option<Instant>;
    /// Whether a client could take the end of the connection for that of an answer which was cut off.
    fn cut_off(&self) -> bool;
    /// The `Date` of the response whose head is written next, if it is not ours to give; said once.
    fn date(&self) -> Option<Date>;
    /// The trailers of the answer under way as lines, when its body has ended. An answer that has some is chunked.
    fn trailers(&self) -> Vec<u8>;
    /// The trailer section of the request under way: fields, without the empty line. Nobody knows yet that its body is over.
    fn asked_trailers(&self, section: &[u8]);
}
