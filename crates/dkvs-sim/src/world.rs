//! The simulated world, and everything that can be done to it.
//!
//! turmoil runs the machines and carries datagrams and streams. Faults overlap: a link may be cut by two partitions at
//! once, a server killed twice. So cuts and holds are counted, and a server starts again when the first fault that
//! took it down ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dkvs_core::servers::ServerIndex;
use dkvs_storage::Durability;
use turmoil::Sim;

use crate::clock::SkewedClock;
use crate::disk::{Copy, DiskConditions};
use crate::history::{Damage, Micros};
use crate::nemesis::Strike;
use crate::shared::{Host, Shared};
use crate::trace::micros;

type Pair = (Host, Host);

/// Links that are cut and mended in a rhythm.
#[derive(Debug)]
struct Flapping {
    pairs: Vec<Pair>,
    period: Duration,
    next: Duration,
    is_cut: bool,
}

/// A strike under way, and when it ends.
#[derive(Debug)]
struct UnderWay {
    until: Duration,
    strike: Strike,
}

/// The server whose disk was damaged and has not been repaired since.
#[derive(Clone, Copy, Debug)]
struct Damaged {
    server: Host,
    /// The sweep that will have repaired it: asked for when the server is up again.
    sweep: Option<u64>,
}

/// Since when a disk may have kept its server from writing hints, and until when, if it works again.
#[derive(Clone, Copy, Debug)]
struct Hindered {
    from: Micros,
    until: Option<Micros>,
}

/// Once its disk works again, a server has written within this time what it could not write before.
const CAUGHT_UP: Micros = 3_000_000;

/// The world of one run.
pub struct World {
    pub(crate) sim: Sim<'static>,
    pub(crate) shared: Arc<Shared>,
    /// How many faults cut each direction.
    cuts: BTreeMap<Pair, usize>,
    /// How many faults hold back each link, smaller host first.
    holds: BTreeMap<Pair, usize>,
    flapping: Vec<Flapping>,
    under_way: Vec<UnderWay>,
    paused: BTreeMap<Host, usize>,
    /// Servers whose disks may have kept them from writing hints.
    hindered: BTreeMap<Host, Hindered>,
    copies: Vec<Copy>,
    damaged: Option<Damaged>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World at {:?}", self.sim.elapsed())
    }
}

impl World {
    pub(crate) fn new(sim: Sim<'static>, shared: Arc<Shared>) -> Self {
        Self {
            sim,
            shared,
            cuts: BTreeMap::new(),
            holds: BTreeMap::new(),
            flapping: Vec::new(),
            under_way: Vec::new(),
            paused: BTreeMap::new(),
            hindered: BTreeMap::new(),
            copies: Vec::new(),
            damaged: None,
        }
    }

    /// Simulated time.
    pub(crate) fn now(&self) -> Micros {
        micros(self.sim.elapsed())
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.shared.trace.note(self.now(), what);
    }

    /// Strikes.
    pub(crate) fn strike(&mut self, strike: Strike) {
        self.note(format_args!("strike: {:?} for {:?}", strike.fault, strike.lasts));
        if strike.fault.start(self) {
            self.under_way.push(UnderWay { until: self.sim.elapsed() + strike.lasts, strike });
        }
    }

    /// Ends what is due, lets links flap, and looks whether a sweep has repaired what was damaged.
    pub(crate) fn tend(&mut self) {
        let now = self.sim.elapsed();
        let (due, rest) =
            std::mem::take(&mut self.under_way).into_iter().partition(|strike| strike.until <= now);
        self.under_way = rest;
        self.end(due);
        for i in 0..self.flapping.len() {
            if self.flapping[i].next <= now {
                let flapping = &mut self.flapping[i];
                flapping.next = now + flapping.period;
                flapping.is_cut = !flapping.is_cut;
                let (pairs, is_cut) = (flapping.pairs.clone(), flapping.is_cut);
                let change = if is_cut { Self::cut } else { Self::mend };
                pairs.into_iter().for_each(|(from, to)| change(self, from, to));
            }
        }
        if let Some(Damaged { sweep: Some(sweep), .. }) = self.damaged
            && self.shared.sweeps_done.load(Ordering::Relaxed) >= sweep
        {
            self.damaged = None;
            let at = self.now();
            self.shared.recorder.with(|history| history.repaired.push(at));
            self.note(format_args!("repaired"));
        }
    }

    /// Ends all faults, for good, and starts every server that is down or refuses writes.
    pub(crate) fn heal(&mut self) {
        self.note(format_args!("heal"));
        let due = std::mem::take(&mut self.under_way);
        self.end(due);
        for server in 0..self.shared.servers.len() {
            self.restart_if_poisoned(server);
            self.start(server);
        }
        debug_assert!(self.cuts.values().chain(self.holds.values()).all(|&count| count == 0));
    }

