//! A context that a client hands back. There is one encoding of each: what can be read is written the same.

#![no_main]

use dkvs_proto::context;
use libfuzzer_sys::fuzz_target;

const KEY: &[u8] = b"k";

fn read(token: &[u8]) {
    if let Ok(vv) = context::decode(KEY, token) {
        assert_eq!(context::encode(KEY, &vv), token);
    }
}

// Once as it is, once with the checksum that makes it pass.
fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let checked = [&(KEY.len() as u64).to_be_bytes(), KEY, bytes].concat();
    read(&[bytes, &crc32fast::hash(&checked).to_be_bytes()].concat());
});
