use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::consumer::{cheap_password, password_with_passes};
use crate::filter::testing::{build, build_for, consumers, decide, problem, session};

fn filter(clock: &Arc<ManualClock>, table: &str) -> Basic {
    let hash = cheap_password("pass:word");
    let all = consumers(&format!(
        "[consumers.acme]\ncredentials = [{{ basic = {{ username = 'u', password = {{ argon2 = '{hash}' }}, expires = 1970-01-01T00:16:40Z }} }}]\n\
         [consumers.off]\nenabled = false\ncredentials = [{{ basic = {{ username = 'off', password = {{ argon2 = '{hash}' }} }} }}]"
    ));
    build_for::<BasicConfig>(table, &all, &(Arc::clone(clock) as SharedClock)).unwrap()
}

async fn ask(filter: &Basic, lines: &str) -> Result<(), &'static str> {
    let (mut session, mut ctx) = session(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), "/").await;
    let done = decide(filter, &mut session, &mut ctx).await;
    assert_eq!(done.is_ok(), ctx.identity.is_some());
    done
}

fn line(pair: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(pair))
}

#[tokio::test]
async fn only_the_right_pair_is_a_consumer() {
    let clock = ManualClock::new();
    let filter = filter(&clock, "{}");
    assert_eq!(ask(&filter, &line("u:pass:word")).await, Ok(()));
    assert_eq!(ask(&filter, &line("u:pass:word").replace("Basic ", "bAsIc   ")).await, Ok(()));
    assert_eq!(ask(&filter, "").await, Err("credential_missing"));
    assert_eq!(ask(&filter, "Authorization: Bearer x\r\n").await, Err("credential_missing"));
    let twice = line("u:pass:word") + &line("u:pass:word");
    assert_eq!(ask(&filter, &twice).await, Err("credential_duplicate"));
    let long = format!("u:{}", "p".repeat(PAIR_MAX));
    for wrong in ["u:pass", "u:", "u", "", ":pass:word", "U:pass:word", "u:pass:word ", "off:pass:word", "no:pass:word", &long] {
        assert_eq!(ask(&filter, &line(wrong)).await, Err("credential_invalid"), "{wrong}");
    }
    for broken in ["Basic", "Basic !", "Basic dTpw=", "Basic dTpwYXNzOndvcmQ= x", "Basic /zpw"] {
        assert_eq!(ask(&filter, &format!("Authorization: {broken}\r\n")).await, Err("credential_invalid"), "{broken}");
    }
}

/// One user with a dear password must not be told from names that nobody has, nor one with a cheap one.
#[test]
fn there_is_a_decoy_for_each_cost_of_the_passwords() {
    let user = |name: &str, passes| {
        let hash = password_with_passes("p", passes);
        format!(
            "[consumers.{name}]\ncredentials = [{{ basic = {{ username = '{name}', password = {{ argon2 = '{hash}' }} }} }}]\n"
        )
    };
    let all = consumers(&[user("a", 1), user("b", 3), user("c", 1), user("d", 2)].concat());
    let filter = build_for::<BasicConfig>("{}", &all, &(ManualClock::new() as SharedClock)).unwrap();
    let costs: Vec<_> = filter.decoys.iter().map(PasswordHash::cost).collect();
    assert_eq!(costs, [(8, 1, 1), (8, 2, 1), (8, 3, 1)]);
}

#[tokio::test]
async fn a_pair_that_was_right_is_not_checked_again_but_may_still_expire() {
    let clock = ManualClock::new();
    let filter = filter(&clock, "{ cache = '60s' }");
    let waits = async |pair: &str| {
        let (mut session, mut ctx) = session(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line(pair)), "/").await;
        match filter.on_request(&mut session, &mut ctx) {
            Step::Ready(done) => (false, done.map(|_| ()).map_err(|rejection| rejection.code.code)),
            Step::Wait(io) => (true, io.await.map(|_| ()).map_err(|rejection| rejection.code.code)),
        }
    };
    assert_eq!(waits("u:pass:word").await, (true, Ok(())));
    assert_eq!(waits("u:pass:word").await, (false, Ok(())));
    assert_eq!(waits("u:wrong").await, (true, Err("credential_invalid")));
    assert_eq!(waits("u:wrong").await, (true, Err("credential_invalid")), "what was wrong is not remembered");
    clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(waits("u:pass:word").await, (true, Ok(())), "the minute is over");
    clock.advance(std::time::Duration::from_secs(941));
    assert_eq!(waits("u:pass:word").await, (true, Err("credential_invalid")), "the credential has expired");
}

#[tokio::test]
async fn a_cached_pair_that_expires_is_refused() {
    let clock = ManualClock::new();
    let filter = filter(&clock, "{ cache = '1h' }");
    assert_eq!(ask(&filter, &line("u:pass:word")).await, Ok(()));
    clock.advance(std::time::Duration::from_secs(1000));
    assert_eq!(ask(&filter, &line("u:pass:word")).await, Err("credential_invalid"));
}

#[tokio::test]
async fn one_too_many_is_asked_to_come_again() {
    let mut filter = filter(&ManualClock::new(), "{}");
    filter.checks = Arc::new(Checks::with(0, 1).unwrap());
    let (mut session, mut ctx) = session(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line("u:pass:word")), "/").await;
    let Step::Wait(io) = filter.on_request(&mut session, &mut ctx) else { panic!("it did not wait") };
    let rejection = io.await.err().unwrap();
    assert_eq!((rejection.code.code, rejection.code.status), ("authentication_busy", 503));
    assert_eq!(rejection.retry_after, Some(RETRY_AFTER));
    assert!(ctx.identity.is_none());
}

#[tokio::test]
async fn the_password_goes_upstream_only_where_that_is_written() {
    for (table, forwarded) in [("{}", false), ("{ forward = true }", true)] {
        let filter = filter(&ManualClock::new(), table);
        let (session, mut ctx) = session(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line("u:p")), "/").await;
        let mut head = session.req_header().clone();
        filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
        assert_eq!(head.headers.contains_key("authorization"), forwarded);
    }
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    assert_eq!(problem::<BasicConfig>("{ realm = 'a\"b' }").message, "`a\"b` cannot be a realm");
    assert_eq!(problem::<BasicConfig>("{ cache = '2h' }").message, "`2h` is too long");
    // Without any consumer there is still something to check, so that nobody can tell.
    assert!(build::<BasicConfig>("{}").is_ok());
}
