//! What a disk does to a server, and what the server does about it: damaged records, no space, and writes that
//! fail.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use dkvs::{Error, ServerIndex};
use dkvs_core::record::Body;
use dkvs_proto::message::Refusal;
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, Get, OwnerAnswer};
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, TestClient, eventually};

/// The default of `disk_free_bytes_min`.
const FREE_MIN: u64 = 256 << 20;

/// What this server answers when every owner is asked for.
async fn answer_of_all(cluster: &Cluster, server: ServerIndex, key: &'static str) -> ClientAnswer {
    let ring = cluster.ring().id();
    let get = Get { ring, key: key.into(), n: 3, r: 3, timeout_ms: 300, siblings: true, sloppy: false };
    cluster.ask(server, ClientRequest::Get(get)).await
}

fn refuses_as_damaged(answer: &ClientAnswer, server: ServerIndex) -> bool {
    match answer {
        ClientAnswer::Failed(Failure::Quorum(missed)) => {
            missed.owners.contains(&(server, OwnerAnswer::Refused(Refusal::Damaged)))
        }
        ClientAnswer::Failed(Failure::Refused(_)) | ClientAnswer::Get(_) | ClientAnswer::Put(_) => false,
    }
}

async fn repaired(cluster: &Cluster, server: ServerIndex, like: ServerIndex, key: &str) {
    let whole = cluster.stored(like, key);
    eventually("the repair", || async { cluster.readable(server, key).filter(|record| *record == whole) })
        .await;
}

async fn value(client: &TestClient, key: &'static str, r: usize) -> Option<Bytes> {
    client.get(key).r(r).await.unwrap().value().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_not_shown_and_is_repaired_from_the_other_owners() {
    let cluster = Cluster::start(Plan::of(4)).await;
    let client = cluster.client().await;
    client.put("k", "v").w(3).await.unwrap();
    let owners = cluster.owners("k", 3);
    cluster.damage(owners[0], "k").await;
    assert_eq!(value(&client, "k", 2).await, Some("v".into()), "two others have it");
    repaired(&cluster, owners[0], owners[1], "k").await;
    assert_eq!(value(&client, "k", 3).await, Some("v".into()));
    let status = client.status(owners[0]).await.unwrap();
    assert_eq!((status.damaged_found, status.damaged_waiting), (1, 0));
}

/// Nobody knows whether it is to be repaired already, or how many are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_found_damaged_while_the_list_of_such_cannot_be_read_is_repaired_when_found_again() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").w(3).await.unwrap();
    let damaged = cluster.owners("k", 3)[0];
    cluster.damage(damaged, "k").await;
    cluster.fail_read(damaged, Keyspace::Meta);
    let all_answer = || async {
        let answer = answer_of_all(&cluster, damaged, "k").await;
        matches!(answer, ClientAnswer::Get(_)).then_some(())
    };
    eventually("the repair", all_answer).await;
    let status = client.status(damaged).await.unwrap();
    assert_eq!((status.damaged_found, status.damaged_waiting), (1, 0));
}

