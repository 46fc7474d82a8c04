//! What operations do, and exactly what they print.

use crate::cluster::Cluster;

const LEN_5_MIB: usize = 5 << 20;

/// Bytes of all values, without a pattern that a buffer's length divides.
fn binary(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(next).collect()
}

#[test]
fn a_value_is_put_got_and_deleted() {
    let cluster = Cluster::start();
    cluster.run("put color green").is(0, "OK\n", "");
    cluster.run("get color").is(0, "OK green\n", "");
    cluster.run("get -n 3 -r 3 -- color").is(0, "OK green\n", "");
    cluster.run("-w 3 -n 3 put -- color blue").is(0, "OK\n", "");
    cluster.run("get color").is(0, "OK blue\n", "");
    cluster.run("delete color").is(0, "OK\n", "");
    cluster.run("get color").is(1, "FAIL\n", "not found\n");
    cluster.run("delete never-there").is(0, "OK\n", "");
    cluster.run("get never-there").is(1, "FAIL\n", "not found\n");
    cluster.run_args(["put", "empty", ""]).is(0, "OK\n", "");
    cluster.run("get empty").is(0, "OK \n", "");
}

#[test]
fn a_value_with_a_time_to_live_is_not_found_from_then_on() {
    let cluster = Cluster::start();
    cluster.run("put --ttl 1h color green").is(0, "OK\n", "");
    cluster.run("get color").is(0, "OK green\n", "");
    cluster.advance_clocks(3_600_000);
    cluster.run("get color").is(1, "FAIL\n", "not found\n");
    cluster.run("get --siblings color").is(1, "FAIL\n", "not found\n");
    let seen = cluster.run("get --json color").json();
    assert_eq!((&seen["siblings"], &seen["kind"]), (&0.into(), &"not_found".into()));
    let context = seen["context"].as_str().expect("a context").to_owned();
    cluster.run(&format!("put --context {context} color blue")).is(0, "OK\n", "");
    cluster.run("get --siblings color").is(0, "OK blue\n", "");

    for ttl in ["0", "0s", "soon", "40000d", "-1s"] {
        let ran = cluster.run(&format!("put --ttl {ttl} color red"));
        let part = format!("invalid value '{ttl}' for '--ttl <D>': it must be a number with a unit");
        assert!(ran.code == 2 && ran.stdout.is_empty() && ran.stderr.contains(&part), "{ran:?}");
    }
}

#[test]
fn raw_output_is_the_value_and_nothing_else() {
    let cluster = Cluster::start();
    cluster.run("put --raw color green").is(0, "", "");
    cluster.run("get --raw color").is(0, "green", "");
    cluster.run("find --raw color color").is(0, "0", "");
    cluster.run("get --raw nothing").is(1, "", "not found\n");
}

#[test]
fn keys_and_values_may_start_with_a_dash_or_an_at() {
    let cluster = Cluster::start();
    cluster.run("put -- -n -5").is(0, "OK\n", "");
    cluster.run("get -- -n").is(0, "OK -5\n", "");
    cluster.run("put @key @@value").is(0, "OK\n", "");
    cluster.run("get @key").is(0, "OK @value\n", "");
    cluster.run("put -- - --").is(0, "OK\n", "");
    cluster.run("get -").is(0, "OK --\n", "");
}

#[test]
fn a_file_of_5_mib_survives_the_round_trip() {
    let cluster = Cluster::start();
    let content = binary(LEN_5_MIB);
    cluster.file("in.bin", &content);
    cluster.run("put big @in.bin").is(0, "OK\n", "");
    let got = cluster.run("get --raw big");
    assert_eq!((got.code, &*got.stderr), (0, ""));
    assert!(got.stdout == content, "other bytes came back");
    let got = cluster.run("get --raw --timeout 30s -n 3 -r 3 big");
    assert!(got.stdout == content, "other bytes came back from all three");
}

