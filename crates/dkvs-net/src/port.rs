//! The real [`Socket`]: a UDP socket and a TCP listener on one port number.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::lock;
use crate::socket::Socket;

/// Kernel buffer asked for in each direction, in bytes: room for a burst of some thousand datagrams. The kernel
/// grants what its own limit allows.
const KERNEL_BUFFER_LEN: usize = 4 << 20;

/// Receive buffers filled by one system call, and the length of each: with receive offload, a buffer holds a run of
/// datagrams from one sender.
const BUFFERS: usize = 8;
const BUFFER_LEN: usize = 64 * 1024;

/// How often a free UDP port is looked for that is free in TCP too.
const PORT_TRIES: usize = 64;

/// A UDP socket and, on a server, a TCP listener with the same address.
pub struct Port {
    udp: UdpSocket,
    state: UdpSocketState,
    listener: Option<TcpListener>,
    local_addr: SocketAddr,
    buffers: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port({})", self.local_addr)
    }
}

impl Port {
    /// Binds both lanes to one address. With port 0, finds a port that is free in both.
    ///
    /// # Errors
    /// As the operating system has them; most often the address is in use.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let udp = bind_udp(address)?;
            match bind_tcp(udp.local_addr()?) {
                Ok(listener) => return Self::new(udp, Some(listener)),
                Err(error) if tries == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// A port for calling only, that can reach all of `peers`.
    ///
    /// # Errors
    /// As the operating system has them.
    pub async fn for_calls(peers: &[SocketAddr]) -> io::Result<Self> {
        let any: IpAddr = if peers.iter().all(SocketAddr::is_ipv4) {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Self::new(bind_udp(SocketAddr::new(any, 0))?, None)
    }

    fn new(udp: UdpSocket, listener: Option<TcpListener>) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&udp))?;
        let local_addr = udp.local_addr()?;
        Ok(Self { udp, state, listener, local_addr, buffers: Mutex::new(vec![0; BUFFERS * BUFFER_LEN]) })
    }

    /// A socket of the IPv6 family reaches IPv4 addresses under their mapped form.
    fn in_our_family(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(v4) if self.local_addr.is_ipv6() => {
                SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => to,
        }
    }

    fn receive_now(&self, each: &mut impl FnMut(SocketAddr, &[u8])) -> io::Result<()> {
        let mut buffers = lock(&self.buffers);
        let mut metas = [RecvMeta::default(); BUFFERS];
        let received = {
            let mut chunks = buffers.chunks_exact_mut(BUFFER_LEN);
            let mut slices: [IoSliceMut<'_>; BUFFERS] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            self.state.recv(UdpSockRef::from(&self.udp), &mut slices, &mut metas)?
        };
        for (meta, buffer) in metas.iter().zip(buffers.chunks_exact(BUFFER_LEN)).take(received) {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            buffer[..meta.len].chunks(meta.stride.max(1)).for_each(|datagram| each(from, datagram));
        }
        Ok(())
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // A smaller buffer only means more retransmissions under bursts.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER_LEN);
    let _ = socket.set_send_buffer_size(KERNEL_BUFFER_LEN);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // Connections of a server that has just stopped linger; they must not keep it from starting again.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    TcpListener::from_std(socket.into())
}

impl Socket for Port {
    type Stream = TcpStream;

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) -> io::Result<()> {
        let to = self.in_our_family(to);
        // Segmentation offload where the kernel has it; otherwise one datagram a call.
        let run_len = segment_len * self.state.max_gso_segments().max(1);
        for run in bytes.chunks(run_len.max(1)) {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: run,
                segment_size: (run.len() > segment_len).then_some(segment_len),
                src_ip: None,
            };
            self.udp
                .async_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.udp), &transmit))
                .await?;
        }
        Ok(())
    }

    async fn recv<F>(&self, mut each: F) -> io::Result<()>
    where
        F: FnMut(SocketAddr, &[u8]) + Send,
    {
        self.udp.async_io(Interest::READABLE, || self.receive_now(&mut each)).await
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        let (stream, from) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }
}

/// Finds the address of a server named by an IP address or a host name. IPv4 is preferred where a name has both.
///
/// # Errors
/// When the name has no address.
pub async fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or(addresses.first()).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address"))
}
