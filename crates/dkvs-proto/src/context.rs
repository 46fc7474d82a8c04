//! What a client has seen, in a token it hands back: a version vector bound to its key.
//!
//! ```text
//!   u8 version, 1 | u16 entries | per entry: u64 incarnation, u32 epoch, u64 counter | u32 checksum
//! ```
//! The checksum is a CRC-32 of the key's length, the key and everything before it in the token: a token damaged or
//! used with another key is refused instead of silently covering what its holder never saw.
//!
//! What it leaves out: a checksum stops accidents, not forgers. A client that makes up a huge counter can hide
//! writes; only a secret shared by the servers can prevent that.

use bytes::Bytes;
use dkvs_core::limits::VERSION_VECTOR_LEN_MAX;
use dkvs_core::version::VersionVector;

use crate::read::Reader;
use crate::record::{read_vector, write_dot};

const TOKEN_VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 4;

/// The token is damaged, of another version, or belongs to another key. Nothing was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the context is damaged or belongs to another key; read the key again for a fresh one")]
pub struct ContextError;

/// The token that says "has seen `vv`" of `key`.
#[must_use]
pub fn encode(key: &[u8], vv: &VersionVector) -> Bytes {
    let mut token = vec![TOKEN_VERSION];
    let entries = u16::try_from(vv.len()).expect("a vector within its limit");
    token.extend_from_slice(&entries.to_be_bytes());
    vv.iter().for_each(|dot| write_dot(dot, &mut token));
    let checksum = checksum(key, &token);
    token.extend_from_slice(&checksum.to_be_bytes());
    token.into()
}

/// What the token's holder has seen of `key`.
///
/// # Errors
/// [`ContextError`] for anything that [`encode`] did not make for this key.
pub fn decode(key: &[u8], token: &[u8]) -> Result<VersionVector, ContextError> {
    let body_len = token.len().checked_sub(CHECKSUM_LEN).ok_or(ContextError)?;
    let (body, crc) = token.split_at(body_len);
    if crc != checksum(key, body).to_be_bytes() {
        return Err(ContextError);
    }
    read(&mut Reader(body)).ok_or(ContextError)
}

fn read(reader: &mut Reader<'_>) -> Option<VersionVector> {
    let version = reader.u8()?;
    let entries = usize::from(reader.u16()?);
    if version != TOKEN_VERSION || entries > VERSION_VECTOR_LEN_MAX {
        return None;
    }
    let vv = read_vector(reader, entries)?;
    reader.0.is_empty().then_some(vv)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_be_bytes());
    crc.update(key);
    crc.update(body);
    crc.finalize()
}
