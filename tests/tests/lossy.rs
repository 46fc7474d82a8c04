//! A network that loses and repeats datagrams.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use dkvs::ClientConfig;
use dkvs_net::faults::Faults;
use dkvs_tests::{Cluster, PATIENCE, Plan};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Every datagram is lost with probability 0.1 when it leaves and again when it arrives, and repeated as often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_operations_at_once_all_succeed_and_none_is_executed_twice() {
    let faults = Faults { loss: 0.1, duplication: 0.1 };
    let cluster = Cluster::start(Plan { faults, ..Plan::of(3) }).await;
    // So patient that it never asks a second coordinator: what is executed twice then, one server executed twice.
    let config = ClientConfig { timeout: PATIENCE, silence_max: PATIENCE, ..ClientConfig::default() };
    let client = cluster.client_with(config).await;

    let puts: FuturesUnordered<_> =
        (0..500).map(|i| client.put(format!("k{i}"), format!("v{i}")).into_future()).collect();
    let put: Vec<_> = puts.collect().await;
    assert!(put.iter().all(Result::is_ok), "{:?}", put.iter().find(|put| put.is_err()));
    let gets: FuturesUnordered<_> = (0..500)
        .map(|i| {
            let get = client.get(format!("k{i}"));
            async move { (i, get.await) }
        })
        .collect();
    let rewrites: FuturesUnordered<_> =
        (0..500).map(|i| client.put(format!("other {i}"), "v").into_future()).collect();
    let (got, rewritten) = tokio::join!(gets.collect::<Vec<_>>(), rewrites.collect::<Vec<_>>());
    for (i, got) in got {
        assert_eq!(got.unwrap().value(), Some(&Bytes::from(format!("v{i}"))));
    }
    assert!(rewritten.iter().all(Result::is_ok));
    for i in 0..500 {
        for key in [format!("k{i}"), format!("other {i}")] {
            let coordinator = cluster.owners(&key, 3)[0];
            let counters: Vec<u64> =
                cluster.stored(coordinator, &key).vv().iter().map(|dot| dot.counter).collect();
            assert_eq!(counters, [1], "{key} was put once");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_all_datagrams_may_be_lost() {
    let faults = Faults { loss: 0.3, duplication: 0.3 };
    let cluster = Cluster::start(Plan { faults, seed: 2, ..Plan::of(3) }).await;
    let config =
        ClientConfig { timeout: PATIENCE, silence_max: Duration::from_secs(5), ..ClientConfig::default() };
    let client = cluster.client_with(config).await;
    for i in 0..6 {
        client.put("k", format!("v{i}")).w(3).await.unwrap();
        let got = client.get("k").r(3).await.unwrap();
        assert_eq!((got.value(), got.sibling_count()), (Some(&Bytes::from(format!("v{i}"))), 1));
    }
}
