//! `mtls`: who calls is told by the certificate of the client, which the listener has verified.

use super::auth::Judge;
use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::consumer::Consumers;
use crate::identity::Identity;
use crate::rejection::Rejection;
use crate::request::{ClientCertificate, RequestCtx};
use crate::telemetry::metrics::AuthOutcome;
use http::HeaderValue;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// There is no scheme for certificates; RFC 9110 section 15.5.2 asks for a challenge all the same.
const CHALLENGE: HeaderValue = HeaderValue::from_static("ClientCertificate");

/// Asks for a client certificate of a `mtls` credential of one of the `[consumers]`. The listener must have `client_ca`; what it has
/// not verified is none. Without a certificate the answer is 401 `credential_missing`, with one that is nobody's, or that has expired
/// since the connection was opened, 401 `credential_invalid`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MtlsConfig {
    /// Lets any certificate pass that the listener has verified. One that belongs to no consumer stands for its name of this
    /// kind, the first if it has several; without such a name it is refused. Default: only certificates of consumers count.
    pub anyone_by: Option<NameKind>,
}

/// What a certificate is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NameKind {
    Subject,
    Dns,
    Uri,
    Email,
}

pub struct Mtls {
    anyone_by: Option<NameKind>,
    consumers: Arc<Consumers>,
    judge: Judge,
}

impl FilterConfig for MtlsConfig {
    const NAME: &'static str = "mtls";
    type Filter = Mtls;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Mtls, Problem> {
        Ok(Mtls { anyone_by: self.anyone_by, consumers: Arc::clone(cx.consumers), judge: Judge::new(Self::NAME, CHALLENGE, cx) })
    }
}

impl Filter for Mtls {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn on_request<'a>(&'a self, _: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        match self.authenticate(ctx) {
            Ok(()) => Step::CONTINUE,
            Err(rejection) => Step::reject(rejection),
        }
    }
}

impl Mtls {
    fn authenticate(&self, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let tls = ctx.tls.clone();
        let Some(certificate) = tls.as_ref().and_then(|tls| tls.client.as_ref()) else {
            return Err(self.judge.refuse(AuthOutcome::Missing));
        };
        let now = self.judge.clock().wall();
        if now < certificate.not_before {
            return Err(self.judge.refuse(AuthOutcome::NotYet));
        }
        // It is given in whole seconds, and the last of them counts (RFC 5280 section 4.1.2.5).
        if now.duration_since(certificate.not_after).is_ok_and(|past| past >= Duration::from_secs(1)) {
            return Err(self.judge.refuse(AuthOutcome::Expired));
        }
        if let Some(credential) = self.consumers.by_certificate(certificate) {
            return self.judge.accept(credential, ctx);
        }
        match self.anyone_by.and_then(|kind| kind.of(certificate)) {
            Some(name) => {
                self.judge.accepted();
                ctx.identity = Some(Arc::new(stranger(name, certificate)));
                Ok(())
            }
            None => Err(self.judge.refuse(AuthOutcome::Unknown)),
        }
    }
}

/// Somebody whom an authority vouches for, and who is no consumer.
fn stranger(name: &str, certificate: &ClientCertificate) -> Identity {
    let short = certificate.sha256.get(..16).unwrap_or(&certificate.sha256);
    Identity { name: name.into(), credential: format!("mtls:{short}").into(), method: "mtls", ..Identity::nobody() }
}

