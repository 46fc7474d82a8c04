//! What `servers.txt` may say, what it may not, and the words in which it is told.

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> ServerList {
    parse(text, "servers.txt").unwrap_or_else(|error| panic!("{error}"))
}

fn message(text: &str) -> String {
    parse(text, "servers.txt").expect_err(text).to_string()
}

#[test]
fn spacing_comments_line_ends_and_order_do_not_matter() {
    let plain = "10.0.0.2 1234 1\n10.0.0.10 1234 2\n10.0.0.10 1235 3\n";
    let decorated = "\u{feff}# our cluster\r\n\r\n \t10.0.0.10\t1235   3  # big\r\n10.0.0.10 1234 2#\r\n\t\r\n10.0.0.2 1234 1";
    assert_eq!(parsed(decorated), parsed(plain));
    assert_eq!(parsed(decorated).to_string(), plain);
}

#[test]
fn servers_are_indexed_in_the_order_of_their_addresses() {
    let list = parsed("db-1 7 1\nfe80::1 7 1\n10.0.0.10 7 1\n10.0.0.2 80 1\n10.0.0.2 7 1\n");
    let names: Vec<String> = list.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["10.0.0.2:7", "10.0.0.2:80", "10.0.0.10:7", "[fe80::1]:7", "db-1:7"]);
    for (index, entry) in list.indices().zip(&list) {
        assert_eq!(list.position(&entry.name), Some(index));
        assert_eq!(list.get(index), Some(entry));
        assert_eq!(&list[index], entry);
    }
    assert_eq!(list.get(ServerIndex::new(5)), None);
    assert_eq!(list.position(&"10.0.0.3:7".parse().unwrap()), None);
}

const IP_ALLOWED: &str =
    "allowed are an IPv4 address, an IPv6 address without brackets or zone, or a host name";

#[test]
fn a_bad_ip_is_refused_with_the_reason() {
    let ipv4 = "looks like an IPv4 address but is none";
    let neither = "is neither an address nor a host name";
    let many = "is not the address of one server";
    let long = "a".repeat(64);
    let shown = format!("{}…", "a".repeat(60));
    let deep = "ab.".repeat(84) + "ab";
    let deep_shown = format!("{}…", "ab.".repeat(20));
    assert_eq!(parsed(&format!("{} 1 1", &deep[1..])).len(), 1, "253 bytes are a name, 254 are none");
    let cases = [
        ("300.1.2.3", "300.1.2.3", ipv4),
        ("1.2.3", "1.2.3", ipv4),
        ("1.2.3.4.5", "1.2.3.4.5", ipv4),
        ("127.0.0.01", "127.0.0.01", ipv4),
        ("1234", "1234", ipv4),
        ("0x7f000001", "0x7f000001", ipv4),
        ("0.0.0.0", "0.0.0.0", many),
        ("255.255.255.255", "255.255.255.255", many),
        ("224.0.0.1", "224.0.0.1", many),
        ("::", "::", many),
        ("ff02::1", "ff02::1", many),
        ("::ffff:0.0.0.0", "::ffff:0.0.0.0", many),
        ("fe80:::1", "fe80:::1", neither),
        ("fe80::1%eth0", "fe80::1%eth0", neither),
        ("[fe80::1]", "[fe80::1]", neither),
        ("a..b", "a..b", neither),
        ("-a", "-a", neither),
        ("a-", "a-", neither),
        ("a,b", "a,b", neither),
        ("bücher", "bücher", neither),
        (&long, &shown, neither),
        (&deep, &deep_shown, neither),
    ];
    for (ip, shown, fault) in cases {
        let expected = format!("servers.txt line 2: IP is \"{shown}\", which {fault}; {IP_ALLOWED}");
        assert_eq!(message(&format!("# first\n{ip} 1234 1\n")), expected);
    }
}

#[test]
fn a_bad_port_is_refused_with_the_range() {
    for port in ["0", "65536", "-1", "+1", "1.5", "http", "99999999999999999999"] {
        let expected =
            format!("servers.txt line 1: PORT is \"{port}\"; allowed are whole numbers from 1 to 65535");
        assert_eq!(message(&format!("127.0.0.1 {port} 1")), expected);
    }
}

#[test]
fn a_bad_count_is_refused_with_the_range() {
    for count in ["0", "-1", "+1", "2.5", "many", "65537", "99999999999999999999"] {
        let expected =
            format!("servers.txt line 1: COUNT is \"{count}\"; allowed are whole numbers from 1 to 65536");
        assert_eq!(message(&format!("127.0.0.1 1234 {count}")), expected);
    }
}

#[test]
fn every_other_error_names_its_line_and_what_was_expected() {
    let cases = [
        ("127.0.0.1", "line 1: PORT is missing in \"127.0.0.1\"; expected IP PORT COUNT"),
        ("\n127.0.0.1 1234 # 5", "line 2: COUNT is missing in \"127.0.0.1 1234\"; expected IP PORT COUNT"),
        ("127.0.0.1 1234 1 x y", "line 1: surplus field \"x\" after COUNT; expected IP PORT COUNT"),
        (
            "127.0.0.1 1234 1\n\n127.0.0.1 1235 1\n127.0.0.1 01234 2\n",
            "line 4: server 127.0.0.1:1234 is already listed on line 1; list each server once",
        ),
        (
            "DB-1 1234 1\ndb-1 1234 1\n",
            "line 2: server db-1:1234 is already listed on line 1; list each server once",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), format!("servers.txt {expected}"));
    }
}

