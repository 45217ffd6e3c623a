//! What was issued, to whom, on what proof: a line of JSON each, on disk before the certificate leaves the house.
//!
//! The file in use is `issued.jsonl`. When it is full it becomes `issued.1.jsonl`, that one `issued.2.jsonl`, and the
//! oldest goes: so the journal has a bound, 256 MiB by default or about a million certificates.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::store::Directory;

/// The file in use.
const CURRENT: &str = "issued.jsonl";

/// How large a file grows.
const FULL: u64 = 64 * 1024 * 1024;

/// How many full files are kept.
const KEPT: u32 = 3;

/// The longest line that is read; ours have less than 1 KiB.
const LONGEST: u64 = 16 * 1024;

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339.
    pub time: String,
    /// The serial number in hex.
    pub serial: String,
    /// The SPIFFE ID.
    pub id: String,
    /// When the certificate ends, RFC 3339.
    pub not_after: String,
    /// `token`, `renewal`, or `authority` for the one that the authority serves with.
    pub proof: String,
    /// Which one: the token's id, or the serial number of the certificate that was shown.
    pub evidence: String,
}

/// Writes entries. One for each state; the lock of the one who serves sees to that.
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    full: u64,
    /// The open file and how much of it is whole lines. Held while a line is written and forced to disk.
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    length: u64,
}

impl Journal {
    /// Opens the journal for writing.
    pub fn open(directory: Directory) -> Result<Self, Error> {
        Self::with_size(directory, FULL)
    }

    fn with_size(directory: Directory, full: u64) -> Result<Self, Error> {
        let current = Mutex::new(Current::open(&directory)?);
        Ok(Self {
            directory,
            full,
            current,
        })
    }

    /// Writes the entry and returns when it is on disk.
    pub fn append(&self, entry: &Entry) -> Result<(), Error> {
        // A panic while writing leaves at worst a rest after the last whole line, which `append` cuts off.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_vec(entry).expect("strings become JSON");
        line.push(b'\n');
        if current.length > 0 && current.length + line.len() as u64 > self.full {
            self.turn_over()?;
            *current = Current::open(&self.directory)?;
        }
        current.append(&line).map_err(Error::io(
            "write the journal",
            self.directory.path_of(CURRENT),
        ))
    }

    /// Moves each file one place down; the oldest falls off.
    fn turn_over(&self) -> Result<(), Error> {
        // Gone already when an earlier try failed after this step.
        if !self.directory.path_of(CURRENT).exists() {
            return Ok(());
        }
        for number in (0..KEPT).rev() {
            let from = self.directory.path_of(&name(number));
            let moved = fs::rename(&from, self.directory.path_of(&name(number + 1)));
            match moved {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("put the full journal aside", from)(error));
                }
                _ => {}
            }
        }
        self.directory.sync()
    }
}

