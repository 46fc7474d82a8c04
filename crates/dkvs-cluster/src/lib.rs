//! dkvs-cluster
