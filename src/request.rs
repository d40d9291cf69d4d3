//! What is known about one request, in the form in which filters and logs use it.

use crate::canonical::PathRules;
use crate::identity::Identity;
use crate::limit;
use crate::rejection;
use crate::route::Params;
use crate::signature::digest::BodyDigest;
use arrayvec::{ArrayString, ArrayVec};
use http::HeaderValue;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// The longest request id that is taken over from a trusted peer, in bytes.
pub const REQUEST_ID_MAX: usize = 128;
/// The most `any_of` of one route whose decisions are noted.
pub const ANY_OF_MAX: usize = 4;
/// The longest host name, in bytes (RFC 1035 §2.3.4).
pub const HOST_MAX: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// What the TLS handshake of a connection has settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    pub cipher: &'static str,
    /// The name that the client asked for (SNI).
    pub server_name: Option<Box<str>>,
    /// HTTP/2 was agreed on (ALPN).
    pub http2: bool,
    /// The session goes on with an earlier one; the client's certificate was verified by that one.
    pub resumed: bool,
    /// The client's certificate, verified by the listener's `client_ca`.
    pub client: Option<ClientCertificate>,
    /// By which rules it was asked for one: equal for equal rules (`tls::hosts`).
    pub client_rules: Arc<str>,
}

/// Who a client is by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The distinguished name, such as `C=DE, O=Example, CN=orders`.
    pub subject: Box<str>,
    /// Subject alternative names with their kind: `DNS:a.example`, `URI:spiffe://...`, `email:...`, `IP:192.0.2.1`; at most 64.
    pub names: Box<[Box<str>]>,
    /// SHA-256 of the certificate in DER: 64 lower-case hexadecimal digits.
    pub sha256: Box<str>,
    /// When it is valid, ends included. It was at the handshake; a connection may outlive it, and a session that is resumed.
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// The facts of one request. Everything that filters decide by comes from here or from the canonical request head.
#[derive(Debug)]
pub struct RequestCtx {
    pub id: ArrayString<REQUEST_ID_MAX>,
    /// The client's address: the rightmost hop that is not one of the trusted proxies.
    pub client: IpAddr,
    /// The address on the other end of the connection.
    pub peer: IpAddr,
    /// Whether `peer` is one of the trusted proxies, whose word on the client is taken.
    pub peer_trusted: bool,
    pub scheme: Scheme,
    /// What the handshake has settled, if the client came over TLS.
    pub tls: Option<Arc<TlsFacts>>,
    /// Canonical: lower case, without port and trailing dot.
    pub host: ArrayString<HOST_MAX>,
    /// What its path was allowed to hold, and what it is changed to may hold.
    pub path_rules: PathRules,
    /// The name of the route, once there is one.
    pub route: Option<Arc<str>>,
    /// The path parameters of the route: places in the canonical path of the session's request head.
    pub params: Params,
    /// Who the request is from, once an authentication filter has established it.
    pub identity: Option<Arc<Identity>>,
    /// Which method of which `any_of` has let it pass: the number of the filter, and the place of the method.
    pub methods: ArrayVec<(u64, usize), ANY_OF_MAX>,
    /// What else about the caller decides about the answer; see [`RequestCtx::tell_apart`].
    pub apart: Vec<u8>,
    /// What a 401 is to ask for (`WWW-Authenticate`), where a filter has let the request pass without an identity.
    pub challenge: Option<HeaderValue>,
    pub started: Instant,
    /// When the request must have been answered in full.
    pub deadline: Option<Instant>,
    /// What limits have decided, for the headers of the response.
    pub limits: limit::Report,
    /// What limits have counted and may still give back or charge.
    pub uses: limit::Uses,
    /// What the gateway has refused it with, once it has.
    pub rejected: Option<&'static rejection::Code>,
    /// The places of the request among those under way, given back with it.
    pub held: limit::concurrency::Held,
    /// What the body must be, where a filter has found a `Content-Digest` that was signed.
    pub body_digest: Option<Box<BodyDigest>>,
    /// For filters of other crates: values that they hand on from one phase or filter to another.
    pub extensions: http::Extensions,
}

impl RequestCtx {
    /// A request of which nothing is known yet but its connection.
    pub fn new(peer: IpAddr, scheme: Scheme, started: Instant) -> Self {
        RequestCtx {
            id: ArrayString::new(),
            client: peer,
            peer,
            peer_trusted: false,
            scheme,
            tls: None,
            host: ArrayString::new(),
            path_rules: PathRules::STRICT,
            route: None,
            params: Params::default(),
            identity: None,
            methods: ArrayVec::new(),
            apart: Vec::new(),
            challenge: None,
            started,
            deadline: None,
            limits: limit::Report::new(),
            uses: limit::Uses::default(),
            rejected: None,
            held: limit::concurrency::Held::default(),
            body_digest: None,
            extensions: http::Extensions::new(),
        }
    }
}

impl RequestCtx {
    /// Notes what an answer may depend on beside the identity, because a filter decides by it or tells the upstream of it: requests
    /// that differ in it never get what a cache has stored for each other, unless the route says `share = "public"`.
    pub fn tell_apart(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            // No field of a request is longer than the bound of its header, far below four gigabytes.
            self.apart.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            self.apart.extend_from_slice(part);
        }
    }

    /// Notes which method of an `any_of` has let it pass. Where there is no room for one more, all of its methods count as not asked.
    pub(crate) fn note_method(&mut self, any_of: u64, method: usize) {
        let _ = self.methods.try_push((any_of, method));
    }

    /// Which method of an `any_of` has let it pass, if one has.
    pub(crate) fn method_of(&self, any_of: u64) -> Option<usize> {
        self.methods.iter().find(|(known, _)| *known == any_of).map(|(_, method)| *method)
    }

    /// The same request once more, for what is fetched on its behalf: who asks, from where and for what, but none of the limits and
    /// places that it holds.
    pub fn fork(&self, started: Instant) -> Self {
        RequestCtx {
            id: self.id,
            client: self.client,
            peer_trusted: self.peer_trusted,
            tls: self.tls.clone(),
            host: self.host,
            path_rules: self.path_rules,
            route: self.route.clone(),
            params: self.params.clone(),
            identity: self.identity.clone(),
            methods: self.methods.clone(),
            apart: self.apart.clone(),
            extensions: self.extensions.clone(),
            ..RequestCtx::new(self.peer, self.scheme, started)
        }
    }
}

#[cfg(test)]
impl RequestCtx {
    /// A plain request from 192.0.2.7 to `example.com`, before routing.
    pub fn for_test() -> Self {
        let client = IpAddr::from([192, 0, 2, 7]);
        RequestCtx {
            id: ArrayString::from("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            client,
            peer: client,
            peer_trusted: false,
            scheme: Scheme::Http,
            tls: None,
            host: ArrayString::from("example.com").unwrap(),
            path_rules: PathRules::STRICT,
            route: None,
            params: Params::default(),
            identity: None,
            methods: ArrayVec::new(),
            apart: Vec::new(),
            challenge: None,
            started: Instant::now(),
            deadline: None,
            limits: limit::Report::new(),
            uses: limit::Uses::default(),
            rejected: None,
            held: limit::concurrency::Held::default(),
            body_digest: None,
            extensions: http::Extensions::new(),
        }
    }
}
