//! Real servers whose disks are full, and then have room again.
//!
//! ```text
//!   test process ── unshare: own mounts, own processes ──> test process, inside
//!                                                            │ clients
//!                                       ┌────────────────────┼────────────────────┐
//!                                    server 1             server 2             server 3
//!                                 tmpfs of 200 MiB     tmpfs of 200 MiB     tmpfs of 200 MiB
//! ```
//! A file that is not the servers' takes most of the room, and puts the rest, until they are refused. Nothing is lost by
//! that, and nobody ends; what frees room or takes none goes on. When the file is removed, puts work again.
//!
//! What is mounted and started lives in namespaces that end with the test. It needs Linux, `unshare` (util-linux),
//! `mount`, and root or user namespaces for everybody; without them it says `SKIPPED` and why. With
//! `DKVS_DISK_FULL_REQUIRE` set, that is a failure.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Error};
use dkvs_tests::fleet::{Fleet, RunDirectory};
use dkvs_tests::processes::release_binary;

const SERVERS: usize = 3;
const DISK_MIB: usize = 200;
/// Leaves some 25 MiB above what has to be free.
const BALLAST_MIB: usize = 110;
const FREE_BYTES_MIN: u64 = 64 << 20;
const VALUE_LEN: usize = 256 * 1024;
/// More puts than there is room for.
const PUTS_MAX: usize = 2 * DISK_MIB * 1024 * 1024 / VALUE_LEN;
/// So many refusals, one after the other: all servers are full.
const REFUSALS: usize = 20;
/// How soon everything must go on that should.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells the inner run where it may write, and with which server.
const INSIDE: &str = "DKVS_DISK_FULL_INSIDE";
const SERVER: &str = "DKVS_DISK_FULL_SERVER";
const NAME: &str = "a_full_disk_refuses_puts_and_nothing_else_until_there_is_room_again";

#[test]
fn a_full_disk_refuses_puts_and_nothing_else_until_there_is_room_again() {
    if let Some(directory) = std::env::var_os(INSIDE) {
        end_with_the_outer_test();
        return inside(Path::new(&directory));
    }
    let unshare = match namespaces() {
        Ok(arguments) => arguments,
        Err(why) => {
            assert!(std::env::var_os("DKVS_DISK_FULL_REQUIRE").is_none(), "cannot run: {why}");
            return say(format_args!("disk_full: SKIPPED: no mounts of our own here: {why}"));
        }
    };
    let server = std::env::var_os(SERVER).map(PathBuf::from).unwrap_or_else(|| release_binary("dkvs-server"));
    let directory = RunDirectory::new("disk_full", rand::random());
    let mut command = Command::new("unshare");
    command.args(unshare).arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]);
    command.env(INSIDE, directory.path()).env(SERVER, server).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Open until the end: the inner test ends when it is closed.
    let held = child.stdin.take();
    let status = child.wait().unwrap();
    drop(held);
    assert!(status.success(), "inside: {status}");
}

/// The arguments with which `unshare` gives namespaces in which a disk can be mounted, tried out.
fn namespaces() -> Result<Vec<&'static str>, String> {
    const OURS: [&str; 4] = ["--mount", "--pid", "--fork", "--kill-child"];
    let mut refusals = Vec::new();
    for user in [&[][..], &["--user", "--map-root-user"][..]] {
        let arguments = [user, &OURS].concat();
        // Over a directory that everybody has: nobody outside sees it.
        let mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"];
        match Command::new("unshare").args(&arguments).args(mount).output() {
            Ok(output) if output.status.success() => return Ok(arguments),
            Ok(output) => refusals.push(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => refusals.push(format!("unshare: {error}")),
        }
    }
    Err(refusals.join("; "))
}