impl Current {
    fn open(directory: &Directory) -> Result<Self, Error> {
        let path = directory.path_of(CURRENT);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path);
        let mut file = file.map_err(Error::io("open the journal", &path))?;
        crate::store::check_private(&file, &path)?;
        let length = whole_lines(&mut file).map_err(Error::io("read the journal", &path))?;
        directory.sync()?;
        Ok(Self { file, length })
    }

    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        // Cuts off what a failed or interrupted write left; nobody was given a certificate for it.
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(line)?;
        self.file.sync_data()?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// The length of the file up to its last line feed.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        // Less than a block.
        let part = &mut block[..usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn name(number: u32) -> String {
    match number {
        0 => CURRENT.to_owned(),
        number => format!("issued.{number}.jsonl"),
    }
}

/// Hands the entries to `each`, oldest first, and returns how many lines were damaged. Holds one line at a time, and
/// may be called while the journal is written; a file that is put aside in that moment may be missed.
pub fn read(directory: &Directory, mut each: impl FnMut(Entry)) -> Result<u64, Error> {
    let mut damaged = 0;
    for number in (0..=KEPT).rev() {
        let path = directory.path_of(&name(number));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open the journal", path)(error)),
        };
        crate::store::check_private(&file, &path)?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut lines).take(LONGEST).read_until(b'\n', &mut line);
            if read.map_err(Error::io("read the journal", &path))? == 0 {
                break;
            }
            match serde_json::from_slice(&line) {
                Ok(entry) => each(entry),
                Err(_) => damaged += 1,
            }
        }
    }
    Ok(damaged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn entry(number: u32) -> Entry {
        Entry {
            time: "2025-01-01T00:00:00Z".into(),
            serial: format!("{number:032x}"),
            id: "spiffe://shop.internal/service/orders".into(),
            not_after: "2025-01-02T00:00:00Z".into(),
            proof: "token".into(),
            evidence: "AAAAAAAAAAAA".into(),
        }
    }

    fn serials(directory: &Directory) -> (Vec<u32>, u64) {
        let mut serials = Vec::new();
        let damaged = read(directory, |entry| {
            serials.push(u32::from_str_radix(&entry.serial, 16).unwrap());
        })
        .unwrap();
        (serials, damaged)
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("journal")).unwrap();
        (temp, directory)
    }

    #[test]
    fn what_was_written_is_read_after_a_restart() {
        let (_temp, directory) = directory();
        assert_eq!(serials(&directory), (vec![], 0));
        let journal = Journal::open(directory.clone()).unwrap();
        journal.append(&entry(1)).unwrap();
        journal.append(&entry(2)).unwrap();
        drop(journal);
        Journal::open(directory.clone())
            .unwrap()
            .append(&entry(3))
            .unwrap();
        let mut entries = Vec::new();
        read(&directory, |entry| entries.push(entry)).unwrap();
        assert_eq!(entries, [entry(1), entry(2), entry(3)]);
    }

    #[test]
    fn a_line_that_was_cut_short_is_cut_off_before_the_next() {
        for rest in ["{", "{\"time\":\"2025", "x".repeat(10_000).as_str()] {
            let (_temp, directory) = directory();
            Journal::open(directory.clone())
                .unwrap()
                .append(&entry(1))
                .unwrap();
            let mut file = OpenOptions::new()
                .append(true)
                .open(directory.path_of(CURRENT))
                .unwrap();
            file.write_all(rest.as_bytes()).unwrap();
            assert_eq!(serials(&directory), (vec![1], 1));
            Journal::open(directory.clone())
                .unwrap()
                .append(&entry(2))
                .unwrap();
            assert_eq!(serials(&directory), (vec![1, 2], 0));
        }
    }

    #[test]
    fn a_damaged_line_costs_only_itself() {
        let (_temp, directory) = directory();
        let journal = Journal::open(directory.clone()).unwrap();
        journal.append(&entry(1)).unwrap();
        drop(journal);
        let mut file = OpenOptions::new()
            .append(true)
            .open(directory.path_of(CURRENT))
            .unwrap();
        file.write_all(b"\xff\0garbage\n").unwrap();
        Journal::open(directory.clone())
            .unwrap()
            .append(&entry(2))
            .unwrap();
        assert_eq!(serials(&directory), (vec![1, 2], 1));
    }

    #[test]
    fn the_journal_has_a_bound_and_keeps_the_newest() {
        let (_temp, directory) = directory();
        let line = serde_json::to_vec(&entry(0)).unwrap().len() as u64 + 1;
        // Two lines fit into a file, exactly.
        let journal = Journal::with_size(directory.clone(), 2 * line).unwrap();
        for number in 0..8 {
            journal.append(&entry(number)).unwrap();
        }
        assert_eq!(
            serials(&directory).0,
            (0..8).collect::<Vec<_>>(),
            "four files of two"
        );
        journal.append(&entry(8)).unwrap();
        assert_eq!(
            serials(&directory).0,
            (2..9).collect::<Vec<_>>(),
            "the oldest file went"
        );
        let largest = directory
            .names()
            .unwrap()
            .iter()
            .map(|name| fs::metadata(directory.path_of(name)).unwrap().len())
            .max();
        assert_eq!(largest, Some(2 * line));
    }

    #[test]
    fn a_journal_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_temp, directory) = directory();
        Journal::open(directory.clone()).unwrap();
        fs::set_permissions(
            directory.path_of(CURRENT),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        assert!(
            Journal::open(directory.clone())
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
        assert!(
            read(&directory, |_| {})
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
    }
}
