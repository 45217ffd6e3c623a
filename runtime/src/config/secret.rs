//! Where a secret stands: in a file or a variable, never in the configuration itself, which is shown, sent and kept.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::env;

/// More than this is no secret but the wrong file.
const LARGEST: u64 = 64 * 1024;

/// Where a secret stands: `{ file: PATH }` or `{ env: NAME }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// In this file.
    File(PathBuf),
    /// In this variable of the environment.
    Env(String),
}

impl Secret {
    /// The secret itself, without white space around it. A path is relative to `base`. The error says what is wrong and
    /// never quotes the secret.
    pub fn read(&self, base: &Path) -> Result<String, String> {
        let text = match self {
            Self::File(path) => {
                let path = base.join(path);
                let error = |error| format!("`{}` cannot be read: {error}", path.display());
                let size = std::fs::metadata(&path).map_err(error)?.len();
                if size > LARGEST {
                    return Err(format!("`{}` is too large for a secret", path.display()));
                }
                std::fs::read_to_string(&path).map_err(error)?
            }
            Self::Env(name) => {
                env::read(name).ok_or_else(|| format!("the variable `{name}` is not set"))?
            }
        };
        match text.trim() {
            "" => Err("the secret is empty".to_owned()),
            text => Ok(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_where_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let file = Secret::File("key".into());
        let error = file.read(directory.path()).unwrap_err();
        assert!(error.contains("key` cannot be read"), "{error}");
        std::fs::write(directory.path().join("key"), "\n s3cret\n").unwrap();
        assert_eq!(file.read(directory.path()).as_deref(), Ok("s3cret"));
        std::fs::write(directory.path().join("key"), " \n").unwrap();
        assert!(file.read(directory.path()).is_err());
        std::fs::write(directory.path().join("key"), vec![b'x'; 70_000]).unwrap();
        let error = file.read(directory.path()).unwrap_err();
        assert!(
            error.contains("too large") && !error.contains("xxx"),
            "{error}"
        );
    }

    #[test]
    fn a_variable_is_a_place_too() {
        // Cargo sets it for every test.
        let set = Secret::Env("CARGO_PKG_NAME".to_owned());
        assert_eq!(set.read(Path::new("/")).as_deref(), Ok("weft-runtime"));
        let unset = Secret::Env("WEFT_TEST_SURELY_NOT_SET".to_owned());
        assert!(
            unset
                .read(Path::new("/"))
                .unwrap_err()
                .contains("is not set")
        );
    }
}
