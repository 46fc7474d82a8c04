//! One server: its initial pairs, its configuration file, its stop, and everything it refuses.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use dkvs::{Client, ClientConfig};
use support::{Ended, free_port, occupied_port, refused, start, up, up_on_free_port};

fn arguments(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn the_same_initial_pair_on_two_servers_is_one_value_older_than_any_put() {
    let directory = tempfile::tempdir().unwrap();
    // Either port may be taken between finding and binding it, and the list must name both: start over then.
    let (first, second, ports) = loop {
        let ports = [free_port(), free_port()];
        let list = format!("127.0.0.1 {} 2\n127.0.0.1 {} 3\n", ports[0], ports[1]);
        fs::write(directory.path().join("servers.txt"), list).unwrap();
        let start = |port: u16| start(directory.path(), &["127.0.0.1", &port.to_string(), "a", "1"]);
        match (start(ports[0]), start(ports[1])) {
            (Ok(first), Ok(second)) => break (first, second, ports),
            (Err(ended), _) | (_, Err(ended)) => assert!(ended.stderr.contains("is in use"), "{ended:?}"),
        }
    };
    assert!(first.banner.contains("one of the 2 of servers.txt"), "{}", first.banner);
    assert!(first.banner.contains("1 from the command line"), "{}", first.banner);
    let client = Client::connect(&format!("127.0.0.1:{}", ports[1])).await.unwrap();
    let got = client.get("a").r(2).await.unwrap();
    assert_eq!((got.value().unwrap().as_ref(), got.sibling_count()), (&b"1"[..], 1));
    client.put("a", "2").w(2).await.unwrap();

    // Given again at the next start, the pair does not come back.
    assert_eq!(first.end_with("TERM").status, Some(0));
    let port = ports[0].to_string();
    let again = up(directory.path(), &["127.0.0.1", &port, "a", "1"]);
    let got = client.get("a").r(2).await.unwrap();
    assert_eq!((got.value().unwrap().as_ref(), got.sibling_count()), (&b"2"[..], 1));
    drop((again, second));
}

#[tokio::test]
async fn a_configuration_file_describes_a_server_and_flags_override_it() {
    let directory = tempfile::tempdir().unwrap();
    let configs = directory.path().join("configs");
    fs::create_dir(&configs).unwrap();
    let write = |port: u16| {
        let settings = format!(
            "listen = \"127.0.0.1:{port}\"\nring_file = \"ring.txt\"\ndata_dir = \"data\"\n\
             value_len_max = 3\ndurability = \"interval\"\nlog = \"error\"\nlog_format = \"json\"\n"
        );
        fs::write(configs.join("dkvs.toml"), settings).unwrap();
        fs::write(configs.join("ring.txt"), format!("127.0.0.1 {port} 1\n")).unwrap();
        arguments(&["--config", "configs/dkvs.toml", "--log", "info"])
    };
    let (process, port) = up_on_free_port(directory.path(), write);
    assert!(process.banner.contains("the only one of configs/ring.txt"), "{}", process.banner);
    assert!(process.banner.contains("a power cut loses that moment"), "{}", process.banner);
    assert!(configs.join("data/store").is_dir(), "a relative path starts at the file's directory");
    let client = Client::connect(&format!("127.0.0.1:{port}")).await.unwrap();
    client.put("a", "123").await.unwrap();
    assert!(client.put("a", "1234").await.unwrap_err().nothing_was_written());
    let Ended { status, stderr, .. } = process.end_with("TERM");
    assert_eq!(status, Some(0));
    assert!(stderr.lines().all(|line| line.starts_with("{\"timestamp\":")), "{stderr}");
    assert!(stderr.contains("\"start\":\"New\""), "the flag's level counts: {stderr}");
}

#[tokio::test]
async fn the_advertised_address_may_differ_from_where_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let (process, port) = up_on_free_port(directory.path(), |port| {
        fs::write(directory.path().join("ring.txt"), "localhost 77 1\n").unwrap();
        let settings =
            format!("listen = \"0.0.0.0:{port}\"\nadvertise = \"localhost:77\"\nring_file = \"ring.txt\"\n");
        fs::write(directory.path().join("dkvs.toml"), settings).unwrap();
        arguments(&["--config", "dkvs.toml", "--insecure", "--memory"])
    });
    let row = format!("localhost:77 (listening on 0.0.0.0:{port})");
    assert!(process.banner.contains(&row), "{}", process.banner);
    let ended = process.end_with("INT");
    assert!(ended.stderr.contains("listening beyond loopback without encryption"), "{ended:?}");
}

