//! The configuration file: every key with its default, read strictly, and overridden by flags.
//!
//! The file is flat, one name for one setting, each name ending in its unit. `configs/dkvs.toml` in the project
//! explains every key, and a test holds it to what is here. A key that is not known is an error, because a setting
//! that silently does nothing is found out at the worst moment.
//!
//! What it leaves out: whether the values make sense. That is said once, in [`crate::settings`], for what comes from
//! the file, from flags and from defaults alike.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use dkvs_cluster::SiblingLimits;
use dkvs_core::limits::VALUE_LEN_MAX_DEFAULT;
use dkvs_net::EndpointConfig;
use dkvs_storage::{Durability, FjallConfig};
use serde::Deserialize;

use crate::args::Flags;
use crate::settings::millis;

/// How alike a wrong key and a right one must be for the right one to be suggested, from 0 to 1.
const LIKENESS_MIN: f64 = 0.75;

/// What a configuration file may say. The fields' meaning and units are told in `configs/dkvs.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) listen: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) insecure: bool,
    pub(crate) ring_file: Option<PathBuf>,

    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) memory: bool,
    pub(crate) durability: DurabilityLevel,
    pub(crate) flush_interval_ms: u64,
    pub(crate) cache_bytes_max: u64,
    pub(crate) journal_bytes_max: u64,
    pub(crate) disk_free_bytes_min: u64,
    pub(crate) scrub_bytes_per_s: u64,
    pub(crate) scrub_pause_ms: u64,
    pub(crate) hint_bytes_max: u64,
    pub(crate) repair_interval_ms: u64,
    pub(crate) repair_bytes_per_s_max: u64,
    pub(crate) reap_interval_ms: u64,

    pub(crate) n: Option<usize>,
    pub(crate) r: Option<usize>,
    pub(crate) w: Option<usize>,
    pub(crate) sloppy: bool,

    pub(crate) value_len_max: usize,
    pub(crate) siblings_warn: usize,
    pub(crate) siblings_max: usize,
    pub(crate) datagram_len_max: usize,
    pub(crate) calls_max: usize,
    pub(crate) requests_max: usize,
    pub(crate) outbox_len_max: usize,
    pub(crate) sessions_max: usize,
    pub(crate) streams_max: usize,
    pub(crate) stream_bytes_max: usize,

    pub(crate) timeout_max_ms: u64,
    pub(crate) ping_interval_ms: u64,
    pub(crate) retransmit_min_ms: u64,
    pub(crate) retransmit_max_ms: u64,
    pub(crate) stream_idle_max_ms: u64,
    pub(crate) stop_grace_ms: u64,
    pub(crate) clock_skew_max_ms: u64,

    pub(crate) threads: Option<usize>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: LogFormat,
}

/// `durability`: when a write may be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DurabilityLevel {
    /// When it is on disk
    Fsync,
    /// When the system has it; it is on disk a moment later
    Interval,
    /// When the system has it, which writes it to disk when it likes
    Memory,
}

impl From<DurabilityLevel> for Durability {
    fn from(level: DurabilityLevel) -> Self {
        match level {
            DurabilityLevel::Fsync => Self::Fsync,
            DurabilityLevel::Interval => Self::Interval,
            DurabilityLevel::Memory => Self::Memory,
        }
    }
}

