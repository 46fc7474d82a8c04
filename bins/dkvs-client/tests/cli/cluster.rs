//! A small cluster, and the client binary run on it.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use dkvs::{Bytes, Ring, ServerList, ServerName};
use dkvs_cluster::{Server, ServerConfig};
use dkvs_core::servers::ServerEntry;
use dkvs_net::{Port, Socket};
use dkvs_storage::{MemoryStore, Start};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// What the client may take; far more than it needs.
const PATIENCE: &str = "30s";

/// Servers, of which some may be silent, and a directory whose `servers.txt` lists them.
pub(crate) struct Cluster {
    pub(crate) ring: Arc<Ring>,
    /// By index; the first `up` of them answer.
    pub(crate) names: Vec<ServerName>,
    pub(crate) directory: TempDir,
    /// How far servers' wall clocks are ahead, in milliseconds.
    ahead_ms: Arc<AtomicU64>,
    _servers: Vec<Server<Port, MemoryStore>>,
    /// The ports of silent servers, held so that nobody else gets and answers on them.
    _silent: Vec<Port>,
    _runtime: Runtime,
}

/// What a run of the client came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Cluster {
    /// Three servers.
    pub(crate) fn start() -> Self {
        Self::start_with(3, 3, Vec::new())
    }

    /// `count` servers of which `up` answer, that all hold some pairs from the start.
    pub(crate) fn start_with(count: usize, up: usize, initial: Vec<(Bytes, Bytes)>) -> Self {
        Self::start_configured(count, up, initial, |_| {})
    }

    /// The same, with something else in their configurations.
    pub(crate) fn start_configured(
        count: usize,
        up: usize,
        initial: Vec<(Bytes, Bytes)>,
        configure: fn(&mut ServerConfig),
    ) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let mut ports = runtime.block_on(async {
            let mut ports = Vec::new();
            for _ in 0..count {
                ports.push(Port::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port"));
            }
            ports
        });
        // Indices are in the order of names, which for one host is that of ports.
        ports.sort_by_key(|port| port.local_addr().port());
        let addresses: Vec<_> = ports.iter().map(Socket::local_addr).collect();
        let names: Vec<_> =
            addresses.iter().map(|address| address.to_string().parse().expect("a name")).collect();
        let entry = |name: &ServerName| ServerEntry { name: name.clone(), nodes: 4 };
        let list = ServerList::new(names.iter().map(entry).collect()).expect("a list");
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("servers.txt"), list.to_string()).expect("a file");
        let ring = Arc::new(Ring::new(list));
        let silent = ports.split_off(up);
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let servers = runtime.block_on(async {
            let mut servers = Vec::new();
            for (me, port) in ring.servers().indices().zip(ports) {
                let seed = u64::from(port.local_addr().port());
                let ahead_ms = ahead_ms.clone();
                let clock = Arc::new(move || now_ms() + ahead_ms.load(Ordering::Relaxed));
                let config = ServerConfig::new(ring.clone(), me, addresses.clone(), clock, seed);
                let mut config = config.expect("a configuration");
                configure(&mut config);
                let server =
                    Server::start(port, MemoryStore::new(), Start::New, initial.clone(), config).await;
                servers.push(server.expect("a server"));
            }
            servers
        });
        Self { ring, names, directory, ahead_ms, _servers: servers, _silent: silent, _runtime: runtime }
    }

    /// Lets time pass on servers' wall clocks.
    pub(crate) fn advance_clocks(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Runs the client with these arguments, separated by spaces.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        self.run_args(arguments.split_ascii_whitespace())
    }

    pub(crate) fn run_args<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        let mut client = client(self.directory.path());
        ran(client.args(["--timeout", PATIENCE]).args(arguments))
    }

    /// Runs the client with something on its stdin.
    pub(crate) fn run_with_stdin(&self, arguments: &str, stdin: &[u8]) -> Ran {
        let mut client = client(self.directory.path());
        client.args(["--timeout", PATIENCE]).args(arguments.split_ascii_whitespace());
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn().expect("the client to start");
        child.stdin.take().expect("its stdin").write_all(stdin).expect("the client to read its stdin");
        Ran::of(child.wait_with_output().expect("the client to end"))
    }

    /// Writes a file next to `servers.txt`.
    pub(crate) fn file(&self, name: &str, content: &[u8]) {
        std::fs::write(self.directory.path().join(name), content).expect("a file");
    }

    /// A key whose first owner is the server with this name.
    pub(crate) fn key_of(&self, name: &ServerName) -> String {
        let first = |key: &String| self.ring.owners_of_key(key.as_bytes(), 1)[0];
        let mut keys = (0..).map(|number| format!("key{number}"));
        keys.find(|key| self.ring.servers()[first(key)].name == *name).expect("a key")
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set");
    u64::try_from(now.as_millis()).expect("milliseconds fit")
}

/// The client binary in a directory, with nothing from the environment.
pub(crate) fn client(directory: &Path) -> Command {
    let mut client = Command::new(env!("CARGO_BIN_EXE_dkvs-client"));
    client.current_dir(directory).stdin(Stdio::null());
    for variable in ["DKVS_SERVERS", "DKVS_CONNECT", "RUST_LOG"] {
        client.env_remove(variable);
    }
    client
}

pub(crate) fn ran(client: &mut Command) -> Ran {
    Ran::of(client.output().expect("the client to start"))
}

impl Ran {
    pub(crate) fn of(output: std::process::Output) -> Self {
        let stderr = String::from_utf8(output.stderr).expect("text on stderr");
        Self { code: output.status.code().expect("an exit status"), stdout: output.stdout, stderr }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on stdout")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Exit status, stdout and stderr are exactly these.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, stdout: &str, stderr: &str) {
        let stdout_shown = String::from_utf8_lossy(&self.stdout);
        assert_eq!((self.code, &*stdout_shown, &*self.stderr), (code, stdout, stderr));
    }

    /// It is a usage error that says this, and nothing else happened.
    #[track_caller]
    pub(crate) fn is_usage_error(&self, part: &str) {
        assert_eq!((self.code, self.text()), (2, ""), "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        assert!(self.stderr.contains("For more information, try '--help'."), "{self:?}");
    }
}
