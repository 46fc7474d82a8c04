//! What a run is like, drawn from its seed: how many servers and clients, which keys and quorums, how slow the network
//! is in good times, what clients like to do, and which faults strike when.
//!
//! Everything that can be chosen is chosen at random for each seed (*swarm testing*, Groce et al. 2012): a run with
//! nothing but one-way partitions finds what a run with everything at once hides.

use std::time::Duration;

use dkvs::ClientConfig;
use dkvs_net::EndpointConfig;
use dkvs_proto::limits::DATAGRAM_LEN_MIN;
use dkvs_storage::Durability;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::history::ValueId;
use crate::nemesis::{self, Strike};
use crate::seed;

/// Bounds of the step in which time passes, in whole milliseconds.
const TICK_MIN: Duration = Duration::from_millis(1);
const TICK_MAX: Duration = Duration::from_millis(10);

/// Mean pause of a worker in a crowd.
const CROWDED_THINK: Duration = Duration::from_millis(30);

/// How long a system may keep to itself what nobody asks it to write to a disk.
const WRITTEN_BACK: Duration = Duration::from_secs(30);

/// What servers want to be free on their disks.
pub(crate) const DISK_FREE_BYTES_MIN: u64 = 1 << 20;

/// Room for what goes on after answers that no run fills.
pub(crate) const BACKGROUND_BYTES_PLENTY: usize = 256 << 20;

/// A budget for hints that no run uses up.
pub(crate) const HINT_BYTES_PLENTY: u64 = 256 << 20;

/// How the names of clients' keys begin.
pub(crate) const KEY_PREFIX: &str = "key-";

/// The number of the first value given to a server at its start; writes count from 1.
const FIRST_GIVEN: ValueId = 1_000_000_000;

/// What may be fixed from outside; the seed decides the rest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Operations before the faults end.
    pub steps: Option<usize>,
    /// Servers.
    pub servers: Option<u16>,
}

/// One key, and how it is used.
#[derive(Clone, Debug)]
pub struct KeyPlan {
    /// The key.
    pub name: String,
    /// Each request picks one of these. A key with several different n is promised no overlap.
    pub quorums: Vec<QuorumPlan>,
    /// The only worker that writes it, if there is just one.
    pub writer: Option<usize>,
    /// When clients use it no more, if ever.
    pub retires: Option<Duration>,
    /// When nobody writes it for a while, if ever.
    pub rests: Option<Rests>,
    /// Part of the requests in which others may stand in for owners.
    pub sloppy: f64,
}

/// Times in which nobody writes a key.
#[derive(Clone, Copy, Debug)]
pub struct Rests {
    /// From the begin of one to that of the next.
    pub every: Duration,
    /// How long each lasts.
    pub lasts: Duration,
    /// How long before the run began the last one did.
    pub from: Duration,
}

impl Rests {
    /// Whether it is such a time.
    #[must_use]
    pub fn at(&self, time: Duration) -> bool {
        let since = (time + self.from).as_micros() % self.every.as_micros().max(1);
        since < self.lasts.as_micros()
    }

    /// When those before some time begin.
    pub(crate) fn begins(&self, end: Duration) -> impl Iterator<Item = Duration> {
        let every = self.every;
        let first = every.saturating_sub(self.from);
        std::iter::successors(Some(first), move |begins| Some(*begins + every))
            .take_while(move |begins| *begins < end)
    }
}

/// A quorum for reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumPlan {
    /// Copies.
    pub n: usize,
    /// Owners that a read waits for.
    pub r: usize,
    /// Owners that a write waits for.
    pub w: usize,
    /// Whether others may stand in for them.
    pub sloppy: bool,
}

impl KeyPlan {
    /// The most copies any request asks for.
    #[must_use]
    pub fn n_max(&self) -> usize {
        self.quorums.iter().map(|quorum| quorum.n).max().unwrap_or(1)
    }
}

