//! Where Redis is: one server, a master that sentinels know, or a cluster.

use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates};
use std::sync::Arc;
use std::time::Duration;

const NO_URL: &str = "this is not the URL of a Redis, such as redis://127.0.0.1:6379 or rediss://user:password@host:6379/0";

/// How a Redis is reached, before anything has been looked up.
#[derive(Clone)]
pub struct Topology {
    kind: Kind,
    identity: Arc<str>,
}

#[derive(Clone)]
pub(super) enum Kind {
    One(ConnectionInfo),
    /// The servers that know the master, and how to log in to it.
    Sentinel {
        master: String,
        sentinels: Vec<ConnectionInfo>,
        node: Template,
    },
    /// Some nodes, from which the others are learnt.
    Cluster {
        seeds: Vec<ConnectionInfo>,
        node: Template,
    },
}

/// A Redis that may be used: where it is, and how.
#[derive(Clone)]
pub struct Access {
    pub topology: Topology,
    /// The longest that a request waits for an answer.
    pub timeout: Duration,
    /// What all keys begin with.
    pub prefix: Arc<str>,
    /// Whether to connect; else it is only seen whether a configuration is right.
    pub connect: bool,
}

impl Access {
    /// Distinguishes what is kept for one from that of another; holds secrets, so it is never shown.
    pub fn identity(&self) -> String {
        format!("{} {:?} {}", self.topology.identity(), self.timeout, self.prefix)
    }

    /// One that nobody answers.
    #[cfg(test)]
    pub fn nowhere() -> Self {
        let topology = Topology::new(&Place::Url("redis://127.0.0.1:1"), &Pem::default()).unwrap();
        Access { topology, timeout: Duration::from_millis(10), prefix: "p".into(), connect: false }
    }
}

/// What is the same for all nodes that are only known by their address.
#[derive(Clone)]
pub(super) struct Template {
    /// Its kind and TLS parameters count, its host and port do not.
    like: ConnectionAddr,
    login: RedisConnectionInfo,
}

impl Template {
    pub fn at(&self, host: &str, port: u16) -> Result<ConnectionInfo, String> {
        let addr = match &self.like {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        let info = addr.into_connection_info().map_err(|e| e.to_string())?;
        Ok(info.set_redis_settings(self.login.clone()))
    }
}

/// Certificates for TLS, as PEM.
#[derive(Default, Clone)]
pub struct Pem {
    /// Who is believed besides or instead of the system's authorities.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key that prove who we are.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// As written, with secrets resolved.
pub enum Place<'a> {
    Url(&'a str),
    Sentinel {
        master: &'a str,
        addresses: Vec<&'a str>,
        username: Option<&'a str>,
        password: Option<&'a str>,
        database: u32,
        tls: bool,
    },
    Cluster(Vec<&'a str>),
}

impl Place<'_> {
    /// Distinguishes places; holds secrets.
    fn identity(&self) -> String {
        match self {
            Place::Url(url) => format!("one {url}"),
            Place::Sentinel { master, addresses, username, password, database, tls } => {
                format!("sentinel {master} {addresses:?} {username:?} {password:?} {database} {tls}")
            }
            Place::Cluster(seeds) => format!("cluster {seeds:?}"),
        }
    }
}

impl Topology {
    /// The error never holds a URL, which may have a password.
    pub fn new(place: &Place<'_>, pem: &Pem) -> Result<Self, String> {
        let parse = |url: &&str| connection(url, pem);
        let kind = match place {
            Place::Url(url) => Kind::One(connection(url, pem)?),
            Place::Sentinel { master, addresses, username, password, database, tls } => {
                let mut login = RedisConnectionInfo::default().set_db(i64::from(*database));
                if let Some(username) = username {
                    login = login.set_username(username);
                }
                if let Some(password) = password {
                    login = login.set_password(password);
                }
                let scheme = if *tls { "rediss" } else { "redis" };
                let like = connection(&format!("{scheme}://localhost"), pem)?.addr().clone();
                let sentinels = addresses.iter().map(parse).collect::<Result<_, _>>()?;
                Kind::Sentinel { master: (*master).to_owned(), sentinels, node: Template { like, login } }
            }
            Place::Cluster(seeds) => {
                let seeds: Vec<ConnectionInfo> = seeds.iter().map(parse).collect::<Result<_, _>>()?;
                let Some(first) = seeds.first() else { return Err("a cluster needs a node to begin with".to_owned()) };
                let node = Template { like: first.addr().clone(), login: first.redis_settings().clone() };
                Kind::Cluster { seeds, node }
            }
        };
        let pems = (pem.ca.as_ref().map(|pem| fingerprint(pem)), pem.client.as_ref().map(|(cert, _)| fingerprint(cert)));
        Ok(Topology { kind, identity: format!("{} {pems:?}", place.identity()).into() })
    }

    /// Distinguishes one place from another; holds secrets, so it is never shown.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster { .. })
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }
}

/// A new certificate is a new connection.
fn fingerprint(pem: &[u8]) -> String {
    format!("{:?}", ring::digest::digest(&ring::digest::SHA256, pem))
}

fn connection(url: &str, pem: &Pem) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info().map_err(|_| NO_URL.to_owned())?;
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Ok(info);
    }
    // The client takes the cryptography of the process.
    crate::tls::install();
    let client_tls =
        pem.client.as_ref().map(|(cert, key)| ClientTlsConfig { client_cert: cert.clone(), client_key: key.clone() });
    let certificates = TlsCertificates { client_tls, root_cert: pem.ca.clone() };
    let client = Client::build_with_tls(info, certificates).map_err(|e| format!("TLS with Redis cannot be set up: {e}"))?;
    Ok(client.get_connection_info().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(place: &Place<'_>) -> Result<Topology, String> {
        Topology::new(place, &Pem::default())
    }

    #[test]
    fn nodes_are_reached_as_the_seeds_are() {
        let place = Place::Cluster(vec!["rediss://ann:secret@10.0.0.1:7000"]);
        let Kind::Cluster { node, .. } = topology(&place).unwrap().kind else { panic!() };
        let info = node.at("10.0.0.2", 7001).unwrap();
        assert_eq!(info.addr().to_string(), "10.0.0.2:7001");
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        assert_eq!((info.redis_settings().username(), info.redis_settings().password()), (Some("ann"), Some("secret")));
    }

    #[test]
    fn an_error_never_shows_the_password() {
        let wrong = topology(&Place::Cluster(vec!["redis://a", "nonsense://:hunter2@x"])).err().unwrap();
        assert!(!wrong.contains("hunter2") && wrong.contains("not the URL"), "{wrong}");
        assert!(topology(&Place::Cluster(vec![])).is_err());
    }

    #[test]
    fn whatever_changes_the_connection_is_another_store() {
        let of = |place: &Place<'_>| topology(place).unwrap().identity().to_owned();
        let sentinel = |password| Place::Sentinel {
            master: "m",
            addresses: vec!["redis://a"],
            username: None,
            password,
            database: 0,
            tls: false,
        };
        assert_ne!(of(&sentinel(None)), of(&sentinel(Some("p"))));
        assert_ne!(of(&Place::Url("redis://a")), of(&Place::Cluster(vec!["redis://a"])));
    }
}
