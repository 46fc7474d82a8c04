//! Owners that missed writes get them without anybody reading.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dkvs::{Liveness, ServerIndex};
use dkvs_core::record::Record;
use dkvs_storage::Keyspace;
use dkvs_tests::many::{client, delete_all, key, put_all};
use dkvs_tests::{Cluster, Plan, TestClient, eventually};
use futures::{StreamExt, stream};

/// Waits until everything that is stored for these keys is also kept for one server.
async fn hinted(cluster: &Cluster, holders: &[ServerIndex], target: ServerIndex, keys: usize) {
    eventually("hints of everything", async || {
        let mut hints: std::collections::BTreeMap<Bytes, Record> = std::collections::BTreeMap::new();
        for (key, record) in holders.iter().flat_map(|&holder| cluster.hints(holder, target)) {
            hints.entry(key).or_default().merge(&record);
        }
        let is_hinted = |number| {
            let key = key(number);
            hints.get(key.as_bytes()).is_some_and(|hint| hint.includes(&cluster.stored(holders[0], &key)))
        };
        (0..keys).all(is_hinted).then_some(())
    })
    .await;
}

/// Three servers, of which the last is down and has missed so many puts. The others hold hints of them.
async fn hinting(keys: usize) -> (Cluster, TestClient, [ServerIndex; 2], ServerIndex) {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = client(&cluster).await;
    let [up_a, up_b, down] = cluster.servers()[..] else { panic!("three servers") };
    cluster.kill(down);
    put_all(&client, 0..keys, "v").await;
    hinted(&cluster, &[up_a, up_b], down, keys).await;
    (cluster, client, [up_a, up_b], down)
}

