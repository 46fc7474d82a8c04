//! Wall clocks that are wrong, by a little or by an hour, ahead or behind. Striking twice makes them jump.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Fault, server};
use crate::plan::{Plan, pick};
use crate::shared::Host;
use crate::world::World;

/// A wall clock is wrong.
#[derive(Clone, Debug)]
pub enum ClockFault {
    /// By so many milliseconds.
    Skew(Host, i64),
}

pub(super) fn wrong(plan: &Plan, random: &mut StdRng) -> Option<Fault> {
    let most = *pick(&[100, 10_000, 3_600_000], random);
    Some(Fault::Clock(ClockFault::Skew(server(plan, random), random.random_range(-most..=most))))
}

impl ClockFault {
    pub(super) fn start(&self, world: &mut World) -> bool {
        let Self::Skew(server, ms) = *self;
        world.set_clock(server, |clock| clock.set_skew(ms));
        true
    }

    pub(super) fn end(&self, world: &mut World) {
        let Self::Skew(server, _) = *self;
        world.set_clock(server, |clock| clock.set_skew(0));
    }
}
