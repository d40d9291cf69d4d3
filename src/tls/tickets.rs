//! Session tickets, and when their keys change.
//!
//! The tickets are those of rustls (RFC 5077 §4). When their keys change is decided here, by the gateway's clock: rustls goes by
//! the wall clock, which jumps, and lets a key that nobody has needed for a while open sessions of any age.

use crate::clock::SharedClock;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For how long a key makes tickets. It opens them for as long again.
const PERIOD: Duration = Duration::from_secs(6 * 60 * 60);

/// The keys of one listener's tickets. They outlive a reload, as long as what a ticket stands for stays the same.
pub struct Tickets {
    clock: SharedClock,
    keys: RwLock<Keys>,
}

struct Keys {
    current: Arc<dyn ProducesTickets>,
    previous: Option<Arc<dyn ProducesTickets>>,
    /// When the current one makes no more tickets.
    until: Instant,
}

impl Tickets {
    pub fn new(clock: &SharedClock) -> Result<Self, rustls::Error> {
        let now = clock.now();
        let keys = Keys { current: Ticketer::new()?, previous: None, until: now.checked_add(PERIOD).unwrap_or(now) };
        Ok(Tickets { clock: Arc::clone(clock), keys: RwLock::new(keys) })
    }

    /// Those that hold now; `None` where no new one can be made. Then there are no tickets, and handshakes are full ones.
    fn keys(&self) -> Option<RwLockReadGuard<'_, Keys>> {
        let now = self.clock.now();
        let keys = self.keys.read();
        if now < keys.until {
            return Some(keys);
        }
        drop(keys);
        let next = Ticketer::new().ok()?;
        let mut keys = self.keys.write();
        // Somebody else may have been faster.
        if now >= keys.until {
            // In step, so that no key is in use for longer than two periods. One that has had both of them is gone at once.
            let after = keys.until.checked_add(PERIOD).filter(|after| now < *after);
            let last = std::mem::replace(&mut keys.current, next);
            keys.previous = after.map(|_| last);
            keys.until = after.or_else(|| now.checked_add(PERIOD))?;
        }
        Some(RwLockWriteGuard::downgrade(keys))
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD.as_secs().saturating_mul(2)).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys()?.current.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys()?;
        keys.current.decrypt(cipher).or_else(|| keys.previous.as_ref()?.decrypt(cipher))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{
        ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SideData,
        SupportedProtocolVersion,
    };

    const HOUR: Duration = Duration::from_secs(3600);
    const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

    /// A server with these tickets, and clients of one version that trust it, each with sessions of its own.
    struct Ends {
        clock: Arc<ManualClock>,
        server: Arc<ServerConfig>,
        clients: Vec<Arc<ClientConfig>>,
    }

    fn ends(version: &'static SupportedProtocolVersion) -> Ends {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let clock = ManualClock::new();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(Arc::clone(crate::tls::provider()));
        let builder = builder.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
        let mut server = builder.with_single_cert(vec![pair.cert.der().clone()], key).unwrap();
        let shared: SharedClock = clock.clone();
        server.ticketer = Arc::new(Tickets::new(&shared).unwrap());
        let client = || {
            let mut roots = RootCertStore::empty();
            roots.add(pair.cert.der().clone()).unwrap();
            let builder = ClientConfig::builder_with_provider(Arc::clone(crate::tls::provider()));
            Arc::new(builder.with_protocol_versions(&[version]).unwrap().with_root_certificates(roots).with_no_client_auth())
        };
        Ends { clock, server: Arc::new(server), clients: (0..4).map(|_| client()).collect() }
    }

    /// What one end has to say, to the other.
    fn pass<A: SideData, B: SideData>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets().unwrap();
        }
    }

    impl Ends {
        /// Makes a connection of this client: whether it resumed a session.
        fn resumes(&self, client: usize) -> bool {
            let mut client = ClientConnection::new(self.clients[client].clone(), "localhost".try_into().unwrap()).unwrap();
            let mut server = ServerConnection::new(self.server.clone()).unwrap();
            while client.wants_write() || server.wants_write() {
                pass(&mut client, &mut server);
                pass(&mut server, &mut client);
            }
            assert!(!client.is_handshaking() && !server.is_handshaking());
            server.handshake_kind() == Some(HandshakeKind::Resumed)
        }
    }

    #[test]
    fn a_ticket_outlives_one_change_of_keys_and_not_two() {
        for version in VERSIONS {
            let ends = ends(version);
            for client in 0..4 {
                assert!(!ends.resumes(client), "{version:?}: a first connection");
            }
            assert!(ends.resumes(0));
            ends.clock.advance(6 * HOUR);
            assert!(ends.resumes(1), "{version:?}: the key has changed once");
            ends.clock.advance(6 * HOUR - Duration::from_secs(1));
            assert!(ends.resumes(2), "{version:?}: just before the second change");
            ends.clock.advance(Duration::from_secs(1));
            assert!(!ends.resumes(3), "{version:?}: the key has changed twice");
            assert!(ends.resumes(3), "{version:?}: what it got instead is good");
        }
    }

    #[test]
    fn keys_change_in_step_although_nobody_comes() {
        for version in VERSIONS {
            let ends = ends(version);
            assert!(!ends.resumes(0) && !ends.resumes(1));
            // Long after the change, and long before the next one.
            ends.clock.advance(10 * HOUR);
            assert!(!ends.resumes(2), "a first connection");
            ends.clock.advance(2 * HOUR);
            assert!(!ends.resumes(0), "{version:?}: of twelve hours ago");
            assert!(ends.resumes(2), "{version:?}: of two hours ago, under the key before");
            ends.clock.advance(100 * HOUR);
            assert!(!ends.resumes(1) && !ends.resumes(2), "{version:?}: days later");
        }
    }
}
