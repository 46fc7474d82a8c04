//! One life of a server: the real code on a simulated port and disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dkvs_cluster::{Server, ServerConfig};
use dkvs_core::servers::ServerIndex;
use tokio::time::sleep;

use crate::clock::wall_clock;
use crate::seed;
use crate::shared::{PORT, Shared};
use crate::socket::SimSocket;
use crate::trace::now;

/// Pause before a start that failed is tried again, as whatever supervises a real server would.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Time a clean stop may take for what is under way.
const GRACE: Duration = Duration::from_secs(1);

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
        config.endpoint = shared.plan.endpoint.clone();
        let ip = shared.ips[me.as_usize()];
        let socket = SimSocket::listen(ip, PORT, shared.weather.clone(), shared.trace.clone()).await?;
        let (store, start) = parts.disk.open();
        shared.trace.note(now(), format_args!("server {me} starts: {start:?}"));
        let server = match Server::start(socket, store, start, Vec::new(), config).await {
            Ok(server) => server,
            Err(error) => {
                shared.trace.note(now(), format_args!("server {me} cannot start: {error}"));
                sleep(RESTART_PAUSE).await;
                continue;
            }
        };
        while !parts.stop.load(Ordering::Relaxed) {
            parts.wake.notified().await;
        }
        let stopped = server.stop(GRACE).await;
        if stopped.is_ok() {
            parts.disk.mark_clean();
        }
        shared.trace.note(now(), format_args!("server {me} stopped: {stopped:?}"));
        return Ok(());
    }
}
