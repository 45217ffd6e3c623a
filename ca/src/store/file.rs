//! A directory of small secret files: nobody else reads them, and each is there whole or not at all.
//!
//! A write goes to a temporary file beside the target, is forced to disk, renamed over the target, and the directory
//! is forced to disk too: after a crash at any moment the target is the old file or the new one. A file that others
//! may read is refused rather than repaired, because whoever could read it may have done so. What root makes in
//! somebody else's directory (`sudo weft ca token create`) is given to that directory's owner.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Access for the owner's group and for everybody else.
const OTHERS: u32 = 0o077;

/// What temporary files begin with.
const TEMPORARY: &str = ".tmp-";

/// The largest file that is read: certificates, keys and token records are a few KiB.
const LARGEST: u64 = 256 * 1024;

/// A directory that only its owner may enter.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

/// Held until dropped, or until the process is gone.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Directory {
    /// Opens the directory, which is made (0700) when it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(Error::io("make the directory", &path))?;
        // Or a crash could take away a root that somebody trusts already, with the directory that it is in.
        for made in missing {
            let parent = made
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(Error::io("force to disk the directory", parent))?;
        }
        let mode = mode_of(&path)?;
        if mode & OTHERS != 0 {
            // An empty one, such as a fresh mount, has no secret that somebody could have read already.
            let mut entries =
                fs::read_dir(&path).map_err(Error::io("list the directory", &path))?;
            if entries.next().is_some() {
                return Err(too_open(&path, mode, 0o700));
            }
            fs::set_permissions(&path, Permissions::from_mode(0o700))
                .map_err(Error::io("restrict the directory to its owner", &path))?;
        }
        Ok(Self { path })
    }

    /// Whether there is a directory at `path` already.
    pub fn exists(path: &Path) -> bool {
        path.is_dir()
    }

    /// A directory inside this one.
    pub fn inside(&self, name: &str) -> Result<Self, Error> {
        let inside = Self::open(self.path.join(name))?;
        let opened =
            File::open(&inside.path).map_err(Error::io("open the directory", &inside.path))?;
        self.give_to_owner(&opened, &inside.path)?;
        Ok(inside)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file `name` is.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The whole file; `None` when there is none; an error when others may read it.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path_of(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open the file", &path)(error)),
        };
        check_private(&file, &path)?;
        let mut bytes = Vec::new();
        let read = (&mut file).take(LARGEST + 1).read_to_end(&mut bytes);
        read.map_err(Error::io("read the file", &path))?;
        if bytes.len() as u64 > LARGEST {
            return Err(Error::State {
                path,
                what: format!("is larger than {LARGEST} bytes, so it is none of ours"),
                cure: "put back the file of the last backup".into(),
            });
        }
        Ok(Some(bytes))
    }

    /// Puts the file there whole (0600), in place of one that may be there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path_of(&format!("{TEMPORARY}{}-{count}-{name}", std::process::id()));
        let written = self.write_through(&temporary, bytes).and_then(|()| {
            let path = self.path_of(name);
            fs::rename(&temporary, &path).map_err(Error::io("put the new file in place", path))
        });
        if written.is_err() {
            // The error that matters is the one above; a leftover is swept at the next start.
            let _ = fs::remove_file(&temporary);
        }
        written?;
        self.sync()
    }

    /// Moves the file into another directory. Of many who try at the same time exactly one gets `true`, and by then
    /// the move is on disk.
    pub fn hand_over(&self, name: &str, to: &Self) -> Result<bool, Error> {
        let path = self.path_of(name);
        match fs::rename(&path, to.path_of(name)) {
            Ok(()) => {
                to.sync()?;
                self.sync()?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("move the file", path)(error)),
        }
    }

    /// Removes the file. That it is gone may be forgotten in a crash.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path_of(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove the file", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The names of the files, without temporary ones.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let names = self.all_names()?;
        Ok(names
            .into_iter()
            .filter(|name| !name.starts_with(TEMPORARY))
            .collect())
    }

    /// Removes what a crash in the middle of a write left behind. Only for who holds the lock under which files are
    /// made here.
    pub fn sweep(&self) -> Result<(), Error> {
        let names = self.all_names()?;
        names
            .iter()
            .filter(|name| name.starts_with(TEMPORARY))
            .try_for_each(|name| self.remove(name))
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self, name: &str) -> Result<Lock, Error> {
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse(self.path.clone())),
            Err(TryLockError::Error(error)) => {
                Err(Error::io("lock the file", self.path_of(name))(error))
            }
        }
    }

    /// Takes the lock, after those who have it for the moment.
    pub fn lock(&self, name: &str) -> Result<Lock, Error> {
        let file = self.lock_file(name)?;
        file.lock()
            .map_err(Error::io("lock the file", self.path_of(name)))?;
        Ok(Lock { _file: file })
    }

    /// Forces the names in this directory to disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let synced = File::open(&self.path).and_then(|directory| directory.sync_all());
        synced.map_err(Error::io("force the directory to disk", &self.path))
    }

    fn write_through(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path);
        let mut file = file.map_err(Error::io("make a file", path))?;
        self.give_to_owner(&file, path)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(Error::io("write the file", path))
    }

    /// Makes the owner of this directory the owner of what was made in it.
    fn give_to_owner(&self, made: &File, path: &Path) -> Result<(), Error> {
        let looking = || Error::io("look at the file", path);
        let owner = fs::metadata(&self.path).map_err(looking())?;
        if made.metadata().map_err(looking())?.uid() == owner.uid() {
            return Ok(());
        }
        let given = std::os::unix::fs::fchown(made, Some(owner.uid()), Some(owner.gid()));
        given.map_err(Error::io(
            "give the file to the owner of its directory",
            path,
        ))
    }

    fn lock_file(&self, name: &str) -> Result<File, Error> {
        let path = self.path_of(name);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let file = opened.map_err(Error::io("open the lock", &path))?;
        self.give_to_owner(&file, &path)?;
        Ok(file)
    }

    fn all_names(&self) -> Result<Vec<String>, Error> {
        let listing = || Error::io("list the directory", &self.path);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(listing())? {
            // We give our files names in ASCII; others are not ours.
            if let Ok(name) = entry.map_err(listing())?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// Refuses a file that others may read or write.
pub(crate) fn check_private(file: &File, path: &Path) -> Result<(), Error> {
    let mode = file
        .metadata()
        .map_err(Error::io("look at the file", path))?
        .mode();
    if mode & OTHERS != 0 {
        return Err(too_open(path, mode, 0o600));
    }
    Ok(())
}

fn mode_of(path: &Path) -> Result<u32, Error> {
    let metadata = fs::metadata(path).map_err(Error::io("look at the directory", path))?;
    Ok(metadata.mode())
}

fn too_open(path: &Path, mode: u32, wanted: u32) -> Error {
    Error::State {
        path: path.to_owned(),
        what: format!(
            "others than its owner have access (mode {:04o})",
            mode & 0o7777
        ),
        cure: format!(
            "run `chmod {wanted:o} {}`, and make a new authority if somebody may have read it",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn only_the_owner_has_access() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("a/state")).unwrap();
        directory.write("secret", b"x").unwrap();
        let _lock = directory.try_lock("lock").unwrap();
        assert_eq!(mode(directory.path()), 0o700);
        assert_eq!(mode(&directory.path_of("secret")), 0o600);
        assert_eq!(mode(&directory.path_of("lock")), 0o600);
        assert_eq!(directory.read("secret").unwrap().unwrap(), b"x");
        assert_eq!(directory.read("nothing").unwrap(), None);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_way_out() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        directory.write("secret", b"x").unwrap();
        for open in [0o640, 0o604, 0o620, 0o601, 0o666] {
            fs::set_permissions(directory.path_of("secret"), Permissions::from_mode(open)).unwrap();
            let error = directory.read("secret").unwrap_err().to_string();
            assert!(error.contains("state/secret"), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
            assert!(error.contains(&format!("{open:04o}")), "{error}");
        }
        // Writing anew gives it our mode again.
        directory.write("secret", b"y").unwrap();
        assert_eq!(directory.read("secret").unwrap().unwrap(), b"y");
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused_unless_it_is_empty() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let directory = Directory::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700, "an empty one is taken over");
        directory.write("secret", b"x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        let error = Directory::open(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_the_old_file() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        directory.write("secret", b"old").unwrap();
        // As after a crash between the two halves of a write.
        fs::write(directory.path_of(".tmp-1-0-secret"), b"ne").unwrap();
        assert_eq!(directory.read("secret").unwrap().unwrap(), b"old");
        assert_eq!(directory.names().unwrap(), ["secret"]);
        directory.sweep().unwrap();
        assert!(!directory.path_of(".tmp-1-0-secret").exists());
        assert_eq!(directory.read("secret").unwrap().unwrap(), b"old");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_rest() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        // A directory in the place of the target makes the rename fail, for root too.
        fs::create_dir(directory.path_of("taken")).unwrap();
        fs::write(directory.path_of("taken/inside"), b"old").unwrap();
        assert!(directory.write("taken", b"new").is_err());
        assert_eq!(fs::read(directory.path_of("taken/inside")).unwrap(), b"old");
        assert_eq!(directory.all_names().unwrap(), ["taken"]);
    }

    #[test]
    fn a_lock_has_one_holder() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        let lock = directory.try_lock("lock").unwrap();
        let error = directory.try_lock("lock").unwrap_err();
        assert!(matches!(error, Error::InUse(_)), "{error}");
        drop(lock);
        directory.try_lock("lock").unwrap();
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        let most = usize::try_from(LARGEST).unwrap();
        directory.write("big", &vec![0; most]).unwrap();
        assert_eq!(directory.read("big").unwrap().unwrap().len(), most);
        directory.write("big", &vec![0; most + 1]).unwrap();
        assert!(
            directory
                .read("big")
                .unwrap_err()
                .to_string()
                .contains("larger")
        );
    }

    #[test]
    fn what_root_makes_belongs_to_the_owner_of_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        // Only root can give a directory away; for others there is nothing to show.
        let owner = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(65_534), Some(65_534)).unwrap();
            65_534
        } else {
            rustix::process::geteuid().as_raw()
        };
        directory.write("secret", b"x").unwrap();
        let inside = directory.inside("more").unwrap();
        inside.write("secret", b"x").unwrap();
        let _lock = directory.try_lock("lock").unwrap();
        for path in ["secret", "more", "more/secret", "lock"] {
            let uid = fs::metadata(directory.path_of(path)).unwrap().uid();
            assert_eq!(uid, owner, "{path}");
        }
    }
}
