use super::*;
use crate::clock::ManualClock;
use parking_lot::Mutex;
use std::io::Write;
use std::time::Instant;

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

const LONG: Duration = Duration::from_secs(20);

fn logger(prefix: Prefix, clock: &Arc<ManualClock>) -> (LoggerHandle, Page) {
    let page = Page::default();
    let output = Output::Custom("a page", Box::new(page.clone()));
    let clock: SharedClock = clock.clone();
    let options = LoggerOptions { output, prefix: Some(prefix), clock, ..LoggerOptions::default() };
    (LoggerHandle::new(options).unwrap(), page)
}

fn write(logger: &LoggerHandle, level: Level, target: &str, message: &str) {
    let mut record = Record::builder();
    logger.log(&record.level(level).target(target).line(Some(1)).args(format_args!("{message}")).build());
}

#[test]
fn a_line_has_time_level_target_and_message() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_millis(1_767_323_045_678));
    let (logger, page) = logger(Prefix::Time, &clock);
    write(&logger, Level::Info, "gatewright::reload", "loaded");
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "2026-01-02T03:04:05.678Z INFO gatewright::reload: loaded\n");
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    logger.set_level(LevelFilter::Trace);
    for level in Level::iter() {
        write(&logger, level, "a", "b");
    }
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "<3>ERROR a: b\n<4>WARN a: b\n<6>INFO a: b\n<7>DEBUG a: b\n<7>TRACE a: b\n");
}

#[test]
fn the_journal_is_recognised_by_device_and_inode() {
    assert_eq!(prefix_for("8:1234", 8, 1234), Prefix::Priority);
    for other in ["8:1235", "9:1234", "", "8", "8:", ":", "8:1234:5"] {
        assert_eq!(prefix_for(other, 8, 1234), Prefix::Time, "{other:?}");
    }
}

#[test]
fn one_record_is_one_line_whatever_it_says() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    write(&logger, Level::Warn, "a\nb", "x\r\ny\u{1b}[31m\u{85}\u{2028}\u{202e}\tz é …");
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "<4>WARN a\\nb: x\\r\\ny\\u{1b}[31m\\u{85}\\u{2028}\\u{202e}\\tz é …\n");
}

#[test]
fn a_long_message_is_cut_and_says_so() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    for piece in ["x", "é", "\n"] {
        write(&logger, Level::Warn, piece, &piece.repeat(2 * MESSAGE_MAX));
    }
    assert!(logger.flush(LONG));
    let text = page.text();
    assert_eq!(text.lines().count(), 3);
    for line in text.lines() {
        assert!(line.ends_with("…(cut)") && line.len() < MESSAGE_MAX + 32, "{} bytes", line.len());
    }
}

#[test]
fn the_level_changes_while_it_runs() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    write(&logger, Level::Debug, "a", "before");
    logger.set_level(LevelFilter::Debug);
    write(&logger, Level::Debug, "a", "between");
    logger.set_level(LevelFilter::Error);
    write(&logger, Level::Warn, "a", "after");
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "<7>DEBUG a: between\n");
}

#[test]
fn libraries_are_quieter_than_the_gateway() {
    let says = |level: LevelFilter, target: &str| {
        let least = threshold(level as usize, target);
        Level::iter().filter(|l| *l as usize <= least).max()
    };
    assert_eq!(says(LevelFilter::Info, "gatewright::proxy"), Some(Level::Info));
    assert_eq!(says(LevelFilter::Info, "pingora_core::server"), Some(Level::Warn));
    assert_eq!(says(LevelFilter::Debug, "pingora_core::server"), Some(Level::Info));
    assert_eq!(says(LevelFilter::Trace, "pingora_core::server"), Some(Level::Info));
    assert_eq!(says(LevelFilter::Trace, "notify"), Some(Level::Trace));
    assert_eq!(says(LevelFilter::Trace, "gatewright::proxy"), Some(Level::Trace));
    assert_eq!(says(LevelFilter::Error, "pingora_core::server"), Some(Level::Error));
    assert_eq!(says(LevelFilter::Off, "gatewright"), None);
}

#[test]
fn a_failed_request_is_not_an_error_of_the_gateway() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    write(&logger, Level::Error, "pingora_proxy", "Fail to proxy");
    write(&logger, Level::Error, "pingora_core::server", "cannot bind");
    logger.set_level(LevelFilter::Error);
    write(&logger, Level::Error, "pingora_proxy", "Fail to proxy");
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "<4>WARN pingora_proxy: Fail to proxy\n<3>ERROR pingora_core::server: cannot bind\n");
}

#[test]
fn a_flood_is_cut_and_its_size_is_told() {
    let clock = ManualClock::new();
    let (logger, page) = logger(Prefix::Priority, &clock);
    for number in 0..25 {
        write(&logger, Level::Error, "pingora_proxy", &format!("failed {number}"));
    }
    clock.advance(Duration::from_secs(1));
    write(&logger, Level::Error, "pingora_proxy", "failed again");
    assert!(logger.flush(LONG));
    let text = page.text();
    let (summaries, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.ends_with("suppressed"));
    assert_eq!(lines.len(), 11, "{text}");
    assert_eq!(lines[10], "<4>WARN pingora_proxy: failed again");
    // On a machine that stalls, the writer's own clock may have the count told in two parts.
    let count =
        |line: &&str| line.strip_prefix("<4>WARN pingora_proxy: ").unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(summaries.iter().map(count).sum::<u64>(), 15, "{text}");
    assert_eq!(logger.suppressed(), 15);
}

#[test]
fn the_size_of_a_flood_is_told_even_if_silence_follows() {
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    for _ in 0..11 {
        write(&logger, Level::Warn, "a", "b");
    }
    let deadline = Instant::now() + LONG;
    while !page.text().ends_with("<4>WARN a: 1 similar messages suppressed\n") {
        assert!(Instant::now() < deadline, "{}", page.text());
        std::thread::yield_now();
    }
}

#[test]
fn a_message_may_log_while_it_is_formatted() {
    struct Chatty(LoggerHandle);
    impl fmt::Display for Chatty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write(&self.0, Level::Warn, "inner", "first");
            f.write_str("second")
        }
    }
    let (logger, page) = logger(Prefix::Priority, &ManualClock::new());
    let chatty = Chatty(logger.clone());
    logger.log(&Record::builder().level(Level::Warn).target("outer").args(format_args!("{chatty}")).build());
    assert!(logger.flush(LONG));
    assert_eq!(page.text(), "<4>WARN inner: first\n<4>WARN outer: second\n");
}

#[test]
fn there_is_one_logger_in_a_process() {
    let page = Page::default();
    let options = || LoggerOptions { output: Output::Custom("a page", Box::new(page.clone())), ..LoggerOptions::default() };
    let handle = init(options()).unwrap();
    assert!(matches!(init(options()), Err(InitError::AlreadySet)));
    log::error!(target: "only_here", "through the macro");
    assert!(handle.flush(LONG));
    assert!(page.text().contains("ERROR only_here: through the macro\n"));
}
