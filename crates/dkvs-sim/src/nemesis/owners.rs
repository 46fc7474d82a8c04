//! Faults that hit the owners of one key in concert.
//!
//! An owner loses something while another one is behind, and the rest cannot be reached:
//! ```text
//!   missed     nobody reaches one owner, which misses what is written
//!   damaged    that one is back; bits flip in another owner's record, and nobody reaches any third one
//!
//!   missed     as above, while the commits of another owner are slow, and fail now and then
//!   restarted  both are back, and nobody reaches any third one
//! ```
//! Who takes what the owner that is back has for all there is brings back what was replaced. Who acknowledges what was not
//! committed leaves it to those that are behind.
//!
//! Or one owner misses the last writes of a key that nobody uses afterwards, so that nothing but hints brings them to it:
//! ```text
//!   missed     nobody reaches the owner, or it comes and goes; commits of the others may be slow
//!   retired    the key's last write has been called
//!   kept       whoever has to keep something for the owner has done so: the others lose power, and start again
//!   delivered  the owner can be reached
//! ```
//!
//! Or two owners of a key cannot reach each other when everybody else reaches both, while what is deleted may be forgotten:
//! ```text
//!   hinted     some clients never reach the first owner; the second keeps for the third what these write
//!   deleted    by others, through the first owner, which reaches both
//!   forgotten  nobody writes the key any more; the second still keeps what it kept
//!   delivered  the second reaches the third
//! ```
//!
//! Or, with disks that are flushed late and no other fault, one owner loses power around the time at which what was deleted is
//! forgotten:
//! ```text
//!   forgotten  nobody writes the key; all have said that they hold the tombstone, and remove it
//!   lost       power, and with it what one of them had not flushed
//! ```

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, QUIET, Strike, shuffled};
use crate::disk::DiskConditions;
use crate::invariants::acknowledged_writes_reach_all_owners::HINTED;
use crate::plan::{Plan, Rests, pick};
use crate::seed;
use crate::shared::Host;
use crate::world::{World, owner};

/// What happens to owners of a key, who are named by their places in its preference list.
#[derive(Clone, Copy, Debug)]
pub enum OwnerFault {
    /// Nothing passes to this owner of this key, nor from it.
    Unreachable(usize, usize),
    /// The same, coming and going in this rhythm.
    ComesAndGoes(usize, usize, Duration),
    /// Nothing passes between these two owners of this key.
    Estranged(usize, usize, usize),
    /// Nothing passes between this owner of this key and a machine with clients.
    Shunned(usize, usize, Host),
    /// Bits flip in what this owner holds of this key.
    Flip(usize, usize),
    /// This owner's commits take up to this long.
    Slow(usize, usize, Duration),
    /// The same, and some fail.
    Dying(usize, usize, Duration),
    /// This owner's machine loses power.
    PowerCut(usize, usize),
}

/// How often a commit of a dying disk fails.
const FAILING: f64 = 0.2;

/// All of a run's.
pub(super) fn plan(plan: &Plan) -> Vec<Strike> {
    let mut strikes = outvoted_now_and_then(plan, &mut seed::random(plan.seed, "outvoted", 0));
    for (number, key) in plan.keys.iter().enumerate() {
        let mut random = seed::random(plan.seed, "last writes", number as u64);
        strikes.extend(key.retires.into_iter().flat_map(|at| last_writes(plan, number, at, &mut random)));
        let mut random = seed::random(plan.seed, "estranged", number as u64);
        strikes.extend(key.rests.into_iter().flat_map(|rests| estranged(plan, number, rests, &mut random)));
    }
    strikes
}

/// In half of the runs.
fn outvoted_now_and_then(plan: &Plan, random: &mut StdRng) -> Vec<Strike> {
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
    let strike = |at, lasts, fault| Strike { at, lasts, fault: Fault::Owners(fault) };
    let lost = if plan.damage && random.random_bool(0.5) {
        strike(at + missed, lasts, OwnerFault::Flip(key, victim))
    } else {
        let slow = Duration::from_millis(*pick(&[50, 200], random));
        strike(at, missed, OwnerFault::Dying(key, victim, slow))
    };
    let apart = places.map(|place| strike(at + missed, lasts, OwnerFault::Unreachable(key, place)));
    let behind = strike(at, missed, OwnerFault::Unreachable(key, behind));
    [behind, lost].into_iter().chain(apart).collect()
}

