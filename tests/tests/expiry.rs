//! Values that expire: hidden from readers when their time has come, and values like any other to servers.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use dkvs::{Error, ServerIndex, TTL_MAX};
use dkvs_core::record::{OpId, Record};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, Get, Put, PutBody};
use dkvs_proto::message::{Durability, Refusal};
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, TestClient, eventually};

const TTL: Duration = Duration::from_secs(30);
const TTL_MS: i64 = 30_000;

/// How far apart servers' clocks may be, and so how long after their time values keep their bytes.
const SKEW_MS: i64 = 60_000;

fn text(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

async fn values(client: &TestClient, key: &'static str) -> Vec<Option<Bytes>> {
    client.get(key).siblings().await.unwrap().siblings().to_vec()
}

fn get_through(cluster: &Cluster, key: &str, r: u16) -> ClientRequest {
    let (ring, key) = (cluster.ring().id(), Bytes::copy_from_slice(key.as_bytes()));
    ClientRequest::Get(Get { ring, key, n: 3, r, timeout_ms: 30_000, siblings: true, sloppy: false })
}

/// A put without a context. All that are made here are one operation.
fn put(cluster: &Cluster, value: &str, w: u16, ttl_ms: Option<u64>) -> ClientRequest {
    let (ring, key, op) = (cluster.ring().id(), "k".into(), OpId { client: 7, sequence: 1 });
    let (body, durability) = (PutBody::Value(value.to_owned().into()), Durability::Memory);
    let (context, n, timeout_ms, forwarded) = (None, 3, 30_000, false);
    let sloppy = false;
    ClientRequest::Put(Put {
        ring,
        key,
        body,
        context,
        n,
        w,
        op,
        timeout_ms,
        forwarded,
        durability,
        ttl_ms,
        sloppy,
    })
}

/// What a get from all owners through this server shows.
async fn shown_by(cluster: &Cluster, server: ServerIndex, key: &str) -> Vec<PutBody> {
    shown_of(cluster, server, key, 3).await
}

/// What a get from so many owners through this server shows.
async fn shown_of(cluster: &Cluster, server: ServerIndex, key: &str, r: u16) -> Vec<PutBody> {
    match cluster.ask(server, get_through(cluster, key, r)).await {
        ClientAnswer::Get(done) => done.values,
        ClientAnswer::Put(_) | ClientAnswer::Failed(_) => panic!("a get was answered otherwise"),
    }
}

#[tokio::test]
async fn a_value_is_hidden_from_its_time_on_and_its_context_still_replaces_it() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").ttl(TTL).w(3).await.unwrap();
    cluster.advance_clocks(TTL_MS - 1);
    assert_eq!(client.get("k").await.unwrap().value(), Some(&Bytes::from_static(b"v")));
    cluster.advance_clocks(1);
    let expired = client.get("k").await.unwrap();
    assert_eq!((expired.value(), expired.sibling_count()), (None, 0));
    assert!(expired.siblings().is_empty() && !expired.context().is_empty());
    for server in cluster.servers() {
        assert!(client.page(server, None).await.unwrap().entries.is_empty(), "no dump shows it");
        assert_eq!(cluster.stored(server, "k").siblings().len(), 1, "it is there until it is replaced");
    }

    client.put("k", "next").context(expired.context()).w(3).await.unwrap();
    assert_eq!(values(&client, "k").await, [text("next")]);
    for server in cluster.servers() {
        assert_eq!(cluster.stored(server, "k").siblings().len(), 1, "nothing is left of it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_value_overwritten_on_two_of_three_owners_by_one_that_expires_the_third_never_shows_the_old_one()
{
    let (cluster, [first, second, third]) = overwritten_on_two(&["k"]).await;
    let client = cluster.client().await;
    assert!(is_old(&cluster, third, "k"));
    for _ in 0..3 {
        for server in [third, first, second] {
            assert_eq!(shown_by(&cluster, server, "k").await, []);
        }
    }
    let all: Vec<Record> = [first, second, third].map(|server| cluster.stored(server, "k")).into();
    assert!(all.iter().all(|record| *record == all[0]), "repair has brought it to all: {all:?}");

    // Nor does it once the bytes of the new one are gone, whatever a clock says then.
    cluster.advance_clocks(SKEW_MS + 1);
    client.put("k", "beside").context(client.get("other").await.unwrap().context()).w(3).await.unwrap();
    cluster.advance_clocks(-SKEW_MS - 2);
    for server in [first, second, third] {
        let record = cluster.stored(server, "k");
        assert_eq!(record.siblings().len(), 2);
        assert_eq!(record.value_len(), "beside".len(), "{record:?}");
        assert_eq!(shown_by(&cluster, server, "k").await, [PutBody::Value("beside".into())]);
    }
}

/// Each of these gets is the first of its key: afterwards the third has what it found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_value_shows_neither_by_default_through_the_third_nor_in_gets_of_one_through_the_others() {
    let keys = ["default, third", "default, first", "default, second", "one, first", "one, second"];
    let (cluster, [first, second, third]) = overwritten_on_two(&keys).await;
    for (key, (server, r)) in
        keys.into_iter().zip([(third, 2), (first, 2), (second, 2), (first, 1), (second, 1)])
    {
        assert!(is_old(&cluster, third, key), "nothing has repaired {key:?} yet");
        assert_eq!(shown_of(&cluster, server, key, r).await, [], "{key:?}");
    }
}

/// Three servers, of which the last has an old value of these keys, and the others what has replaced it and expired.
async fn overwritten_on_two(keys: &[&'static str]) -> (Cluster, [ServerIndex; 3]) {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners(keys[0], 3)[..] else { panic!("three owners") };
    for &key in keys {
        client.put(key, "old").w(3).await.unwrap();
    }
    cluster.kill(third);
    for &key in keys {
        client.put(key, "new").ttl(TTL).w(2).await.unwrap();
    }
    cluster.advance_clocks(TTL_MS);
    // Without the hints: only what a get finds tells the third.
    for server in [first, second] {
        cluster.kill(server);
        cluster.clear(server, Keyspace::Hints).await;
        cluster.restart(server).await;
    }
    cluster.restart(third).await;
    (cluster, [first, second, third])
}

fn is_old(cluster: &Cluster, server: ServerIndex, key: &str) -> bool {
    cluster.stored(server, key).values(0)[0].write.body.value() == text("old").as_ref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_brings_the_time_of_a_value_with_it() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(third);
    // The third is given up at the deadline.
    client.put("k", "v").ttl(TTL).timeout(Duration::from_secs(5)).await.unwrap();
    eventually("a hint", async || {
        (!cluster.hints(first, third).is_empty() || !cluster.hints(second, third).is_empty()).then_some(())
    })
    .await;
    cluster.advance_clocks(TTL_MS);
    cluster.restart(third).await;
    eventually("the hint to be delivered", async || {
        (!cluster.stored(third, "k").siblings().is_empty()).then_some(())
    })
    .await;
    assert_eq!(cluster.stored(third, "k"), cluster.stored(first, "k"));
    assert_eq!(shown_by(&cluster, third, "k").await, []);
}

#[tokio::test]
async fn a_put_without_a_time_over_one_with_stays_and_the_other_way_round_it_goes() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("stays", "short").ttl(TTL).await.unwrap();
    client.put("stays", "long").await.unwrap();
    client.put("goes", "long").await.unwrap();
    client.put("goes", "short").ttl(TTL).await.unwrap();
    cluster.advance_clocks(TTL_MS);
    assert_eq!(values(&client, "stays").await, [text("long")]);
    assert_eq!(values(&client, "goes").await, [], "what it replaced does not come back");
}

#[tokio::test]
async fn of_siblings_of_which_one_expires_the_others_are_shown_and_counted() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let nothing = client.get("k").await.unwrap();
    client.put("k", "lasting").context(nothing.context()).w(3).await.unwrap();
    client.put("k", "short").context(nothing.context()).ttl(TTL).w(3).await.unwrap();
    client.put("gone", "short").context(nothing.context()).ttl(TTL).w(3).await.unwrap();
    client.delete("gone").context(nothing.context()).w(3).await.unwrap();
    assert_eq!(client.get("k").await.unwrap().sibling_count(), 2);
    cluster.advance_clocks(TTL_MS);
    let got = client.get("k").siblings().await.unwrap();
    assert_eq!((got.siblings(), got.sibling_count()), (&[text("lasting")][..], 1));
    let page = client.page(cluster.owners("k", 1)[0], None).await.unwrap();
    let shown: Vec<_> =
        page.entries.iter().map(|entry| (&entry.key[..], &entry.value[..], entry.siblings)).collect();
    assert_eq!(shown, [(&b"k"[..], &b"lasting"[..], 1)]);

    // Its context covers the one that is hidden too.
    client.put("k", "both").context(got.context()).w(3).await.unwrap();
    assert!(cluster.servers().into_iter().all(|server| cluster.stored(server, "k").siblings().len() == 1));
    let gone = client.get("gone").siblings().await.unwrap();
    assert_eq!((gone.value(), gone.siblings()), (None, &[None][..]), "a deletion and nothing else");
}

/// Servers whose clocks differ show different things, and hold the same.
#[tokio::test]
async fn each_server_hides_by_its_own_clock_and_none_exchanges_anything_for_it() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    client.put("k", "v").ttl(TTL).w(3).await.unwrap();
    let before: Vec<_> = cluster.servers().iter().map(|&s| cluster.entries(s, Keyspace::Records)).collect();
    cluster.skew_clock(second, TTL_MS);
    cluster.skew_clock(third, TTL_MS + 2 * SKEW_MS);
    for _ in 0..3 {
        assert_eq!(shown_by(&cluster, first, "k").await, [PutBody::Value("v".into())]);
        assert_eq!(shown_by(&cluster, second, "k").await, []);
        assert_eq!(shown_by(&cluster, third, "k").await, []);
    }
    let after: Vec<_> = cluster.servers().iter().map(|&s| cluster.entries(s, Keyspace::Records)).collect();
    assert_eq!(before, after, "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_what_expired_long_ago_are_dropped_by_the_scrub_and_counted_as_a_deletion() {
    let plan = Plan { scrub_pause: Some(Duration::from_millis(10)), ..Plan::of(3) };
    let cluster = Cluster::start(plan).await;
    let client = cluster.client().await;
    client.put("k", vec![b'.'; 10_000]).ttl(TTL).w(3).await.unwrap();
    let status = async |server| client.status(server).await.unwrap();
    let server = cluster.servers()[0];
    cluster.advance_clocks(TTL_MS + SKEW_MS);
    let scrubs = status(server).await.scrubs;
    eventually("two more scrubs", async || (status(server).await.scrubs > scrubs + 1).then_some(())).await;
    let (held, hash) = (cluster.stored(server, "k").value_len(), cluster.stored(server, "k").hash());
    assert_eq!((held, status(server).await.keys), (10_000, 1), "a server whose clock is behind may show it");

    cluster.advance_clocks(1);
    for server in cluster.servers() {
        let is_dropped = async || {
            let status = status(server).await;
            ((status.keys, status.tombstones) == (0, 1) && status.bytes < 1_000).then_some(())
        };
        eventually("the bytes to be dropped", is_dropped).await;
        let record = cluster.stored(server, "k");
        assert_eq!((record.value_len(), record.hash()), (0, hash), "replicas cannot tell");
    }
    assert_eq!(values(&client, "k").await, []);
}

/// A put that was begun by a coordinator before goes on with its time, by whatever clock that was chosen.
#[tokio::test]
async fn a_second_execution_of_a_put_keeps_the_time_of_the_first() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, _] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    client.put("k", "before").w(3).await.unwrap();
    cluster.ask(first, put(&cluster, "v", 3, Some(30_000))).await;
    let expiry = |server| cluster.stored(server, "k").siblings()[0].write.expires;
    let chosen = expiry(first);
    cluster.advance_clocks(1_000);
    // Something else to replace, so that the second execution is an event of its own.
    let nothing = client.get("other").await.unwrap();
    client.put("k", "beside").context(nothing.context()).w(3).await.unwrap();
    cluster.ask(second, put(&cluster, "v", 3, Some(30_000))).await;
    let record = cluster.stored(second, "k");
    assert_eq!((record.siblings().len(), expiry(second)), (1, chosen));
}