/// `log_format`: how the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// A line of text for each event
    Human,
    /// A JSON object a line, for log collectors
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let endpoint = EndpointConfig::default();
        let store = FjallConfig::default();
        let siblings = SiblingLimits::default();
        Self {
            listen: None,
            advertise: None,
            insecure: false,
            ring_file: None,
            data_dir: None,
            memory: false,
            durability: DurabilityLevel::Fsync,
            flush_interval_ms: millis(store.flush_interval),
            cache_bytes_max: store.cache_bytes_max,
            journal_bytes_max: store.journal_bytes_max,
            disk_free_bytes_min: 256 << 20,
            scrub_bytes_per_s: 4 << 20,
            scrub_pause_ms: 3_600_000,
            hint_bytes_max: 256 << 20,
            repair_interval_ms: 10_000,
            repair_bytes_per_s_max: 16 << 20,
            reap_interval_ms: 10_000,
            n: None,
            r: None,
            w: None,
            sloppy: false,
            value_len_max: VALUE_LEN_MAX_DEFAULT,
            siblings_warn: siblings.warn,
            siblings_max: siblings.max,
            datagram_len_max: endpoint.datagram_len_max,
            calls_max: endpoint.calls_max,
            requests_max: endpoint.requests_max,
            outbox_len_max: endpoint.outbox_len_max,
            sessions_max: endpoint.sessions_max,
            streams_max: endpoint.streams_max,
            stream_bytes_max: endpoint.stream_bytes_max,
            timeout_max_ms: 60_000,
            ping_interval_ms: 1_000,
            retransmit_min_ms: millis(endpoint.retransmit_min),
            retransmit_max_ms: millis(endpoint.retransmit_max),
            stream_idle_max_ms: millis(endpoint.stream_idle_max),
            stop_grace_ms: 5_000,
            clock_skew_max_ms: 60_000,
            threads: None,
            log: None,
            log_format: LogFormat::Human,
        }
    }
}

impl Config {
    /// Reads a file. Relative paths in it start at the file's own directory.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        let directory = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.ring_file, &mut config.data_dir].into_iter().flatten() {
            *path = directory.join(&*path);
        }
        Ok(config)
    }

    fn parse(text: &str, file: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let place = line.map_or(file.to_owned(), |line| format!("{file} line {line}"));
            match unknown_key(error.message()) {
                Some((key, suggestion)) => anyhow!("unknown key \"{key}\" in {place}; {suggestion}"),
                None => anyhow!("{place}: {}", error.message().trim_end().replace('\n', "; ")),
            }
        })
    }

    /// Lays the flags over what the file says.
    pub(crate) fn override_with(&mut self, flags: &Flags) {
        fn set<T: Clone>(setting: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        fn set_option<T: Clone>(setting: &mut Option<T>, flag: Option<&T>) {
            *setting = flag.cloned().or(setting.take());
        }
        set_option(&mut self.listen, flags.listen.as_ref());
        set_option(&mut self.ring_file, flags.ring.as_ref());
        set_option(&mut self.data_dir, flags.data_dir.as_ref());
        set(&mut self.durability, flags.durability.as_ref());
        set_option(&mut self.n, flags.n.as_ref());
        set_option(&mut self.r, flags.r.as_ref());
        set_option(&mut self.w, flags.w.as_ref());
        set_option(&mut self.threads, flags.threads.as_ref());
        set(&mut self.log_format, flags.log_format.as_ref());
        // `log` has a place for RUST_LOG between the flag and the file; see `logging`.
        self.insecure |= flags.insecure;
        self.memory = flags.memory || (self.memory && flags.data_dir.is_none());
    }
}

/// The key that serde's message says is unknown, and what to do about it. Serde offers both only as text; if it ever
/// words them otherwise, its own message is shown.
fn unknown_key(message: &str) -> Option<(&str, String)> {
    let (key, known) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let likeness = |candidate: &str| strsim::jaro_winkler(candidate, &key.replace('-', "_").to_lowercase());
    let nearest = known_keys(known).map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let suggestion = match nearest {
        Some((likeness, nearest)) if likeness >= LIKENESS_MIN => format!("did you mean \"{nearest}\"?"),
        _ => format!("known are {}", known_keys(known).collect::<Vec<_>>().join(", ")),
    };
    Some((key, suggestion))
}

