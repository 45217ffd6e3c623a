//! Reads configuration files and those that they name: whole and bounded.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// How large a configuration file may be.
pub const SIZE_LIMIT: u64 = 4 << 20;

/// The text of the file at `path`. Blocks.
pub fn read(path: &Path) -> io::Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        invalid(&format!("not UTF-8 text (byte {at})"))
    })
}

/// What is in the file at `path`. Blocks.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(SIZE_LIMIT + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(invalid("larger than 4 MiB"));
    }
    Ok(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit_and_not_beyond() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weft.yaml");
        let limit = usize::try_from(SIZE_LIMIT).unwrap();
        std::fs::write(&path, "x".repeat(limit)).unwrap();
        assert_eq!(read(&path).unwrap().len(), limit);
        std::fs::write(&path, "x".repeat(limit + 1)).unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "larger than 4 MiB");
    }

    #[test]
    fn what_is_not_text_in_a_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weft.yaml");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(
            read(directory.path()).unwrap_err().to_string(),
            "not a regular file"
        );
        std::fs::write(&path, b"a: \xff").unwrap();
        assert_eq!(
            read(&path).unwrap_err().to_string(),
            "not UTF-8 text (byte 3)"
        );
    }
}
