//! A local cluster as a newcomer meets it: start, write, stop, start again, and mistakes.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;

use dkvs::Client;
use support::{Process, occupied_port, refused, start, up};

/// Starts a cluster again on the ports it had.
fn restart(directory: &Path, base_port: u16) -> Process {
    // The ports were free until now and may be lent to a socket of another test for a moment.
    for _ in 0..20 {
        match start(directory, &["--base-port", &base_port.to_string(), "--log", "info"]) {
            Ok(process) => return process,
            Err(ended) => assert!(ended.stderr.contains("is in use"), "{ended:?}"),
        }
    }
    panic!("port {base_port} stays in use");
}

async fn client(process: &Process) -> Client {
    Client::connect(&format!("127.0.0.1:{}", process.base_port())).await.unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_clean_stop_and_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let first = up(directory.path(), &["--base-port", "0"]);
    let base_port = first.base_port();
    assert!(first.banner.starts_with("DKVS "), "{}", first.banner);
    assert!(first.banner.contains("a local cluster of 3 servers"), "{}", first.banner);
    assert_eq!(first.banner.matches("(new)").count(), 3, "{}", first.banner);
    assert!(first.banner.contains("on disk before a write is acknowledged"), "{}", first.banner);
    let connect = format!("\n  dkvs-client --connect 127.0.0.1:{base_port} put color green\n");
    assert!(first.banner.contains(&connect), "{}", first.banner);
    for port in base_port..base_port + 3 {
        let row = format!("\n  127.0.0.1:{port}  ./dkvs-data/local/127.0.0.1-{port}  (new)\n");
        assert!(first.banner.contains(&row), "{}", first.banner);
    }
    client(&first).await.put("a", "1").w(3).await.unwrap();
    let ended = first.end_with("TERM");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "Stopped cleanly: what was acknowledged is on disk.\n");
    assert_eq!(ended.stderr, "", "a server that works logs nothing");

    let second = restart(directory.path(), base_port);
    assert!(!second.banner.contains("(new)") && !second.banner.contains("cleanly"), "{}", second.banner);
    assert_eq!(client(&second).await.get("a").r(3).await.unwrap().value().unwrap(), "1");
    client(&second).await.put("b", "2").await.unwrap();
    let ended = second.end_with("KILL");
    assert_eq!(ended.stderr.matches("start=Clean").count(), 9, "each server logs it thrice: {ended:?}");

    let third = restart(directory.path(), base_port);
    assert_eq!(third.banner.matches("(was not stopped cleanly; recovered)").count(), 3, "{}", third.banner);
    let client = client(&third).await;
    assert_eq!(client.get("a").await.unwrap().value().unwrap(), "1");
    assert_eq!(client.get("b").await.unwrap().value().unwrap(), "2");
    let ended = third.end_with("INT");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches("start=Unclean").count(), 6, "{ended:?}");
    let tells_what_is_there =
        |line: &&str| ["WARN", "incarnation=", "keys=", "bytes="].iter().all(|part| line.contains(part));
    assert_eq!(ended.stderr.lines().filter(tells_what_is_there).count(), 3, "{ended:?}");
}

#[test]
fn in_memory_nothing_is_left_and_the_banner_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let process = up(directory.path(), &["--base-port", "0", "--servers", "2", "--memory"]);
    assert!(process.banner.contains("all data is LOST when this stops"), "{}", process.banner);
    assert!(process.banner.contains("(n = 2, r = 2, w = 2)"), "{}", process.banner);
    let ended = process.end_with("INT");
    assert_eq!(ended.stdout, "Stopped cleanly: the data was in memory and is gone.\n");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_port_in_use_is_named_with_the_flag_and_nothing_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let ((udp, tcp), port) = occupied_port();
    let expected = format!(
        "error: 127.0.0.1:{port} is in use: stop the program that has it, or choose other ports with --base-port\n"
    );
    let arguments = ["--servers", "1", "--base-port", &port.to_string()];
    drop(tcp);
    assert_eq!(refused(directory.path(), &arguments), (Some(1), expected.clone()), "UDP alone");
    drop(udp);
    let _tcp = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert_eq!(refused(directory.path(), &arguments), (Some(1), expected), "TCP alone");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn another_ring_on_the_same_data_is_refused_and_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let first = up(directory.path(), &["--base-port", "0", "--data-dir", "here"]);
    let base_port = first.base_port();
    first.end_with("INT");
    let (status, error) =
        refused(directory.path(), &["--servers", "2", "--base-port", "0", "--data-dir", "here"]);
    assert_eq!(status, Some(1));
    let last = base_port + 2;
    let holds = format!(
        "error: here holds the data of a local cluster of 3 servers, 127.0.0.1:{base_port} to 127.0.0.1:{last}, \
         and this would be one of 2 servers"
    );
    assert!(error.starts_with(&holds), "{error}");
    let remedy = format!(
        "Start it as before (--servers 3 --base-port {base_port}), choose another directory with --data-dir, \
         or delete here\n"
    );
    assert!(error.ends_with(&remedy), "{error}");
}

#[test]
fn a_directory_that_is_something_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "years of work").unwrap();
    let (status, error) = refused(directory.path(), &["--base-port", "0", "--data-dir", "."]);
    assert_eq!(status, Some(1));
    let expected = ". is not the data directory of a local cluster, and not empty (it holds \"thesis.txt\")";
    assert!(error.contains(expected), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    let (_, error) = refused(directory.path(), &["--base-port", "0", "--data-dir", "thesis.txt/data"]);
    assert!(error.contains("thesis.txt/data"), "{error}");
    assert!(error.contains("or choose another with --data-dir") || error.contains("cannot read"), "{error}");
}

#[test]
fn one_cluster_uses_its_data_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = up(directory.path(), &["--base-port", "0", "--servers", "1"]);
    // The same name and data, on another socket.
    let base_port = first.base_port().to_string();
    let listen = format!("127.0.0.1:{}", support::free_port());
    let data_dir = format!("dkvs-data/local/127.0.0.1-{base_port}");
    let (status, error) =
        refused(directory.path(), &["127.0.0.1", &base_port, "--listen", &listen, "--data-dir", &data_dir]);
    assert_eq!(status, Some(1), "{error}");
    let expected = format!(
        "error: data directory {data_dir} is in use: another dkvs-server process holds its lock; \
         stop it, or choose another directory with --data-dir\n"
    );
    assert_eq!(error, expected);
}

#[test]
fn a_servers_txt_that_clients_would_follow_is_pointed_out() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("servers.txt"), "127.0.0.1 9 1\n").unwrap();
    let process = up(directory.path(), &["--base-port", "0", "--memory"]);
    assert!(process.banner.contains("servers.txt in this directory is not used here"), "{}", process.banner);
}
