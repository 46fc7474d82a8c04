//! Bad weather, and links that are cut or clogged.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, host, server, shuffled};
use crate::plan::{Plan, pick};
use crate::shared::Host;
use crate::weather::Conditions;
use crate::world::World;

/// Between machines.
#[derive(Clone, Debug)]
pub enum NetworkFault {
    /// Loss, repetition, damage and disorder everywhere.
    Storm(Conditions),
    /// The same around one machine.
    BadHost(Host, Conditions),
    /// Nothing passes from the first machine to the second.
    Cut(Vec<(Host, Host)>),
    /// As `Cut`, but coming and going in this rhythm.
    Flapping(Vec<(Host, Host)>, Duration),
    /// What is sent between the two waits, and arrives all at once in the end.
    Clog(Host, Host),
}

fn conditions(random: &mut StdRng) -> Conditions {
    let mut some = |max: f64| if random.random_bool(0.5) { random.random_range(0.0..max) } else { 0.0 };
    let (loss, duplication, corruption, delay) = (some(0.3), some(0.5), some(0.1), some(0.5));
    let delay_max = Duration::from_millis(*pick(&[5, 50, 500, 2_000], random));
    Conditions { loss, duplication, corruption, delay, delay_max }
}

pub(super) fn storm(_: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Network(NetworkFault::Storm(conditions(random))))
}

pub(super) fn bad_host(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    Some(Fault::Network(NetworkFault::BadHost(host(plan, random), conditions(random))))
}

/// Both directions between each of `a` and each of `b`.
fn between(a: &[Host], b: &[Host]) -> Vec<(Host, Host)> {
    a.iter().flat_map(|&a| b.iter().flat_map(move |&b| [(a, b), (b, a)])).filter(|(a, b)| a != b).collect()
}

/// A partition that is either steady or comes and goes.
fn cut(pairs: Vec<(Host, Host)>, random: &mut StdRng) -> Option<Fault> {
    let fault = if random.random_bool(0.2) {
        NetworkFault::Flapping(pairs, Duration::from_millis(*pick(&[20, 100, 500], random)))
    } else {
        NetworkFault::Cut(pairs)
    };
    Some(Fault::Network(fault))
}

fn machines(plan: &Plan) -> Vec<Host> {
    (0..usize::from(plan.servers + plan.client_hosts)).collect()
}

/// One server loses everybody; or only all servers, or only all clients.
pub(super) fn isolation(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let victim = server(plan, random);
    let servers = usize::from(plan.servers);
    let others: Vec<Host> = match random.random_range(0..3) {
        0 => machines(plan),
        1 => (0..servers).collect(),
        _ => (servers..servers + usize::from(plan.client_hosts)).collect(),
    };
    cut(between(&[victim], &others), random)
}

/// Some directions of some links.
pub(super) fn one_way(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let share = random.random_range(0.05..0.5);
    let machines = machines(plan);
    let pairs = machines.iter().flat_map(|&a| machines.iter().map(move |&b| (a, b)));
    let pairs: Vec<_> = pairs.filter(|(a, b)| a != b && random.random_bool(share)).collect();
    cut(pairs, random)
}

/// Two halves, clients on either side.
pub(super) fn split(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let (a, b): (Vec<Host>, Vec<Host>) = machines(plan).into_iter().partition(|_| random.random_bool(0.5));
    cut(between(&a, &b), random)
}

/// Two halves that only one server sees both of.
pub(super) fn bridge(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let servers = shuffled(plan, random);
    let (_bridge, others) = servers.split_first()?;
    let (a, b) = others.split_at(others.len() / 2);
    cut(between(a, b), random)
}

/// Everybody sees a majority, and no two see the same.
pub(super) fn ring_of_majorities(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let servers = shuffled(plan, random);
    let count = servers.len();
    let reach = (count / 2).div_ceil(2);
    let apart = |a: usize, b: usize| a.abs_diff(b).min(count - a.abs_diff(b));
    let far = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
    let pairs = far.filter(|&(a, b)| apart(a, b) > reach).map(|(a, b)| (servers[a], servers[b]));
    cut(pairs.collect(), random)
}

pub(super) fn clog(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let (a, b) = (server(plan, random), host(plan, random));
    (a != b).then_some(Fault::Network(NetworkFault::Clog(a, b)))
}

impl NetworkFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        match self {
            Self::Storm(conditions) => world.shared.weather.begin_everywhere(*conditions),
            Self::BadHost(host, conditions) => {
                world.shared.weather.begin_at(world.shared.ips[*host], *conditions);
            }
            Self::Cut(pairs) => pairs.iter().for_each(|&(from, to)| world.cut(from, to)),
            Self::Flapping(pairs, period) => world.flap(pairs.clone(), *period),
            Self::Clog(a, b) => world.hold(*a, *b),
        }
        true
    }

    pub(super) fn end(&self, world: &mut World) {
        match self {
            Self::Storm(conditions) => world.shared.weather.end_everywhere(*conditions),
            Self::BadHost(host, conditions) => {
                world.shared.weather.end_at(world.shared.ips[*host], *conditions);
            }
            Self::Cut(pairs) => pairs.iter().for_each(|&(from, to)| world.mend(from, to)),
            Self::Flapping(pairs, _) => world.stop_flapping(pairs),
            Self::Clog(a, b) => world.release(*a, *b),
        }
    }
}
