//! A server and what it stands on, from opening its data to the clean stop.
//!
//! The order of a stop is the point of it: requests end, the store is closed, and only then is the data directory
//! marked clean. If anything on the way fails it is not marked, and the next start trusts it less.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use dkvs_cluster::{ReplicaError, Server, ServerConfig};
use dkvs_net::Port;
use dkvs_storage::{DataDir, DataDirError, FjallConfig, FjallStore, MemoryStore, Start, StoreError};
use tokio::task::{JoinSet, spawn_blocking};

use crate::banner::Banner;
use crate::settings::millis;
use crate::signals::Signals;

/// A server's data, opened.
pub(crate) enum Data {
    /// In a directory.
    Disk { dir: DataDir, store: FjallStore, start: Start },
    /// Gone when the process ends.
    Memory,
}

impl Data {
    /// Opens the directory at `path` for the server called `owner`, and the store in it.
    pub(crate) async fn open(path: PathBuf, owner: String, config: FjallConfig) -> anyhow::Result<Self> {
        // Replaying journals may take seconds of reading.
        spawn_blocking(move || Self::open_blocking(&path, &owner, &config)).await?
    }

    fn open_blocking(path: &Path, owner: &str, config: &FjallConfig) -> anyhow::Result<Self> {
        // The libraries' messages already tell their causes.
        let began = Instant::now();
        let (dir, start) =
            DataDir::open(path, owner).map_err(|error| anyhow!("{error}{}", advice(&error)))?;
        let store = FjallStore::open(&dir.store_path(), config);
        let store = store.map_err(|error| anyhow!("{error}{}", store_advice(&error)))?;
        let took_ms = millis(began.elapsed());
        let path = path.display();
        match start {
            Start::New | Start::Clean => tracing::info!(%path, ?start, took_ms, "data opened"),
            Start::Unclean => tracing::warn!(
                %path,
                took_ms,
                "data recovered after a stop that was not clean, or copied: counting goes on in a new incarnation"
            ),
        }
        Ok(Self::Disk { dir, store, start })
    }

    /// How the data's last use ended.
    pub(crate) fn start(&self) -> Start {
        match self {
            Self::Disk { start, .. } => *start,
            Self::Memory => Start::New,
        }
    }

    /// Where it is; `None` in memory.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Disk { dir, .. } => Some(dir.path()),
            Self::Memory => None,
        }
    }
}

/// What to do about an error whose own message does not say.
pub(crate) fn advice(error: &DataDirError) -> &'static str {
    match error {
        DataDirError::Io { .. } => "; check the path and its permissions, or choose another with --data-dir",
        DataDirError::InUse { .. } => "; stop it, or choose another directory with --data-dir",
        DataDirError::Garbage { .. } => "; restore the file, or start with an empty directory",
        DataDirError::OwnedByOther { .. }
        | DataDirError::NotADataDir { .. }
        | DataDirError::NewerFormat { .. }
        | DataDirError::OlderFormat { .. }
        | DataDirError::NoDataDir { .. } => "",
    }
}

pub(crate) fn store_advice(error: &StoreError) -> &'static str {
    match error {
        StoreError::Corrupt { .. } => {
            "; keep the data directory for inspection, and start with an empty one: other servers have copies"
        }
        StoreError::Io { .. } => "; check the path and its permissions",
        StoreError::InUse { .. } => "; stop the other process",
        StoreError::Refused { .. }
        | StoreError::Poisoned { .. }
        | StoreError::Unknown { .. }
        | StoreError::Closed => "",
    }
}

/// A server that serves.
pub(crate) enum Running {
    /// With its data directory, held locked.
    Disk { server: Server<Port, FjallStore>, dir: DataDir },
    /// Without one.
    Memory(Server<Port, MemoryStore>),
}

impl Running {
    /// Starts to serve on `port` from `data`.
    pub(crate) async fn start(
        port: Port,
        data: Data,
        initial: Vec<(Bytes, Bytes)>,
        config: ServerConfig,
    ) -> anyhow::Result<Self> {
        let failed = |error| {
            let advice = match &error {
                ReplicaError::Storage(error) => store_advice(error),
                ReplicaError::Refused(_) | ReplicaError::Damaged => "",
            };
            anyhow!("cannot start on {}: {error}{advice}", config.data_dir)
        };
        match data {
            Data::Disk { dir, store, start } => {
                let server =
                    Server::start(port, store, start, initial, config.clone()).await.map_err(failed)?;
                Ok(Self::Disk { server, dir })
            }
            Data::Memory => {
                let store = MemoryStore::new();
                let started = Server::start(port, store, Start::New, initial, config.clone()).await;
                Ok(Self::Memory(started.map_err(failed)?))
            }
        }
    }

    /// Where it receives.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Disk { server, .. } => server.local_addr(),
            Self::Memory(server) => server.local_addr(),
        }
    }

    /// Stops. After `Ok`, what was acknowledged is on disk, and the directory says so.
    async fn stop(self, grace: Duration) -> anyhow::Result<()> {
        let address = self.local_addr();
        match self {
            Self::Disk { server, dir } => {
                let stopped = server.stop(grace).await;
                stopped.map_err(|error| anyhow!("{address} could not make everything durable: {error}"))?;
                drop(server);
                let marked = spawn_blocking(|| dir.mark_clean()).await?;
                marked.map_err(|error| anyhow!("{address} could not mark its data directory clean: {error}"))
            }
            Self::Memory(server) => Ok(server.stop(grace).await?),
        }
    }
}

/// Tells that `servers` run, waits for a signal, and stops them all at once. The first error is returned, after all
/// have stopped or failed to.
pub(crate) async fn until_signal(
    servers: Vec<Running>,
    banner: &Banner,
    grace: Duration,
) -> anyhow::Result<()> {
    // Until now a signal would have killed the process, which is safe and quicker than waiting for the start.
    let mut signals = Signals::install().context("cannot listen for signals")?;
    banner.print();
    signals.next().await;
    tracing::info!("stopping");
    signals.exit_at_next();
    let mut stops = JoinSet::new();
    for server in servers {
        stops.spawn(server.stop(grace));
    }
    let mut result = Ok(());
    while let Some(stopped) = stops.join_next().await {
        if let Err(error) = stopped.unwrap_or_else(|panic| Err(panic.into())) {
            tracing::error!(error = format_args!("{error:#}"), "not a clean stop");
            result = result.and(Err(error));
        }
    }
    if result.is_ok() {
        tracing::info!("stopped");
        banner.print_stopped();
    }
    result
}
