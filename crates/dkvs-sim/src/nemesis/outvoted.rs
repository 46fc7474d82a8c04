//! An owner loses something while another one is behind, and the rest cannot be reached.
//!
//! ```text
//!   missed     nobody reaches one owner, which misses what is written
//!   damaged    that one is back; bits flip in another owner's record, and nobody reaches any third one
//!
//!   missed     as above, while the commits of another owner are slow, and fail now and then
//!   restarted  both are back, and nobody reaches any third one
//! ```
//! Who takes what the owner that is back has for all there is brings back what was replaced. Who acknowledges what was not
//! committed leaves it to those that are behind.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, QUIET, Strike, shuffled};
use crate::disk::DiskConditions;
use crate::plan::{Plan, pick};
use crate::shared::Host;
use crate::world::{World, owner};

/// What happens to owners of a key, who are named by their places in its preference list.
#[derive(Clone, Copy, Debug)]
pub enum OutvotedFault {
    /// Nothing passes to this owner of this key, nor from it.
    Unreachable(usize, usize),
    /// Bits flip in what this owner holds of this key.
    Flip(usize, usize),
    /// This owner's commits take up to this long, and some fail.
    Dying(usize, usize, Duration),
}

/// How often a commit of a dying disk fails.
const FAILING: f64 = 0.2;

/// Now and then, in half of the runs.
pub(super) fn plan(plan: &Plan, random: &mut StdRng) -> Vec<Strike> {
    if !random.random_bool(0.5) {
        return Vec::new();
    }
    let mut strikes = Vec::new();
    let mut at = QUIET;
    while at < plan.chaos_max() {
        at += Duration::from_secs(4).mul_f64(random.random_range(0.0..1.0));
        let missed = plan.timeout.mul_f64(random.random_range(0.5..2.0));
        let lasts = Duration::from_secs(3).mul_f64(random.random_range(0.0..1.0));
        strikes.extend(outvoted(plan, at, missed, lasts, random));
        at += missed + lasts;
    }
    strikes
}

fn outvoted(
    plan: &Plan,
    at: Duration,
    missed: Duration,
    lasts: Duration,
    random: &mut StdRng,
) -> Vec<Strike> {
    let key = random.random_range(0..plan.keys.len());
    let copies = plan.keys[key].n_max();
    let mut places = shuffled(plan, random).into_iter().filter(|&place| place < copies);
    let (Some(behind), Some(victim)) = (places.next(), places.next()) else { return Vec::new() };
    let strike = |at, lasts, fault| Strike { at, lasts, fault: Fault::Outvoted(fault) };
    let lost = if plan.damage && random.random_bool(0.5) {
        strike(at + missed, lasts, OutvotedFault::Flip(key, victim))
    } else {
        let slow = Duration::from_millis(*pick(&[50, 200], random));
        strike(at, missed, OutvotedFault::Dying(key, victim, slow))
    };
    let apart = places.map(|place| strike(at + missed, lasts, OutvotedFault::Unreachable(key, place)));
    let behind = strike(at, missed, OutvotedFault::Unreachable(key, behind));
    [behind, lost].into_iter().chain(apart).collect()
}

/// Both directions of all links of one machine.
fn links(world: &World, host: Host) -> Vec<(Host, Host)> {
    let others = (0..world.shared.ips.len()).filter(|&other| other != host);
    others.flat_map(|other| [(host, other), (other, host)]).collect()
}

impl OutvotedFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        match *self {
            Self::Unreachable(key, place) => {
                let owner = owner(&world.shared, key, place);
                links(world, owner).into_iter().for_each(|(from, to)| world.cut(from, to));
                true
            }
            Self::Flip(key, place) => {
                let owner = owner(&world.shared, key, place);
                let name = world.shared.plan.keys[key].name.clone();
                world.flip(owner, Some(&name))
            }
            Self::Dying(key, place, slow) => world.set_disk(owner(&world.shared, key, place), |disk| {
                (disk.write_max, disk.flush_max, disk.write_fault) = (slow, slow, FAILING);
            }),
        }
    }

    pub(super) fn end(&self, world: &mut World) {
        match *self {
            Self::Unreachable(key, place) => {
                let owner = owner(&world.shared, key, place);
                links(world, owner).into_iter().for_each(|(from, to)| world.mend(from, to));
            }
            Self::Flip(key, place) => world.start(owner(&world.shared, key, place)),
            Self::Dying(key, place, _) => {
                let owner = owner(&world.shared, key, place);
                let healthy = DiskConditions::healthy();
                world.set_disk(owner, |disk| {
                    (disk.write_max, disk.flush_max) = (healthy.write_max, healthy.flush_max);
                    disk.write_fault = 0.0;
                });
                world.restart_if_poisoned(owner);
            }
        }
    }
}