#[test]
fn stdin_of_5_mib_survives_the_round_trip() {
    let cluster = Cluster::start();
    let content = binary(LEN_5_MIB);
    cluster.run_with_stdin("put big -", &content).is(0, "OK\n", "");
    assert!(cluster.run("get --raw big").stdout == content, "other bytes came back");
    cluster.run_with_stdin("put empty -", b"").is(0, "OK\n", "");
    cluster.run("get empty").is(0, "OK \n", "");
}

#[test]
fn the_largest_value_is_accepted_and_one_byte_more_is_not() {
    let cluster = Cluster::start();
    cluster.file("most.bin", &vec![7; 8 << 20]);
    cluster.run("put big @most.bin").is(0, "OK\n", "");
    assert_eq!(cluster.run("get --raw big").stdout.len(), 8 << 20);
    cluster.file("more.bin", &vec![7; (8 << 20) + 1]);
    cluster
        .run("put big @more.bin")
        .is_usage_error("more.bin is too long for a value; at most 8388608 bytes");
}

#[cfg(unix)]
#[test]
fn keys_and_values_may_be_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let cluster = Cluster::start();
    let os = OsStr::from_bytes;
    cluster.run_args([os(b"put"), os(b"k\xff\x01"), os(b"\xfe\nv\x80")]).is(0, "OK\n", "");
    let got = cluster.run_args([os(b"get"), os(b"k\xff\x01")]);
    assert_eq!((got.code, &*got.stdout), (0, &b"OK \xfe\nv\x80\n"[..]));
    let got = cluster.run_args([os(b"get"), os(b"--json"), os(b"k\xff\x01")]).json();
    assert_eq!(
        (&got["ok"], &got["value_hex"], &got["encoding"]),
        (&true.into(), &"fe0a7680".into(), &"hex".into())
    );
    assert_eq!(got["value"], serde_json::Value::Null);
    let missing = cluster.run_args([os(b"cat"), os(b"no\xff"), os(b"d")]);
    missing.is(1, "FAIL\n", "not found: no\\xff\n");
}

#[test]
fn cat_joins_values_in_the_order_of_the_keys() {
    let cluster = Cluster::start();
    for pair in ["a 1", "b 22", "c 333"] {
        cluster.run(&format!("put {pair}")).is(0, "OK\n", "");
    }
    cluster.run("cat a b c all").is(0, "OK\n", "");
    cluster.run("get all").is(0, "OK 122333\n", "");
    cluster.run("cat -w 3 -r 1 -- b a b b").is(0, "OK\n", "");
    cluster.run("get b").is(0, "OK 22122\n", "");
    cluster.run("cat a copy").is(0, "OK\n", "");
    cluster.run("get copy").is(0, "OK 1\n", "");
    cluster.run("cat a nothing c copy").is(1, "FAIL\n", "not found: nothing\n");
    cluster.run("get copy").is(0, "OK 1\n", "");
}

#[test]
fn cat_refuses_what_would_be_too_long() {
    let cluster = Cluster::start();
    cluster.file("half.bin", &vec![7; 5 << 20]);
    cluster.run("put half @half.bin").is(0, "OK\n", "");
    let reason = "the values together have more than 8388608 bytes, the most that a value may have\n";
    cluster.run("cat half half whole").is(4, "FAIL\n", reason);
    cluster.run("get whole").is(1, "FAIL\n", "not found\n");
}

#[test]
fn substr_takes_a_part_from_either_end() {
    let cluster = Cluster::start();
    cluster.run("put k hello").is(0, "OK\n", "");
    for (range, expected) in
        [("0 5", "hello"), ("1 3", "ell"), ("-1 1", "o"), ("-5 2", "he"), ("5 0", ""), ("-2 0", "")]
    {
        cluster.run(&format!("substr k {range} part")).is(0, "OK\n", "");
        cluster.run("get part").is(0, &format!("OK {expected}\n"), "");
    }
    cluster.run("put part kept").is(0, "OK\n", "");
    for (pos, len) in [(0, 6), (5, 1), (6, 0), (-1, 2), (-6, 1)] {
        let reason = format!("POS {pos}, LEN {len} is not inside the value, which has 5 bytes\n");
        cluster.run(&format!("substr k {pos} {len} part")).is(4, "FAIL\n", &reason);
    }
    cluster.run("get part").is(0, "OK kept\n", "");
    cluster.run("substr nothing 0 1 part").is(1, "FAIL\n", "not found: nothing\n");
    cluster.run("substr k 0 -1 part").is_usage_error("invalid value '-1' for '<LEN>'");
}

