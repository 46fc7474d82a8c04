//! What a client has seen of a key.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// What a client has seen of a key, to be handed back with a put or delete that follows from it. Opaque, bound to the
/// key, and safe to store: as text it is hexadecimal.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Context(pub(crate) Bytes);

impl Context {
    /// Whether nothing was there to be seen: the key was never written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes a server made, for tools that know the protocol; empty when nothing was there to be seen.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({self})")
    }
}

/// The text is not a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a context is an even number of hexadecimal digits, as a get prints it")]
pub struct ContextParseError;

impl FromStr for Context {
    type Err = ContextParseError;

    fn from_str(text: &str) -> Result<Self, ContextParseError> {
        if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ContextParseError);
        }
        let byte = |pair: &[u8]| {
            let digits = std::str::from_utf8(pair).map_err(|_| ContextParseError)?;
            u8::from_str_radix(digits, 16).map_err(|_| ContextParseError)
        };
        text.as_bytes().chunks(2).map(byte).collect::<Result<Vec<u8>, _>>().map(|bytes| Self(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_being_text() {
        let context = Context(Bytes::from_static(&[0, 1, 0xab, 0xff]));
        assert_eq!(context.to_string(), "0001abff");
        assert_eq!("0001ABff".parse(), Ok(context));
        for bad in ["0", "0g", "+1", "é", "0x00"] {
            assert_eq!(bad.parse::<Context>(), Err(ContextParseError), "{bad}");
        }
    }
}
