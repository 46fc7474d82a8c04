//! How the program ends: a status for each kind of failure, and what is said.

use std::fs::File;
use std::process::Stdio;

use crate::cluster::{Cluster, Ran, client, ran};

#[test]
fn a_missed_write_quorum_is_unknown() {
    let cluster = Cluster::start_with(3, 1, Vec::new());
    let key = cluster.key_of(&cluster.names[0]);
    let put = cluster.run(&format!("put -w 2 --timeout 2s {key} v"));
    assert_eq!((put.code, put.text()), (3, "FAIL\n"), "{put:?}");
    let start = format!("write quorum not reached: 1 of 2 acknowledged ({} ok, ", cluster.names[0]);
    assert!(put.stderr.starts_with(&start), "{put:?}");
    for silent in &cluster.names[1..] {
        assert!(put.stderr.contains(&format!("{silent} did not answer in ")), "{put:?}");
    }
    assert!(put.stderr.ends_with("): the outcome is unknown\n"), "{put:?}");
    cluster.run(&format!("put -n 1 -w 1 {key} v")).is(0, "OK\n", "");
}

#[test]
fn a_missed_quorum_has_a_kind_in_json() {
    let cluster = Cluster::start_with(3, 1, Vec::new());
    let key = cluster.key_of(&cluster.names[0]);
    for (op, kind) in [(format!("delete {key}"), "unknown"), (format!("get {key}"), "unavailable")] {
        let missed = cluster.run(&format!("--json --timeout 2s {op}"));
        assert_eq!((missed.code, &*missed.stderr), (3, ""), "{missed:?}");
        let missed = missed.json();
        assert_eq!((&missed["ok"], &missed["kind"]), (&false.into(), &kind.into()), "{missed:?}");
        assert!(missed["error"].as_str().is_some_and(|error| error.contains("quorum not reached: 1 of 2")));
    }
}

#[test]
fn a_missed_read_quorum_leaves_nothing_open() {
    let cluster = Cluster::start_with(3, 1, Vec::new());
    let key = cluster.key_of(&cluster.names[0]);
    let got = cluster.run(&format!("--timeout 2s get {key}"));
    assert_eq!((got.code, got.text()), (3, "FAIL\n"), "{got:?}");
    assert!(got.stderr.starts_with("read quorum not reached: 1 of 2 answered ("), "{got:?}");
    let raw = cluster.run(&format!("--timeout 2s get --raw {key}"));
    assert_eq!((raw.code, raw.text()), (3, ""), "{raw:?}");
}

#[test]
fn a_cluster_that_is_silent_altogether_is_status_3() {
    let cluster = Cluster::start_with(2, 0, Vec::new());
    let got = cluster.run("--timeout 200ms get k");
    assert_eq!((got.code, got.text()), (3, "FAIL\n"), "{got:?}");
    assert!(got.stderr.starts_with("no server answered ("), "{got:?}");
}

#[test]
fn without_a_ring_it_says_what_was_tried_and_what_to_do() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    let silent = &cluster.names[0];
    std::fs::remove_file(cluster.directory.path().join("servers.txt")).expect("the file");
    let expected = format!(
        "no servers.txt here and nobody answers at {silent} (timed out): start a cluster with 'dkvs-server', or \
         name a server with --connect HOST:PORT or a ring with --servers FILE\n"
    );
    let connect = format!("--timeout 100ms --connect {silent}");
    for op in ["get k", "put k v", "status", "dump-ring", "ring"] {
        cluster.run(&format!("{connect} {op}")).is(3, "FAIL\n", &expected);
    }
    let json = cluster.run(&format!("{connect} --json get k")).json();
    assert_eq!((&json["ok"], &json["kind"]), (&false.into(), &"unavailable".into()));
}

#[test]
fn the_ring_is_asked_for_where_no_file_has_it() {
    let cluster = Cluster::start();
    let list = cluster.directory.path().join("servers.txt");
    std::fs::rename(&list, cluster.directory.path().join("list.txt")).expect("the file");
    cluster.run(&format!("--connect {} put k v", cluster.names[2])).is(0, "OK\n", "");
    cluster.run(&format!("get k --connect {}", cluster.names[1])).is(0, "OK v\n", "");
    cluster.run("get --servers list.txt k").is(0, "OK v\n", "");
    let directory = cluster.directory.path();
    let name = cluster.names[0].to_string();
    ran(client(directory).env("DKVS_CONNECT", name).args(["get", "k"])).is(0, "OK v\n", "");
    ran(client(directory).env("DKVS_SERVERS", "list.txt").args(["get", "k"])).is(0, "OK v\n", "");
}

#[test]
fn a_server_that_is_passed_over_for_a_file_is_mentioned() {
    let cluster = Cluster::start();
    let note = "192.0.2.1:1 is not asked for the ring: it is read from servers.txt, which does not list it\n";
    cluster.run("--connect 192.0.2.1:1 put k v").is(0, "OK\n", note);
    cluster.run(&format!("--connect {} get k", cluster.names[0])).is(0, "OK v\n", "");
}

