//! What breaks, when, and for how long.
//!
//! A [`Fault`] strikes the [`World`] at some time and is undone at another; several may be under way at once. Each kind
//! has a file that draws one at random, starts it and ends it. To add one, add a variant there.
//!
//! # How much a disk may suffer
//! No store survives the loss of every copy, so damage is limited, by `World::may_damage`: in a run that damages disks
//! every write asks for at least two acknowledgements, and only one server's disk is damaged until the auditor has read
//! every key with R = N, begun after that server was back. So no acknowledged record is ever damaged on more than
//! W - 1 of the servers that acknowledged it. Damage is an emptied disk, an older copy put back, a flipped bit in a
//! stored record, and a power cut that takes what was acknowledged but not flushed (with the durability levels that
//! allow it). A power cut with `fsync`, and a killed process, are no damage: they may hit everybody at once.

mod clock;

mod disk;

mod late;

mod network;

mod owners;

mod process;

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::plan::{Plan, pick};
use crate::seed;
use crate::world::World;

pub use clock::ClockFault;
pub use disk::DiskFault;
pub use late::LateFault;
pub use network::NetworkFault;
pub use owners::OwnerFault;
pub use process::ProcessFault;

/// Something that breaks.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Between machines.
    Network(NetworkFault),
    /// A process ends or stalls.
    Process(ProcessFault),
    /// A disk misbehaves or is damaged.
    Disk(DiskFault),
    /// A wall clock is wrong.
    Clock(ClockFault),
    /// Requests and answers arrive when their senders have gone on.
    Late(LateFault),
    /// The owners of a key are struck in concert.
    Owners(OwnerFault),
}

/// A fault with its time.
#[derive(Clone, Debug)]
pub struct Strike {
    /// When it strikes, since the run began.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

/// No fault strikes before this: the servers are up and have said hello.
const QUIET: Duration = Duration::from_millis(200);

/// The faults of a run, in the order in which they strike.
pub(crate) fn plan(plan: &Plan) -> Vec<Strike> {
    if plan.is_flushed_late {
        return owners::power_cuts(plan);
    }
    let mut strikes = mixed(plan, &mut seed::random(plan.seed, "nemesis", 0));
    strikes.extend(late::plan(plan, &mut seed::random(plan.seed, "late", 0)));
    strikes.extend(owners::plan(plan));
    if plan.reap_interval.is_some() {
        strikes.retain(|strike| !matches!(strike.fault, Fault::Disk(DiskFault::Restore(_))));
    }
    strikes.sort_by_key(|strike| strike.at);
    strikes
}

/// A few kinds out of all, at random times.
fn mixed(plan: &Plan, random: &mut StdRng) -> Vec<Strike> {
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|_| random.random_bool(0.4)).collect();
    if kinds.is_empty() {
        return Vec::new();
    }
    let gap_max = plan.chaos / *pick(&[3, 10, 30], random);
    let lasts_max = plan.chaos / *pick(&[1, 3, 10, 30], random);
    let mut strikes = Vec::new();
    let mut at = QUIET;
    while at < plan.chaos_max() {
        at += gap_max.mul_f64(random.random_range(0.0..1.0));
        let lasts = lasts_max.mul_f64(random.random_range(0.0..1.0));
        if let Some(fault) = pick(&kinds, random)(plan, random) {
            strikes.push(Strike { at, lasts, fault });
        }
    }
    strikes
}

/// Draws a fault of one kind; `None` when the run has no use for it.
type Kind = fn(&Plan, &mut StdRng) -> Option<Fault>;

const KINDS: [Kind; 16] = [
    network::storm,
    network::bad_host,
    network::isolation,
    network::one_way,
    network::split,
    network::bridge,
    network::ring_of_majorities,
    network::clog,
    process::kill,
    process::power_cut,
    process::stop,
    process::pause,
    disk::damage,
    disk::slow,
    disk::failing,
    clock::wrong,
];

impl Fault {
    /// Strikes. Returns whether there is anything to undo; a fault that the world does not allow now does nothing.
    pub(crate) fn start(&self, world: &mut World) -> bool {
        match self {
            Self::Network(fault) => fault.start(world),
            Self::Process(fault) => fault.start(world),
            Self::Disk(fault) => fault.start(world),
            Self::Clock(fault) => fault.start(world),
            Self::Late(fault) => fault.start(world),
            Self::Owners(fault) => fault.start(world),
        }
    }

    /// Ends what [`Fault::start`] began.
    pub(crate) fn end(&self, world: &mut World) {
        match self {
            Self::Network(fault) => fault.end(world),
            Self::Process(fault) => fault.end(world),
            Self::Disk(fault) => fault.end(world),
            Self::Clock(fault) => fault.end(world),
            Self::Late(fault) => fault.end(world),
            Self::Owners(fault) => fault.end(world),
        }
    }
}

/// A server of the run.
fn server(plan: &Plan, random: &mut StdRng) -> usize {
    random.random_range(0..usize::from(plan.servers))
}

/// A server or a machine with clients.
fn host(plan: &Plan, random: &mut StdRng) -> usize {
    random.random_range(0..usize::from(plan.servers + plan.client_hosts))
}

/// All servers, in random order.
fn shuffled(plan: &Plan, random: &mut StdRng) -> Vec<usize> {
    use rand::seq::SliceRandom;
    let mut servers: Vec<usize> = (0..usize::from(plan.servers)).collect();
    servers.shuffle(random);
    servers
}
