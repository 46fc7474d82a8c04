//! How often each limit is reached in a sweep: `cargo run --release -p dkvs-sim --example limits -- FIRST COUNT`.
//!
//! For each gauge: the highest peak, in how many seeds a life came to its limit, in how many something found no room, and the
//! limits met with. Prints violations too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write, stdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use dkvs_sim::plan::Wishes;
use dkvs_sim::run::{Report, run};

const JOBS: usize = 2;

/// Whose gauge, and its name.
type Name = (&'static str, &'static str);

#[derive(Default)]
struct Seen {
    peak: u64,
    limits: BTreeSet<u64>,
    reached: BTreeSet<u64>,
    full: BTreeSet<u64>,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap_or(1));
    let (first, count) = (arguments.next().unwrap_or(1), arguments.next().unwrap_or(100));
    let next = AtomicU64::new(first);
    let gauges: Mutex<BTreeMap<Name, Seen>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let report = run(seed, Wishes::default(), false);
                    look(&report, &mut gauges.lock().unwrap_or_else(PoisonError::into_inner));
                }
            });
        }
    });
    for ((who, name), seen) in gauges.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let (reached, full) = (seen.reached.len(), seen.full.len());
        let Seen { peak, limits, .. } = seen;
        writeln!(
            stdout(),
            "{who:6} {name:22} peak {peak:9}, reached in {reached:4} seeds, full in {full:4}; {limits:?}"
        )?;
    }
    Ok(())
}

fn look(report: &Report, gauges: &mut BTreeMap<Name, Seen>) {
    for violation in &report.violations {
        // Whoever reads may have stopped.
        let _ = writeln!(stdout(), "seed {}: {}: {}", report.seed, violation.invariant, violation.what);
    }
    for life in &report.history.lives {
        let who = if life.who.starts_with("server") { "server" } else { "client" };
        for level in &life.levels {
            let seen = gauges.entry((who, level.name)).or_default();
            seen.peak = seen.peak.max(level.peak);
            seen.limits.insert(level.limit);
            if level.peak >= level.limit {
                seen.reached.insert(report.seed);
            }
            if level.full > 0 {
                seen.full.insert(report.seed);
            }
        }
    }
}
