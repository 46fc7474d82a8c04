//! What was forgotten, remembered: a history as if nobody had lost knowledge with a tombstone that was removed.
//!
//! A tombstone may be removed once nothing is left of what it replaced. Whoever looks at the key after that knows less than those
//! before, and shows nothing that they had seen replaced. So it makes no difference to anybody if what was forgotten is taken to be
//! known to everybody from then on, and everything else that is promised holds word by word. The tombstones themselves may be shown
//! or not, as what has expired: a put that comes later has not heard of them, and need not have replaced them.
//!
//! ```text
//!   vector {A2}   shows -      a delete, A2, is forgotten       a get then:   vector {}        shows nothing
//!                                                               as taken:     vector {A2}      shows nothing, and may
//! ```
//! What has come back is still seen as such: it is not taken away.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use dkvs_core::record::Record;
use dkvs_core::servers::ServerIndex;

use crate::history::{DiskCensus, History, Micros, Outcome};

/// The history as if everybody knew what was forgotten before.
#[must_use]
pub fn remembered(history: &History) -> Cow<'_, History> {
    if history.reaped.is_empty() {
        return Cow::Borrowed(history);
    }
    let mut remembered = history.clone();
    for operation in &mut remembered.operations {
        let ended = operation.returned.unwrap_or(Micros::MAX);
        if let Outcome::Read { context, .. } = &mut operation.outcome {
            context.merge(forgotten(history, &operation.key, ended).vv());
        }
    }
    remember(history, &mut remembered.quiet_disks, history.quiet_at);
    remember(history, &mut remembered.disks, Micros::MAX);
    Cow::Owned(remembered)
}

/// Has disks know at some time what was forgotten by then.
fn remember(history: &History, disks: &mut BTreeMap<ServerIndex, DiskCensus>, at: Micros) {
    let keys: BTreeSet<&str> = history.reaped.iter().map(|reaped| reaped.key.as_str()).collect();
    for key in keys {
        let forgotten = forgotten(history, key, at);
        if forgotten.vv().is_empty() {
            continue;
        }
        for (server, disk) in &mut *disks {
            let mut owners = history.owners.iter().filter(|((name, _), _)| name == key);
            if disk.contains_key(key) || owners.any(|(_, owners)| owners.contains(server)) {
                remember_one(disk, key, &forgotten);
            }
        }
    }
}

/// Has a disk know what was forgotten, whether it has forgotten it already or not yet.
fn remember_one(disk: &mut DiskCensus, key: &str, forgotten: &Record) {
    let held = disk.entry(key.to_owned()).or_default();
    let mut vv = held.vv().clone();
    vv.merge(forgotten.vv());
    let stays = held.siblings().iter().filter(|sibling| !forgotten.holds(sibling.dot)).cloned();
    if let Some(record) = Record::from_parts(vv, stays.collect()) {
        *held = record;
    }
}

/// What was forgotten of a key by some time.
#[must_use]
pub fn forgotten(history: &History, key: &str, by: Micros) -> Record {
    let mut all = Record::new();
    let reaped = history.reaped.iter().filter(|reaped| reaped.key == key && reaped.at <= by);
    reaped.for_each(|reaped| all.merge(&reaped.record));
    all
}
