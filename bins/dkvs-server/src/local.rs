//! A cluster in one process, on loopback: real servers with ports, stores and a ring of their own, as durable as in
//! production. Only the machine and the process are shared.
//!
//! ```text
//!   dkvs-data/local/
//!     RING              the ring; another number of servers or other ports are refused
//!     127.0.0.1-1234/   a data directory for each server
//!     127.0.0.1-1235/
//!     127.0.0.1-1236/
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use dkvs_core::ring::Ring;
use dkvs_core::servers::{ServerEntry, ServerList, ServerName, parse};
use dkvs_net::{Port, Socket};
use dkvs_storage::create_dir;
use tokio::task::JoinSet;

use crate::args::LocalPlan;
use crate::banner::{Banner, Row};
use crate::listen;
use crate::remembered;
use crate::running::{Data, Running};
use crate::settings::Settings;
use crate::single::RING_FILE_DEFAULT;

/// Virtual nodes of each server. With this many, the shares of a handful of servers differ by some tenths; the ring
/// is still small enough to be read.
const NODES: u32 = 64;

const DATA_DIR_DEFAULT: &str = "./dkvs-data/local";

/// How often a run of free ports is looked for.
const PORT_TRIES: usize = 64;

const REMEDY: &str = "choose other ports with --base-port";

/// Starts all servers of the cluster.
pub(crate) async fn start(plan: &LocalPlan, settings: &Settings) -> anyhow::Result<(Vec<Running>, Banner)> {
    let ports = bind(plan).await?;
    let addresses: Vec<SocketAddr> = ports.iter().map(Socket::local_addr).collect();
    let ring = Arc::new(Ring::new(ServerList::new(
        addresses.iter().copied().map(entry).collect::<Result<_, _>>()?,
    )?));
    let root = settings.config.data_dir.clone().unwrap_or_else(|| DATA_DIR_DEFAULT.into());
    let directory = |name: &ServerName| root.join(directory_name(name));

    // Everything that can be refused is, before anything is created.
    let mut configs = Vec::new();
    for me in ring.servers().indices() {
        let data_dir = directory(&ring.servers()[me].name);
        configs.push(settings.server(
            &ring,
            me,
            addresses.clone(),
            settings.store.as_ref().map(|_| &data_dir),
        )?);
    }
    let first = configs.first().context("a ring has at least one server")?;
    let (quorum, durability) = (first.quorum, first.durability);

    if settings.store.is_some() {
        claim(&root, ring.servers())?;
    }
    let mut servers = Vec::new();
    let mut rows = Vec::new();
    let data = open_all(ring.servers(), settings, directory).await?;
    for (((port, data), config), entry) in ports.into_iter().zip(data).zip(configs).zip(ring.servers()) {
        let (start, data_dir) = (data.start(), data.path().map(Path::to_path_buf));
        let server = Running::start(port, data, Vec::new(), config).await?;
        rows.push(Row { name: entry.name.clone(), listen: server.local_addr(), data_dir, start });
        servers.push(server);
    }
    let what = match servers.len() {
        1 => "a local cluster of 1 server".into(),
        servers => format!("a local cluster of {servers} servers"),
    };
    Ok((servers, Banner { what, servers: rows, quorum, durability, pairs: 0, note: note(ring.servers()) }))
}

fn entry(address: SocketAddr) -> anyhow::Result<ServerEntry> {
    Ok(ServerEntry { name: ServerName::new(&address.ip().to_string(), address.port())?, nodes: NODES })
}

/// A name for files. Colons mean something else on some systems.
pub(crate) fn directory_name(name: &ServerName) -> String {
    format!("{}-{}", name.host(), name.port()).replace(':', "_")
}