/// How often clients do what, in proportion.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Gets.
    pub get: u32,
    /// Puts and deletes without a context.
    pub blind: u32,
    /// Puts and deletes with the context last seen, however old.
    pub with_context: u32,
    /// A get, and at once a put with its context.
    pub update: u32,
    /// Part of the writes that delete.
    pub deletes: f64,
    /// Part of the values that do not fit a datagram.
    pub large: f64,
}

/// Values that expire.
#[derive(Clone, Debug)]
pub struct ExpiryPlan {
    /// Part of the values put that do.
    pub share: f64,
    /// Each picks one of these.
    pub ttls: Vec<Duration>,
    /// How far apart servers take each other's clocks to be, in milliseconds: for so long after their time values keep their
    /// bytes.
    pub clock_skew_ms_max: u64,
}

/// A pair that a server is given whenever it starts.
#[derive(Clone, Debug)]
pub struct GivenPlan {
    /// The key's place in the plan.
    pub key: usize,
    /// The value's number, which no write has.
    pub value: ValueId,
    /// How long the value is.
    pub len: usize,
    /// Who is given it, owners or not.
    pub servers: Vec<usize>,
}

/// Limits so small that they are reached. Operations may then fail as overloaded even when nothing is broken.
#[derive(Clone, Debug)]
pub struct Scarcity {
    /// The transport of servers.
    pub server: EndpointConfig,
    /// The transport of clients.
    pub client: EndpointConfig,
    /// Changes that may wait for a server's writer.
    pub changes_max: usize,
    /// Bytes of long changes that may wait.
    pub change_bytes_max: usize,
    /// Changes in one commit.
    pub batch_max: usize,
    /// Bytes held for owners that had not answered when the client was.
    pub background_bytes_max: usize,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all of it comes from.
    pub seed: u64,
    /// Servers.
    pub servers: u16,
    /// Machines with clients.
    pub client_hosts: u16,
    /// Workers on each, sharing one client.
    pub workers_per_host: u16,
    /// The keys.
    pub keys: Vec<KeyPlan>,
    /// What servers are given at their start.
    pub given: Vec<GivenPlan>,
    /// What is done with the keys.
    pub mix: Mix,
    /// Values that expire, if there are any.
    pub expiry: Option<ExpiryPlan>,
    /// Operations before the faults end.
    pub steps: usize,
    /// Mean pause of a worker between operations.
    pub think: Duration,
    /// How long the faults last, if no operation takes any time.
    pub chaos: Duration,
    /// Time an operation may take.
    pub timeout: Duration,
    /// How durable servers make what they acknowledge.
    pub durability: Durability,
    /// How much a power cut may take with [`Durability::Interval`], and with [`Durability::Memory`].
    pub flush_interval: Duration,
    /// How fast and how often servers look for damage; 0 for not at all.
    pub scrub: (u64, Duration),
    /// Bytes of hints that a server keeps for another one.
    pub hint_bytes_max: u64,
    /// Time between comparisons of servers; `None` where they do not compare.
    pub repair_interval: Option<Duration>,
    /// Bytes of records that comparisons move in a second; 0 for no limit.
    pub repair_bytes_per_s_max: u64,
    /// Time between rounds of forgetting tombstones; `None` where they stay. Then no disk goes back to an earlier state: what was
    /// forgotten may come back with it.
    pub reap_interval: Option<Duration>,
    /// Time between pings to a server that is silent.
    pub ping_interval: Duration,
    /// Whether clients do nothing once the faults have ended, so that only what servers do by themselves makes owners equal.
    pub quiet: bool,
    /// The transport of servers and clients.
    pub endpoint: EndpointConfig,
    /// Other limits, in a run that is about limits.
    pub scarcity: Option<Scarcity>,
    /// Latency of the network, least and most. Most datagrams take a fifth of the way between.
    pub latency: (Duration, Duration),
    /// The step in which time passes: every machine is looked at in each, so steps finer than the network cost only time.
    pub tick: Duration,
    /// Whether disks may be damaged. Then every write asks for at least two acknowledgements.
    pub damage: bool,
    /// Whether a host that looks like a valid peer sends mad messages.
    pub mad: bool,
    /// Whether requests and answers arrive late now and then. Then clients like puts without a context: one that takes
    /// effect twice replaces what it must not.
    pub late: bool,
    /// Whether, beside that, servers have room for one request at a time and refuse others, of which a copy may come when there
    /// is room.
    pub is_crowded: bool,
    /// Whether what is deleted is forgotten while disks are flushed late, and nothing fails but the power of owners.
    pub is_flushed_late: bool,
    /// The faults, in the order in which they strike.
    pub strikes: Vec<Strike>,
}

