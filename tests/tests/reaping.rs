//! Deleted keys go from all disks once nothing is left that could bring them back, and not before.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use dkvs::ServerIndex;
use dkvs_storage::Keyspace;
use dkvs_tests::many::{client, delete_all, key, put_all};
use dkvs_tests::{Cluster, PATIENCE, Plan, TestClient, eventually};
use tokio::time::Instant;

/// Longer than messages live here.
const ROUND: Duration = Duration::from_secs(6);

/// Servers that forget as soon as they may, and compare all the time.
fn reaping(servers: u16) -> Plan {
    Plan {
        repair_interval: Some(Duration::from_millis(50)),
        reap_interval: Some(Duration::from_millis(50)),
        timeout_max: Duration::from_secs(5),
        ..Plan::of(servers)
    }
}

fn count(cluster: &Cluster, keyspace: Keyspace) -> usize {
    cluster.servers().into_iter().map(|server| cluster.entries(server, keyspace).len()).sum()
}

/// Waits until every one of so many keys is on its three owners' disks, and nothing that was deleted is on any.
async fn reaped(cluster: &Cluster, keys: usize) {
    eventually("tombstones to be forgotten", async || {
        let is_done =
            count(cluster, Keyspace::Records) == 3 * keys && count(cluster, Keyspace::Tombstones) == 0;
        is_done.then_some(())
    })
    .await;
}

async fn value(client: &TestClient, key: &str) -> Option<Bytes> {
    client.get(key.to_owned()).r(2).await.unwrap().value().cloned()
}

