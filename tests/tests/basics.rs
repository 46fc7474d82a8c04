//! Puts and gets on healthy clusters: every quorum, every size, every kind of key.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dkvs::{ClientConfig, Error};
use dkvs_tests::{Cluster, PATIENCE, Plan};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_is_got_with_every_quorum_up_to_five() {
    let cluster = Cluster::start(Plan::of(5)).await;
    let client = cluster.client().await;
    for n in 1..=5 {
        for w in 1..=n {
            for r in 1..=n {
                let (key, value) = (format!("k{n}{w}{r}"), format!("v{n}{w}{r}"));
                let written = client.put(key.clone(), value.clone()).n(n).w(w).await.unwrap();
                assert!(written.acked().len() >= w, "{written:?}");
                let got = client.get(key.clone()).n(n).r(r).await.unwrap();
                // With r + w > n the two quorums overlap. Without, a get may come before the put's last copies.
                if r + w > n {
                    assert_eq!(got.value(), Some(&Bytes::from(value)), "n={n} r={r} w={w}");
                    assert_eq!(got.sibling_count(), 1);
                }
                assert!(got.answered().len() >= r, "{got:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_quorum_that_cannot_be_is_refused_before_anything_is_sent() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    cluster.servers().into_iter().for_each(|server| cluster.kill(server));
    for (n, w, says) in [
        (4, 2, "n is 4, but the ring has only 3 server(s)"),
        (3, 4, "w is 4, but only n = 3 copies are kept"),
        (0, 1, "n is 0; it must be at least 1"),
        (3, 0, "w is 0; it must be at least 1"),
    ] {
        let error = client.put("k", "v").n(n).w(w).await.unwrap_err();
        assert!(matches!(&error, Error::Usage(text) if text.contains(says)), "{error}");
    }
    let error = client.get("k").r(4).await.unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("r is 4")), "{error}");
}

#[tokio::test]
async fn a_prefix_and_a_suffix_of_a_key_are_other_keys() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let keys = ["abcd", "abc", "bcd", "abcd\0", "\0abcd", "ABCD", "abcd "];
    for key in keys {
        assert_eq!(client.get(key).await.unwrap().value(), None, "{key:?} before its put");
        client.put(key, format!("value of {key}")).await.unwrap();
    }
    for key in keys {
        let got = client.get(key).await.unwrap();
        assert_eq!(got.value(), Some(&Bytes::from(format!("value of {key}"))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_size_come_back_by_datagram_and_by_stream() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for len in [0, 1, 1_100, 1_300, 30_000, 5 * 1024 * 1024, 8 * 1024 * 1024] {
        let value: Bytes = (0..=250).cycle().take(len).collect();
        client.put("k", value.clone()).w(3).await.unwrap();
        for r in 1..=3 {
            assert!(client.get("k").r(r).await.unwrap().value() == Some(&value), "{len} bytes, r={r}");
        }
    }
}

#[tokio::test]
async fn keys_and_values_are_any_bytes() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let every_byte: Bytes = (0..=255).collect();
    let long_key: Bytes = (0..=255).cycle().take(32_768).collect();
    for key in [every_byte.clone(), long_key, Bytes::from_static(b"\n"), Bytes::from_static(&[0])] {
        client.put(key.clone(), every_byte.clone()).await.unwrap();
        assert_eq!(client.get(key.clone()).await.unwrap().value(), Some(&every_byte));
        client.delete(key.clone()).await.unwrap();
        assert_eq!(client.get(key).await.unwrap().value(), None);
    }
}

#[tokio::test]
async fn one_byte_over_a_limit_is_refused_by_name_before_anything_is_sent() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    cluster.servers().into_iter().for_each(|server| cluster.kill(server));
    let (key, value) = (vec![b'k'; 32_769], vec![b'v'; 8 * 1024 * 1024 + 1]);
    for (error, says) in [
        (
            client.put(key.clone(), "v").await.unwrap_err(),
            "the key has 32769 bytes; at most 32768 are allowed",
        ),
        (client.get(key).await.unwrap_err(), "the key has 32769 bytes; at most 32768 are allowed"),
        (client.put("", "v").await.unwrap_err(), "the key is empty; it must have at least 1 byte"),
        (
            client.put("k", value).await.unwrap_err(),
            "the value has 8388609 bytes; at most 8388608 are allowed",
        ),
    ] {
        assert!(matches!(&error, Error::Usage(text) if text == says), "{error}");
    }
}

#[tokio::test]
async fn a_server_has_limits_of_its_own() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let config = ClientConfig { value_len_max: usize::MAX, timeout: PATIENCE, ..ClientConfig::default() };
    let client = cluster.client_with(config).await;
    let error = client.put("k", vec![0; 8 * 1024 * 1024 + 1]).await.unwrap_err();
    assert!(
        error.to_string().contains("the value has 8388609 bytes; at most 8388608 are allowed"),
        "{error}"
    );
    assert!(error.nothing_was_written());
}

#[tokio::test]
async fn a_client_whose_ring_differs_is_told_so() {
    let cluster = Cluster::start(Plan::of(3)).await;
    let other = Cluster::start(Plan::of(4)).await;
    let socket = dkvs_net::Port::for_calls(&[]).await.unwrap();
    let addresses =
        cluster.servers().iter().chain(&cluster.servers()[..1]).map(|&s| cluster.address(s)).collect();
    let ring = (**other.ring()).clone();
    let client = dkvs::Client::with_socket(socket, ring, addresses, None, ClientConfig::default()).unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::WrongRing { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_own_a_key_passes_a_put_on() {
    use dkvs_proto::message::Durability;
    use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Put, PutBody};
    let cluster = Cluster::start(Plan::of(5)).await;
    let key = "somewhere else";
    let stranger = *cluster.owners(key, 5).last().unwrap();
    let put = |forwarded| {
        ClientRequest::Put(Put {
            ring: cluster.ring().id(),
            key: key.into(),
            body: PutBody::Value("v".into()),
            context: None,
            n: 3,
            w: 2,
            op: dkvs_core::record::OpId { client: 1, sequence: 1 },
            timeout_ms: 30_000,
            forwarded,
            durability: Durability::default(),
            ttl_ms: None,
            sloppy: false,
        })
    };
    let answer = cluster.ask(stranger, put(false)).await;
    assert!(matches!(&answer, ClientAnswer::Put(done) if done.acked.len() >= 2), "{answer:?}");
    assert!(cluster.stored(stranger, key).siblings().is_empty(), "it kept nothing for itself");
    let answer = cluster.ask(stranger, put(true)).await;
    assert!(
        matches!(answer, ClientAnswer::Failed(_)),
        "what was passed on once is not passed on again: {answer:?}"
    );
    let client = cluster.client().await;
    assert_eq!(client.get(key).r(3).await.unwrap().value(), Some(&Bytes::from_static(b"v")));
}