impl Scarcity {
    /// All limits as they are elsewhere.
    fn none(usual: &EndpointConfig) -> Self {
        Self {
            server: usual.clone(),
            client: usual.clone(),
            changes_max: 4_096,
            change_bytes_max: 256 << 20,
            batch_max: 1_024,
            background_bytes_max: BACKGROUND_BYTES_PLENTY,
        }
    }
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64, wishes: Wishes) -> Self {
        let mut random = seed::random(seed, "plan", 0);
        let random = &mut random;
        let servers = random.random_range(3..=7);
        let servers = wishes.servers.unwrap_or(servers).max(1);
        let damage = servers >= 3 && random.random_bool(0.4);
        let client_hosts = random.random_range(1..=3);
        let workers_per_host = random.random_range(1..=3);
        let workers = usize::from(client_hosts * workers_per_host);
        let keys: Vec<KeyPlan> =
            (0..random.random_range(1..=6)).map(|i| key(i, servers, workers, damage, random)).collect();
        let durability = match random.random_range(0..10) {
            0..=6 => Durability::Fsync,
            7 | 8 => Durability::Interval,
            _ => Durability::Memory,
        };
        let latency_min = Duration::from_millis(random.random_range(0..=2));
        let latency_max = latency_min + Duration::from_millis(*pick(&[2, 5, 10, 50, 200], random));
        let tick =
            Duration::from_millis(u64::from(latency_max.subsec_millis()) / 5).clamp(TICK_MIN, TICK_MAX);
        // Within a step machines act one after the other, each at its own moment: what one sends must not reach another
        // in the same step, at an earlier one. Timers know milliseconds only, so the shortest step has but one moment.
        let latency_min = if tick > TICK_MIN { latency_min.max(tick) } else { latency_min };
        let steps = random.random_range(50..=500);
        let steps = wishes.steps.unwrap_or(steps);
        // A timeout that the network in good times can miss would only test the timeout.
        let timeout = Duration::from_millis(*pick(&[300, 1_000, 1_000, 3_000], random)).max(latency_max * 15);
        let chaos = Duration::from_secs(*pick(&[3, 10, 30], random));
        let per_worker = steps.div_ceil(workers).max(1);
        let mut plan = Self {
            seed,
            servers,
            client_hosts,
            workers_per_host,
            given: given(keys.len(), servers, &mut seed::random(seed, "given", 0)),
            keys,
            mix: mix(random),
            expiry: expiry(chaos, &mut seed::random(seed, "expiry", 0)),
            steps,
            think: chaos / u32::try_from(per_worker).unwrap_or(u32::MAX),
            timeout,
            chaos,
            durability,
            flush_interval: Duration::from_millis(*pick(&[50, 500], random)),
            endpoint: endpoint(random),
            scrub: scrub(&mut seed::random(seed, "scrub", 0)),
            hint_bytes_max: *pick(
                &[HINT_BYTES_PLENTY, HINT_BYTES_PLENTY, HINT_BYTES_PLENTY, 300],
                &mut seed::random(seed, "hint budget", 0),
            ),
            repair_interval: repair_interval(&mut seed::random(seed, "repair", 0)),
            repair_bytes_per_s_max: *pick(&[0, 64 << 10], &mut seed::random(seed, "repair pace", 0)),
            reap_interval: reap_interval(&mut seed::random(seed, "reap", 0)),
            ping_interval: ping_interval(latency_max, &mut seed::random(seed, "pings", 0)),
            quiet: seed::random(seed, "is quiet", 0).random_bool(0.3),
            scarcity: None,
            latency: (latency_min, latency_max),
            tick,
            damage,
            mad: seed::random(seed, "has mad peer", 0).random_bool(0.25),
            late: seed::random(seed, "has late messages", 0).random_bool(0.4),
            is_crowded: false,
            is_flushed_late: false,
            strikes: Vec::new(),
        };
        if plan.late {
            plan.mix.blind += 3;
            plan.mix.large =
                plan.mix.large.max(*pick(&[0.0, 0.3], &mut seed::random(seed, "late values", 0)));
        }
        let processes = usize::from(plan.servers + plan.client_hosts);
        plan.scarcity = scarcity(&plan.endpoint, processes, &mut seed::random(seed, "scarcity", 0));
        if plan.late && seed::random(seed, "late and crowded", 0).random_bool(0.4) {
            plan.crowd();
        }
        loosen(&mut plan.keys, &mut seed::random(seed, "sloppy", 0));
        retire(&mut plan.keys, plan.chaos, &mut seed::random(seed, "retired keys", 0));
        if plan.reap_interval.is_some() {
            plan.mix.deletes = plan.mix.deletes.max(0.3);
            rest(&mut plan.keys, plan.timeout, &mut seed::random(seed, "rests", 0));
            plan.is_flushed_late = plan.damage && seed::random(seed, "is flushed late", 0).random_bool(0.3);
        }
        if plan.is_flushed_late {
            plan.durability = Durability::Memory;
            plan.flush_interval = WRITTEN_BACK;
        } else if plan.durability == Durability::Memory {
            plan.flush_interval =
                *pick(&[plan.flush_interval, WRITTEN_BACK], &mut seed::random(seed, "written back", 0));
        }
        plan.strikes = nemesis::plan(&plan);
        plan
    }

    /// Servers have room for one request at a time, and clients are in a hurry and all want the same key.
    fn crowd(&mut self) {
        let scarcity = self.scarcity.get_or_insert_with(|| Scarcity::none(&self.endpoint));
        scarcity.server.requests_max = 1;
        self.keys.truncate(1);
        self.given.retain(|given| given.key == 0);
        self.mix.blind += 6;
        self.think = self.think.min(CROWDED_THINK);
        self.is_crowded = true;
    }

    /// The transport of servers.
    #[must_use]
    pub fn server_endpoint(&self) -> EndpointConfig {
        self.scarcity.as_ref().map_or(&self.endpoint, |scarcity| &scarcity.server).clone()
    }

    /// The transport of clients.
    #[must_use]
    pub fn client_endpoint(&self) -> EndpointConfig {
        self.scarcity.as_ref().map_or(&self.endpoint, |scarcity| &scarcity.client).clone()
    }

    /// How long clients wait for a sign of life. Less than the network needs in good times would only test this limit.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        ClientConfig::default().silence_max.max(self.latency.1 * 4)
    }

    /// How long what needs `longest` may take in a run like this. A server with room for few sessions has none for a new one
    /// until it may forget an old one, a minute after that was heard last.
    #[must_use]
    pub fn patience(&self, longest: Duration) -> Duration {
        if self.scarcity.is_some() { longest + Duration::from_secs(120) } else { longest }
    }

    /// When the faults end at the latest: operations that time out take longer than planned.
    #[must_use]
    pub fn chaos_max(&self) -> Duration {
        self.chaos * 2
    }

    /// Workers on all hosts.
    #[must_use]
    pub fn workers(&self) -> usize {
        usize::from(self.client_hosts * self.workers_per_host)
    }
}