impl NameKind {
    fn of(self, certificate: &ClientCertificate) -> Option<&str> {
        let prefix = match self {
            NameKind::Subject => return Some(&*certificate.subject).filter(|subject| !subject.is_empty()),
            NameKind::Dns => "DNS:",
            NameKind::Uri => "URI:",
            NameKind::Email => "email:",
        };
        certificate.names.iter().find_map(|name| name.strip_prefix(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SharedClock};
    use crate::filter::testing::{build_for, consumers, decide, session};
    use crate::request::TlsFacts;
    use std::time::SystemTime;

    fn certificate(names: &[&str], sha256: &str) -> ClientCertificate {
        ClientCertificate {
            subject: "O=Example, CN=orders".into(),
            names: names.iter().map(|name| (*name).into()).collect(),
            sha256: sha256.into(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        }
    }

    /// The name and the credential of whoever comes with this certificate.
    async fn who(table: &str, certificate: Option<ClientCertificate>) -> Result<(String, String, bool), &'static str> {
        who_at(Duration::ZERO, table, certificate).await
    }

    /// The same at a time since 1970.
    async fn who_at(
        time: Duration,
        table: &str,
        certificate: Option<ClientCertificate>,
    ) -> Result<(String, String, bool), &'static str> {
        let all = consumers(&format!(
            "[consumers.print]\ncredentials = [{{ mtls = {{ sha256 = '{}' }} }}]\n\
             [consumers.name]\ncredentials = [{{ mtls = {{ name = 'DNS:orders.example' }} }}]\n\
             [consumers.subject]\ncredentials = [{{ mtls = {{ subject = 'O=Example, CN=orders' }} }}]\n\
             [consumers.old]\ncredentials = [{{ mtls = {{ name = 'DNS:old.example', expires = 1970-01-01 }} }}]\n\
             [consumers.off]\nenabled = false\ncredentials = [{{ mtls = {{ name = 'DNS:off.example' }} }}]",
            ["AB:".repeat(31).as_str(), "AB"].concat()
        ));
        let clock = ManualClock::new();
        clock.advance(time);
        let clock: SharedClock = clock;
        let filter = build_for::<MtlsConfig>(table, &all, &clock).unwrap();
        let (mut session, mut ctx) = session("GET /a HTTP/1.1\r\nHost: a\r\nX-Client-Cert: CN=orders\r\n\r\n", "/a").await;
        ctx.tls = Some(Arc::new(TlsFacts {
            version: "TLSv1.3",
            cipher: "x",
            server_name: None,
            http2: false,
            resumed: false,
            client: certificate,
            client_rules: "".into(),
        }));
        decide(&filter, &mut session, &mut ctx).await?;
        let identity = ctx.identity.unwrap();
        Ok((identity.name.to_string(), identity.credential.to_string(), identity.consumer.is_some()))
    }

    fn of(name: &str, credential: &str, consumer: bool) -> Result<(String, String, bool), &'static str> {
        Ok((name.into(), credential.into(), consumer))
    }

    #[tokio::test]
    async fn a_certificate_is_its_consumers() {
        let print = "ab".repeat(32);
        let all = ["DNS:orders.example"];
        assert_eq!(who("{}", Some(certificate(&all, &print))).await, of("print", "mtls:abababababababab", true));
        assert_eq!(who("{}", Some(certificate(&all, "00"))).await, of("name", "mtls:DNS:orders.example", true));
        assert_eq!(who("{}", Some(certificate(&["URI:a"], "00"))).await, of("subject", "mtls:O=Example, CN=orders", true));
        assert_eq!(who("{}", None).await, Err("credential_missing"), "a header is no certificate");
        for name in ["DNS:old.example", "DNS:off.example"] {
            assert_eq!(who("{}", Some(certificate(&[name], "00"))).await, Err("credential_invalid"), "{name}");
        }
    }

    #[tokio::test]
    async fn a_certificate_counts_no_longer_than_it_is_valid() {
        let mut own = certificate(&["DNS:orders.example", "URI:a"], "00");
        own.not_before += Duration::from_secs(10);
        let stranger = ClientCertificate { names: ["URI:b".into()].into(), subject: "".into(), ..own.clone() };
        for (certificate, table) in [(own, "{}"), (stranger, "{ anyone_by = 'uri' }")] {
            for (millis, good) in [(0, false), (9_999, false), (10_000, true), (100_000, true), (100_999, true)] {
                let got = who_at(Duration::from_millis(millis), table, Some(certificate.clone())).await;
                assert_eq!(got.is_ok(), good, "{table} at {millis}: {got:?}");
            }
            for millis in [101_000, 200_000] {
                let got = who_at(Duration::from_millis(millis), table, Some(certificate.clone())).await;
                assert_eq!(got, Err("credential_invalid"), "{table} at {millis}");
            }
        }
    }

    #[tokio::test]
    async fn strangers_pass_only_where_that_is_written() {
        let mut stranger = certificate(&["URI:spiffe://example/a", "DNS:a.example"], &"cd".repeat(32));
        stranger.subject = "CN=stranger".into();
        assert_eq!(who("{}", Some(stranger.clone())).await, Err("credential_invalid"));
        for (kind, name) in [("subject", "CN=stranger"), ("dns", "a.example"), ("uri", "spiffe://example/a")] {
            let table = format!("{{ anyone_by = '{kind}' }}");
            assert_eq!(who(&table, Some(stranger.clone())).await, of(name, "mtls:cdcdcdcdcdcdcdcd", false));
        }
        assert_eq!(who("{ anyone_by = 'email' }", Some(stranger)).await, Err("credential_invalid"), "it has no such name");
    }
}
