//! Validation (RFC 9111 §4.3): which stored answers the upstream is asked about, and which of them its 304 means.
//!
//! A 304 that could mean an answer of another request is never guessed at: what is fetched again costs a round trip, what is
//! confirmed wrongly gives a client what was made for another.

use super::fetch::{Ask, Fetch, millis};
use crate::cache::conditional::{is_strong, weakly_equal};
use crate::cache::entry::{self, Entry};
use crate::cache::fill::{Confirmed, Phase};
use crate::cache::flight;
use crate::cache::freshen::{Freshened, freshened};
use crate::cache::freshness::Received;
use crate::cache::policy::Terms;
use http::{HeaderMap, HeaderValue, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use std::sync::Arc;

/// More tags than this make a head that upstreams may refuse.
const TAGS_MAX: usize = 8;

/// What is asked about: the answers that may be selected for the request, the one that would be first. Of answers to other requests
/// §4.3.1 would allow to ask as well; but origins that give all variants one tag would have one client's confirmed for another.
pub fn validators(variants: &[Arc<Entry>], request: &HeaderMap) -> Vec<Arc<Entry>> {
    let mut own = variants.iter().filter(|entry| entry.is_complete() && entry.validator() && entry.selecting.matches(request));
    let first = own.next();
    // Beside another one only a strong tag says which of them a 304 means.
    first.into_iter().chain(own.filter(|entry| tag(entry).is_some_and(is_strong))).take(TAGS_MAX).cloned().collect()
}

fn tag(entry: &Entry) -> Option<&HeaderValue> {
    entry.head.headers.get(header::ETAG)
}

/// The conditions of a fetch.
pub fn conditions(validate: &[Arc<Entry>], head: &mut RequestHeader) -> Result<()> {
    let mut tags: Vec<&[u8]> = Vec::new();
    for tag in validate.iter().filter_map(|entry| tag(entry)) {
        if !tags.contains(&tag.as_bytes()) {
            tags.push(tag.as_bytes());
        }
    }
    if !tags.is_empty()
        && let Ok(list) = HeaderValue::from_bytes(&tags.join(&b", "[..]))
    {
        head.insert_header(header::IF_NONE_MATCH, list)?;
    }
    // Only where it is clear which answer the date is of.
    if let [only] = validate
        && let Some(modified) = only.head.headers.get(header::LAST_MODIFIED)
    {
        head.insert_header(header::IF_MODIFIED_SINCE, modified.clone())?;
    }
    Ok(())
}

/// Those of the answers asked about that a 304 means (§4.3.4), the one to answer with first; none if that is not clear.
fn meant<'a>(validate: &'a [Arc<Entry>], request: &HeaderMap, update: &HeaderMap) -> Vec<&'a Arc<Entry>> {
    let selectable = |entry: &Arc<Entry>| entry.selecting.matches(request);
    let Some(new) = update.get(header::ETAG) else {
        // Without a tag it is about the one answer that was asked about, unless its date says otherwise.
        let [only] = validate else { return Vec::new() };
        let dates = (update.get(header::LAST_MODIFIED), only.head.headers.get(header::LAST_MODIFIED));
        let same = !matches!(dates, (Some(new), Some(known)) if new != known);
        return [only].into_iter().filter(|only| same && selectable(only)).collect();
    };
    let named = |entry: &&Arc<Entry>| selectable(entry) && is_strong(new) && tag(entry) == Some(new);
    let strong: Vec<_> = validate.iter().filter(named).collect();
    if !strong.is_empty() {
        return strong;
    }
    // Servers that code answers as they go weaken the tag in a 200 and not in a 304.
    let weak = validate.iter().find(|entry| selectable(entry) && tag(entry).is_some_and(|known| weakly_equal(known, new)));
    weak.into_iter().collect()
}

/// What a 304 makes of the answers asked about.
pub fn validated(fetch: &Fetch, request: &HeaderMap, update: &ResponseHeader, received: &Received) {
    let fill = &fetch.fill;
    let meant = meant(fetch.validate(), request, &update.headers);
    let Some((first, rest)) = meant.split_first() else {
        if fetch.validate().is_empty() && !matches!(fetch.ask, Ask::Rest(_)) {
            let shown = super::head::shown(fetch, request, update, 200, received);
            if shown.outcome.is_err() {
                fetch.cache.flights.note_unshared(fetch.flight, millis(received));
            }
            fill.settle(Phase::NotModified(Arc::new(shown)));
        } else {
            fill.settle(Phase::Unclear);
        }
        return;
    };
    let confirmed = confirm(fetch, first, request, update, received);
    for other in rest {
        confirm(fetch, other, request, update, received);
    }
    fill.settle(Phase::Validated(Arc::new(confirmed)));
}