pub(crate) fn pick<'a, A>(choices: &'a [A], random: &mut StdRng) -> &'a A {
    &choices[random.random_range(0..choices.len())]
}

fn key(number: usize, servers: u16, workers: usize, damage: bool, random: &mut StdRng) -> KeyPlan {
    let servers = usize::from(servers);
    // In a run with damage one disk may go at any time: what is acknowledged must be on two.
    let w_min = if damage { 2.min(servers) } else { 1 };
    let n =
        if random.random_bool(0.7) { 3.min(servers) } else { random.random_range(w_min..=servers.min(5)) };
    let quorum = |n: usize, random: &mut StdRng| QuorumPlan {
        n,
        r: random.random_range(1..=n),
        w: random.random_range(w_min.min(n)..=n),
        sloppy: false,
    };
    let majority = QuorumPlan { n, r: n / 2 + 1, w: (n / 2 + 1).max(w_min.min(n)), sloppy: false };
    let quorums = match random.random_range(0..10) {
        0..=5 => vec![majority],
        6 | 7 => vec![quorum(n, random)],
        8 => (0..3).map(|_| quorum(n, random)).collect(),
        _ => (0..3).map(|_| quorum(random.random_range(w_min..=servers.min(5)), random)).collect(),
    };
    let writer = random.random_bool(0.2).then(|| random.random_range(0..workers));
    KeyPlan {
        name: format!("{KEY_PREFIX}{number}"),
        quorums,
        writer,
        retires: None,
        rests: None,
        sloppy: 0.0,
    }
}

