//! What a client may be told.

use std::time::Duration;

use dkvs_core::limits::VALUE_LEN_MAX_DEFAULT;
use dkvs_net::EndpointConfig;

/// Settings of a client. Everything has a default.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Copies of a key; 3, or as many as there are servers, if `None`.
    pub n: Option<usize>,
    /// Owners a read waits for; a majority of `n` if `None`.
    pub r: Option<usize>,
    /// Owners a write waits for; a majority of `n` if `None`.
    pub w: Option<usize>,
    /// Whether other servers may stand in for owners that are down, and count. If `None`, what the cluster says where the
    /// client was told the ring by a server, else not.
    pub sloppy: Option<bool>,
    /// How long an operation may take, everything included.
    pub timeout: Duration,
    /// A server that shows no sign of life for this long, or for a quarter of the timeout, is passed over for the next.
    /// A put by datagram has to be begun within this time: on paths whose round trip comes near to it, raise it.
    pub silence_max: Duration,
    /// Longest value sent, in bytes. The servers have their own limit.
    pub value_len_max: usize,
    /// The transport.
    pub endpoint: EndpointConfig,
    /// Where randomness comes from; from the operating system if `None`. Two clients must never share a seed, or
    /// their operations could be taken for each other's.
    pub seed: Option<u64>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            n: None,
            r: None,
            w: None,
            sloppy: None,
            timeout: Duration::from_secs(1),
            silence_max: Duration::from_millis(250),
            value_len_max: VALUE_LEN_MAX_DEFAULT,
            endpoint: EndpointConfig::default(),
            seed: None,
        }
    }
}