fn last_writes(plan: &Plan, key: usize, retires: Duration, random: &mut StdRng) -> Vec<Strike> {
    let copies = plan.keys[key].n_max();
    let mut places = shuffled(plan, random).into_iter().filter(|&place| place < copies);
    let (Some(behind), others) = (places.next(), places.collect::<Vec<_>>()) else { return Vec::new() };
    let missed = plan.timeout.mul_f64(random.random_range(0.1..2.0));
    let kept = retires + plan.timeout + HINTED;
    let cut = kept + HINTED.mul_f64(random.random_range(0.0..1.0));
    let lasts = HINTED.mul_f64(random.random_range(0.0..1.0));
    let from = retires.saturating_sub(missed).max(QUIET);
    let strike = |at, until, fault| Strike { at, lasts: until - at, fault: Fault::Owners(fault) };
    let mut strikes = Vec::new();
    if random.random_bool(0.5) {
        strikes.push(strike(from, cut + lasts, OwnerFault::Unreachable(key, behind)));
        strikes
            .extend(others.iter().map(|&place| strike(cut, cut + lasts, OwnerFault::PowerCut(key, place))));
    } else {
        let period = Duration::from_millis(*pick(&[50, 200, 1_000], random));
        strikes.push(strike(from, kept, OwnerFault::ComesAndGoes(key, behind, period)));
        let slow = Duration::from_millis(*pick(&[0, 100, 500], random));
        strikes.extend(others.iter().map(|&place| strike(from, kept, OwnerFault::Slow(key, place, slow))));
    }
    strikes
}

/// Around each of the times in which nobody writes the key.
fn estranged(plan: &Plan, key: usize, rests: Rests, random: &mut StdRng) -> Vec<Strike> {
    let mut strikes = Vec::new();
    if plan.keys[key].n_max() < 3 || plan.client_hosts < 2 || random.random_bool(0.5) {
        return strikes;
    }
    let strike = |at, lasts, fault| Strike { at, lasts, fault: Fault::Owners(fault) };
    let client = usize::from(plan.servers + random.random_range(0..plan.client_hosts));
    strikes.push(strike(QUIET, plan.chaos_max(), OwnerFault::Shunned(key, 0, client)));
    for begins in rests.begins(plan.chaos_max()) {
        let hinted = plan.timeout.mul_f64(random.random_range(1.0..6.0));
        let forgotten = rests.lasts.mul_f64(random.random_range(0.7..1.0));
        let at = begins.saturating_sub(hinted).max(QUIET);
        strikes.push(strike(at, begins.saturating_sub(at) + forgotten, OwnerFault::Estranged(key, 1, 2)));
    }
    strikes
}

/// In runs with disks that are flushed late: around the times at which what was deleted is forgotten.
pub(super) fn power_cuts(plan: &Plan) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for (number, key) in plan.keys.iter().enumerate() {
        let mut random = seed::random(plan.seed, "power cuts", number as u64);
        let Some(rests) = key.rests else { continue };
        for begins in rests.begins(plan.chaos_max()) {
            let at = begins + rests.lasts.mul_f64(random.random_range(0.3..1.2));
            let lasts = Duration::from_secs(1).mul_f64(random.random_range(0.0..1.0));
            let fault = Fault::Owners(OwnerFault::PowerCut(number, random.random_range(0..key.n_max())));
            strikes.push(Strike { at, lasts, fault });
        }
    }
    strikes.sort_by_key(|strike| strike.at);
    strikes
}

/// Both directions of all links of one machine.
fn links(world: &World, host: Host) -> Vec<(Host, Host)> {
    let others = (0..world.shared.ips.len()).filter(|&other| other != host);
    others.flat_map(|other| [(host, other), (other, host)]).collect()
}

impl OwnerFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        match *self {
            Self::Unreachable(key, place) => {
                let owner = owner(&world.shared, key, place);
                links(world, owner).into_iter().for_each(|(from, to)| world.cut(from, to));
                true
            }
            Self::Estranged(key, one, other) => {
                let [one, other] = [one, other].map(|place| owner(&world.shared, key, place));
                [(one, other), (other, one)].into_iter().for_each(|(from, to)| world.cut(from, to));
                true
            }
            Self::Shunned(key, place, client) => {
                let owner = owner(&world.shared, key, place);
                [(owner, client), (client, owner)].into_iter().for_each(|(from, to)| world.cut(from, to));
                true
            }
            Self::ComesAndGoes(key, place, period) => {
                let links = links(world, owner(&world.shared, key, place));
                world.flap(links, period);
                true
            }
            Self::PowerCut(key, place) => {
                world.cut_power(owner(&world.shared, key, place));
                true
            }
            Self::Slow(key, place, slow) => world.set_disk(owner(&world.shared, key, place), |disk| {
                (disk.write_max, disk.flush_max) = (slow, slow);
            }),
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
            Self::Estranged(key, one, other) => {
                let [one, other] = [one, other].map(|place| owner(&world.shared, key, place));
                [(one, other), (other, one)].into_iter().for_each(|(from, to)| world.mend(from, to));
            }
            Self::Shunned(key, place, client) => {
                let owner = owner(&world.shared, key, place);
                [(owner, client), (client, owner)].into_iter().for_each(|(from, to)| world.mend(from, to));
            }
            Self::ComesAndGoes(key, place, _) => {
                let links = links(world, owner(&world.shared, key, place));
                world.stop_flapping(&links);
            }
            Self::Flip(key, place) | Self::PowerCut(key, place) => {
                world.start(owner(&world.shared, key, place));
            }
            Self::Slow(key, place, _) | Self::Dying(key, place, _) => {
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
