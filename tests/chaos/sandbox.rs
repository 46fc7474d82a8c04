//! A place to break things in: network, mounts and processes of our own.
//!
//! The test starts itself again under `unshare`, as the first process of a new process namespace. When that process
//! ends, the kernel kills the others in it, and namespaces and mounts that nobody holds any more are gone. It ends when
//! its standard input closes, so it never outlives the process that started it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use dkvs_tests::processes::release_binary;

use crate::say;

/// How long a run takes by default: long enough to meet nearly every fault once.
const SECONDS_DEFAULT: u64 = 60;
/// What it may take longer on a slow machine, before it is given up.
const GRACE: Duration = Duration::from_secs(240);
/// Makes a run the inner one.
const INSIDE: &str = "--inside-the-sandbox";
/// Exit status of an inner run that could not set up its network.
const NO_SANDBOX: u8 = 77;
/// In the directory of a run that failed: it is to be kept.
const FAILED: &str = "FAILED";

/// What is needed besides the kernel.
const TOOLS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("kill", "procps"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
];

/// How a run ended.
pub(crate) enum Ended {
    /// Everything that was promised was kept.
    Passed,
    /// It could not be tried; why.
    Skipped(String),
    /// A promise was broken, or the test itself; what, and where to look.
    Failed(String),
}

/// What the inner run is told.
pub(crate) struct Plan {
    /// Which faults.
    pub(crate) seed: u64,
    /// How long the run is to take in all.
    pub(crate) run: Duration,
    /// The server to test.
    pub(crate) server: PathBuf,
    /// Everything that is written goes below.
    pub(crate) directory: PathBuf,
}

/// A step of the set-up that did not work.
#[derive(Debug)]
pub(crate) struct NoSandbox(String);

impl fmt::Display for NoSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NoSandbox {
    /// Reports it to the outer run.
    pub(crate) fn report(&self, plan: &Plan) -> u8 {
        let _ = fs::write(plan.directory.join("why"), &self.0);
        NO_SANDBOX
    }
}

/// Runs the whole test in a sandbox.
pub(crate) fn run() -> Ended {
    let (seed, seconds) = match (from_env("DKVS_CHAOS_SEED"), from_env("DKVS_CHAOS_SECONDS")) {
        (Ok(seed), Ok(seconds)) => (seed.unwrap_or_else(rand::random), seconds.unwrap_or(SECONDS_DEFAULT)),
        (Err(wrong), _) | (_, Err(wrong)) => return Ended::Failed(wrong),
    };
    if seconds == 0 {
        return Ended::Skipped("DKVS_CHAOS_SECONDS=0".into());
    }
    if let Some((tool, package)) = TOOLS.into_iter().find(|(tool, _)| !exists(tool)) {
        return Ended::Skipped(format!("there is no {tool} (Debian package {package})"));
    }
    let unshare = match unshare_arguments() {
        Ok(arguments) => arguments,
        Err(why) => return Ended::Skipped(format!("no namespaces for this user here: {why}")),
    };
    let server = match std::env::var_os("DKVS_CHAOS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => {
            say("chaos: building dkvs-server in release mode, if need be");
            release_binary("dkvs-server")
        }
    };
    let directory = match run_directory(seed) {
        Ok(directory) => directory,
        Err(error) => return Ended::Failed(format!("cannot make a directory for the run: {error}")),
    };
    say(format_args!("chaos: about {seconds} s, DKVS_CHAOS_SEED={seed}, below {}", directory.display()));
    let plan = Plan { seed, run: Duration::from_secs(seconds), server, directory };
    let ended = start(&unshare, &plan).and_then(|child| wait(child, plan.run + GRACE));
    conclude(&plan, ended)
}

