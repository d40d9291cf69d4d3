use super::*;
use std::fs;
use std::io::Write;

/// An output that a test can stop, fill up and read.
#[derive(Default)]
struct Device {
    state: Mutex<DeviceState>,
    changed: Condvar,
}

#[derive(Default)]
struct DeviceState {
    content: Vec<u8>,
    writes: u64,
    blocked: bool,
    /// Bytes until the disk is full.
    room: Option<usize>,
}

struct Plug(Arc<Device>);

impl Write for Plug {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        while state.blocked {
            self.0.changed.wait(&mut state);
        }
        let taken = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.room = state.room.map(|room| room - taken);
        state.writes += 1;
        state.content.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Device {
    fn set(&self, change: impl FnOnce(&mut DeviceState)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
    fn text(&self) -> String {
        String::from_utf8(self.state.lock().content.clone()).unwrap()
    }
}

const LONG: Duration = Duration::from_secs(20);

fn writer(device: &Arc<Device>, queue_bytes: usize) -> Writer {
    let output = Output::Custom("a device", Box::new(Plug(Arc::clone(device))));
    Writer::new(WriterOptions { queue_bytes, report: false, ..WriterOptions::new("test", output) }).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::yield_now();
    }
}

#[test]
fn records_arrive_in_order_and_are_counted() {
    let device = Arc::default();
    let writer = writer(&device, 1 << 16);
    for number in 0..1000 {
        assert!(writer.push(format!("{number}\n").as_bytes()) || writer.flush(LONG));
    }
    assert!(writer.flush(LONG));
    let expected: String = (0..1000).map(|number| format!("{number}\n")).collect();
    assert_eq!(device.text(), expected);
    let stats = writer.stats();
    assert_eq!((stats.records, stats.dropped, stats.write_errors), (1000, 0, 0));
    assert_eq!(stats.bytes, expected.len() as u64);
}

#[test]
fn a_stuck_output_blocks_no_producer_and_loses_whole_records() {
    let device: Arc<Device> = Arc::default();
    device.set(|d| d.blocked = true);
    let writer = writer(&device, 2_000);
    let mut accepted = 0_u64;
    for number in 0..10_000 {
        accepted += u64::from(writer.push(format!("record {number:05}\n").as_bytes()));
    }
    assert!((1_000 / 13..10_000).contains(&accepted), "{accepted}");
    assert_eq!(writer.stats().dropped, 10_000 - accepted);
    assert!(!writer.flush(Duration::from_millis(20)), "nothing can be written yet");
    device.set(|d| d.blocked = false);
    assert!(writer.flush(LONG));
    assert_eq!(writer.stats().records, accepted);
    let text = device.text();
    assert!(text.ends_with('\n') && text.lines().all(|line| line.len() == "record 00000".len()), "{text}");
    assert_eq!(text.lines().count() as u64, accepted);
}

#[test]
fn a_record_longer_than_the_queue_is_dropped() {
    let device = Arc::default();
    let writer = writer(&device, 64);
    assert!(!writer.push(&[b'x'; 33]));
    assert!(writer.push(b"short\n") && writer.flush(LONG));
    assert_eq!(device.text(), "short\n");
    assert_eq!(writer.stats().dropped, 1);
}

#[test]
fn a_full_disk_never_leaves_half_a_line() {
    let device: Arc<Device> = Arc::default();
    let writer = writer(&device, 1 << 16);
    device.set(|d| {
        d.blocked = true;
        d.room = Some(8);
    });
    // The first record may be picked up alone; the others are one chunk behind it.
    assert!(writer.push(b"one\n"));
    eventually("the thread writes", || writer.shared.queue.lock().waiting.is_empty());
    assert!(writer.push(b"second\n") && writer.push(b"third\n") && writer.push(b"fourth\n"));
    device.set(|d| d.blocked = false);
    assert!(writer.flush(LONG));
    assert_eq!(device.text(), "one\nseco");
    let stats = writer.stats();
    assert_eq!((stats.records, stats.dropped), (1, 2));
    assert!(stats.write_errors >= 1);
    device.set(|d| d.room = None);
    assert!(writer.push(b"fifth\n") && writer.flush(LONG));
    assert_eq!(device.text(), "one\nsecond\nfifth\n");
    let stats = writer.stats();
    assert_eq!((stats.records, stats.dropped, stats.bytes), (3, 2, 17));
}

#[test]
fn the_rest_of_a_torn_record_is_written_without_another_one() {
    let device: Arc<Device> = Arc::default();
    device.set(|d| d.room = Some(2));
    let writer = writer(&device, 1 << 10);
    assert!(writer.push(b"alone\n") && writer.flush(LONG));
    assert_eq!(device.text(), "al");
    device.set(|d| d.room = None);
    eventually("the rest arrives", || device.text() == "alone\n");
    eventually("it is counted", || writer.stats().records == 1);
    assert_eq!(writer.stats().dropped, 0);
}

#[test]
fn many_producers_share_few_writes() {
    let device: Arc<Device> = Arc::default();
    let writer = writer(&device, 8 << 20);
    std::thread::scope(|scope| {
        for producer in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                for number in 0..10_000 {
                    assert!(writer.push(format!("{producer} {number}\n").as_bytes()));
                }
            });
        }
    });
    assert!(writer.flush(LONG));
    let text = device.text();
    for producer in 0..4 {
        let prefix = format!("{producer} ");
        let numbers: Vec<u32> = text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, (0..10_000).collect::<Vec<_>>(), "in order and complete");
    }
    let writes = device.state.lock().writes;
    assert!(writes < 4_000, "{writes} writes for 40000 records");
}

