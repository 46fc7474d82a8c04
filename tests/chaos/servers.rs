//! The server processes: started, killed, stopped, and watched.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dkvs::{ServerList, ServerName};
use dkvs_core::servers::ServerEntry;

use crate::network::{Place, SERVERS, namespace};
use crate::record::Record;
use crate::sandbox::{NoSandbox, Plan, command};

/// Every server's.
pub(crate) const PORT: u16 = 4000;
/// Virtual nodes of a server.
const NODES: u32 = 32;
/// Long enough for a start or a stop on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// The server whose disk is small.
pub(crate) const SMALL: usize = SERVERS - 1;
/// Its size in MiB, for a short run; a longer run writes more.
const SMALL_MIB: u64 = 256;
/// What every server is told: less than usual is to be free, as the small disk has no more when it is empty.
/// Deletions stay: nobody outside a server knows when one was forgotten, and gets may know less from then on.
const SETTINGS: &str = "disk_free_bytes_min = 67108864\nreap_interval_ms = 0\n";
/// No server may ever have more than this resident, in MiB: several times what one needs here.
const RESIDENT_MIB_MAX: u64 = 256;

/// All servers of the ring.
pub(crate) struct Servers {
    members: Vec<Mutex<Member>>,
    binary: PathBuf,
    directory: PathBuf,
    /// The most that any server had resident, in KiB.
    resident: AtomicU64,
}

#[derive(Default)]
struct Member {
    running: Option<Child>,
    starting: Option<Receiver<()>>,
    stopped: bool,
    /// Its disk was full since it was started, so it may refuse to work until it is started again.
    was_full: bool,
}

