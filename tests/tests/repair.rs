//! A get makes the agreement it needs.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_reached_one_server_only_is_on_two_after_a_get_with_r_2() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [only, other_a, other_b] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(other_a);
    cluster.kill(other_b);
    client.put("k", "v").w(1).await.unwrap();
    let record = cluster.stored(only, "k");
    // The put's background copies must not arrive after all: its coordinator forgets them in a crash.
    cluster.kill(only);
    for server in [only, other_a] {
        cluster.restart(server).await;
    }
    assert!(cluster.stored(other_a, "k").siblings().is_empty(), "it reached one server only");

    let got = client.get("k").r(2).await.unwrap();
    assert_eq!(got.value(), Some(&Bytes::from_static(b"v")));
    assert_eq!(cluster.stored(other_a, "k"), record, "the repair was waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differing_replicas_are_merged_and_the_merge_is_written_back() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(third);
    for (up, down, value) in [(first, second, "one"), (second, first, "two")] {
        cluster.kill(down);
        client.put("k", value).w(1).await.unwrap();
        cluster.kill(up);
        cluster.restart(down).await;
        cluster.restart(up).await;
    }
    let got = client.get("k").r(2).siblings().await.unwrap();
    assert_eq!(got.sibling_count(), 2, "neither knew of the other: {got:?}");
    assert_eq!(cluster.stored(first, "k"), cluster.stored(second, "k"));
    client.put("k", "resolved").context(got.context()).await.unwrap();
    let got = client.get("k").r(2).await.unwrap();
    assert_eq!((got.value(), got.sibling_count()), (Some(&Bytes::from_static(b"resolved")), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_answers_a_get_late_and_lacks_something_is_repaired_after_the_answer() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, late] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(late);
    client.put("k", "v").w(2).await.unwrap();
    // What its coordinator would still do for the third owner is forgotten in a crash.
    for server in [first, second] {
        cluster.kill(server);
        cluster.restart(server).await;
    }
    let got = client.get("k").r(2).await.unwrap();
    assert_eq!(got.value(), Some(&Bytes::from_static(b"v")));
    cluster.restart(late).await;
    eventually("the late owner to hold the value", async || {
        let held = cluster.stored(late, "k");
        (held == cluster.stored(first, "k")).then_some(())
    })
    .await;
    let is_unhinted = |server| cluster.entries(server, Keyspace::Hints).is_empty();
    assert!([first, second].into_iter().all(is_unhinted), "nobody kept anything for it");
}
