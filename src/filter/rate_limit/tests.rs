use super::*;
use crate::filter::testing::{build, problem, session};

async fn ask(filter: &RateLimit, raw: &str) -> (Result<(), Rejection>, ResponseHeader) {
    let (mut session, mut ctx) = session(raw, "/").await;
    let decided = match filter.on_request(&mut session, &mut ctx) {
        Step::Ready(decided) => decided.map(|_| ()),
        Step::Wait(_) => panic!("a local limit waits"),
    };
    let mut head = ResponseHeader::build(200, None).unwrap();
    filter.on_response(&session, &mut head, &mut ctx);
    (decided, head)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n\r\n";
const OPTIONS: &str = "OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n";

fn header(head: &ResponseHeader, name: &str) -> String {
    let values: Vec<_> = head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    values.join(" + ")
}

#[tokio::test]
async fn clients_are_told_on_success_and_on_refusal() {
    let table = "{ by = 'address', limits = [{ rate = '2/1h' }, { quota = '1000/1d', name = 'daily' }], headers = 'both' }";
    let filter = build::<RateLimitConfig>(table).unwrap();
    let (decided, head) = ask(&filter, GET).await;
    assert!(decided.is_ok());
    assert_eq!(header(&head, "ratelimit-policy"), "\"2/1h\";q=2;w=3600, \"daily\";q=1000;w=86400");
    let told = header(&head, "ratelimit");
    assert!(told.starts_with("\"2/1h\";r=1;t=1800, \"daily\";r=999;t="), "{told}");
    let legacy = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(|name| header(&head, name));
    assert_eq!(legacy, ["2", "1", "1800"], "of the limit that is nearest to its end");
    assert!(ask(&filter, GET).await.0.is_ok());
    let (decided, head) = ask(&filter, GET).await;
    let rejection = decided.unwrap_err();
    assert_eq!((rejection.code.code, rejection.limit.as_ref().map(|name| name.as_str())), ("rate_limited", Some("2/1h")));
    let wait = rejection.retry_after.unwrap();
    assert!(wait <= Duration::from_secs(1800) && wait > Duration::from_secs(1790), "{wait:?}");
    assert!(header(&head, "ratelimit").starts_with("\"2/1h\";r=0;t=1800, \"daily\";r=998;t="));
}

#[tokio::test]
async fn methods_have_their_own_costs_and_free_ones_are_not_counted() {
    let filter =
        build::<RateLimitConfig>("{ by = 'route', limits = [{ rate = '5/1h' }], cost = { POST = 4, OPTIONS = 0 } }").unwrap();
    assert!(ask(&filter, POST).await.0.is_ok());
    assert!(ask(&filter, POST).await.0.is_err(), "4 + 4 is more than 5");
    assert!(ask(&filter, GET).await.0.is_ok(), "the refused one consumed nothing");
    assert!(ask(&filter, GET).await.0.is_err());
    let (decided, head) = ask(&filter, OPTIONS).await;
    assert!(decided.is_ok() && header(&head, "ratelimit").is_empty());
}

#[tokio::test]
async fn a_burst_of_nothing_is_one_at_a_time() {
    let filter = build::<RateLimitConfig>("{ by = 'address', limits = [{ rate = '1/365d', burst = 0 }] }").unwrap();
    assert!(ask(&filter, GET).await.0.is_ok());
    let wait = ask(&filter, GET).await.0.unwrap_err().retry_after.unwrap();
    assert!(wait > Duration::from_secs(364 * 86_400) && wait <= Duration::from_secs(365 * 86_400), "{wait:?}");
    let fast = build::<RateLimitConfig>("{ by = 'address', limits = [{ rate = '1_000_000_000/1ms' }] }").unwrap();
    assert!(ask(&fast, GET).await.0.is_ok());
}

#[tokio::test]
async fn a_shadow_refuses_nothing_and_says_nothing() {
    let filter = build::<RateLimitConfig>("{ by = 'address', limits = [{ rate = '1/1h' }], shadow = true }").unwrap();
    for _ in 0..5 {
        let (decided, head) = ask(&filter, GET).await;
        assert!(decided.is_ok() && head.headers.is_empty());
    }
    let metrics = &filter.sets[0].metrics[0];
    assert_eq!((metrics.allowed.get(), metrics.shadowed.get(), metrics.refused.get()), (1, 4, 0));
}

#[tokio::test]
async fn whoever_leaves_the_header_out_shares_one_bucket() {
    let filter = build::<RateLimitConfig>("{ by = 'header:x-key', limits = [{ rate = '1/1h' }] }").unwrap();
    assert!(ask(&filter, GET).await.0.is_ok());
    assert!(ask(&filter, GET).await.0.is_err());
    let with = "GET / HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\n\r\n";
    assert!(ask(&filter, with).await.0.is_ok());
    assert!(ask(&filter, with).await.0.is_err());
}

#[test]
fn a_fixed_window_is_a_quota_and_may_be_called_so() {
    let filter = |table: &str| build::<RateLimitConfig>(table).unwrap().sets[0].limits[0].clone();
    let quota = "{ by = 'route', limits = [{ quota = '10/1h' }] }";
    assert_eq!(filter("{ by = 'route', limits = [{ quota = '10/1h', algorithm = 'fixed_window' }] }"), filter(quota));
    let help = |rate: &str| {
        let table = format!("{{ by = 'route', limits = [{{ rate = '{rate}', algorithm = 'fixed_window' }}] }}");
        problem::<RateLimitConfig>(&table).help.unwrap()
    };
    assert_eq!(help("10/1h"), "write quota = \"10/1h\"");
    assert_eq!(help("10/90s"), "write a quota over 1m, 1h, 1d or 1mo, such as quota = \"1000/1d\"");
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    for (table, message) in [
        ("{ by = 'address', limits = [] }", "there is no limit"),
        ("{ by = 'address', limits = [{}] }", "a limit needs a `rate` or a `quota`"),
        ("{ by = 'address', limits = [{ rate = '1/1s', quota = '1/1d' }] }", "a limit has a rate or a quota, not both"),
        ("{ by = 'address', limits = [{ quota = '1/1d', burst = 2 }] }", "a quota has no burst"),
        (
            "{ by = 'address', limits = [{ rate = '1/1s', algorithm = 'fixed_window' }] }",
            "a fixed window is of the calendar, and that is a quota",
        ),
        (
            "{ by = 'address', limits = [{ quota = '1/1d', algorithm = 'sliding_window' }] }",
            "a quota is counted by the calendar, in a fixed window",
        ),
        ("{ by = 'address', limits = [{ rate = '1/1s' }, { rate = '1/1s' }] }", "the limit `1/1s` stands twice"),
        ("{ by = 'address', limits = [{ rate = '1/1s', name = 'a b' }] }", "`a b` cannot be the name of a limit"),
        (
            "{ by = 'address', limits = [{ rate = '70000/1s', algorithm = 'sliding_window' }] }",
            "the largest number of a sliding window is 65535",
        ),
        (
            "{ by = 'address', limits = [{ rate = '5/1s' }], cost = { POST = 6 } }",
            "a cost of 6 is never admitted by the limit `5/1s`",
        ),
        ("{ by = 'address', limits = [{ rate = '5/1s' }], cost = { BREW = 1 } }", "`BREW` is no method with a cost of its own"),
        ("{ by = 'address', limits = [{ rate = '5/1s' }], store = 'redis' }", "there is no Redis to count in"),
        ("{ by = 'address', limits = 'tier' }", "no tier has limits, so nothing would be admitted"),
        ("{ by = 'address', limits = [{ rate = '5/1s' }], ipv6_prefix = 8 }", "an IPv6 prefix is from 32 to 128 bits here"),
    ] {
        assert_eq!(problem::<RateLimitConfig>(table).message, message);
    }
}