/// Binds consecutive ports, so that they can be asked for again by the first.
async fn bind(plan: &LocalPlan) -> anyhow::Result<Vec<Port>> {
    if plan.base_port != 0 {
        return bind_run(plan.base_port, plan.servers).await;
    }
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let first = listen::bind(loopback(0), false, REMEDY).await?;
        let base_port = first.local_addr().port();
        let rest = match base_port.checked_add(1) {
            Some(second) if base_port.checked_add(plan.servers - 1).is_some() => {
                bind_run(second, plan.servers - 1).await
            }
            _ => continue,
        };
        match rest {
            Ok(rest) => return Ok(std::iter::once(first).chain(rest).collect()),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

async fn bind_run(base_port: u16, servers: u16) -> anyhow::Result<Vec<Port>> {
    let mut ports = Vec::new();
    for number in 0..servers {
        ports.push(listen::bind(loopback(base_port + number), false, REMEDY).await?);
    }
    Ok(ports)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Opens every server's data at the same time; `None` of a store's settings is memory.
async fn open_all(
    servers: &ServerList,
    settings: &Settings,
    directory: impl Fn(&ServerName) -> PathBuf,
) -> anyhow::Result<Vec<Data>> {
    let Some(store) = &settings.store else { return Ok(servers.iter().map(|_| Data::Memory).collect()) };
    let mut opening = JoinSet::new();
    for (place, entry) in servers.iter().enumerate() {
        let opened = Data::open(directory(&entry.name), entry.name.ring_text(), store.clone());
        opening.spawn(async move { anyhow::Ok((place, opened.await?)) });
    }
    let mut data = Vec::new();
    while let Some(opened) = opening.join_next().await {
        data.push(opened??);
    }
    data.sort_by_key(|(place, _)| *place);
    Ok(data.into_iter().map(|(_, data)| data).collect())
}

/// A client started in a directory with a `servers.txt` asks those servers, not these.
fn note(servers: &ServerList) -> Option<String> {
    let text = fs::read_to_string(RING_FILE_DEFAULT).ok()?;
    let is_this_ring = parse(&text, RING_FILE_DEFAULT).is_ok_and(|listed| listed == *servers);
    (!is_this_ring).then(|| {
        format!(
            "{RING_FILE_DEFAULT} in this directory is not used here, but clients started here use it: \
             start them elsewhere"
        )
    })
}

/// Makes `root` the directory of the cluster of these servers, or refuses if it is another's.
fn claim(root: &Path, servers: &ServerList) -> anyhow::Result<()> {
    match remembered::recall(root)? {
        Some(before) if before == *servers => return Ok(()),
        Some(before) => bail!(
            "{root} holds the data of a local cluster of {}, and this would be one of {}, where its keys would not \
             be found. Start it as before{}, choose another directory with --data-dir, or delete {root}",
            describe(&before),
            describe(servers),
            command(&before),
            root = root.display(),
        ),
        None => {}
    }
    let create = || -> std::io::Result<Option<String>> {
        create_dir(root)?;
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            if name != remembered::TEMPORARY {
                return Ok(Some(name.to_string_lossy().into_owned()));
            }
        }
        Ok(None)
    };
    let root_shown = root.display();
    let found = create().map_err(|error| {
        anyhow!(
            "cannot create {root_shown}: {error}; check the path and its permissions, \
             or choose another with --data-dir"
        )
    })?;
    if let Some(found) = found {
        bail!(
            "{root_shown} is not the data directory of a local cluster, and not empty (it holds \"{found}\"): \
             choose an empty or a missing one with --data-dir"
        );
    }
    remembered::remember(root, servers)
}

fn describe(servers: &ServerList) -> String {
    let count = servers.len();
    let names: Vec<String> = servers.iter().map(|entry| entry.name.to_string()).collect();
    match &names[..] {
        [first, .., last] => format!("{count} servers, {first} to {last}"),
        names => format!("{count} server, {}", names.concat()),
    }
}

/// How to start this cluster, in parentheses; empty if no flags can.
fn command(servers: &ServerList) -> String {
    let ports: Vec<u16> = servers.iter().map(|entry| entry.name.port()).collect();
    let consecutive = ports.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
    match ports.first() {
        Some(base_port) if consecutive => format!(" (--servers {} --base-port {base_port})", ports.len()),
        _ => String::new(),
    }
}
