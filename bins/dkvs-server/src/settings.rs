//! What a server runs with: defaults, file and flags together, checked once.
//!
//! After [`Settings::new`] no number here is outside its range. What depends on the ring (the quorums) is checked when
//! the ring is known, in [`Settings::server`], before anything is opened.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, ensure};
use dkvs_cluster::{ServerConfig, SiblingLimits, WallClock};
use dkvs_core::limits::{RECORD_LEN_MAX, SIBLINGS_LEN_MAX};
use dkvs_core::quorum::Quorum;
use dkvs_core::ring::Ring;
use dkvs_core::servers::ServerIndex;
use dkvs_net::EndpointConfig;
use dkvs_storage::FjallConfig;

use crate::config::Config;

/// Most of anything that is counted. More would be a mistyped number, not a wish.
const COUNT_MAX: usize = 1 << 24;
/// Longest time that may be configured: a day.
const MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// More threads than any machine has cores.
const THREADS_MAX: usize = 1_024;

/// Effective settings. See [`Config`] for where they come from.
pub(crate) struct Settings {
    /// The rest of the settings, for the parts that are names and paths.
    pub(crate) config: Config,
    /// The engine's settings; `None` to keep data in memory.
    pub(crate) store: Option<FjallConfig>,
    pub(crate) threads: Option<usize>,
    /// How long a stop waits for requests that are being served.
    pub(crate) stop_grace: Duration,
    endpoint: EndpointConfig,
}

impl Settings {
    /// Checks every number.
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        within("value_len_max", config.value_len_max, 1..=RECORD_LEN_MAX)?;
        within("siblings_max", config.siblings_max, 1..=SIBLINGS_LEN_MAX)?;
        within("siblings_warn", config.siblings_warn, 2..=SIBLINGS_LEN_MAX)?;
        within("calls_max", config.calls_max, 1..=COUNT_MAX)?;
        within("requests_max", config.requests_max, 1..=COUNT_MAX)?;
        within("outbox_len_max", config.outbox_len_max, 1..=COUNT_MAX)?;
        within("sessions_max", config.sessions_max, 1..=COUNT_MAX)?;
        within("streams_max", config.streams_max, 1..=COUNT_MAX)?;
        within("timeout_max_ms", config.timeout_max_ms, 1..=MS_MAX)?;
        within("ping_interval_ms", config.ping_interval_ms, 10..=MS_MAX)?;
        within("retransmit_max_ms", config.retransmit_max_ms, 1..=MS_MAX)?;
        within("stream_idle_max_ms", config.stream_idle_max_ms, 1..=MS_MAX)?;
        within("stop_grace_ms", config.stop_grace_ms, 0..=MS_MAX)?;
        within("clock_skew_max_ms", config.clock_skew_max_ms, 0..=MS_MAX)?;
        within("flush_interval_ms", config.flush_interval_ms, 1..=MS_MAX)?;
        within("repair_interval_ms", config.repair_interval_ms, 0..=MS_MAX)?;
        within("reap_interval_ms", config.reap_interval_ms, 0..=MS_MAX)?;
        within("scrub_pause_ms", config.scrub_pause_ms, 1..=MS_MAX)?;
        config.threads.map(|threads| within("threads", threads, 1..=THREADS_MAX)).transpose()?;
        let endpoint = EndpointConfig {
            datagram_len_max: config.datagram_len_max,
            calls_max: config.calls_max,
            requests_max: config.requests_max,
            outbox_len_max: config.outbox_len_max,
            sessions_max: config.sessions_max,
            streams_max: config.streams_max,
            stream_bytes_max: config.stream_bytes_max,
            retransmit_min: Duration::from_millis(config.retransmit_min_ms),
            retransmit_max: Duration::from_millis(config.retransmit_max_ms),
            stream_idle_max: Duration::from_millis(config.stream_idle_max_ms),
        };
        let store = FjallConfig {
            cache_bytes_max: config.cache_bytes_max,
            flush_interval: Duration::from_millis(config.flush_interval_ms),
            journal_bytes_max: config.journal_bytes_max,
        };
        Ok(Self {
            store: (!config.memory).then_some(store),
            threads: config.threads,
            stop_grace: Duration::from_millis(config.stop_grace_ms),
            endpoint: endpoint.validated()?,
            config,
        })
    }

    /// What the server at `me` of `ring` is told. `addresses` are the ring's, in its order.
    pub(crate) fn server(
        &self,
        ring: &Arc<Ring>,
        me: ServerIndex,
        addresses: Vec<SocketAddr>,
        data_dir: Option<&PathBuf>,
    ) -> anyhow::Result<ServerConfig> {
        let Config { n, r, w, .. } = self.config;
        // Operators who see it from elsewhere do not know this process's working directory.
        let data_dir = data_dir.map(|path| std::path::absolute(path).unwrap_or(path.clone()));
        Ok(ServerConfig {
            quorum: Quorum::with_defaults(ring.servers().len(), n, r, w)
                .map_err(|error| anyhow!("the default quorum cannot be: {error}"))?,
            sloppy: self.config.sloppy,
            durability: self.config.durability.into(),
            disk_free_bytes_min: self.config.disk_free_bytes_min,
            scrub_bytes_per_s: self.config.scrub_bytes_per_s,
            scrub_pause: Duration::from_millis(self.config.scrub_pause_ms),
            hint_bytes_max: self.config.hint_bytes_max,
            repair_interval: Duration::from_millis(self.config.repair_interval_ms),
            repair_bytes_per_s_max: self.config.repair_bytes_per_s_max,
            reap_interval: Duration::from_millis(self.config.reap_interval_ms),
            ping_interval: Duration::from_millis(self.config.ping_interval_ms),
            siblings: SiblingLimits { warn: self.config.siblings_warn, max: self.config.siblings_max },
            value_len_max: self.config.value_len_max,
            clock_skew_ms_max: self.config.clock_skew_max_ms,
            timeout_max: Duration::from_millis(self.config.timeout_max_ms),
            endpoint: self.endpoint.clone(),
            data_dir: data_dir.map(|path| path.display().to_string()).unwrap_or_default(),
            ..ServerConfig::new(ring.clone(), me, addresses, wall_clock(), rand::random())?
        })
    }
}

