//! A data directory knows its owner, its format, and how it was left.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use dkvs_storage::{
    Batch, DataDir, DataDirError, Durability, FjallConfig, FjallStore, Keyspace, Start, Store,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const OWNER: &str = "127.0.0.1 1234";

/// A path that does not exist yet, in a directory that is removed at the end.
fn fresh() -> (TempDir, PathBuf) {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("data");
    (above, path)
}

fn start(path: &Path) -> Start {
    DataDir::open(path, OWNER).unwrap().1
}

fn refusal(path: &Path) -> String {
    DataDir::open(path, OWNER).unwrap_err().to_string()
}

/// Opens, leaves a file where the engine has its own, and stops cleanly.
fn stop_cleanly(path: &Path) {
    let (dir, _) = DataDir::open(path, OWNER).unwrap();
    fs::create_dir_all(dir.store_path().join("tables")).unwrap();
    fs::write(dir.store_path().join("tables/1"), "old").unwrap();
    dir.mark_clean().unwrap();
}

/// Every path below `path` with its content, to see that a refusal changed nothing.
fn content(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            found.extend(content(&entry));
        } else {
            found.push((entry.clone(), fs::read(entry).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_missing_directory_is_created_with_those_above_it_and_is_new() {
    let (_above, path) = fresh();
    let path = path.join("deeper");
    let (dir, start) = DataDir::open(&path, OWNER).unwrap();
    assert_eq!(start, Start::New);
    assert_eq!(dir.store_path(), path.join("store"));
    assert!(!dir.store_path().exists(), "the engine creates it");
    assert_eq!(fs::read_to_string(path.join("FORMAT")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(path.join("OWNER")).unwrap(), "127.0.0.1 1234\n");
}

#[test]
fn an_empty_directory_is_taken_and_is_new() {
    let above = tempfile::tempdir().unwrap();
    assert_eq!(start(above.path()), Start::New);
}

#[test]
fn only_the_start_right_after_a_clean_stop_is_clean() {
    let (_above, path) = fresh();
    assert_eq!(start(&path), Start::New);
    assert_eq!(start(&path), Start::Unclean, "nobody marked it");
    stop_cleanly(&path);
    assert_eq!(start(&path), Start::Clean);
    assert_eq!(start(&path), Start::Unclean, "the marker is good for one start");
}

#[test]
fn a_moved_directory_stays_clean() {
    let (above, path) = fresh();
    stop_cleanly(&path);
    let moved = above.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(start(&moved), Start::Clean);
}

#[test]
fn a_clean_directory_that_lost_its_store_is_unclean() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    fs::remove_dir_all(path.join("store")).unwrap();
    assert_eq!(start(&path), Start::Unclean);
}

#[test]
fn a_clean_directory_with_one_file_replaced_in_its_store_is_unclean() {
    let (above, path) = fresh();
    stop_cleanly(&path);
    let other = above.path().join("other");
    fs::write(&other, "old").unwrap();
    fs::rename(&other, path.join("store/tables/1")).unwrap();
    assert_eq!(start(&path), Start::Unclean);
}

#[test]
fn a_locked_directory_is_refused_and_is_free_again_once_dropped() {
    let (_above, path) = fresh();
    let held = DataDir::open(&path, OWNER).unwrap();
    let shown = path.display();
    assert_eq!(
        refusal(&path),
        format!("data directory {shown} is in use: another dkvs-server process holds its lock")
    );
    drop(held);
    assert_eq!(start(&path), Start::Unclean);
}

#[test]
fn a_directory_of_another_server_is_refused_by_both_names() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    let before = content(&path);
    let error = DataDir::open(&path, "127.0.0.1 1235").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "data directory {} belongs to server \"127.0.0.1 1234\" (says its file OWNER), not to \"127.0.0.1 1235\": \
             give each server its own directory",
            path.display()
        )
    );
    assert!(matches!(error, DataDirError::OwnedByOther { .. }));
    assert_eq!(content(&path), before);
    assert_eq!(start(&path), Start::Clean, "the mistake did not cost the marker");
}

#[test]
fn a_foreign_directory_is_refused_untouched() {
    for foreign in ["notes.txt", "OWNER", "FORMAT.tmp"] {
        let above = tempfile::tempdir().unwrap();
        fs::write(above.path().join(foreign), "mine").unwrap();
        let before = content(above.path());
        assert_eq!(
            refusal(above.path()),
            format!(
                "{} is not a DKVS data directory, and not empty (it holds \"{foreign}\"): \
                 choose an empty or a missing one",
                above.path().display()
            )
        );
        assert_eq!(content(above.path()), before);
    }
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let (_above, path) = fresh();
    fs::write(&path, "a file").unwrap();
    let message = refusal(&path);
    assert!(message.starts_with(&format!("cannot create {}: ", path.display())), "{message}");
}

