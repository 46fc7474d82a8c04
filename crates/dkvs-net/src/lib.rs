//! dkvs-net
