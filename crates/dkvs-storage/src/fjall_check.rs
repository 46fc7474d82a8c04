//! What the engine takes on trust, checked before it opens a directory.
//!
//! fjall (3.1) verifies the checksum of every block of a table before it uses it, on every read from the disk. Of three
//! other places it believes every byte, and one flipped bit there is enough to lose what was acknowledged without a
//! word, to bring back what was replaced, or to ask for so much memory that the process is aborted:
//!
//! ```text
//!   N.jnl                     a journal: batches of  START count seqno | ITEM ... | END checksum magic
//!       the checksum covers the items only, so a changed seqno reorders writes; whatever cannot be parsed counts as
//!       torn, and is cut off with every whole batch behind it
//!   keyspaces/K/current       which version is current, and the checksum of its file    (never compared)
//!   keyspaces/K/vN            the version: the list of tables. A table that is not listed any more is deleted
//!   keyspaces/K/tables/T      a table. It ends with where its parts are; lengths there are believed before their
//!       checksum is
//! ```
//! So the versions' checksums are compared, of the tables that they list the ends, and journals are read once more than
//! the engine does.
//!
//! **What a torn journal looks like.** A process that was killed leaves the beginning of a batch, and nothing or zeros
//! behind it. A power cut may lose any page of what was not flushed, or the latest writes to it: it then ends in zeros. Anything else behind the last
//! whole batch was not left by a crash, and is damage: so is a sequence number that is not above the one before it.
//!
//! A batch that is there from its START to its END, but not with the bytes that its checksum covers, is told from
//! a damaged one by a page of zeros in it: a lost page begins and ends where pages do, and zeros in a value hardly ever
//! do both.
//!
//! **A torn tail is cut off here**, once everything else has been found whole. The engine cuts most of them as well, but
//! it refuses to open a journal with a hole inside a value.
//!
//! What it leaves out: the blocks of tables, which the engine checks when it reads them; whole files that were replaced
//! by older ones ([`DataDir`](crate::DataDir) knows those); damage in a tail that has pages which end in
//! zeros, or that leaves the last batch looking like its own beginning. Of such a tail only the log tells.

use crate::StoreError;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Its last byte is the version of the format.
const FORMAT: &[u8; 4] = b"FJL\x03";
/// Ends each batch.
const BATCH_MAGIC: &[u8; 4] = FORMAT;
/// What a file system writes as a whole, and may lose with the power.
const PAGE_LEN: usize = 4_096;
/// So many zeros before the end of a page are not a coincidence.
const HOLE_LEN_MIN: usize = 32;
/// So many zeros beside a lost page may be the data's own: a small number has up to seven.
const HOLE_EDGE_MAX: usize = 8;
/// No store makes so many batches, and above this the engine uses bits of its own.
const SEQNO_MAX: u64 = 1 << 56;
/// The end of a table or version: magic, version and kind of checksum, then checksum, position and length of its list
/// of parts.
const TRAILER_LEN: u64 = 4 + 1 + 1 + 16 + 8 + 8;
const TRAILER_HEAD: &[u8] = b"SFA!\x01\x00";
const LIST_MAGIC: &[u8] = b"TOC!";

/// Checks a database, and cuts off what a crash has left of its last writes. One that is open elsewhere is being written
/// to, and refused.
pub(crate) fn check(dir: &Path) -> Result<(), StoreError> {
    // The engine's own lock. Where it cannot be had for another reason, the engine says so.
    let lock = File::open(dir.join("lock"));
    if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().ok().map(File::try_lock) {
        return Err(StoreError::InUse { path: dir.into() });
    }
    check_format(&dir.join("version"))?;
    check_keyspaces(&dir.join("keyspaces"))?;
    check_journals(dir)
}

fn damaged(path: &Path, detail: impl Into<String>) -> StoreError {
    StoreError::Corrupt { what: "opening", path: path.into(), detail: detail.into().into() }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| {
        if error.kind() == ErrorKind::NotFound {
            return damaged(path, "it is gone");
        }
        StoreError::io("read", path, error)
    }
}

