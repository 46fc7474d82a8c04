//! `dkvs-server check`: looks at the data of a server that is stopped, and says what is wrong with it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::anyhow;
use dkvs_cluster::check::{Finding, Summary, check};
use dkvs_storage::{DataDir, FjallConfig, FjallStore, Start, Store};

use crate::running::{advice, store_advice};

/// Findings that are listed; more are only counted.
const LISTED_MAX: u64 = 1_000;

/// Looks, and prints what it sees.
pub(crate) fn run(data_dir: &Path) -> ExitCode {
    match look(data_dir) {
        Ok(summary) if summary.findings == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // Where even this cannot be written, the exit status has to do.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn look(path: &Path) -> anyhow::Result<Summary> {
    let began = Instant::now();
    let (dir, start, owner) =
        DataDir::open_existing(path).map_err(|error| anyhow!("{error}{}", advice(&error)))?;
    let store = FjallStore::open(&dir.store_path(), &FjallConfig::default());
    let store = store.map_err(|error| anyhow!("{error}{}", store_advice(&error)))?;
    let mut out = io::stdout().lock();
    let stop = match start {
        Start::Clean => "stopped cleanly",
        Start::New | Start::Unclean => "not stopped cleanly, or copied",
    };
    // Who has closed stdout still gets the exit status, and a directory as it was.
    let _ = writeln!(out, "{}: data of {owner}, {stop}", path.display());
    let mut listed = 0;
    let tell = |finding: Finding| {
        listed += 1;
        if listed <= LISTED_MAX {
            let _ = writeln!(out, "  {finding}");
        }
    };
    let summary = check(&store, tell)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(store.close())?;
    drop(store);
    if start == Start::Clean {
        // What looking at it has cost is given back.
        dir.mark_clean()?;
    }
    match print(&summary, began, &mut out) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(summary),
    }
}

fn print(summary: &Summary, began: Instant, out: &mut impl Write) -> io::Result<()> {
    let Summary { records, keys, keys_with_siblings, tombstones, bytes, partitions, .. } = summary;
    let Summary { hints, dirty_partitions, identity, findings, .. } = summary;
    if *findings > LISTED_MAX {
        writeln!(out, "  and {} more", findings - LISTED_MAX)?;
    }
    writeln!(
        out,
        "  records    {records}: {keys} with a value ({keys_with_siblings} with several), {tombstones} deleted"
    )?;
    writeln!(out, "  bytes      {bytes} in {partitions} partitions")?;
    writeln!(
        out,
        "  hints      {hints} for other servers, and {dirty_partitions} partitions in which one has missed more"
    )?;
    match identity {
        Some((incarnation, lease)) => {
            writeln!(out, "  identity   incarnation {incarnation:016x}, epochs leased up to {lease}")?;
        }
        None => writeln!(out, "  identity   none yet")?,
    }
    match findings {
        0 => writeln!(out, "  wrong      nothing")?,
        findings => writeln!(
            out,
            "  wrong      {findings}: start the server, and it repairs damaged records from the other servers; if part of the \
             data cannot be read at all, start it with an empty directory"
        )?,
    }
    writeln!(out, "  took       {:.1} s", began.elapsed().as_secs_f64())
}
