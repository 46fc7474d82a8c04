//! Runs seeds of the simulator, and prints the command that repeats each one that fails.

use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use dkvs_sim::plan::Wishes;
use dkvs_sim::run::{Report, run, tally};

/// Runs DKVS in a simulated world: servers, clients, network, disks and clocks in one process, all from a seed.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Runs this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs so many seeds, counting up from --seed, or from a random one.
    #[arg(long)]
    seeds: Option<u64>,
    /// Runs the seeds listed in a file: a number, then a comment after #.
    #[arg(long)]
    regressions: Option<PathBuf>,
    /// Stops starting new seeds after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Starts no more seeds after the first that failed, and says how many it took.
    #[arg(long)]
    until_failure: bool,
    /// Seeds run side by side.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Client operations before the faults end.
    #[arg(long)]
    steps: Option<usize>,
    /// Servers.
    #[arg(long)]
    servers: Option<u16>,
    /// Prints every event, and the logs of servers and clients as RUST_LOG asks.
    #[arg(long)]
    trace: bool,
}

impl Arguments {
    fn wishes(&self) -> Wishes {
        Wishes { steps: self.steps, servers: self.servers }
    }

    /// The command that repeats a seed.
    fn again(&self, seed: u64) -> String {
        let mut command = format!("cargo run --release -p dkvs-sim -- --seed {seed}");
        if let Some(steps) = self.steps {
            command += &format!(" --steps {steps}");
        }
        if let Some(servers) = self.servers {
            command += &format!(" --servers {servers}");
        }
        command
    }

    fn seeds(&self) -> Result<Seeds> {
        if let Some(path) = &self.regressions {
            return Ok(Seeds::Listed(read_seeds(path)?));
        }
        let first = self.seed.unwrap_or_else(|| rand::random::<u64>() >> 16);
        let default = if self.minutes.is_none() { 1 } else { u64::MAX >> 16 };
        Ok(Seeds::Counted { first, count: self.seeds.unwrap_or(default) })
    }
}

/// Which seeds to run.
enum Seeds {
    Listed(Vec<u64>),
    Counted { first: u64, count: u64 },
}

impl Seeds {
    fn get(&self, index: u64) -> Option<u64> {
        match self {
            Self::Listed(seeds) => seeds.get(usize::try_from(index).ok()?).copied(),
            Self::Counted { first, count } => (index < *count).then(|| first.wrapping_add(index)),
        }
    }

    fn is_one(&self) -> bool {
        self.get(1).is_none()
    }

    /// What a sweep tells before it starts, so that a sweep that is cut off can be repeated.
    fn announcement(&self) -> Option<String> {
        match self {
            Self::Listed(seeds) => Some(format!("{} listed seeds", seeds.len())),
            Self::Counted { first, .. } if !self.is_one() => Some(format!("seeds from {first}")),
            Self::Counted { .. } => None,
        }
    }
}

fn read_seeds(path: &Path) -> Result<Vec<u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let seeds = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let seeds = seeds.filter(|seed| !seed.is_empty());
    seeds.map(|seed| seed.parse().with_context(|| format!("{seed:?} is not a seed"))).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.trace {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
    }
    let seeds = arguments.seeds()?;
    if let Some(announcement) = seeds.announcement() {
        writeln!(stdout(), "{announcement}")?;
    }
    let failed = sweep(&arguments, &seeds)?;
    if failed > 0 {
        bail!("{failed} seeds failed");
    }
    Ok(())
}

fn sweep(arguments: &Arguments, seeds: &Seeds) -> Result<u64> {
    let start = Instant::now();
    let limit = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let (sender, reports) = mpsc::channel::<Report>();
    let mut failed = 0;
    let mut done = 0_u32;
    let mut simulated = Duration::ZERO;
    thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            let (sender, next, over) = (sender.clone(), &next, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) && limit.is_none_or(|limit| start.elapsed() < limit) {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if sender.send(run(seed, arguments.wishes(), arguments.trace)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for report in reports {
            done += 1;
            simulated += report.simulated;
            failed += u64::from(!report.violations.is_empty());
            let shown = show(arguments, &report, seeds.is_one()).and_then(|()| {
                let first = report.violations.first().filter(|_| arguments.until_failure && failed == 1);
                let Some(violation) = first else { return Ok(()) };
                over.store(true, Ordering::Relaxed);
                writeln!(stdout(), "first failure after {done} seeds: {}", violation.invariant)
            });
            if shown.is_err() {
                // Nobody reads any more.
                over.store(true, Ordering::Relaxed);
            }
        }
    });
    let took = start.elapsed();
    let rate = f64::from(done) / took.as_secs_f64() * 60.0;
    writeln!(
        stdout(),
        "{done} seeds, {failed} failed, {:.0} s simulated in {:.1} s, {rate:.0} seeds a minute",
        simulated.as_secs_f64(),
        took.as_secs_f64(),
    )?;
    Ok(failed)
}

fn show(arguments: &Arguments, report: &Report, is_only: bool) -> std::io::Result<()> {
    let mut out = stdout().lock();
    if is_only || !report.violations.is_empty() {
        let [written, read, failed, unknown, unavailable] = tally(&report.history);
        writeln!(
            out,
            "seed {}: trace {:016x}, {} events, {:.1} s simulated; {written} written, {read} read, {failed} failed, \
             {unknown} unknown, {unavailable} unavailable; {} damages",
            report.seed,
            report.hash,
            report.events,
            report.simulated.as_secs_f64(),
            report.history.damage.len(),
        )?;
    }
    for violation in &report.violations {
        writeln!(out, "  {}: {}", violation.invariant, violation.what)?;
    }
    if !report.violations.is_empty() {
        writeln!(out, "  again: {}", arguments.again(report.seed))?;
    }
    Ok(())
}