#[tokio::test]
async fn a_second_signal_stops_at_once_and_leaves_no_clean_mark() {
    let directory = tempfile::tempdir().unwrap();
    // The ring's other server receives, and never answers: a write that waits for it keeps the stop waiting.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let (process, port) = up_on_free_port(directory.path(), |port| {
        let list = format!("127.0.0.1 {port} 1\n127.0.0.1 {silent_port} 1\n");
        fs::write(directory.path().join("servers.txt"), list).unwrap();
        fs::write(directory.path().join("dkvs.toml"), "stop_grace_ms = 60000\n").unwrap();
        arguments(&["--config", "dkvs.toml", "--log", "info", "127.0.0.1", &port.to_string()])
    });
    let client = Client::connect_with(&format!("127.0.0.1:{port}"), ClientConfig::default()).await.unwrap();
    let mut received = [0; 2_000];
    // Only a key whose first owner is the server is sent to it first; the silent one receives the copy.
    let key = (0_u32..).map(|number| number.to_string()).find(|key| {
        let first = client.ring().owners_of_key(key.as_bytes(), 1)[0];
        client.ring().servers()[first].name.port() == port
    });
    let put = client.put(key.unwrap(), "1").n(2).w(2).timeout(Duration::from_secs(50));
    let waiting = tokio::spawn(put.into_future());
    tokio::task::spawn_blocking(move || silent.recv_from(&mut received)).await.unwrap().unwrap();
    process.signal("INT");
    process.wait_for_log("stopping");
    let ended = process.end_with("TERM");
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert!(!directory.path().join(format!("dkvs-data/127.0.0.1-{port}/CLEAN")).exists());
    waiting.abort();
}

#[test]
fn a_changed_ring_is_warned_about_once() {
    let directory = tempfile::tempdir().unwrap();
    let ring = directory.path().join("servers.txt");
    let (first, port) =
        up_on_free_port(directory.path(), |port| arguments(&["127.0.0.1", &port.to_string()]));
    assert!(first.banner.contains("alone on its ring"), "{}", first.banner);
    first.end_with("INT");
    fs::write(ring, format!("127.0.0.1 {port} 1\n127.0.0.1 9 1\n")).unwrap();
    let warned = || {
        let process = up(directory.path(), &["127.0.0.1", &port.to_string()]);
        process.end_with("INT").stderr.contains("the list of servers has changed")
    };
    assert!(warned());
    assert!(!warned());
}

/// Arguments, files, and how the refusal starts and ends.
struct Refusal<'a> {
    arguments: &'a str,
    file: Option<(&'a str, &'a str)>,
    status: i32,
    says: &'a str,
}

#[test]
fn every_refusal_says_what_where_and_what_to_do() {
    let ring = "127.0.0.1 1 1\n127.0.0.1 2 1\n";
    let table = [
        (
            "127.0.0.1 1234 odd",
            None,
            2,
            "error: key \"odd\" has no value: after IP PORT come pairs, KEY VALUE ...",
        ),
        ("300.0.0.1 1234", None, 2, "error: IP is \"300.0.0.1\", which "),
        ("127.0.0.1 123456", None, 2, "error: PORT is \"123456\"; allowed are whole numbers from 1 to 65535"),
        (
            "--sevrers 3",
            None,
            2,
            "error: unexpected argument '--sevrers' found\n\n  tip: a similar argument exists",
        ),
        ("--config no.toml", None, 1, "error: cannot read the configuration file no.toml: No such file"),
        (
            "--config d.toml",
            Some(("d.toml", "n = 3\ndurabilty = \"fsync\"\n")),
            1,
            "error: unknown key \"durabilty\" in d.toml line 2; did you mean \"durability\"?\n",
        ),
        (
            "--config d.toml",
            Some(("d.toml", "n = 3\n")),
            1,
            "error: which server is this? Give IP PORT after the",
        ),
        (
            "--config d.toml",
            Some(("d.toml", "listen = \"0.0.0.0:7\"\n")),
            1,
            "error: listen is \"0.0.0.0:7\", which names no server: set advertise to",
        ),
        (
            "--config d.toml 127.0.0.1 1234 a 12345",
            Some(("d.toml", "value_len_max = 4\n")),
            1,
            "error: the value of key \"a\" has 5 bytes; value_len_max is 4 bytes\n",
        ),
        (
            "--config d.toml 127.0.0.1 1234",
            Some(("d.toml", "requests_max = 0\n")),
            1,
            "error: requests_max is 0; it must be from 1 to 16777216\n",
        ),
        (
            "127.0.0.1 1234 --log inof",
            None,
            1,
            "error: --log is \"inof\", and \"inof\" is not a level; levels are off,",
        ),
        (
            "127.0.0.1 1234 -n 2",
            None,
            1,
            "error: the default quorum cannot be: n is 2, but the ring has only 1 server",
        ),
        ("127.0.0.1 1234 --ring no.txt", None, 1, "error: cannot read the ring file no.txt: No such file"),
        (
            "127.0.0.1 3",
            Some(("servers.txt", ring)),
            1,
            "error: server 127.0.0.1:3 is not listed in servers.txt, which lists 127.0.0.1:1, 127.0.0.1:2: start one \
             of those, add the line \"127.0.0.1 3 COUNT\" to the file of every server, or name another file with \
             --ring\n",
        ),
        (
            "127.0.0.1 1",
            Some(("servers.txt", "127.0.0.1 1 1\n127.0.0.1 2\n")),
            1,
            "error: servers.txt line 2: COUNT is missing in \"127.0.0.1 2\"; expected IP PORT COUNT\n",
        ),
        (
            "127.0.0.1 1",
            Some(("servers.txt", "127.0.0.1 1 1\nno-such-host.invalid 2 1\n")),
            1,
            "error: in servers.txt: cannot find the address of no-such-host.invalid:2: ",
        ),
        (
            "127.0.0.1 1234 --listen 0.0.0.0:1234",
            None,
            1,
            "error: 0.0.0.0:1234 is reachable from beyond this machine, and nothing is encrypted or authenticated \
             yet: whoever reaches it can read and write everything. If all who can are trusted, say so with \
             --insecure, or with insecure = true in the configuration file\n",
        ),
        (
            "127.0.0.1 1234 --listen 127.0.0.1:0",
            None,
            1,
            "error: listen is \"127.0.0.1:0\"; its port must be from 1",
        ),
        (
            "127.0.0.1 1234 --listen here",
            None,
            1,
            "error: listen is \"here\": server is \"here\"; expected HOST:PORT",
        ),
        (
            "192.0.2.1 1234 --insecure",
            None,
            1,
            "error: cannot listen on 192.0.2.1:1234: this machine has no such address. If others reach it under that \
             address through a translation, choose one that it has with --listen, or with listen in the",
        ),
    ];
    for (arguments, file, status, says) in table {
        check(&Refusal { arguments, file, status, says });
    }
}

