//! What the hosts of one run share with each other and with the world.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dkvs_core::ring::Ring;
use tokio::sync::Notify;

use crate::clock::SkewedClock;
use crate::disk::Disk;
use crate::plan::Plan;
use crate::recorder::Recorder;
use crate::trace::Trace;
use crate::weather::Weather;

/// The port all servers listen on.
pub const PORT: u16 = 1234;

/// A machine of the network: servers first, then clients, then the auditor.
pub type Host = usize;

/// What one server keeps while it is down.
#[derive(Debug)]
pub struct ServerParts {
    /// Its disk.
    pub disk: Disk,
    /// Its wall clock.
    pub clock: Arc<SkewedClock>,
    /// Wakes it to look whether it is to stop.
    pub wake: Notify,
    /// Whether it is to stop in order.
    pub stop: AtomicBool,
    /// How often it was started.
    pub starts: AtomicU64,
}

/// Everything two hosts must agree on.
#[derive(Debug)]
pub struct Shared {
    /// The run.
    pub plan: Plan,
    /// The ring.
    pub ring: Arc<Ring>,
    /// Where the servers receive, in the ring's order.
    pub addresses: Vec<SocketAddr>,
    /// Every machine's address.
    pub ips: Vec<IpAddr>,
    /// The network's conditions.
    pub weather: Arc<Weather>,
    /// The events.
    pub trace: Arc<Trace>,
    /// The history.
    pub recorder: Arc<Recorder>,
    /// The servers, in the ring's order.
    pub servers: Vec<ServerParts>,
    /// How often each machine was to begin with a new client, if ever. Servers have none.
    pub renewals: Vec<AtomicU64>,
    /// Operations that clients have begun.
    pub steps: AtomicUsize,
    /// Whether the faults have ended: clients go on slowly.
    pub healed: AtomicBool,
    /// Whether clients are to finish.
    pub stopping: AtomicBool,
    /// Workers that have finished.
    pub finished: AtomicUsize,
    /// Sweeps asked for, and sweeps done, counted from 1.
    pub sweeps_wanted: AtomicU64,
    /// The last sweep that was begun after it was asked for and has succeeded.
    pub sweeps_done: AtomicU64,
}

impl Shared {
    pub(crate) fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// The number of the client that a machine is to use.
    pub(crate) fn clients_wanted(&self, host: Host) -> u64 {
        self.renewals[host].load(Ordering::Relaxed)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
