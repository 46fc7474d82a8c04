//! Servers of one ring as processes that a test kills, damages and starts again.
//!
//! ```text
//!   DIRECTORY/servers.txt   the ring
//!            /1.toml        a configuration for each server
//!            /1.log         what it has said on its standard error, over all its starts
//!            /1/            its disk: what a test may mount over, or fill
//!            /1/data/       its data directory
//! ```
//! All take free ports on loopback. A fleet that is dropped kills its processes and keeps their files.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dkvs::{Client, ClientConfig, Ring, ServerList, ServerName};
use dkvs_core::servers::ServerEntry;
use dkvs_net::Port;
use rand::RngExt;

/// Longer than any start or stop that is not stuck, on any machine.
const START_MAX: Duration = Duration::from_secs(120);
/// How often a process is looked at that is to end.
const POLL: Duration = Duration::from_millis(2);
/// Virtual nodes of a server.
const NODES: u32 = 16;

/// Servers of one ring. They are counted from 0, and called by 1 more.
pub struct Fleet {
    binary: PathBuf,
    directory: PathBuf,
    ports: Vec<u16>,
    members: Vec<Member>,
}

#[derive(Default)]
struct Member {
    running: Option<Child>,
    readiness: Option<Receiver<()>>,
}

impl Fleet {
    /// `count` servers below `directory`, with these lines in each one's configuration. Starts nothing.
    ///
    /// # Panics
    /// When the directory cannot be written.
    #[must_use]
    pub fn new(binary: &Path, directory: &Path, count: usize, settings: &str) -> Self {
        let ports = free_ports(count);
        let lines: Vec<String> = ports.iter().map(|port| format!("127.0.0.1 {port} {NODES}\n")).collect();
        fs::write(directory.join("servers.txt"), lines.concat()).expect("the directory can be written");
        let fleet = Self {
            binary: binary.into(),
            directory: directory.into(),
            ports,
            members: (0..count).map(|_| Member::default()).collect(),
        };
        for server in fleet.all() {
            fs::create_dir_all(fleet.disk(server)).expect("the directory can be written");
            let (number, port) = (1 + server, fleet.ports[server]);
            let config = format!(
                "listen = \"127.0.0.1:{port}\"\nring_file = \"servers.txt\"\ndata_dir = \"{number}/data\"\n{settings}\n"
            );
            let path = directory.join(format!("{number}.toml"));
            fs::write(path, config).expect("the directory can be written");
        }
        fleet
    }

    /// Every server's number.
    #[must_use]
    pub fn all(&self) -> Vec<usize> {
        (0..self.ports.len()).collect()
    }

    /// The directory that holds a server's data directory and nothing else.
    #[must_use]
    pub fn disk(&self, server: usize) -> PathBuf {
        self.directory.join((1 + server).to_string())
    }

    /// A server's data directory.
    #[must_use]
    pub fn data(&self, server: usize) -> PathBuf {
        self.disk(server).join("data")
    }

    /// What its `OWNER` says.
    #[must_use]
    pub fn owner(&self, server: usize) -> String {
        format!("127.0.0.1 {}", self.ports[server])
    }

    fn log_path(&self, server: usize) -> PathBuf {
        self.directory.join(format!("{}.log", 1 + server))
    }

    /// How long a server's log is by now.
    #[must_use]
    pub fn log_len(&self, server: usize) -> u64 {
        fs::metadata(self.log_path(server)).map_or(0, |log| log.len())
    }

