//! A `servers.txt`: refused with a message, or read into a list whose text reads back as the same list.

#![no_main]

use dkvs_core::servers::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text, "servers.txt") {
        Ok(list) => assert_eq!(parse(&list.to_string(), "again").as_ref(), Ok(&list)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
