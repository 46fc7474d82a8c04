//! Looking at the cluster: the ring, what each server stores, and how each is.
//!
//! A server that is down is part of the picture, not an error: its row or heading is shown, the reason goes to stderr,
//! and only when none answers does the operation fail.
//!
//! # How `dump-ring` counts
//! A server's pairs come in pages, and their number must stand above them. Counting in one pass and printing in a
//! second would be wrong as soon as somebody writes in between, and asking the server for its count as well. So each
//! server's lines are set aside as they come, in memory up to [`SPOOL_LEN`] and then in a temporary file that has no
//! name, and shown when they are all there: the number is always that of the lines below it, memory stays bounded,
//! and a server that fails half way shows no part that could be taken for the whole.

use std::io::{self, Seek, Write};
use std::time::Duration;

use bytes::Bytes;
use dkvs::{Client, Liveness, Partition, Peer, Position, ServerIndex, ServerName, Status};
use serde::{Serialize, Serializer};
use tempfile::SpooledTempFile;
use tokio::task::JoinSet;

use crate::args::{Common, InspectOp};
use crate::connect::Cluster;
use crate::explain;
use crate::failure::Failure;
use crate::output::{Format, Output, escaped, note, text_or_hex};

/// Bytes of a dump kept in memory before a file is used.
const SPOOL_LEN: usize = 4 << 20;

pub(crate) async fn run(
    op: &InspectOp,
    common: &Common,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let cluster = Cluster::open(common).await?;
    match op {
        InspectOp::DumpRing => dump_ring(&cluster.client, out).await,
        InspectOp::Ring { key: None } => ring(&cluster.client, out),
        InspectOp::Ring { key: Some(key) } => preference_list(&cluster, key, out),
        InspectOp::Status => status(&cluster.client, out).await,
        InspectOp::Explain { key } => explain::run(&cluster, key, out).await,
    }
}

fn servers(client: &Client) -> impl Iterator<Item = (ServerIndex, &ServerName)> {
    let servers = client.ring().servers();
    servers.indices().zip(servers.iter().map(|entry| &entry.name))
}

fn ring(client: &Client, out: &mut Output<impl Write>) -> Result<(), Failure> {
    match out.format() {
        Format::Text | Format::Raw => write_nodes(client, out),
        Format::Json => {
            let id = client.ring().id();
            out.text(format_args!("{{\"ok\":true,\"ring\":\"{id}\",\"nodes\":"))?;
            out.json_part(&NodesJson(client))?;
            out.text(format_args!("}}\n"))
        }
    }
}

fn write_nodes(client: &Client, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let servers = client.ring().servers();
    client.ring().nodes().iter().try_for_each(|node| {
        out.text(format_args!("{} ({})\n", node.token, servers[node.server].name.ring_text()))
    })
}

#[derive(Serialize)]
struct NodeJson {
    token: String,
    server: String,
}

/// The nodes as a JSON array. There may be a million of them, so they are written one by one.
struct NodesJson<'a>(&'a Client);

impl Serialize for NodesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ring = self.0.ring();
        serializer.collect_seq(ring.nodes().iter().map(|node| NodeJson {
            token: node.token.to_string(),
            server: ring.servers()[node.server].name.to_string(),
        }))
    }
}

#[derive(Serialize)]
struct KeyJson {
    ok: bool,
    position: String,
    partition: String,
    preference_list: Vec<PreferredJson>,
}

#[derive(Serialize)]
struct PreferredJson {
    server: String,
    role: &'static str,
}

fn preference_list(cluster: &Cluster, key: &Bytes, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let ring = cluster.client.ring();
    let (position, partition) = (Position::of_key(key), Partition::of_key(key));
    let preferred =
        ring.preference_list(partition).iter().enumerate().map(|(place, &server)| PreferredJson {
            server: ring.servers()[server].name.to_string(),
            role: if place < cluster.n() { "owner" } else { "fallback" },
        });
    let preference_list: Vec<_> = preferred.collect();
    match out.format() {
        Format::Text | Format::Raw => {
            out.text(format_args!("position {position}, partition {partition}\n"))?;
            let row = |row: &PreferredJson| vec![row.server.clone(), row.role.to_owned()];
            write_table(&preference_list.iter().map(row).collect::<Vec<_>>(), &[], out)
        }
        Format::Json => {
            let (position, partition) = (position.to_string(), partition.to_string());
            out.json(&KeyJson { ok: true, position, partition, preference_list })
        }
    }
}

/// What one server stores, ready to be shown.
struct Dump {
    pairs: u64,
    lines: SpooledTempFile,
}

