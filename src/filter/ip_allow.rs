//! `ip_allow` and `ip_deny`: which addresses may come, whatever else they bring.
//!
//! Both look at the client's address, which is the rightmost hop that is not a trusted proxy: a header that a client writes
//! does not change it.

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use crate::value::{Cidr, Located, Networks};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// The most networks of one filter.
const NETWORKS_MAX: usize = 100_000;

/// Lets only clients from these networks pass. Others get 403 `address_forbidden`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IpAllowConfig {
    /// The networks, 1 to 100,000. An IPv4 address that arrives as IPv6 (`::ffff:192.0.2.1`) is the IPv4 address; `::/0` holds
    /// no IPv4 address.
    pub networks: Vec<Located<Cidr>>,
}

/// Refuses clients from these networks with 403 `address_forbidden`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IpDenyConfig {
    /// The networks, 1 to 100,000. An IPv4 address that arrives as IPv6 (`::ffff:192.0.2.1`) is the IPv4 address; `::/0` holds
    /// no IPv4 address.
    pub networks: Vec<Located<Cidr>>,
}

/// Either of the two.
pub struct IpFilter {
    networks: Networks,
    /// What being in one of the networks means.
    permits: bool,
    metrics: Arc<AuthMetrics>,
}

impl FilterConfig for IpAllowConfig {
    const NAME: &'static str = "ip_allow";
    type Filter = IpFilter;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<IpFilter, Problem> {
        build(&self.networks, true, cx.auth_metrics(Self::NAME))
    }
}

impl FilterConfig for IpDenyConfig {
    const NAME: &'static str = "ip_deny";
    type Filter = IpFilter;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<IpFilter, Problem> {
        build(&self.networks, false, cx.auth_metrics(Self::NAME))
    }
}

fn build(networks: &[Located<Cidr>], permits: bool, metrics: Arc<AuthMetrics>) -> Result<IpFilter, Problem> {
    if networks.is_empty() {
        let nobody = if permits { "an empty list permits nobody" } else { "an empty list refuses nobody" };
        return Err(Problem::new(nobody).help("write networks, or take the filter out"));
    }
    if networks.len() > NETWORKS_MAX {
        return Err(Problem::new(format!("the most networks are {NETWORKS_MAX}")));
    }
    let networks: Vec<Cidr> = networks.iter().map(|network| network.value).collect();
    Ok(IpFilter { networks: Networks::new(&networks), permits, metrics })
}

impl Filter for IpFilter {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn on_request<'a>(&'a self, _: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        if self.networks.contains(ctx.client) == self.permits {
            self.metrics.count(AuthOutcome::Accepted);
            Step::CONTINUE
        } else {
            self.metrics.count(AuthOutcome::Forbidden);
            Step::reject(Rejection::new(&rejection::ADDRESS_FORBIDDEN))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Flow;
    use crate::filter::testing::{build, problem, session};
    use std::net::IpAddr;

    async fn passes(filter: &IpFilter, client: &str) -> bool {
        let (mut session, mut ctx) = session("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n", "/").await;
        ctx.client = client.parse::<IpAddr>().unwrap();
        match filter.on_request(&mut session, &mut ctx) {
            Step::Ready(Ok(Flow::Continue)) => true,
            Step::Ready(Err(rejection)) => {
                assert_eq!(rejection.code.code, "address_forbidden");
                false
            }
            _ => panic!("neither passed nor refused"),
        }
    }

    #[tokio::test]
    async fn each_address_is_on_one_side() {
        let table = "{ networks = ['10.0.0.0/8', '192.0.2.7', 'fd00::/8'] }";
        let (allow, deny) = (build::<IpAllowConfig>(table).unwrap(), build::<IpDenyConfig>(table).unwrap());
        for (client, inside) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd00::1", true),
            ("fe80::1", false),
            ("203.0.113.5", false),
        ] {
            assert_eq!((passes(&allow, client).await, passes(&deny, client).await), (inside, !inside), "{client}");
        }
    }

    #[test]
    fn an_empty_list_is_refused() {
        assert_eq!(problem::<IpAllowConfig>("{ networks = [] }").message, "an empty list permits nobody");
        assert_eq!(problem::<IpDenyConfig>("{ networks = [] }").message, "an empty list refuses nobody");
    }
}
