//! On which ring was this directory's data written?
//!
//! The ring says which servers own a key. With other servers on it, keys are looked for where they are not: the data
//! is all there, and reads do not find it. So the ring is kept beside the data, and compared at the next start.
//!
//! ```text
//!   RING   the servers, in the form of a servers.txt
//! ```
//!
//! What it leaves out: moving the data. A local cluster refuses to start on another ring; a single server warns, as
//! its operator may be changing the ring on purpose.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use dkvs_core::servers::{ServerList, parse};
use dkvs_storage::sync_dir;

/// The file's name.
pub(crate) const FILE: &str = "RING";
/// Under which it is written before it is renamed.
pub(crate) const TEMPORARY: &str = "RING.tmp";

const HEADER: &str = "# The ring this data was written on, kept by dkvs-server.\n";

/// The ring that was noted in `directory`, if any was.
pub(crate) fn recall(directory: &Path) -> anyhow::Result<Option<ServerList>> {
    let path = directory.join(FILE);
    let shown = path.display();
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| anyhow!("{shown}: it is not text")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    let servers = text.and_then(|text| Ok(parse(&text, &shown.to_string())?));
    servers.map(Some).map_err(|error| {
        anyhow!(
            "{error:#}; this file is kept by dkvs-server, and is damaged: if the list of servers is still the one \
             that the data was written on, remove the file"
        )
    })
}

/// Notes the ring in `directory`, which exists. A crash leaves the old note or the new one, and the new one once this
/// returned: without it the directory could not be told from somebody else's.
pub(crate) fn remember(directory: &Path, servers: &ServerList) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(directory.join(TEMPORARY))?;
        write!(file, "{HEADER}{servers}")?;
        file.sync_all()?;
        fs::rename(directory.join(TEMPORARY), directory.join(FILE))?;
        sync_dir(directory)
    };
    write().with_context(|| format!("cannot write {}", directory.join(FILE).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_recalled() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(recall(directory.path()).unwrap(), None);
        for text in ["127.0.0.1 1 2\n", "127.0.0.1 1 2\n::1 7 9\n"] {
            let servers = parse(text, "test").unwrap();
            remember(directory.path(), &servers).unwrap();
            assert_eq!(recall(directory.path()).unwrap(), Some(servers));
        }
    }

    #[test]
    fn a_damaged_note_is_told_by_its_file_and_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for damaged in [&b"127.0.0.1 x 2\n"[..], b"127.0.0.1 1 \xFF\n", b"\n"] {
            fs::write(&path, damaged).unwrap();
            let message = recall(directory.path()).unwrap_err().to_string();
            assert!(message.starts_with(&path.display().to_string()), "{message}");
            assert!(message.ends_with("remove the file"), "{message}");
        }
    }
}