#[derive(Serialize)]
struct EntryJson<'a> {
    #[serde(flatten)]
    key: KeyTextJson<'a>,
    #[serde(flatten)]
    value: ValueTextJson<'a>,
    siblings: u32,
}

#[derive(Serialize)]
enum KeyTextJson<'a> {
    #[serde(rename = "key")]
    Text(&'a str),
    #[serde(rename = "key_hex")]
    Hex(String),
}

#[derive(Serialize)]
enum ValueTextJson<'a> {
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_hex")]
    Hex(String),
}

async fn dump_ring(client: &Client, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let format = out.format();
    match format {
        Format::Text | Format::Raw => {
            out.bytes(b"Ring nodes:\n")?;
            write_nodes(client, out)?;
            out.bytes(b"\n")?;
        }
        Format::Json => {
            out.bytes(b"{\"nodes\":")?;
            out.json_part(&NodesJson(client))?;
            out.bytes(b",\"servers\":[")?;
        }
    }
    let mut answered = false;
    for (place, (server, name)) in servers(client).enumerate() {
        let dumped = dump(client, server, format).await;
        let dumped = match dumped {
            Err(Failure::Client(error)) => Err(error.to_string()),
            dumped => Ok(dumped?),
        };
        answered |= dumped.is_ok();
        match format {
            Format::Text | Format::Raw => write_dump(name, dumped, out)?,
            Format::Json => {
                out.bytes(if place == 0 { b"" } else { b"," })?;
                write_dump_json(name, dumped, out)?;
            }
        }
    }
    if format == Format::Json {
        out.text(format_args!("],\"ok\":{answered}}}\n"))?;
    }
    if answered { Ok(()) } else { nobody_answered(out) }
}

fn write_dump(
    name: &ServerName,
    dumped: Result<Dump, String>,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    out.text(format_args!("{name}:\n"))?;
    match dumped {
        Ok(mut dump) => {
            out.text(format_args!("storing {} key-value pairs:\n", dump.pairs))?;
            out.copy(&mut dump.lines)
        }
        Err(reason) => {
            // What was shown so far comes first, where both go to one terminal.
            out.finish()?;
            note(&reason);
            Ok(())
        }
    }
}

fn write_dump_json(
    name: &ServerName,
    dumped: Result<Dump, String>,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    match dumped {
        Ok(mut dump) => {
            let keys = dump.pairs;
            out.text(format_args!("{{\"server\":\"{name}\",\"state\":\"up\",\"keys\":{keys},\"entries\":["))?;
            out.copy(&mut dump.lines)?;
            out.bytes(b"]}")
        }
        Err(error) => out.json_part(&DownJson::new(name, error)),
    }
}

/// Pages through all that a server stores.
async fn dump(client: &Client, server: ServerIndex, format: Format) -> Result<Dump, Failure> {
    let mut lines = tempfile::spooled_tempfile(SPOOL_LEN);
    let mut pairs = 0;
    let mut after = None;
    loop {
        let page = client.page(server, after.clone()).await?;
        for entry in &page.entries {
            write_entry(entry, pairs == 0, format, &mut lines).map_err(Failure::Spool)?;
            pairs += 1;
        }
        // A server that repeats itself would never come to an end.
        if page.next.is_none() || page.next == after {
            break;
        }
        after = page.next;
    }
    lines.rewind().map_err(Failure::Spool)?;
    Ok(Dump { pairs, lines })
}

fn write_entry(entry: &dkvs::Entry, first: bool, format: Format, lines: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Text | Format::Raw => {
            writeln!(lines, "{} --> {}", escaped(&entry.key), escaped(&entry.value))
        }
        Format::Json => {
            lines.write_all(if first { b"" } else { b"," })?;
            let key = text_or_hex(&entry.key).map_or_else(KeyTextJson::Hex, KeyTextJson::Text);
            let value = text_or_hex(&entry.value).map_or_else(ValueTextJson::Hex, ValueTextJson::Text);
            Ok(serde_json::to_writer(lines, &EntryJson { key, value, siblings: entry.siblings })?)
        }
    }
}

