//! Looking at the ring and its servers.

use std::fmt::Write;
use std::time::Duration;

use dkvs::Bytes;

use crate::cluster::Cluster;

fn node_lines(cluster: &Cluster) -> String {
    let mut lines = String::new();
    for node in cluster.ring.nodes() {
        let name = &cluster.ring.servers()[node.server].name;
        writeln!(lines, "{} ({} {})", node.token, name.host(), name.port()).expect("a String takes any text");
    }
    lines
}

#[test]
fn dump_ring_shows_the_nodes_and_what_each_server_stores() {
    let initial = vec![
        ("plain".into(), "text".into()),
        (Bytes::from_static(b"b\xff\n"), Bytes::from_static(b"\x00\\")),
    ];
    let cluster = Cluster::start_with(2, 2, initial);
    cluster.run("put -n 2 -w 2 gone soon").is(0, "OK\n", "");
    cluster.run("delete -n 2 -w 2 gone").is(0, "OK\n", "");
    let mut pairs = ["plain --> text", "b\\xff\\x0a --> \\x00\\\\"];
    pairs.sort_by_key(|pair| if pair.starts_with('p') { position(b"plain") } else { position(b"b\xff\n") });
    let mut expected = format!("Ring nodes:\n{}\n", node_lines(&cluster));
    for name in &cluster.names {
        writeln!(expected, "{name}:\nstoring 2 key-value pairs:\n{}\n{}", pairs[0], pairs[1])
            .expect("a String");
    }
    cluster.run("dump-ring").is(0, &expected, "");
}

fn position(key: &[u8]) -> String {
    dkvs::Position::of_key(key).to_string()
}

#[test]
fn dump_ring_counts_what_fills_many_pages() {
    let pair = |number: u32| (format!("key{number:05}").into(), vec![b'v'; 2_000].into());
    let cluster = Cluster::start_with(1, 1, (0..3_000).map(pair).collect());
    let dumped = cluster.run("dump-ring");
    let (_, dump) = dumped.text().split_once("storing 3000 key-value pairs:\n").expect("the count");
    let mut keys: Vec<_> = dump.lines().map(|line| line.split_once(" --> ").expect("a pair").0).collect();
    keys.sort_unstable();
    assert!(keys.iter().copied().eq((0..3_000).map(|number| format!("key{number:05}"))));

    let json = cluster.run("dump-ring --json").json();
    assert_eq!((&json["ok"], &json["nodes"].as_array().map(Vec::len)), (&true.into(), &Some(4)));
    let server = &json["servers"][0];
    assert_eq!((&server["keys"], server["entries"].as_array().map(Vec::len)), (&3_000.into(), Some(3_000)));
}

#[test]
fn dump_ring_goes_on_without_a_server_that_is_silent() {
    let cluster = Cluster::start_with(2, 1, vec![("k".into(), "v".into())]);
    let dumped = cluster.run("dump-ring --timeout 1s");
    let [up, silent] = [&cluster.names[0], &cluster.names[1]];
    let expected = format!(
        "Ring nodes:\n{}\n{up}:\nstoring 1 key-value pairs:\nk --> v\n{silent}:\n",
        node_lines(&cluster)
    );
    assert_eq!((dumped.code, dumped.text()), (0, &*expected), "{dumped:?}");
    assert!(dumped.stderr.starts_with(&format!("cannot reach {silent}: ")), "{dumped:?}");
}

#[test]
fn what_nobody_answers_is_status_3() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    let name = &cluster.names[0];
    let dumped = cluster.run("dump-ring --timeout 200ms");
    let expected = format!("Ring nodes:\n{}\n{name}:\n", node_lines(&cluster));
    assert_eq!((dumped.code, dumped.text()), (3, &*expected), "{dumped:?}");
    assert!(dumped.stderr.ends_with("no server answered\n"), "{dumped:?}");

    let status = cluster.run("status --timeout 200ms");
    assert_eq!((status.code, status.text().lines().count()), (3, 2), "{status:?}");
    assert!(status.stderr.ends_with("no server answered\n"), "{status:?}");
    let status = cluster.run("status --timeout 200ms --json");
    assert_eq!((status.code, &status.json()["ok"], &*status.stderr), (3, &false.into(), ""));
}

