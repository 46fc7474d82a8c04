//! Servers that missed writes, or lost all they had, become equal to the others with nobody reading and no hints.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use dkvs::ServerIndex;
use dkvs_core::position::Partition;
use dkvs_storage::Keyspace;
use dkvs_tests::many::{client, delete_all, key, put_all};
use dkvs_tests::{Cluster, PATIENCE, Plan, eventually, eventually_within};

/// Servers that compare all the time.
fn comparing(servers: u16) -> Plan {
    Plan { repair_interval: Some(Duration::from_millis(50)), ..Plan::of(servers) }
}

/// What a server holds of all keys, but for what only it may know of them.
fn records(cluster: &Cluster, server: ServerIndex) -> Vec<(Bytes, dkvs_core::record::Record)> {
    let entries = cluster.entries(server, Keyspace::Records);
    let entry = |(place, value)| dkvs_cluster::decode_entry(&place, &value).unwrap();
    entries.into_iter().map(entry).map(|entry| (entry.key, entry.record)).collect()
}

/// Waits until three servers that own everything hold the same of so many keys.
async fn converged(cluster: &Cluster, keys: usize) {
    let [a, b, c] = cluster.servers()[..] else { panic!("three servers") };
    // Of ten thousand records, each waits for longer the busier the machine is.
    let patience = PATIENCE + Duration::from_millis(20) * u32::try_from(keys).unwrap();
    eventually_within(patience, "all servers to hold the same", async || {
        let ours = records(cluster, a);
        (ours.len() == keys && ours == records(cluster, b) && ours == records(cluster, c)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_missed_ten_thousand_puts_and_a_thousand_deletes_gets_them_though_nobody_has_kept_hints()
 {
    let mut cluster = Cluster::start(Plan { hint_bytes_max: 0, ..comparing(3) }).await;
    let client = client(&cluster).await;
    let down = cluster.servers()[2];
    put_all(&client, 0..1_000, "before").await;
    cluster.kill(down);
    put_all(&client, 500..10_500, "while it is down").await;
    delete_all(&client, 5_000..6_000).await;
    // Nor do the others know where it has missed something.
    for holder in [cluster.servers()[0], cluster.servers()[1]] {
        cluster.kill(holder);
        cluster.clear(holder, Keyspace::Hints).await;
        cluster.restart(holder).await;
    }
    cluster.restart(down).await;
    converged(&cluster, 10_500).await;
    let shown = cluster.stored(down, &key(5_500));
    assert!(shown.values(0)[0].write.body.value().is_none(), "deleted: {shown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_all_it_had_is_filled_again() {
    let mut cluster = Cluster::start(comparing(3)).await;
    let client = client(&cluster).await;
    put_all(&client, 0..1_000, "v").await;
    client.put("long", vec![7; 1 << 20]).w(3).await.unwrap();
    converged(&cluster, 1_001).await;
    for lost in cluster.servers() {
        cluster.kill(lost);
        cluster.restart_wiped(lost).await;
        converged(&cluster, 1_001).await;
    }
}

/// Where the others have marks, their partitions are compared first; then the marks are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_are_seen_to_and_cleared() {
    // Regular rounds are too rare to matter.
    let plan = Plan { hint_bytes_max: 0, repair_interval: Some(Duration::from_secs(3_600)), ..Plan::of(3) };
    let mut cluster = Cluster::start(plan).await;
    let client = client(&cluster).await;
    let [up_a, up_b, down] = cluster.servers()[..] else { panic!("three servers") };
    cluster.kill(down);
    put_all(&client, 0..100, "v").await;
    let marks = |cluster: &Cluster, server| cluster.replica(server).dirty_marks(None, 500).unwrap().len();
    let partitions: std::collections::BTreeSet<_> =
        (0..100).map(|number| Partition::of_key(key(number).as_bytes())).collect();
    eventually("marks for all", async || {
        (marks(&cluster, up_a) + marks(&cluster, up_b) >= partitions.len()).then_some(())
    })
    .await;
    cluster.restart(down).await;
    converged(&cluster, 100).await;
    eventually("no mark to be left", async || {
        (marks(&cluster, up_a) + marks(&cluster, up_b) == 0).then_some(())
    })
    .await;
}

/// What a server knows to be missing elsewhere, and cannot send as its own copy is damaged, it goes on to know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_stays_while_the_copy_that_is_to_be_sent_is_damaged() {
    let mut cluster = Cluster::start(Plan { hint_bytes_max: 0, ..comparing(3) }).await;
    let client = client(&cluster).await;
    let lacks = cluster.servers()[2];
    cluster.kill(lacks);
    put_all(&client, 0..20, "v").await;
    let marked = |cluster: &Cluster, server: ServerIndex, number: usize| {
        let marks = cluster.replica(server).dirty_marks(None, 500).unwrap();
        marks.iter().any(|mark| mark.partition == Partition::of_key(key(number).as_bytes()))
    };
    let holder = eventually("a mark", async || {
        cluster.servers().into_iter().take(2).find(|&server| marked(&cluster, server, 0))
    })
    .await;
    let other = cluster.servers()[usize::from(holder == cluster.servers()[0])];
    // Without it the damage stays.
    cluster.kill(other);
    cluster.damage(holder, &key(0)).await;
    assert_eq!(cluster.readable(holder, &key(0)), None);
    cluster.restart(lacks).await;
    eventually("all other marks to be cleared", async || {
        (1..20).all(|number| !marked(&cluster, holder, number)).then_some(())
    })
    .await;
    assert!(marked(&cluster, holder, 0));
    cluster.restart(other).await;
    eventually("the value at all, and no mark", async || {
        let all_have = cluster.servers().into_iter().all(|server| {
            cluster.readable(server, &key(0)).is_some_and(|record| record.siblings().len() == 1)
        });
        (all_have && !marked(&cluster, holder, 0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_values_on_both_sides_are_merged_and_not_overwritten() {
    let mut cluster = Cluster::start(comparing(2)).await;
    let client = client(&cluster).await;
    let [a, b] = cluster.servers()[..] else { panic!("two servers") };
    // Each has seen nothing of the other's.
    for (up, down, value) in [(a, b, "a"), (b, a, "b")] {
        cluster.kill(down);
        client.put("k", value).n(2).w(1).await.unwrap();
        assert_eq!(cluster.stored(up, "k").siblings().len(), 1);
        cluster.kill(up);
        cluster.clear(up, Keyspace::Hints).await;
        if up == a {
            cluster.restart(b).await;
        }
    }
    for server in [a, b] {
        cluster.restart(server).await;
    }
    eventually("both values on both servers", async || {
        [a, b].into_iter().all(|server| cluster.stored(server, "k").siblings().len() == 2).then_some(())
    })
    .await;
}

/// The tree of a clean stop is taken over; after a kill it is built anew. Either way the servers agree again, and say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_agree_after_any_restart_and_status_says_since_when() {
    let mut cluster = Cluster::start(comparing(3)).await;
    let client = client(&cluster).await;
    put_all(&client, 0..300, "v").await;
    let [a, b, c] = cluster.servers()[..] else { panic!("three servers") };
    cluster.stop(b).await;
    cluster.restart_stopped(b).await;
    cluster.kill(c);
    cluster.restart(c).await;
    for server in [a, b, c] {
        eventually("all pairs to agree", async || {
            let status = client.status(server).await.ok()?;
            let agree =
                status.peers.iter().all(|peer| peer.agreed.is_some() && peer.differing_partitions == 0);
            (agree && status.partitions_unread == 0).then_some(())
        })
        .await;
    }
    converged(&cluster, 300).await;
}

/// A record that rots is mended and compared again; its damage is not spread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_mended_and_the_servers_agree_again() {
    let mut cluster = Cluster::start(comparing(3)).await;
    let client = client(&cluster).await;
    put_all(&client, 0..50, "v").await;
    converged(&cluster, 50).await;
    let damaged = cluster.servers()[1];
    let before = cluster.stored(damaged, &key(7));
    cluster.kill(damaged);
    cluster.damage(damaged, &key(7)).await;
    cluster.restart(damaged).await;
    eventually("the record to be mended", async || {
        (cluster.readable(damaged, &key(7)).as_ref() == Some(&before)).then_some(())
    })
    .await;
    converged(&cluster, 50).await;
    eventually("all pairs to agree", async || {
        let status = client.status(damaged).await.ok()?;
        let agree = |peer: &dkvs::Peer| peer.agreed.is_some_and(|ago| ago < Duration::from_secs(1));
        status.peers.iter().all(agree).then_some(())
    })
    .await;
}
