//! dkvs
