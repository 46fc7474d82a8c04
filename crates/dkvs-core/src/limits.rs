//! Limits that every part of the system agrees on. Each is named with its unit; over it is an error that names it.

/// Longest key, in bytes. A key shares its datagram with everything else a request says and is repeated in every
/// replica's store key, so it is kept well under the 64 KiB that storage engines and UDP both stop at.
pub const KEY_LEN_MAX: usize = 32_768;

/// Longest value unless a server is configured otherwise, in bytes. A value is read, merged and sent whole.
pub const VALUE_LEN_MAX_DEFAULT: usize = 8 * 1024 * 1024;

/// The largest record a put may create, in bytes of values over all its siblings. A put that would pass it is
/// refused until somebody resolves the siblings; merges between replicas are never refused.
pub const RECORD_LEN_MAX: usize = 64 * 1024 * 1024;

/// Longest time after which a value may be asked to expire, in milliseconds: 100 years. Far beyond what helps anybody, and
/// small enough to be added to a wall clock.
pub const TTL_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1_000;

/// Most entries a version vector may have when it comes from outside (a context, a message). Each entry is one
/// incarnation or epoch of one server on one key; a healthy key has a handful.
pub const VERSION_VECTOR_LEN_MAX: usize = 4_096;

/// Most siblings a record may have when it comes from outside.
pub const SIBLINGS_LEN_MAX: usize = 4_096;

const _: () = assert!(VALUE_LEN_MAX_DEFAULT <= RECORD_LEN_MAX, "one value must fit a record");
const _: () =
    assert!(KEY_LEN_MAX < u16::MAX as usize, "a key and its partition must fit an engine's 64 KiB key");
