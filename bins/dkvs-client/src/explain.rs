//! What the owners of a key hold of it, side by side: who has heard of which events, what is left of them, and what is kept for
//! whom.
//!
//! Each owner is asked for its own record and nothing else, so a read repair does not hide what differs. Values are not shown: their
//! sizes are. The other servers are asked too, and those that keep hints of the key are shown: they may have stood in for an owner. One
//! that does not answer may keep some, and is named.

use std::collections::BTreeSet;
use std::io::Write;

use bytes::Bytes;
use dkvs::{
    Dot, HintReport, KeyReport, Partition, Position, ServerIndex, ServerName, SiblingReport, SiblingState,
};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::connect::Cluster;
use crate::failure::Failure;
use crate::inspect::{DownJson, nobody_answered, write_table};
use crate::output::{Format, Output, note};

/// An owner, and what it answered.
type Owner = (ServerIndex, Result<KeyReport, dkvs::Error>);

pub(crate) async fn run(cluster: &Cluster, key: &Bytes, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut owners = ask_all(cluster, key).await;
    let others = owners.split_off(cluster.n().min(owners.len()));
    let answered = owners.iter().any(|(_, report)| report.is_ok());
    let others: Vec<_> = others.into_iter().filter(|(_, report)| may_keep_hints(report)).collect();
    match out.format() {
        Format::Text | Format::Raw => write_owners(cluster, key, &owners, &others, out)?,
        Format::Json => out.json(&explained_json(cluster, key, &owners, &others))?,
    }
    if answered { Ok(()) } else { nobody_answered(out) }
}

fn may_keep_hints(report: &Result<KeyReport, dkvs::Error>) -> bool {
    report.as_ref().map_or(true, |report| !report.hints.is_empty())
}

