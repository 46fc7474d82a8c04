//! A copy of a data directory is not the directory, however faithful the copying tool.
//!
//! Apart from the other tests of data directories, because these start processes: between its fork and its exec
//! a child shares every open file, and with it every lock that another test is about to give back. For the
//! same reason one test makes all the claims.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use dkvs_storage::{DataDir, Start};
use std::{fs, path::Path, process::Command};

const OWNER: &str = "127.0.0.1 1234";

fn start(path: &Path) -> Start {
    DataDir::open(path, OWNER).unwrap().1
}

/// Opens, leaves a file where the engine has its own, and stops cleanly.
fn stop_cleanly(path: &Path) {
    let (dir, _) = DataDir::open(path, OWNER).unwrap();
    fs::create_dir_all(dir.store_path().join("tables")).unwrap();
    fs::write(dir.store_path().join("tables/1"), "old").unwrap();
    dir.mark_clean().unwrap();
}

/// With every time, owner and mode that can be set.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_faithful_copy_of_a_clean_directory_or_of_its_store_is_unclean() {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("data");
    let backup = above.path().join("backup");

    // Beside the original.
    stop_cleanly(&path);
    copy(&path, &backup);
    assert_eq!(start(&backup), Start::Unclean);
    fs::remove_dir_all(&backup).unwrap();

    // In place of the original: the usual restore.
    copy(&path, &backup);
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&backup, &path).unwrap();
    assert_eq!(start(&path), Start::Unclean);

    // Only the engine's files.
    stop_cleanly(&path);
    copy(&path.join("store"), &backup);
    fs::remove_dir_all(path.join("store")).unwrap();
    fs::rename(&backup, path.join("store")).unwrap();
    assert_eq!(start(&path), Start::Unclean);

    // And without any of this, to see that the copies were what mattered.
    stop_cleanly(&path);
    assert_eq!(start(&path), Start::Clean);
}