    /// What a server has logged since its log had this length.
    ///
    /// # Panics
    /// When the log cannot be read.
    #[must_use]
    pub fn log_since(&self, server: usize, start: u64) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(self.log_path(server)) {
            log.seek(SeekFrom::Start(start)).expect("a log can be read");
            log.read_to_end(&mut text).expect("a log can be read");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Starts a server that does not run, and does not wait.
    ///
    /// # Panics
    /// When it runs, or there is no such program.
    pub fn launch(&mut self, server: usize) {
        let member = &mut self.members[server];
        assert!(member.running.is_none(), "one process a server");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(server));
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.directory.join(format!("{}.toml", 1 + server)));
        // A panic is looked for by its message; where it came from is for people.
        command.current_dir(&self.directory).env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.expect("a log can be written"));
        let mut child = command.spawn().expect("the server is a program");
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let (ready, readiness) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("dkvs-client") {
                    // Nobody may be waiting.
                    let _ = ready.send(());
                }
            }
        });
        let member = &mut self.members[server];
        (member.running, member.readiness) = (Some(child), Some(readiness));
    }

    /// Waits until a launched server serves.
    ///
    /// # Errors
    /// How it ended, if it did.
    ///
    /// # Panics
    /// When neither happens within two minutes.
    pub fn wait_ready(&mut self, server: usize) -> Result<(), ExitStatus> {
        let readiness = self.members[server].readiness.take();
        let Some(readiness) = readiness else { return Ok(()) };
        if readiness.recv_timeout(START_MAX).is_ok() {
            return Ok(());
        }
        // Its standard output is closed, so it has ended, or will at once.
        Err(self.wait_end(server))
    }

    /// Starts these servers, all at the same time, and waits until they serve.
    ///
    /// # Panics
    /// When one ends instead; what it has logged is shown.
    pub fn start(&mut self, servers: &[usize]) {
        let logs: Vec<u64> = servers.iter().map(|&server| self.log_len(server)).collect();
        servers.iter().for_each(|&server| self.launch(server));
        for (&server, start) in servers.iter().zip(logs) {
            if let Err(status) = self.wait_ready(server) {
                let log = self.log_since(server, start);
                panic!("server {} ended with {status} while it started: {log}", 1 + server);
            }
        }
    }

    /// How a server that was started has ended, if it has.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self, server: usize) -> Option<ExitStatus> {
        let child = self.members[server].running.as_mut()?;
        child.try_wait().expect("a child can be looked at")
    }

    /// Whether it was started, and nobody has killed or stopped it since.
    #[must_use]
    pub fn is_started(&self, server: usize) -> bool {
        self.members[server].running.is_some()
    }

    /// `kill -9`, all of them before any is waited for. They need not run.
    pub fn kill(&mut self, servers: &[usize]) {
        for &server in servers {
            // An error means that it has ended already.
            let _ = self.members[server].running.as_mut().map(Child::kill);
        }
        for &server in servers {
            let member = std::mem::take(&mut self.members[server]);
            let _ = member.running.map(|mut child| child.wait());
        }
    }

    /// Asks a server to stop, as `kill` does, and waits until it has.
    ///
    /// # Panics
    /// When it does not run, or does not stop.
    pub fn terminate(&mut self, server: usize) -> ExitStatus {
        let child = self.members[server].running.as_ref().expect("it runs");
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        assert!(kill.expect("there is a kill command").success(), "it can be sent a signal");
        self.wait_end(server)
    }

    fn wait_end(&mut self, server: usize) -> ExitStatus {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(status) = self.ended(server) {
                self.members[server] = Member::default();
                return status;
            }
            if Instant::now() > deadline {
                let log = self.log_since(server, 0);
                self.kill(&[server]);
                panic!("server {} neither serves nor ends: {log}", 1 + server);
            }
            std::thread::sleep(POLL);
        }
    }

    /// The ring.
    ///
    /// # Panics
    /// Never: its lines were written by this type.
    #[must_use]
    pub fn ring(&self) -> Ring {
        let name = |port| ServerName::new("127.0.0.1", port).expect("a name");
        let entries = self.ports.iter().map(|&port| ServerEntry { name: name(port), nodes: NODES });
        Ring::new(ServerList::new(entries.collect()).expect("a ring"))
    }

    /// A client.
    pub async fn client(&self, config: ClientConfig) -> Client {
        self.client_at(config, |server| server).await
    }

    /// A client that knows one server only: what it asks of any, it asks of this one.
    pub async fn client_of(&self, server: usize, config: ClientConfig) -> Client {
        self.client_at(config, |_| server).await
    }

    async fn client_at(&self, config: ClientConfig, place: impl Fn(usize) -> usize) -> Client {
        let address = |server| SocketAddr::from(([127, 0, 0, 1], self.ports[place(server)]));
        let addresses: Vec<SocketAddr> = self.all().into_iter().map(address).collect();
        let port = Port::for_calls(&addresses).await.expect("a free port");
        Client::with_socket(port, self.ring(), addresses, None, config).expect("a configuration")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill(&self.all());
    }
}

/// A directory for a run, below the build's own and named after its seed: gone when dropped, unless the test fails.
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(test: &str, seed: u64) -> Self {
        let all = binary_target_directory().join("tmp").join(test);
        let path = all.join(format!("{seed}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the build's directory can be written");
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What stays behind is in nobody's way.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// `target`, from where the test itself is: target/PROFILE/deps/TEST.
fn binary_target_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.ancestors().nth(3).expect("target/PROFILE/deps/TEST").to_owned()
}

/// Ports that are free in UDP and TCP, below those that the system hands out itself: nobody takes one while its server
/// is down.
fn free_ports(count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = rand::rng().random_range(10_000..30_000);
        let free =
            UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}
