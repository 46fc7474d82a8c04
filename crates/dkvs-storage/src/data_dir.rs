//! Is this the directory I left, and is it mine?
//!
//! A server's data directory outlives its processes, gets copied, restored and mixed up. Every mistake that
//! can be noticed is refused by name before anything is touched. One cannot be refused, only reported: a
//! directory whose content is *older than what the server has told others*. A server numbers its writes
//! (dots, after *Dotted Version Vectors*, Almeida et al.); one that starts on a restored backup would give
//! out numbers a second time, and replicas would take the new writes for ones they already have. So
//! [`DataDir::open`] says how the last process ended, and everything but [`Start::Clean`] means: number under
//! a new name.
//!
//! ```text
//!   LOCK     empty; held locked by the running process. Never rewritten, renamed or chmod-ed: see below
//!   OWNER    the identity of the server whose data this is, one line
//!   FORMAT   the layout's version, one line; written last, so without it the directory was never in use
//!   CLEAN    only between a clean stop and the next start: a census of LOCK and store/
//!   store/   the engine's files
//! ```
//!
//! **Why a census.** A marker file alone would be copied along with everything else. What no copying tool can
//! reproduce is an inode's *change time*: the kernel sets it to the current time on every write, rename,
//! chmod or hard link, and offers no call to set it back. `CLEAN` therefore records device, inode number and
//! change time (in nanoseconds) of `LOCK` and of everything under `store/`, and is believed only if all of it
//! is still so. A directory brought back with `cp -a`, rsync or tar is not; neither is one where only
//! `store/`, or one file in it, was put back. Every doubt reads as [`Start::Unclean`], the safe side:
//! touching a file costs a new incarnation.
//!
//! Invariants: a crash at any point of `open` or `mark_clean` leaves a directory that opens again; `CLEAN` is
//! gone from the disk before `open` returns; of a refused directory nothing was changed (but an empty `LOCK`
//! may be new).
//!
//! What it leaves out: a whole file system or virtual machine put back to an earlier moment (an LVM or ZFS
//! rollback, a VM snapshot) brings the change times back too. If it was taken while the server ran, the
//! marker is absent and all is well; taken while it was stopped, it reads as `Clean`: delete `CLEAN` after
//! such a restore. Without Unix metadata every start after the first is `Unclean`.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The version of the layout this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const LOCK: &str = "LOCK";
const OWNER: &str = "OWNER";
const FORMAT: &str = "FORMAT";
const CLEAN: &str = "CLEAN";
const STORE: &str = "store";
/// Under which a file is written before it is renamed to what it is called.
const TEMPORARY: &str = ".tmp";

/// How the directory's last process ended, and so what can be believed of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// No process has used it before.
    New,
    /// Nobody has touched it since a clean stop: it holds all that its server ever told anyone.
    Clean,
    /// Anything else: a crash, a copy, a restored backup. It may lack what its server told others.
    Unclean,
}

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Stop the other process, or choose another directory.
    #[error("data directory {} is in use: another dkvs-server process holds its lock", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },

    /// Two servers must not share an identity or a directory: correct the configuration of one.
    #[error(
        "data directory {} belongs to server \"{owner}\" (says its file OWNER), not to \"{asked}\": \
         give each server its own directory",
        path.display()
    )]
    OwnedByOther {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who tried to open it.
        asked: String,
    },

    /// Most likely a mistyped path: choose an empty or missing directory.
    #[error(
        "{} is not a DKVS data directory, and not empty (it holds \"{found}\"): \
         choose an empty or a missing one",
        path.display()
    )]
    NotADataDir {
        /// The directory.
        path: PathBuf,
        /// One of the entries that are not ours.
        found: String,
    },

    /// There is nothing to look at: check the path.
    #[error("{} is not a DKVS data directory: it has no file FORMAT", path.display())]
    NoDataDir {
        /// The directory.
        path: PathBuf,
    },

    /// No program of this line wrote it.
    #[error(
        "data directory {} has format {found} (says its file FORMAT), and this dkvs-server knows formats from {known} on: start with an \
         empty directory and let the other servers fill it",
        path.display()
    )]
    OlderFormat {
        /// The data directory.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The oldest version this program knows.
        known: u32,
    },

    /// A newer program wrote it: run that one.
    #[error(
        "data directory {} has format {found} (says its file FORMAT), and this dkvs-server knows formats up to {known}: \
         start it with a newer dkvs-server",
        path.display()
    )]
    NewerFormat {
        /// The data directory.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },

    /// A file does not say what it must: it was edited or damaged. Restore it, or start with an empty
    /// directory and let the other replicas fill it.
    #[error("{} is unreadable: expected {expected}", path.display())]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },

    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A data directory, held locked until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Its lock is the directory's; the system releases it with the process, however that ends.
    _lock: File,
}