fn confirm(fetch: &Fetch, known: &Arc<Entry>, request: &HeaderMap, update: &ResponseHeader, received: &Received) -> Confirmed {
    let fill = &fetch.fill;
    let Freshened { head, own, terms } = freshened(&fill.policy, known, update, fetch.asked, received);
    let selecting = fill.policy.selecting(&head.headers, request);
    let tags = entry::tags(&head.headers);
    let entry = |terms, selecting, tags| Arc::new(Entry::new(head, known.body.clone(), terms, *received, selecting, tags));
    match terms.and_then(|terms| Ok((terms, selecting?))) {
        Ok((terms, selecting)) => {
            if selecting != known.selecting {
                fetch.cache.memory.remove(&fill.key, known);
            }
            let entry = entry(terms, selecting, tags);
            fill.keep(&entry);
            Confirmed { entry, own, shared: true }
        }
        Err(why) => {
            // Confirmed for the one who asked, and not to be kept (`no-store` came with the 304).
            fill.policy.metrics.refused(why);
            fetch.cache.memory.remove(&fill.key, known);
            fetch.cache.flights.note_unshared(flight::crowd(&fill.key, request), millis(received));
            let once = Terms { no_cache: true, ..known.terms };
            Confirmed { entry: entry(once, known.selecting.clone(), Box::default()), own, shared: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::entry;
    use crate::cache::vary::Selecting;
    use http::HeaderName;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    /// An answer to a request in this language, with these fields.
    fn stored(language: &str, fields: &[(&'static str, &str)]) -> Arc<Entry> {
        let mut it = entry(1, &[]);
        for (name, value) in fields {
            it.head.append_header(*name, *value).unwrap();
        }
        it.selecting = Selecting::of(&map(&[("vary", "accept-language")]), &map(&[("accept-language", language)])).unwrap();
        Arc::new(it)
    }

    const MONDAY: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
    const SUNDAY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    #[test]
    fn only_what_can_be_told_apart_is_asked_about() {
        let french = map(&[("accept-language", "fr")]);
        let others = [
            stored("en", &[("last-modified", SUNDAY)]),
            stored("de", &[("etag", "W/\"g\"")]),
            stored("es", &[("etag", "\"e\"")]),
        ];
        let asked = |variants: &[Arc<Entry>]| {
            let mut head = RequestHeader::build("GET", b"/", None).unwrap();
            conditions(&validators(variants, &french), &mut head).unwrap();
            let get = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (get("if-none-match"), get("if-modified-since"))
        };
        assert_eq!(asked(&others), (None, None), "these are for others");
        let own = |fields| stored("fr", fields);
        let dated = own(&[("last-modified", SUNDAY)]);
        assert_eq!(asked(std::slice::from_ref(&dated)), (None, Some(SUNDAY.to_owned())));
        let first = own(&[("etag", "W/\"f\""), ("last-modified", SUNDAY)]);
        let all = [&others[..], &[first, dated, own(&[("etag", "W/\"w\"")]), own(&[("etag", "\"s\"")])]].concat();
        assert_eq!(asked(&all), (Some("W/\"f\", \"s\"".to_owned()), None), "the date could be of either");
    }

    #[test]
    fn a_304_means_what_it_names_and_nothing_else() {
        let french = map(&[("accept-language", "fr")]);
        let of = |validate: &[Arc<Entry>], update: &[(&'static str, &str)]| {
            let meant = meant(validate, &french, &map(update));
            meant.iter().map(|entry| validate.iter().position(|it| Arc::ptr_eq(it, entry)).unwrap()).collect::<Vec<_>>()
        };
        let (fr, en) = (stored("fr", &[("etag", "\"a\"")]), stored("en", &[("etag", "\"a\"")]));
        assert_eq!(of(&[en.clone(), fr.clone()], &[("etag", "\"a\"")]), [1], "its own comes first");
        assert!(of(std::slice::from_ref(&en), &[("etag", "\"a\"")]).is_empty(), "the same tag need not be the same answer");
        assert!(of(std::slice::from_ref(&fr), &[("etag", "\"b\"")]).is_empty());
        assert!(of(&[fr.clone(), en.clone()], &[]).is_empty(), "which of the two?");
        assert_eq!(of(std::slice::from_ref(&fr), &[]), [0]);
        assert!(of(std::slice::from_ref(&en), &[]).is_empty(), "that is another's");
        let (weak, plain) = (stored("en", &[("etag", "W/\"a\"")]), stored("fr", &[("etag", "\"a\"")]));
        assert_eq!(of(&[weak.clone(), plain], &[("etag", "W/\"a\"")]), [1]);
        assert!(of(&[weak], &[("etag", "\"a\"")]).is_empty(), "a weak tag is no proof for another's request");
        assert_eq!(of(&[stored("fr", &[("etag", "W/\"a\"")])], &[("etag", "\"a\"")]), [0]);
        let dated = stored("fr", &[("last-modified", SUNDAY)]);
        assert_eq!(of(std::slice::from_ref(&dated), &[("last-modified", SUNDAY)]), [0]);
        assert!(of(std::slice::from_ref(&dated), &[("last-modified", MONDAY)]).is_empty());
    }
}
