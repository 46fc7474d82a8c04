//! Who holds what: the ring of the known answers, and pairs given at start.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use dkvs::ServerIndex;
use dkvs_core::servers::ServerEntry;
use dkvs_tests::{Cluster, Plan, TestClient, eventually, name};

async fn keys_held(client: &TestClient, server: ServerIndex) -> BTreeSet<Bytes> {
    let mut held = BTreeSet::new();
    let mut after = None;
    loop {
        let page = client.page(server, after).await.unwrap();
        held.extend(page.entries.into_iter().map(|entry| entry.key));
        match page.next {
            Some(next) => after = Some(next),
            None => return held,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_live_on_exactly_the_servers_of_the_known_answers() {
    let entry = |(port, nodes)| ServerEntry { name: name("127.0.0.1", port), nodes };
    let servers = [(1234, 1), (1235, 2), (1236, 3), (1237, 2)].map(entry).to_vec();
    let cluster = Cluster::start(Plan::with(servers)).await;
    let client = cluster.client().await;
    for key in ["a", "cc"] {
        client.put(key, "v").n(3).w(3).await.unwrap();
    }
    let on = |port| cluster.ring().servers().position(&name("127.0.0.1", port)).unwrap();
    for (port, expected) in
        [(1234, vec!["a"]), (1235, vec!["a", "cc"]), (1236, vec!["a", "cc"]), (1237, vec!["cc"])]
    {
        let expected: BTreeSet<Bytes> = expected.into_iter().map(Bytes::from).collect();
        assert_eq!(keys_held(&client, on(port)).await, expected, "port {port}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_what_a_server_holds_are_complete_and_leave_out_what_is_deleted() {
    let cluster = Cluster::start(Plan::of(1)).await;
    let client = cluster.client().await;
    let value = Bytes::from(vec![b'v'; 3_000]);
    let keys: BTreeSet<Bytes> = (0..300).map(|i| Bytes::from(format!("key {i}"))).collect();
    for key in &keys {
        client.put(key.clone(), value.clone()).await.unwrap();
    }
    client.put("gone", "v").await.unwrap();
    client.delete("gone").await.unwrap();
    let only = cluster.servers()[0];
    assert_eq!(keys_held(&client, only).await, keys, "300 keys of 3,000 bytes are several pages");
    let status = client.status(only).await.unwrap();
    assert_eq!((status.keys, status.tombstones), (300, 1));
    assert!(status.bytes > 300 * 3_000, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_given_to_all_servers_is_one_value_older_than_any_put() {
    let pair = (Bytes::from_static(b"abc"), Bytes::from_static(b"def"));
    let mut cluster = Cluster::start(Plan { initial: vec![pair], ..Plan::of(3) }).await;
    let client = cluster.client().await;
    for r in 1..=3 {
        let got = client.get("abc").r(r).await.unwrap();
        assert_eq!((got.value(), got.sibling_count()), (Some(&Bytes::from_static(b"def")), 1), "r={r}");
    }
    let [up, down_a, down_b] = cluster.owners("abc", 3)[..] else { panic!("three owners") };
    cluster.kill(down_a);
    cluster.kill(down_b);
    assert!(client.get("abc").n(3).r(1).await.unwrap().value().is_some());
    let hasty = client.get("abc").n(3).r(2).timeout(std::time::Duration::from_secs(1)).await;
    assert!(hasty.is_err(), "{hasty:?}");

    client.put("abc", "new").w(1).await.unwrap();
    cluster.kill(up);
    for server in [down_a, down_b, up] {
        cluster.restart(server).await;
    }
    // The two that were down were given the pair again when they started. It does not come back as a sibling.
    let got = client.get("abc").r(3).siblings().await.unwrap();
    assert_eq!(got.siblings(), [Some(Bytes::from_static(b"new"))]);
    eventually("all servers to hold the same record", || async {
        let records: Vec<_> =
            cluster.servers().into_iter().map(|server| cluster.stored(server, "abc")).collect();
        records.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
}
