//! One message on its way: kind, request id, body. The same bytes head it in a datagram and on a stream.
//!
//! ```text
//!   0      1                  9              13                21
//!   | kind | request id (u64) | length (u32) | expiry (u64)    | body ...      a request
//!   | kind | request id (u64) | length (u32) | body ...                        an answer or a notice
//! ```
//! Integers are big-endian; the length is the body's.
//!
//! The *expiry* is the moment after which nobody waits for the request's effect from this receiver, or counts on its
//! absence: it must not be begun any more. It is read on the receiver's own clock, which a challenge tells, so that no
//! two clocks have to agree. 0 stands for "never". A repetition of a request may carry a later one. On the stream lane only
//! what a server asks of another expires; in other requests the field holds what a datagram's envelope says of them all: the oldest id still waited for.

use std::ops::Range;
use std::sync::Arc;

use crate::limits::BODY_LEN_MAX;
use crate::read::Reader;

/// Bytes of a frame's kind, id and length.
pub const FRAME_HEADER_LEN: usize = 13;

/// Bytes of expiry that follow them in a request.
pub const EXPIRY_LEN: usize = 8;

/// Where a request's expiry stands.
const EXPIRY: Range<usize> = FRAME_HEADER_LEN..FRAME_HEADER_LEN + EXPIRY_LEN;

/// What a body is. Answers have the top bit set, notices of the transport the top two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client asks a coordinator: [`crate::message::client::ClientRequest`].
    ClientRequest = 0x01,
    /// A coordinator asks a replica: [`crate::message::replica::ReplicaRequest`].
    ReplicaRequest = 0x02,
    /// Somebody asks a server about itself: [`crate::message::admin::AdminRequest`].
    AdminRequest = 0x03,
    /// The coordinator's answer.
    ClientAnswer = 0x81,
    /// The replica's answer.
    ReplicaAnswer = 0x82,
    /// The server's answer about itself.
    AdminAnswer = 0x83,
    /// "Prove that you are at this address": the envelope's proof is the one to use. On a stream, where there is nothing to prove: "your
    /// request has expired". No body; nothing was done.
    Challenge = 0xC0,
    /// "Your request is being worked on": the answer to a retransmission that came too early. No body.
    Working = 0xC1,
    /// "The answer does not fit a datagram: ask again on the stream lane." No body.
    UseStream = 0xC2,
    /// "Too much to do": nothing was done, and nothing will be. No body.
    Overloaded = 0xC3,
}

impl Kind {
    /// Marks the rest of a datagram as padding.
    pub const PADDING: u8 = 0;

    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{
            AdminAnswer, AdminRequest, Challenge, ClientAnswer, ClientRequest, Overloaded, ReplicaAnswer,
            ReplicaRequest, UseStream, Working,
        };
        [
            ClientRequest,
            ReplicaRequest,
            AdminRequest,
            ClientAnswer,
            ReplicaAnswer,
            AdminAnswer,
            Challenge,
            Working,
            UseStream,
            Overloaded,
        ]
        .into_iter()
        .find(|&kind| kind as u8 == byte)
    }

    /// Whether somebody asks for something, as opposed to answering.
    #[must_use]
    pub fn is_request(self) -> bool {
        match self {
            Self::ClientRequest | Self::ReplicaRequest | Self::AdminRequest => true,
            Self::ClientAnswer
            | Self::ReplicaAnswer
            | Self::AdminAnswer
            | Self::Challenge
            | Self::Working
            | Self::UseStream
            | Self::Overloaded => false,
        }
    }
}

/// A message in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: Kind,
    /// Chosen by whoever asks, unique within its session; the answer repeats it.
    pub id: u64,
    /// Of a request: the receiver's clock after which it must not be begun; 0 for never. Otherwise 0, and not sent.
    pub expires: u64,
    /// The message, encoded by [`crate::codec`].
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// An answer or a notice.
    #[must_use]
    pub fn answer(kind: Kind, id: u64, body: &'a [u8]) -> Self {
        Self { kind, id, expires: 0, body }
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn len(&self) -> usize {
        let expiry = if self.kind.is_request() { EXPIRY_LEN } else { 0 };
        FRAME_HEADER_LEN + expiry + self.body.len()
    }

    /// Never: a frame has a header. (Here because `len` is.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends the frame's bytes.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_LEN_MAX`]; whoever builds a message checks its parts first.
    pub fn write(&self, into: &mut Vec<u8>) {
        assert!(self.body.len() <= BODY_LEN_MAX, "a body of {} bytes cannot be sent", self.body.len());
        let len = u32::try_from(self.body.len()).expect("BODY_LEN_MAX fits 32 bits");
        into.push(self.kind as u8);
        into.extend_from_slice(&self.id.to_be_bytes());
        into.extend_from_slice(&len.to_be_bytes());
        if self.kind.is_request() {
            into.extend_from_slice(&self.expires.to_be_bytes());
        }
        into.extend_from_slice(self.body);
    }
}

/// The bytes of a request, as [`Frame::write`] made them, with another expiry.
#[must_use]
pub fn with_expiry(request: &[u8], expires: u64) -> Arc<[u8]> {
    let mut bytes: Arc<[u8]> = request.into();
    if let Some(field) = Arc::get_mut(&mut bytes).and_then(|bytes| bytes.get_mut(EXPIRY)) {
        field.copy_from_slice(&expires.to_be_bytes());
    }
    bytes
}

/// The head of a frame, as read from a stream before its body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body will be.
    pub kind: Kind,
    /// The request's id.
    pub id: u64,
    /// Bytes of body to follow, at most [`BODY_LEN_MAX`].
    pub body_len: usize,
}

impl FrameHeader {
    /// Reads a header. `None` when the kind is unknown or the body too long.
    #[must_use]
    pub fn parse(bytes: &[u8; FRAME_HEADER_LEN]) -> Option<Self> {
        Self::read(&mut Reader(bytes))
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let kind = Kind::from_byte(reader.u8()?)?;
        let id = reader.u64()?;
        let body_len = usize::try_from(reader.u32()?).ok()?;
        (body_len <= BODY_LEN_MAX).then_some(Self { kind, id, body_len })
    }
}
