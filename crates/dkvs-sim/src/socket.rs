//! A port on the simulated network: turmoil's UDP and TCP under one number, with the weather in between.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use dkvs_net::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Mutex;
use turmoil::net::{TcpListener, TcpStream, UdpSocket};

use crate::trace::{Trace, now};
use crate::weather::{Inbox, Weather};

/// Longest datagram there is.
const DATAGRAM_LEN_MAX: usize = 65_535;

/// Datagrams taken in one call, so that other tasks get their turn.
const BURST: usize = 32;

/// A port of a simulated host.
pub struct SimSocket {
    udp: UdpSocket,
    /// What the weather has delayed.
    inbox: Arc<Inbox>,
    /// Only a server listens.
    tcp: Option<TcpListener>,
    local: SocketAddr,
    weather: Arc<Weather>,
    trace: Arc<Trace>,
    buffer: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimSocket({})", self.local)
    }
}

impl SimSocket {
    /// Binds a server's port on the host at `ip`.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn listen(ip: IpAddr, port: u16, weather: Arc<Weather>, trace: Arc<Trace>) -> io::Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        Self::new(ip, udp, Some(tcp), weather, trace)
    }

    /// Binds a port to call from.
    ///
    /// # Errors
    /// When none is free.
    pub async fn for_calls(ip: IpAddr, weather: Arc<Weather>, trace: Arc<Trace>) -> io::Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        Self::new(ip, udp, None, weather, trace)
    }

    fn new(
        ip: IpAddr,
        udp: UdpSocket,
        tcp: Option<TcpListener>,
        weather: Arc<Weather>,
        trace: Arc<Trace>,
    ) -> io::Result<Self> {
        let local = SocketAddr::new(ip, udp.local_addr()?.port());
        let buffer = Mutex::new(vec![0; DATAGRAM_LEN_MAX]);
        Ok(Self { udp, inbox: weather.listen(local), tcp, local, weather, trace, buffer })
    }

    fn stream(&self, inner: TcpStream, from: IpAddr) -> SimStream {
        SimStream { inner, weather: self.weather.clone(), from, to: self.local.ip() }
    }
}

impl Socket for SimSocket {
    type Stream = SimStream;

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) -> io::Result<()> {
        for datagram in bytes.chunks(segment_len.max(1)) {
            for flight in self.weather.fate(now(), self.local.ip(), to.ip(), datagram) {
                if flight.delay.is_zero() {
                    self.udp.send_to(&flight.bytes, to).await?;
                } else {
                    self.weather.delay(flight.delay, self.local, to, flight.bytes);
                }
            }
        }
        Ok(())
    }

    async fn recv<F>(&self, mut each: F) -> io::Result<()>
    where
        F: FnMut(SocketAddr, &[u8]) + Send,
    {
        tokio::select! {
            biased;
            readable = self.udp.readable() => readable?,
            () = self.inbox.arrived() => {}
        }
        let mut each = |from: SocketAddr, datagram: &[u8]| {
            self.trace.note_bytes(now(), datagram, || {
                format!(
                    "{from} -> {}: {} bytes, crc {:08x}",
                    self.local,
                    datagram.len(),
                    crc32fast::hash(datagram)
                )
            });
            each(from, datagram);
        };
        for _ in 0..BURST {
            let Some((from, datagram)) = self.inbox.take() else { break };
            each(from, &datagram);
        }
        let mut buffer = self.buffer.lock().await;
        for _ in 0..BURST {
            let (len, from) = match self.udp.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            each(from, &buffer[..len]);
        }
        Ok(())
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<SimStream> {
        self.weather.breaks(self.local.ip(), to.ip())?;
        let stream = TcpStream::connect(to).await?;
        Ok(self.stream(stream, to.ip()))
    }

    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        match &self.tcp {
            Some(tcp) => {
                let (stream, from) = tcp.accept().await?;
                Ok((self.stream(stream, from.ip()), from))
            }
            None => std::future::pending().await,
        }
    }
}

/// A connection that wears out what passes through it.
#[derive(Debug)]
pub struct SimStream {
    inner: TcpStream,
    weather: Arc<Weather>,
    from: IpAddr,
    to: IpAddr,
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.weather.wear(self.from, self.to, &mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        Poll::Ready(self.weather.breaks(self.to, self.from))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
