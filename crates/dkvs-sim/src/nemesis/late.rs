//! Requests and answers that arrive when their senders have gone on.
//!
//! They make a put take effect twice, or after what was written later. Other faults bring this about in one run of a
//! thousand; these are aimed at the moments that matter, in runs of their own, so as not to change the others.
//!
//! ```text
//!   held up   client ──put─────────────────────────> arrives       the client asks another server meanwhile
//!   echoed    client ──put──> refused, or done ────> arrives again   the client asks another server meanwhile
//!   broken    client ══put═╪═══════════════════════> arrives       the client asks another server meanwhile
//!   stuck     client ──put──> server ── disk ───────> begun         the client asks another server meanwhile
//!   between   client ──put──> server ─ answer ─────────> arrives
//!                               restart ── "who are you?" ──> client ──put again──────────> arrives
//!   refused   client ──put──> server ─ answer ───────────────────> arrives
//!                               restart ── "who are you?" ──> client ──put again──> no space, and no other server has any
//! ```

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{DiskFault, Fault, NetworkFault, QUIET, Strike, server};
use crate::plan::{DISK_FREE_BYTES_MIN, Plan, pick};
use crate::seed;
use crate::shared::Host;
use crate::world::World;

/// Requests and answers arrive when their senders have gone on.
#[derive(Clone, Copy, Debug)]
pub enum LateFault {
    /// For so long, what the first machine sends to the second arrives only at the end.
    HeldUp(Host, Host, Duration),
    /// For so long, what the first machine sends to the second arrives at once, and a copy of it at the end.
    Echoed(Host, Host, Duration),
    /// For so long, streams from the first machine to the second break for the first when it has sent, and for the second when
    /// what was sent has arrived, at the end.
    Broken(Host, Host),
    /// As `HeldUp`, from the next datagram on that the second sends to the first.
    HeldUpOnceSpokenTo(Host, Host, Duration),
    /// This server is killed and started at once.
    Restart(Host),
    /// This machine begins with a new client, which has not talked to any server.
    NewClient(Host),
}

/// The client library asks the next server when one has been silent for this part of its timeout, at most.
const SILENCE_SHARE: u32 = 4;

/// Nothing is late for longer: soon after all faults have ended, nothing must linger.
const LATE_MAX: Duration = Duration::from_secs(2);

/// How long a client waits for a sign of life.
fn patience(plan: &Plan) -> Duration {
    (plan.timeout / SILENCE_SHARE).min(plan.silence_max())
}

/// So many times a client's patience, at random.
fn patience_times(times: std::ops::Range<f64>, plan: &Plan, random: &mut StdRng) -> Duration {
    patience(plan).mul_f64(random.random_range(times)).min(LATE_MAX)
}

/// In a run with late messages, one or more a second; in some others, what is about refusals.
pub(super) fn plan(plan: &Plan, random: &mut StdRng) -> Vec<Strike> {
    if !plan.late {
        return if is_about_refusals(plan) { refusals(plan, random) } else { Vec::new() };
    }
    let mut strikes = Vec::new();
    let mut at = QUIET;
    let gap_max = Duration::from_millis(if plan.is_crowded { 500 } else { 1_000 });
    while at < plan.chaos_max() {
        at += gap_max.mul_f64(random.random_range(0.0..1.0));
        let server = server(plan, random);
        strikes.extend(match random.random_range(0..7) {
            _ if plan.is_crowded && random.random_bool(0.5) => echoed(plan, server, at, random),
            0 => held_up(plan, server, at, random),
            1 => echoed(plan, server, at, random),
            2 => broken(plan, server, at, random),
            3 => between(plan, server, client(plan, random), at, random),
            4 => twice(plan, server, at, random),
            5 => first_contact(plan, server, at, random),
            _ => stuck(plan, server, at, random),
        });
    }
    strikes
}

/// One run of nine without late messages, as any of these would be a second reason not to know what became of a put.
fn is_about_refusals(plan: &Plan) -> bool {
    seed::random(plan.seed, "about refusals", 0).random_ratio(1, 9)
}

/// Restarts after which nothing but refusals is heard. Always of the same server: what would have been passed on by others that
/// were restarted is of unknown outcome for that alone.
fn refusals(plan: &Plan, random: &mut StdRng) -> Vec<Strike> {
    let server = server(plan, random);
    let mut strikes = Vec::new();
    let mut at = QUIET;
    while at < plan.chaos_max() {
        let restart = at + patience_times(0.1..0.6, plan, random);
        let freed = restart + patience_times(1.0..4.0, plan, random);
        strikes.extend(refused(plan, server, (at, restart, freed), random));
        at = freed + LATE_MAX.mul_f64(random.random_range(0.0..1.0));
    }
    strikes
}

/// The machines with clients.
fn clients(plan: &Plan) -> std::ops::Range<Host> {
    usize::from(plan.servers)..usize::from(plan.servers + plan.client_hosts)
}

/// One of them.
fn client(plan: &Plan, random: &mut StdRng) -> Host {
    random.random_range(clients(plan))
}

fn strike(at: Duration, fault: LateFault) -> Strike {
    Strike { at, lasts: Duration::ZERO, fault: Fault::Late(fault) }
}

