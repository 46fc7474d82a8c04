//! Who takes part: the list of servers, and `servers.txt`, the file it is read from.
//!
//! Every server and every client reads its own copy of the file, and all of them must then agree where each key
//! lives and which server "number 3" is. So a [`ServerList`] does not keep the file's order: it is sorted by name,
//! and a [`ServerIndex`] counts in that order. Two files that list the same servers on different lines, with other
//! spacing or comments, are the same list.
//!
//! ```text
//!   # servers.txt                 ServerList
//!   127.0.0.1  1236  3            0: 127.0.0.1 1234 1
//!   127.0.0.1  1234  1     ──>    1: 127.0.0.1 1235 2
//!   127.0.0.1  1235  2            2: 127.0.0.1 1236 3
//!   IP         PORT  COUNT            (COUNT = virtual nodes on the ring)
//! ```
//!
//! # The file
//! One server a line: `IP PORT COUNT`, separated by spaces or tabs. Empty lines are allowed, and so are comments,
//! from `#` to the end of the line. Lines may end in CR LF, the file may start with a byte order mark. An IP is an
//! IPv4 address, an IPv6 address without brackets, or a host name. Anything else is an error that says where it
//! is, what was found and what is allowed; there are no warnings, because a ring that differs on one server by one
//! misread line sends its keys elsewhere.
//!
//! # Invariants
//! A list has 1..=[`SERVERS_MAX`] servers, no two with one name, each with 1..=[`NODES_PER_SERVER_MAX`] nodes and
//! all together at most [`NODES_MAX`]. It is sorted by name. Its text ([`Display`](fmt::Display)) is canonical:
//! equal lists have equal text, and [`parse`] reads it back.
//!
//! What it leaves out: changes while running. Two servers started with different lists each believe their own;
//! [`RingId`](crate::ring::RingId) is how they notice.

mod name;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use self::name::excerpt;
pub use self::name::{Host, NameError, ServerName};

/// Most servers in one list. The ring's table holds an order of all servers for up to 65,536 places: 64 MiB then.
pub const SERVERS_MAX: usize = 512;

/// Most virtual nodes of one server: one for each partition. More could not spread its load any finer.
pub const NODES_PER_SERVER_MAX: u32 = 65_536;

/// Most virtual nodes of all servers together. Building a ring hashes and sorts all of them; this many take a
/// fraction of a second and 24 MiB. It leaves 2,048 for each of [`SERVERS_MAX`] servers.
pub const NODES_MAX: u32 = 1 << 20;

const _: () = assert!(SERVERS_MAX < u16::MAX as usize, "every server must have a ServerIndex");
const _: () = assert!(NODES_PER_SERVER_MAX <= NODES_MAX, "one server must be able to use its own limit");

/// A server's number in its [`ServerList`], from 0. It means the same on every server and client whose rings have
/// one [`RingId`](crate::ring::RingId), and nothing without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerIndex(u16);

impl ServerIndex {
    /// The index with this number; whether it is one of a list, [`ServerList::get`] tells.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Its number, to index with.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ServerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One line of `servers.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerEntry {
    /// Who.
    pub name: ServerName,
    /// COUNT: its virtual nodes. A server with twice the nodes of another gets about twice the keys.
    pub nodes: u32,
}

/// `IP PORT COUNT`, without a line end.
impl fmt::Display for ServerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name.host(), self.name.port(), self.nodes)
    }
}

/// The servers of a cluster: never empty, without duplicates, within the limits, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerList(Box<[ServerEntry]>);

impl ServerList {
    /// The list of these servers, in any order.
    ///
    /// # Errors
    /// What [`parse`] says of a file with these lines; it calls the file `server list`, and an entry's place in the
    /// vector, from 1, its line.
    pub fn new(entries: Vec<ServerEntry>) -> Result<Self, ServersError> {
        Draft::read((1..).zip(entries.into_iter().map(Ok)), "server list")
    }

    /// The servers by index, that is by name.
    pub fn iter(&self) -> std::slice::Iter<'_, ServerEntry> {
        self.0.iter()
    }

    /// The index of every server, from 0.
    pub fn indices(&self) -> impl Iterator<Item = ServerIndex> + use<> {
        (0..=u16::MAX).map(ServerIndex).take(self.len())
    }

    /// How many servers there are, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a list is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The index of the server with this name, if it is listed.
    #[must_use]
    pub fn position(&self, name: &ServerName) -> Option<ServerIndex> {
        let place = self.0.binary_search_by(|entry| entry.name.cmp(name)).ok()?;
        u16::try_from(place).ok().map(ServerIndex)
    }

    /// The server with this index, or `None` if there are not so many. For an index from the network.
    #[must_use]
    pub fn get(&self, index: ServerIndex) -> Option<&ServerEntry> {
        self.0.get(index.as_usize())
    }
}

/// The server with this index. Panics if the index is not one of this list's.
impl Index<ServerIndex> for ServerList {
    type Output = ServerEntry;

    fn index(&self, index: ServerIndex) -> &ServerEntry {
        &self.0[index.as_usize()]
    }
}

