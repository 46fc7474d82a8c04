//! One seed from start to end.
//!
//! ```text
//!   0         chaos: clients at work, faults striking            until the clients have made their steps
//!   healed    all faults end for good; servers that are down or poisoned start
//!   settled   SETTLE later: from here on every operation must succeed
//!   calm      clients finish, in quiet runs as soon as they can; all hints are delivered, and the disks are read
//!             the auditor reads every key with R = N
//!   end       the disks are read; the invariants are asked
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dkvs_cluster::{Kept, Target};
use dkvs_core::hlc::WallMs;
use dkvs_core::position::Partition;
use dkvs_core::quorum::Quorum;
use dkvs_core::ring::Ring;
use dkvs_core::servers::{ServerEntry, ServerIndex, ServerList, ServerName};
use dkvs_storage::Durability;
use tokio::sync::Notify;
use turmoil::Sim;

use crate::clock::SkewedClock;
use crate::disk::Disk;
use crate::history::{Action, HintLeft, History, Outcome, Violation};
use crate::invariants;
use crate::plan::{BACKGROUND_BYTES_PLENTY, HINT_BYTES_PLENTY, Plan, Scarcity, Wishes};
use crate::recorder::Recorder;
use crate::seed;
use crate::shared::{PORT, ServerParts, Shared};
use crate::trace::{Trace, micros};
use crate::weather::Weather;
use crate::world::World;
use crate::{server, workload};

/// After this time without faults, and without operations that were called before they ended, every operation must succeed. Clients
/// pass over servers that were silent lately for 5 s; nothing else lingers longer.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Time for calm operations, after which clients are asked to finish.
const CALM: Duration = Duration::from_secs(2);

/// Within this time after a disk has room again, hints that it refused are written.
const HINTS_LATE: Duration = Duration::from_secs(2);

/// Pause between looks, at all disks for the most part.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Within this time after they were asked to, clients have finished and the auditor has read everything.
const WIND_UP: Duration = Duration::from_secs(30);

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The fingerprint of everything that happened.
    pub hash: u64,
    /// Events in it.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// What clients asked and heard.
    pub history: History,
    /// What should not have been.
    pub violations: Vec<Violation>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, wishes: Wishes, shown: bool) -> Report {
    run_plan(Plan::of(seed, wishes), shown)
}

/// Runs a plan.
#[must_use]
pub fn run_plan(plan: Plan, shown: bool) -> Report {
    watch_panics();
    PANICS.take();
    let (seed, is_scarce) = (plan.seed, plan.scarcity.is_some());
    let trace = Arc::new(Trace::new(shown));
    let recorder = Arc::new(Recorder::default());
    let ran = catch_unwind(AssertUnwindSafe(|| Run::new(plan, trace.clone(), recorder.clone()).finish()));
    let (simulated, mut violations) = match ran {
        Ok(ended) => ended,
        Err(_) => (Duration::ZERO, vec![]),
    };
    let panics = PANICS.take();
    violations.extend(panics.into_iter().map(|what| Violation { invariant: "no_panic", what }));
    let history = recorder.take();
    if !is_scarce {
        violations.extend(progress(&history));
    }
    violations.extend(invariants::check(&history));
    Report { seed, hash: trace.hash(), events: trace.events(), simulated, history, violations }
}

struct Run {
    world: World,
    shared: Arc<Shared>,
    violations: Vec<Violation>,
}

