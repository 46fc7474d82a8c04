//! Records that were found damaged here: put aside, and remembered until they are repaired.
//!
//! A record that cannot be read must not be taken for one that is not there: this server has acknowledged it, and quorums
//! count on it. So its place is taken by an *incomplete* entry ([`Stored`](crate::stored)), which gathers what is written
//! from then on and is not shown to reads; what was there is kept aside, in [`Keyspace::Meta`]:
//!
//! ```text
//!   meta/"damaged/" and the store's key   the damaged bytes, as far as they could be read
//! ```
//! These entries are also the list of what is to be repaired ([`crate::mend`]), so that a restart forgets none. All of it
//! happens in the commits of the one writer.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dkvs_storage::{Batch, Keyspace, ScanLimit, Store, StoreError};
use tokio::sync::Notify;

use crate::stored::key_of;

const PREFIX: &[u8] = b"damaged/";

/// Entries of the list that are looked at in one go.
const PAGE: ScanLimit = ScanLimit { entries_max: 64, bytes_max: 1 << 20 };

/// Whether an error says that what is on the disk is damaged, rather than that it cannot be read just now.
pub(crate) fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } => true,
        StoreError::Refused { .. }
        | StoreError::Poisoned { .. }
        | StoreError::Unknown { .. }
        | StoreError::Closed
        | StoreError::InUse { .. }
        | StoreError::Io { .. } => false,
    }
}

/// A page of entries, and what is wrong with the place behind the last of them if the page ends there as it cannot be read.
pub(crate) type Readable = (Vec<(Bytes, Bytes)>, Option<StoreError>);

/// What the engine can read of a page of records. It reads blocks of many entries: one flipped bit hides all of them, and a page with such a
/// block in it is refused as a whole.
pub(crate) fn scan_readable(
    store: &impl Store,
    after: Option<&[u8]>,
    limit: ScanLimit,
) -> Result<Readable, StoreError> {
    match store.scan(Keyspace::Records, after, limit) {
        Err(error) if is_damage(&error) => {}
        page => return page.map(|page| (page, None)),
    }
    let one = ScanLimit { entries_max: 1, ..limit };
    let mut entries: Vec<(Bytes, Bytes)> = Vec::new();
    while entries.len() < limit.entries_max {
        let after = entries.last().map(|(store_key, _)| &store_key[..]).or(after);
        match store.scan(Keyspace::Records, after, one) {
            Ok(page) if page.is_empty() => break,
            Ok(page) => entries.extend(page),
            Err(error) if is_damage(&error) => return Ok((entries, Some(error))),
            Err(error) => return Err(error),
        }
    }
    Ok((entries, None))
}

/// How much was found damaged.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    found: AtomicU64,
    again: AtomicU64,
    waiting: AtomicU64,
    /// Something is there to be repaired, or has changed.
    pub(crate) news: Notify,
}

impl Damage {
    /// Counts what an earlier run has left.
    pub(crate) fn open(store: &impl Store) -> Result<Self, StoreError> {
        let damage = Self::default();
        let mut after = None;
        loop {
            let keys = Self::page(store, after.as_ref())?;
            let Some(last) = keys.last() else { return Ok(damage) };
            damage.waiting.fetch_add(keys.len() as u64, Ordering::Relaxed);
            after = Some(last.clone());
        }
    }

    /// Records found damaged since the start.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// How often since the start a record was found damaged that was not repaired yet.
    pub(crate) fn again(&self) -> u64 {
        self.again.load(Ordering::Relaxed)
    }

    /// Records that are not repaired yet.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A batch was committed that changed the list so.
    pub(crate) fn committed(&self, ListChange { found, again, listed, mended }: ListChange) {
        self.found.fetch_add(found, Ordering::Relaxed);
        self.again.fetch_add(again, Ordering::Relaxed);
        self.waiting.fetch_add(listed, Ordering::Relaxed);
        self.waiting.fetch_sub(mended, Ordering::Relaxed);
        if found > 0 {
            self.news.notify_one();
        }
    }

    /// The store's keys of records that are not repaired yet, in order, after one of them.
    pub(crate) fn page(store: &impl Store, after: Option<&Bytes>) -> Result<Vec<Bytes>, StoreError> {
        let after = after.map_or(Bytes::from_static(PREFIX), place);
        let page = store.scan(Keyspace::Meta, Some(&after), PAGE)?;
        let ours = page.into_iter().map_while(|(place, _)| store_key_at(&place));
        Ok(ours.collect())
    }
}

/// What is left of a damaged record that is to be put aside.
#[derive(Clone, Debug)]
pub(crate) struct Remains {
    bytes: Bytes,
    /// Whether it was on the list: it may be damaged again before it is repaired. `None` if the list is damaged there too.
    was_listed: Option<bool>,
}

impl Remains {
    /// Fails when the list cannot be read just now: nobody could tell then how much there is to be repaired.
    pub(crate) fn of(store: &impl Store, store_key: &Bytes, bytes: Bytes) -> Result<Self, StoreError> {
        let was_listed = match store.get(Keyspace::Meta, &place(store_key)) {
            Ok(entry) => Some(entry.is_some()),
            Err(error) if is_damage(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { bytes, was_listed })
    }
}

/// What a batch does to the list of what is to be repaired.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ListChange {
    /// Records that were found damaged.
    found: u64,
    /// Those of them that may have been on the list, and those that may not have been.
    again: u64,
    listed: u64,
    /// Records that were repaired.
    mended: u64,
}

impl ListChange {
    /// Puts what was damaged aside.
    pub(crate) fn stage_found(&mut self, batch: &mut Batch, store_key: &Bytes, remains: Remains) {
        self.found += 1;
        self.again += u64::from(remains.was_listed != Some(false));
        self.listed += u64::from(remains.was_listed != Some(true));
        batch.put(Keyspace::Meta, place(store_key), remains.bytes);
    }

    /// Forgets what was damaged.
    pub(crate) fn stage_mended(&mut self, batch: &mut Batch, store_key: &Bytes) {
        self.mended += 1;
        batch.delete(Keyspace::Meta, place(store_key));
    }
}

/// What a log says of a damaged entry.
pub(crate) fn tell(store_key: &Bytes, reason: &str) {
    let partition = store_key.first_chunk().map(|number| u16::from_be_bytes(*number));
    let key = key_of(store_key).unwrap_or_default();
    tracing::error!(
        partition,
        key = format_args!("{:?}", String::from_utf8_lossy(&key)),
        reason,
        "a stored record is damaged: it is not shown to anybody, and will be repaired from the other owners"
    );
}

fn place(store_key: &Bytes) -> Bytes {
    [PREFIX, store_key].concat().into()
}

/// Which record a place in [`Keyspace::Meta`] is about, if it is on the list.
pub(crate) fn store_key_at(place: &Bytes) -> Option<Bytes> {
    place.starts_with(PREFIX).then(|| place.slice(PREFIX.len()..))
}