    fn end(&mut self, due: Vec<UnderWay>) {
        for UnderWay { strike, .. } in due {
            self.note(format_args!("end: {:?}", strike.fault));
            strike.fault.end(self);
        }
    }

    // Links.

    /// Nothing passes any more from one machine to another.
    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        let count = self.cuts.entry((from, to)).or_default();
        *count += 1;
        if *count == 1 {
            self.sim.partition_oneway(self.shared.ips[from], self.shared.ips[to]);
        }
    }

    /// Undoes one cut.
    pub(crate) fn mend(&mut self, from: Host, to: Host) {
        let count = self.cuts.entry((from, to)).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.sim.repair_oneway(self.shared.ips[from], self.shared.ips[to]);
            self.hold_again(from, to);
        }
    }

    pub(crate) fn flap(&mut self, pairs: Vec<Pair>, period: Duration) {
        self.flapping.push(Flapping { pairs, period, next: self.sim.elapsed(), is_cut: false });
    }

    pub(crate) fn stop_flapping(&mut self, pairs: &[Pair]) {
        if let Some(i) = self.flapping.iter().position(|flapping| flapping.pairs == pairs) {
            let Flapping { pairs, is_cut, .. } = self.flapping.remove(i);
            if is_cut {
                pairs.into_iter().for_each(|(from, to)| self.mend(from, to));
            }
        }
    }

    /// What is sent from one machine to another in the next while arrives at its end; what is on its way is not touched.
    pub(crate) fn late(&mut self, from: Host, to: Host, lasts: Duration) {
        let until = self.now() + micros(lasts);
        self.shared.weather.late_until(self.shared.ips[from], self.shared.ips[to], until);
    }

    /// What is sent from one machine to another in the next while arrives at once, and a copy of it at its end.
    pub(crate) fn echo(&mut self, from: Host, to: Host, lasts: Duration) {
        let until = self.now() + micros(lasts);
        self.shared.weather.echo_until(self.shared.ips[from], self.shared.ips[to], until);
    }

    /// The same as [`World::late`], from the next datagram on that is sent the other way.
    pub(crate) fn late_once_spoken_to(&mut self, from: Host, to: Host, lasts: Duration) {
        let until = self.now() + micros(lasts);
        self.shared.weather.late_once_spoken_to(self.shared.ips[from], self.shared.ips[to], until);
    }

    /// Streams from one machine to another break once something was sent on them, which arrives when that is over.
    pub(crate) fn break_streams(&mut self, from: Host, to: Host) {
        self.hold(from, to);
        self.shared.weather.begin_breaking(self.shared.ips[from], self.shared.ips[to]);
    }

    pub(crate) fn stop_breaking_streams(&mut self, from: Host, to: Host) {
        self.shared.weather.end_breaking(self.shared.ips[from], self.shared.ips[to]);
        self.release(from, to);
    }

    /// Holds back what is sent between two machines. What a cut loses stays lost.
    pub(crate) fn hold(&mut self, a: Host, b: Host) {
        let count = self.holds.entry((a.min(b), a.max(b))).or_default();
        *count += 1;
        if *count == 1 {
            self.sim.hold(self.shared.ips[a], self.shared.ips[b]);
            self.cut_again(a, b);
        }
    }

    pub(crate) fn release(&mut self, a: Host, b: Host) {
        let count = self.holds.entry((a.min(b), a.max(b))).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.sim.release(self.shared.ips[a], self.shared.ips[b]);
            self.cut_again(a, b);
        }
    }

    fn is_held(&self, a: Host, b: Host) -> bool {
        self.holds.get(&(a.min(b), a.max(b))).is_some_and(|&count| count > 0)
    }

    /// turmoil knows one state of each direction; mending sets it.
    fn hold_again(&mut self, a: Host, b: Host) {
        if self.is_held(a, b) {
            self.sim.hold(self.shared.ips[a], self.shared.ips[b]);
            self.cut_again(a, b);
        }
    }

    /// turmoil knows one state of each direction; holding and releasing sets both.
    fn cut_again(&mut self, a: Host, b: Host) {
        for (from, to) in [(a, b), (b, a)] {
            if self.cuts.get(&(from, to)).is_some_and(|&count| count > 0) {
                self.sim.partition_oneway(self.shared.ips[from], self.shared.ips[to]);
            }
        }
    }

    // Machines.

    fn others(&self, host: Host) -> Vec<Host> {
        (0..self.shared.ips.len()).filter(|&other| other != host).collect()
    }

    /// Changes a server's wall clock, and writes down what it shows from now on.
    pub(crate) fn set_clock(&mut self, server: Host, change: impl FnOnce(&SkewedClock)) {
        let clock = &self.shared.servers[server].clock;
        change(clock);
        let state = clock.state(self.now());
        self.shared.recorder.with(|history| {
            history.clocks.entry(index(server)).or_default().push(state);
        });
    }

    pub(crate) fn pause(&mut self, host: Host) {
        let count = self.paused.entry(host).or_default();
        *count += 1;
        if *count == 1 {
            self.others(host).into_iter().for_each(|other| self.hold(host, other));
            if host < self.shared.servers.len() {
                let now_ms = i64::try_from(self.now() / 1_000).unwrap_or(i64::MAX);
                self.set_clock(host, |clock| clock.freeze(Some(now_ms)));
                let parts = &self.shared.servers[host];
                parts.disk.set(|disk| disk.frozen = true);
                self.note_disk(host);
            }
        }
    }

    pub(crate) fn unpause(&mut self, host: Host) {
        let count = self.paused.entry(host).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.others(host).into_iter().for_each(|other| self.release(host, other));
            if host < self.shared.servers.len() {
                self.set_clock(host, |clock| clock.freeze(None));
                let parts = &self.shared.servers[host];
                parts.disk.set(|disk| disk.frozen = false);
                self.note_disk(host);
            }
        }
    }

    // Servers.

    fn is_up(&mut self, server: Host) -> bool {
        self.sim.is_host_running(self.shared.ips[server])
    }

    /// Ends a server's program. Its streams end without a word: tokio drops tasks in an order that depends on how many there
    /// were in the whole process before, and so would be what their ends say, and when it arrives.
    fn crash(&mut self, server: Host) {
        let at = self.now();
        self.note_end(server, at);
        let others = self.others(server);
        others.iter().for_each(|&other| self.cut(server, other));
        self.sim.crash(self.shared.ips[server]);
        others.iter().for_each(|&other| self.mend(server, other));
    }

    /// Writes down that a server ends, and from when on its hints may be lost with it, at `latest`.
    fn note_end(&mut self, server: Host, latest: Micros) {
        let at = self.now();
        let poisoned = self.shared.servers[server].disk.poisoned_at();
        let from = [poisoned, self.hindered_since(server), Some(latest)].into_iter().flatten().min();
        self.shared.recorder.with(|history| {
            history.ends.push((index(server), from.unwrap_or(at), at));
        });
    }

    /// Kills a server's process.
    pub(crate) fn kill(&mut self, server: Host) {
        if self.is_up(server) {
            self.crash(server);
            self.shared.servers[server].disk.kill();
        }
    }

    /// Cuts the power of a server's machine, unless that would be damage that is not allowed now. With `fsync` it is none: nothing
    /// that was answered may be lost.
    pub(crate) fn cut_power(&mut self, server: Host) {
        let may_lose = self.shared.plan.durability != Durability::Fsync;
        let disk = &self.shared.servers[server].disk;
        if may_lose && disk.has_unflushed() && !self.may_damage(server) {
            return self.kill(server);
        }
        if self.is_up(server) {
            self.crash(server);
        }
        let at = self.now();
        if self.shared.servers[server].disk.cut_power(at, may_lose) && may_lose {
            self.damage(server, Damage::Unflushed { server: index(server), at });
        }
    }

    /// Kills a server, and starts it at once.
    pub(crate) fn restart(&mut self, server: Host) {
        self.kill(server);
        self.start(server);
    }

    /// A machine's operations go through a new client from the next one on.
    pub(crate) fn renew_client(&mut self, host: Host) {
        self.shared.renewals[host].fetch_add(1, Ordering::Relaxed);
    }

    /// Asks a server to stop in order.
    pub(crate) fn stop(&mut self, server: Host) {
        if self.is_up(server) {
            if let Some(hindered) = self.hindered_since(server) {
                self.note_end(server, hindered);
            }
            self.shared.servers[server].stop.store(true, Ordering::Relaxed);
            self.shared.servers[server].wake.notify_one();
        }
    }

    /// Starts a server that is down, or still on its way down.
    pub(crate) fn start(&mut self, server: Host) {
        if self.shared.servers[server].stop.swap(false, Ordering::Relaxed) {
            self.kill(server);
        }
        if !self.is_up(server) {
            // What a process before could not write is over with it.
            if !self.shared.servers[server].disk.is_hindered() {
                self.hindered.remove(&server);
            }
            // What is left of a program that stopped in order ends now; as in `crash`. Where messages are held back nothing is
            // sent, and what the program had sent stays.
            let mut others = self.others(server);
            others.retain(|&other| !self.is_held(server, other));
            others.iter().for_each(|&other| self.cut(server, other));
            self.sim.bounce(self.shared.ips[server]);
            others.iter().for_each(|&other| self.mend(server, other));
        }
        if let Some(damaged) = &mut self.damaged
            && damaged.server == server
            && damaged.sweep.is_none()
        {
            damaged.sweep = Some(self.shared.sweeps_wanted.fetch_add(1, Ordering::Relaxed) + 1);
        }
    }

    // Disks.

    pub(crate) fn set_disk(&mut self, server: Host, change: impl FnOnce(&mut DiskConditions)) -> bool {
        self.shared.servers[server].disk.set(change);
        self.note_disk(server);
        true
    }

    /// Writes down from when to when a disk hinders its server, whose conditions have changed, and has no space for hints.
    fn note_disk(&mut self, server: Host) {
        let now = self.now();
        let is_full = self.shared.servers[server].disk.is_full();
        self.shared.recorder.with(|history| {
            let mut spells = history.full_disks.iter_mut().rev();
            match spells.find(|(full, _, until)| *full == index(server) && *until == Micros::MAX) {
                None if is_full => history.full_disks.push((index(server), now, Micros::MAX)),
                Some(spell) if !is_full => spell.2 = now,
                None | Some(_) => {}
            }
        });
        let is_hindered = self.shared.servers[server].disk.is_hindered();
        let since = self.hindered_since(server);
        if is_hindered {
            self.hindered.insert(server, Hindered { from: since.unwrap_or(now), until: None });
        } else if let Some(from) = since {
            let until = self.hindered.get(&server).and_then(|hindered| hindered.until);
            self.hindered.insert(server, Hindered { from, until: until.or(Some(now + CAUGHT_UP)) });
        }
    }

    fn hindered_since(&self, server: Host) -> Option<Micros> {
        let hindered = self.hindered.get(&server)?;
        hindered.until.is_none_or(|until| self.now() <= until).then_some(hindered.from)
    }

    pub(crate) fn restart_if_poisoned(&mut self, server: Host) {
        if self.shared.servers[server].disk.is_poisoned() {
            self.restart(server);
        }
    }

    /// Whether a server's disk may lose what was acknowledged: see [`crate::nemesis`].
    pub(crate) fn may_damage(&self, server: Host) -> bool {
        let is_free = match self.damaged {
            None => true,
            // Once the sweep is asked for, it would not repair what breaks now.
            Some(damaged) => damaged.server == server && damaged.sweep.is_none(),
        };
        self.shared.plan.damage && is_free
    }

    fn damage(&mut self, server: Host, damage: Damage) {
        self.note(format_args!("damage: {damage:?}"));
        self.damaged = Some(Damaged { server, sweep: None });
        self.shared.recorder.damaged(damage);
    }

    pub(crate) fn copy_disks(&mut self) {
        let at = self.now();
        self.copies = self.shared.servers.iter().map(|parts| parts.disk.copy(at)).collect();
    }

    pub(crate) fn wipe(&mut self, server: Host) -> bool {
        if !self.may_damage(server) {
            return false;
        }
        self.kill(server);
        self.shared.servers[server].disk.wipe();
        self.damage(server, Damage::Wiped { server: index(server), at: self.now() });
        true
    }

    pub(crate) fn restore(&mut self, server: Host) -> bool {
        if !self.may_damage(server) || self.copies.is_empty() {
            return false;
        }
        self.kill(server);
        let copy = self.copies[server].clone();
        self.shared.servers[server].disk.restore(&copy);
        self.damage(server, Damage::Restored { server: index(server), at: self.now(), back_to: copy.at });
        true
    }

    /// Flips bits in a record of a server, of this key if it is named.
    pub(crate) fn flip(&mut self, server: Host, key: Option<&str>) -> bool {
        if !self.may_damage(server) {
            return false;
        }
        let Some(key) = self.shared.servers[server].disk.flip_record(key) else {
            return false;
        };
        let key = String::from_utf8_lossy(&key).into_owned();
        self.damage(server, Damage::Flipped { server: index(server), at: self.now(), key });
        true
    }
}

/// The owner of one of the plan's keys that has this place in its preference list.
pub(crate) fn owner(shared: &Shared, key: usize, place: usize) -> Host {
    let key = &shared.plan.keys[key];
    let owners = shared.ring.owners_of_key(key.name.as_bytes(), key.n_max());
    owners[place].as_usize()
}

fn index(server: Host) -> ServerIndex {
    ServerIndex::new(u16::try_from(server).expect("a ring's servers are counted in 16 bits"))
}