impl Run {
    fn new(plan: Plan, trace: Arc<Trace>, recorder: Arc<Recorder>) -> Self {
        trace.note(0, format_args!("{plan:?}"));
        let mut sim = turmoil::Builder::new()
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(Duration::from_secs(24 * 3_600))
            .tick_duration(plan.tick)
            .min_message_latency(plan.latency.0)
            .max_message_latency(plan.latency.1)
            .tcp_capacity(4_096)
            .udp_capacity(4_096)
            .enable_random_order()
            .rng_seed(seed::derive(plan.seed, "turmoil", 0))
            .build();
        let servers = usize::from(plan.servers);
        let clients = usize::from(plan.client_hosts);
        let auditor = servers + clients;
        let name = |host: usize| match host {
            host if host < servers => format!("server-{host}"),
            host if host < auditor => format!("client-{}", host - servers),
            _ => "auditor".into(),
        };
        let ips: Vec<IpAddr> = (0..=auditor).map(|host| sim.lookup(name(host))).collect();
        let shared = Arc::new(shared(plan, ips, trace, recorder));
        for host in 0..=auditor {
            let shared = shared.clone();
            register(&mut sim, &name(host), move || {
                let (shared, clients_start) = (shared.clone(), servers);
                async move {
                    if host < clients_start {
                        let me = shared.ring.servers().indices().nth(host).ok_or("no such server")?;
                        server::run(shared, me).await
                    } else if host < auditor {
                        workload::run(shared, host).await
                    } else {
                        workload::audit(shared, host).await
                    }
                }
            });
        }
        Self { world: World::new(sim, shared.clone()), shared, violations: Vec::new() }
    }

    fn finish(mut self) -> (Duration, Vec<Violation>) {
        let is_quiet = self.chaos() && self.calm();
        if is_quiet {
            self.census();
        }
        (self.world.sim.elapsed(), self.violations)
    }

    /// One step of time; `false` when a machine's program ended with an error, which it never should.
    fn step(&mut self) -> bool {
        self.world.tend();
        match self.world.sim.step() {
            Ok(_) => true,
            Err(error) => {
                let what = error.to_string();
                self.violations.push(Violation { invariant: "programs_go_on", what });
                false
            }
        }
    }

    fn steps(&mut self, duration: Duration) -> bool {
        let end = self.world.sim.elapsed() + duration;
        while self.world.sim.elapsed() < end {
            if !self.step() {
                return false;
            }
        }
        true
    }

    fn chaos(&mut self) -> bool {
        let mut strikes = self.shared.plan.strikes.clone().into_iter().peekable();
        while self.shared.steps.load(Ordering::Relaxed) < self.shared.plan.steps
            && self.world.sim.elapsed() < self.shared.plan.chaos_max()
        {
            while let Some(strike) = strikes.next_if(|strike| strike.at <= self.world.sim.elapsed()) {
                self.world.strike(strike);
            }
            if !self.step() {
                return false;
            }
        }
        self.world.heal();
        let healed = self.world.now();
        self.shared.recorder.with(|history| history.healed = Some(healed));
        self.shared.healed.store(true, Ordering::Relaxed);
        true
    }

    fn calm(&mut self) -> bool {
        if !self.shared.plan.quiet && !self.steps(SETTLE + CALM) {
            return false;
        }
        self.shared.stopping.store(true, Ordering::Relaxed);
        let workers = self.shared.plan.workers();
        let all_finished = |shared: &Shared| shared.finished.load(Ordering::Relaxed) >= workers;
        // What is still under way behind the clients' backs ends by the deadline of their last operation.
        let (asked, timeout) = (WIND_UP, self.shared.plan.timeout);
        if !self.wait("clients finish", asked, all_finished) || !self.steps(timeout + HINTS_LATE) {
            return false;
        }
        let is_delivered = |shared: &Shared| shared.servers.iter().all(|parts| !has_hints(&parts.disk));
        let asked = self.shared.plan.patience(WIND_UP);
        if !self.wait("all hints are delivered", asked, is_delivered) {
            return false;
        }
        self.quiet_census();
        if self.shared.plan.repair_interval.is_some() && !self.owners_agree() {
            return false;
        }
        if self.shared.plan.repair_interval.is_some() && !self.tombstones_go() {
            return false;
        }
        let sweep = self.shared.sweeps_wanted.fetch_add(1, Ordering::Relaxed) + 1;
        let is_swept = move |shared: &Shared| shared.sweeps_done.load(Ordering::Relaxed) >= sweep;
        let asked = self.shared.plan.patience(WIND_UP);
        self.wait("every key can be read with R = N", asked, is_swept)
    }

