//! placeholder
use arrayvec::ArrayString;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const MAX_HOPS: usize = 10;
#[derive(Debug)]
pub struct TrustedProxies(Vec<ipnet::IpNet>);
impl TrustedProxies {
    pub fn new(i: impl Iterator<Item = crate::value::Cidr>) -> Self {
        Self(i.map(|c| c.0).collect())
    }
    pub fn contains(&self, a: IpAddr) -> bool {
        self.0.iter().any(|n| n.contains(&a))
    }
}
pub fn request_id(_: Option<&HeaderValue>, _: bool) -> ArrayString<128> {
    let mut a = ArrayString::new();
    a.push_str(&uuid::Uuid::now_v7().to_string());
    a
}
pub fn id_value(id: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(id).ok()
}
pub fn client_address(p: IpAddr, _: &HeaderMap, _: &TrustedProxies) -> IpAddr {
    p
}
pub fn via_hops(_: &HeaderMap, _: &str) -> usize {
    0
}
pub fn write(_: &mut pingora::http::RequestHeader, _: &crate::request::RequestCtx) -> pingora::Result<()> {
    Ok(())
}
