//! What the kernel knows about this process, for the `process_*` metrics that every Prometheus client library has.
//!
//! Read from `/proc/self` (proc(5)) at each scrape. A value that cannot be read, as under a strict `ProtectProc=`, is
//! left out rather than reported as zero.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

/// Clock ticks per second in the files of `/proc`, on every Linux port that Rust supports; the real value is in the
/// auxiliary vector.
const USUAL_TICKS: u64 = 100;
/// `AT_CLKTCK` of getauxval(3).
const AUX_CLOCK_TICKS: u64 = 17;

/// One reading. Sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessSample {
    /// User and system time of all threads.
    pub cpu: Option<Duration>,
    pub resident_memory: Option<u64>,
    pub virtual_memory: Option<u64>,
    pub open_fds: Option<u64>,
    /// The soft limit.
    pub max_fds: Option<u64>,
    pub threads: Option<u64>,
    /// Since the Unix epoch.
    pub start_time: Option<Duration>,
}

impl ProcessSample {
    /// Takes some tens of microseconds, and longer on kernels before 6.2 if very many files are open.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |field| status_field(&status, field).and_then(|kib| kib.checked_mul(1024));
        ProcessSample {
            cpu: cpu_time(),
            resident_memory: kib("VmRSS:"),
            virtual_memory: kib("VmSize:"),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            threads: status_field(&status, "Threads:"),
            start_time: start_time(),
        }
    }
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn cpu_time() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        let (seconds, micros) = (u64::try_from(time.tv_sec()).ok()?, u64::try_from(time.tv_usec()).ok()?);
        Duration::from_secs(seconds).checked_add(Duration::from_micros(micros))
    });
    user?.checked_add(system?)
}

/// Since Linux 6.2 the size of the directory is the number of files; before, it is 0 and the entries are counted.
fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // Reading the directory opens one file more.
        0 => fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
        known => Some(known),
    }
}

/// Never changes, and costs two files to find out.
fn start_time() -> Option<Duration> {
    static START: OnceLock<Option<Duration>> = OnceLock::new();
    *START.get_or_init(|| {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let ticks = fs::read("/proc/self/auxv").ok().and_then(|auxv| clock_ticks(&auxv)).unwrap_or(USUAL_TICKS);
        start_of(&stat, &boot, ticks)
    })
}

fn start_of(stat: &str, boot: &str, ticks_per_second: u64) -> Option<Duration> {
    // The second field is the name in parentheses, which may hold anything: count from behind it. The start time is
    // field 22, in ticks since boot.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let booted = status_field(boot, "btime ")?;
    let millis = ticks.checked_mul(1000)?.checked_div(ticks_per_second)?;
    Duration::from_secs(booted).checked_add(Duration::from_millis(millis))
}

/// Finds `AT_CLKTCK` in pairs of machine words.
fn clock_ticks(auxv: &[u8]) -> Option<u64> {
    let words = auxv.chunks_exact(size_of::<usize>()).filter_map(|word| Some(usize::from_ne_bytes(word.try_into().ok()?) as u64));
    let mut words = words;
    while let (Some(kind), Some(value)) = (words.next(), words.next()) {
        if kind == AUX_CLOCK_TICKS {
            return Some(value).filter(|ticks| *ticks > 0);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn this_process_reads_as_itself() {
        let first = ProcessSample::read();
        let held: Vec<fs::File> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let second = ProcessSample::read();
        assert!(second.open_fds.unwrap() >= 50 && held.len() == 50);
        assert!(second.cpu.unwrap() >= first.cpu.unwrap());
        assert!(second.resident_memory.unwrap() > 1 << 20 && second.virtual_memory > second.resident_memory);
        assert!(second.max_fds.unwrap() >= 50 && second.threads.unwrap() >= 1);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let age = now.abs_diff(second.start_time.unwrap());
        assert!(age < Duration::from_secs(3600), "this test started {age:?} ago");
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_no_field() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b (c) {}", fields.join(" "));
        let start = start_of(&stat, "cpu 1 2\nbtime 1000\n", 100).unwrap();
        assert_eq!(start, Duration::from_millis(1_000_220));
        assert_eq!(start_of("7 (a) S 1", "btime 1000\n", 100), None);
        assert_eq!(start_of(&stat, "btime 1000\n", 0), None);
    }

    #[test]
    fn the_clock_ticks_are_found_among_others() {
        let words: [usize; 6] = [6, 4096, 17, 250, 0, 0];
        let auxv: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(clock_ticks(&auxv), Some(250));
        assert_eq!(clock_ticks(&auxv[..size_of::<usize>() * 3]), None);
    }
}