#[test]
fn reopen_follows_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let writer = Writer::new(WriterOptions::new("test", Output::File(path.clone()))).unwrap();
    assert!(writer.push(b"before\n") && writer.flush(LONG));
    fs::rename(&path, &rotated).unwrap();
    assert!(writer.push(b"between\n") && writer.flush(LONG));
    writer.reopen();
    assert!(writer.push(b"after\n") && writer.flush(LONG));
    assert_eq!(fs::read_to_string(&rotated).unwrap(), "before\nbetween\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
}

#[test]
fn a_failed_reopen_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let sub = folder.path().join("logs");
    fs::create_dir(&sub).unwrap();
    let options = WriterOptions { report: false, ..WriterOptions::new("test", Output::File(sub.join("a.log"))) };
    let writer = Writer::new(options).unwrap();
    let moved = folder.path().join("moved");
    fs::rename(&sub, &moved).unwrap();
    writer.reopen();
    assert!(writer.push(b"kept\n") && writer.flush(LONG));
    assert_eq!(fs::read_to_string(moved.join("a.log")).unwrap(), "kept\n");
    assert_eq!(writer.stats().write_errors, 1);
}

#[test]
fn an_output_that_cannot_be_opened_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Output::File(folder.path().join("missing/a.log"));
    assert!(Writer::new(WriterOptions::new("test", missing)).is_err());
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(Writer::new(WriterOptions::new("test", Output::File(fifo))).is_err(), "a FIFO without reader must not hang");
}

#[test]
fn a_dropped_writer_still_writes_what_was_queued() {
    let device: Arc<Device> = Arc::default();
    device.set(|d| d.blocked = true);
    let writer = writer(&device, 1 << 10);
    assert!(writer.push(b"last words\n"));
    drop(writer);
    device.set(|d| d.blocked = false);
    eventually("the queue is written", || device.text() == "last words\n");
}

#[test]
fn the_periodic_work_runs_only_while_armed() {
    let device: Arc<Device> = Arc::default();
    let mut left = 2;
    let periodic: Periodic = Box::new(move |out| {
        out.extend_from_slice(b"tick\n");
        left -= 1;
        left > 0
    });
    let output = Output::Custom("a device", Box::new(Plug(Arc::clone(&device))));
    let writer = Writer::new(WriterOptions { periodic: Some(periodic), ..WriterOptions::new("test", output) }).unwrap();
    assert!(writer.push(b"a\n") && writer.flush(LONG));
    assert_eq!(device.text(), "a\n");
    writer.arm();
    eventually("two ticks", || device.text() == "a\ntick\ntick\n");
    assert!(writer.push(b"b\n") && writer.flush(LONG));
    assert_eq!(device.text(), "a\ntick\ntick\nb\n");
    assert_eq!(writer.stats().records, 4);
}

#[test]
fn a_torn_record_outlives_a_reopening_of_the_same_output() {
    let device = Arc::new(Device::default());
    device.set(|state| state.room = Some(9));
    let writer = writer(&device, 1 << 12);
    writer.push(b"first record\n");
    eventually("it is torn", || writer.stats().bytes == 9);
    writer.reopen();
    assert!(writer.flush(LONG));
    device.set(|state| state.room = None);
    writer.push(b"second\n");
    eventually("the second", || device.text().ends_with("second\n"));
    assert!(writer.flush(LONG));
    let text = device.text();
    assert!(text.starts_with("first record\n"), "glued: {text:?}");
    let WriterStats { records, dropped, .. } = writer.stats();
    assert_eq!((records, dropped), (2, 0));
}

#[test]
fn a_torn_record_that_another_file_cannot_end_is_counted_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Has the other end open, and reads nothing.
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let options = WriterOptions { queue_bytes: 1 << 20, report: false, ..WriterOptions::new("test", Output::File(path.clone())) };
    let writer = Writer::new(options).unwrap();
    // More than the pipe holds.
    writer.push(&[&[b'x'; 200_000][..], b"\n"].concat());
    eventually("it is torn", || writer.stats().write_errors > 0);
    fs::rename(&path, directory.path().join("old")).unwrap();
    writer.reopen();
    writer.push(b"next\n");
    eventually("the new file", || fs::read_to_string(&path).is_ok_and(|text| text == "next\n"));
    assert!(writer.flush(LONG));
    let WriterStats { records, dropped, .. } = writer.stats();
    assert_eq!((records, dropped), (1, 1));
}

#[test]
fn a_file_that_ends_in_half_a_line_gets_a_line_break_first() {
    let directory = tempfile::tempdir().unwrap();
    for (before, after) in [("", "next\n"), ("whole\n", "whole\nnext\n"), ("half", "half\nnext\n")] {
        let path = directory.path().join("log");
        fs::write(&path, before).unwrap();
        let writer = Writer::new(WriterOptions::new("test", Output::File(path.clone()))).unwrap();
        writer.push(b"next\n");
        assert!(writer.flush(LONG));
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
    }
}
