//! A datagram: a header, then as many messages as fit.
//!
//! ```text
//!    0        2         3       4        8             16          24           32
//!   | "DK"  | version | flags | crc-32 | session     | proof     | oldest id  | frames ... | 0 padding ...
//! ```
//! Integers are big-endian. The CRC covers every byte after it: the 16-bit checksum of UDP lets one damaged datagram
//! in 65,536 through.
//!
//! - `session` is drawn at random by each endpoint when it starts. With a request's id it names the request for good,
//!   whatever address and lane it comes by.
//! - `proof` is a number that only a server can make and only the holder of the sender's address can have received.
//!   A request without a valid one is answered by a [`Kind::Challenge`], which is never longer than the datagram that
//!   provoked it: nobody can aim a server's answers at a third party. See RFC 9000 §8 for the idea.
//! - `oldest` is the lowest request id of this session that still awaits an answer from this destination. Answers to
//!   older requests need not be remembered any longer (Lee et al. 2015, *RIFL*, §3). A challenge waits for nothing: there the
//!   field holds the server's clock, by which the requests that follow expire ([`crate::frame`]).
//!
//! What it leaves out: secrecy and authenticity. Anybody on the path can read and forge.

use std::fmt;

use crate::frame::{Frame, FrameHeader, Kind};
use crate::read::Reader;

/// Bytes before the first frame.
pub const ENVELOPE_HEADER_LEN: usize = 32;

/// Bytes that open a stream: the envelope's first 16, with [`STREAM_FLAG`] set.
pub const STREAM_PREFACE_LEN: usize = 16;

/// The version of the protocol.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 2] = *b"DK";
const DATAGRAM_FLAGS: u8 = 0;
/// The flags byte of a stream's preface.
pub const STREAM_FLAG: u8 = 1;
const CRC_END: usize = 8;

/// What an envelope says besides its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's session.
    pub session: u64,
    /// Proof that the sender is at its address, as the receiver issued it; 0 when it has none. In a challenge: the
    /// proof to use from now on.
    pub proof: u64,
    /// The lowest request id still awaiting an answer from the receiver. In a challenge: the sender's clock, in
    /// microseconds since a moment of its own choice.
    pub oldest: u64,
}

/// Why bytes are not a datagram of ours. It is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Shorter than its own structure says.
    #[error("too short")]
    Truncated,
    /// It does not start with "DK".
    #[error("not a DKVS datagram")]
    Magic,
    /// Another version of the protocol.
    #[error("protocol version {0}, this is {VERSION}")]
    Version(u8),
    /// Flags this version does not know.
    #[error("unknown flags {0:#04x}")]
    Flags(u8),
    /// Damaged on the way.
    #[error("checksum mismatch")]
    Checksum,
    /// A frame of unknown kind, or longer than the datagram.
    #[error("malformed frame")]
    Frame,
}

/// A datagram under construction.
#[derive(Clone)]
pub struct DatagramBuilder {
    bytes: Vec<u8>,
}

impl DatagramBuilder {
    /// A datagram without frames.
    #[must_use]
    pub fn new(header: Header) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[MAGIC[0], MAGIC[1], VERSION, DATAGRAM_FLAGS, 0, 0, 0, 0]);
        for field in [header.session, header.proof, header.oldest] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        Self { bytes }
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &Frame<'_>) {
        frame.write(&mut self.bytes);
    }

    /// Appends bytes that already are a frame, as [`Frame::write`] made them.
    pub fn push_encoded(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no frames yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == ENVELOPE_HEADER_LEN
    }

    /// The datagram, padded to at least `len_min` bytes, with its checksum.
    #[must_use]
    pub fn finish(mut self, len_min: usize) -> Vec<u8> {
        if self.bytes.len() < len_min {
            self.bytes.resize(len_min, Kind::PADDING);
        }
        seal(&mut self.bytes);
        self.bytes
    }
}

impl fmt::Debug for DatagramBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatagramBuilder({} bytes)", self.bytes.len())
    }
}

fn seal(bytes: &mut [u8]) {
    let crc = crc32fast::hash(&bytes[CRC_END..]);
    bytes[CRC_END - 4..CRC_END].copy_from_slice(&crc.to_be_bytes());
}

/// Reads a datagram: its header, and its frames in order. One malformed frame spoils the datagram.
///
/// # Errors
/// Anything that is not a datagram of this version.
pub fn parse(datagram: &[u8]) -> Result<(Header, Vec<Frame<'_>>), EnvelopeError> {
    let mut reader = opened(datagram, DATAGRAM_FLAGS)?;
    let mut field = || reader.u64().ok_or(EnvelopeError::Truncated);
    let header = Header { session: field()?, proof: field()?, oldest: field()? };
    let mut frames = Vec::new();
    while reader.0.first().is_some_and(|&kind| kind != Kind::PADDING) {
        frames.push(read_frame(&mut reader).ok_or(EnvelopeError::Frame)?);
    }
    Ok((header, frames))
}

