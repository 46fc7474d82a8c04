//! A socket that behaves like a bad network, from a seed.
//!
//! Wraps any [`Socket`], real or simulated, and loses or repeats datagrams on their way out and in. Streams pass:
//! TCP repairs itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::lock;
use crate::socket::Socket;

/// How bad the network is. Each is a probability from 0 to 1, for each datagram and direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The datagram is lost.
    pub loss: f64,
    /// The datagram arrives twice.
    pub duplication: f64,
}

/// A socket behind a bad network.
#[derive(Debug)]
pub struct FaultySocket<S> {
    inner: S,
    faults: Faults,
    random: Mutex<StdRng>,
}

impl<S: Socket> FaultySocket<S> {
    /// Wraps `inner`. The same seed and the same traffic meet the same faults.
    pub fn new(inner: S, faults: Faults, seed: u64) -> Self {
        Self { inner, faults, random: Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    /// How many times the next datagram arrives: 0, 1 or 2.
    fn copies(&self) -> usize {
        let mut random = lock(&self.random);
        if random.random_bool(self.faults.loss) {
            0
        } else {
            1 + usize::from(random.random_bool(self.faults.duplication))
        }
    }
}

impl<S: Socket> Socket for FaultySocket<S> {
    type Stream = S::Stream;

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) -> io::Result<()> {
        for datagram in bytes.chunks(segment_len.max(1)) {
            for _ in 0..self.copies() {
                self.inner.send(to, datagram, datagram.len()).await?;
            }
        }
        Ok(())
    }

    async fn recv<F>(&self, mut each: F) -> io::Result<()>
    where
        F: FnMut(SocketAddr, &[u8]) + Send,
    {
        let deliver = |from, datagram: &[u8]| (0..self.copies()).for_each(|_| each(from, datagram));
        self.inner.recv(deliver).await
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<S::Stream> {
        self.inner.connect(to).await
    }

    async fn accept(&self) -> io::Result<(S::Stream, SocketAddr)> {
        self.inner.accept().await
    }
}