/// In three runs of ten others may stand in for the owners of some keys, in all requests or in half of them.
fn loosen(keys: &mut [KeyPlan], random: &mut StdRng) {
    if random.random_bool(0.3) {
        keys.iter_mut().for_each(|key| key.sloppy = *pick(&[0.0, 0.5, 1.0, 1.0], random));
    }
}

/// In one run in four keys are used no more from some time on, each from its own or all from the same.
fn retire(keys: &mut [KeyPlan], chaos: Duration, random: &mut StdRng) {
    if !random.random_bool(0.25) {
        return;
    }
    let at_once = random.random_bool(0.5);
    let mut at = chaos.mul_f64(random.random_range(0.3..1.0));
    for key in keys {
        if !at_once {
            at = chaos.mul_f64(random.random_range(0.3..1.0));
        }
        key.retires = Some(at);
    }
}

/// Small datagrams send more by stream, small queues lose more on this side.
fn endpoint(random: &mut StdRng) -> EndpointConfig {
    let default = EndpointConfig::default();
    EndpointConfig {
        datagram_len_max: *pick(&[default.datagram_len_max, DATAGRAM_LEN_MIN], random),
        requests_max: *pick(&[default.requests_max, 64], random),
        outbox_len_max: *pick(&[default.outbox_len_max, 64], random),
        retransmit_min: Duration::from_millis(*pick(&[10, 25, 50], random)),
        ..default
    }
}

/// In half of the runs damage is found by reading only.
fn scrub(random: &mut StdRng) -> (u64, Duration) {
    let pause = Duration::from_millis(*pick(&[200, 1_000, 5_000], random));
    (*pick(&[0, 0, 10_000, 4 << 20], random), pause)
}

/// A ping that good times can miss would only test the ping.
fn ping_interval(latency_max: Duration, random: &mut StdRng) -> Duration {
    Duration::from_millis(*pick(&[200, 1_000, 3_000], random)).max(latency_max * 4)
}

/// In half of the runs servers compare, often or now and then. In the others hints have to do without.
fn repair_interval(random: &mut StdRng) -> Option<Duration> {
    let interval = Duration::from_millis(*pick(&[200, 1_000, 5_000], random));
    random.random_bool(0.5).then_some(interval)
}

/// In three runs of ten what is deleted is forgotten.
fn reap_interval(random: &mut StdRng) -> Option<Duration> {
    let interval = Duration::from_millis(*pick(&[50, 200, 1_000], random));
    random.random_bool(0.3).then_some(interval)
}

