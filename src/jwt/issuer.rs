//! An issuer, compiled: from a token's text to an identity.

use super::Refusal;
use super::cache::{self, Cache, Entry, Fingerprint};
use super::claims::{ClaimPath, Mapping};
use super::config::{IssuerConfig, JwksConfig, SecretEncoding};
use super::keys::{Algorithm, Key, KeyKind, KeySet, Verdict};
use super::remote::{Asked, Generation, RemoteKeys, Ticket};
use super::rules::{Rules, Window};
use super::supervisor::Job;
use super::token::{TOKEN_MAX, Token};
use crate::clock::SharedClock;
use crate::consumer::Consumers;
use crate::diagnostic::Diagnostics;
use crate::fetch::{self, Endpoint};
use crate::identity::{Identity, Signed};
use crate::state::StatePool;
use crate::value::{Located, read_file};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest key file, in bytes.
const FILE_MAX: u64 = 256 << 10;

/// One `[jwt.NAME]` section, ready to verify tokens.
pub struct Issuer {
    name: Arc<str>,
    clock: SharedClock,
    algorithms: Box<[Algorithm]>,
    rules: Rules,
    mapping: Mapping,
    allowed_roles: Option<Box<[Box<str>]>>,
    require_consumer: bool,
    deny_list: bool,
    keys: Keys,
    cache: Option<Cache>,
}

enum Keys {
    Fixed(KeySet),
    Remote { keys: Arc<RemoteKeys>, refresh: Duration, max_stale: Duration, timeout: Duration, cooldown: Duration },
}

/// What is made of a token.
pub enum Answer {
    Accepted(Arc<Identity>),
    Refused(Refusal),
    /// Keys that may decide it are being fetched: wait, and ask again without waiting.
    Wait(Ticket),
}

/// The issuers of a snapshot, by name.
#[derive(Default)]
pub struct Issuers {
    /// `None`: the section is wrong, which has been reported.
    map: BTreeMap<Arc<str>, Option<Arc<Issuer>>>,
    /// Sections may be missing because they could not be read, which has been reported.
    incomplete: bool,
}

impl Issuers {
    /// Compiles all sections and reports what is wrong with them.
    pub fn build<'a>(
        sections: impl IntoIterator<Item = (&'a Located<String>, &'a IssuerConfig)>,
        state: &StatePool,
        clock: &SharedClock,
        d: &mut Diagnostics,
    ) -> Self {
        let build = |(name, config): (&Located<String>, &IssuerConfig)| {
            let issuer = Issuer::build(name, config, state, clock, d);
            (Arc::from(name.value.as_str()), issuer.map(Arc::new))
        };
        Issuers { map: sections.into_iter().map(build).collect(), incomplete: false }
    }

    /// Says whether sections are missing because they could not be read.
    pub fn incomplete(self, incomplete: bool) -> Self {
        Issuers { incomplete, ..self }
    }

    /// `Err(true)`: there is such a section or may be one, but it is wrong and has been reported. `Err(false)`: there is none.
    pub fn get(&self, name: &str) -> Result<&Arc<Issuer>, bool> {
        match self.map.get(name) {
            Some(Some(issuer)) => Ok(issuer),
            Some(None) => Err(true),
            None => Err(self.incomplete),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.map.keys().map(|name| &**name)
    }

    /// Those whose keys are fetched, in the order of their names.
    pub fn remote(&self) -> impl Iterator<Item = (&str, &RemoteKeys)> {
        self.map.values().flatten().filter_map(|issuer| match &issuer.keys {
            Keys::Fixed(_) => None,
            Keys::Remote { keys, .. } => Some((&*issuer.name, &**keys)),
        })
    }

    /// What there is to fetch.
    pub fn jobs(&self) -> impl Iterator<Item = Job> {
        self.map.values().flatten().filter_map(|issuer| match &issuer.keys {
            Keys::Fixed(_) => None,
            Keys::Remote { keys, refresh, timeout, .. } => {
                Some(Job { keys: Arc::clone(keys), refresh: *refresh, timeout: *timeout })
            }
        })
    }
}

