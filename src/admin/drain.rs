//! `POST /drain` and `/undrain`: endpoints that take no new requests while somebody works on them.
//!
//! Which they are stands in the query, as `upstream=NAME&endpoint=ADDRESS`. The state belongs to the endpoint: reloads that
//! keep it do not bring it back, and a restart forgets it.

use super::{Admin, json};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

pub(super) fn answer(query: Option<&str>, drained: bool, admin: &Admin) -> Response<Full<Bytes>> {
    let value = |key: &str| {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find_map(|(name, value)| (name == key).then_some(value))?;
        Some(percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned())
    };
    let wrong = |status, why: String| json(status, &serde_json::json!({ "error": why }));
    let (Some(name), Some(which)) = (value("upstream"), value("endpoint")) else {
        return wrong(StatusCode::BAD_REQUEST, "needs `?upstream=NAME&endpoint=ADDRESS`".to_owned());
    };
    let snapshot = admin.gateway.snapshot();
    let Some(upstream) = snapshot.upstreams.get(&*name) else {
        return wrong(StatusCode::NOT_FOUND, format!("there is no upstream `{name}`"));
    };
    match upstream.set_drained(&which, drained) {
        0 => wrong(StatusCode::NOT_FOUND, format!("upstream `{name}` has no endpoint `{which}`")),
        count => {
            let done = if drained { "drained" } else { "brought back" };
            log::info!("upstream {name}: endpoint {which} {done} by an operator");
            let available = upstream.available();
            json(StatusCode::OK, &serde_json::json!({ "endpoints": count, "drained": drained, "available": available }))
        }
    }
}