    fn wait(&mut self, what: &str, longest: Duration, is_done: impl Fn(&Shared) -> bool) -> bool {
        self.until_none("progress", longest, |shared| (!is_done(shared)).then(|| format!("not so: {what}")))
    }

    /// Servers that compare make all owners equal with nobody reading, and no mark is left of what somebody missed.
    fn owners_agree(&mut self) -> bool {
        let longest = self.shared.plan.patience(WIND_UP) + self.scrub_takes();
        self.until_none("owners_agree_with_nobody_reading", longest, disagreement)
    }

    /// How long a scrub takes at most to find what is damaged, if nothing else does.
    fn scrub_takes(&self) -> Duration {
        let (bytes_per_s, pause) = self.shared.plan.scrub;
        let most = self.shared.servers.iter().map(|parts| parts.disk.record_bytes()).max();
        most.unwrap_or(0)
            .checked_div(bytes_per_s)
            .map_or(Duration::ZERO, |s| pause + Duration::from_secs(s + 1))
    }

    /// Where servers forget tombstones and make each other equal, none is left.
    fn tombstones_go(&mut self) -> bool {
        let Some(interval) = self.shared.plan.reap_interval else { return true };
        let round = interval + 2 * self.shared.plan.timeout.max(Duration::from_secs(1));
        let longest = self.shared.plan.patience(WIND_UP) + 4 * round;
        self.until_none("tombstones_are_forgotten", longest, left)
    }

    /// Looks again and again until nothing is amiss.
    fn until_none(
        &mut self,
        invariant: &'static str,
        longest: Duration,
        amiss: impl Fn(&Shared) -> Option<String>,
    ) -> bool {
        let end = self.world.sim.elapsed() + longest;
        while let Some(amiss) = amiss(&self.shared) {
            if self.world.sim.elapsed() > end {
                let what = format!("{longest:?} after all faults have ended: {amiss}");
                self.violations.push(Violation { invariant, what });
                return false;
            }
            if !self.steps(LOOK_PAUSE) {
                return false;
            }
        }
        true
    }

    /// What is on the disks before everything is read.
    fn quiet_census(&mut self) {
        let indices: Vec<_> = self.shared.ring.servers().indices().collect();
        let targets: BTreeMap<Target, ServerIndex> =
            self.shared.recorder.with(|history| history.targets.clone());
        for (&holder, parts) in indices.iter().zip(&self.shared.servers) {
            let (records, damaged) = parts.disk.census();
            let left = parts.disk.kept().into_iter().filter_map(|kept| {
                let (target, key, partition) = match kept {
                    Kept::Hint { target, key, .. } => {
                        let partition = Partition::of_key(&key);
                        (target, Some(String::from_utf8_lossy(&key).into_owned()), partition)
                    }
                    Kept::Dirty(mark) => (mark.target, None, mark.partition),
                };
                let target = *targets.get(&target)?;
                Some(HintLeft { holder, target, key, partition: partition.number() })
            });
            let left: Vec<_> = left.collect();
            let now = self.world.now();
            self.shared.recorder.with(|history| {
                history.quiet_at = now;
                history.quiet_disks.insert(holder, records);
                history.quiet_damaged.extend(damaged.into_iter().map(|key| (holder, key)));
                history.kept.extend(left);
            });
        }
    }

    fn census(&mut self) {
        for (server, parts) in self.shared.ring.servers().indices().zip(&self.shared.servers) {
            let (records, damaged) = parts.disk.census();
            self.shared.recorder.with(|history| history.disks.insert(server, records));
            let violation = |key| Violation {
                invariant: "no_damaged_record_stays",
                what: format!("{server}'s copy of {key} cannot be read"),
            };
            // Initial pairs may lie where nobody reads them.
            let owns = |key: &String| {
                let owners = self.shared.plan.keys.iter().find(|plan| plan.name == *key);
                owners.is_some_and(|plan| {
                    self.shared.ring.owners_of_key(key.as_bytes(), plan.n_max()).contains(&server)
                })
            };
            self.violations.extend(damaged.into_iter().filter(owns).map(violation));
        }
    }
}