async fn forgotten(cluster: &Cluster, client: &TestClient) -> u64 {
    let mut sum = 0;
    for server in cluster.servers() {
        sum += client.status(server).await.unwrap().reaped;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_keys_go_from_all_disks_and_stay_gone() {
    let mut cluster = Cluster::start(reaping(5)).await;
    let client = client(&cluster).await;
    put_all(&client, 0..300, "v").await;
    delete_all(&client, 100..300).await;
    reaped(&cluster, 100).await;
    assert_eq!(forgotten(&cluster, &client).await, 3 * 200);
    for server in cluster.servers() {
        let status = client.status(server).await.unwrap();
        assert_eq!(status.tombstones, 0, "the totals are kept right");
    }
    for server in cluster.servers() {
        cluster.kill(server);
        cluster.restart(server).await;
    }
    assert_eq!(value(&client, &key(100)).await, None);
    assert_eq!(value(&client, &key(99)).await.unwrap(), "v 99");
    put_all(&client, 150..160, "anew").await;
    assert_eq!(value(&client, &key(155)).await.unwrap(), "anew 155");
}

/// It was down at the deletes, and gets them late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forgotten_while_a_server_is_down_and_all_is_when_it_is_back() {
    let mut cluster = Cluster::start(reaping(3)).await;
    let client = client(&cluster).await;
    let down = cluster.servers()[2];
    put_all(&client, 0..100, "v").await;
    cluster.kill(down);
    delete_all(&client, 0..50).await;
    let until = Instant::now() + ROUND + ROUND / 2;
    while Instant::now() < until {
        for up in [cluster.servers()[0], cluster.servers()[1]] {
            assert!(!cluster.stored(up, &key(0)).vv().is_empty(), "the tombstone is needed");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.restart(down).await;
    reaped(&cluster, 50).await;
    assert_eq!(value(&client, &key(0)).await, None);
}

/// The hints are older than the deletes, and come once more after them, while their holder is killed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_hint_that_is_delivered_again_brings_nothing_back() {
    const KEYS: usize = 400;
    let mut cluster = Cluster::start(reaping(3)).await;
    let client = client(&cluster).await;
    let [holder, other, down] = cluster.servers()[..] else { panic!("three servers") };
    cluster.kill(down);
    put_all(&client, 0..KEYS, "v").await;
    let hints = eventually("hints", async || {
        let hints =
            [cluster.entries(holder, Keyspace::Hints), cluster.entries(other, Keyspace::Hints)].concat();
        (hints.len() >= KEYS).then_some(hints)
    })
    .await;
    cluster.restart(down).await;
    eventually("the hints to be delivered", async || (count(&cluster, Keyspace::Hints) == 0).then_some(()))
        .await;
    cluster.kill(holder);
    delete_all(&client, 0..KEYS).await;
    kill_while_it_delivers(&mut cluster, holder, down, hints).await;
    cluster.restart(holder).await;
    reaped(&cluster, 0).await;
    for number in 0..KEYS {
        assert_eq!(value(&client, &key(number)).await, None);
    }
}

/// Starts a killed server with these hints, and kills it when some are delivered and some are not. A busy machine may miss
/// that moment: then all are given to it once more.
async fn kill_while_it_delivers(
    cluster: &mut Cluster,
    holder: ServerIndex,
    target: ServerIndex,
    hints: Vec<(Bytes, Bytes)>,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        cluster.put_back(holder, Keyspace::Hints, hints.clone()).await;
        let all = cluster.hints(holder, target).len();
        cluster.restart(holder).await;
        eventually("a delivery", async || (cluster.hints(holder, target).len() < all).then_some(())).await;
        cluster.kill(holder);
        if !cluster.hints(holder, target).is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "all {all} hints were delivered before the holder was killed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_lost_its_disk_after_the_delete_does_not_keep_anything_from_being_forgotten() {
    let mut cluster = Cluster::start(reaping(3)).await;
    let client = client(&cluster).await;
    let lost = cluster.servers()[0];
    put_all(&client, 0..100, "v").await;
    delete_all(&client, 0..50).await;
    cluster.kill(lost);
    cluster.restart_wiped(lost).await;
    reaped(&cluster, 50).await;
    assert_eq!(value(&client, &key(0)).await, None);
    assert_eq!(value(&client, &key(50)).await.unwrap(), "v 50");
}

/// At every moment of a round some key is written anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_written_anew_meanwhile_stays() {
    let cluster = Cluster::start(reaping(3)).await;
    let client = client(&cluster).await;
    put_all(&client, 0..400, "v").await;
    delete_all(&client, 0..400).await;
    let began = Instant::now();
    for number in 0..200 {
        put_all(&client, number..number + 1, "anew").await;
        tokio::time::sleep_until(began + ROUND.mul_f64(1.5) * u32::try_from(number).unwrap() / 200).await;
    }
    reaped(&cluster, 200).await;
    for number in 0..200 {
        assert_eq!(value(&client, &key(number)).await.unwrap(), format!("anew {number}"));
    }
}

/// What was given at a start would be given again at the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_that_was_given_at_a_start_is_not_forgotten() {
    let initial = vec![("given".into(), "v".into())];
    let mut cluster = Cluster::start(Plan { initial, ..reaping(3) }).await;
    let client = client(&cluster).await;
    put_all(&client, 0..10, "v").await;
    client.delete("given").w(3).await.unwrap();
    // Of the same round, or of one before.
    delete_all(&client, 0..10).await;
    eventually("all others to be forgotten", async || {
        (count(&cluster, Keyspace::Records) == 3).then_some(())
    })
    .await;
    for server in cluster.servers() {
        cluster.kill(server);
        cluster.restart(server).await;
    }
    assert_eq!(value(&client, "given").await, None);
}

/// Its bytes go some time after it has expired, and the rest as if it had been deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_has_expired_is_forgotten_as_well() {
    let scrub_pause = Some(Duration::from_millis(20));
    let cluster = Cluster::start(Plan { scrub_pause, ..reaping(3) }).await;
    let client = client(&cluster).await;
    client.put("short", "v").ttl(Duration::from_secs(3_600)).w(3).await.unwrap();
    client.put("long", "v").w(3).await.unwrap();
    cluster.advance_clocks(2 * 3_600_000);
    reaped(&cluster, 1).await;
    assert_eq!(value(&client, "short").await, None);
}

/// A data directory of a release that did not write down where its tombstones are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_of_an_earlier_release_are_found_and_forgotten() {
    let scrub_pause = Some(Duration::from_millis(20));
    let mut cluster = Cluster::start(Plan { scrub_pause, ..reaping(3) }).await;
    let client = client(&cluster).await;
    put_all(&client, 0..20, "v").await;
    delete_all(&client, 0..10).await;
    for server in cluster.servers() {
        cluster.kill(server);
        cluster.clear(server, Keyspace::Tombstones).await;
        cluster.restart(server).await;
    }
    reaped(&cluster, 10).await;
}
