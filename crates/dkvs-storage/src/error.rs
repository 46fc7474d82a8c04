//! What can go wrong with a store, sorted by what the caller can do about it.
//!
//! One failed flush answers every commit of its group, so errors are cheap to clone.

use std::{io, path::PathBuf, sync::Arc};

/// Why a [`Store`](crate::Store) did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The batch itself cannot be stored. Nothing changed; the same batch will be refused again.
    #[error("batch refused: {reason}")]
    Refused {
        /// Which of its entries is at fault, and the limit it breaks.
        reason: String,
    },

    /// An earlier commit or flush failed. Nothing of this batch was written, and no write will be accepted
    /// until the store is opened again. Reads go on, of what was visible before.
    #[error("the store takes no more writes until it is restarted: {reason}")]
    Poisoned {
        /// The first failure.
        reason: Arc<str>,
    },

    /// The store failed while this batch was being committed. It is not visible now, but after a restart it
    /// may be there, whole. The store is poisoned.
    #[error("the outcome of this commit is unknown, the store failed during it: {reason}")]
    Unknown {
        /// The failure.
        reason: Arc<str>,
    },

    /// The store was closed. Nothing changed.
    #[error("the store is closed")]
    Closed,

    /// Another open store, most likely another process, uses the directory. Nothing changed.
    #[error("{} is in use by another open store", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },

    /// What is on disk cannot be what the store wrote, or the disk does not give it back. Nothing changed. If it
    /// was met while opening, start with an empty directory and let the other replicas fill it; keep the damaged
    /// one for inspection.
    #[error("{} is damaged, {what}: {detail}", path.display())]
    Corrupt {
        /// What was being done.
        what: &'static str,
        /// The store's directory.
        path: PathBuf,
        /// What the engine says.
        detail: Arc<str>,
    },

    /// The operating system refused to read or write. Seen by callers for reads and while opening; nothing
    /// changed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done, as the start of a sentence that `path` ends.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source: Arc::new(source) }
    }
}