fn conclude(plan: &Plan, ended: Result<ExitStatus, String>) -> Ended {
    let shown = plan.directory.display();
    let why = match ended {
        Ok(status) if status.success() => {
            if std::env::var_os("DKVS_CHAOS_KEEP").is_none() {
                // What stays behind is swept by the next run.
                let _ = fs::remove_dir_all(&plan.directory);
            }
            return Ended::Passed;
        }
        Ok(status) if status.code() == Some(NO_SANDBOX.into()) => {
            let why = fs::read_to_string(plan.directory.join("why")).unwrap_or_default();
            let _ = fs::remove_dir_all(&plan.directory);
            return Ended::Skipped(format!("no network of our own: {why}"));
        }
        Ok(status) => format!("it ended with {status}"),
        Err(why) => why,
    };
    let _ = fs::write(plan.directory.join(FAILED), &why);
    Ended::Failed(format!("{why}; logs and history are in {shown}; DKVS_CHAOS_SEED={}", plan.seed))
}

fn from_env<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    let value = std::env::var(name).ok();
    value.map(|text| text.parse().map_err(|_| format!("{name} is {text:?}; it must be a number"))).transpose()
}

fn exists(tool: &str) -> bool {
    let found = |directory: PathBuf| directory.join(tool).is_file();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(extra_paths()).any(found)
}

/// Where system tools are that an ordinary user's PATH leaves out.
fn extra_paths() -> [PathBuf; 3] {
    ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from)
}

fn wide_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::env::split_paths(&path).chain(extra_paths())).unwrap_or(path)
}

/// The arguments with which namespaces can be had here, tried out.
fn unshare_arguments() -> Result<Vec<&'static str>, String> {
    const OURS: [&str; 5] = ["--net", "--mount", "--pid", "--fork", "--kill-child"];
    let mut refusals = Vec::new();
    for user in [&[][..], &["--user", "--map-root-user"][..]] {
        let arguments = [user, &OURS].concat();
        let tried = Command::new("unshare").args(&arguments).arg("true").output();
        match tried {
            Ok(output) if output.status.success() => return Ok(arguments),
            Ok(output) => refusals.push(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    Err(refusals.join("; "))
}

/// A new directory; those of runs that were killed are removed, those of runs that failed are kept.
fn run_directory(seed: u64) -> std::io::Result<PathBuf> {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    fs::create_dir_all(&all)?;
    for entry in fs::read_dir(&all)?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let runs = name.rsplit_once('-').is_none_or(|(_, id)| Path::new("/proc").join(id).exists());
        if !runs && !entry.path().join(FAILED).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let directory = all.join(format!("{seed}-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn start(unshare: &[&str], plan: &Plan) -> Result<Child, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command.args(unshare).arg(test).arg(INSIDE);
    command.args([plan.seed.to_string(), plan.run.as_secs().to_string()]);
    command.arg(&plan.server).arg(&plan.directory).env("PATH", wide_path());
    command.stdin(Stdio::piped()).spawn().map_err(|error| format!("cannot start unshare: {error}"))
}

fn wait(mut child: Child, at_most: Duration) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + at_most;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) => {
                // The inner run dies with its parent.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it was not over after {at_most:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The plan, if this process is the inner one. From then on it ends with the outer one.
pub(crate) fn inside(arguments: &[String]) -> Option<Plan> {
    let [marker, seed, seconds, server, directory] = arguments else { return None };
    if marker != INSIDE {
        return None;
    }
    std::thread::spawn(|| {
        // Nothing is ever sent: this returns when the outer process has ended.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = writeln!(std::io::stderr(), "chaos: nobody waits for this run any more");
        std::process::exit(1);
    });
    Some(Plan {
        seed: seed.parse().ok()?,
        run: Duration::from_secs(seconds.parse().ok()?),
        server: server.into(),
        directory: directory.into(),
    })
}

/// Runs a program to its end, with this on its standard input.
pub(crate) fn command(program: &str, arguments: &[&str], input: &str) -> Result<(), NoSandbox> {
    let shown = format!("{program} {}", arguments.join(" "));
    let failed = |why: &dyn fmt::Display| NoSandbox(format!("`{shown}` failed: {why}"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    // A program that does not read its input says why on its standard error.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
    }
}
