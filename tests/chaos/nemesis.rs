//! What breaks, and when: two threads, one for the network and one for the servers, each led by the seed.
//!
//! Each draws from a bag that holds every fault once and is filled again when empty, so that a short run meets nearly
//! all of them, and every combination has its turn in the long run.

use std::ops::RangeInclusive;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use crate::network::{self, Place, Rules, SERVERS};
use crate::record::{Record, lock};
use crate::servers::{SMALL, Servers};

/// How long a fault lasts and how long nothing new happens after it, in milliseconds.
const FAULT_MS: RangeInclusive<u64> = 300..=5_000;
const CALM_MS: RangeInclusive<u64> = 0..=1_500;
/// How long a server may take to work again when its disk has room again, before it is started again.
const RECOVERY_MAX: Duration = Duration::from_secs(3);

/// Makes two streams of chance of one seed.
const NETWORK_STREAM: u64 = 1;
const SERVER_STREAM: u64 = 2;

/// Tells nemeses to stop.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *lock(&self.rung) = true;
        self.ring.notify_all();
    }

    fn has_rung(&self) -> bool {
        *lock(&self.rung)
    }

    /// Waits for so long, or until the bell is rung.
    pub(crate) fn wait(&self, duration: Duration) {
        let waited = self.ring.wait_timeout_while(lock(&self.rung), duration, |rung| !*rung);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[derive(Clone, Copy, Debug)]
enum NetworkFault {
    Loss,
    Duplication,
    LossAndDuplication,
    /// One server cannot reach another, which can reach it.
    OneWay,
    /// A server hears nobody.
    Deaf,
    /// Nobody hears a server.
    Mute,
    /// Servers and clients are in two groups that do not reach each other.
    Split,
    /// Servers are, clients reach all.
    ServersSplit,
    /// Every server reaches only its two neighbours: all have a majority, no two the same.
    MajoritiesRing,
    /// Clients reach some of the servers only.
    ClientsCut,
    Slow,
}

const NETWORK_FAULTS: [NetworkFault; 11] = [
    NetworkFault::Loss,
    NetworkFault::Duplication,
    NetworkFault::LossAndDuplication,
    NetworkFault::OneWay,
    NetworkFault::Deaf,
    NetworkFault::Mute,
    NetworkFault::Split,
    NetworkFault::ServersSplit,
    NetworkFault::MajoritiesRing,
    NetworkFault::ClientsCut,
    NetworkFault::Slow,
];

#[derive(Clone, Copy, Debug)]
enum ServerFault {
    Kill,
    /// Again and again, also while it starts.
    KillOften,
    KillTwo,
    KillAll,
    Pause,
    PauseTwo,
    Stop,
    FullDisk,
}

const SERVER_FAULTS: [ServerFault; 8] = [
    ServerFault::Kill,
    ServerFault::KillOften,
    ServerFault::KillTwo,
    ServerFault::KillAll,
    ServerFault::Pause,
    ServerFault::PauseTwo,
    ServerFault::Stop,
    ServerFault::FullDisk,
];

/// Every fault once, in an order that the seed chose; then again.
struct Bag<F: 'static> {
    all: &'static [F],
    left: Vec<F>,
}

impl<F: Copy> Bag<F> {
    fn new(all: &'static [F]) -> Self {
        Self { all, left: Vec::new() }
    }

    fn draw(&mut self, random: &mut StdRng) -> F {
        if self.left.is_empty() {
            self.left = self.all.to_vec();
            self.left.shuffle(random);
        }
        self.left.pop().expect("there are faults")
    }
}