#[test]
fn find_prints_the_leftmost_index_or_minus_one() {
    let cluster = Cluster::start();
    for pair in ["hay abcabcabd", "a abcabd", "b bc", "c x"] {
        cluster.run(&format!("put {pair}")).is(0, "OK\n", "");
    }
    cluster.run_args(["put", "empty", ""]).is(0, "OK\n", "");
    cluster.run("find hay a").is(0, "OK 3\n", "");
    cluster.run("find hay b").is(0, "OK 1\n", "");
    cluster.run("find hay c").is(0, "OK -1\n", "");
    cluster.run("find hay empty").is(0, "OK 0\n", "");
    cluster.run("find empty hay").is(0, "OK -1\n", "");
    cluster.run("find --json hay b").is(0, "{\"ok\":true,\"index\":1}\n", "");
    cluster.run("find hay nothing").is(1, "FAIL\n", "not found: nothing\n");
    cluster.run("find nothing hay").is(1, "FAIL\n", "not found: nothing\n");
}

#[test]
fn json_says_who_answered_and_what_was_seen() {
    let cluster = Cluster::start();
    let put = cluster.run("put --json -w 3 k v").json();
    assert_eq!((&put["ok"], put["acked"].as_array().map(Vec::len)), (&true.into(), Some(3)));
    let got = cluster.run("--json get k").json();
    assert_eq!((&got["ok"], &got["value"], &got["encoding"]), (&true.into(), &"v".into(), &"utf8".into()));
    assert_eq!((&got["siblings"], &got["context"]), (&1.into(), &put["context"]));
    let missing = cluster.run("get --json nothing");
    let expected =
        r#"{"ok":false,"error":"not found","kind":"not_found","siblings":0,"answered":["#.to_owned();
    assert_eq!((missing.code, &*missing.stderr), (1, ""));
    assert!(missing.text().starts_with(&expected), "{missing:?}");
}

#[test]
fn verbose_says_who_answered_and_the_context_on_stderr() {
    let cluster = Cluster::start();
    let put = cluster.run("put -v -w 3 k v");
    let acked = cluster.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let start = format!("ring {} of 3 server(s)\nacknowledged: {acked}\ncontext: ", cluster.ring.id());
    assert!(put.stderr.starts_with(&start), "{put:?}");
    assert_eq!(put.text(), "OK\n");
    let got = cluster.run("get k --verbose");
    assert_eq!(got.stderr.lines().last(), put.stderr.lines().last());
    let missing = cluster.run("get -v nothing");
    assert_eq!((missing.code, missing.stderr.lines().last()), (1, Some("not found")), "{missing:?}");
}

#[test]
fn a_context_replaces_what_was_seen_and_leaves_the_rest_as_siblings() {
    let cluster = Cluster::start();
    cluster.run("put k one").is(0, "OK\n", "");
    let context = |cluster: &Cluster| {
        let got = cluster.run("get --json --siblings k").json();
        got["context"].as_str().expect("a context").to_owned()
    };
    let seen = context(&cluster);
    cluster.run(&format!("put k two --context {seen}")).is(0, "OK\n", "");
    cluster.run(&format!("put --context {seen} k three")).is(0, "OK\n", "");
    cluster.run("get k").is(0, "OK three\n", "2 siblings; --siblings shows them\n");
    cluster.run("get k --raw").is(0, "three", "2 siblings; --siblings shows them\n");
    cluster.run("get --siblings k").is(0, "OK three\nOK two\n", "");
    let all = cluster.run("get --siblings --json k").json();
    assert_eq!((&all["ok"], &all["siblings"]), (&true.into(), &2.into()));
    assert_eq!(
        all["values"].to_string(),
        r#"[{"encoding":"utf8","value":"three"},{"encoding":"utf8","value":"two"}]"#
    );

    cluster.run(&format!("delete k --context {seen}")).is(0, "OK\n", "");
    cluster.run("get k").is(1, "FAIL\n", "not found\n3 siblings; --siblings shows them\n");
    cluster.run("get --siblings k").is(0, "DELETED\nOK three\nOK two\n", "");

    cluster.run(&format!("put k four --context {}", context(&cluster))).is(0, "OK\n", "");
    cluster.run("get k").is(0, "OK four\n", "");
}