/// The entries of a directory whose names make sense, in order.
fn numbered<N: Ord>(dir: &Path, number: impl Fn(&str) -> Option<N>) -> Result<Vec<(N, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
        let entry = entry.map_err(unreadable(dir))?;
        if let Some(number) = entry.file_name().to_str().and_then(&number) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The engine refuses another format as well, but does not say in which file it found it.
fn check_format(path: &Path) -> Result<(), StoreError> {
    let text = fs::read(path).map_err(unreadable(path))?;
    if text.starts_with(FORMAT) {
        Ok(())
    } else {
        Err(damaged(path, "it names another format than the engine's"))
    }
}

fn check_keyspaces(dir: &Path) -> Result<(), StoreError> {
    for (_, keyspace) in numbered(dir, |name| name.parse::<u64>().ok())? {
        let path = keyspace.join("current");
        let current = fs::read(&path).map_err(unreadable(&path))?;
        let mut bytes = Cursor(&current);
        let (Some(id), Some(checksum)) = (bytes.u64(), bytes.u128()) else {
            return Err(damaged(&path, "it is cut short"));
        };
        if bytes.0 != [0] {
            return Err(damaged(&path, "it does not end as it must"));
        }
        let version = keyspace.join(format!("v{id}"));
        let text = match fs::read(&version) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(&path, format!("it names version {id}, which is not there")));
            }
            text => text.map_err(unreadable(&version))?,
        };
        if xxh3_128(&text) != checksum {
            let detail = format!("its checksum is not the one in {}, or that one is damaged", path.display());
            return Err(damaged(&version, detail));
        }
        let tables = listed_tables(&text).ok_or_else(|| damaged(&version, "it lists no tables"))?;
        for table in tables {
            check_table(&keyspace.join("tables").join(table.to_string()))?;
        }
    }
    Ok(())
}

/// The tables of a version whose checksum is right.
fn listed_tables(version: &[u8]) -> Option<Vec<u64>> {
    let trailer_len = usize::try_from(TRAILER_LEN).ok()?;
    let trailer = &version[version.len().checked_sub(trailer_len)?..];
    let list = version.get(usize::try_from(Cursor(&trailer[22..]).u64()?).ok()?..)?;
    let mut list = Cursor(list.strip_prefix(LIST_MAGIC)?);
    for _ in 0..list.u32()? {
        let (start, len, name_len) = (list.u64()?, list.u64()?, list.u16()?);
        if list.take(name_len.into())? != b"tables" {
            continue;
        }
        let mut section =
            Cursor(version.get(usize::try_from(start).ok()?..)?.get(..usize::try_from(len).ok()?)?);
        let mut tables = Vec::new();
        for _level in 0..section.u8()? {
            for _run in 0..section.u8()? {
                for _table in 0..section.u32()? {
                    tables.push(section.u64()?);
                    // Checksum and its kind, and what is added to sequence numbers.
                    section.take(1 + 16 + 8)?;
                }
            }
        }
        return Some(tables);
    }
    None
}

/// Checks where a table says that its parts are.
fn check_table(path: &Path) -> Result<(), StoreError> {
    let is_damaged = |detail| Err(damaged(path, detail));
    let mut file = File::open(path).map_err(unreadable(path))?;
    let len = file.metadata().map_err(unreadable(path))?.len();
    let Some(trailer_start) = len.checked_sub(TRAILER_LEN) else { return is_damaged("it is cut short") };
    let mut trailer = Vec::new();
    file.seek(SeekFrom::Start(trailer_start)).map_err(unreadable(path))?;
    file.read_to_end(&mut trailer).map_err(unreadable(path))?;
    let Some(end) = trailer.strip_prefix(TRAILER_HEAD) else { return is_damaged("its end is not one") };
    let mut end = Cursor(end);
    let (Some(checksum), Some(list_start), Some(list_len)) = (end.u128(), end.u64(), end.u64()) else {
        return is_damaged("it is cut short");
    };
    if list_start.checked_add(list_len) != Some(trailer_start) {
        return is_damaged("the list of its parts is not where its end says");
    }
    let mut list = Vec::new();
    file.seek(SeekFrom::Start(list_start)).map_err(unreadable(path))?;
    file.take(list_len).read_to_end(&mut list).map_err(unreadable(path))?;
    if xxh3_128(&list) != checksum {
        return is_damaged("the checksum of the list of its parts is wrong");
    }
    Ok(())
}