/// Its coordinator had missed what it replaces, so that the value that stays is of a second event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_needs_a_second_round_keeps_its_time() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(third);
    client.put("k", "before").await.unwrap();
    cluster.restart(third).await;
    cluster.kill(first);
    assert!(cluster.stored(third, "k").siblings().is_empty(), "the third missed it");
    let answer = cluster.ask(third, put(&cluster, "after", 2, Some(30_000))).await;
    assert!(matches!(answer, ClientAnswer::Put(_)), "{answer:?}");
    let record = cluster.stored(third, "k");
    assert_eq!((record.siblings().len(), &record), (1, &cluster.stored(second, "k")));
    assert_eq!(values(&client, "k").await, [text("after")]);
    cluster.advance_clocks(TTL_MS);
    assert_eq!(values(&client, "k").await, []);
}

#[tokio::test]
async fn only_values_expire_and_within_bounds() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for ttl in [Duration::ZERO, Duration::from_micros(999), TTL_MAX + Duration::from_millis(1), Duration::MAX]
    {
        let refused = client.put("k", "v").ttl(ttl).await.unwrap_err();
        assert!(matches!(refused, Error::Usage(_)), "{ttl:?}: {refused:?}");
    }
    assert!(matches!(client.delete("k").ttl(TTL).await.unwrap_err(), Error::Usage(_)));
    client.put("k", "v").ttl(TTL_MAX).await.unwrap();
    assert_eq!(values(&client, "k").await, [text("v")]);

    // A client of another make is told the same by the server.
    let mut deletion = put(&cluster, "v", 2, Some(1));
    let ClientRequest::Put(Put { body, .. }) = &mut deletion else { panic!("it is a put") };
    *body = PutBody::Tombstone;
    for request in [put(&cluster, "v", 2, Some(0)), put(&cluster, "v", 2, Some(u64::MAX)), deletion] {
        let answer = cluster.ask(cluster.owners("k", 1)[0], request).await;
        let refused = matches!(&answer, ClientAnswer::Failed(Failure::Refused(Refusal::Invalid(_))));
        assert!(refused, "{answer:?}");
    }
}
