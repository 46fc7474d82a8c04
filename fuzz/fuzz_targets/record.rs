//! A record, as it lies on a disk or in a message. There is one encoding of each: what can be read is written the same.

#![no_main]

use bytes::Bytes;
use dkvs_proto::record;
use libfuzzer_sys::fuzz_target;

fn read(bytes: &Bytes) {
    if let Ok(read) = record::decode(bytes) {
        assert_eq!(record::to_vec(&read), bytes.to_vec());
        let mut merged = read.clone();
        merged.merge(&read);
        assert_eq!(merged, read);
    }
}

// Once as it is, once with the checksum that makes it pass.
fuzz_target!(|bytes: &[u8]| {
    read(&Bytes::copy_from_slice(bytes));
    let sealed = [bytes, &crc32fast::hash(bytes).to_be_bytes()].concat();
    read(&sealed.into());
});