fn check_journals(dir: &Path) -> Result<(), StoreError> {
    let journals = numbered(dir, |name| name.strip_suffix(".jnl")?.parse::<u64>().ok())?;
    let Some((_, active)) = journals.last() else { return Err(damaged(dir, "its journal is gone")) };
    let mut last = None;
    for (_, path) in &journals {
        let mut journal = Journal::open(path)?;
        while let Some(seqno) = journal.next_batch().map_err(unreadable(path))? {
            if last.is_some_and(|last| seqno <= last) || seqno >= SEQNO_MAX {
                let (last, start) = (last.unwrap_or(0), journal.batch_start);
                let detail =
                    format!("the batch at byte {start} has number {seqno}, and the one before it {last}");
                return Err(damaged(path, detail));
            }
            last = Some(seqno);
        }
        let whole = journal.whole;
        // Nothing is checked after the last journal.
        if journal.check_rest(path == active)? == Rest::Torn {
            cut(path, whole).map_err(|e| StoreError::io("cut off the torn end of", path, e))?;
        }
    }
    Ok(())
}

fn cut(path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(len)?;
    // What the engine appends must not be found behind the torn end again.
    file.sync_all()
}

/// A journal that is read batch after batch.
struct Journal<'a> {
    path: &'a Path,
    file: BufReader<File>,
    /// Where the reader is.
    at: u64,
    /// Where the last batch began that was read.
    batch_start: u64,
    /// Where the last whole batch ends.
    whole: u64,
    /// There is a batch behind it, from START to END, and it is not what was written.
    is_altered: bool,
}

/// What is behind the last whole batch of a journal.
#[derive(PartialEq, Eq)]
enum Rest {
    /// Nothing, or room for more.
    Empty,
    /// What a crash left of writes that were under way.
    Torn,
}

/// Why there is no further whole batch.
enum Stop {
    /// What is there cannot be a batch.
    NotABatch,
    /// It has an end where a batch may end, and is not what was written.
    Altered,
    /// The journal ends within one.
    CutShort,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof { Self::CutShort } else { Self::Io(error) }
    }
}

