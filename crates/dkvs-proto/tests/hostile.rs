//! Bytes that nobody honest sent: every decoder answers with an error or a value, and never more.
//!
//! # Claimed lengths
//! A body of ten bytes may claim a list of 2^64 - 1 elements. Nothing may be reserved for a claim. Memory is not
//! measured here (that takes an allocator of our own, and so unsafe code); instead the claims are so large that
//! honouring one ends the process: `Vec::with_capacity` of them panics with "capacity overflow" or aborts. That they
//! are refused shows that nothing was reserved, and so does the code: `wire` reads byte strings and texts as slices of
//! what has arrived, and grows a list only by elements that it has read, up to a limit.

mod common;

use bytes::Bytes;
use common::{answer, cases, record, request};
use dkvs_core::limits::{SIBLINGS_LEN_MAX, VERSION_VECTOR_LEN_MAX};
use dkvs_core::record::Record;
use dkvs_core::version::{Actor, Dot, VersionVector};
use dkvs_proto::envelope::{DatagramBuilder, Header, parse, parse_stream_preface};
use dkvs_proto::frame::{FRAME_HEADER_LEN, Frame, FrameHeader, Kind};
use dkvs_proto::limits::{BODY_LEN_MAX, LIST_LEN_MAX};
use dkvs_proto::message::client::{ClientAnswer, GetDone, PutBody};
use dkvs_proto::message::{Answer, Request};
use dkvs_proto::record::RecordError;
use dkvs_proto::{context, record as layout};
use proptest::prelude::*;
use proptest::sample::Index;

const REQUESTS: [Kind; 3] = [Kind::ClientRequest, Kind::ReplicaRequest, Kind::AdminRequest];
const ANSWERS: [Kind; 3] = [Kind::ClientAnswer, Kind::ReplicaAnswer, Kind::AdminAnswer];

/// Gives the bytes to every decoder there is.
fn decode_everything(bytes: &[u8]) {
    for kind in REQUESTS {
        assert!(Request::decode(kind, bytes).is_some(), "an error is an answer, too");
    }
    for kind in ANSWERS {
        assert!(Answer::decode(kind, bytes).is_some(), "an error is an answer, too");
    }
    let _ = parse(bytes);
    let _ = context::decode(b"k", bytes);
    let _ = layout::decode(&Bytes::copy_from_slice(bytes));
    if let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() {
        let _ = FrameHeader::parse(head);
    }
    if let Some((preface, _)) = bytes.split_first_chunk() {
        let _ = parse_stream_preface(preface);
    }
}

/// Damage: bytes changed, a piece cut out, a piece repeated.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Cut(Index, Index),
    Repeat(Index, Index),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = any::<Index>;
    let interesting =
        prop_oneof![Just(0xfb), Just(0xfc), Just(0xfd), Just(0xfe), Just(0xff), Just(0), any::<u8>()];
    let one = prop_oneof![
        3 => (at(), interesting).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Cut(from, to)),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ];
    prop::collection::vec(one, 1..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for damage in damage {
        let place = |index: &Index| index.index(bytes.len() + 1);
        match damage {
            Damage::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Set(..) => {}
            Damage::Cut(a, b) => {
                let (from, to) = (place(a).min(place(b)), place(a).max(place(b)));
                bytes.drain(from..to);
            }
            Damage::Repeat(a, b) => {
                let (from, to) = (place(a).min(place(b)), place(a).max(place(b)));
                let piece = bytes[from..to].to_vec();
                bytes.extend(piece);
            }
        }
    }
    bytes
}

/// The same bytes with the checksum that makes them pass the first gate.
fn with_crc(mut body: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&body);
    body.extend_from_slice(&crc.to_be_bytes());
    body
}

