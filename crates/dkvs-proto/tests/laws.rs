//! What is encoded reads back, whole and only whole.

mod common;

use bytes::Bytes;
use common::{answer, cases, record, request, vector};
use dkvs_proto::envelope::{DatagramBuilder, Header, parse};
use dkvs_proto::frame::{FRAME_HEADER_LEN, Frame, FrameHeader, Kind, with_expiry};
use dkvs_proto::message::{Answer, Request};
use dkvs_proto::{codec, context, record as layout};
use proptest::prelude::*;

const KINDS: [Kind; 10] = [
    Kind::ClientRequest,
    Kind::ReplicaRequest,
    Kind::AdminRequest,
    Kind::ClientAnswer,
    Kind::ReplicaAnswer,
    Kind::AdminAnswer,
    Kind::Challenge,
    Kind::Working,
    Kind::UseStream,
    Kind::Overloaded,
];

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_request_reads_back(request in request()) {
        let (kind, body) = request.encode();
        prop_assert!(kind.is_request());
        prop_assert_eq!(Request::decode(kind, &body), Some(Ok(request)));
        prop_assert_eq!(Answer::decode(kind, &body), None);
    }

    #[test]
    fn an_answer_reads_back(answer in answer()) {
        let (kind, body) = answer.encode();
        prop_assert!(!kind.is_request());
        prop_assert_eq!(Answer::decode(kind, &body), Some(Ok(answer)));
        prop_assert_eq!(Request::decode(kind, &body), None);
    }

    #[test]
    fn a_record_reads_back_and_equal_records_are_equal_bytes(record in record()) {
        let bytes = Bytes::from(layout::to_vec(&record));
        let read = layout::decode(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&record));
        prop_assert_eq!(layout::to_vec(&read.unwrap()), bytes.to_vec());
        prop_assert!(layout::fits(&record));
    }

    #[test]
    fn a_context_reads_back_with_its_own_key_only(vv in vector(), key in any::<Vec<u8>>(), other in any::<Vec<u8>>()) {
        let token = context::encode(&key, &vv);
        prop_assert_eq!(context::decode(&key, &token), Ok(vv));
        if key != other {
            prop_assert!(context::decode(&other, &token).is_err());
        }
    }

    #[test]
    fn a_body_cut_short_or_with_anything_behind_it_is_refused(
        request in request(), answer in answer(), surplus in 1..4_usize,
    ) {
        let (kind, mut body) = request.encode();
        for len in 0..body.len() {
            prop_assert!(Request::decode(kind, &body[..len]).unwrap().is_err(), "{len} of {} bytes", body.len());
        }
        body.extend(vec![0; surplus]);
        prop_assert_eq!(Request::decode(kind, &body), Some(Err(codec::CodecError::Trailing(surplus))));
        let (kind, mut body) = answer.encode();
        for len in 0..body.len() {
            prop_assert!(Answer::decode(kind, &body[..len]).unwrap().is_err(), "{len} of {} bytes", body.len());
        }
        body.extend(vec![0; surplus]);
        prop_assert_eq!(Answer::decode(kind, &body), Some(Err(codec::CodecError::Trailing(surplus))));
    }

    #[test]
    fn a_record_or_a_context_cut_short_or_with_anything_behind_it_is_refused(record in record()) {
        let bytes = Bytes::from(layout::to_vec(&record));
        let token = context::encode(b"k", record.vv());
        for len in 0..bytes.len() {
            prop_assert!(layout::decode(&bytes.slice(..len)).is_err());
        }
        for len in 0..token.len() {
            prop_assert!(context::decode(b"k", &token[..len]).is_err());
        }
        prop_assert!(layout::decode(&[&bytes[..], &[0]].concat().into()).is_err());
        prop_assert!(context::decode(b"k", &[&token[..], &[0]].concat()).is_err());
    }

    #[test]
    fn frames_come_out_of_a_datagram_as_they_went_in(
        session in any::<u64>(), proof in any::<u64>(), oldest in any::<u64>(), padding in 0..40_usize,
        frames in prop::collection::vec((0..KINDS.len(), any::<u64>(), any::<u64>(), any::<Vec<u8>>()), 0..5),
    ) {
        let header = Header { session, proof, oldest };
        let mut builder = DatagramBuilder::new(header);
        let frames: Vec<Frame<'_>> =
            frames.iter().map(|(kind, id, expires, body)| frame(KINDS[*kind], *id, *expires, body)).collect();
        frames.iter().for_each(|frame| builder.push(frame));
        let len = builder.len();
        prop_assert_eq!(builder.is_empty(), frames.is_empty());
        let datagram = builder.finish(len + padding);
        prop_assert_eq!(datagram.len(), len + padding);
        prop_assert_eq!(parse(&datagram), Ok((header, frames)));
    }

    #[test]
    fn a_frame_header_reads_back(
        kind in 0..KINDS.len(), id in any::<u64>(), expires in any::<u64>(), body in any::<Vec<u8>>(),
    ) {
        let frame = frame(KINDS[kind], id, 0, &body);
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        if frame.kind.is_request() {
            let mut other = Vec::new();
            Frame { expires, ..frame }.write(&mut other);
            prop_assert_eq!(&*with_expiry(&bytes, expires), &other[..]);
        }
        prop_assert_eq!(bytes.len(), frame.len());
        let head: [u8; FRAME_HEADER_LEN] = bytes[..FRAME_HEADER_LEN].try_into().unwrap();
        let expected = FrameHeader { kind: frame.kind, id, body_len: body.len() };
        prop_assert_eq!(FrameHeader::parse(&head), Some(expected));
    }
}

/// Only requests expire.
fn frame(kind: Kind, id: u64, expires: u64, body: &[u8]) -> Frame<'_> {
    Frame { kind, id, expires: if kind.is_request() { expires } else { 0 }, body }
}

#[test]
fn notices_are_neither_requests_nor_answers() {
    for kind in [Kind::Challenge, Kind::Working, Kind::UseStream, Kind::Overloaded] {
        assert_eq!(Request::decode(kind, &[]), None, "{kind:?}");
        assert_eq!(Answer::decode(kind, &[]), None, "{kind:?}");
        assert!(!kind.is_request(), "{kind:?}");
    }
}
