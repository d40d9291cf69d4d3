//! What readers get, and that the store's bound holds whatever becomes of a fetch.

use super::super::entry::tests::{received, terms};
use super::super::policy::tests::policy;
use super::super::vary::Selecting;
use super::*;

fn fill(max_object: u64) -> Arc<Fill> {
    let store = Arc::new(MemoryStore::new(1 << 20));
    let key = Key { bytes: (*b"k").into(), hash: 1, url_hash: 1, base_hash: 1, url: "http://h/".into(), route: "r".into() };
    Fill::new(Arc::new(key), Arc::new(Policy { max_object, ..policy() }), store, None)
}

fn begin(fill: &Fill, length: Option<&str>) -> bool {
    let mut head = ResponseHeader::build(200, None).unwrap();
    if let Some(length) = length {
        head.insert_header("content-length", length).unwrap();
    }
    let stored = Stored::new(terms(60), received(), Selecting::default());
    fill.begin(head, Vec::new(), Ok(stored), false).is_ok()
}

async fn all(mut reader: Reader) -> Result<Vec<u8>, Broken> {
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_fetch_from_before_a_change_is_joined_by_nobody() {
    use super::super::purge::Purge;
    for what in [Purge::invalidation("http://h/"), Purge::tag("any", false)] {
        let fill = fill(1000);
        assert!(begin(&fill, None));
        fill.push(Bytes::from_static(b"ab")).await.unwrap();
        fill.store.purge(&Purge::invalidation("http://h/other"));
        assert!(fill.is_open(), "another URL");
        fill.store.purge(&what);
        assert!(!fill.is_open(), "{what:?}");
    }
}

#[tokio::test]
async fn everyone_gets_every_byte_whenever_they_come() {
    let fill = fill(1000);
    let early = tokio::spawn(all(fill.read().unwrap()));
    assert!(begin(&fill, None));
    fill.push(Bytes::from_static(b"ab")).await.unwrap();
    let late = tokio::spawn(all(fill.read().unwrap()));
    fill.push(Bytes::from_static(b"cd")).await.unwrap();
    let entry = fill.finish(None).unwrap().unwrap();
    assert_eq!(entry.body.length, 4);
    assert_eq!((early.await.unwrap().unwrap(), late.await.unwrap().unwrap()), (b"abcd".to_vec(), b"abcd".to_vec()));
    assert_eq!(fill.store.stats().filling, 0);
    assert_eq!(fill.store.variants(&fill.key).len(), 1);
}

#[tokio::test]
async fn what_is_not_what_it_said_is_not_stored() {
    for (length, finish) in [(Some("5"), true), (None, false)] {
        let fill = fill(1000);
        begin(&fill, length);
        let reader = fill.read().unwrap();
        fill.push(Bytes::from_static(b"ab")).await.unwrap();
        if finish {
            assert!(fill.finish(None).is_err());
        }
        fill.close();
        assert_eq!(all(reader).await, Err(Broken));
        assert_eq!((fill.store.variants(&fill.key).len(), fill.store.stats().filling), (0, 0));
    }
}

#[tokio::test]
async fn what_is_too_large_passes_through_a_window() {
    let fill = fill(100_000);
    assert!(begin(&fill, None));
    let reader = tokio::spawn(all(fill.read().unwrap()));
    for _ in 0..200 {
        fill.push(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
        let state = fill.state.lock();
        assert!(state.buffered <= WINDOW + 100_000, "{}", state.buffered);
    }
    assert!(!fill.is_open() && fill.read().is_none());
    assert_eq!(fill.finish(None).unwrap().map(|_| ()), None);
    assert_eq!(reader.await.unwrap().unwrap().len(), 2_000_000);
    assert_eq!((fill.store.variants(&fill.key).len(), fill.store.stats().filling), (0, 0));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends() {
    let fill = fill(10);
    begin(&fill, None);
    let reader = fill.read().unwrap();
    fill.push(Bytes::from_static(b"0123456789ab")).await.unwrap();
    drop(reader);
    assert_eq!(fill.push(Bytes::from_static(b"x")).await, Err(Broken));
}

#[tokio::test]
async fn a_slow_reader_goes_on_from_what_is_stored() {
    let fill = fill(10_000);
    begin(&fill, Some("6"));
    assert_eq!(fill.store.stats().filling, 6, "set aside for all of it");
    let mut slow = fill.read().unwrap();
    fill.push(Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(slow.next().await.unwrap().unwrap(), "ab");
    fill.push(Bytes::from_static(b"cdef")).await.unwrap();
    fill.finish(None).unwrap();
    assert!(fill.state.lock().chunks.is_empty());
    fill.store.purge(&super::super::purge::Purge::new(super::super::purge::What::Everything, false));
    let leaving = |fill: &Fill| fill.store.stats().leaving;
    assert!(fill.store.stats().filling == 0 && leaving(&fill) > 6, "in the bound while it is being read");
    assert_eq!(all(slow).await.unwrap(), b"cdef");
    let store = Arc::clone(&fill.store);
    drop(fill);
    assert_eq!(store.stats().leaving, 0);
}

#[tokio::test]
async fn what_is_kept_no_more_is_in_the_bound_until_it_is_read() {
    let fill = fill(10);
    begin(&fill, None);
    let mut reader = fill.read().unwrap();
    fill.push(Bytes::from_static(b"0123456789")).await.unwrap();
    fill.push(Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(fill.store.stats().filling, 10);
    assert_eq!(reader.next().await.unwrap().unwrap(), "0123456789");
    assert_eq!(fill.store.stats().filling, 0);
    assert!(fill.finish(None).unwrap().is_none());
    assert_eq!(all(reader).await.unwrap(), b"ab");
}