#[test]
fn ring_shows_the_known_tokens_without_any_server() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    cluster.file("known.txt", b"127.0.0.1 1236 1\n127.0.0.1 1234 1\n127.0.0.1 1235 1\n");
    let expected = "93149f866bf3acc9710375cb46706bf09960a6ab (127.0.0.1 1236)\n\
                    aa66f3e5a8d9cdc5c0bd49708bc59847e6915634 (127.0.0.1 1234)\n\
                    c484ea9b3b14d139b1456032a49990367b857fe6 (127.0.0.1 1235)\n";
    cluster.run("ring --servers known.txt").is(0, expected, "");
    let json = cluster.run("ring --servers known.txt --json").json();
    assert_eq!(json["nodes"][1]["server"], "127.0.0.1:1234");
}

#[test]
fn ring_of_a_key_shows_owners_and_fallbacks() {
    let cluster = Cluster::start_with(1, 0, Vec::new());
    cluster.file("known.txt", b"127.0.0.1 1234 1\n127.0.0.1 1235 2\n127.0.0.1 1236 3\n127.0.0.1 1237 2\n");
    let expected = "position bdb480de655aa6ec75ca058c849c4faf3c0f75b1, partition bdb4\n\
                    127.0.0.1:1235  owner\n\
                    127.0.0.1:1236  owner\n\
                    127.0.0.1:1237  owner\n\
                    127.0.0.1:1234  fallback\n";
    cluster.run("ring cc --servers known.txt").is(0, expected, "");
    let json = cluster.run("ring -n 2 --json cc --servers known.txt").json();
    assert_eq!(json["preference_list"][2]["role"], "fallback");
}

#[test]
fn status_has_a_row_for_each_server_whether_it_is_up_or_not() {
    let cluster = Cluster::start_with(2, 1, vec![("k".into(), "value".into())]);
    let status = cluster.run("status --timeout 1s");
    assert_eq!(status.code, 0, "{status:?}");
    let rows: Vec<Vec<&str>> = status.text().lines().map(|line| line.split_whitespace().collect()).collect();
    let [up, silent] = [cluster.names[0].to_string(), cluster.names[1].to_string()];
    assert_eq!(rows[0], ["SERVER", "STATE", "VERSION", "UPTIME", "AGREED", "KEYS", "BYTES"]);
    assert_eq!(rows[1][..3], [up.as_str(), "up", env!("CARGO_PKG_VERSION")]);
    assert_eq!(rows[1][4..7], ["not", "yet", "1"]);
    assert_eq!(rows[2], [silent.as_str(), "down", "-", "-", "-", "-", "-"]);
    let ends: Vec<_> = status.text().lines().map(str::len).collect();
    assert!(ends.iter().all(|&end| end == ends[0]), "the last column is aligned on its right: {status:?}");
    // By now the one that is up may have noticed as well.
    let seen = format!("{up} sees {silent} suspect for ");
    let ours: Vec<_> = status.stderr.lines().filter(|line| !line.starts_with(&seen)).collect();
    assert_eq!(ours, [format!("cannot reach {silent}: timed out")]);

    let json = cluster.run("status --json --timeout 1s").json();
    assert_eq!(json["servers"][0]["peers"][0]["server"], silent);
    assert_eq!((&json["ok"], &json["servers"][0]["keys"]), (&true.into(), &1.into()));
    assert_eq!(json["servers"][1]["state"], "down");
}

