//! The real binary, started in a directory of its own and killed when dropped.
//!
//! Nothing here sleeps: a start is over when the banner's last line is read or the process has ended, and a watchdog
//! kills a process that does neither, which ends whatever waits for it.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Longer than anything takes on a machine that works.
const DEADLINE: Duration = Duration::from_secs(120);
/// A port found free may be taken before the process binds it.
const PORT_TRIES: usize = 20;

/// A process that printed its banner.
pub(crate) struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: mpsc::Receiver<String>,
    /// Ends the watchdog when dropped.
    _watched: mpsc::Sender<()>,
    /// What it printed up to its last line.
    pub(crate) banner: String,
}

/// A process that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status; `None` if a signal killed it.
    pub(crate) status: Option<i32>,
    /// What it printed since the banner, or since the start if there was none.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Starts a server in `directory`; `Err` if it ends without a banner.
pub(crate) fn start(directory: &Path, arguments: &[&str]) -> Result<Process, Ended> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dkvs-server"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("RUST_LOG")
        .env_remove("CARGO")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let watched = watch(child.id());
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (lines, stderr) = mpsc::channel();
    let errors = BufReader::new(child.stderr.take().unwrap());
    thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
    let mut process = Process { child, stdout, stderr, _watched: watched, banner: String::new() };
    while !process.banner.contains("\nCtrl-C stops ") {
        if process.stdout.read_line(&mut process.banner).unwrap() == 0 {
            let printed = std::mem::take(&mut process.banner);
            let ended = process.wait();
            return Err(Ended { stdout: printed, ..ended });
        }
    }
    Ok(process)
}

/// Starts a server that must come up.
pub(crate) fn up(directory: &Path, arguments: &[&str]) -> Process {
    start(directory, arguments).unwrap_or_else(|ended| panic!("{arguments:?}: {ended:?}"))
}

/// Starts a server that must refuse; returns its exit status and what it says.
pub(crate) fn refused(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    match start(directory, arguments) {
        Ok(process) => panic!("{arguments:?} should be refused, but: {}", process.banner),
        Err(ended) => {
            assert_eq!(ended.stdout, "", "nothing is printed of a start that failed");
            (ended.status, ended.stderr)
        }
    }
}

/// Starts what needs a free port, handed to `arguments`.
pub(crate) fn up_on_free_port(directory: &Path, arguments: impl Fn(u16) -> Vec<String>) -> (Process, u16) {
    for _ in 0..PORT_TRIES {
        let port = free_port();
        let arguments = arguments(port);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match start(directory, &arguments) {
            Ok(process) => return (process, port),
            Err(ended) if ended.stderr.contains("is in use: stop the program") => {}
            Err(ended) => panic!("{arguments:?}: {ended:?}"),
        }
    }
    panic!("no free port after {PORT_TRIES} tries");
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    occupied_port().1
}

/// A port that stays in use, in UDP and TCP, as long as the sockets live.
pub(crate) fn occupied_port() -> ((UdpSocket, TcpListener), u16) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address) {
            return ((udp, tcp), address.port());
        }
    }
}

impl Process {
    /// The first port in the banner: of a local cluster, its base port.
    pub(crate) fn base_port(&self) -> u16 {
        let (_, rest) = self.banner.split_once("  127.0.0.1:").unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends a signal: `TERM`, `INT`, `KILL`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_with(self, signal: &str) -> Ended {
        self.signal(signal);
        self.wait()
    }

    /// Waits until it logs a line that contains `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        while !self.stderr.recv().expect("it must go on to log").contains(text) {}
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ended {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        let stderr = self.stderr.iter().map(|line| line + "\n").collect();
        Ended { status: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills a process that lives too long. Its sender is dropped when the process is waited for.
fn watch(id: u32) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel::<()>();
    let _: JoinHandle<()> = thread::spawn(move || {
        if receiver.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").arg("-KILL").arg(id.to_string()).status();
        }
    });
    sender
}