/// A client's requests arrive when it has asked another server.
fn held_up(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let lasts = patience_times(1.0..8.0, plan, random);
    let client = client(plan, random);
    // Long values go by stream, which only a clogged link holds up, both ways.
    let is_clogged = random.random_bool(0.4);
    vec![if is_clogged {
        Strike { at, lasts, fault: Fault::Network(NetworkFault::Clog(server, client)) }
    } else {
        strike(at, LateFault::HeldUp(client, server, lasts))
    }]
}

/// Requests arrive once more when their client has asked another server, some before they expire, some after: one client's to
/// one server, or everybody's.
fn echoed(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let lasts = patience_times(0.1..1.5, plan, random);
    if random.random_bool(0.5) {
        let servers = 0..usize::from(plan.servers);
        let links = clients(plan).flat_map(|client| servers.clone().map(move |server| (client, server)));
        links.map(|(client, server)| strike(at, LateFault::Echoed(client, server, lasts))).collect()
    } else {
        vec![strike(at, LateFault::Echoed(client(plan, random), server, lasts))]
    }
}

/// Connections to a server fail for the clients that have sent long values over them, and ask another server.
fn broken(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let lasts = patience_times(0.5..8.0, plan, random);
    let breaks = |client| Strike { at, lasts, fault: Fault::Late(LateFault::Broken(client, server)) };
    clients(plan).map(breaks).collect()
}

/// A put waits in a server for the disk, whose client hears nothing and asks another server.
fn stuck(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let lasts = patience_times(2.0..8.0, plan, random);
    let slow = Strike { at, lasts, fault: Fault::Disk(DiskFault::Slow(server, (lasts * 2).min(LATE_MAX))) };
    let deaf = clients(plan).map(|client| strike(at, LateFault::HeldUp(server, client, lasts)));
    std::iter::once(slow).chain(deaf).collect()
}

/// A server is restarted while its answer is under way, and gets the request again when its client has that answer.
fn between(plan: &Plan, server: Host, client: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let round_trip = (plan.latency.0 + plan.latency.1).max(Duration::from_millis(50));
    let mut some = |most: Duration| most.mul_f64(random.random_range(0.0..1.0));
    let restart = at + some(patience(plan));
    let answered = restart + some(round_trip * 4);
    let arrives = answered + some(plan.timeout.min(LATE_MAX));
    vec![
        strike(at, LateFault::HeldUp(server, client, answered - at)),
        strike(restart, LateFault::HeldUp(server, client, Duration::ZERO)),
        strike(restart, LateFault::Restart(server)),
        strike(restart, LateFault::HeldUpOnceSpokenTo(client, server, arrives - restart)),
    ]
}

/// A server is restarted twice, and what the process between has to say, which nobody has proved an address to, comes after the
/// first words of the next.
fn twice(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let first = strike(at, LateFault::Restart(server));
    std::iter::once(first).chain(between(plan, server, client(plan, random), at, random)).collect()
}

/// As `between`, for a client that meets the server for the first time: it cannot tell which of two processes came later.
fn first_contact(plan: &Plan, server: Host, at: Duration, random: &mut StdRng) -> Vec<Strike> {
    let client = client(plan, random);
    let new = strike(at, LateFault::NewClient(client));
    std::iter::once(new).chain(between(plan, server, client, at, random)).collect()
}

/// A server is restarted while its answers are under way, and its clients make their puts anew. By then no server has space for
/// them, and all refuse: each for itself, and none for the process before.
fn refused(
    plan: &Plan,
    server: Host,
    (at, restart, freed): (Duration, Duration, Duration),
    random: &mut StdRng,
) -> Vec<Strike> {
    let free = *pick(&[DISK_FREE_BYTES_MIN - 1, DISK_FREE_BYTES_MIN / 4 - 1], random);
    let held_up = |client| strike(at, LateFault::HeldUp(server, client, freed - at));
    let heard = |client| strike(restart, LateFault::HeldUp(server, client, Duration::ZERO));
    let full = |server| {
        let fault = Fault::Disk(DiskFault::Full(server, free));
        Strike { at: restart, lasts: freed - restart, fault }
    };
    let mut strikes: Vec<_> = clients(plan).flat_map(|client| [held_up(client), heard(client)]).collect();
    strikes.extend((0..usize::from(plan.servers)).map(full));
    strikes.push(strike(restart, LateFault::Restart(server)));
    strikes
}

impl LateFault {
    /// Only for streams there is something to undo: late datagrams arrive by themselves.
    pub(super) fn start(&self, world: &mut World) -> bool {
        match *self {
            Self::HeldUp(from, to, lasts) => world.late(from, to, lasts),
            Self::Echoed(from, to, lasts) => world.echo(from, to, lasts),
            Self::HeldUpOnceSpokenTo(from, to, lasts) => world.late_once_spoken_to(from, to, lasts),
            Self::Broken(from, to) => world.break_streams(from, to),
            Self::Restart(server) => world.restart(server),
            Self::NewClient(host) => world.renew_client(host),
        }
        matches!(self, Self::Broken(..))
    }

    pub(super) fn end(&self, world: &mut World) {
        if let Self::Broken(from, to) = *self {
            world.stop_breaking_streams(from, to);
        }
    }
}