/// Keys are left alone by writers now and then, for longer than a round of forgetting takes or not quite so long.
fn rest(keys: &mut [KeyPlan], timeout: Duration, random: &mut StdRng) {
    for key in keys {
        let lasts = timeout.max(Duration::from_secs(1)).mul_f64(random.random_range(1.0..8.0));
        let every = lasts.mul_f64(random.random_range(1.1..3.0));
        key.rests = Some(Rests { every, lasts, from: every.mul_f64(random.random_range(0.0..1.0)) });
    }
}

/// One or two values for some keys in four runs of ten, each for one server, some, or all.
fn given(keys: usize, servers: u16, random: &mut StdRng) -> Vec<GivenPlan> {
    if !random.random_bool(0.4) {
        return Vec::new();
    }
    let mut given = Vec::new();
    for key in (0..keys).filter(|_| random.random_bool(0.6)).collect::<Vec<_>>() {
        for _ in 0..random.random_range(1..=2) {
            let share = *pick(&[0.3, 0.6, 1.0], random);
            let servers = (0..usize::from(servers)).filter(|_| random.random_bool(share)).collect();
            let value = FIRST_GIVEN + given.len() as ValueId;
            given.push(GivenPlan { key, value, len: random.random_range(0..200), servers });
        }
    }
    given
}

/// In four runs of ten some values, or all, expire: while the faults last, or within what a clock may be wrong.
fn expiry(chaos: Duration, random: &mut StdRng) -> Option<ExpiryPlan> {
    if !random.random_bool(0.4) {
        return None;
    }
    let longest = *pick(&[chaos / 10, chaos, Duration::from_secs(3_600)], random);
    let ttls = (0..3).map(|_| longest.mul_f64(random.random_range(0.01..1.0))).collect();
    let clock_skew_ms_max = *pick(&[0, 1_000, 60_000], random);
    Some(ExpiryPlan { share: *pick(&[0.1, 0.5, 1.0], random), ttls, clock_skew_ms_max })
}

/// One limit in two is small, in one run in three. What a read from all owners needs is always there, but not for two at
/// once.
fn scarcity(usual: &EndpointConfig, processes: usize, random: &mut StdRng) -> Option<Scarcity> {
    if !random.random_bool(0.33) {
        return None;
    }
    let mut limit = |small: &[usize], usual: usize| {
        if random.random_bool(0.5) { *pick(small, random) } else { usual }
    };
    let none = Scarcity::none(usual);
    let server = EndpointConfig {
        calls_max: limit(&[8, 16], usual.calls_max),
        requests_max: limit(&[1, 2, 4], usual.requests_max),
        outbox_len_max: limit(&[1, 2, 8], usual.outbox_len_max),
        // Fewer than there are processes would leave some without one for good; those of restarts take what is more.
        sessions_max: limit(&[processes + 1, processes + 4], usual.sessions_max),
        streams_max: limit(&[1, 2, 4], usual.streams_max),
        stream_bytes_max: limit(&[16 << 10], usual.stream_bytes_max),
        // A kept connection takes a place until it has been idle for so long.
        stream_idle_max: Duration::from_secs(1),
        ..usual.clone()
    };
    let client = EndpointConfig {
        calls_max: limit(&[1, 2], usual.calls_max),
        outbox_len_max: limit(&[1, 2], usual.outbox_len_max),
        ..usual.clone()
    };
    Some(Scarcity {
        server,
        client,
        changes_max: limit(&[1, 2, 4], none.changes_max),
        change_bytes_max: limit(&[8 << 10], none.change_bytes_max),
        batch_max: limit(&[1, 2], none.batch_max),
        background_bytes_max: limit(&[0, 4 << 10, 64 << 10], none.background_bytes_max),
    })
}

fn mix(random: &mut StdRng) -> Mix {
    Mix {
        get: random.random_range(1..=6),
        blind: random.random_range(0..=3),
        with_context: random.random_range(0..=3),
        update: random.random_range(1..=4),
        deletes: *pick(&[0.0, 0.1, 0.3], random),
        large: *pick(&[0.0, 0.0, 0.05, 0.3], random),
    }
}
