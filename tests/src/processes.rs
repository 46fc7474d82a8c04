//! The real server binary, in processes of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

/// The workspace's directory.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The path of one of the workspace's binaries, built if it is missing or older than a source. Tests of the whole
/// workspace have just built it; a second build, with other features, would take its time and its place.
///
/// # Panics
/// When it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let directory = binary_directory();
        let workspace = Path::new(WORKSPACE);
        let oldest = ["dkvs-server", "dkvs-client"].map(|name| modified(&directory.join(name)));
        let newest = ["bins", "crates"].map(|sources| newest_source(&workspace.join(sources)));
        if oldest.into_iter().min().flatten() >= newest.into_iter().max().flatten() {
            return directory;
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "dkvs-server", "--package", "dkvs-client"]);
        build.current_dir(workspace);
        if directory.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
        directory
    });
    directory.join(name)
}

/// The path of one of the workspace's binaries as users run it, built if need be.
///
/// # Panics
/// When it cannot be built.
pub fn release_binary(name: &str) -> PathBuf {
    let directory = binary_directory().with_file_name("release");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--release", "--package", name]);
    build.args(["--target-dir".as_ref(), directory.parent().expect("target/release")]);
    build.current_dir(WORKSPACE);
    assert!(build.status().expect("cargo runs").success(), "{name} does not build");
    directory.join(name)
}

/// Where this test's profile has its binaries.
fn binary_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned()
}

/// When a file was last written; `None`, which is before all times, if it is not there.
fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|file| file.modified()).ok()
}

fn newest_source(directory: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = |path: PathBuf| if path.is_dir() { newest_source(&path) } else { modified(&path) };
    entries.map(newest).max().flatten()
}

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts `dkvs-server` with these arguments in a directory, and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it ends before that; its standard error is shown.
    pub fn server(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary("dkvs-server"));
        command.args(arguments).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        let mut lines = BufReader::new(stdout).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("dkvs-client"));
        assert!(ready, "the server ended before it was ready: {:?}", child.wait());
        // Whatever else it prints is read, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self(child)
    }

    /// Kills it at once, as `kill -9` does.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop, as `kill` does, and waits for that. Returns whether it said that all was well.
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn terminate(mut self) -> bool {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").arg(&id).status().expect("kill runs").success());
        self.0.wait().expect("a child can be waited for").success()
    }

    fn end(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