fn with_key_crc(key: &[u8], body: &[u8]) -> Vec<u8> {
    let crc = crc32fast::hash(&[&(key.len() as u64).to_be_bytes(), key, body].concat());
    [body, &crc.to_be_bytes()].concat()
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
        decode_everything(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_valid_checksum_are_survived(bytes in any::<Vec<u8>>(), version in 0..3_u8) {
        let bytes = [&[version][..], &bytes].concat();
        decode_everything(&with_crc(bytes.clone()));
        let _ = context::decode(b"k", &with_key_crc(b"k", &bytes));
        let mut builder = DatagramBuilder::new(Header { session: 1, proof: 2, oldest: 3 });
        builder.push_encoded(&bytes);
        let _ = parse(&builder.finish(0));
    }

    #[test]
    fn damaged_messages_are_survived(request in request(), answer in answer(), damage in damage()) {
        let (request, answer) = (request.encode(), answer.encode());
        decode_everything(&damaged(request.1, &damage));
        decode_everything(&damaged(answer.1.clone(), &damage));
        let mut builder = DatagramBuilder::new(Header { session: 1, proof: 2, oldest: 3 });
        builder.push(&Frame::answer(answer.0, 4, &answer.1));
        decode_everything(&damaged(builder.finish(0), &damage));
    }

    /// With a checksum that is made right again, only the structure is left to protect the reader. What passes must
    /// be the one encoding of what was read: no two byte strings are one record.
    #[test]
    fn a_damaged_record_is_refused_or_is_exactly_what_was_read(record in record(), damage in damage()) {
        let mut body = layout::to_vec(&record);
        body.truncate(body.len() - 4);
        let bytes = Bytes::from(with_crc(damaged(body, &damage)));
        if let Ok(read) = layout::decode(&bytes) {
            prop_assert!(read.siblings().iter().all(|sibling| read.vv().covers(sibling.dot)));
            prop_assert_eq!(layout::to_vec(&read), bytes.to_vec());
        }
    }

    #[test]
    fn a_damaged_context_is_refused_or_is_exactly_what_was_read(record in record(), damage in damage()) {
        let token = context::encode(b"k", record.vv());
        let body = damaged(token[..token.len() - 4].to_vec(), &damage);
        let bytes = with_key_crc(b"k", &body);
        if let Ok(read) = context::decode(b"k", &bytes) {
            prop_assert_eq!(context::encode(b"k", &read).to_vec(), bytes);
        }
    }

    /// A checksum finds every single flipped bit.
    #[test]
    fn a_flipped_bit_in_a_record_or_context_is_noticed(record in record(), bit in any::<Index>()) {
        let flip = |mut bytes: Vec<u8>| {
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        prop_assert_eq!(layout::decode(&flip(layout::to_vec(&record)).into()), Err(RecordError::Checksum));
        prop_assert!(context::decode(b"k", &flip(context::encode(b"k", record.vv()).to_vec())).is_err());
    }
}

/// A variable-length integer as the bodies have it, in its longest form.
fn claim(len: u64) -> Vec<u8> {
    [&[253][..], &len.to_le_bytes()].concat()
}

#[test]
fn a_claimed_length_reserves_nothing_and_is_refused() {
    // Everything up to a length, for each message that has one.
    #[rustfmt::skip]
    let requests: [(Kind, &str, &[u8]); 9] = [
        (Kind::ClientRequest, "put: key", &[0, 1]),
        (Kind::ClientRequest, "put: value", &[0, 1, 0, 0]),
        (Kind::ClientRequest, "put: context", &[0, 1, 0, 1, 1]),
        (Kind::ClientRequest, "get: key", &[1, 1]),
        (Kind::ReplicaRequest, "merge: key", &[0, 1]),
        (Kind::ReplicaRequest, "merge: record", &[0, 1, 0]),
        (Kind::ReplicaRequest, "fetch: key", &[1, 1]),
        (Kind::AdminRequest, "scan: after", &[2, 1]),
        (Kind::AdminRequest, "explain: key", &[3, 1]),
    ];
    #[rustfmt::skip]
    let answers: [(Kind, &str, &[u8]); 17] = [
        (Kind::ClientAnswer, "put: acked", &[0]),
        (Kind::ClientAnswer, "put: context", &[0, 0]),
        (Kind::ClientAnswer, "get: values", &[1]),
        (Kind::ClientAnswer, "get: answered", &[1, 0, 0, 0]),
        (Kind::ClientAnswer, "failed: too long", &[2, 0, 4]),
        (Kind::ClientAnswer, "failed: invalid", &[2, 0, 5]),
        (Kind::ClientAnswer, "failed: owners", &[2, 1, 2]),
        (Kind::ReplicaAnswer, "merged: missed", &[0]),
        (Kind::ReplicaAnswer, "record", &[2]),
        (Kind::AdminAnswer, "ring: servers", &[0]),
        (Kind::AdminAnswer, "ring: host", &[0, 1]),
        (Kind::AdminAnswer, "status: version", &[1]),
        (Kind::AdminAnswer, "page: entries", &[2]),
        (Kind::AdminAnswer, "page: next", &[2, 0, 1]),
        (Kind::AdminAnswer, "key: vv", &[4, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1]),
        (Kind::AdminAnswer, "key: siblings", &[4, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 0]),
        (Kind::AdminAnswer, "key: hints", &[4, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 0, 0]),
    ];
    for len in [1 << 20, 1 << 32, 1 << 45, 1 << 60, i64::MAX as u64, u64::MAX] {
        for followed_by in [0, 1, 64] {
            let body = |head: &[u8]| [head, &claim(len), &vec![0; followed_by]].concat();
            for (kind, what, head) in requests {
                assert!(Request::decode(kind, &body(head)).unwrap().is_err(), "{what} of {len}");
            }
            for (kind, what, head) in answers {
                assert!(Answer::decode(kind, &body(head)).unwrap().is_err(), "{what} of {len}");
            }
        }
    }
}

/// An element of one byte becomes one of dozens in memory. So a list is bounded in itself.
#[test]
fn a_list_longer_than_any_honest_one_is_refused() {
    let values = |len: usize| {
        let done = GetDone {
            values: vec![PutBody::Tombstone; len],
            siblings: 0,
            context: None,
            answered: Vec::new(),
            stand_ins: Vec::new(),
        };
        Answer::Client(ClientAnswer::Get(done)).encode()
    };
    let (kind, body) = values(LIST_LEN_MAX);
    assert!(Answer::decode(kind, &body).unwrap().is_ok());
    let (kind, body) = values(LIST_LEN_MAX + 1);
    assert!(Answer::decode(kind, &body).unwrap().is_err());
}

#[test]
fn a_claimed_body_longer_than_any_message_is_refused_before_it_is_awaited() {
    let header = |len: u32| {
        let mut head = [0; FRAME_HEADER_LEN];
        head[0] = Kind::ClientRequest as u8;
        head[9..].copy_from_slice(&len.to_be_bytes());
        FrameHeader::parse(&head)
    };
    let len_max = u32::try_from(BODY_LEN_MAX).unwrap();
    assert_eq!(header(len_max).unwrap().body_len, BODY_LEN_MAX);
    assert_eq!(header(len_max + 1), None);
    assert_eq!(header(u32::MAX), None);
}

#[test]
fn a_record_that_claims_more_than_the_limits_is_refused() {
    let claims = |entries: u16, siblings: u16| {
        let body = [&[1][..], &entries.to_be_bytes(), &siblings.to_be_bytes()].concat();
        layout::decode(&with_crc(body).into())
    };
    assert_eq!(claims(u16::MAX, 0), Err(RecordError::Malformed));
    assert_eq!(claims(0, u16::MAX), Err(RecordError::Malformed));
    assert_eq!(claims(0, 0), Ok(Record::new()));

    let vector = |len: usize| -> VersionVector {
        (1..=len as u64)
            .map(|incarnation| Dot { actor: Actor { incarnation, epoch: 1 }, counter: 1 })
            .collect()
    };
    let longest = Record::from_parts(vector(VERSION_VECTOR_LEN_MAX), Vec::new()).unwrap();
    assert!(layout::fits(&longest));
    assert_eq!(layout::decode(&layout::to_vec(&longest).into()).as_ref(), Ok(&longest));
    let longer = Record::from_parts(vector(VERSION_VECTOR_LEN_MAX + 1), Vec::new()).unwrap();
    assert!(!layout::fits(&longer));
    assert_eq!(layout::decode(&layout::to_vec(&longer).into()), Err(RecordError::Malformed));
    assert!(context::decode(b"k", &context::encode(b"k", longer.vv())).is_err());
    assert!(SIBLINGS_LEN_MAX <= usize::from(u16::MAX));
}

#[test]
fn a_record_of_another_layout_is_named() {
    let record = with_crc(vec![2, 0, 0, 0, 0]);
    assert_eq!(layout::decode(&record.into()), Err(RecordError::Version(2)));
}

/// Dots out of order, twice, with counter 0, or unknown to the vector: bytes that no encoder makes.
#[test]
fn a_record_that_is_not_in_its_one_order_is_refused() {
    let dot = |incarnation: u64, counter: u64| {
        [&incarnation.to_be_bytes()[..], &1_u32.to_be_bytes(), &counter.to_be_bytes()].concat()
    };
    let tombstone = |dot: Vec<u8>, flags: u8| [&dot[..], &[0; 24], &[flags]].concat();
    let record = |entries: &[Vec<u8>], siblings: &[Vec<u8>]| {
        let count = |list: &[Vec<u8>]| u16::try_from(list.len()).unwrap().to_be_bytes();
        let body =
            [&[1][..], &count(entries), &count(siblings), &entries.concat(), &siblings.concat()].concat();
        layout::decode(&with_crc(body).into()).map(drop)
    };
    let (one, two) = (|| dot(1, 1), || dot(2, 1));
    assert_eq!(record(&[one(), two()], &[tombstone(one(), 1), tombstone(two(), 1)]), Ok(()));
    let refused = [
        record(&[two(), one()], &[]),
        record(&[one(), one()], &[]),
        record(&[dot(1, 0)], &[]),
        record(&[one()], &[tombstone(two(), 1)]),
        record(&[one()], &[tombstone(dot(1, 2), 1)]),
        record(&[one()], &[tombstone(one(), 1), tombstone(one(), 1)]),
        record(&[one(), two()], &[tombstone(two(), 1), tombstone(one(), 1)]),
        record(&[one()], &[tombstone(one(), 5)]),
        record(&[one()], &[tombstone(one(), 2)]),
    ];
    assert_eq!(refused, [Err(RecordError::Malformed); 9]);
}

/// A vector with any put covers every initial value and so never names one: there is one encoding of a vector.
#[test]
fn a_vector_that_names_initial_values_beside_puts_is_refused() {
    let initial = Dot { actor: Actor::initial(b"k", b"v"), counter: 1 };
    let mut body = vec![1, 0, 2];
    layout::write_dot(Dot { actor: Actor { incarnation: 0, epoch: 1 }, counter: 1 }, &mut body);
    layout::write_dot(initial, &mut body);
    assert!(context::decode(b"k", &with_key_crc(b"k", &body)).is_err());
}
