//! One life of a server: the real code on a simulated port and disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dkvs_cluster::{Server, ServerConfig};
use dkvs_core::ring::Ring;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot};
use tokio::time::sleep;

use crate::client::value;
use crate::clock::wall_clock;
use crate::disk::SimStore;
use crate::history::Given;
use crate::plan::{DISK_FREE_BYTES_MIN, Plan};
use crate::recorder::Recorder;
use crate::seed;
use crate::shared::{PORT, Shared};
use crate::socket::SimSocket;
use crate::trace::now;

/// Pause before a start that failed is tried again, as whatever supervises a real server would.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Time a clean stop may take for what is under way.
const GRACE: Duration = Duration::from_secs(1);

/// The pairs that a server is given whenever it starts.
fn given(shared: &Shared, me: ServerIndex) -> Vec<(Bytes, Bytes)> {
    let to_me = shared.plan.given.iter().filter(|given| given.servers.contains(&me.as_usize()));
    to_me
        .map(|given| (shared.plan.keys[given.key].name.clone().into(), value(given.value, given.len)))
        .collect()
}

/// Writes down what servers are given.
pub(crate) fn tell_given(plan: &Plan, ring: &Ring, recorder: &Recorder) {
    for given in &plan.given {
        let key = plan.keys[given.key].name.clone();
        let actor = Actor::initial(key.as_bytes(), &value(given.value, given.len));
        let to = |server: ServerIndex| Given {
            server,
            key: key.clone(),
            value: given.value,
            dot: Dot { actor, counter: 1 },
        };
        let servers = ring.servers().indices().filter(|server| given.servers.contains(&server.as_usize()));
        recorder.with(|history| history.given.extend(servers.map(to)));
    }
}

/// A running server, whose gauges are read when it ends, in whatever way.
struct Life {
    server: Server<SimSocket, SimStore>,
    me: ServerIndex,
    shared: Arc<Shared>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.shared.recorder.lived(format!("server {}", self.me), self.server.levels());
    }
}

/// Runs the server until it is told to stop, or torn down.
pub(crate) async fn run(shared: Arc<Shared>, me: ServerIndex) -> turmoil::Result {
    let parts = &shared.servers[me.as_usize()];
    loop {
        let life = parts.starts.fetch_add(1, Ordering::Relaxed);
        let unique = u64::from(me.number()) << 32 | life;
        let seed = seed::derive(shared.plan.seed, "server", unique);
        let clock = wall_clock(&parts.clock);
        let mut config = ServerConfig::new(shared.ring.clone(), me, shared.addresses.clone(), clock, seed)?;
        config.durability = shared.plan.durability;
        config.endpoint = shared.plan.server_endpoint();
        config.disk_free_bytes_min = DISK_FREE_BYTES_MIN;
        config.hint_bytes_max = shared.plan.hint_bytes_max;
        config.repair_interval = shared.plan.repair_interval.unwrap_or(Duration::ZERO);
        config.repair_bytes_per_s_max = shared.plan.repair_bytes_per_s_max;
        config.reap_interval = shared.plan.reap_interval.unwrap_or(Duration::ZERO);
        if shared.plan.reap_interval.is_some() {
            // Tombstones stay for longer than that.
            config.timeout_max = shared.plan.timeout;
        }
        config.ping_interval = shared.plan.ping_interval;
        if let Some(expiry) = &shared.plan.expiry {
            config.clock_skew_ms_max = expiry.clock_skew_ms_max;
        }
        (config.scrub_bytes_per_s, config.scrub_pause) = shared.plan.scrub;
        if let Some(scarcity) = &shared.plan.scarcity {
            config.changes_max = scarcity.changes_max;
            config.change_bytes_max = scarcity.change_bytes_max;
            config.batch_max = scarcity.batch_max;
            config.background_bytes_max = scarcity.background_bytes_max;
        }
        let ip = shared.ips[me.as_usize()];
        let socket = SimSocket::listen(ip, PORT, shared.weather.clone(), shared.trace.clone()).await?;
        let (store, start) = parts.disk.open();
        shared.trace.note(now(), format_args!("server {me} starts: {start:?}"));
        let server = match Server::start(socket, store, start, given(&shared, me), config).await {
            Ok(server) => Life { server, me, shared: shared.clone() },
            Err(error) => {
                shared.trace.note(now(), format_args!("server {me} cannot start: {error}"));
                sleep(RESTART_PAUSE).await;
                continue;
            }
        };
        while !parts.stop.load(Ordering::Relaxed) {
            parts.wake.notified().await;
        }
        let stopped = server.server.stop(GRACE).await;
        if stopped.is_ok() {
            parts.disk.mark_clean();
        }
        shared.trace.note(now(), format_args!("server {me} stopped: {stopped:?}"));
        return Ok(());
    }
}