impl DataDir {
    /// Opens `path` for the server called `owner` (one line, as in `127.0.0.1 1234`), creating what is
    /// missing.
    ///
    /// When this returns, a later start is [`Start::Unclean`] unless [`DataDir::mark_clean`] comes first.
    pub fn open(path: &Path, owner: &str) -> Result<(Self, Start), DataDirError> {
        assert!(!owner.is_empty() && !owner.contains('\n'), "an owner's name is one line, not {owner:?}");
        create_dir(path).map_err(io_error("create", path))?;
        let is_new = !exists(&path.join(FORMAT))?;
        if is_new {
            check_only_leftovers(path)?;
        }
        let dir = Self { path: path.into(), _lock: lock(path)? };
        // Whoever held the lock a moment ago may have been creating the directory.
        let start = if exists(&path.join(FORMAT))? {
            dir.check_format()?;
            dir.check_owner(owner)?;
            if dir.consume_clean_marker()? { Start::Clean } else { Start::Unclean }
        } else {
            dir.write(OWNER, &format!("{owner}\n"))?;
            dir.write(FORMAT, &format!("{FORMAT_VERSION}\n"))?;
            // An interrupted creation may have made the directory without getting to this.
            sync_parent(path).map_err(io_error("flush the directory above", path))?;
            Start::New
        };
        Ok((dir, start))
    }

    /// Opens an existing directory of whatever server, to look at what it holds. Also says whose it is. The store must not be
    /// written to; a directory that was clean can then be marked clean again.
    ///
    /// # Errors
    /// As [`DataDir::open`], and when there is no data directory at `path`.
    pub fn open_existing(path: &Path) -> Result<(Self, Start, String), DataDirError> {
        let format = path.join(FORMAT);
        if !exists(&format)? {
            return Err(DataDirError::NoDataDir { path: path.into() });
        }
        let dir = Self { path: path.into(), _lock: lock(path)? };
        dir.check_format()?;
        let owner = dir.owner()?;
        let start = if dir.consume_clean_marker()? { Start::Clean } else { Start::Unclean };
        Ok((dir, start, owner))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the engine keeps its files.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Vouches that the directory holds all its server ever told anyone, and releases it.
    ///
    /// To be called last: after the store was closed without an error and nothing writes under `store/` any
    /// more.
    pub fn mark_clean(self) -> Result<(), DataDirError> {
        match self.census().map_err(io_error("take stock of", &self.path))? {
            Some(census) => self.write(CLEAN, &census),
            None => Ok(()),
        }
    }

    fn check_format(&self) -> Result<(), DataDirError> {
        let expected = "the version of the directory's format, a number";
        let (path, text) = self.read(FORMAT, expected)?;
        match text.trim_end().parse() {
            Ok(FORMAT_VERSION) => Ok(()),
            Ok(found @ FORMAT_VERSION..) => {
                Err(DataDirError::NewerFormat { path: self.path.clone(), found, known: FORMAT_VERSION })
            }
            Ok(found) => {
                Err(DataDirError::OlderFormat { path: self.path.clone(), found, known: FORMAT_VERSION })
            }
            Err(_) => Err(DataDirError::Garbage { path, expected }),
        }
    }

    fn check_owner(&self, asked: &str) -> Result<(), DataDirError> {
        let owner = self.owner()?;
        if owner == asked {
            return Ok(());
        }
        Err(DataDirError::OwnedByOther { path: self.path.clone(), owner, asked: asked.into() })
    }

    fn owner(&self) -> Result<String, DataDirError> {
        let expected = "the owner's name and a line feed";
        let (path, text) = self.read(OWNER, expected)?;
        match text.strip_suffix('\n') {
            Some(owner) if !owner.is_empty() => Ok(owner.into()),
            Some(_) | None => Err(DataDirError::Garbage { path, expected }),
        }
    }

    /// Whether a marker was there and true. It is gone from the disk in any case.
    fn consume_clean_marker(&self) -> Result<bool, DataDirError> {
        let path = self.path.join(CLEAN);
        let marker = match fs::read(&path) {
            Ok(marker) => marker,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let census = self.census().map_err(io_error("take stock of", &self.path))?;
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        sync_dir(&self.path).map_err(io_error("flush", &self.path))?;
        Ok(census.is_some_and(|census| census.as_bytes() == marker))
    }

    /// One line per file: what would change if it were copied or written to. `None` where the system cannot
    /// tell.
    fn census(&self) -> io::Result<Option<String>> {
        let mut lines = Vec::new();
        let mut pending = vec![self.path.join(LOCK)];
        if self.store_path().try_exists()? {
            pending.push(self.store_path());
        }
        while let Some(path) = pending.pop() {
            let metadata = fs::symlink_metadata(&path)?;
            let Some(identity) = identity(&metadata) else { return Ok(None) };
            // Relative, so that a directory may be moved.
            let name = path.strip_prefix(&self.path).unwrap_or(&path);
            lines.push(format!("{identity} {name:?}\n"));
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    pending.push(entry?.path());
                }
            }
        }
        lines.sort();
        Ok(Some(lines.concat()))
    }

