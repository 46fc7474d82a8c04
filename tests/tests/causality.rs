//! Which puts replace which.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dkvs::{Error, ServerIndex};
use dkvs_core::record::OpId;
use dkvs_proto::message::Durability;
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, OwnerAnswer, Put, PutBody};
use dkvs_tests::{Cluster, PATIENCE, Plan, TestClient};
use tokio::time::Instant;

async fn values(client: &TestClient, key: &'static str) -> Vec<Option<Bytes>> {
    client.get(key).siblings().await.unwrap().siblings().to_vec()
}

#[tokio::test]
async fn two_puts_with_one_context_leave_two_siblings_and_a_put_with_theirs_leaves_one() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "base").await.unwrap();
    let seen = client.get("k").await.unwrap();
    client.put("k", "left").context(seen.context()).await.unwrap();
    client.put("k", "right").context(seen.context()).await.unwrap();

    let mut both = values(&client, "k").await;
    both.sort();
    assert_eq!(both, [Some(Bytes::from_static(b"left")), Some(Bytes::from_static(b"right"))]);
    let merged = client.get("k").await.unwrap();
    assert_eq!(merged.sibling_count(), 2);
    client.put("k", "both").context(merged.context()).await.unwrap();
    assert_eq!(values(&client, "k").await, [Some(Bytes::from_static(b"both"))]);
}

#[tokio::test]
async fn the_context_of_a_put_continues_from_it() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let first = client.put("k", "1").await.unwrap();
    client.put("k", "2").context(first.context()).await.unwrap();
    assert_eq!(values(&client, "k").await, [Some(Bytes::from_static(b"2"))]);
    client.delete("k").context(first.context()).await.unwrap();
    assert_eq!(values(&client, "k").await.len(), 2, "the delete had not seen 2");
}

#[tokio::test]
async fn the_context_of_a_missing_key_covers_nothing() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let missing = client.get("k").await.unwrap();
    assert!(missing.value().is_none() && missing.context().is_empty());
    client.put("k", "one").context(missing.context()).await.unwrap();
    client.put("k", "two").context(missing.context()).await.unwrap();
    assert_eq!(values(&client, "k").await.len(), 2);
}

#[tokio::test]
async fn a_context_of_another_key_is_refused() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let other = client.put("other", "v").await.unwrap();
    let error = client.put("k", "v").context(other.context()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to another key"), "{error}");
    assert!(error.nothing_was_written());
    assert!(client.get("k").await.unwrap().value().is_none());
}

#[tokio::test]
async fn a_deleted_key_is_not_found_and_its_context_replaces_the_deletion() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    client.delete("k").await.unwrap();
    let deleted = client.get("k").await.unwrap();
    assert!(deleted.value().is_none() && !deleted.context().is_empty());
    client.put("k", "again").context(deleted.context()).await.unwrap();
    assert_eq!(values(&client, "k").await, [Some(Bytes::from_static(b"again"))]);
}

fn blind_put(cluster: &Cluster, value: String, sequence: u64) -> ClientRequest {
    ClientRequest::Put(Put {
        ring: cluster.ring().id(),
        key: "k".into(),
        body: PutBody::Value(value.into()),
        context: None,
        n: 3,
        w: 2,
        op: OpId { client: 7, sequence },
        timeout_ms: 30_000,
        forwarded: false,
        durability: Durability::Memory,
        ttl_ms: None,
        sloppy: false,
    })
}

/// What owners held and its coordinator had not heard of is replaced by a second write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blind_put_whose_second_write_takes_too_long_is_answered_in_time() {
    const TIMEOUT_MS: u32 = 3_000;
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [holder, other, coordinator] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    client.put("k", "old").n(2).w(2).await.unwrap();
    cluster.hang_disk_after(coordinator, 1);
    let mut request = blind_put(&cluster, "new".into(), 1);
    let ClientRequest::Put(put) = &mut request else { panic!("it is a put") };
    put.timeout_ms = TIMEOUT_MS;
    let answer = cluster.ask(coordinator, request).await;
    let ClientAnswer::Failed(Failure::Quorum(missed)) = answer else { panic!("{answer:?}") };
    assert_eq!(missed.owners, [(coordinator, OwnerAnswer::TimedOut)]);
    // The first write was done.
    let holds_both = |server| cluster.stored(server, "k").siblings().len() == 2;
    assert!([holder, other].into_iter().any(holds_both));
}