/// What is inside has nobody to work for when the outer process has ended.
fn end_with_the_outer_test() {
    std::thread::spawn(|| {
        // Nothing is ever sent: this returns when the other end is closed.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}

fn inside(directory: &Path) {
    let settings = format!("disk_free_bytes_min = {FREE_BYTES_MIN}");
    let mut fleet = Fleet::new(Path::new(&std::env::var_os(SERVER).unwrap()), directory, SERVERS, &settings);
    for server in fleet.all() {
        let size = format!("size={DISK_MIB}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(fleet.disk(server));
        assert!(mount.status().unwrap().success(), "a disk can be mounted");
    }
    fleet.start(&fleet.all());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(fill_and_free(&mut fleet));
    for server in fleet.all() {
        let (status, log) = (fleet.terminate(server), fleet.log_since(server, 0));
        assert!(
            status.success() && !log.contains("panicked"),
            "server {} ended with {status}: {log}",
            1 + server
        );
    }
}

async fn fill_and_free(fleet: &mut Fleet) {
    let mut keys =
        Keys { client: fleet.client(config()).await, expected: BTreeMap::new(), refused: Vec::new() };
    for i in 0..50 {
        keys.put(format!("before {i}"), 100 + i).await.unwrap();
    }
    fleet.all().into_iter().for_each(|server| add_ballast(&fleet.disk(server)));

    let (mut puts, mut refusals) = (0, Vec::new());
    while refusals.len() < REFUSALS {
        match keys.put(format!("filling {puts}"), VALUE_LEN).await {
            Ok(()) => refusals.clear(),
            Err(error) => refusals.push(error.to_string()),
        }
        puts += 1;
        assert!(
            puts < PUTS_MAX,
            "{puts} puts were not refused for good; the last refusals were {refusals:?}"
        );
    }
    let last = &refusals[REFUSALS - 1];
    say(format_args!("disk_full: after {puts} puts: {last}"));
    assert!(is_clear(fleet, last), "not clear: {last}");

    keys.check(&keys.client, 2).await;
    for i in 0..10 {
        keys.delete(format!("before {i}")).await;
    }
    keys.check(&keys.client, 2).await;
    let error = keys.put("before 20".into(), 10).await.expect_err("there is no room yet");
    assert!(is_clear(fleet, &error.to_string()), "not clear: {error}");
    assert_all_run(fleet);

    let freed = Instant::now();
    fleet.all().into_iter().for_each(|server| fs::remove_file(fleet.disk(server).join("ballast")).unwrap());
    let mut after = 0;
    while let Err(error) = keys.put(format!("after {after}"), VALUE_LEN).await {
        assert!(freed.elapsed() < PATIENCE, "there is room, and puts are refused: {error}");
        after += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say(format_args!("disk_full: puts go on after {:?}", freed.elapsed()));
    for i in 0..20 {
        keys.put(format!("at last {i}"), VALUE_LEN).await.unwrap();
    }
    assert_all_run(fleet);
    keys.check(&keys.client, SERVERS).await;
    for server in fleet.all() {
        keys.check(&fleet.client_of(server, config()).await, 1).await;
    }
}

fn config() -> ClientConfig {
    ClientConfig {
        timeout: Duration::from_secs(10),
        silence_max: dkvs_tests::SILENCE_MAX,
        ..ClientConfig::default()
    }
}

fn add_ballast(disk: &Path) {
    let mut ballast = File::create(disk.join("ballast")).unwrap();
    let block = vec![0xAA; 1 << 20];
    (0..BALLAST_MIB).for_each(|_| ballast.write_all(&block).unwrap());
}

fn assert_all_run(fleet: &mut Fleet) {
    for server in fleet.all() {
        assert!(fleet.ended(server).is_none(), "server {} ended: {}", 1 + server, fleet.log_since(server, 0));
    }
}

/// Whether a message says what is wrong, where, and how much room is needed.
fn is_clear(fleet: &Fleet, message: &str) -> bool {
    let names = |server: usize| {
        let name = fleet.owner(server).replace(' ', ":");
        message.contains(&name) && message.contains(&*fleet.data(server).to_string_lossy())
    };
    message.contains("disk full")
        && message.contains("bytes free")
        && message.contains(&FREE_BYTES_MIN.to_string())
        && fleet.all().into_iter().any(names)
}

/// What was written, and what became of it.
struct Keys {
    client: Client,
    /// `None` was deleted.
    expected: BTreeMap<String, Option<Bytes>>,
    /// Written by nobody, said the client.
    refused: Vec<(String, Bytes)>,
}

impl Keys {
    async fn put(&mut self, key: String, len: usize) -> Result<(), Error> {
        let value = Bytes::from(format!("{key} ").repeat(1 + len / (1 + key.len())));
        match self.client.put(key.clone(), value.clone()).await {
            Ok(_) => drop(self.expected.insert(key, Some(value))),
            Err(error) => {
                if error.nothing_was_written() {
                    self.refused.push((key, value));
                } else {
                    // It may be there or not, from now on.
                    self.expected.remove(&key);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn delete(&mut self, key: String) {
        self.client
            .delete(key.clone())
            .await
            .unwrap_or_else(|error| panic!("{key:?} cannot be deleted: {error}"));
        self.expected.insert(key, None);
    }

    /// Everything acknowledged is there, and nothing refused.
    async fn check(&self, client: &Client, r: usize) {
        for (key, value) in &self.expected {
            let found = read(client, key, r).await;
            let expected = Vec::from_iter(value.clone());
            assert!(
                found == expected,
                "{key:?} with r = {r} has {} values, not the expected {}",
                found.len(),
                expected.len()
            );
        }
        for (key, value) in &self.refused {
            assert!(!read(client, key, r).await.contains(value), "{key:?} was refused, and is there");
        }
    }
}

async fn read(client: &Client, key: &str, r: usize) -> Vec<Bytes> {
    let start = Instant::now();
    loop {
        match client.get(key.to_owned()).n(SERVERS).r(r).siblings().await {
            Ok(got) => return got.siblings().iter().flatten().cloned().collect(),
            Err(error) => assert!(start.elapsed() < PATIENCE, "{key:?} with r = {r} cannot be read: {error}"),
        }
    }
}

/// Tells whoever watches.
fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
