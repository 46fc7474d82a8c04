//! An answer says truly who counted: owners, and who stood in for them (*Sloppy quorums* in docs/consistency.md).
//!
//! 1. A strict answer names no stand-in. Every answer names as many owners and stand-ins together as its quorum needs, each
//!    server once; the owners are owners of the key for the N asked for, no stand-in is one, and each stands in for another owner,
//!    which is not named itself.
//! 2. When a put or delete was answered, each owner named had written it as its own record, and each stand-in in a hint for the
//!    owner for whom it stood in. Excused are owners whose record of the key was flipped before: what takes its place is not
//!    recorded until it is repaired.
//! 3. Such a hint is never dropped, not over the budget and not by the end of its holder: when all faults have ended and no hint is left,
//!    the owner knows the write. Excused is an owner when its disk or the stand-in's was wiped, restored or (unless the level is
//!    `fsync`) cut off before a flush since the call, or the owner's record of the key was flipped since, or is not repaired.
//!
//! Not checked: of gets, who really answered; a write of which no event was seen; whether a hint was as durable as it was to be, but by
//! what power cuts take.

use std::collections::BTreeSet;

use dkvs_core::servers::ServerIndex;
use dkvs_core::version::Dot;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Write, in_words};
use crate::history::{Counted, Damage, History, Operation};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let history = evidence.history;
    for key in evidence.keys.values() {
        let operations = key.writes.iter().map(|write| write.op).chain(key.reads.iter().map(|read| read.op));
        for op in operations {
            if let Some(counted) = history.counted.get(&op.id) {
                findings
                    .claim(adds_up(history, op, counted), || format!("{} names {counted:?}", in_words(op)));
            }
        }
        for write in &key.writes {
            let Fate::Acknowledged(context) = write.fate else { continue };
            let Some(counted) = history.counted.get(&write.op.id) else { continue };
            let dots: Vec<Dot> = write.dots.iter().copied().filter(|&dot| context.covers(dot)).collect();
            if !dots.is_empty() {
                was_held(history, key, (write, &dots), counted, findings);
                came_home(history, key, (write, &dots), counted, findings);
            }
        }
    }
}

fn adds_up(history: &History, op: &Operation, Counted { owners, stand_ins }: &Counted) -> bool {
    let Some(all) = history.owners.get(&(op.key.clone(), op.n)) else { return true };
    let servers: BTreeSet<_> = owners.iter().chain(stand_ins.iter().map(|(server, _)| server)).collect();
    let slots: BTreeSet<_> = owners.iter().chain(stand_ins.iter().map(|(_, owner)| owner)).collect();
    let named = owners.len() + stand_ins.len();
    (op.sloppy || stand_ins.is_empty())
        && (servers.len(), slots.len()) == (named, named)
        && named >= op.quorum
        && slots.into_iter().all(|owner| all.contains(owner))
        && stand_ins.iter().all(|(server, _)| !all.contains(server))
}

fn was_held(
    history: &History,
    key: &Key<'_>,
    (write, dots): (&Write<'_>, &[Dot]),
    Counted { owners, stand_ins }: &Counted,
    findings: &mut Findings,
) {
    let own = owners.iter().map(|&owner| (owner, None));
    for (server, owner) in own.chain(stand_ins.iter().map(|&(server, owner)| (server, Some(owner)))) {
        let stored = history.stored.get(&(server, key.name.to_owned()));
        let is_it = |stored: &crate::history::Stored| {
            let hint_for = stored.hint_for.and_then(|target| history.targets.get(&target).copied());
            hint_for == owner
                && write.op.returned.is_none_or(|returned| stored.at <= returned)
                && dots.iter().any(|&dot| stored.vv.covers(dot))
        };
        let is_flipped = history.damage.iter().any(|damage| match damage {
            Damage::Flipped { server: hit, at, key: flipped } => {
                *hit == server
                    && flipped == key.name
                    && write.op.returned.is_none_or(|returned| *at <= returned)
            }
            Damage::Wiped { .. } | Damage::Restored { .. } | Damage::Unflushed { .. } => false,
        });
        if owner.is_none() && is_flipped {
            continue;
        }
        findings.claim(stored.is_some_and(|stored| stored.iter().any(is_it)), || {
            let what = in_words(write.op);
            match owner {
                Some(owner) => {
                    format!("{what} counts server {server} for {owner}, which had written no hint of it")
                }
                None => format!("{what} counts server {server}, which had not written it"),
            }
        });
    }
}

fn came_home(
    history: &History,
    key: &Key<'_>,
    (write, dots): (&Write<'_>, &[Dot]),
    counted: &Counted,
    findings: &mut Findings,
) {
    if history.quiet_disks.is_empty() {
        return;
    }
    for &(server, owner) in &counted.stand_ins {
        if is_excused(history, server, owner, key, write) {
            continue;
        }
        let record = history.quiet_disks.get(&owner).and_then(|disk| disk.get(key.name));
        let knows = record.is_some_and(|record| dots.iter().any(|&dot| record.vv().covers(dot)));
        findings.claim(knows, || {
            let what = in_words(write.op);
            format!("server {server} stood in for {owner}, which has not heard of {what}: {record:?}")
        });
    }
}

fn is_excused(
    history: &History,
    server: ServerIndex,
    owner: ServerIndex,
    key: &Key<'_>,
    write: &Write<'_>,
) -> bool {
    let is_damaged = history.damage.iter().any(|damage| match *damage {
        Damage::Unflushed { .. } if history.is_flushed => false,
        Damage::Wiped { server: hit, at }
        | Damage::Restored { server: hit, at, .. }
        | Damage::Unflushed { server: hit, at } => at >= write.op.called && (hit == server || hit == owner),
        Damage::Flipped { server: hit, at, key: ref flipped } => {
            at >= write.op.called && hit == owner && flipped == key.name
        }
    });
    is_damaged || history.quiet_damaged.contains(&(owner, key.name.to_owned()))
}