impl Servers {
    /// Makes the ring file and the small disk; starts nothing.
    pub(crate) fn new(plan: &Plan) -> Result<Self, NoSandbox> {
        let line = |server| format!("{} {PORT} {NODES}\n", Place::Server(server).ip());
        let lines: String = (0..SERVERS).map(line).collect();
        fs::write(plan.directory.join("servers.txt"), lines).expect("the run's directory can be written");
        fs::write(plan.directory.join("dkvs.toml"), SETTINGS).expect("the run's directory can be written");
        let members = (0..SERVERS).map(|_| Mutex::default()).collect();
        let servers = Self {
            members,
            binary: plan.server.clone(),
            directory: plan.directory.clone(),
            resident: AtomicU64::new(0),
        };
        for server in 0..SERVERS {
            fs::create_dir_all(servers.data(server)).expect("the run's directory can be written");
        }
        let size = format!("size={}m", SMALL_MIB + plan.run.as_secs());
        let data = servers.data(SMALL);
        command("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &data.to_string_lossy()], "")?;
        Ok(servers)
    }

    /// The ring.
    pub(crate) fn list() -> ServerList {
        let entry = |server| {
            let host = Place::Server(server).ip().to_string();
            ServerEntry { name: ServerName::new(&host, PORT).unwrap(), nodes: NODES }
        };
        ServerList::new((0..SERVERS).map(entry).collect()).unwrap()
    }

    fn data(&self, server: usize) -> PathBuf {
        self.directory.join(format!("server-{}", 1 + server))
    }

    fn log(&self, server: usize) -> PathBuf {
        self.directory.join(format!("server-{}.log", 1 + server))
    }

    fn member(&self, server: usize) -> MutexGuard<'_, Member> {
        self.members[server].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a server that does not run, and does not wait.
    pub(crate) fn launch(&self, server: usize) {
        let mut member = self.member(server);
        assert!(member.running.is_none(), "one process a server");
        let log = OpenOptions::new().create(true).append(true).open(self.log(server)).unwrap();
        let _ = writeln!(&log, "---- started");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace(server))).arg(&self.binary);
        command.args([Place::Server(server).ip().to_string(), PORT.to_string()]);
        command.args([
            "--config",
            "dkvs.toml",
            "--insecure",
            "--log",
            "info",
            "--ring",
            "servers.txt",
            "--data-dir",
        ]);
        command.arg(self.data(server).join("data")).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("nsenter starts");
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
        *member = Member { running: Some(child), starting: Some(readiness), ..Member::default() };
    }

    /// Waits until a launched server serves. An error says why it does not.
    pub(crate) fn ready(&self, server: usize) -> Result<(), String> {
        let readiness = self.member(server).starting.take();
        let number = 1 + server;
        match readiness.map(|readiness| readiness.recv_timeout(START_MAX)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(match self.ended(server) {
                Some(status) => format!("server {number} ended with {status} while it started"),
                None => format!("server {number} did not start within {START_MAX:?}"),
            }),
        }
    }

    /// Starts servers, all at the same time, and waits for them.
    pub(crate) fn start(&self, servers: &[usize]) -> Result<(), String> {
        servers.iter().for_each(|&server| self.launch(server));
        servers.iter().try_for_each(|&server| self.ready(server))
    }

    /// How a server ended that should run.
    fn ended(&self, server: usize) -> Option<ExitStatus> {
        self.member(server).running.as_mut()?.try_wait().ok()?
    }

    /// `kill -9`; the servers need not run.
    pub(crate) fn kill(&self, servers: &[usize]) {
        for &server in servers {
            if let Some(child) = &mut self.member(server).running {
                self.weigh(child);
                let _ = child.kill();
            }
        }
        for &server in servers {
            if let Some(mut child) = self.member(server).running.take() {
                let _ = child.wait();
            }
        }
    }

    /// Takes down how much of a running server was resident at most.
    fn weigh(&self, child: &Child) {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak = peak.and_then(|kib| kib.parse().ok()).unwrap_or(0);
        self.resident.fetch_max(peak, Ordering::Relaxed);
    }

    /// How much was resident at most, in MiB, of servers that run and of those before. It is a trouble if that is too much.
    pub(crate) fn resident(&self, record: &Record) -> u64 {
        for server in 0..SERVERS {
            self.member(server).running.iter().for_each(|child| self.weigh(child));
        }
        let mib = self.resident.load(Ordering::Relaxed).div_ceil(1024);
        match mib {
            0 => record.trouble("the memory of servers cannot be read in /proc"),
            mib if mib > RESIDENT_MIB_MAX => {
                record.trouble(format_args!("a server had {mib} MiB resident, of {RESIDENT_MIB_MAX}"));
            }
            _ => {}
        }
        mib
    }

    fn signal(&self, server: usize, signal: &str) {
        if let Some(id) = self.member(server).running.as_ref().map(Child::id) {
            // It may have ended, which is noticed elsewhere.
            let _ = command("kill", &[signal, &id.to_string()], "");
        }
    }

    /// `SIGSTOP`.
    pub(crate) fn pause(&self, server: usize) {
        self.signal(server, "-STOP");
        self.member(server).stopped = true;
    }

    /// `SIGCONT`.
    pub(crate) fn resume(&self, server: usize) {
        self.signal(server, "-CONT");
        self.member(server).stopped = false;
    }

    /// `SIGTERM`: it should say that all is well, unless its disk was full.
    pub(crate) fn terminate(&self, server: usize) -> Result<(), String> {
        self.signal(server, "-TERM");
        let deadline = Instant::now() + START_MAX;
        let number = 1 + server;
        let mut member = self.member(server);
        let Some(mut child) = member.running.take() else { return Ok(()) };
        self.weigh(&child);
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() || member.was_full => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("server {number} was asked to stop and ended with {status}"));
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("server {number} did not stop within {START_MAX:?} of SIGTERM"));
                }
            }
        }
    }

    /// Fills the small disk to the last byte.
    pub(crate) fn fill_disk(&self) {
        self.member(SMALL).was_full = true;
        let mut file = File::create(self.data(SMALL).join("ballast")).unwrap();
        for len in [1 << 20, 4096, 1] {
            let block = vec![0xAA; len];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Makes room again.
    pub(crate) fn free_disk(&self) {
        let _ = fs::remove_file(self.data(SMALL).join("ballast"));
    }

    /// Servers that have ended by themselves.
    pub(crate) fn fallen(&self, record: &Record) {
        for server in 0..SERVERS {
            if let Some(status) = self.ended(server) {
                let full = self.member(server).was_full;
                let number = 1 + server;
                // Stopping is one way to answer a full disk; being wrong is not, and is checked like everything else.
                if full {
                    record.note(format_args!("server {number}, whose disk was full, ended with {status}"));
                } else {
                    record.trouble(format_args!("server {number} ended by itself with {status}"));
                }
                self.member(server).running = None;
            }
        }
    }

    /// Makes every server run, whatever happened to it.
    pub(crate) fn heal(&self, record: &Record) {
        self.free_disk();
        (0..SERVERS).for_each(|server| self.resume(server));
        self.fallen(record);
        let down: Vec<usize> = (0..SERVERS).filter(|&server| self.member(server).running.is_none()).collect();
        if let Err(why) = self.start(&down) {
            record.trouble(why);
        }
    }

    /// What the logs say that must never be said.
    pub(crate) fn panics(&self) -> Vec<String> {
        let lines = |path: &Path| fs::read(path).map(|log| String::from_utf8_lossy(&log).into_owned());
        let mut found = Vec::new();
        for server in 0..SERVERS {
            let log = lines(&self.log(server)).unwrap_or_default();
            let panics = log.lines().filter(|line| line.contains("panicked"));
            found.extend(panics.map(|line| format!("server {}: {line}", 1 + server)));
        }
        found
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.kill(&(0..SERVERS).collect::<Vec<_>>());
    }
}