#[test]
fn a_file_without_a_server_is_an_error_about_the_file() {
    for text in ["", "\n\n", "# nobody\r\n", "\u{feff}", " \t# x"] {
        assert_eq!(
            message(text),
            "servers.txt: lists no server; expected at least one line IP PORT COUNT",
            "{text:?}"
        );
    }
}

fn lines(servers: usize, count: u32) -> String {
    (1..=servers).map(|port| format!("127.0.0.1 {port} {count}\n")).collect()
}

#[test]
fn the_limits_can_be_reached_and_not_passed() {
    assert_eq!(parsed(&lines(512, 2_048)).len(), SERVERS_MAX);
    assert_eq!(message(&lines(513, 1)), "servers.txt line 513: too many servers; allowed are 512");
    assert_eq!(parsed(&lines(16, 65_536)).len(), 16);
    assert_eq!(
        message(&(lines(16, 65_536) + "::1 80 7")),
        "servers.txt line 17: COUNT is 7, which makes 1048583 nodes in all; allowed are 1048576"
    );
}

#[test]
fn a_list_made_by_hand_obeys_the_same_rules() {
    let entry = |name: &str, nodes| ServerEntry { name: name.parse().unwrap(), nodes };
    let refused = |entries| ServerList::new(entries).unwrap_err().to_string();
    assert_eq!(refused(vec![]), "server list: lists no server; expected at least one line IP PORT COUNT");
    assert_eq!(
        refused(vec![entry("a:1", 1), entry("b:1", 0)]),
        "server list line 2: COUNT is \"0\"; allowed are whole numbers from 1 to 65536"
    );
    assert_eq!(
        refused(vec![entry("a:1", 1), entry("A:1", 2)]),
        "server list line 2: server a:1 is already listed on line 1; list each server once"
    );
    let list = ServerList::new(vec![entry("b:1", 2), entry("a:1", 1)]).unwrap();
    assert_eq!(list, parsed("a 1 1\nb 1 2"));
}

#[test]
fn a_name_has_one_spelling() {
    let cases = [
        ("127.0.0.1:1234", "127.0.0.1:1234", "127.0.0.1 1234"),
        ("[FE80:0:0::1]:7000", "[fe80::1]:7000", "fe80::1 7000"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", "10.0.0.1 80"),
        ("DB_1.Example.COM:080", "db_1.example.com:80", "db_1.example.com 80"),
    ];
    for (text, display, ring_text) in cases {
        let name: ServerName = text.parse().unwrap();
        assert_eq!((name.to_string().as_str(), name.ring_text().as_str()), (display, ring_text));
        assert_eq!(name, ServerName::new(&name.host().to_string(), name.port()).unwrap());
    }
    let ip = |text: &str| text.parse::<ServerName>().unwrap().ip();
    assert_eq!(ip("10.0.0.1:80"), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(ip("db-1:80"), None);
}

#[test]
fn a_name_that_is_not_host_and_port_is_refused() {
    for text in
        ["", "localhost", "::1:80", "fe80::1", "[::1]", "[::1]80", "[127.0.0.1]:80", "a:b:1", "[db]:1"]
    {
        let error = text.parse::<ServerName>().unwrap_err();
        assert_eq!(error.to_string(), format!("server is {text:?}; expected HOST:PORT, or [IPV6]:PORT"));
    }
    assert!(matches!("db:0".parse::<ServerName>(), Err(NameError::Port { .. })));
    assert!(matches!(":80".parse::<ServerName>(), Err(NameError::Host { .. })));
    assert!(matches!(ServerName::new("db", 0), Err(NameError::Port { .. })));
}

fn any_name() -> impl Strategy<Value = ServerName> {
    let host = prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
        "[a-zA-Z_]([a-zA-Z0-9_-]{0,9}[a-z])?(\\.[a-z]{1,5}){0,3}",
    ];
    (host, 1..=u16::MAX).prop_filter_map("not one server", |(host, port)| ServerName::new(&host, port).ok())
}

/// Text of the right letters: far more of it gets past the first check than of any text.
fn near_miss() -> impl Strategy<Value = String> {
    let field = "[0-9]{1,6}|[0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-f:]{1,12}|[a-z.-]{1,9}|#|.";
    let line = prop::collection::vec(field, 0..5).prop_map(|fields| fields.join(" "));
    prop::collection::vec(line, 0..6).prop_map(|lines| lines.join("\r\n"))
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in prop_oneof![any::<String>(), near_miss()]) {
        if let Err(error) = parse(&text, "servers.txt") {
            prop_assert!(error.to_string().starts_with("servers.txt"));
            prop_assert!(error.line.is_none_or(|line| (1..=text.lines().count()).contains(&line)));
        }
        let _ = text.parse::<ServerName>();
    }

    #[test]
    fn a_name_written_reads_back(name in any_name()) {
        prop_assert_eq!(name.to_string().parse::<ServerName>(), Ok(name.clone()));
        let (host, port) = (name.host().to_string(), name.port().to_string());
        prop_assert_eq!(ServerName::from_fields(&host, &port), Ok(name));
    }

    #[test]
    fn a_list_written_reads_back(
        servers in prop::collection::btree_map(any_name(), 1..=NODES_PER_SERVER_MAX, 1..16),
    ) {
        let entries = servers.into_iter().rev().map(|(name, nodes)| ServerEntry { name, nodes }).collect();
        let list = ServerList::new(entries).unwrap();
        prop_assert_eq!(parse(&list.to_string(), "servers.txt"), Ok(list));
    }
}