/// Some of what was lost may have been acknowledged by it and by any one of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_refused_until_all_other_owners_have_told_what_they_hold() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [damaged, up, down] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(up);
    client.put("k", "v").await.unwrap();
    // The put's background copies must not arrive after all: its coordinator forgets them in a crash.
    for server in [damaged, down] {
        cluster.kill(server);
        cluster.restart(server).await;
    }
    cluster.restart(up).await;
    assert!(cluster.stored(up, "k").siblings().is_empty());
    // Now the only whole copy is on a server that is down.
    cluster.kill(down);
    cluster.damage(damaged, "k").await;
    for _ in 0..3 {
        let answer = answer_of_all(&cluster, damaged, "k").await;
        assert!(refuses_as_damaged(&answer, damaged), "{answer:?}");
    }
    let error = client.get("k").timeout(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "rather than not found: {error}");
    assert_eq!(client.status(damaged).await.unwrap().damaged_waiting, 1);

    cluster.restart(down).await;
    eventually("the repair", || async { cluster.readable(damaged, "k") }).await;
    assert_eq!(value(&client, "k", 2).await, Some("v".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_forget_what_is_to_be_repaired() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").w(3).await.unwrap();
    let [damaged, up, down] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(down);
    cluster.damage(damaged, "k").await;
    let noticed =
        || async { refuses_as_damaged(&answer_of_all(&cluster, damaged, "k").await, damaged).then_some(()) };
    eventually("the damage to be noticed", noticed).await;
    let listed = || async { (client.status(damaged).await.ok()?.damaged_waiting == 1).then_some(()) };
    eventually("the record to be put aside", listed).await;
    cluster.kill(damaged);
    cluster.restart(damaged).await;
    let answer = answer_of_all(&cluster, damaged, "k").await;
    assert!(refuses_as_damaged(&answer, damaged), "{answer:?}");
    cluster.restart(down).await;
    repaired(&cluster, damaged, up, "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_to_a_damaged_key_is_kept_with_what_is_repaired() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "old").w(3).await.unwrap();
    let owners = cluster.owners("k", 3);
    cluster.damage(owners[0], "k").await;
    client.put("k", "new").w(3).await.unwrap();
    repaired(&cluster, owners[0], owners[1], "k").await;
    let got = client.get("k").r(3).siblings().await.unwrap();
    assert_eq!(got.siblings(), [Some(Bytes::from_static(b"new"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_damaged_copies_of_three_are_repaired_from_the_third() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").w(3).await.unwrap();
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.damage(first, "k").await;
    cluster.damage(second, "k").await;
    assert_eq!(value(&client, "k", 1).await, Some("v".into()));
    repaired(&cluster, first, third, "k").await;
    repaired(&cluster, second, third, "k").await;
    assert_eq!(value(&client, "k", 3).await, Some("v".into()));
}

/// A put has asked more servers than the cluster's n, and of the first n only one was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_repaired_from_copies_beyond_the_clusters_n_too() {
    let mut cluster = Cluster::start(Plan { hint_bytes_max: 0, ..Plan::of(5) }).await;
    let client = cluster.client().await;
    let [damaged, away_a, away_b, beyond_a, beyond_b] = cluster.owners("k", 5)[..] else { panic!("five") };
    for away in [away_a, away_b] {
        cluster.kill(away);
    }
    client.put("k", "v").n(5).w(3).await.unwrap();
    let written = cluster.stored(damaged, "k");
    assert!([beyond_a, beyond_b].iter().all(|&server| cluster.stored(server, "k") == written));
    for away in [away_a, away_b] {
        cluster.restart(away).await;
        assert!(cluster.stored(away, "k").siblings().is_empty());
    }
    cluster.damage(damaged, "k").await;
    let repaired = || async { cluster.readable(damaged, "k").filter(|record| *record == written) };
    eventually("the repair", repaired).await;
}

/// One of two copies that acknowledged a write was damaged before, the other afterwards: the former still has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_tells_what_was_written_to_it_since() {
    let mut cluster = Cluster::start(Plan { hint_bytes_max: 0, ..Plan::of(3) }).await;
    let client = cluster.client().await;
    client.put("k", "old").w(3).await.unwrap();
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(third);
    cluster.damage(second, "k").await;
    client.put("k", "new").w(2).await.unwrap();
    cluster.damage(first, "k").await;
    // The put's background copies must not arrive after all: its coordinator forgets them in a crash.
    for server in [first, second] {
        cluster.kill(server);
        cluster.restart(server).await;
        let answer = answer_of_all(&cluster, server, "k").await;
        assert!(refuses_as_damaged(&answer, server), "{answer:?}");
    }
    cluster.restart(third).await;
    for server in [first, second] {
        let record = eventually("the repair", || async { cluster.readable(server, "k") }).await;
        let bodies: Vec<_> = record.siblings().iter().map(|sibling| &sibling.write.body).collect();
        assert_eq!(bodies, [&Body::Value("new".into())]);
    }
    assert_ne!(cluster.stored(third, "k"), cluster.stored(first, "k"), "it did not come from there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_damaged_on_all_owners_is_refused_until_it_is_written_anew() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "lost").w(3).await.unwrap();
    let owners = cluster.owners("k", 3);
    for &owner in &owners {
        cluster.damage(owner, "k").await;
    }
    for &owner in &owners {
        let answer = answer_of_all(&cluster, owner, "k").await;
        assert!(refuses_as_damaged(&answer, owner), "{answer:?}");
    }
    let error = client.get("k").r(1).timeout(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "rather than not found: {error}");
    client.put("k", "new").w(3).await.unwrap();
    for owner in owners {
        eventually("the key to be whole", || async { cluster.readable(owner, "k") }).await;
    }
    assert_eq!(value(&client, "k", 3).await, Some("new".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_and_repaired_with_nobody_reading() {
    let plan = Plan { scrub_pause: Some(Duration::from_millis(20)), ..Plan::of(3) };
    let cluster = Cluster::start(plan).await;
    let client = cluster.client().await;
    client.put("k", "v").w(3).await.unwrap();
    let server = cluster.owners("k", 3)[2];
    cluster.damage(server, "k").await;
    let repaired = || async {
        let status = client.status(server).await.ok()?;
        (status.damaged_found == 1 && status.damaged_waiting == 0 && status.scrubs > 0).then_some(())
    };
    eventually("the damage to be found and repaired", repaired).await;
    assert!(cluster.readable(server, "k").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_only_one_server_holds_is_refused_when_damaged_and_can_be_written_anew() {
    let cluster = Cluster::start(Plan::of(1)).await;
    let client = cluster.client().await;
    client.put("k", "lost").await.unwrap();
    let server = cluster.servers()[0];
    cluster.damage(server, "k").await;
    let error = client.get("k").timeout(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    client.put("k", "new").await.unwrap();
    eventually("the key to be whole", || async { cluster.readable(server, "k") }).await;
    assert_eq!(value(&client, "k", 1).await, Some("new".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_full_disks_puts_are_refused_and_deletes_reads_and_repairs_go_on() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [first, second, third] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    client.put("other", "v").w(3).await.unwrap();
    cluster.kill(third);
    client.put("k", "v").await.unwrap();
    cluster.restart(third).await;
    let fill = |free| cluster.servers().into_iter().for_each(|server| cluster.set_free_bytes(server, free));

    fill(FREE_MIN - 1);
    let error = client.put("k", "w").await.unwrap_err();
    assert!(error.nothing_was_written(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("disk full") && text.contains("268435455 bytes free, and 268435456 must be"),
        "{text}"
    );
    assert!(client.status(first).await.unwrap().is_full());
    assert_eq!(value(&client, "k", 3).await, Some("v".into()));
    assert_eq!(cluster.stored(third, "k"), cluster.stored(second, "k"), "repaired by the read");
    client.delete("other").w(3).await.unwrap();

    fill(FREE_MIN / 4 - 1);
    let error = client.delete("k").await.unwrap_err();
    assert!(error.to_string().contains("67108863 bytes free, and 67108864 must be"), "{error}");
    assert_eq!(value(&client, "k", 3).await, Some("v".into()));

    fill(FREE_MIN);
    client.put("k", "w").w(3).await.unwrap();
    assert_eq!(value(&client, "k", 3).await, Some("w".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_full_disk_leaves_the_others_to_take_puts() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for full in cluster.owners("k", 3) {
        cluster.set_free_bytes(full, 0);
        let written = client.put("k", "v").await.unwrap();
        assert_eq!(written.acked().len(), 2, "{written:?}");
        cluster.set_free_bytes(full, FREE_MIN);
    }
}

/// As a coordinator and as any other owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_store_failed_says_so_and_is_read_and_the_others_go_on_without_it() {
    const REASON: &str = "input/output error";
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    client.put("other", "v").w(3).await.unwrap();
    for failed in cluster.owners("k", 3) {
        let name = cluster.ring().servers()[failed].name.clone();
        let says_so = |error: &Error, why: &str| {
            let text = error.to_string();
            let failed = format!("{name} failed: its storage failed: ");
            assert!(text.contains(&failed) && text.contains(why) && text.contains(REASON), "{text}");
            // A coordinator that fails at its own part asks nobody else.
            assert!(!(text.contains("0 of 3") && text.contains("did not answer")), "{text}");
        };
        cluster.fail_disk(failed, REASON);
        // The first put meets the failure, the second what it left.
        for why in ["the store failed during it", "takes no more writes until it is restarted"] {
            let error = client.put("k", "by all").w(3).await.unwrap_err();
            assert!(matches!(error, Error::Unknown(_)), "it may show nevertheless: {error}");
            says_so(&error, why);
        }
        for server in cluster.servers() {
            let status = client.status(server).await.unwrap();
            assert_eq!(status.poisoned.as_deref(), (server == failed).then_some(REASON));
        }

        for text in ["without it", "and once more"] {
            let written = client.put("k", text).w(2).await.unwrap();
            assert!(!written.acked().contains(&name), "{written:?}");
            assert_eq!(value(&client, "k", 2).await, Some(text.into()));
        }
        assert_eq!(value(&client, "other", 3).await, Some("v".into()), "it shows what it has");
        // A get of all makes them equal before it answers.
        says_so(&client.get("k").r(3).await.unwrap_err(), "takes no more writes");

        cluster.kill(failed);
        cluster.restart(failed).await;
        assert_eq!(client.status(failed).await.unwrap().poisoned, None);
        assert_eq!(value(&client, "k", 3).await, Some("and once more".into()));
        client.put("k", "by all again").w(3).await.unwrap();
    }
}