impl<'a> Journal<'a> {
    fn open(path: &'a Path) -> Result<Self, StoreError> {
        let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(unreadable(path))?);
        Ok(Self { path, file, at: 0, batch_start: 0, whole: 0, is_altered: false })
    }

    /// The number of the next whole batch; `None` where there is none any more.
    fn next_batch(&mut self) -> io::Result<Option<u64>> {
        self.batch_start = self.whole;
        match self.read_batch() {
            Ok(seqno) => {
                self.whole = self.at;
                Ok(Some(seqno))
            }
            Err(Stop::NotABatch) => Ok(None),
            Err(Stop::Altered) => {
                self.is_altered = true;
                Ok(None)
            }
            Err(Stop::CutShort) => {
                self.at = u64::MAX;
                Ok(None)
            }
            Err(Stop::Io(error)) => Err(error),
        }
    }

    fn read_batch(&mut self) -> Result<u64, Stop> {
        const START: u8 = 1;
        const ITEM: u8 = 2;
        const END: u8 = 3;
        const CLEAR: u8 = 4;
        let mut none = Xxh3::new();
        if self.take(&mut none)? != [START] {
            return Err(Stop::NotABatch);
        }
        let items = u32::from_le_bytes(self.take(&mut none)?);
        let seqno = u64::from_le_bytes(self.take(&mut none)?);
        let mut hash = Xxh3::new();
        for _ in 0..items {
            match self.take(&mut hash)? {
                [ITEM] => self.read_item(&mut hash)?,
                [CLEAR] => drop(self.take::<8>(&mut hash)?),
                [END] => return Err(self.early_end()),
                _ => return Err(Stop::NotABatch),
            }
        }
        match self.take(&mut none)? {
            [END] if self.read_end()? == hash.digest() => Ok(seqno),
            [END | ITEM | CLEAR] => Err(Stop::Altered),
            _ => Err(Stop::NotABatch),
        }
    }

    /// Why a batch is none whose items seem to end too early.
    fn early_end(&mut self) -> Stop {
        let at = self.at;
        match self.read_end() {
            Ok(_) => Stop::Altered,
            Err(Stop::Io(error)) => Stop::Io(error),
            Err(Stop::NotABatch | Stop::Altered | Stop::CutShort) => {
                self.at = at;
                Stop::NotABatch
            }
        }
    }

    /// The checksum, if what follows it ends a batch.
    fn read_end(&mut self) -> Result<u64, Stop> {
        let checksum = u64::from_le_bytes(self.take(&mut Xxh3::new())?);
        let magic = self.take(&mut Xxh3::new())?;
        if magic == *BATCH_MAGIC { Ok(checksum) } else { Err(Stop::NotABatch) }
    }

    fn read_item(&mut self, hash: &mut Xxh3) -> Result<(), Stop> {
        // What it is, how it is compressed, its keyspace.
        self.take::<10>(hash)?;
        let key_len = u16::from_le_bytes(self.take(hash)?);
        let _value_len: [u8; 4] = self.take(hash)?;
        let stored_len = u32::from_le_bytes(self.take(hash)?);
        let mut left = u64::from(key_len) + u64::from(stored_len);
        let mut chunk = [0; PAGE_LEN];
        while left > 0 {
            let len = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.file.read_exact(&mut chunk[..len])?;
            hash.update(&chunk[..len]);
            self.at += len as u64;
            left -= len as u64;
        }
        Ok(())
    }

    fn take<const LEN: usize>(&mut self, hash: &mut Xxh3) -> Result<[u8; LEN], Stop> {
        let mut bytes = [0; LEN];
        self.file.read_exact(&mut bytes)?;
        hash.update(&bytes);
        self.at += LEN as u64;
        Ok(bytes)
    }

    /// What is behind the last whole batch must be what a crash leaves there.
    fn check_rest(mut self, is_active: bool) -> Result<Rest, StoreError> {
        // How far it looked like a batch.
        let parsed = self.at;
        let mut rest = Vec::new();
        self.file.seek(SeekFrom::Start(self.whole)).map_err(unreadable(self.path))?;
        self.file.read_to_end(&mut rest).map_err(unreadable(self.path))?;
        let zeros = rest.iter().rev().take_while(|&&byte| byte == 0).count();
        let data = &rest[..rest.len() - zeros];
        let start = self.whole;
        if data.is_empty() {
            return Ok(Rest::Empty);
        }
        // A whole batch does not end in a zero: what was only begun is parsed into the zeros, or to the file's end.
        let is_beginning = parsed > start + data.len() as u64;
        if is_active && is_beginning && !data.ends_with(BATCH_MAGIC) {
            tracing::info!(
                journal = %self.path.display(), at = start, bytes = data.len(),
                "the last write was cut short by a crash, and is dropped"
            );
            return Ok(Rest::Torn);
        }
        let is_torn = if self.is_altered {
            let batch_len = usize::try_from(parsed - start).unwrap_or(usize::MAX);
            has_lost_page(&rest[..batch_len.min(rest.len())], start)
        } else {
            has_hole(data, start)
        };
        if is_active && is_torn {
            tracing::warn!(
                journal = %self.path.display(), at = start, bytes = data.len(),
                "writes that were not flushed before a power cut are lost"
            );
            return Ok(Rest::Torn);
        }
        let bytes = data.len();
        Err(damaged(
            self.path,
            format!("{bytes} bytes from byte {start} are no batch, and were not left by a crash"),
        ))
    }
}

/// Whether there is a page whose last bytes are zeros, and something behind it.
fn has_hole(data: &[u8], start: u64) -> bool {
    let into_page = usize::try_from(start % PAGE_LEN as u64).unwrap_or(0);
    let ends = (PAGE_LEN - into_page..data.len()).step_by(PAGE_LEN);
    ends.into_iter().any(|end| {
        let tail = end.checked_sub(HOLE_LEN_MIN).map(|tail_start| &data[tail_start..end]);
        tail.is_some_and(|tail| tail.iter().all(|&byte| byte == 0))
    })
}

/// Whether there are zeros that fill pages, and end about where these do.
fn has_lost_page(batch: &[u8], start: u64) -> bool {
    let into_page = usize::try_from(start % PAGE_LEN as u64).unwrap_or(0);
    let mut run_start = 0;
    batch.chunk_by(|&a, &b| (a == 0) == (b == 0)).any(|run| {
        let (from, to) = (into_page + run_start, into_page + run_start + run.len());
        run_start += run.len();
        let (first, last) = (from.next_multiple_of(PAGE_LEN), to - to % PAGE_LEN);
        run[0] == 0 && first < last && first - from < HOLE_EDGE_MAX && to - last < HOLE_EDGE_MAX
    })
}

/// Little-endian numbers, one after the other.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        self.take(LEN)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}
