//! Limits of the wire.

use dkvs_core::limits::{RECORD_LEN_MAX, SIBLINGS_LEN_MAX};
use dkvs_core::servers::SERVERS_MAX;

/// Datagram budget unless configured otherwise, in bytes: passes every path with an MTU of 1,280 (IPv6's minimum)
/// with room for the headers, so that no IP fragment is ever relied on.
pub const DATAGRAM_LEN_DEFAULT: usize = 1_200;

/// Smallest datagram budget that may be configured, in bytes: what every IPv4 host must accept, less headers.
pub const DATAGRAM_LEN_MIN: usize = 508;

/// Largest datagram budget, in bytes: the most UDP over IPv4 carries.
pub const DATAGRAM_LEN_MAX: usize = 65_507;

/// Longest body of a message on the stream lane, in bytes. Merges between replicas are never refused, and several
/// coordinators may each have grown a key to its limit, hence the factor.
pub const BODY_LEN_MAX: usize = 4 * RECORD_LEN_MAX;

/// Most elements of a list in a message: servers, siblings, dots, the entries of a page. An element of one byte
/// takes dozens in memory, so that the length of the body alone would not bound what a reader allocates.
pub const LIST_LEN_MAX: usize = 65_536;

const _: () = assert!(SIBLINGS_LEN_MAX <= LIST_LEN_MAX, "all siblings of a record must fit an answer");
const _: () = assert!(SERVERS_MAX <= LIST_LEN_MAX, "all servers of a ring must fit an answer");
const _: () = assert!(DATAGRAM_LEN_MIN <= DATAGRAM_LEN_DEFAULT && DATAGRAM_LEN_DEFAULT <= DATAGRAM_LEN_MAX);
const _: () = assert!(BODY_LEN_MAX <= u32::MAX as usize, "a body's length travels in 32 bits");