#[test]
fn status_says_when_servers_were_found_equal_and_how_long_it_takes_at_most() {
    let cluster = Cluster::start_configured(3, 3, Vec::new(), |config| {
        config.repair_interval = Duration::from_millis(100);
    });
    cluster.run("put -w 3 k v").is(0, "OK\n", "");
    let mut looks = std::iter::repeat_with(|| cluster.run("status")).take(1_000);
    looks.find(|status| status.text().matches("s ago").count() == 3).expect("all agree");
    let json = cluster.run("status --json").json();
    // Two pings, an interval, and what a comparison may wait.
    assert_eq!(json["servers"][0]["converges_ms"], 2 * 1_000 + 2 + 100 + 1_500);
    assert!(json["servers"][0]["peers"][0]["agreed_ms"].as_u64().is_some_and(|ms| ms < 30_000), "{json}");

    let alone = Cluster::start_configured(2, 2, Vec::new(), |config| config.repair_interval = Duration::ZERO);
    let json = alone.run("status --json").json();
    assert_eq!(json["servers"][0]["converges_ms"], serde_json::Value::Null);
    assert!(alone.run("status").text().lines().skip(1).all(|row| row.contains("  -  ")));
}

#[test]
fn a_put_that_finds_too_many_siblings_is_told_the_context_that_resolves_them() {
    let cluster = Cluster::start_configured(3, 3, Vec::new(), |config| config.siblings.max = 2);
    let put = |value| cluster.run_args(["put", "-w", "3", "--json", "--context", "", "k", value]);
    assert_eq!((put("a").code, put("b").code), (0, 0));
    let refused = put("c");
    let json = refused.json();
    assert_eq!((refused.code, &json["kind"]), (4, &"too_many_siblings".into()), "{refused:?}");
    assert_eq!((&json["siblings"], &json["siblings_max"]), (&2.into(), &2.into()));
    let text = cluster.run_args(["put", "--verbose", "--context", "", "k", "c"]);
    let context = json["context"].as_str().expect("a context");
    assert!(text.stderr.contains("the key has 2 siblings") && text.stderr.contains(context), "{text:?}");
    cluster.run_args(["put", "--context", context, "k", "a and b"]).is(0, "OK\n", "");
    cluster.run("get -r 3 k").is(0, "OK a and b\n", "");
}

#[test]
fn status_tells_of_a_server_on_another_ring() {
    let cluster = Cluster::start_with(1, 1, Vec::new());
    cluster.file("other.txt", cluster.ring.servers().to_string().replace(" 4\n", " 5\n").as_bytes());
    let status = cluster.run("status --servers other.txt");
    let start = format!("{} is on another ring ({}) than this client (", cluster.names[0], cluster.ring.id());
    assert_eq!(status.code, 0);
    assert!(status.stderr.starts_with(&start), "{status:?}");
}

#[test]
fn explain_shows_what_each_owner_holds_of_a_key_and_not_the_values() {
    let cluster = Cluster::start();
    cluster.run("put -w 3 --ttl 1h color secret").is(0, "OK\n", "");
    cluster.run_args(["delete", "-w", "3", "--context", "", "color"]).is(0, "OK\n", "");
    let ran = cluster.run("explain color");
    let lines: Vec<&str> = ran.text().lines().collect();
    assert!(ran.code == 0 && ran.stderr.is_empty() && !ran.text().contains("secret"), "{ran:?}");
    assert!(lines.iter().all(|line| line.len() <= 100), "{ran:?}");
    assert_eq!(
        lines[0],
        format!("position {}, partition {}", position(b"color"), dkvs::Partition::of_key(b"color"))
    );
    assert_eq!(lines.last(), Some(&"all owners hold the same"));
    for name in &cluster.names {
        assert!(ran.text().contains(&format!("\n{name}: record ")), "{ran:?}");
    }
    let values: Vec<_> = lines.iter().filter(|line| line.starts_with("  value ")).collect();
    assert!(values.len() == 3 && values.iter().all(|line| line.contains(" 6 B  expires 2")), "{ran:?}");
    cluster.advance_clocks(3_600_000);
    assert_eq!(cluster.run("explain color").text().matches("expired 2").count(), 3);

    let json = cluster.run("explain --json color").json();
    assert_eq!((&json["ok"], &json["agree"]), (&true.into(), &true.into()));
    let owner = &json["owners"][0];
    let sibling = &owner["siblings"][0];
    assert_eq!(
        (&owner["state"], &owner["damaged"], &owner["hints"]),
        (&"up".into(), &false.into(), &serde_json::json!([]))
    );
    assert_eq!(
        (&sibling["state"], &sibling["bytes"], &sibling["expired"]),
        (&"value".into(), &6.into(), &true.into())
    );
    let lasts = sibling["expires_ms"].as_u64().unwrap_or(0) - sibling["written_ms"].as_u64().unwrap_or(0);
    assert!(lasts.abs_diff(3_600_000) < 1_000, "{sibling}");

    let nothing = cluster.run("explain nothing");
    assert!(nothing.code == 0 && nothing.text().matches(": nothing\n").count() == 3, "{nothing:?}");
    cluster.run("explain").is_usage_error("<KEY>");
}

