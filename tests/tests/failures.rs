//! Servers that are down: what still works, what does not, and what is said about it.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Error, OwnerReport, QuorumKind, Ring, ServerList};
use dkvs_core::record::OpId;
use dkvs_core::servers::ServerEntry;
use dkvs_net::Port;
use dkvs_proto::envelope::{self, DatagramBuilder, Header};
use dkvs_proto::frame::{Frame, Kind};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, OwnerAnswer, Put, PutBody};
use dkvs_proto::message::{Answer, Durability, Refusal};
use dkvs_tests::{Cluster, Plan, SILENCE_MAX, name};
use tokio::net::UdpSocket;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_server_of_three_may_be_down() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for down in cluster.servers() {
        cluster.kill(down);
        for i in 0..5 {
            let (key, value) = (format!("{down:?} {i}"), format!("value {i}"));
            client.put(key.clone(), value.clone()).w(2).await.unwrap();
            assert_eq!(client.get(key).r(2).await.unwrap().value(), Some(&Bytes::from(value)));
        }
        cluster.restart(down).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_down_quorums_are_missed_in_time_and_by_name_and_one_reader_is_enough() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let patient = cluster.client().await;
    patient.put("k", "v").w(3).await.unwrap();
    let timeout = Duration::from_secs(5);
    let config = ClientConfig { timeout, silence_max: SILENCE_MAX, ..ClientConfig::default() };
    let client = cluster.client_with(config).await;
    let [down_a, down_b, up] = cluster.owners("k", 3)[..] else { panic!("three owners") };
    cluster.kill(down_a);
    cluster.kill(down_b);

    let start = Instant::now();
    let error = client.put("k", "w").w(2).await.unwrap_err();
    let took = start.elapsed();
    let Error::Unknown(report) = &error else { panic!("{error}") };
    assert_eq!((report.kind, report.acked(), report.needed), (QuorumKind::Write, 1, 2), "{error}");
    let name = |server| cluster.ring().servers()[server].name.clone();
    for (server, says) in
        [(down_a, OwnerReport::TimedOut), (down_b, OwnerReport::TimedOut), (up, OwnerReport::Ok)]
    {
        assert!(report.owners.contains(&(name(server), says)), "{error}");
    }
    let late = Duration::from_secs(5);
    assert!(took < timeout + late, "the report came after {took:?}");

    let error = client.get("k").r(2).await.unwrap_err();
    let Error::Unavailable(report) = &error else { panic!("{error}") };
    assert_eq!((report.kind, report.acked(), report.needed), (QuorumKind::Read, 1, 2), "{error}");
    assert!(client.get("k").r(1).await.unwrap().value().is_some());
}

#[tokio::test]
async fn with_all_servers_down_a_read_is_unavailable_and_a_write_unknown() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    cluster.servers().into_iter().for_each(|server| cluster.kill(server));
    let timeout = Duration::from_millis(500);
    let client = cluster.client_with(ClientConfig { timeout, ..ClientConfig::default() }).await;
    let error = client.get("k").await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable(report) if report.kind == QuorumKind::Coordinator),
        "{error}"
    );
    let error = client.put("k", "v").await.unwrap_err();
    assert!(
        !error.nothing_was_written(),
        "a datagram may have reached a server just before it died: {error}"
    );
}

/// S = 5, N = 4, W = 3, R = 2, and one of the owners is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_servers_four_copies_and_one_server_down() {
    let mut cluster = Cluster::start(Plan::of(5)).await;
    let client = cluster.client().await;
    for place in 0..4 {
        let key = format!("key {place}");
        let down = cluster.owners(&key, 4)[place];
        cluster.kill(down);
        let written = client.put(key.clone(), "v").n(4).w(3).await.unwrap();
        assert!(written.acked().len() >= 3);
        assert_eq!(client.get(key).n(4).r(2).await.unwrap().value(), Some(&Bytes::from_static(b"v")));
        cluster.restart(down).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_put_survives_the_restart_of_every_server() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    for i in 0..50 {
        client.put(format!("k{i}"), format!("v{i}")).await.unwrap();
    }
    client.delete("k7").await.unwrap();
    for server in cluster.servers() {
        cluster.kill(server);
    }
    for server in cluster.servers() {
        cluster.restart(server).await;
    }
    for i in 0..50 {
        let expected = (i != 7).then(|| Bytes::from(format!("v{i}")));
        assert_eq!(client.get(format!("k{i}")).await.unwrap().value(), expected.as_ref(), "k{i}");
    }
}