#[test]
fn an_empty_context_means_that_nothing_was_there() {
    let cluster = Cluster::start();
    let context = cluster.run("get --json k").json()["context"].clone();
    assert_eq!(context, "");
    cluster.run("put k one").is(0, "OK\n", "");
    cluster.run_args(["put", "k", "two", "--context", ""]).is(0, "OK\n", "");
    cluster.run("get --siblings k").is(0, "OK two\nOK one\n", "");
}

#[test]
fn a_sloppy_answer_says_how_many_owners_and_stand_ins_there_were() {
    let cluster = Cluster::start_with(4, 3, Vec::new());
    let [.., silent] = &cluster.names[..] else { panic!("four servers") };
    let key = cluster.key_of(silent);
    cluster.run(&format!("put --sloppy -w 3 {key} v")).is(
        0,
        "OK\n",
        "acknowledged by 2 owners, 1 stand-in\n",
    );
    cluster.run(&format!("get --sloppy -r 3 {key}")).is(0, "OK v\n", "answered by 2 owners, 1 stand-in\n");
    // Who answers first is chance.
    let either = cluster.run(&format!("get --sloppy -r 2 {key}"));
    assert_eq!((either.code, either.text()), (0, "OK v\n"), "{either:?}");
    let strict = cluster.run_args(["put", "-w", "3", "--timeout", "2s", &key, "v"]);
    assert_eq!((strict.code, strict.text()), (3, "FAIL\n"), "{strict:?}");

    let put = cluster.run(&format!("put --sloppy -w 3 --json {key} v")).json();
    let last = cluster.ring.owners_of_key(key.as_bytes(), 4)[3];
    let stand_in = cluster.ring.servers()[last].name.to_string();
    let expected = serde_json::json!([{ "server": stand_in, "for": silent.to_string() }]);
    assert_eq!((&put["stand_ins"], put["acked"].as_array().map(Vec::len)), (&expected, Some(2)));
    let verbose = cluster.run(&format!("get -v --sloppy -r 3 {key}"));
    assert!(verbose.stderr.contains(&format!("\n{stand_in} stood in for {silent}\n")), "{verbose:?}");

    let explained = cluster.run(&format!("explain --timeout 1s {key}"));
    let hint = format!("\n{stand_in}: does not own the key\n  hint for {silent}: record ");
    assert!(explained.text().contains(&hint), "{explained:?}");
    let explained = cluster.run(&format!("explain --timeout 1s --json {key}")).json();
    assert_eq!(
        (&explained["others"][0]["server"], &explained["others"][0]["hints"][0]["for"]),
        (&stand_in.into(), &silent.to_string().into())
    );
}

#[test]
fn the_cluster_says_whether_requests_are_sloppy_that_do_not_say() {
    let cluster = Cluster::start_configured(4, 3, Vec::new(), |config| config.sloppy = true);
    std::fs::remove_file(cluster.directory.path().join("servers.txt")).expect("it is there");
    let key = cluster.key_of(&cluster.names[3]);
    let connect = format!("--connect {}", cluster.names[0]);
    let said = "acknowledged by 2 owners, 1 stand-in\n";
    cluster.run(&format!("{connect} put -w 3 {key} v")).is(0, "OK\n", said);
    cluster.run(&format!("{connect} delete -w 3 {key}")).is(0, "OK\n", said);
    let strict = cluster.run(&format!("{connect} put --strict --timeout 2s -w 3 {key} v"));
    assert_eq!((strict.code, strict.text()), (3, "FAIL\n"), "{strict:?}");
}