fn known_keys(expected: &str) -> impl Iterator<Item = &str> {
    expected.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    const ANNOTATED: &str = include_str!("../../../configs/dkvs.toml");

    fn flags(arguments: &[&str]) -> Flags {
        let common = ["dkvs-server", "127.0.0.1", "1234"];
        Args::parse_from([&common, arguments].concat()).into_plan().unwrap().0
    }

    fn error(text: &str) -> String {
        Config::parse(text, "dkvs.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_what_is_allowed() {
        let table = [
            (
                "n = 3\n\ndurabilty = 1\n",
                "unknown key \"durabilty\" in dkvs.toml line 3; did you mean \"durability\"?",
            ),
            ("ring-file = 1", "unknown key \"ring-file\" in dkvs.toml line 1; did you mean \"ring_file\"?"),
            ("data = \"x\"", "unknown key \"data\" in dkvs.toml line 1; did you mean \"data_dir\"?"),
            ("colour = 1", "unknown key \"colour\" in dkvs.toml line 1; known are listen, advertise, "),
            ("[limits]\nn = 1", "unknown key \"limits\" in dkvs.toml line 1; "),
            ("n = -1", "dkvs.toml line 1: invalid value: integer `-1`"),
            ("\nn = \"3\"", "dkvs.toml line 2: invalid type: string \"3\""),
            (
                "durability = \"no\"",
                "dkvs.toml line 1: unknown variant `no`, expected one of `fsync`, `interval`",
            ),
            ("n = 1\nn = 2", "dkvs.toml line 2: duplicate key"),
            ("n = ", "dkvs.toml line 1: "),
        ];
        for (text, expected) in table {
            assert!(error(text).starts_with(expected), "{text:?} gave {}", error(text));
        }
    }

    #[test]
    fn the_annotated_file_names_every_key_and_its_default() {
        assert_eq!(Config::parse(ANNOTATED, "annotated").unwrap(), Config::default());
        // Keys whose default is worked out from others are shown as comments, `# key = example`.
        let uncommented: String = ANNOTATED.lines().map(|line| uncomment(line) + "\n").collect();
        Config::parse(&uncommented, "uncommented").unwrap();

        let message = error("no_such_key = 1");
        let (_, known) = message.split_once("known are ").unwrap();
        for key in known.split(", ") {
            let lines = uncommented.lines().filter(|line| line.starts_with(&format!("{key} = "))).count();
            assert_eq!(lines, 1, "{key} must be in configs/dkvs.toml once");
        }
    }

    /// Strips `# ` from a line that would be a setting without it.
    fn uncomment(line: &str) -> String {
        let setting = line.strip_prefix("# ").filter(|rest| {
            rest.split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        });
        setting.unwrap_or(line).to_owned()
    }

    #[test]
    fn the_three_server_files_are_read_and_differ_only_in_their_address() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/three-servers");
        let ring = fs::read_to_string(directory.join("servers.txt")).unwrap();
        let ring = dkvs_core::servers::parse(&ring, "servers.txt").unwrap();
        for (number, entry) in (1..).zip(&ring) {
            let mut config = Config::read(&directory.join(format!("server-{number}.toml"))).unwrap();
            assert_eq!(config.listen.take(), Some(entry.name.to_string()));
            assert_eq!(config.ring_file.take(), Some(directory.join("servers.txt")));
            assert_eq!(config, Config::default());
        }
        assert_eq!(ring.len(), 3);
    }

    #[test]
    fn paths_in_a_file_start_at_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dkvs.toml");
        fs::write(&path, "ring_file = \"servers.txt\"\ndata_dir = \"/var/lib/dkvs\"\n").unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.ring_file, Some(directory.path().join("servers.txt")));
        assert_eq!(config.data_dir, Some("/var/lib/dkvs".into()));
    }

    #[test]
    fn flags_override_the_file_and_nothing_else_does() {
        let file = "listen = \"127.0.0.1:1\"\nmemory = true\nn = 5\nr = 4\nthreads = 7\ninsecure = true\n";
        let read = Config::parse(file, "dkvs.toml").unwrap();
        let overridden = |arguments: &[&str]| {
            let mut config = read.clone();
            config.override_with(&flags(arguments));
            config
        };
        assert_eq!(overridden(&[]), read);
        let expected = Config { n: Some(3), w: Some(2), ..read.clone() };
        assert_eq!(overridden(&["-n", "3", "-w", "2"]), expected);
        let expected = Config { memory: false, data_dir: Some("d".into()), ..read.clone() };
        assert_eq!(overridden(&["--data-dir", "d"]), expected);
        let expected = Config {
            listen: Some("127.0.0.1:2".into()),
            ring_file: Some("r".into()),
            durability: DurabilityLevel::Interval,
            threads: Some(2),
            log_format: LogFormat::Json,
            ..read.clone()
        };
        let arguments = "--listen 127.0.0.1:2 --ring r --durability interval --threads 2 --log-format json";
        assert_eq!(overridden(&arguments.split(' ').collect::<Vec<_>>()), expected);
    }
}
