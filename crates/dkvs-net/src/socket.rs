//! The world, as the transport sees it: one port number with datagrams and streams.
//!
//! Everything above is generic over [`Socket`], so that the same code runs on real sockets, on sockets that
//! misbehave from a seed, and in a simulated network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};

/// A port: UDP for datagrams and TCP under the same number for streams.
pub trait Socket: Send + Sync + 'static {
    /// A connection of the stream lane.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The address the port is bound to.
    fn local_addr(&self) -> SocketAddr;

    /// Sends `bytes` to `to`, cut into datagrams of `segment_len` bytes of which the last may be shorter.
    ///
    /// # Errors
    /// An error is a lost datagram, whatever its kind: a full buffer, a filter's refusal, no route.
    fn send(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment_len: usize,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits for datagrams and hands each to `each` with its sender. One call may deliver many. Only one task
    /// receives at a time. A datagram may be lost when the future is dropped.
    ///
    /// # Errors
    /// An error concerns one datagram at most; receiving goes on.
    fn recv<F>(&self, each: F) -> impl Future<Output = io::Result<()>> + Send
    where
        F: FnMut(SocketAddr, &[u8]) + Send;

    /// Opens a stream to a port.
    ///
    /// # Errors
    /// When nobody accepts there.
    fn connect(&self, to: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Waits for somebody to open a stream. A port that serves nobody waits for ever.
    ///
    /// # Errors
    /// When one connection failed or the process has no descriptors left; accepting goes on.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}
