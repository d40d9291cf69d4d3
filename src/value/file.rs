//! Files that the configuration names: read up to a bound, because a path that is wrong must not fill the memory, and noted, so
//! that whoever watches the configuration watches them too.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

thread_local! {
    static NOTED: RefCell<Option<Vec<PathBuf>>> = const { RefCell::new(None) };
}

/// Runs `run` and returns what it read with [`read_file`] on this thread, in vain as well. Keys, certificates and secrets are read
/// deep inside what builds the parts that need them: none of these has to hand a list along.
pub fn noting_files<T>(run: impl FnOnce() -> T) -> (T, Vec<PathBuf>) {
    let before = NOTED.replace(Some(Vec::new()));
    let output = run();
    (output, NOTED.replace(before).unwrap_or_default())
}

/// Reads a whole file of at most `most` bytes.
///
/// # Errors
/// Why it could not be read, in a few words without its path.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    NOTED.with_borrow_mut(|noted| noted.as_mut().map(|noted| noted.push(path.to_owned())));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if u64::try_from(read).is_ok_and(|read| read <= most) {
        return Ok(bytes);
    }
    Err(match most >> 20 {
        0 => format!("it is larger than {} KiB", most >> 10),
        mebibytes => format!("it is larger than {mebibytes} MiB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![b'x'; 2048]).unwrap();
        assert_eq!(read_file(&path, 2048).unwrap().len(), 2048);
        assert_eq!(read_file(&path, 2047).unwrap_err(), "it is larger than 1 KiB");
        assert_eq!(read_file(Path::new("/dev/zero"), 3 << 20).unwrap_err(), "it is larger than 3 MiB");
        assert!(read_file(&directory.path().join("none"), 1).unwrap_err().contains("No such file"));
    }

    #[test]
    fn what_is_read_is_noted_while_somebody_asks() {
        let read = |name: &str| drop(read_file(Path::new(name), 1));
        read("/before");
        let ((), noted) = noting_files(|| {
            read("/none");
            let ((), inner) = noting_files(|| read("/inner"));
            assert_eq!(inner, [Path::new("/inner")]);
            read("/more");
        });
        read("/after");
        assert_eq!(noted, [Path::new("/none"), Path::new("/more")]);
    }
}