#[test]
fn explain_shows_who_is_down_and_what_is_kept_for_it() {
    let cluster = Cluster::start_with(3, 2, Vec::new());
    cluster.run("put --timeout 2s color green").is(0, "OK\n", "");
    // The hint is written when the owner that is down is given up, which the answer does not wait for.
    let mut looks = (0..30).map(|_| cluster.run("explain --timeout 1s color"));
    let ran = looks.find(|ran| ran.text().contains("  hint ")).expect("a hint");
    let down = &cluster.names[2];
    let hint = ran.text().lines().find(|line| line.starts_with("  hint ")).expect("a hint");
    assert!(hint.contains(&format!(" for {down}: record ")) && hint.len() <= 100, "{hint}");
    assert!(
        ran.text().contains(&format!("\n{down}: down\n")) && ran.stderr.contains(&down.to_string()),
        "{ran:?}"
    );
    assert!(ran.code == 0 && ran.text().ends_with("\nnot all owners could tell\n"), "{ran:?}");
    let (_, kept) = ran.text().split_once(hint).expect("the hint");
    let kept: Vec<_> = kept.lines().skip(1).take_while(|line| line.starts_with("    ")).collect();
    assert!(kept.len() == 2 && kept[0].starts_with("    knows ") && kept[1].contains(" 5 B"), "{ran:?}");
    let json = cluster.run("explain --timeout 1s --json color").json();
    assert_eq!(
        (&json["agree"], json["owners"].as_array().map(Vec::len)),
        (&serde_json::Value::Null, Some(3))
    );
    let owners = json["owners"].as_array().into_iter().flatten();
    let hint = owners.filter_map(|owner| owner["hints"].get(0)).next().expect("a hint");
    assert_eq!((&hint["for"], &hint["siblings"][0]["bytes"]), (&down.to_string().into(), &5.into()));
    assert_eq!(hint["version_vector"].as_array().map(Vec::len), Some(1));

    let stranger = Cluster::start_with(4, 3, Vec::new());
    let down = &stranger.names[3];
    let key = stranger.key_of(&stranger.names[0]);
    let ran = stranger.run(&format!("explain -n 1 --timeout 1s {key}"));
    let line = format!("\n{down}: down, does not own the key and may keep hints of it\n");
    assert!(ran.code == 0 && ran.text().contains(&line) && ran.stderr.contains(&down.to_string()), "{ran:?}");
    let json = stranger.run(&format!("explain -n 1 --timeout 1s --json {key}")).json();
    assert_eq!((&json["others"][0]["state"], &json["agree"]), (&"down".into(), &true.into()));

    let silent = Cluster::start_with(2, 0, Vec::new());
    let ran = silent.run("explain --timeout 1s color");
    assert!(ran.code == 3 && ran.stderr.contains("no server answered"), "{ran:?}");
    let json = silent.run("explain --timeout 1s --json color");
    assert_eq!(
        (json.code, &json.json()["ok"], &json.json()["kind"]),
        (3, &false.into(), &"unavailable".into())
    );
}
