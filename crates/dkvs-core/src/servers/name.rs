//! What a server is called: a host and a port, in exactly one spelling.
//!
//! A server's tokens are hashes of its name, so two spellings of one host would be two servers on the ring. Names
//! are therefore made canonical when they are read: IPv6 as RFC 5952 writes it, an IPv4-mapped IPv6 address as the
//! IPv4 address it maps, host names in lower case.
//!
//! ```text
//!   FE80:0:0::1  7000  ──>  [fe80::1]:7000        for people       (Display, FromStr)
//!                           fe80::1 7000          for the ring     (ring_text)
//! ```
//!
//! Invariants: the port is not 0; the host names one server (no `0.0.0.0`, multicast or broadcast); text that a
//! resolver could take for an IPv4 address (`300.1.2.3`, `1.2.3`, `0x7f000001`) is an address or an error, never a
//! host name. [`Display`](fmt::Display) and [`FromStr`] are inverses.
//!
//! What it leaves out: resolving. `localhost` and `127.0.0.1` are two names here, and a server listed under both
//! is two servers on the ring. IPv6 zones (`fe80::1%eth0`) mean something on one machine only and are refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use super::digits;

/// Longest host name, in bytes (RFC 1035, written form).
const HOST_NAME_LEN_MAX: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035).
const LABEL_LEN_MAX: usize = 63;

/// Why a server's name was refused. Nothing was kept of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The host is no address and no host name.
    #[error(
        "IP is {value:?}, which {fault}; allowed are an IPv4 address, an IPv6 address without brackets or zone, \
         or a host name"
    )]
    Host {
        /// The text found, shortened if it is long.
        value: String,
        /// What is wrong with it, to follow "which".
        fault: &'static str,
    },
    /// The port is not a number a server can listen on.
    #[error("PORT is {value:?}; allowed are whole numbers from 1 to 65535")]
    Port {
        /// The text found, shortened if it is long.
        value: String,
    },
    /// The text is not two parts joined by a colon.
    #[error("server is {value:?}; expected HOST:PORT, or [IPV6]:PORT")]
    Form {
        /// The text found, shortened if it is long.
        value: String,
    },
}

/// The identity of a server: its host and port. Ordered by address (IPv4, IPv6, then host names), then port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName {
    host: Host,
    port: u16,
}

/// A host in its canonical spelling. Only [`ServerName`] makes one that is known to be valid, and hands it out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address; never an IPv4-mapped IPv6 one.
    Ip(IpAddr),
    /// A name in lower case, to be resolved by whoever sends to it.
    Name(Box<str>),
}

impl ServerName {
    /// The server at `host` (an address without brackets, or a host name) and `port`.
    ///
    /// # Errors
    /// [`NameError::Host`] or [`NameError::Port`].
    pub fn new(host: &str, port: u16) -> Result<Self, NameError> {
        Ok(Self { host: parse_host(host)?, port: nonzero(port, &port.to_string())? })
    }

    /// The server at `host` and `port`, both as text.
    ///
    /// # Errors
    /// [`NameError::Host`] or [`NameError::Port`].
    pub fn from_fields(host: &str, port: &str) -> Result<Self, NameError> {
        let host = parse_host(host)?;
        Ok(Self { host, port: nonzero(digits(port).unwrap_or(0), port)? })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, 1..=65,535: of datagrams and of the stream lane alike.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host's address, or `None` if it is a host name that must be resolved first.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    /// `HOST PORT`, the text whose hash places the server's nodes on the ring. No brackets.
    #[must_use]
    pub fn ring_text(&self) -> String {
        format!("{} {}", self.host, self.port)
    }
}

/// The bare host, without brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// `host:port`, or `[address]:port` for IPv6.
impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `host:port` or `[address]:port`.
impl FromStr for ServerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").filter(|(host, _)| host.contains(':')),
            None => text.split_once(':').filter(|(_, port)| !port.contains(':')),
        };
        let (host, port) = parts.ok_or_else(|| NameError::Form { value: excerpt(text) })?;
        Self::from_fields(host, port)
    }
}

fn nonzero(port: u16, text: &str) -> Result<u16, NameError> {
    if port == 0 { Err(NameError::Port { value: excerpt(text) }) } else { Ok(port) }
}

fn parse_host(text: &str) -> Result<Host, NameError> {
    let refused = |fault| Err(NameError::Host { value: excerpt(text), fault });
    match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if names_one_server(ip) => Ok(Host::Ip(ip)),
        Ok(_) => refused("is not the address of one server"),
        Err(_) if looks_like_ipv4(text) => refused("looks like an IPv4 address but is none"),
        Err(_) if !is_host_name(text) => refused("is neither an address nor a host name"),
        Err(_) => Ok(Host::Name(text.to_ascii_lowercase().into())),
    }
}

fn names_one_server(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether the last label is a number, decimal or hexadecimal. No top-level domain is one, and resolvers read such
/// text as a shortened IPv4 address (`1.2.3` as 1.2.0.3), which nobody means.
fn looks_like_ipv4(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or(text);
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn is_host_name(text: &str) -> bool {
    text.len() <= HOST_NAME_LEN_MAX && text.split('.').all(is_label)
}

/// Letters, digits, hyphens and underscores (which container names have), with no hyphen at either end.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let length = 1..=LABEL_LEN_MAX;
    length.contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Enough of a wrong value to recognise it by: a file of another kind can be one field of a megabyte.
pub(super) fn excerpt(value: &str) -> String {
    const EXCERPT_CHARS_MAX: usize = 60;
    match value.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}