fn ms(random: &mut StdRng, range: RangeInclusive<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

/// Breaks the network until the bell is rung, and leaves it whole.
pub(crate) fn break_network(seed: u64, record: &Record, bell: &Bell) {
    let mut random = StdRng::seed_from_u64(seed ^ NETWORK_STREAM);
    let mut bag = Bag::new(&NETWORK_FAULTS);
    let whole = vec![Rules::default(); SERVERS];
    let change = |from: &[Rules], to: &[Rules]| {
        for (server, (before, after)) in from.iter().zip(to).enumerate().filter(|(_, (a, b))| a != b) {
            if let Err(error) = network::apply(server, before, after) {
                record.trouble(format_args!("the nemesis failed: {error}"));
            }
        }
    };
    while !bell.has_rung() {
        bell.wait(ms(&mut random, CALM_MS));
        let fault = bag.draw(&mut random);
        let rules = rules(fault, &mut random);
        record.note(format_args!("network: {fault:?} {}", shown(&rules)));
        change(&whole, &rules);
        bell.wait(ms(&mut random, FAULT_MS));
        change(&rules, &whole);
        record.note("network: whole");
    }
}

fn shown(rules: &[Rules]) -> String {
    let whole = Rules::default();
    let changed = rules.iter().enumerate().filter(|(_, rules)| **rules != whole);
    changed.map(|(server, rules)| format!("[{} {rules:?}]", 1 + server)).collect()
}

fn rules(fault: NetworkFault, random: &mut StdRng) -> Vec<Rules> {
    let mut rules = vec![Rules::default(); SERVERS];
    // A bad link, or a bad network.
    let victims: Vec<usize> =
        if random.random_bool(0.5) { (0..SERVERS).collect() } else { vec![random.random_range(0..SERVERS)] };
    let others = |server: usize| Place::all().filter(move |place| *place != Place::Server(server));
    match fault {
        NetworkFault::Loss => lose(&mut rules, &victims, random),
        NetworkFault::Duplication => repeat(&mut rules, &victims, random),
        NetworkFault::LossAndDuplication => {
            lose(&mut rules, &victims, random);
            repeat(&mut rules, &victims, random);
        }
        NetworkFault::OneWay => {
            let pair: Vec<usize> = rand::seq::index::sample(random, SERVERS, 2).into_vec();
            cut(&mut rules, Place::Server(pair[0]), Place::Server(pair[1]), random);
        }
        NetworkFault::Deaf => {
            let server = random.random_range(0..SERVERS);
            rules[server].not_from = others(server).collect();
        }
        NetworkFault::Mute => {
            let server = random.random_range(0..SERVERS);
            rules[server].not_to = others(server).collect();
        }
        NetworkFault::Split => {
            let side: Vec<(Place, bool)> =
                Place::all().map(|place| (place, random.random_bool(0.5))).collect();
            split(&mut rules, &side, random);
        }
        NetworkFault::ServersSplit => {
            let apart = rand::seq::index::sample(random, SERVERS, 2).into_vec();
            let side: Vec<(Place, bool)> =
                (0..SERVERS).map(|server| (Place::Server(server), apart.contains(&server))).collect();
            split(&mut rules, &side, random);
        }
        NetworkFault::MajoritiesRing => {
            for (server, rules) in rules.iter_mut().enumerate() {
                let clockwise = |other: usize| (SERVERS + other - server) % SERVERS;
                let is_far = |other: &usize| (2..SERVERS - 1).contains(&clockwise(*other));
                let far = (0..SERVERS).filter(is_far).map(Place::Server);
                rules.not_from = far.collect();
            }
        }
        NetworkFault::ClientsCut => {
            for client in Place::all().filter(|place| matches!(place, Place::Client(_))) {
                for server in (0..SERVERS).map(Place::Server) {
                    if random.random_bool(0.4) {
                        cut(&mut rules, client, server, random);
                        cut(&mut rules, server, client, random);
                    }
                }
            }
        }
        NetworkFault::Slow => {
            for &server in &victims {
                rules[server].kbit = Some(*[64, 256, 1_000, 4_000].choose(random).expect("one of four"));
            }
        }
    }
    rules
}

fn lose(rules: &mut [Rules], victims: &[usize], random: &mut StdRng) {
    let (lost_in, lost_out) = (random.random_range(0..=30), random.random_range(0..=30));
    for &server in victims {
        rules[server].lost_in = lost_in;
        rules[server].lost_out = lost_out;
    }
}

fn repeat(rules: &mut [Rules], victims: &[usize], random: &mut StdRng) {
    let twice = random.random_range(5..=50);
    victims.iter().for_each(|&server| rules[server].twice = twice);
}

/// Nothing goes from one place to another any more.
fn cut(rules: &mut [Rules], from: Place, to: Place, random: &mut StdRng) {
    match (from, to) {
        // The filter is the sender's or the receiver's.
        (Place::Server(sender), Place::Server(_)) if random.random_bool(0.5) => rules[sender].not_to.push(to),
        (_, Place::Server(receiver)) => rules[receiver].not_from.push(from),
        (Place::Server(sender), Place::Client(_)) => rules[sender].not_to.push(to),
        (Place::Client(_), Place::Client(_)) => {}
    }
}

/// Nothing goes from one side to the other any more.
fn split(rules: &mut [Rules], side: &[(Place, bool)], random: &mut StdRng) {
    for &(from, from_side) in side {
        for &(to, to_side) in side {
            if from_side != to_side {
                cut(rules, from, to, random);
            }
        }
    }
}

/// Breaks servers until the bell is rung, and leaves them as they are.
pub(crate) fn break_servers(
    seed: u64,
    servers: &Servers,
    record: &Record,
    bell: &Bell,
    works: &dyn Fn(usize) -> bool,
) {
    let mut random = StdRng::seed_from_u64(seed ^ SERVER_STREAM);
    let mut bag = Bag::new(&SERVER_FAULTS);
    while !bell.has_rung() {
        bell.wait(ms(&mut random, CALM_MS));
        servers.fallen(record);
        let fault = bag.draw(&mut random);
        let two = rand::seq::index::sample(&mut random, SERVERS, 2).into_vec();
        let duration = ms(&mut random, FAULT_MS);
        let named: Vec<usize> = two.iter().map(|server| 1 + server).collect();
        record.note(format_args!("servers: {fault:?} (of {named:?}) for {duration:?}"));
        let kill = |which: &[usize]| {
            servers.kill(which);
            bell.wait(duration);
            servers.start(which)
        };
        let done = match fault {
            ServerFault::Kill => kill(&two[..1]),
            ServerFault::KillTwo => kill(&two),
            ServerFault::KillAll => kill(&(0..SERVERS).collect::<Vec<_>>()),
            ServerFault::KillOften => {
                for _ in 0..random.random_range(2..=5) {
                    servers.kill(&two[..1]);
                    servers.launch(two[0]);
                    bell.wait(ms(&mut random, 0..=400));
                }
                servers.kill(&two[..1]);
                servers.start(&two[..1])
            }
            ServerFault::Pause => pause(servers, &two[..1], bell, duration),
            ServerFault::PauseTwo => pause(servers, &two, bell, duration),
            ServerFault::Stop => servers.terminate(two[0]).and_then(|()| {
                bell.wait(duration / 4);
                servers.start(&two[..1])
            }),
            ServerFault::FullDisk => {
                servers.fill_disk();
                bell.wait(duration);
                let killed = random.random_bool(0.3);
                if killed {
                    servers.kill(&[SMALL]);
                }
                servers.free_disk();
                if killed { servers.start(&[SMALL]) } else { recover(servers, record, bell, works) }
            }
        };
        record.note("servers: all run");
        if let Err(why) = done {
            record.trouble(why);
        }
    }
}

fn pause(servers: &Servers, which: &[usize], bell: &Bell, duration: Duration) -> Result<(), String> {
    which.iter().for_each(|&server| servers.pause(server));
    bell.wait(duration);
    which.iter().for_each(|&server| servers.resume(server));
    Ok(())
}

/// After its disk was full, a server works again by itself, or after another start.
fn recover(
    servers: &Servers,
    record: &Record,
    bell: &Bell,
    works: &dyn Fn(usize) -> bool,
) -> Result<(), String> {
    let deadline = Instant::now() + RECOVERY_MAX;
    while Instant::now() < deadline && !bell.has_rung() {
        if works(SMALL) {
            record.note("servers: there is room again, and it works again");
            return Ok(());
        }
        bell.wait(Duration::from_millis(100));
    }
    record.note("servers: there is room again; it needs another start");
    servers.terminate(SMALL)?;
    servers.start(&[SMALL])
}
