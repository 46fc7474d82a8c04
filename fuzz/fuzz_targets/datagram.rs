//! A datagram from anybody: the envelope, its frames, and the message in each.
//!
//! A checksum would stop nearly all that a fuzzer makes, so each input is read twice: as it is, and as the rest of a
//! datagram behind a checksum that is right.

#![no_main]

use dkvs_proto::envelope::{DatagramBuilder, Header, parse};
use dkvs_proto::message::{Answer, Request};
use libfuzzer_sys::fuzz_target;

fn read(datagram: &[u8]) {
    let Ok((_, frames)) = parse(datagram) else { return };
    for frame in frames {
        if let Some(Ok(request)) = Request::decode(frame.kind, frame.body) {
            let (kind, body) = request.encode();
            assert_eq!(
                Request::decode(kind, &body),
                Some(Ok(request)),
                "what was read can be written and read again"
            );
        }
        if let Some(Ok(answer)) = Answer::decode(frame.kind, frame.body) {
            let (kind, body) = answer.encode();
            assert_eq!(
                Answer::decode(kind, &body),
                Some(Ok(answer)),
                "what was read can be written and read again"
            );
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let mut sealed = DatagramBuilder::new(Header { session: 1, proof: 2, oldest: 3 });
    sealed.push_encoded(bytes);
    read(&sealed.finish(0));
});
