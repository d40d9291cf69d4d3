//! `POST /purge?url=...`: has the cache forget. What is to go is one of `url`, `prefix`, `tag`, `route` or `all`; with `soft` it
//! becomes stale instead.

use super::{Admin, json};
use crate::cache::purge::{Purge, What};
use crate::cache::url;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;

pub async fn answer(query: &str, admin: &Admin) -> Response<Full<Bytes>> {
    let purge = match read(query) {
        Ok(purge) => purge,
        Err(why) => return json(StatusCode::BAD_REQUEST, &json!({ "error": why })),
    };
    let Some(cache) = admin.gateway.snapshot().cache.clone() else {
        return json(StatusCode::CONFLICT, &json!({ "error": "no route of this gateway has a cache" }));
    };
    let done = cache.purge(&purge).await;
    log::info!("purged {} answers: {purge:?}", done.purged);
    json(StatusCode::OK, &json!({ "purged": done.purged, "gateways": done.gateways, "acknowledged": done.acknowledged }))
}

fn read(query: &str) -> Result<Purge, String> {
    let mut what = None;
    let mut soft = false;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("`{name}` is not UTF-8"))?;
        let next = match name {
            "soft" => {
                soft = true;
                continue;
            }
            "url" => What::Url(url::of_text(&value).ok_or_else(|| format!("`{value}` is not an absolute URL"))?.into()),
            "prefix" => What::Prefix(
                url::prefix_of_text(&value).ok_or_else(|| format!("`{value}` does not begin as an absolute URL"))?.into(),
            ),
            "tag" if !value.is_empty() => What::Tag(value.as_ref().into()),
            "route" if !value.is_empty() => What::Route(value.as_ref().into()),
            "all" => What::Everything,
            _ => return Err(format!("`{name}` is not one of url, prefix, tag, route, all and soft, or says nothing")),
        };
        if what.replace(next).is_some() {
            return Err("say one thing to purge at a time".to_owned());
        }
    }
    let what = what.ok_or("say what to purge: url, prefix, tag, route or all")?;
    Ok(Purge::new(what, soft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_purged_at_a_time() {
        assert_eq!(read("url=http%3A%2F%2FH.example%3A80%2Fa%3Fb%26a").unwrap().url(), Some("http://h.example/a?a&b"));
        assert_eq!(read("prefix=http://H/a/%3Fb%26a").unwrap().what, What::Prefix("http://h/a/?a&b".into()));
        assert_eq!(read("prefix=http://H/a/").unwrap().what, What::Prefix("http://h/a/".into()));
        let soft = read("tag=x&soft").unwrap();
        assert!(soft.is_soft() && soft.what == What::Tag("x".into()));
        for wrong in ["", "soft", "tag=", "url=/a", "tag=a&route=b", "what=1", "prefix=a"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