fn read_frame<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let header = FrameHeader::read(reader)?;
    let expires = if header.kind.is_request() { reader.u64()? } else { 0 };
    Some(Frame { kind: header.kind, id: header.id, expires, body: reader.bytes(header.body_len)? })
}

/// Checks magic, version, flags and checksum; what follows them is left in the reader.
fn opened(bytes: &[u8], flags: u8) -> Result<Reader<'_>, EnvelopeError> {
    let mut reader = Reader(bytes);
    if reader.bytes(2).ok_or(EnvelopeError::Truncated)? != MAGIC {
        return Err(EnvelopeError::Magic);
    }
    match reader.u8().ok_or(EnvelopeError::Truncated)? {
        VERSION => {}
        other => return Err(EnvelopeError::Version(other)),
    }
    match reader.u8().ok_or(EnvelopeError::Truncated)? {
        known if known == flags => {}
        other => return Err(EnvelopeError::Flags(other)),
    }
    let crc = reader.u32().ok_or(EnvelopeError::Truncated)?;
    if crc == crc32fast::hash(reader.0) { Ok(reader) } else { Err(EnvelopeError::Checksum) }
}

/// The bytes with which a connecting endpoint opens a stream.
#[must_use]
pub fn stream_preface(session: u64) -> [u8; STREAM_PREFACE_LEN] {
    let mut bytes = [0; STREAM_PREFACE_LEN];
    bytes[..2].copy_from_slice(&MAGIC);
    bytes[2] = VERSION;
    bytes[3] = STREAM_FLAG;
    bytes[CRC_END..].copy_from_slice(&session.to_be_bytes());
    seal(&mut bytes);
    bytes
}

/// Reads a stream's preface: the session of the endpoint that connected.
///
/// # Errors
/// Anything that is not a preface of this version.
pub fn parse_stream_preface(bytes: &[u8; STREAM_PREFACE_LEN]) -> Result<u64, EnvelopeError> {
    opened(bytes, STREAM_FLAG)?.u64().ok_or(EnvelopeError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { session: 0x0102_0304_0506_0708, proof: 0, oldest: 7 };

    fn datagram() -> Vec<u8> {
        let mut builder = DatagramBuilder::new(HEADER);
        builder.push(&Frame { kind: Kind::AdminRequest, id: 7, expires: 1, body: &[1] });
        builder.push(&Frame::answer(Kind::Working, 9, &[]));
        builder.finish(80)
    }

    #[test]
    #[rustfmt::skip]
    fn the_layout_is_the_documented_one() {
        let hex: String = datagram().iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "444b", "01", "00", "5b1eaed4",
            "0102030405060708", "0000000000000000", "0000000000000007",
            "03", "0000000000000007", "00000001", "0000000000000001", "01",
            "c1", "0000000000000009", "00000000",
            "00000000000000000000000000",
        );
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_datagram_reads_back() {
        let bytes = datagram();
        let (header, frames) = parse(&bytes).unwrap();
        assert_eq!(header, HEADER);
        let ids: Vec<(Kind, u64, usize)> = frames.iter().map(|f| (f.kind, f.id, f.body.len())).collect();
        assert_eq!(ids, [(Kind::AdminRequest, 7, 1), (Kind::Working, 9, 0)]);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = datagram();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = datagram();
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn other_versions_and_flags_are_named() {
        let mut bytes = datagram();
        bytes[2] = 9;
        assert_eq!(parse(&bytes), Err(EnvelopeError::Version(9)));
        let mut bytes = datagram();
        bytes[3] = 0x80;
        assert_eq!(parse(&bytes), Err(EnvelopeError::Flags(0x80)));
        assert_eq!(parse(b"GET / HTTP/1.1"), Err(EnvelopeError::Magic));
    }

    #[test]
    fn a_frame_longer_than_its_datagram_spoils_it() {
        let mut builder = DatagramBuilder::new(HEADER);
        builder.push_encoded(&[Kind::AdminRequest as u8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1]);
        assert_eq!(parse(&builder.finish(0)), Err(EnvelopeError::Frame));
        let mut builder = DatagramBuilder::new(HEADER);
        builder.push_encoded(&[0x7f; 20]);
        assert_eq!(parse(&builder.finish(0)), Err(EnvelopeError::Frame));
    }

    #[test]
    fn a_stream_preface_reads_back_and_is_no_datagram() {
        let preface = stream_preface(42);
        assert_eq!(parse_stream_preface(&preface), Ok(42));
        assert!(parse(&preface).is_err());
        let mut damaged = preface;
        damaged[15] ^= 1;
        assert_eq!(parse_stream_preface(&damaged), Err(EnvelopeError::Checksum));
    }
}
