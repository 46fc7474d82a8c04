//! `dkvs-server check` on the data of a server that is stopped.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::path::Path;
use std::process::Command;

use dkvs::Client;
use dkvs_storage::{Batch, Durability, FjallConfig, FjallStore, Keyspace, ScanLimit, Store};
use support::{Ended, refused, start, up_on_free_port};

/// Has the directory looked at, which ends without a banner.
fn check(directory: &Path) -> Ended {
    match start(directory, &["check", "--data-dir", "data"]) {
        Err(ended) => ended,
        Ok(process) => panic!("a check runs no server: {}", process.banner),
    }
}

/// Flips a bit in a record, behind the server's and the engine's backs.
async fn damage(directory: &Path) {
    let store = FjallStore::open(&directory.join("data/store"), &FjallConfig::default()).unwrap();
    let first = ScanLimit { entries_max: 1, bytes_max: 0 };
    let (key, value) = store.scan(Keyspace::Records, None, first).unwrap().remove(0);
    let mut value = value.to_vec();
    value[30] ^= 1;
    let mut batch = Batch::new();
    batch.put(Keyspace::Records, key, value);
    store.commit(batch, Durability::Fsync).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_check_tells_what_is_there_what_is_damaged_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (process, port) = up_on_free_port(directory, |port| {
        ["127.0.0.1", &port.to_string(), "--data-dir", "data"].map(str::to_owned).to_vec()
    });
    let client = Client::connect(&format!("127.0.0.1:{port}")).await.unwrap();
    client.put("color", "green").await.unwrap();
    client.put("size", "XL").await.unwrap();
    client.delete("size").await.unwrap();

    let in_use = check(directory);
    assert_eq!(in_use.status, Some(1));
    assert!(in_use.stderr.contains("is in use"), "{in_use:?}");

    assert_eq!(process.end_with("TERM").status, Some(0));
    for _ in 0..2 {
        let whole = check(directory);
        assert_eq!(whole.status, Some(0), "{whole:?}");
        for part in [
            &format!("data of 127.0.0.1 {port}, stopped cleanly"),
            "2: 1 with a value (0 with several), 1 deleted",
            "nothing",
        ] {
            assert!(whole.stdout.contains(part), "{part:?} in {whole:?}");
        }
    }
    // Whoever reads its output may have seen enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unheard = Command::new(env!("CARGO_BIN_EXE_dkvs-server"))
        .args(["check", "--data-dir", "data"])
        .current_dir(directory)
        .stdout(writer)
        .output()
        .unwrap();
    assert!(unheard.status.success() && unheard.stderr.is_empty(), "{unheard:?}");
    assert!(directory.join("data/CLEAN").exists(), "a check does not make a clean directory an unclean one");

    damage(directory).await;
    let damaged = check(directory);
    assert_eq!(damaged.status, Some(1), "{damaged:?}");
    assert!(damaged.stdout.contains("not stopped cleanly, or copied"), "{damaged:?}");
    assert!(damaged.stdout.contains("damaged: ") && damaged.stdout.contains("partition "), "{damaged:?}");
    assert!(damaged.stdout.contains("wrong      1: start the server"), "{damaged:?}");
}

/// Fills what the server remembers about itself until the engine makes a table of it, and flips a bit in its first block.
async fn damage_meta(directory: &Path) {
    let data = directory.join("data/store");
    let store = FjallStore::open(&data, &FjallConfig::default()).unwrap();
    for i in 0..40 {
        let mut batch = Batch::new();
        batch.put(Keyspace::Meta, format!("z{i}"), vec![b'v'; 1 << 20]);
        store.commit(batch, Durability::Memory).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    let tables = std::fs::read_dir(data.join("keyspaces/2/tables")).unwrap();
    for table in tables.map(|table| table.unwrap().path()) {
        let mut bytes = std::fs::read(&table).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&table, bytes).unwrap();
    }
}

#[tokio::test]
async fn damage_in_what_a_server_remembers_is_found_and_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let arguments =
        |port: u16| ["127.0.0.1", &port.to_string(), "--data-dir", "data"].map(str::to_owned).to_vec();
    let (process, port) = up_on_free_port(directory, arguments);
    let client = Client::connect(&format!("127.0.0.1:{port}")).await.unwrap();
    client.put("color", "green").await.unwrap();
    assert_eq!(process.end_with("TERM").status, Some(0));

    damage_meta(directory).await;
    let found = check(directory);
    assert_eq!(found.status, Some(1), "{found:?}");
    assert!(
        found.stdout.contains("some of what the server remembers about itself cannot be read"),
        "{found:?}"
    );

    let arguments = arguments(port);
    let (status, error) = refused(directory, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(status, Some(1), "{error}");
    assert!(
        error.contains("error: cannot start on ") && error.contains("data/store is damaged, "),
        "{error}"
    );
    assert!(error.contains("start with an empty one"), "{error}");
}

#[test]
fn what_is_no_data_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ended = check(directory.path());
    assert_eq!(ended.status, Some(1));
    assert_eq!(ended.stderr, "error: data is not a DKVS data directory: it has no file FORMAT\n");
}