#[test]
fn a_newer_format_is_refused_with_both_versions_and_the_remedy() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    fs::write(path.join("FORMAT"), "2\n").unwrap();
    assert_eq!(
        refusal(&path),
        format!(
            "data directory {} has format 2 (says its file FORMAT), and this dkvs-server knows formats up to 1: \
             start it with a newer dkvs-server",
            path.display()
        )
    );
}

#[test]
fn a_format_older_than_any_is_refused_with_the_remedy() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    fs::write(path.join("FORMAT"), "0\n").unwrap();
    assert_eq!(
        refusal(&path),
        format!(
            "data directory {} has format 0 (says its file FORMAT), and this dkvs-server knows formats from 1 on: start with an empty \
             directory and let the other servers fill it",
            path.display()
        )
    );
}

#[test]
fn a_garbled_format_is_refused_by_its_file() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    for garbage in [&b""[..], b"one\n", b"-1\n", b"1 2\n", b"\xFF\xFE"] {
        fs::write(path.join("FORMAT"), garbage).unwrap();
        let expected = format!(
            "{} is unreadable: expected the version of the directory's format, a number",
            path.join("FORMAT").display()
        );
        assert_eq!(refusal(&path), expected, "{garbage:?}");
    }
}

#[test]
fn a_garbled_or_missing_owner_is_refused_by_its_file() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    let expected =
        format!("{} is unreadable: expected the owner's name and a line feed", path.join("OWNER").display());
    for garbage in [&b""[..], b"\n", b"127.0.0.1 12", b"\xFF\n"] {
        fs::write(path.join("OWNER"), garbage).unwrap();
        assert_eq!(refusal(&path), expected, "{garbage:?}");
    }
    fs::remove_file(path.join("OWNER")).unwrap();
    assert_eq!(refusal(&path), expected);
}

#[test]
fn a_creation_interrupted_at_any_point_is_finished_as_new() {
    // In the order in which open writes them.
    let steps: [&[(&str, &str)]; 5] = [
        &[("LOCK", "")],
        &[("LOCK", ""), ("OWNER.tmp", "127.0")],
        &[("LOCK", ""), ("OWNER", "127.0.0.1 1234\n")],
        &[("LOCK", ""), ("OWNER", "127.0.0.1 1234\n"), ("FORMAT.tmp", "")],
        &[("LOCK", ""), ("OWNER", "some other server that never came to be\n"), ("FORMAT.tmp", "1\n")],
    ];
    for files in steps {
        let (_above, path) = fresh();
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        assert_eq!(start(&path), Start::New, "{files:?}");
        assert_eq!(start(&path), Start::Unclean, "{files:?}");
    }
}

#[test]
fn a_clean_stop_interrupted_before_its_marker_is_unclean_and_can_be_repeated() {
    let (_above, path) = fresh();
    assert_eq!(start(&path), Start::New);
    fs::write(path.join("CLEAN.tmp"), "half a cen").unwrap();
    assert_eq!(start(&path), Start::Unclean);
    stop_cleanly(&path);
    assert_eq!(start(&path), Start::Clean);
}

#[test]
fn a_garbled_marker_is_unclean_and_removed() {
    let (_above, path) = fresh();
    stop_cleanly(&path);
    fs::write(path.join("CLEAN"), [0xFF; 10]).unwrap();
    assert_eq!(start(&path), Start::Unclean);
    assert!(!path.join("CLEAN").exists());
}

#[tokio::test]
async fn a_closed_store_touches_its_directory_no_more() {
    let above = tempfile::tempdir().unwrap();
    for expected in [Start::New, Start::Clean, Start::Clean] {
        let (data_dir, start) = DataDir::open(above.path(), "127.0.0.1 1234").unwrap();
        assert_eq!(start, expected);
        let store = FjallStore::open(&data_dir.store_path(), &FjallConfig::default()).unwrap();
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, "k", "v");
        store.commit(batch, Durability::Memory).await.unwrap();
        store.close().await.unwrap();
        data_dir.mark_clean().unwrap();
        // Dropped after the directory was marked: what it does then must not show.
        drop(store);
    }
}
