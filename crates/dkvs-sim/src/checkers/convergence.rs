//! Do the disks agree? What the owners of a key hold in the end, and what their records come to together.

use std::collections::BTreeMap;

use dkvs_core::hlc::WallMs;
use dkvs_core::record::Record;
use dkvs_core::servers::ServerIndex;

use crate::history::History;

/// The owners of a key for the largest n that any request asked for; the owners for a smaller n are the first of them.
#[must_use]
pub fn owners<'a>(history: &'a History, key: &str) -> &'a [ServerIndex] {
    let asked = history.owners.iter().filter(|((name, _), _)| name == key);
    asked.max_by_key(|((_, n), _)| n).map_or(&[], |(_, owners)| owners)
}

/// What each owner's disk holds of a key; the empty record where there is nothing.
#[must_use]
pub fn copies(history: &History, key: &str) -> BTreeMap<ServerIndex, Record> {
    let copy = |server| history.disks.get(server).and_then(|disk| disk.get(key)).cloned();
    owners(history, key).iter().map(|server| (*server, copy(server).unwrap_or_default())).collect()
}

/// What a read from all owners would find; `None` when the history has no disks.
#[must_use]
pub fn merged(history: &History, key: &str) -> Option<Record> {
    let mut copies = copies(history, key).into_values();
    let first = copies.next().filter(|_| !history.disks.is_empty())?;
    Some(copies.fold(first, |mut all, copy| {
        all.merge(&copy);
        all
    }))
}

/// Two owners that hold different records of a key, with what they hold, but for bytes of values that expire: each server
/// drops them when it comes by.
#[must_use]
pub fn disagreement(history: &History, key: &str) -> Option<[(ServerIndex, Record); 2]> {
    let mut copies = copies(history, key).into_iter();
    let first = copies.next()?;
    let without_expiring = |record: &Record| {
        let mut record = record.clone();
        record.drop_expired(WallMs::MAX);
        record
    };
    let ours = without_expiring(&first.1);
    let other = copies.find(|(_, record)| without_expiring(record) != ours)?;
    Some([first, other])
}
