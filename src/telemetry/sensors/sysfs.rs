//! Small text files of `/sys` and `/proc` under a root. Deliberately knows nothing of what they say.

use super::device_backoff::DeviceBackoff;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The longest file that is read: a file of `/sys` is at most a page, and those of `/proc` take a few kilobytes on
/// a large machine.
const MAX_FILE: usize = 8 << 10;

/// Enough for the first line of `/proc/stat`: ten counters of at most 20 digits.
const MAX_LINE: usize = 256;

/// The folder that holds `/sys` and `/proc`. Paths are given as on the live machine.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// When the present reading of all sensors began.
    reading_began: Cell<Instant>,
    backoff: RefCell<DeviceBackoff>,
}

impl Root {
    pub fn new(root: &Path) -> Self {
        Root { path: root.to_owned(), reading_began: Cell::new(Instant::now()), backoff: RefCell::default() }
    }

    /// Begins a reading of the sensors: devices whose backoff has passed may be read again.
    pub fn begin_reading(&self, now: Instant) {
        self.reading_began.set(now);
    }

    /// Whether this is the running machine.
    pub fn is_live(&self) -> bool {
        self.path == Path::new("/")
    }

    /// A file's text; `None` when it cannot be read, is too long or is not UTF-8.
    pub fn text(&self, path: &str) -> Option<String> {
        let mut bytes = [0; MAX_FILE];
        let length = self.fill(path, &mut bytes)?;
        let text = std::str::from_utf8(&bytes[..length]).ok()?;
        (length < MAX_FILE).then(|| text.to_owned())
    }

    /// The first line of a file that may be longer than [`MAX_FILE`].
    pub fn first_line(&self, path: &str) -> Option<String> {
        let mut bytes = [0; MAX_LINE];
        let length = self.fill(path, &mut bytes)?;
        let end = bytes[..length].iter().position(|byte| *byte == b'\n')?;
        std::str::from_utf8(&bytes[..end]).ok().map(str::to_owned)
    }

    /// Whether the file or folder exists, readable or not.
    pub fn has(&self, path: &str) -> bool {
        self.place(path).symlink_metadata().is_ok()
    }

    /// The trimmed text of a file, such as the name of a chip; `None` where it is empty.
    pub fn word(&self, path: &str) -> Option<String> {
        self.text(path).map(|text| text.trim().to_owned()).filter(|word| !word.is_empty())
    }

    /// The integer in a file.
    pub fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.trim().parse().ok()
    }

    /// The names in a folder that begin with `prefix`, in numerical order: 2 before 10.
    pub fn list(&self, folder: &str, prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.place(folder)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        names
    }

    /// Reads a file, unless its device is in backoff.
    fn fill(&self, path: &str, buffer: &mut [u8]) -> Option<usize> {
        let now = self.reading_began.get();
        if self.backoff.borrow().is_blocked(path, now) {
            return None;
        }
        let begun = Instant::now();
        let filled = fill(&self.place(path), buffer);
        self.backoff.borrow_mut().record(path, filled.as_ref().err(), begun.elapsed(), now);
        filled.ok()
    }

    fn place(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }
}

/// Reads until the file or the buffer ends. A file of `/sys` is generated at each read from its start, so one large
/// read cannot see parts of two values.
fn fill(place: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = File::open(place)?;
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The size in bytes from a line like `VmRSS:   1234 kB`.
pub(super) fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let number: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A board recorded under tests/data.
    pub fn board(name: &str) -> Root {
        Root::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name))
    }

    #[test]
    fn a_file_too_long_to_be_a_sensor_is_not_read() {
        let root = Root::new(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(root.text("/LICENSE-MIT").is_some());
        assert_eq!(root.text("/LICENSE-APACHE"), None);
    }

    #[test]
    fn the_first_line_of_a_long_file_is_read_alone() {
        let root = Root::new(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert_eq!(root.first_line("/CHANGELOG.md").as_deref(), Some("# Changelog"));
        assert_eq!(root.text("/CHANGELOG.md"), None, "it is too long to be read whole");
        assert_eq!(board("none").first_line("/proc/stat"), None);
        assert!(board("none").has("/proc/version") && !board("none").has("/proc/stat"));
    }

    #[test]
    fn a_folder_or_a_missing_file_has_no_text() {
        assert_eq!(board("pi5").text("/sys"), None);
        assert_eq!(board("pi5").text("/sys/nothing"), None);
    }

    #[test]
    fn names_are_listed_in_the_order_of_their_numbers() {
        let names = board("x86-rapl").list("/sys/class/hwmon", "hwmon");
        assert_eq!(names, ["hwmon0", "hwmon2", "hwmon10"]);
    }

    #[test]
    fn only_a_line_of_kilobytes_with_just_this_key_counts() {
        let text = "VmRSSExtra:\t5 kB\nVmRSS:\t    12 kB\nThreads:\t3\nHuge: 99999999999999999 kB\n";
        assert_eq!(kilobytes(text, "VmRSS"), Some(12 << 10));
        assert_eq!(kilobytes(text, "Threads"), None);
        assert_eq!(kilobytes(text, "Huge"), None);
        assert_eq!(kilobytes(text, "Vm"), None);
    }
}