/// Waits until all owners hold the same of these keys and nobody keeps anything for anybody.
async fn converged(cluster: &Cluster, keys: usize) {
    let servers = cluster.servers();
    eventually("all owners to hold the same and no hint to be left", async || {
        let is_equal = |number| {
            let key = key(number);
            let records: Vec<_> = servers.iter().map(|&server| cluster.stored(server, &key)).collect();
            !records[0].siblings().is_empty() && records.iter().all(|record| *record == records[0])
        };
        let is_done = servers.iter().all(|&server| cluster.entries(server, Keyspace::Hints).is_empty());
        (is_done && (0..keys).all(is_equal)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_missed_ten_thousand_puts_and_a_thousand_deletes_gets_them_with_nobody_reading() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = client(&cluster).await;
    let [up_a, up_b, down] = cluster.servers()[..] else { panic!("three servers") };
    put_all(&client, 0..1_000, "before").await;
    cluster.kill(down);
    put_all(&client, 500..10_500, "while it is down").await;
    delete_all(&client, 5_000..6_000).await;
    // What it has is not hinted.
    let holders = [up_a, up_b];
    eventually("hints of everything it missed", async || {
        let has = |number: usize| {
            let key = key(number);
            let hints = holders.iter().flat_map(|&holder| cluster.hints(holder, down));
            let mut merged = Record::new();
            hints.filter(|(of, _)| *of == key).for_each(|(_, record)| merged.merge(&record));
            merged.includes(&cluster.stored(up_a, &key))
        };
        let counted = holders.iter().map(|&holder| cluster.hints(holder, down).len()).sum::<usize>();
        (counted >= 10_000 && [500, 5_000, 5_999, 10_499].into_iter().all(has)).then_some(())
    })
    .await;
    cluster.restart(down).await;
    converged(&cluster, 10_500).await;
    let shown = cluster.stored(down, &key(5_500));
    assert!(shown.values(0)[0].write.body.value().is_none(), "deleted: {shown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_survive_the_end_of_their_holders() {
    let (mut cluster, _client, [up_a, up_b], down) = hinting(20).await;
    for holder in [up_a, up_b] {
        cluster.kill(holder);
        cluster.restart(holder).await;
    }
    cluster.restart(down).await;
    converged(&cluster, 20).await;
}

/// Where there is no room to wait for an owner after the answer, the answer waits for the hint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_cannot_leave_a_hint_for_later_keeps_it_before_its_answer_though_a_read_fails() {
    let mut cluster = Cluster::start(Plan { background_bytes_max: 0, ..Plan::of(3) }).await;
    let client = cluster.client().await;
    let [coordinator, _, down] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(down);
    cluster.fail_read(coordinator, Keyspace::Hints);
    client.put("k", "v").w(2).await.unwrap();
    let kept = cluster.hints(coordinator, down);
    assert_eq!(kept, [("k".into(), cluster.stored(coordinator, "k"))]);
}

/// Puts that are still waiting for an owner leave hints for it when their coordinator stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_survive_an_orderly_stop_of_their_holders_and_are_written_by_it() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    // Its requests are not given up before the servers stop.
    let client = cluster.client().await;
    let [up_a, up_b, down] = cluster.servers()[..] else { panic!("three servers") };
    cluster.kill(down);
    put_all(&client, 0..20, "v").await;
    let early: usize = [up_a, up_b].map(|holder| cluster.hints(holder, down).len()).into_iter().sum();
    assert_eq!(early, 0, "nothing is given up yet");
    for holder in [up_a, up_b] {
        cluster.stop(holder).await;
    }
    let kept: usize = [up_a, up_b].map(|holder| cluster.hints(holder, down).len()).into_iter().sum();
    assert_eq!(kept, 20);
    for holder in [up_a, up_b] {
        cluster.restart_stopped(holder).await;
    }
    cluster.restart(down).await;
    converged(&cluster, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_killed_while_it_delivers_goes_on_when_it_is_back() {
    let (mut cluster, _client, [up_a, up_b], down) = hinting(400).await;
    let before: Vec<_> = [up_a, up_b].map(|holder| cluster.hints(holder, down).len()).to_vec();
    cluster.restart(down).await;
    for (holder, before) in [up_a, up_b].into_iter().zip(before) {
        eventually("a delivery", async || (cluster.hints(holder, down).len() < before.max(1)).then_some(()))
            .await;
        cluster.kill(holder);
    }
    for holder in [up_a, up_b] {
        cluster.restart(holder).await;
    }
    converged(&cluster, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_that_is_delivered_twice_and_late_changes_nothing_and_brings_nothing_back() {
    let (mut cluster, client, [up_a, up_b], down) = hinting(20).await;
    let hints = [up_a, up_b].map(|holder| (holder, cluster.entries(holder, Keyspace::Hints)));
    cluster.restart(down).await;
    converged(&cluster, 20).await;
    let deletes = (0..10).map(|number| client.delete(key(number)).w(3).into_future());
    stream::iter(deletes).buffer_unordered(10).for_each(|delete| async { drop(delete.unwrap()) }).await;
    converged(&cluster, 20).await;
    let before: Vec<_> = (0..20).map(|number| cluster.stored(down, &key(number))).collect();
    for (holder, hints) in hints {
        cluster.kill(holder);
        cluster.put_back(holder, Keyspace::Hints, hints).await;
        cluster.restart(holder).await;
    }
    converged(&cluster, 20).await;
    let after: Vec<_> = (0..20).map(|number| cluster.stored(down, &key(number))).collect();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exceeds_the_budget_leaves_a_mark_for_its_partition_and_status_shows_both() {
    let mut cluster = Cluster::start(Plan { hint_bytes_max: 2_000, ..Plan::of(3) }).await;
    let client = client(&cluster).await;
    let [up_a, up_b, down] = cluster.servers()[..] else { panic!("three servers") };
    cluster.kill(down);
    put_all(&client, 0..100, "v").await;
    let (holder, mark) = eventually("hints within the budget, and marks beyond it", async || {
        let sum = |server| {
            cluster.hints(server, down).len() + cluster.replica(server).dirty_marks(None, 500).unwrap().len()
        };
        let total: usize = [up_a, up_b].map(sum).into_iter().sum();
        let marks = cluster.replica(up_a).dirty_marks(None, 500).unwrap();
        (total == 100).then(|| Some((up_a, *marks.first()?))).flatten()
    })
    .await;
    let status = client.status(holder).await.unwrap();
    let peer = status.peers.iter().find(|peer| peer.server == down).unwrap();
    assert!(peer.hints > 0 && peer.hint_bytes <= 2_000 && peer.dirty_partitions > 0, "{peer:?}");
    assert_ne!(peer.liveness, Liveness::Up, "it was found out meanwhile: {peer:?}");
    cluster.replica(holder).clear_dirty_mark(mark).await.unwrap();
    let marks = cluster.replica(holder).dirty_marks(None, 500).unwrap();
    assert_eq!((marks.len() as u64, marks.contains(&mark)), (peer.dirty_partitions - 1, false));

    // What is within the budget is delivered.
    cluster.restart(down).await;
    eventually("the hints to be delivered", async || {
        [up_a, up_b].into_iter().all(|holder| cluster.hints(holder, down).is_empty()).then_some(())
    })
    .await;
    let peer = eventually("the server to be seen up", async || {
        let status = client.status(holder).await.ok()?;
        status.peers.into_iter().find(|peer| peer.server == down && peer.liveness == Liveness::Up)
    })
    .await;
    assert_eq!((peer.hints, peer.hint_bytes), (0, 0));
}
