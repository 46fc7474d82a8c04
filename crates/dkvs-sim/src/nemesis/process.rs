//! Processes that end or stall.
//!
//! turmoil cannot pause a host. A pause is imitated: all the machine's links hold back what is sent either way, its disk
//! stands still, and so does its wall clock, which jumps when it goes on. What is not imitated: its timers go on, so
//! that it notices its own deadlines during the pause rather than all at once after it.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, host, server};
use crate::plan::Plan;
use crate::shared::Host;
use crate::world::World;

/// A process ends or stalls.
#[derive(Clone, Debug)]
pub enum ProcessFault {
    /// These servers are killed; the machines stay up.
    Kill(Vec<Host>),
    /// These servers' machines lose power.
    PowerCut(Vec<Host>),
    /// This server is stopped in order.
    Stop(Host),
    /// Nothing happens on this machine for a while.
    Pause(Host),
}

/// One server, or now and then several or all.
fn some(plan: &Plan, random: &mut StdRng) -> Vec<Host> {
    match random.random_range(0..10) {
        0 => (0..usize::from(plan.servers)).collect(),
        1 | 2 => (0..usize::from(plan.servers)).filter(|_| random.random_bool(0.5)).collect(),
        _ => vec![server(plan, random)],
    }
}

pub(super) fn kill(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Process(ProcessFault::Kill(some(plan, random))))
}

pub(super) fn power_cut(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Process(ProcessFault::PowerCut(some(plan, random))))
}

pub(super) fn stop(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Process(ProcessFault::Stop(server(plan, random))))
}

pub(super) fn pause(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Process(ProcessFault::Pause(host(plan, random))))
}

impl ProcessFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        match self {
            Self::Kill(servers) => servers.iter().for_each(|&server| world.kill(server)),
            Self::PowerCut(servers) => servers.iter().for_each(|&server| world.cut_power(server)),
            Self::Stop(server) => world.stop(*server),
            Self::Pause(host) => world.pause(*host),
        }
        true
    }

    pub(super) fn end(&self, world: &mut World) {
        match self {
            Self::Kill(servers) | Self::PowerCut(servers) => {
                servers.iter().for_each(|&server| world.start(server));
            }
            Self::Stop(server) => world.start(*server),
            Self::Pause(host) => world.unpause(*host),
        }
    }
}
