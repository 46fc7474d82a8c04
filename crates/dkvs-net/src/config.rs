//! The transport's limits and times.

use std::time::Duration;

use dkvs_proto::limits::{BODY_LEN_MAX, DATAGRAM_LEN_DEFAULT, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN};

/// How an endpoint behaves. The defaults suit servers and clients in one data centre.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Longest datagram sent, in bytes. Longer messages take the stream lane. Datagrams of any length are received.
    pub datagram_len_max: usize,
    /// Calls waiting for their answers at one time; one more is refused as overloaded.
    pub calls_max: usize,
    /// Requests of clients being served at one time, and as many of other servers; one more is answered as overloaded.
    pub requests_max: usize,
    /// Messages waiting to be sent; one more is dropped, as the network might.
    pub outbox_len_max: usize,
    /// Callers whose answers are remembered so that nothing is executed twice.
    pub sessions_max: usize,
    /// Streams served at one time. If all are taken, one that waits for its next request gives way to a new one.
    pub streams_max: usize,
    /// Bytes of requests that streams may hold at one time, and of answers that callers may be reading from streams; one more
    /// waits.
    pub stream_bytes_max: usize,
    /// First wait before a request is sent again. It must exceed a usual answer's time, a disk's flush included.
    pub retransmit_min: Duration,
    /// Longest wait before a request is sent again; the waits double up to it.
    pub retransmit_max: Duration,
    /// How long a stream may stay without traffic.
    pub stream_idle_max: Duration,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            datagram_len_max: DATAGRAM_LEN_DEFAULT,
            calls_max: 16_384,
            requests_max: 8_192,
            outbox_len_max: 65_536,
            sessions_max: 65_536,
            streams_max: 256,
            stream_bytes_max: 512 << 20,
            retransmit_min: Duration::from_millis(25),
            retransmit_max: Duration::from_millis(200),
            stream_idle_max: Duration::from_secs(30),
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}; it must be {allowed}")]
pub struct ConfigError {
    /// The setting.
    pub name: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl EndpointConfig {
    /// Checks the settings against each other and the protocol.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that cannot work.
    pub fn validated(self) -> Result<Self, ConfigError> {
        if !(DATAGRAM_LEN_MIN..=DATAGRAM_LEN_MAX).contains(&self.datagram_len_max) {
            return Err(ConfigError {
                name: "datagram_len_max",
                value: self.datagram_len_max.to_string(),
                allowed: format!("from {DATAGRAM_LEN_MIN} to {DATAGRAM_LEN_MAX} bytes"),
            });
        }
        if self.stream_bytes_max < BODY_LEN_MAX {
            return Err(ConfigError {
                name: "stream_bytes_max",
                value: self.stream_bytes_max.to_string(),
                allowed: format!("at least {BODY_LEN_MAX} bytes, the longest message"),
            });
        }
        if self.retransmit_min.is_zero() || self.retransmit_max < self.retransmit_min {
            return Err(ConfigError {
                name: "retransmit_min_ms",
                value: self.retransmit_min.as_millis().to_string(),
                allowed: format!("from 1 to retransmit_max_ms ({})", self.retransmit_max.as_millis()),
            });
        }
        Ok(self)
    }
}