/// A server that refuses a put speaks for itself: the process before its restart may have executed it, or, if it was not restarted at
/// all, it may be executing it. Nobody else may do that meanwhile.
#[tokio::test]
async fn a_put_that_a_restarted_server_refuses_may_have_been_executed_before() {
    for refusal in [Refusal::Storage("a bad sector".into()), Refusal::Invalid("so it seems".into())] {
        let servers =
            [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        let addresses = servers.each_ref().map(|server| server.local_addr().unwrap());
        let entry = |address: &SocketAddr| ServerEntry { name: name("127.0.0.1", address.port()), nodes: 16 };
        let ring = Ring::new(ServerList::new(addresses.iter().map(entry).collect()).unwrap());
        let owner = ring.owners_of_key(b"k", 1)[0].as_usize();
        let (server, other) = (&servers[owner], &servers[1 - owner]);
        let port = Port::for_calls(&addresses).await.unwrap();
        let client =
            Client::with_socket(port, ring, addresses.to_vec(), None, ClientConfig::default()).unwrap();
        let put = tokio::spawn(client.put("k", "v").n(1).w(1).into_future());
        let mut sessions = vec![(2, 21), (1, 11)];
        let error = loop {
            let mut buffer = vec![0; 2_048];
            let (len, from) = server.recv_from(&mut buffer).await.unwrap();
            let (header, frames) = envelope::parse(&buffer[..len]).unwrap();
            let datagram = |session, proof, kind, body: &[u8]| {
                let mut datagram = DatagramBuilder::new(Header { session, proof, oldest: 1_000 });
                datagram.push(&Frame::answer(kind, frames[0].id, body));
                datagram.finish(0)
            };
            if let Some((session, proof)) = sessions.pop() {
                server.send_to(&datagram(session, proof, Kind::Challenge, &[]), from).await.unwrap();
            } else if header.proof == 21 {
                let failed = ClientAnswer::Failed(Failure::Refused(refusal.clone()));
                let (kind, body) = Answer::Client(failed).encode();
                server.send_to(&datagram(2, 0, kind, &body), from).await.unwrap();
                break put.await.unwrap().unwrap_err();
            }
        };
        assert!(matches!(error, Error::Unknown(_)), "{error}");
        let asked = other.try_recv(&mut [0; 2_048]).unwrap_err();
        assert_eq!(asked.kind(), std::io::ErrorKind::WouldBlock, "nobody else is asked");
    }
}

/// A put that is passed on, to an owner that is down and then to one that refuses: the first may have had it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_passed_on_to_an_owner_that_says_nothing_and_one_that_refuses_has_an_unknown_outcome() {
    let mut cluster = Cluster::start(Plan::of(4)).await;
    let owners = cluster.owners("k", 3);
    let stranger = cluster.servers().into_iter().find(|server| !owners.contains(server)).unwrap();
    cluster.kill(owners[0]);
    owners[1..].iter().for_each(|&owner| cluster.set_free_bytes(owner, 1));
    let put = Put {
        ring: cluster.ring().id(),
        key: "k".into(),
        body: PutBody::Value("v".into()),
        context: None,
        n: 3,
        w: 2,
        op: OpId { client: 7, sequence: 1 },
        timeout_ms: 10_000,
        forwarded: false,
        durability: Durability::Memory,
        ttl_ms: None,
        sloppy: false,
    };
    let answer = cluster.ask(stranger, ClientRequest::Put(put)).await;
    let ClientAnswer::Failed(Failure::Quorum(missed)) = answer else { panic!("{answer:?}") };
    let said: Vec<_> = missed.owners.iter().map(|(_, said)| said.clone()).collect();
    assert!(
        matches!(&said[..], [OwnerAnswer::TimedOut, OwnerAnswer::Refused(Refusal::DiskFull { .. })]),
        "{said:?}"
    );
}
