//! Which cluster is meant: the ring, and the quorums asked for on it.
//!
//! The ring comes from `--servers`, else from `servers.txt` in the working directory, else from the server at
//! `--connect`. A file that is there but wrong is an error, never a reason to look elsewhere: keys would be looked for
//! on another cluster. For the same reason a `--connect` that is passed over for a file is mentioned, unless the file
//! lists that server.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Context, Durability, Get, Put, ServerList, servers};

use crate::args::{CONNECT_DEFAULT, Common};
use crate::failure::Failure;
use crate::output::note;

const SERVERS_TXT: &str = "servers.txt";

/// Most bytes of a servers file: room for the largest ring with a comment on every line.
const SERVERS_LEN_MAX: u64 = 1 << 20;

/// A cluster, and how many of its servers each request asks for.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    n: usize,
    r: usize,
    w: usize,
    durability: Durability,
}

impl Cluster {
    /// Finds the ring and checks the quorums against it.
    pub(crate) async fn open(common: &Common) -> Result<Self, Failure> {
        let client = connect(common).await?;
        let quorum = client.quorum(common.n, common.r, common.w)?;
        let durability = common.durability.map(Durability::from).unwrap_or_default();
        Ok(Self { client, n: quorum.n(), r: quorum.r(), w: quorum.w(), durability })
    }

    pub(crate) fn put(&self, key: &Bytes, value: Bytes) -> Put {
        self.client.put(key.clone(), value).n(self.n).w(self.w).durability(self.durability)
    }

    pub(crate) fn delete(&self, key: &Bytes) -> Put {
        self.client.delete(key.clone()).n(self.n).w(self.w).durability(self.durability)
    }

    pub(crate) fn get(&self, key: &Bytes) -> Get {
        self.client.get(key.clone()).n(self.n).r(self.r)
    }

    /// Copies kept of each key.
    pub(crate) fn n(&self) -> usize {
        self.n
    }
}

/// A put or delete with the context the caller gave, if any.
pub(crate) fn with_context(put: Put, context: Option<&Context>) -> Put {
    match context {
        Some(context) => put.context(context),
        None => put,
    }
}

/// What the client is told beyond the ring.
pub(crate) fn config(common: &Common) -> ClientConfig {
    ClientConfig { timeout: common.timeout, sloppy: common.sloppy(), ..ClientConfig::default() }
}

async fn connect(common: &Common) -> Result<Client, Failure> {
    let (list, file) = match &common.servers {
        Some(file) => (Some(read_servers(file)?), file.as_path()),
        None => (read_if_there(Path::new(SERVERS_TXT))?, Path::new(SERVERS_TXT)),
    };
    let client = match list {
        Some(list) => {
            mention_passed_over(common, &list, file);
            Client::with_servers(list, config(common)).await?
        }
        None => ask_for_ring(common).await?,
    };
    if common.verbose {
        let ring = client.ring();
        note(&format!("ring {} of {} server(s)", ring.id(), ring.servers().len()));
    }
    Ok(client)
}

async fn ask_for_ring(common: &Common) -> Result<Client, Failure> {
    let server = common.connect.as_ref().map_or_else(|| CONNECT_DEFAULT.to_owned(), ToString::to_string);
    match Client::connect_with(&server, config(common)).await {
        Err(dkvs::Error::Connect { reason, .. }) => Err(Failure::NoRing { server, reason }),
        connected => Ok(connected?),
    }
}

fn mention_passed_over(common: &Common, list: &ServerList, file: &Path) {
    if let Some(server) = common.connect.as_ref().filter(|server| list.position(server).is_none()) {
        note(&format!(
            "{server} is not asked for the ring: it is read from {}, which does not list it",
            file.display()
        ));
    }
}

fn read_servers(file: &Path) -> Result<ServerList, Failure> {
    let unreadable = |error: io::Error| Failure::Usage(format!("cannot read {}: {error}", file.display()));
    let mut text = String::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(SERVERS_LEN_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > SERVERS_LEN_MAX {
        let reason =
            format!("{} has more than {SERVERS_LEN_MAX} bytes; no list of servers does", file.display());
        return Err(Failure::Usage(reason));
    }
    servers::parse(&text, &file.display().to_string()).map_err(|error| Failure::Usage(error.to_string()))
}

fn read_if_there(file: &Path) -> Result<Option<ServerList>, Failure> {
    match file.try_exists() {
        Ok(false) => Ok(None),
        // What cannot even be looked for is reported by reading it.
        Ok(true) | Err(_) => read_servers(file).map(Some),
    }
}