impl Issuer {
    fn build(
        name: &Located<String>,
        config: &IssuerConfig,
        state: &StatePool,
        clock: &SharedClock,
        d: &mut Diagnostics,
    ) -> Option<Self> {
        let source = name.span.as_ref().and_then(|span| d.source(span.file));
        let directory = source.and_then(|source| source.path.parent()).map(PathBuf::from).unwrap_or_default();
        let keys = keys(config, &directory, state, clock, d)?;
        let algorithms: Box<[Algorithm]> = config.algorithms.iter().map(|algorithm| algorithm.value).collect();
        if let Keys::Fixed(set) = &keys
            && !fit(config, set, d)
        {
            return None;
        }
        // What is wrong with these has been reported by `IssuerConfig::check`.
        let path = |text: &Option<Located<String>>| text.as_ref().and_then(|text| ClaimPath::parse(text).ok());
        let texts = |list: &[Located<String>]| list.iter().map(|text| text.value.as_str().into()).collect::<Box<[Box<str>]>>();
        let rules = Rules {
            issuer: config.issuer.as_ref().map(|issuer| issuer.value.as_str().into()),
            audience: texts(&config.audience),
            types: config.types.as_ref().map(|types| {
                let bare = |typ: &str| typ.strip_prefix("application/").unwrap_or(typ).to_owned();
                types.iter().map(|typ| bare(&typ.to_ascii_lowercase()).into()).collect()
            }),
            leeway: millis(config.leeway.get()),
            require_expiry: config.require_expiry,
            max_lifetime: config.max_lifetime.as_ref().map(|most| millis(most.get())),
            required: config.required_claims.iter().filter_map(|text| ClaimPath::parse(text).ok()).collect(),
        };
        let claims = &config.claims;
        let mapping = Mapping {
            consumer: path(&claims.consumer),
            roles: path(&claims.roles),
            scopes: path(&claims.scopes),
            tier: path(&claims.tier),
        };
        let room = usize::try_from(config.cache.value).unwrap_or(0);
        Some(Issuer {
            name: name.value.as_str().into(),
            clock: Arc::clone(clock),
            algorithms,
            rules,
            mapping,
            allowed_roles: claims.allowed_roles.as_deref().map(texts),
            require_consumer: config.require_consumer,
            deny_list: config.deny_list.value,
            keys,
            cache: (room > 0).then(|| Cache::new(room)),
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What `iss` must be.
    pub fn issuer(&self) -> Option<&str> {
        self.rules.issuer.as_deref()
    }

    /// Whether a token can bring this role.
    pub fn grants_role(&self, role: &str) -> bool {
        self.mapping.roles.is_some() && self.allows(role)
    }

    fn allows(&self, role: &str) -> bool {
        self.allowed_roles.as_ref().is_none_or(|allowed| allowed.iter().any(|known| **known == *role))
    }

    /// Whether its tokens can be withdrawn through Redis.
    pub fn has_deny_list(&self) -> bool {
        self.deny_list
    }

    /// Whether [`Issuer::verify`] may have to wait for keys.
    pub fn may_wait(&self) -> bool {
        matches!(self.keys, Keys::Remote { .. })
    }

    /// Verifies a token of one of `issuers`. Several are told apart by `iss`. Without `may_wait` the answer is never
    /// [`Answer::Wait`].
    pub fn verify(issuers: &[Arc<Issuer>], token: &[u8], consumers: &Consumers, may_wait: bool) -> Answer {
        let Some(first) = issuers.first() else { return Answer::Refused(Refusal::WrongIssuer) };
        if token.len() > TOKEN_MAX {
            return Answer::Refused(Refusal::TooLong);
        }
        let now = unix_millis(first.clock.wall());
        let fingerprint = cache::fingerprint(token);
        if let Some(known) = issuers.iter().find_map(|issuer| issuer.known(&fingerprint, now)) {
            return Answer::Accepted(known);
        }
        let token = match Token::parse(token) {
            Ok(token) => token,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let issuer = match issuers {
            [only] => only,
            several => {
                let iss = token.claims.get("iss").and_then(Value::as_str);
                match several.iter().find(|issuer| iss.is_some() && issuer.issuer() == iss) {
                    Some(issuer) => issuer,
                    None => return Answer::Refused(Refusal::WrongIssuer),
                }
            }
        };
        issuer.decide(token, fingerprint, consumers, now, may_wait)
    }

    /// A token that was verified before and still counts.
    fn known(&self, fingerprint: &Fingerprint, now: u64) -> Option<Arc<Identity>> {
        let cache = self.cache.as_ref()?;
        let generation = match &self.keys {
            Keys::Fixed(_) => 0,
            Keys::Remote { keys, max_stale, .. } => keys.current(*max_stale).as_ref()?.number,
        };
        cache.get(fingerprint, generation, now)
    }

    fn decide(&self, token: Token<'_>, fingerprint: Fingerprint, consumers: &Consumers, now: u64, may_wait: bool) -> Answer {
        // Before any key is looked at: what the issuer does not list is never tried.
        if !self.algorithms.contains(&token.header.algorithm) {
            return Answer::Refused(Refusal::Algorithm);
        }
        let (verdict, generation) = match &self.keys {
            Keys::Fixed(set) => (verify(set, &token), 0),
            Keys::Remote { keys, max_stale, cooldown, .. } => {
                let current = keys.current(*max_stale);
                let current: Option<&Arc<Generation>> = current.as_ref();
                let verdict = current.map_or(Verdict::NoKey, |current| verify(&current.set, &token));
                if matches!(verdict, Verdict::NoKey | Verdict::Unnamed) {
                    // A key that is not known may be new; without any key nothing can be decided.
                    let unknown = if current.is_some() { Refusal::UnknownKey } else { Refusal::KeysUnavailable };
                    return match keys.ask(*cooldown) {
                        Asked::Wait(ticket) if may_wait => Answer::Wait(ticket),
                        Asked::Wait(_) | Asked::Unavailable => Answer::Refused(Refusal::KeysUnavailable),
                        Asked::Known => Answer::Refused(unknown),
                    };
                }
                (verdict, current.map_or(0, |current| current.number))
            }
        };
        match verdict {
            Verdict::Good => {}
            Verdict::Bad | Verdict::Unnamed => return Answer::Refused(Refusal::Signature),
            Verdict::NoKey => return Answer::Refused(Refusal::UnknownKey),
        }
        let checked = self.rules.check(&token.header, &token.claims, now);
        let (identity, window) = match checked.and_then(|window| self.identify(token.claims, consumers, window, now)) {
            Ok(identified) => identified,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let identity = Arc::new(identity);
        if let Some(cache) = &self.cache {
            cache.insert(Entry { fingerprint, generation, window, identity: Arc::clone(&identity) }, now);
        }
        Answer::Accepted(identity)
    }

    /// Who the claims say it is. The token counts no longer than the credential of its consumer does.
    fn identify(
        &self,
        claims: Map<String, Value>,
        consumers: &Consumers,
        mut window: Window,
        now: u64,
    ) -> Result<(Identity, Window), Refusal> {
        let subject = claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
        let facts = self.mapping.facts(&claims)?;
        let name = facts.name.or(subject).ok_or(Refusal::ClaimMissing)?;
        let by_subject = subject.and_then(|subject| consumers.by_jwt_subject(&self.name, subject));
        let consumer = match by_subject {
            Some(credential) => {
                let clock_time = UNIX_EPOCH.checked_add(Duration::from_millis(now)).ok_or(Refusal::Consumer)?;
                credential.check(clock_time).map_err(|_| Refusal::Consumer)?;
                window.from = window.from.max(credential.not_before.map_or(0, unix_millis));
                window.until = window.until.min(credential.expires.map_or(u64::MAX, unix_millis));
                Some(&credential.consumer)
            }
            // Only the operator's own mapping makes a claim the name of a consumer.
            None => facts.name.and_then(|name| consumers.get(name)),
        };
        if consumer.map_or(self.require_consumer, |consumer| !consumer.enabled) {
            return Err(Refusal::Consumer);
        }
        let mut roles = facts.roles;
        roles.retain(|role| self.allows(role));
        for role in consumer.iter().flat_map(|consumer| consumer.roles.iter()) {
            if !roles.contains(role) {
                roles.push(Arc::clone(role));
            }
        }
        let own_tier = || consumer.and_then(|consumer| consumer.tier.as_ref()).map(|tier| Arc::clone(&tier.name));
        let identity = Identity {
            consumer: consumer.cloned(),
            name: consumer.map_or_else(|| name.into(), |consumer| Arc::clone(&consumer.name)),
            credential: format!("jwt:{}:{}", self.name, subject.unwrap_or(name)).into(),
            counted: None,
            method: "jwt",
            issuer: Some(Arc::clone(&self.name)),
            roles: roles.into(),
            scopes: facts.scopes.into(),
            tier: facts.tier.map(Arc::from).or_else(own_tier),
            claims: None,
            signed: Signed::default(),
        };
        Ok((Identity { claims: Some(Arc::new(claims)), ..identity }, window))
    }
}

fn verify(set: &KeySet, token: &Token<'_>) -> Verdict {
    set.verify(token.header.algorithm, token.header.kid.as_deref(), token.message, &token.signature)
}

/// Reads the keys, or prepares to fetch them.
fn keys(config: &IssuerConfig, base: &Path, state: &StatePool, clock: &SharedClock, d: &mut Diagnostics) -> Option<Keys> {
    let mut wrong = |span: &Option<crate::diagnostic::Span>, why: String| {
        d.error(span.clone(), why);
        None
    };
    match (&config.secret, &config.public_key, &config.jwks) {
        (Some(secret), None, None) => match secret.resolve(base) {
            Err(why) => wrong(&secret.span, why),
            Ok(value) => {
                let decoded = match config.secret_encoding {
                    SecretEncoding::Text => Some(value.expose().as_bytes().to_vec()),
                    SecretEncoding::Base64url => URL_SAFE_NO_PAD.decode(value.expose()).ok(),
                };
                match decoded {
                    Some(bytes) => Some(Keys::Fixed(KeySet::single(Key::secret(&bytes)))),
                    None => wrong(&secret.span, "the secret is not in base64url without padding".into()),
                }
            }
        },
        (None, Some(path), None) => {
            let read = read_file(&base.join(&path.value), FILE_MAX);
            let key = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not text".into()));
            match key.and_then(|text| Key::pem(&text)) {
                Ok(key) => Some(Keys::Fixed(KeySet::single(key))),
                Err(why) => wrong(&path.span, format!("the public key {} cannot be used: {why}", path.value)),
            }
        }
        (None, None, Some(jwks)) => match (&jwks.file, &jwks.url) {
            (Some(path), None) => {
                match read_file(&base.join(&path.value), FILE_MAX).and_then(|bytes| KeySet::jwks(&bytes, false)) {
                    Ok(set) => Some(Keys::Fixed(set)),
                    Err(why) => wrong(&path.span, format!("the key set {} cannot be used: {why}", path.value)),
                }
            }
            (None, Some(url)) => remote(jwks, url, base, state, clock, d),
            // Reported by `JwksConfig::check`.
            _ => None,
        },
        // Reported by `IssuerConfig::check`.
        _ => None,
    }
}

fn remote(
    jwks: &JwksConfig,
    url: &Located<String>,
    base: &Path,
    state: &StatePool,
    clock: &SharedClock,
    d: &mut Diagnostics,
) -> Option<Keys> {
    let at = Endpoint::parse(url).ok()?;
    let ca = match &jwks.ca {
        None => None,
        Some(path) => match read_file(&base.join(&path.value), FILE_MAX) {
            Ok(bytes) => Some(bytes),
            Err(why) => {
                d.error(path.span.clone(), format!("the certificates {} cannot be used: {why}", path.value));
                return None;
            }
        },
    };
    let tls = if at.https { Some(fetch::tls(ca.as_deref())) } else { None };
    let tls = match tls.transpose() {
        Ok(tls) => tls,
        Err(why) => {
            match &jwks.ca {
                Some(path) => d.error(path.span.clone(), format!("the certificates {} cannot be used: {why}", path.value)),
                None => d.error(url.span.clone(), format!("the trusted certificates of the system: {why}")),
            };
            return None;
        }
    };
    // Other certificates are another trust: what was fetched under them is fetched again.
    let trust = ca.map(|pem| cache::fingerprint(&pem)).unwrap_or_default();
    let key = format!("{at} {trust:02x?}");
    let keys = state.get_or_create(&key, || RemoteKeys::new(at, tls, Arc::clone(clock)));
    Some(Keys::Remote {
        keys,
        refresh: jwks.refresh.get(),
        max_stale: jwks.max_stale.get(),
        timeout: jwks.timeout.get(),
        cooldown: jwks.cooldown.get(),
    })
}

/// Whether each algorithm has a key.
fn fit(config: &IssuerConfig, set: &KeySet, d: &mut Diagnostics) -> bool {
    let mut all = true;
    for algorithm in config.algorithms.iter().filter(|algorithm| !set.fits(algorithm.value)) {
        all = false;
        let keys = match (set.iter().next(), set.iter().nth(1)) {
            (Some(key), None) if key.kind() == KeyKind::Secret && algorithm.kind() == KeyKind::Secret => {
                let (has, least) = (key.secret_len(), algorithm.secret_min());
                format!("the secret has {has} bytes, and it needs at least {least} (RFC 7518 section 3.2)")
            }
            (Some(key), None) => format!("the key is {}, and it needs {}", key.kind(), algorithm.kind()),
            _ => format!("no key of the set is {} that may be used with it", algorithm.kind()),
        };
        d.error(algorithm.span.clone(), format!("{} does not fit the keys of this issuer", algorithm.name())).label(keys);
    }
    all
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