/// What is not equal on the disks of a key's owners; of the cluster's n, whatever requests asked for.
fn disagreement(shared: &Shared) -> Option<String> {
    let quorum = Quorum::with_defaults(shared.servers.len(), None, None, None).ok()?;
    let disks: Vec<_> = shared.servers.iter().map(|parts| parts.disk.census()).collect();
    for key in &shared.plan.keys {
        let owners = shared.ring.owners_of_key(key.name.as_bytes(), quorum.n());
        let copy = |owner: &ServerIndex| {
            let (records, damaged) = &disks[owner.as_usize()];
            let mut record = records.get(&key.name).cloned().unwrap_or_default();
            // Each server drops the bytes of what has expired when it comes by.
            record.drop_expired(WallMs::MAX);
            (!damaged.contains(&key.name)).then_some(record)
        };
        // Without a scrub nobody finds the damage of a copy that no request asks for.
        let is_looked_at = |place: usize| shared.plan.scrub.0 > 0 || place < key.n_max();
        let copies: Vec<_> = owners
            .iter()
            .enumerate()
            .map(|(place, owner)| (place, owner, copy(owner)))
            .filter(|(place, _, copy)| copy.is_some() || is_looked_at(*place))
            .map(|(_, owner, copy)| (owner, copy))
            .collect();
        if copies.iter().any(|(_, copy)| copy.is_none() || *copy != copies[0].1) {
            return Some(format!("{} at its owners: {copies:?}", key.name));
        }
    }
    let mut marked = shared.servers.iter().zip(0..).filter(|(parts, _)| !parts.disk.kept().is_empty());
    marked.next().map(|(_, server)| format!("server {server} still keeps something for others"))
}

/// A key of which all servers that hold something hold nothing but tombstones. One that some server is given at its start is never forgotten, and copies
/// beyond the cluster's n are not made equal to the others.
fn left(shared: &Shared) -> Option<String> {
    let quorum = Quorum::with_defaults(shared.servers.len(), None, None, None).ok()?;
    let is_given = |place| shared.plan.given.iter().any(|given| given.key == place);
    let keys = shared.plan.keys.iter().enumerate();
    let keys: Vec<_> = keys.filter(|(place, key)| !is_given(*place) && key.n_max() <= quorum.n()).collect();
    let disks: Vec<_> = shared.servers.iter().map(|parts| parts.disk.census().0).collect();
    keys.iter().find_map(|(_, key)| {
        let held: Vec<_> =
            (0..).zip(&disks).filter_map(|(server, disk)| Some((server, disk.get(&key.name)?))).collect();
        // Each server drops what has expired when it comes by.
        let is_left = !held.is_empty() && held.iter().all(|(_, record)| record.is_deleted(0));
        is_left.then(|| format!("there are tombstones of {}: {held:?}", key.name))
    })
}

fn has_hints(disk: &Disk) -> bool {
    let is_hint = |kept: &Kept| match kept {
        Kept::Hint { .. } => true,
        Kept::Dirty(_) => false,
    };
    disk.kept().iter().any(is_hint)
}