fn check(refusal: &Refusal<'_>) {
    let directory = tempfile::tempdir().unwrap();
    if let Some((name, text)) = refusal.file {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let arguments: Vec<&str> = refusal.arguments.split(' ').collect();
    let (status, error) = refused(directory.path(), &arguments);
    // The listening beyond loopback is warned about before it fails.
    let error = error.split_once("error: ").map_or(error.clone(), |(_, rest)| format!("error: {rest}"));
    assert!(error.starts_with(refusal.says), "{arguments:?} said {error}");
    assert_eq!(status, Some(refusal.status), "{arguments:?} said {error}");
    assert!(!directory.path().join("dkvs-data").exists(), "{arguments:?} left traces");
}

#[test]
fn a_port_in_use_is_named_with_where_it_was_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let (_sockets, port) = occupied_port();
    let port = port.to_string();
    let in_use = format!("error: 127.0.0.1:{port} is in use: stop the program that has it, or ");
    let (status, error) = refused(directory.path(), &["127.0.0.1", &port]);
    assert_eq!((status, error), (Some(1), in_use.clone() + "give another PORT\n"));
    let (_, error) = refused(directory.path(), &["127.0.0.1", "1", "--listen", &format!("127.0.0.1:{port}")]);
    let remedy = "choose another port with --listen, or with listen in the configuration file\n";
    assert_eq!(error, in_use + remedy);
}

#[test]
fn a_data_directory_is_one_servers_and_of_a_known_format() {
    let directory = tempfile::tempdir().unwrap();
    let on = |port: u16| arguments(&["127.0.0.1", &port.to_string(), "--data-dir", "data"]);
    let (first, port) = up_on_free_port(directory.path(), on);
    first.end_with("INT");
    let refusal = |directory: &Path| loop {
        let arguments = on(free_port());
        let (status, error) = refused(directory, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        if !error.contains("is in use: stop the program") {
            assert_eq!(status, Some(1), "{error}");
            return error;
        }
    };
    let owner = format!(
        "error: data directory data belongs to server \"127.0.0.1 {port}\" (says its file OWNER), not to \"127.0.0.1 "
    );
    let error = refusal(directory.path());
    assert!(error.starts_with(&owner) && error.ends_with("give each server its own directory\n"), "{error}");

    fs::write(directory.path().join("data/FORMAT"), "999\n").unwrap();
    let error = refusal(directory.path());
    assert!(
        error.starts_with(
            "error: data directory data has format 999 (says its file FORMAT), and this dkvs-server knows"
        ),
        "{error}"
    );
    assert!(error.ends_with("start it with a newer dkvs-server\n"), "{error}");

    fs::write(directory.path().join("data/FORMAT"), "new\n").unwrap();
    let error = refusal(directory.path());
    assert!(error.starts_with("error: data/FORMAT is unreadable: expected the version"), "{error}");
    assert!(error.ends_with("; restore the file, or start with an empty directory\n"), "{error}");

    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("data")).unwrap();
    fs::write(other.path().join("data/thesis.txt"), "years of work").unwrap();
    let error = refusal(other.path());
    assert!(
        error.starts_with("error: data is not a DKVS data directory, and not empty (it holds"),
        "{error}"
    );

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("data"), "a file").unwrap();
    let error = refusal(other.path());
    assert!(error.starts_with("error: cannot create data: File exists"), "{error}");
    assert!(
        error.ends_with("check the path and its permissions, or choose another with --data-dir\n"),
        "{error}"
    );
}