/// All servers at once, in the order of the preference list: the owners first.
async fn ask_all(cluster: &Cluster, key: &Bytes) -> Vec<Owner> {
    let mut asked = JoinSet::new();
    let ring = cluster.client.ring();
    for (place, &owner) in ring.owners_of_key(key, ring.servers().len()).iter().enumerate() {
        let (client, key) = (cluster.client.clone(), key.clone());
        asked.spawn(async move { (place, owner, client.explain(owner, key).await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(place, ..)| *place);
    answers.into_iter().map(|(_, owner, report)| (owner, report)).collect()
}

/// Whether all owners hold the same; `None` when not all have told.
fn agree(owners: &[Owner]) -> Option<bool> {
    let told =
        |report: &Result<KeyReport, _>| Some(report.as_ref().ok().filter(|report| !report.is_damaged)?.hash);
    let hashes: Option<BTreeSet<_>> = owners.iter().map(|(_, report)| told(report)).collect();
    hashes.map(|hashes| hashes.len() <= 1)
}

fn name_of(cluster: &Cluster, server: ServerIndex) -> Option<&ServerName> {
    cluster.client.ring().servers().get(server).map(|entry| &entry.name)
}

// -------------------------------------------------------------------------------------------------------------- text

fn write_owners(
    cluster: &Cluster,
    key: &Bytes,
    owners: &[Owner],
    others: &[Owner],
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let (position, partition) = (Position::of_key(key), Partition::of_key(key));
    out.text(format_args!("position {position}, partition {partition}\n"))?;
    for (owner, report) in owners {
        let Some(name) = name_of(cluster, *owner) else { continue };
        match report {
            Ok(report) if report.is_damaged => {
                out.text(format_args!("{name}: damaged, not repaired yet\n"))?;
            }
            Ok(report) if report.vv.is_empty() => out.text(format_args!("{name}: nothing\n"))?,
            Ok(report) => {
                let KeyReport { hash, bytes, .. } = report;
                out.text(format_args!("{name}: record {hash:?}, {bytes} bytes\n"))?;
            }
            Err(_) => out.text(format_args!("{name}: down\n"))?,
        }
        if let Ok(report) = report {
            write_table(&event_rows("  ", &report.vv, &report.siblings, report.clock_ms), &[], out)?;
            write_hints(cluster, report, out)?;
        }
    }
    for (server, report) in others {
        let Some(name) = name_of(cluster, *server) else { continue };
        match report {
            Ok(report) => {
                out.text(format_args!("{name}: does not own the key\n"))?;
                write_hints(cluster, report, out)?;
            }
            Err(_) => {
                out.text(format_args!("{name}: down, does not own the key and may keep hints of it\n"))?;
            }
        }
    }
    let verdict = match agree(owners) {
        Some(true) => "all owners hold the same",
        Some(false) => "owners hold different records",
        None => "not all owners could tell",
    };
    out.text(format_args!("{verdict}\n"))?;
    out.finish()?;
    let asked = owners.iter().chain(others);
    asked.filter_map(|(_, report)| report.as_ref().err()).for_each(|error| note(&error.to_string()));
    Ok(())
}

fn write_hints(cluster: &Cluster, report: &KeyReport, out: &mut Output<impl Write>) -> Result<(), Failure> {
    for hint in &report.hints {
        let Some(target) = name_of(cluster, hint.target) else { continue };
        out.text(format_args!("  hint for {target}: {}, {} bytes\n", hint_hash(hint), hint.bytes))?;
        write_table(&event_rows("    ", &hint.vv, &hint.siblings, report.clock_ms), &[], out)?;
    }
    Ok(())
}

fn event_rows(indent: &str, vv: &[Dot], siblings: &[SiblingReport], clock_ms: u64) -> Vec<Vec<String>> {
    let knows = vv.iter().map(|dot| vec![format!("{indent}knows"), format!("{dot:?}")]);
    let holds = siblings.iter().map(|sibling| sibling_row(indent, sibling, clock_ms));
    knows.chain(holds).collect()
}

fn sibling_row(indent: &str, sibling: &SiblingReport, clock_ms: u64) -> Vec<String> {
    let (kind, size) = match sibling.state {
        SiblingState::Value => ("value", format!("{} B", sibling.len)),
        SiblingState::Tombstone => ("deletion", "-".into()),
        SiblingState::Dropped => ("dropped", "-".into()),
    };
    let expiry = sibling.expires.map(|at| {
        let word = if at <= clock_ms { "expired" } else { "expires" };
        format!("{word} {}", utc(at))
    });
    let row = [format!("{indent}{kind}"), format!("{:?}", sibling.dot), utc(sibling.hlc.wall_ms()), size];
    row.into_iter().chain(expiry).collect()
}

fn hint_hash(hint: &HintReport) -> String {
    hint.hash.map_or_else(|| "damaged".into(), |hash| format!("record {hash:?}"))
}

/// A time in UTC, to the second; `-` for 1970, which is what pairs given to servers at their start have.
fn utc(ms: u64) -> String {
    if ms == 0 {
        return "-".into();
    }
    let s = ms / 1_000;
    // Days since 0000-03-01, with which every year of the calendar ends in its leap day, if it has one.
    let days = s / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day + 2) / 153;
    let day = day - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, m, s) = (s / 3_600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

// -------------------------------------------------------------------------------------------------------------- JSON

#[derive(Serialize)]
struct ExplainedJson {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    position: String,
    partition: String,
    /// `null` when not all owners could tell.
    agree: Option<bool>,
    owners: Vec<OwnerJson>,
    others: Vec<OtherJson>,
}

/// A server that does not own the key and keeps hints of it, or may.
#[derive(Serialize)]
#[serde(untagged)]
enum OtherJson {
    Up(HolderJson),
    Down(DownJson),
}

#[derive(Serialize)]
struct HolderJson {
    server: String,
    state: &'static str,
    hints: Vec<HintJson>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OwnerJson {
    Up(UpJson),
    Down(DownJson),
}

#[derive(Serialize)]
struct UpJson {
    server: String,
    state: &'static str,
    clock_ms: u64,
    damaged: bool,
    hash: String,
    bytes: u64,
    version_vector: Vec<String>,
    siblings: Vec<SiblingJson>,
    hints: Vec<HintJson>,
}

#[derive(Serialize)]
struct SiblingJson {
    dot: String,
    op: String,
    written_ms: u64,
    hlc: u64,
    state: &'static str,
    bytes: u64,
    expires_ms: Option<u64>,
    expired: bool,
}

#[derive(Serialize)]
struct HintJson {
    #[serde(rename = "for")]
    target: String,
    /// `null` when it is damaged.
    hash: Option<String>,
    bytes: u64,
    version_vector: Vec<String>,
    siblings: Vec<SiblingJson>,
}

fn explained_json(cluster: &Cluster, key: &Bytes, owners: &[Owner], others: &[Owner]) -> ExplainedJson {
    let ok = owners.iter().any(|(_, report)| report.is_ok());
    let (error, kind) = if ok { (None, None) } else { (Some("no server answered"), Some("unavailable")) };
    ExplainedJson {
        ok,
        error,
        kind,
        position: Position::of_key(key).to_string(),
        partition: Partition::of_key(key).to_string(),
        agree: agree(owners),
        owners: owners.iter().filter_map(|(owner, report)| owner_json(cluster, *owner, report)).collect(),
        others: others.iter().filter_map(|(server, report)| other_json(cluster, *server, report)).collect(),
    }
}

fn other_json(
    cluster: &Cluster,
    server: ServerIndex,
    report: &Result<KeyReport, dkvs::Error>,
) -> Option<OtherJson> {
    let name = name_of(cluster, server)?;
    Some(match report {
        Ok(report) => OtherJson::Up(HolderJson {
            server: name.to_string(),
            state: "up",
            hints: hints_json(cluster, report),
        }),
        Err(error) => OtherJson::Down(DownJson::new(name, error.to_string())),
    })
}

fn owner_json(
    cluster: &Cluster,
    owner: ServerIndex,
    report: &Result<KeyReport, dkvs::Error>,
) -> Option<OwnerJson> {
    let server = name_of(cluster, owner)?;
    Some(match report {
        Ok(report) => OwnerJson::Up(UpJson {
            server: server.to_string(),
            state: "up",
            clock_ms: report.clock_ms,
            damaged: report.is_damaged,
            hash: format!("{:?}", report.hash),
            bytes: report.bytes,
            version_vector: dots_json(&report.vv),
            siblings: siblings_json(&report.siblings, report.clock_ms),
            hints: hints_json(cluster, report),
        }),
        Err(error) => OwnerJson::Down(DownJson::new(server, error.to_string())),
    })
}

fn dots_json(vv: &[Dot]) -> Vec<String> {
    vv.iter().map(|dot| format!("{dot:?}")).collect()
}

fn siblings_json(siblings: &[SiblingReport], clock_ms: u64) -> Vec<SiblingJson> {
    siblings.iter().map(|sibling| sibling_json(sibling, clock_ms)).collect()
}

fn sibling_json(sibling: &SiblingReport, clock_ms: u64) -> SiblingJson {
    SiblingJson {
        dot: format!("{:?}", sibling.dot),
        op: format!("{:?}", sibling.op),
        written_ms: sibling.hlc.wall_ms(),
        hlc: sibling.hlc.bits(),
        state: match sibling.state {
            SiblingState::Value => "value",
            SiblingState::Tombstone => "deletion",
            SiblingState::Dropped => "dropped",
        },
        bytes: sibling.len,
        expires_ms: sibling.expires,
        expired: sibling.expires.is_some_and(|at| at <= clock_ms),
    }
}

fn hints_json(cluster: &Cluster, report: &KeyReport) -> Vec<HintJson> {
    report.hints.iter().filter_map(|hint| hint_json(cluster, hint, report.clock_ms)).collect()
}

fn hint_json(cluster: &Cluster, hint: &HintReport, clock_ms: u64) -> Option<HintJson> {
    Some(HintJson {
        target: name_of(cluster, hint.target)?.to_string(),
        hash: hint.hash.map(|hash| format!("{hash:?}")),
        bytes: hint.bytes,
        version_vector: dots_json(&hint.vv),
        siblings: siblings_json(&hint.siblings, clock_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        for (s, text) in [
            (0, "-"),
            (1, "1970-01-01T00:00:01Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(s * 1_000), text);
        }
        assert_eq!(utc(u64::MAX >> 16), "10889-08-02T05:31:50Z");
    }
}