/// Each put goes through a coordinator that was down during the put before, with its clock an hour behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blind_puts_one_after_the_other_leave_the_last_whoever_coordinates_and_whatever_the_clocks_say() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let owners = cluster.owners("k", 3);
    for (place, &owner) in owners.iter().enumerate() {
        cluster.skew_clock(owner, -3_600_000 * i64::try_from(place).unwrap());
    }
    let client = cluster.client().await;
    for round in 0..9 {
        let missed_it: ServerIndex = owners[(round + 1) % 3];
        cluster.kill(missed_it);
        let value = format!("value {round}");
        let coordinator = owners[round % 3];
        let answer = cluster.ask(coordinator, blind_put(&cluster, value.clone(), round as u64)).await;
        assert!(matches!(answer, ClientAnswer::Put(_)), "{answer:?}");
        cluster.restart(missed_it).await;
        assert_eq!(values(&client, "k").await, [Some(Bytes::from(value))], "round {round}");
    }
}

/// As above, but nobody reads in between: no repair helps the second round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blind_put_replaces_what_its_coordinator_missed_without_any_read() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(third);
    cluster.ask(first, blind_put(&cluster, "before".into(), 1)).await;
    cluster.restart(third).await;
    cluster.kill(first);
    assert!(cluster.stored(third, "k").siblings().is_empty(), "the third missed it");
    let answer = cluster.ask(third, blind_put(&cluster, "after".into(), 2)).await;
    assert!(matches!(answer, ClientAnswer::Put(_)), "{answer:?}");
    for server in [second, third] {
        let record = cluster.stored(server, "k");
        let values: Vec<_> =
            record.values(0).iter().map(|sibling| sibling.write.body.value().cloned()).collect();
        assert_eq!(values, [Some(Bytes::from_static(b"after"))], "at {server:?}");
    }
}

#[tokio::test]
async fn a_repeated_operation_writes_one_value_whoever_coordinates_it() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for coordinator in cluster.owners("k", 3) {
        cluster.ask(coordinator, blind_put(&cluster, "v".into(), 1)).await;
        assert_eq!(values(&client, "k").await, [Some(Bytes::from_static(b"v"))]);
    }
}

/// Each meets the other's copies on the way, so each has something to replace that it had not heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blind_puts_side_by_side_never_replace_each_other_both() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, _] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    let (mut siblings, deadline) = (0, Instant::now() + PATIENCE);
    for round in 0.. {
        if round > 20 && siblings >= 3 {
            return;
        }
        assert!(Instant::now() < deadline, "they met {siblings} times in {round} rounds");
        let (left, right) = (format!("left {round}"), format!("right {round}"));
        let (a, b) = tokio::join!(
            cluster.ask(first, blind_put(&cluster, left.clone(), 2 * round)),
            cluster.ask(second, blind_put(&cluster, right.clone(), 2 * round + 1)),
        );
        assert!(matches!((&a, &b), (ClientAnswer::Put(_), ClientAnswer::Put(_))), "{a:?} {b:?}");
        let mut expected: Vec<_> = [left, right].map(|value| Some(Bytes::from(value))).into();
        let found = values(&client, "k").await;
        siblings += found.len() - 1;
        expected.retain(|value| found.contains(value));
        assert_eq!(expected.len(), found.len(), "only this round's values are left: {found:?}");
        assert!(!found.is_empty(), "both are gone");
    }
}

#[tokio::test]
async fn a_put_that_would_leave_too_many_siblings_is_refused_until_a_get_and_a_put_with_its_context_resolve_them()
 {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let first = cluster.owners("k", 3)[0];
    let warned = async || client.status(first).await.unwrap().siblings_warned;
    let missing = client.get("k").await.unwrap();
    for number in 1..=100 {
        client.put("k", format!("{number}")).context(missing.context()).w(3).await.unwrap();
        assert_eq!(warned().await, u64::saturating_sub(number, 24), "from the 25th sibling on");
    }
    let refused = client.put("k", "one more").context(missing.context()).await.unwrap_err();
    assert!(refused.nothing_was_written(), "{refused:?}");
    assert!(refused.to_string().contains("100 siblings"), "{refused}");
    let refused = client.delete("k").context(missing.context()).await.unwrap_err();
    let Error::TooManySiblings { siblings: 100, siblings_max: 100, context, .. } = refused else {
        panic!("{refused:?}")
    };

    let all = client.get("k").r(3).siblings().await.unwrap();
    assert_eq!(context, *all.context());
    let mut values: Vec<_> = all.siblings().to_vec();
    values.sort();
    let mut expected: Vec<_> = (1..=100).map(|number| Some(Bytes::from(format!("{number}")))).collect();
    expected.sort();
    assert_eq!(values, expected, "nothing of what was refused");
    client.put("k", "resolved").context(all.context()).await.unwrap();
    assert_eq!(self::values(&client, "k").await, [Some(Bytes::from_static(b"resolved"))]);
    client.put("k", "one more").context(missing.context()).await.unwrap();
    assert_eq!(self::values(&client, "k").await.len(), 2);
}
