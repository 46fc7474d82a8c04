//! What each owner of a key says that it holds of it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use dkvs::{Error, KeyReport, ServerIndex, SiblingState};
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, TestClient, eventually};

async fn explain(client: &TestClient, server: ServerIndex, key: &'static str) -> KeyReport {
    client.explain(server, key).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_tells_owners_apart_that_hold_different_records_and_repairs_nothing() {
    let mut cluster = Cluster::start(Plan::of(4)).await;
    let client = cluster.client().await;
    let [first, second, third, stranger] = cluster.owners("k", 4)[..] else { panic!("four servers") };
    client.put("k", "old").w(3).await.unwrap();
    cluster.kill(third);
    // The third is given up at the deadline.
    client.put("k", "newer").timeout(Duration::from_secs(5)).await.unwrap();
    let holder = eventually("a hint", async || {
        [first, second].into_iter().find(|&holder| !cluster.hints(holder, third).is_empty())
    })
    .await;
    let report = explain(&client, holder, "k").await;
    let record = cluster.stored(holder, "k");
    assert_eq!((report.hash, report.vv.len(), report.siblings.len()), (record.hash(), 1, 1));
    let (sibling, held) = (&report.siblings[0], &record.siblings()[0]);
    assert_eq!((sibling.dot, sibling.op, sibling.hlc), (held.dot, held.write.op, held.write.hlc));
    assert_eq!((sibling.state, sibling.len, sibling.expires), (SiblingState::Value, 5, None));
    let [hint] = &report.hints[..] else { panic!("one hint: {report:?}") };
    assert_eq!((hint.target, hint.hash), (third, Some(record.hash())));
    assert!(hint.bytes > 0 && report.bytes > 5 && !report.is_damaged);

    for server in [first, second] {
        cluster.kill(server);
        cluster.clear(server, Keyspace::Hints).await;
        cluster.restart(server).await;
    }
    cluster.restart(third).await;
    for _ in 0..2 {
        let [ours, theirs] = [explain(&client, first, "k").await, explain(&client, third, "k").await];
        assert_ne!(ours.hash, theirs.hash);
        assert_eq!((theirs.siblings[0].len, ours.siblings[0].len), (3, 5));
        assert!(ours.hints.is_empty());
    }
    client.get("k").r(3).await.unwrap();
    let [ours, theirs] = [explain(&client, first, "k").await, explain(&client, third, "k").await];
    assert_eq!((ours.hash, ours.vv, ours.siblings), (theirs.hash, theirs.vv, theirs.siblings));
    let nothing = explain(&client, stranger, "k").await;
    assert!(nothing.vv.is_empty() && nothing.siblings.is_empty() && nothing.bytes == 0, "{nothing:?}");
}

#[tokio::test]
async fn explain_tells_deletions_from_values_that_expired_and_from_those_that_lost_their_bytes() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let nothing = client.get("k").await.unwrap();
    let owner = cluster.owners("k", 1)[0];
    client.put("k", "short").ttl(Duration::from_secs(1)).w(3).await.unwrap();
    client.delete("k").context(nothing.context()).w(3).await.unwrap();
    cluster.advance_clocks(1_000);
    let states = async || {
        let report = explain(&client, owner, "k").await;
        let state = |sibling: &dkvs::SiblingReport| {
            (sibling.state, sibling.expires.map(|at| at <= report.clock_ms), sibling.len)
        };
        let mut states: Vec<_> = report.siblings.iter().map(state).collect();
        states.sort_by_key(|(_, expired, _)| *expired);
        states
    };
    let deletion = (SiblingState::Tombstone, None, 0);
    assert_eq!(states().await, [deletion, (SiblingState::Value, Some(true), 5)]);
    cluster.advance_clocks(60_001);
    client.delete("k").context(nothing.context()).w(3).await.unwrap();
    assert_eq!(states().await, [deletion, deletion, (SiblingState::Dropped, Some(true), 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_says_when_a_record_was_damaged_and_refuses_keys_that_cannot_be() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    client.put("k", "v").w(3).await.unwrap();
    // Else it is mended at once.
    cluster.kill(second);
    cluster.kill(third);
    cluster.damage(first, "k").await;
    let report = explain(&client, first, "k").await;
    assert!(report.is_damaged && report.siblings.is_empty(), "{report:?}");
    assert!(matches!(client.explain(first, "").await.unwrap_err(), Error::Usage(_)));
}

/// Too much for a datagram.
#[tokio::test]
async fn explain_shows_a_hundred_siblings() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let missing = client.get("k").await.unwrap();
    for number in 1..=100_usize {
        client.put("k", vec![b'.'; number]).context(missing.context()).w(3).await.unwrap();
    }
    let report = explain(&client, cluster.owners("k", 3)[1], "k").await;
    let mut lens: Vec<_> = report.siblings.iter().map(|sibling| sibling.len).collect();
    lens.sort_unstable();
    assert!(lens.into_iter().eq(1..=100), "{report:?}");
}
