//! One server of a ring.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use dkvs_core::ring::Ring;
use dkvs_core::servers::{self, ServerEntry, ServerIndex, ServerList, ServerName};

use crate::args::{SinglePlan, excerpt};
use crate::banner::{Banner, Row};
use crate::config::Config;
use crate::listen;
use crate::local::directory_name;
use crate::remembered;
use crate::running::{Data, Running};
use crate::settings::Settings;

/// Read from the working directory when no ring file is named.
pub(crate) const RING_FILE_DEFAULT: &str = "servers.txt";
/// Under it, each server has a directory of its own.
const DATA_DIRS_DEFAULT: &str = "./dkvs-data";
/// A server alone owns every key, however many virtual nodes it has.
const NODES_ALONE: u32 = 1;
/// Most servers listed in a message.
const LISTED_MAX: usize = 8;

/// Starts the server.
pub(crate) async fn start(plan: SinglePlan, settings: &Settings) -> anyhow::Result<(Vec<Running>, Banner)> {
    let config = &settings.config;
    let name = plan.name.map_or_else(|| configured_name(config), Ok)?;
    let (ring, source) = read_ring(&name, config.ring_file.as_deref())?;
    let me = find(&name, &ring, &source)?;
    check_values(&plan.pairs, config.value_len_max)?;
    let addresses = resolve_all(&ring, &source).await?;
    let ring = Arc::new(Ring::new(ring));
    let data_dir = settings.store.is_some().then(|| {
        let default = || Path::new(DATA_DIRS_DEFAULT).join(directory_name(&name));
        config.data_dir.clone().unwrap_or_else(default)
    });
    let server_config = settings.server(&ring, me, addresses.clone(), data_dir.as_ref())?;

    let (address, remedy) = match &config.listen {
        Some(listen) => (
            listen::address(listen).await?,
            "choose another port with --listen, or with listen in the configuration file",
        ),
        None => (addresses[me.as_usize()], "give another PORT"),
    };
    let port = listen::bind(address, config.insecure, remedy).await?;
    let data = match (data_dir, &settings.store) {
        (Some(path), Some(store)) => Data::open(path, name.ring_text(), store.clone()).await?,
        _ => Data::Memory,
    };
    if let Some(path) = data.path() {
        note_ring(path, ring.servers())?;
    }

    let banner = Banner {
        what: format!("server {name}, {source}"),
        servers: vec![Row {
            name,
            listen: address,
            data_dir: data.path().map(Path::to_path_buf),
            start: data.start(),
        }],
        quorum: server_config.quorum,
        durability: server_config.durability,
        pairs: plan.pairs.len(),
        note: None,
    };
    let server = Running::start(port, data, plan.pairs, server_config).await?;
    Ok((vec![server], banner))
}

/// Who this is, when the command line does not say.
fn configured_name(config: &Config) -> anyhow::Result<ServerName> {
    let (key, text) = match (&config.advertise, &config.listen) {
        (Some(advertise), _) => ("advertise", advertise),
        (None, Some(listen)) => ("listen", listen),
        (None, None) => bail!(
            "which server is this? Give IP PORT after the flags, or set advertise or listen in the configuration file"
        ),
    };
    let wildcard = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    ensure!(
        !wildcard,
        "{key} is {text:?}, which names no server: set advertise to the address others reach it under, \
         as servers.txt has it"
    );
    text.parse().with_context(|| format!("{key} is {text:?}"))
}

/// Where a list of servers comes from.
enum Source {
    File(PathBuf, usize),
    /// There is no file.
    Alone,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, 1) => write!(f, "the only one of {}", path.display()),
            Self::File(path, servers) => write!(f, "one of the {servers} of {}", path.display()),
            Self::Alone => write!(f, "alone on its ring (there is no {RING_FILE_DEFAULT} here)"),
        }
    }
}

fn read_ring(name: &ServerName, file: Option<&Path>) -> anyhow::Result<(ServerList, Source)> {
    let path = file.unwrap_or(Path::new(RING_FILE_DEFAULT));
    match fs::read_to_string(path) {
        Ok(text) => {
            let list = servers::parse(&text, &path.display().to_string())?;
            let source = Source::File(path.into(), list.len());
            Ok((list, source))
        }
        Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() => {
            let alone = ServerEntry { name: name.clone(), nodes: NODES_ALONE };
            Ok((ServerList::new(vec![alone])?, Source::Alone))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read the ring file {}", path.display())),
    }
}

fn find(name: &ServerName, ring: &ServerList, source: &Source) -> anyhow::Result<ServerIndex> {
    ring.position(name).ok_or_else(|| {
        let file = match source {
            Source::File(path, _) => path.display().to_string(),
            Source::Alone => "the ring".into(),
        };
        let mut listed: Vec<String> =
            ring.iter().take(LISTED_MAX).map(|entry| entry.name.to_string()).collect();
        if ring.len() > LISTED_MAX {
            listed.push(format!("and {} more", ring.len() - LISTED_MAX));
        }
        anyhow!(
            "server {name} is not listed in {file}, which lists {}: start one of those, \
             add the line \"{} COUNT\" to the file of every server, or name another file with --ring",
            listed.join(", "),
            name.ring_text(),
        )
    })
}

fn check_values(pairs: &[(Bytes, Bytes)], value_len_max: usize) -> anyhow::Result<()> {
    for (key, value) in pairs {
        ensure!(
            value.len() <= value_len_max,
            "the value of key {} has {} bytes; value_len_max is {value_len_max} bytes",
            excerpt(key),
            value.len(),
        );
    }
    Ok(())
}

/// Where every server receives, in the ring's order.
async fn resolve_all(ring: &ServerList, source: &Source) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::with_capacity(ring.len());
    for entry in ring {
        let found = listen::resolve_name(&entry.name).await;
        addresses.push(match source {
            Source::File(path, _) => found.with_context(|| format!("in {}", path.display()))?,
            Source::Alone => found?,
        });
    }
    Ok(addresses)
}

/// Warns if the data was written on another ring, and notes this one.
fn note_ring(data_dir: &Path, ring: &ServerList) -> anyhow::Result<()> {
    let before = remembered::recall(data_dir)?;
    if before.as_ref() == Some(ring) {
        return Ok(());
    }
    if let Some(before) = before {
        tracing::warn!(
            before = before.len(),
            now = ring.len(),
            "the list of servers has changed since this data was written: \
             keys are looked for on the servers that own them now, and nothing has been moved to those"
        );
    }
    remembered::remember(data_dir, ring)
}