fn within<T: PartialOrd + Display>(name: &str, value: T, allowed: RangeInclusive<T>) -> anyhow::Result<()> {
    let (min, max) = (allowed.start(), allowed.end());
    ensure!(allowed.contains(&value), "{name} is {value}; it must be from {min} to {max}");
    Ok(())
}

/// A duration in the unit of the file.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A system clock before 1970 reads as 1970; the servers' own clocks only go forward anyway.
fn wall_clock() -> WallClock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use dkvs_core::servers::parse;

    use super::*;

    fn ring() -> Arc<Ring> {
        let list = parse("127.0.0.1 1 1\n127.0.0.1 2 1\n127.0.0.1 3 1\n", "test").unwrap();
        Arc::new(Ring::new(list))
    }

    fn server(config: Config) -> anyhow::Result<ServerConfig> {
        Settings::new(config)?.server(&ring(), ServerIndex::new(0), Vec::new(), None)
    }

    #[test]
    fn the_defaults_are_those_of_the_libraries() {
        let ours = server(Config::default()).unwrap();
        let theirs = ServerConfig::new(ring(), ServerIndex::new(0), Vec::new(), wall_clock(), 0).unwrap();
        let rest = |config: &ServerConfig| {
            let ServerConfig {
                quorum,
                sloppy,
                durability,
                disk_free_bytes_min,
                scrub_bytes_per_s,
                scrub_pause,
                hint_bytes_max,
                repair_interval,
                repair_bytes_per_s_max,
                reap_interval,
                ping_interval,
                siblings,
                value_len_max,
                clock_skew_ms_max,
                timeout_max,
                endpoint,
                ..
            } = config.clone();
            let storage = (durability, disk_free_bytes_min, scrub_bytes_per_s, scrub_pause);
            let pace = (repair_interval, repair_bytes_per_s_max, reap_interval);
            let repair = (hint_bytes_max, pace, ping_interval, siblings);
            (
                (quorum, sloppy),
                storage,
                repair,
                value_len_max,
                clock_skew_ms_max,
                timeout_max,
                format!("{endpoint:?}"),
            )
        };
        assert_eq!(rest(&ours), rest(&theirs));
        assert_eq!(Settings::new(Config::default()).unwrap().store, Some(FjallConfig::default()));
    }

    #[test]
    fn a_number_out_of_range_is_named_with_its_range() {
        let set = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            server(config).unwrap_err().to_string()
        };
        let table = [
            (set(|c| c.value_len_max = 0), "value_len_max is 0; it must be from 1 to 67108864"),
            (
                set(|c| c.datagram_len_max = 100),
                "datagram_len_max is 100; it must be from 508 to 65507 bytes",
            ),
            (set(|c| c.requests_max = 0), "requests_max is 0; it must be from 1 to "),
            (set(|c| c.retransmit_min_ms = 900), "retransmit_min_ms is 900; it must be from 1 to "),
            (set(|c| c.timeout_max_ms = 0), "timeout_max_ms is 0; it must be from 1 to 86400000"),
            (set(|c| c.threads = Some(0)), "threads is 0; it must be from 1 to 1024"),
            (
                set(|c| c.n = Some(4)),
                "the default quorum cannot be: n is 4, but the ring has only 3 server(s)",
            ),
            (set(|c| c.w = Some(4)), "the default quorum cannot be: w is 4, but only n = 3 copies"),
            (set(|c| c.r = Some(0)), "the default quorum cannot be: r is 0; it must be at least 1"),
        ];
        for (error, expected) in table {
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