impl<'a> IntoIterator for &'a ServerList {
    type Item = &'a ServerEntry;
    type IntoIter = std::slice::Iter<'a, ServerEntry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A `servers.txt` in canonical form: one `IP PORT COUNT` a line, sorted by name.
impl fmt::Display for ServerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

/// Reads the text of a `servers.txt`. `file` is what errors call it.
///
/// # Errors
/// The first line that is not allowed, or a file without any server.
pub fn parse(text: &str, file: &str) -> Result<ServerList, ServersError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let content = text.lines().map(|line| line.split('#').next().unwrap_or(line).trim_ascii());
    let numbered = (1..).zip(content).filter(|(_, content)| !content.is_empty());
    Draft::read(numbered.map(|(line, content)| (line, parse_entry(content))), file)
}

/// A list of servers was refused: where, and why. Nothing was kept of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {fault}", line.map(|line| format!(" line {line}")).unwrap_or_default())]
pub struct ServersError {
    /// The file, as its reader called it.
    pub file: String,
    /// The line, from 1; `None` if it is about the whole file.
    pub line: Option<usize>,
    /// What is wrong.
    pub fault: ServersFault,
}

/// What can be wrong with a list of servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServersFault {
    /// IP or PORT is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// COUNT is not a number, or out of range.
    #[error("COUNT is {value:?}; allowed are whole numbers from 1 to {NODES_PER_SERVER_MAX}")]
    Count {
        /// The text found, shortened if it is long.
        value: String,
    },
    /// The line ends too early.
    #[error("{field} is missing in {content:?}; expected IP PORT COUNT")]
    Missing {
        /// The first field that is missing: `PORT` or `COUNT`.
        field: &'static str,
        /// The line without its comment, shortened if it is long.
        content: String,
    },
    /// The line goes on after COUNT.
    #[error("surplus field {value:?} after COUNT; expected IP PORT COUNT")]
    Surplus {
        /// The fourth field, shortened if it is long.
        value: String,
    },
    /// A server is listed a second time.
    #[error("server {name} is already listed on line {first_line}; list each server once")]
    Duplicate {
        /// The server.
        name: ServerName,
        /// The line it was first listed on.
        first_line: usize,
    },
    /// One server too many.
    #[error("too many servers; allowed are {SERVERS_MAX}")]
    TooManyServers,
    /// All counts together are too much.
    #[error("COUNT is {nodes}, which makes {total} nodes in all; allowed are {NODES_MAX}")]
    TooManyNodes {
        /// This server's COUNT.
        nodes: u32,
        /// The sum of this and all earlier COUNTs.
        total: u32,
    },
    /// Nothing but comments and empty lines.
    #[error("lists no server; expected at least one line IP PORT COUNT")]
    Empty,
}

fn parse_entry(content: &str) -> Result<ServerEntry, ServersFault> {
    let mut fields = content.split_ascii_whitespace();
    let missing = |field| ServersFault::Missing { field, content: excerpt(content) };
    let ip = fields.next().ok_or_else(|| missing("IP"))?;
    let port = fields.next().ok_or_else(|| missing("PORT"))?;
    let count = fields.next().ok_or_else(|| missing("COUNT"))?;
    if let Some(value) = fields.next() {
        return Err(ServersFault::Surplus { value: excerpt(value) });
    }
    let name = ServerName::from_fields(ip, port)?;
    let nodes = digits(count).ok_or_else(|| ServersFault::Count { value: excerpt(count) })?;
    Ok(ServerEntry { name, nodes })
}

/// A number written in decimal digits only: the standard parser would also take `+7`.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A list in the making. The one home of the rules that relate entries to limits and to each other.
#[derive(Default)]
struct Draft {
    servers: BTreeMap<ServerName, Listed>,
    nodes_total: u32,
}

struct Listed {
    line: usize,
    nodes: u32,
}

impl Draft {
    fn read(
        entries: impl Iterator<Item = (usize, Result<ServerEntry, ServersFault>)>,
        file: &str,
    ) -> Result<ServerList, ServersError> {
        let error = |line, fault| ServersError { file: file.to_owned(), line, fault };
        let mut draft = Self::default();
        for (line, entry) in entries {
            entry.and_then(|entry| draft.add(line, entry)).map_err(|fault| error(Some(line), fault))?;
        }
        draft.finish().ok_or_else(|| error(None, ServersFault::Empty))
    }

    fn add(&mut self, line: usize, ServerEntry { name, nodes }: ServerEntry) -> Result<(), ServersFault> {
        if !(1..=NODES_PER_SERVER_MAX).contains(&nodes) {
            return Err(ServersFault::Count { value: nodes.to_string() });
        }
        if let Some(first) = self.servers.get(&name) {
            return Err(ServersFault::Duplicate { name, first_line: first.line });
        }
        if self.servers.len() == SERVERS_MAX {
            return Err(ServersFault::TooManyServers);
        }
        let total = self.nodes_total + nodes;
        if total > NODES_MAX {
            return Err(ServersFault::TooManyNodes { nodes, total });
        }
        self.nodes_total = total;
        self.servers.insert(name, Listed { line, nodes });
        Ok(())
    }

    /// The list, in the map's order; `None` if it would be empty.
    fn finish(self) -> Option<ServerList> {
        let entries =
            self.servers.into_iter().map(|(name, listed)| ServerEntry { name, nodes: listed.nodes });
        Some(ServerList(entries.collect())).filter(|list| !list.0.is_empty())
    }
}
