//! One run: build up, break, heal, read everything, judge.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::nemesis::{self, Bell};
use crate::network::{self, SERVERS};
use crate::record::{Record, write_history};
use crate::sandbox::{NoSandbox, Plan};
use crate::say;
use crate::servers::Servers;
use crate::verdict::{self, Evidence, Reader};
use crate::workload::Workload;

/// Of a run's time, what is kept for healing, reading everything and judging; and how long things break at least.
const AFTERWARDS: Duration = Duration::from_secs(10);
const FAULTS_MIN: Duration = Duration::from_secs(5);
/// After the faults, how soon every server must coordinate requests that need all owners.
const PROGRESS_MAX: Duration = Duration::from_secs(30);
/// How soon all owners must agree on everything when it is read.
const CONVERGENCE_MAX: Duration = Duration::from_secs(60);
/// How late this process may be woken is measured this often.
const LATENESS_PERIOD: Duration = Duration::from_millis(10);
/// Violations shown, and how much of each; all of all are in the run's directory.
const SHOWN_MAX: usize = 20;
const SHOWN_LEN_MAX: usize = 600;

/// The inner run.
pub(crate) fn inside(plan: &Plan) -> ExitCode {
    let start = Instant::now();
    let servers = match network::set_up().and_then(|()| Servers::new(plan)) {
        Ok(servers) => servers,
        Err(error) => return error.report(plan).into(),
    };
    match run(plan, start, &servers) {
        Ok(troubles) if troubles.is_empty() => ExitCode::SUCCESS,
        Ok(troubles) => {
            let _ = std::fs::write(plan.directory.join("violations"), troubles.join("\n"));
            for trouble in troubles.iter().take(SHOWN_MAX) {
                let start: String = trouble.chars().take(SHOWN_LEN_MAX).collect();
                say(format_args!("chaos: VIOLATION: {start}"));
            }
            say(format_args!("chaos: {} violations", troubles.len()));
            ExitCode::FAILURE
        }
        Err(error) => {
            say(format_args!("chaos: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan, start: Instant, servers: &Servers) -> Result<Vec<String>, NoSandbox> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let record = Arc::new(Record::new(&plan.directory));
    if let Err(why) = servers.start(&(0..SERVERS).collect::<Vec<_>>()) {
        record.trouble(why);
        return Ok(record.troubles());
    }
    let reader = runtime.block_on(Reader::new(record.clone()));
    let work = Arc::new(Workload::new(record.clone()));
    let lateness = runtime.spawn(lateness(work.clone()));
    let working = runtime.spawn({
        let (work, seed) = (work.clone(), plan.seed);
        async move { work.run(seed).await }
    });

    let faults = plan.run.saturating_sub(start.elapsed() + AFTERWARDS).max(FAULTS_MIN);
    record.note(format_args!("things break for {faults:?}"));
    torment(plan.seed, faults, servers, &record, &runtime, &reader);
    servers.heal(&record);
    let healed = record.now();
    record.note("healed");

    runtime.block_on(async {
        for server in 0..SERVERS {
            let deadline = Instant::now() + PROGRESS_MAX;
            while !reader.serves(server).await {
                if Instant::now() > deadline {
                    let number = 1 + server;
                    record.trouble(format_args!(
                        "server {number} did not serve within {PROGRESS_MAX:?} of healing"
                    ));
                    break;
                }
            }
        }
        work.stop();
        working.await.expect("clients do not panic");
    });
    let lateness = runtime.block_on(lateness).expect("it only measures");
    record.note(format_args!("clients have stopped; this process was woken at most {lateness:?} late"));

    let keys = work.keys();
    let ends = runtime.block_on(reader.read_everything(&keys, CONVERGENCE_MAX));
    record.note("everything was read");
    servers.fallen(&record);
    let resident = servers.resident(&record);
    let operations = record.operations();
    let written = write_history(&plan.directory.join("history.txt"), &operations);
    written.expect("the run's directory can be written");

    let mut troubles = record.troubles();
    troubles.extend(servers.panics());
    troubles.extend(verdict::judge(&Evidence {
        keys: &keys,
        operations: &operations,
        ends: &ends,
        begun_twice: &record.begun_twice(),
        healed,
        lateness,
    }));
    let seconds = start.elapsed().as_secs();
    let (keys, summary) = (keys.len(), record.summary());
    say(format_args!(
        "chaos: {seconds} s, {keys} keys, {summary}, at most {resident} MiB resident in a server"
    ));
    Ok(troubles)
}

/// Breaks things for so long.
fn torment(
    seed: u64,
    faults: Duration,
    servers: &Servers,
    record: &Record,
    runtime: &Runtime,
    reader: &Reader,
) {
    let bell = Bell::default();
    let works = |server| runtime.block_on(reader.stores(server));
    std::thread::scope(|scope| {
        scope.spawn(|| nemesis::break_network(seed, record, &bell));
        scope.spawn(|| nemesis::break_servers(seed, servers, record, &bell, &works));
        // Nothing else rings it.
        bell.wait(faults);
        bell.ring();
    });
}

/// How late this process was woken at worst while clients worked: their deadlines are no more exact than that.
async fn lateness(work: Arc<Workload>) -> Duration {
    let mut worst = Duration::ZERO;
    while !work.is_stopped() {
        let due = Instant::now() + LATENESS_PERIOD;
        tokio::time::sleep_until(due).await;
        worst = worst.max(due.elapsed());
    }
    worst
}