    fn read(&self, name: &str, expected: &'static str) -> Result<(PathBuf, String), DataDirError> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Err(DataDirError::Garbage { path, expected })
            }
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    /// Replaces a file so that a crash leaves the old one or the new one, and the new one once this returned.
    fn write(&self, name: &str, text: &str) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}{TEMPORARY}"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_dir(&self.path)
        };
        write().map_err(io_error("write", &path))
    }
}

/// Refuses a directory without `FORMAT` unless it holds only what an interrupted creation may have left.
fn check_only_leftovers(path: &Path) -> Result<(), DataDirError> {
    let list = || fs::read_dir(path)?.collect::<io::Result<Vec<_>>>();
    let entries = list().map_err(io_error("read", path))?;
    // It is created first, so files of ours without it are not ours.
    let has_lock = entries.iter().any(|entry| entry.file_name() == LOCK);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_leftover = match name.strip_suffix(TEMPORARY).unwrap_or(&name) {
            // Others lock with a file of that name, too, but write into it.
            LOCK => entry.metadata().map_err(io_error("read", path))?.len() == 0,
            // The finished FORMAT as well: another process may be finishing this very directory.
            OWNER | FORMAT => has_lock,
            _ => false,
        };
        if !is_leftover {
            return Err(DataDirError::NotADataDir { path: path.into(), found: name });
        }
    }
    Ok(())
}

/// Takes the directory's lock. An existing file is opened without changing it.
fn lock(path: &Path) -> Result<File, DataDirError> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
    let file = file.map_err(io_error("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.into() }),
        Err(TryLockError::Error(e)) => Err(io_error("lock", &lock_path)(e)),
    }
}

/// Creates `path` and what is missing above it, durably.
pub fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or(e)?;
            create_dir(parent)?;
            fs::create_dir(path)?;
        }
        Err(_) if path.is_dir() => {}
        Err(e) => return Err(e),
    }
    sync_parent(path)
}

/// Makes the entry of `path` in the directory above it durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Makes the entries of the directory at `path` durable: files that were created in it, renamed or removed.
#[cfg(unix)]
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Elsewhere a directory cannot be opened to be flushed; its entries are as durable as the system makes them.
#[cfg(not(unix))]
pub fn sync_dir(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// What no copy of a file shares with it.
#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (device, inode) = (metadata.dev(), metadata.ino());
    Some(format!("{device} {inode} {}.{:09}", metadata.ctime(), metadata.ctime_nsec()))
}

#[cfg(not(unix))]
fn identity(_metadata: &fs::Metadata) -> Option<String> {
    None
}

fn exists(path: &Path) -> Result<bool, DataDirError> {
    path.try_exists().map_err(io_error("look at", path))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
    let path = path.to_path_buf();
    move |source| DataDirError::Io { what, path, source }
}