fn register<F, Fut>(sim: &mut Sim<'static>, name: &str, program: F)
where
    F: Fn() -> Fut + 'static,
    Fut: Future<Output = turmoil::Result> + 'static,
{
    sim.host(name, program);
}

fn shared(plan: Plan, ips: Vec<IpAddr>, trace: Arc<Trace>, recorder: Arc<Recorder>) -> Shared {
    let servers = usize::from(plan.servers);
    let addresses: Vec<SocketAddr> = ips.iter().take(servers).map(|&ip| SocketAddr::new(ip, PORT)).collect();
    let entry = |address: &SocketAddr| ServerEntry {
        name: ServerName::new(&address.ip().to_string(), PORT).expect("an address is a name"),
        nodes: 16,
    };
    let list = ServerList::new(addresses.iter().map(entry).collect()).expect("distinct servers");
    let ring = Arc::new(Ring::new(list));
    server::tell_given(&plan, &ring, &recorder);
    let bytes_kept_ms = plan.expiry.as_ref().map_or(0, |expiry| expiry.clock_skew_ms_max);
    recorder.with(|history| history.bytes_kept_ms = bytes_kept_ms);
    if plan.repair_interval.is_some() {
        let quorum = Quorum::with_defaults(servers, None, None, None).expect("at least one server");
        recorder.with(|history| history.compared_n = Some(quorum.n()));
    }
    recorder.with(|history| history.is_flushed = plan.durability == Durability::Fsync);
    recorder.with(|history| history.hints_are_scarce = plan.hint_bytes_max < HINT_BYTES_PLENTY);
    let is_scarce = |scarcity: &Scarcity| scarcity.background_bytes_max < BACKGROUND_BYTES_PLENTY;
    recorder.with(|history| history.background_is_scarce = plan.scarcity.as_ref().is_some_and(is_scarce));
    let named = |index: ServerIndex| (Target::of(&ring.servers()[index].name), index);
    recorder.with(|history| history.targets = ring.servers().indices().map(named).collect());
    for key in &plan.keys {
        for n in key.quorums.iter().map(|quorum| quorum.n).chain([key.n_max()]) {
            let owners = ring.owners_of_key(key.name.as_bytes(), n).to_vec();
            recorder.with(|history| history.owners.insert((key.name.clone(), n), owners));
        }
    }
    let part = |server: usize| ServerParts {
        disk: Disk::new(
            u16::try_from(server).expect("servers are counted in 16 bits"),
            plan.flush_interval,
            seed::random(plan.seed, "disk", server as u64),
            recorder.clone(),
            trace.clone(),
        ),
        clock: Arc::new(SkewedClock::default()),
        wake: Notify::new(),
        stop: Default::default(),
        starts: Default::default(),
    };
    Shared {
        servers: (0..servers).map(part).collect(),
        renewals: ips.iter().map(|_| AtomicU64::default()).collect(),
        weather: Arc::new(Weather::new(seed::random(plan.seed, "weather", 0))),
        ring,
        addresses,
        ips,
        trace,
        recorder,
        plan,
        steps: Default::default(),
        healed: Default::default(),
        stopping: Default::default(),
        finished: Default::default(),
        sweeps_wanted: Default::default(),
        sweeps_done: Default::default(),
    }
}

/// Once the faults are over and things have settled, everything succeeds.
fn progress(history: &History) -> Vec<Violation> {
    let Some(healed) = history.healed else { return Vec::new() };
    let during_faults = history.operations.iter().filter(|operation| operation.called <= healed);
    let over = during_faults.map(|operation| operation.returned.unwrap_or(operation.deadline)).max();
    let settled = over.map_or(healed, |over| over.max(healed)) + micros(SETTLE);
    let failed = history.operations.iter().filter(|operation| {
        operation.called > settled
            && match operation.outcome {
                Outcome::Written { .. } | Outcome::Read { .. } => false,
                Outcome::Pending | Outcome::Failed | Outcome::Unknown | Outcome::Unavailable => true,
            }
    });
    let violation = |operation: &crate::history::Operation| Violation {
        invariant: "operations_succeed_once_faults_have_ended",
        what: format!("healed at {healed}: {operation:?}"),
    };
    failed.map(violation).collect()
}

/// Operations of a history by outcome: acknowledged writes, reads, failed, unknown, unavailable.
#[must_use]
pub fn tally(history: &History) -> [usize; 5] {
    let mut tally = [0; 5];
    for operation in &history.operations {
        match (&operation.action, &operation.outcome) {
            (Action::Write { .. } | Action::Read, Outcome::Written { .. }) => tally[0] += 1,
            (_, Outcome::Read { .. }) => tally[1] += 1,
            (_, Outcome::Failed) => tally[2] += 1,
            (_, Outcome::Unknown) => tally[3] += 1,
            (_, Outcome::Unavailable | Outcome::Pending) => tally[4] += 1,
        }
    }
    tally
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes every panic of a thread, also of tasks whose end nobody looks at.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            before(info);
        }));
    });
}
