//! Disks that are slow, that fail, or that lose what was on them.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, server};
use crate::disk::DiskConditions;
use crate::plan::{DISK_FREE_BYTES_MIN, Plan, pick};
use crate::shared::Host;
use crate::world::World;

/// A disk misbehaves or is damaged.
#[derive(Clone, Debug)]
pub enum DiskFault {
    /// The disk is emptied while its server is killed.
    Wipe(Host),
    /// A copy of all disks is made, for later.
    Copy,
    /// The last copy is put back while the server is killed.
    Restore(Host),
    /// Bits flip in a stored record.
    Flip(Host),
    /// Commits take up to this long.
    Slow(Host, Duration),
    /// Reads fail this once with the first probability; commits fail, and poison, with the second.
    Failing(Host, f64, f64),
    /// So many bytes are free. In the end there is space, and the server is started again if its store was poisoned.
    Full(Host, u64),
}

/// One that needs [`World::may_damage`].
pub(super) fn damage(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let server = server(plan, random);
    let fault = match random.random_range(0..5) {
        0 => DiskFault::Wipe(server),
        1 | 2 => DiskFault::Copy,
        3 => DiskFault::Restore(server),
        _ => DiskFault::Flip(server),
    };
    plan.damage.then_some(Fault::Disk(fault))
}

pub(super) fn slow(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let longest = Duration::from_millis(*pick(&[20, 100, 500], random));
    Some(Fault::Disk(DiskFault::Slow(server(plan, random), longest)))
}

pub(super) fn failing(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let server = server(plan, random);
    let fault = match random.random_range(0..3) {
        0 => DiskFault::Failing(server, random.random_range(0.0..0.1), 0.0),
        1 => DiskFault::Failing(server, 0.0, random.random_range(0.0..0.1)),
        _ => {
            // Room for nothing at all, for upkeep, and none: the disk was filled by somebody else in one go.
            let free = *pick(&[DISK_FREE_BYTES_MIN - 1, DISK_FREE_BYTES_MIN / 4 - 1, 0], random);
            DiskFault::Full(server, free)
        }
    };
    Some(Fault::Disk(fault))
}

impl DiskFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        match *self {
            Self::Wipe(server) => world.wipe(server),
            Self::Copy => {
                world.copy_disks();
                false
            }
            Self::Restore(server) => world.restore(server),
            Self::Flip(server) => world.flip(server, None),
            Self::Slow(server, longest) => world.set_disk(server, |disk| {
                (disk.write_max, disk.flush_max) = (longest, longest);
            }),
            Self::Failing(server, reads, writes) => world.set_disk(server, |disk| {
                (disk.read_fault, disk.write_fault) = (reads, writes);
            }),
            Self::Full(server, free) => world.set_disk(server, |disk| disk.free = free),
        }
    }

    pub(super) fn end(&self, world: &mut World) {
        let healthy = DiskConditions::healthy();
        match *self {
            Self::Copy => {}
            Self::Wipe(server) | Self::Restore(server) => world.start(server),
            Self::Flip(server) => world.start(server),
            Self::Slow(server, _) => {
                world.set_disk(server, |disk| {
                    (disk.write_max, disk.flush_max) = (healthy.write_max, healthy.flush_max);
                });
            }
            Self::Failing(server, ..) => {
                world.set_disk(server, |disk| (disk.read_fault, disk.write_fault) = (0.0, 0.0));
                world.restart_if_poisoned(server);
            }
            Self::Full(server, _) => {
                world.set_disk(server, |disk| disk.free = healthy.free);
                world.restart_if_poisoned(server);
            }
        }
    }
}