#[test]
fn a_wrong_servers_file_is_a_usage_error_that_says_where() {
    let cluster = Cluster::start();
    cluster.run("get k --servers none.txt").is_usage_error("cannot read none.txt: ");
    cluster.file("bad.txt", b"# ring\n127.0.0.1 1234 1\n127.0.0.1 99999 1\n");
    let bad_port = "bad.txt line 3: PORT is \"99999\"; allowed are whole numbers from 1 to 65535";
    cluster.run("--servers bad.txt get k").is_usage_error(bad_port);
    cluster.file("servers.txt", b"127.0.0.1 1234\n");
    cluster.run("get k").is_usage_error("servers.txt line 1: COUNT is missing in \"127.0.0.1 1234\"");
    cluster.file("servers.txt", b"");
    cluster.run("get k").is_usage_error("servers.txt: lists no server");
    cluster.file("servers.txt", &[0xff, 0xfe]);
    cluster.run("get k").is_usage_error("cannot read servers.txt: ");
}

#[test]
fn another_ring_and_another_keys_context_are_refused_with_status_4() {
    let cluster = Cluster::start();
    let other = cluster.ring.servers().to_string().replace(" 4\n", " 5\n");
    cluster.file("other.txt", other.as_bytes());
    let refused = cluster.run("--servers other.txt put k v");
    assert_eq!((refused.code, refused.text()), (4, "FAIL\n"), "{refused:?}");
    assert!(refused.stderr.contains("is on another ring"), "{refused:?}");

    let context = cluster.run("put --json k v").json()["context"].as_str().expect("a context").to_owned();
    let refused = cluster.run(&format!("put --json other v --context {context}"));
    assert_eq!((refused.code, &refused.json()["kind"]), (4, &"refused".into()), "{refused:?}");
}

#[test]
fn quorums_that_cannot_be_are_usage_errors() {
    let cluster = Cluster::start();
    for (command, reason) in [
        ("-n 4 get k", "n is 4, but the ring has only 3 server(s); n must be at most the number of servers"),
        ("put -w 4 k v", "w is 4, but only n = 3 copies are kept; w must be at most n"),
        ("-r 3 -n 2 get k", "r is 3, but only n = 2 copies are kept; r must be at most n"),
        ("get -n 0 k", "invalid value '0' for '-n <N>'"),
        ("get -r -1 k", "invalid value '-1' for '-r <R>'"),
        ("status -n 4", "n is 4"),
    ] {
        cluster.run(command).is_usage_error(reason);
    }
}

#[test]
fn what_is_wrong_with_the_command_is_said_without_a_cluster() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    cluster.file("servers.txt", b"not even a ring");
    for (command, reason) in [
        ("get -n 2 -r 3 k", "r is 3, but only n = 2 copies are kept"),
        ("put k @none.bin", "cannot read none.bin: "),
        ("put k @.", "cannot read .: "),
        ("--raw --json get k", "--raw and --json exclude each other"),
        ("--raw status", "--raw does not apply to status"),
        ("get --timeout 0 k", "invalid value '0' for '--timeout <D>'"),
        ("get --connect 127.0.0.1 k", "server is \"127.0.0.1\"; expected HOST:PORT"),
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("put k", "<VALUE>"),
    ] {
        cluster.run(command).is_usage_error(reason);
    }
    cluster.run_args(["get", ""]).is_usage_error("the key is empty; it must have at least 1 byte");
    let long = "k".repeat(32_769);
    cluster
        .run_args(["cat", "a", &long])
        .is_usage_error("the key has 32769 bytes; at most 32768 are allowed");
}

#[cfg(unix)]
#[test]
fn input_without_an_end_is_not_read_to_its_end() {
    let cluster = Cluster::start();
    cluster.run("put k @/dev/zero").is_usage_error("/dev/zero is too long for a value");
    let zeros = File::open("/dev/zero").expect("zeros");
    let put = ran(client(cluster.directory.path()).args(["put", "k", "-"]).stdin(zeros));
    put.is_usage_error("stdin is too long for a value; at most 8388608 bytes are allowed");
}

#[test]
fn a_reader_that_has_left_is_not_an_error() {
    let cluster = Cluster::start();
    cluster.file("big.bin", &vec![7; 1 << 20]);
    cluster.run("put big @big.bin").is(0, "OK\n", "");
    for arguments in [
        &["get", "--raw", "big"][..],
        &["get", "--json", "big"],
        &["dump-ring"],
        &["put", "k", "v"],
        &["help"],
    ] {
        let mut client = client(cluster.directory.path());
        client.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn().expect("the client to start");
        drop(child.stdout.take());
        let ended = Ran::of(child.wait_with_output().expect("the client to end"));
        assert_eq!((ended.code, &*ended.stderr), (0, ""), "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_answer_that_cannot_be_shown_is_status_4() {
    let cluster = Cluster::start();
    let full = || File::options().write(true).open("/dev/full").expect("a full device");
    for format in [&["put", "k", "v"][..], &["put", "k", "v", "--json"]] {
        let put =
            client(cluster.directory.path()).args(format).stdout(full()).output().expect("the client to run");
        let put = Ran::of(put);
        assert_eq!(put.code, 4, "{put:?}");
        assert!(put.stderr.starts_with("cannot write to stdout: "), "{put:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    for command in ["help", "--help", "-h", "help put", "put --help", "help dump-ring"] {
        let help = cluster.run_args(command.split(' '));
        assert_eq!((help.code, &*help.stderr), (0, ""), "{command}");
        assert!(help.text().contains("Usage: dkvs-client"), "{command}");
    }
    let version = concat!("dkvs-client ", env!("CARGO_PKG_VERSION"), "\n");
    ran(client(cluster.directory.path()).arg("--version")).is(0, version, "");
    let nothing = ran(&mut client(cluster.directory.path()));
    assert_eq!((nothing.code, nothing.text()), (2, ""));
    assert!(nothing.stderr.contains("Operations:"), "{nothing:?}");
}
