//! Real server processes, killed as a power switch kills them: what was acknowledged is there when they are back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dkvs::{Client, ClientConfig, ServerList};
use dkvs_core::servers::ServerEntry;
use dkvs_tests::processes::Process;
use dkvs_tests::{PATIENCE, name};
use rand::RngExt;
use tempfile::TempDir;

/// Three servers of one ring, each a process with its own data directory.
struct Processes {
    directory: TempDir,
    ports: Vec<u16>,
    running: Vec<Process>,
}

impl Processes {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(3);
        let lines: Vec<String> = ports.iter().map(|port| format!("127.0.0.1 {port} 16\n")).collect();
        std::fs::write(directory.path().join("servers.txt"), lines.concat()).unwrap();
        let mut processes = Self { directory, ports, running: Vec::new() };
        processes.start();
        processes
    }

    fn start(&mut self) {
        let server = |port: &u16| Process::server(self.directory.path(), &["127.0.0.1", &port.to_string()]);
        self.running = self.ports.iter().map(server).collect();
    }

    fn kill(&mut self) {
        self.running.drain(..).for_each(Process::kill);
    }

    fn clean_markers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find("CLEAN", self.directory.path(), &mut found);
        found
    }

    async fn client(&self) -> Client {
        let entry = |&port: &u16| ServerEntry { name: name("127.0.0.1", port), nodes: 16 };
        let servers = ServerList::new(self.ports.iter().map(entry).collect()).unwrap();
        let config = ClientConfig { timeout: PATIENCE, ..ClientConfig::default() };
        Client::with_servers(servers, config).await.unwrap()
    }
}

fn find(file: &str, directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            find(file, &entry, found);
        } else if entry.ends_with(file) {
            found.push(entry);
        }
    }
}

/// Ports that are free in UDP and TCP, below those that the system hands out itself: nobody takes one while its server
/// is down.
fn free_ports(count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = rand::rng().random_range(10_000..30_000);
        let free = std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
            && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

async fn check(client: &Client, acknowledged: &BTreeMap<String, Option<String>>) {
    for (key, value) in acknowledged {
        let got = client.get(key.clone()).await.unwrap();
        assert_eq!(got.value(), value.clone().map(Bytes::from).as_ref(), "{key}");
    }
}

/// Each round ends with all three servers killed in the middle of the writes of four clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_kill_of_all_servers_and_what_was_deleted_stays_deleted() {
    let mut processes = Processes::new();
    let mut acknowledged: BTreeMap<String, Option<String>> = BTreeMap::new();
    for round in 0..3 {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let processes = &processes;
                async move {
                    let client = processes.client().await;
                    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
                    let task = tokio::spawn(async move {
                        for i in 0.. {
                            let (key, value) = (format!("{round} {writer} {i}"), format!("value {i}"));
                            let deleted = i % 5 == 4;
                            if client.put(key.clone(), value.clone()).await.is_err()
                                || deleted && client.delete(key.clone()).await.is_err()
                                || sender.send((key, (!deleted).then_some(value))).is_err()
                            {
                                return;
                            }
                        }
                    });
                    (task, receiver)
                }
            })
            .collect();
        let mut writers = futures::future::join_all(writers).await;
        for (_, receiver) in &mut writers {
            for _ in 0..50 {
                let (key, value) = receiver.recv().await.unwrap();
                acknowledged.insert(key, value);
            }
        }
        processes.kill();
        for (task, mut receiver) in writers {
            task.abort();
            let _ = task.await;
            while let Ok((key, value)) = receiver.try_recv() {
                acknowledged.insert(key, value);
            }
        }
        assert!(processes.clean_markers().is_empty());
        processes.start();
        check(&processes.client().await, &acknowledged).await;
    }
    assert!(acknowledged.len() >= 3 * 4 * 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_asked_to_stop_stop_cleanly_and_go_on_where_they_were() {
    let mut processes = Processes::new();
    let client = processes.client().await;
    let acknowledged: BTreeMap<String, Option<String>> =
        (0..50).map(|i| (format!("k{i}"), Some(format!("v{i}")))).collect();
    for (key, value) in &acknowledged {
        client.put(key.clone(), value.clone().unwrap()).await.unwrap();
    }
    for process in processes.running.drain(..) {
        assert!(process.terminate(), "it stopped cleanly");
    }
    assert_eq!(processes.clean_markers().len(), 3);
    processes.start();
    assert!(processes.clean_markers().is_empty(), "a marker is good for one start");
    check(&processes.client().await, &acknowledged).await;
}

/// The README's first command, but for its ports: one process, three servers, killed and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_cluster_keeps_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let base = loop {
        let base = free_ports(1)[0];
        if (base..base + 3).all(|port| std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()) {
            break base.to_string();
        }
    };
    for round in 0..3 {
        let server = Process::server(directory.path(), &["--base-port", &base]);
        let config = ClientConfig { timeout: Duration::from_secs(30), ..ClientConfig::default() };
        let client = Client::connect_with(&format!("127.0.0.1:{base}"), config).await.unwrap();
        let got = client.get("round").r(3).await.unwrap();
        let before = (round > 0).then(|| Bytes::from(format!("{}", round - 1)));
        assert_eq!(got.value(), before.as_ref());
        client.put("round", format!("{round}")).w(3).await.unwrap();
        server.kill();
    }
}