#[derive(Serialize)]
struct StatusJson {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    servers: Vec<ServerJson>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ServerJson {
    Up(Box<UpJson>),
    Down(DownJson),
}

#[derive(Serialize)]
struct UpJson {
    server: String,
    state: &'static str,
    version: String,
    ring: String,
    uptime_ms: u64,
    keys: u64,
    tombstones: u64,
    bytes: u64,
    data_dir: String,
    clock_skew_ms: u64,
    junk_datagrams: u64,
    poisoned: Option<String>,
    disk_free: Option<u64>,
    disk_free_min: u64,
    damaged_found: u64,
    damaged_waiting: u64,
    scrubs: u64,
    siblings_warned: u64,
    partitions_unread: u64,
    reaped: u64,
    converges_ms: Option<u64>,
    peers: Vec<PeerJson>,
}

#[derive(Serialize)]
struct PeerJson {
    server: String,
    liveness: &'static str,
    since_ms: u64,
    reason: String,
    hints: u64,
    hint_bytes: u64,
    dirty_partitions: u64,
    agreed_ms: Option<u64>,
    differing_partitions: u64,
    records_moved: u64,
}

#[derive(Serialize)]
pub(crate) struct DownJson {
    server: String,
    state: &'static str,
    error: String,
}

impl DownJson {
    pub(crate) fn new(server: &ServerName, error: String) -> Self {
        Self { server: server.to_string(), state: "down", error }
    }
}

async fn status(client: &Client, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let statuses = ask_all(client).await;
    let answered = statuses.iter().any(Result::is_ok);
    let rows: Vec<_> = servers(client).map(|(_, name)| name).zip(statuses).collect();
    match out.format() {
        Format::Text | Format::Raw => {
            let header = ["SERVER", "STATE", "VERSION", "UPTIME", "AGREED", "KEYS", "BYTES"]
                .map(str::to_owned)
                .to_vec();
            let table: Vec<_> = std::iter::once(header).chain(rows.iter().map(status_row)).collect();
            write_table(&table, &[5, 6], out)?;
            out.finish()?;
            rows.iter().for_each(|(name, status)| remark_on(client, name, status));
        }
        Format::Json => {
            let (error, kind) =
                if answered { (None, None) } else { (Some("no server answered"), Some("unavailable")) };
            let servers = rows.into_iter().map(|(name, status)| server_json(client, name, status)).collect();
            out.json(&StatusJson { ok: answered, error, kind, servers })?;
        }
    }
    if answered { Ok(()) } else { nobody_answered(out) }
}

pub(crate) fn nobody_answered(out: &mut Output<impl Write>) -> Result<(), Failure> {
    out.finish()?;
    Err(Failure::NobodyAnswered)
}

/// All at once, so that many servers that are down take no longer than one.
async fn ask_all(client: &Client) -> Vec<Result<Status, dkvs::Error>> {
    let mut asked = JoinSet::new();
    for (server, _) in servers(client) {
        let client = client.clone();
        asked.spawn(async move { (server, client.status(server).await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(server, _)| *server);
    answers.into_iter().map(|(_, status)| status).collect()
}

fn status_row((name, status): &(&ServerName, Result<Status, dkvs::Error>)) -> Vec<String> {
    let server = name.to_string();
    match status {
        Ok(status) => {
            let (keys, bytes) = (status.keys.to_string(), status.bytes.to_string());
            let state = if status.poisoned.is_some() {
                "no writes"
            } else if status.is_full() {
                "disk full"
            } else {
                "up"
            };
            let (version, uptime) = (status.version.clone(), uptime(status.uptime));
            vec![server, state.into(), version, uptime, agreed(status), keys, bytes]
        }
        Err(_) => {
            let row = [&server, "down", "-", "-", "-", "-", "-"];
            row.map(str::to_owned).to_vec()
        }
    }
}

/// When it was found equal last to that of the others for which that is longest ago.
fn agreed(status: &Status) -> String {
    if status.converges.is_none() || status.peers.is_empty() {
        return "-".into();
    }
    let all: Option<Vec<Duration>> = status.peers.iter().map(|peer| peer.agreed).collect();
    let longest = all.and_then(|all| all.into_iter().max());
    longest.map_or_else(|| "not yet".into(), |longest| format!("{} ago", uptime(longest)))
}

/// What the table has no column for.
fn remark_on(client: &Client, name: &ServerName, status: &Result<Status, dkvs::Error>) {
    match status {
        Ok(status) => {
            let ours = client.ring().id().to_string();
            if status.ring != ours {
                note(&format!("{name} is on another ring ({}) than this client ({ours})", status.ring));
            }
            if let Some(reason) = &status.poisoned {
                note(&format!("{name} takes no more writes until it is restarted: {reason}"));
            }
            if let Some(free) = status.disk_free.filter(|_| status.is_full()) {
                let (path, needed) = (&status.data_dir, status.disk_free_min);
                note(&format!(
                    "{name} refuses puts: {path} has {free} bytes free, and {needed} must be (disk_free_bytes_min)"
                ));
            }
            if status.damaged_waiting > 0 {
                let count = status.damaged_waiting;
                note(&format!("{name} has {count} damaged record(s) that are not repaired yet; see its log"));
            }
            if status.partitions_unread > 0 {
                let count = status.partitions_unread;
                note(&format!(
                    "{name} has to read {count} partition(s) before it can compare them with others"
                ));
            }
            status.peers.iter().for_each(|peer| remark_on_peer(client, name, status, peer));
        }
        Err(error) => note(&error.to_string()),
    }
}

fn server_json(client: &Client, name: &ServerName, status: Result<Status, dkvs::Error>) -> ServerJson {
    let server = name.to_string();
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match status {
        Ok(status) => ServerJson::Up(Box::new(UpJson {
            server,
            state: "up",
            version: status.version,
            ring: status.ring,
            uptime_ms: ms(status.uptime),
            keys: status.keys,
            tombstones: status.tombstones,
            bytes: status.bytes,
            data_dir: status.data_dir,
            clock_skew_ms: ms(status.clock_skew),
            junk_datagrams: status.junk_datagrams,
            poisoned: status.poisoned,
            disk_free: status.disk_free,
            disk_free_min: status.disk_free_min,
            damaged_found: status.damaged_found,
            damaged_waiting: status.damaged_waiting,
            scrubs: status.scrubs,
            siblings_warned: status.siblings_warned,
            partitions_unread: status.partitions_unread,
            reaped: status.reaped,
            converges_ms: status.converges.map(ms),
            peers: status.peers.into_iter().filter_map(|peer| peer_json(client, peer)).collect(),
        })),
        Err(error) => ServerJson::Down(DownJson::new(name, error.to_string())),
    }
}

/// What one server sees amiss with another.
fn remark_on_peer(client: &Client, name: &ServerName, status: &Status, peer: &Peer) {
    let Some(other) = client.ring().servers().get(peer.server).map(|entry| &entry.name) else { return };
    if peer.liveness != Liveness::Up {
        let (liveness, since) = (in_words(peer.liveness), uptime(peer.since));
        note(&format!("{name} sees {other} {liveness} for {since}: it {}", peer.reason));
    }
    if peer.hints > 0 {
        note(&format!("{name} holds {} hint(s) of {} bytes for {other}", peer.hints, peer.hint_bytes));
    }
    if peer.dirty_partitions > 0 {
        let count = peer.dirty_partitions;
        note(&format!(
            "{name} knows of {count} partition(s) in which {other} missed writes and no hint is kept"
        ));
    }
    if peer.differing_partitions > 0 {
        let (count, moved) = (peer.differing_partitions, peer.records_moved);
        note(&format!(
            "{name} is making equal {count} partition(s) that it and {other} hold; {moved} record(s) moved so far"
        ));
    }
    if let Some(within) = status.converges
        && peer.liveness == Liveness::Up
        && let disagree = peer.agreed.unwrap_or(status.uptime).min(peer.since)
        && disagree > within
    {
        let (disagree, within) = (uptime(disagree), uptime(within));
        note(&format!(
            "{name} and {other} have not been found equal for {disagree}: it takes at most {within} when both have time"
        ));
    }
}

/// `None` for a server that is not on the client's ring.
fn peer_json(client: &Client, peer: Peer) -> Option<PeerJson> {
    Some(PeerJson {
        server: client.ring().servers().get(peer.server)?.name.to_string(),
        liveness: in_words(peer.liveness),
        since_ms: u64::try_from(peer.since.as_millis()).unwrap_or(u64::MAX),
        reason: peer.reason,
        hints: peer.hints,
        hint_bytes: peer.hint_bytes,
        dirty_partitions: peer.dirty_partitions,
        agreed_ms: peer.agreed.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        differing_partitions: peer.differing_partitions,
        records_moved: peer.records_moved,
    })
}

fn in_words(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Up => "up",
        Liveness::Suspect => "suspect",
        Liveness::Down => "down",
    }
}

/// The two largest units: `3d 4h`, `2h 5m`, `3m 12s`, `12s`.
fn uptime(uptime: Duration) -> String {
    let s = uptime.as_secs();
    match (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

/// Columns two spaces apart; those in `numbers` are aligned on their right.
pub(crate) fn write_table(
    rows: &[Vec<String>],
    numbers: &[usize],
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.len())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter().try_for_each(|row| {
        let cell = |(column, cell): (usize, &String)| {
            let width = widths[column];
            if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
        out.text(format_args!("{}\n", line.trim_end()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_show_their_two_largest_units() {
        let texts = [0, 12, 192, 7_500, 273_600, 864_000].map(|s| uptime(Duration::from_secs(s)));
        assert_eq!(texts, ["0s", "12s", "3m 12s", "2h 5m", "3d 4h", "10d 0h"]);
    }
}
