//! Real servers on a real network that breaks on purpose, and real clients that remember what they were promised.
//!
//! ```text
//!   test process ── unshare: own network, mounts, processes ──> test process, inside
//!                                                                 │ clients 10.77.0.101..
//!                                                              bridge
//!                                       ┌──────────┬──────────┬──┴───────┬──────────┐
//!                                  10.77.0.1  10.77.0.2  10.77.0.3  10.77.0.4  10.77.0.5     a namespace and a
//!                                    server     server     server     server     server      dkvs-server each
//! ```
//! For a while one nemesis breaks the network (packet filters that lose, repeat and cut, one way or both, and slow
//! links) and another breaks servers (kill -9 of one or all, SIGSTOP, SIGTERM, a full disk), while clients work. Then
//! everything is healed, every key is read through every server, and what the clients saw is checked.
//!
//! All that a run makes (namespaces, bridge, mounts, processes) lives in namespaces of its own and ends with the one
//! process that holds them, however that ends: there is nothing to sweep up, and nothing outside can be hit. Root is
//! not needed where the system lets everybody have user namespaces.
//!
//! What it leaves out: power cuts (killed processes leave the page cache), corruption on the wire (the kernel's
//! checksums drop it), reordering other than by slow links, clock jumps. The simulator has those. A seed repeats the
//! faults that are planned, not the run.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DKVS_CHAOS_SECONDS` | how long a run takes, about, after the server was built; 0 skips it | 60 |
//! | `DKVS_CHAOS_SEED` | which faults, in which order | a new one every time |
//! | `DKVS_CHAOS_REQUIRE` | if set, not being able to run is a failure | a skip |
//! | `DKVS_CHAOS_KEEP` | if set, logs and history are kept, until the next run | kept when it failed |
//! | `DKVS_CHAOS_SERVER` | a `dkvs-server` to use | built in release mode |

#![allow(clippy::unwrap_used)]

mod sandbox;

mod network;

mod servers;

mod nemesis;

mod record;

mod workload;

mod verdict;

mod run;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use crate::sandbox::Ended;

/// The one test's name, for filters.
const NAME: &str = "real_servers_keep_their_promises_under_chaos";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(plan) = sandbox::inside(&arguments) {
        return run::inside(&plan);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        let _ = writeln!(std::io::stdout(), "{NAME}: test");
        return ExitCode::SUCCESS;
    }
    if !wanted(&arguments) {
        return ExitCode::SUCCESS;
    }
    match sandbox::run() {
        Ended::Passed => {
            say(format_args!("test {NAME} ... ok"));
            ExitCode::SUCCESS
        }
        Ended::Skipped(why) if std::env::var_os("DKVS_CHAOS_REQUIRE").is_none() => {
            say(format_args!("test {NAME} ... SKIPPED: {why}"));
            ExitCode::SUCCESS
        }
        Ended::Skipped(why) => {
            say(format_args!("test {NAME} ... FAILED: cannot run, but DKVS_CHAOS_REQUIRE is set: {why}"));
            ExitCode::FAILURE
        }
        Ended::Failed(why) => {
            say(format_args!("test {NAME} ... FAILED: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether the command line of `cargo test` asks for this test.
fn wanted(arguments: &[String]) -> bool {
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let named = |filter: &str| if exact { NAME == filter } else { NAME.contains(filter) };
    let mut filters = Vec::new();
    let mut skips = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            // It is not an ignored test.
            "--ignored" => return false,
            "--skip" => skips.extend(rest.next()),
            "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(rest.next()),
            flag if flag.starts_with('-') => {}
            _ => filters.push(argument),
        }
    }
    (filters.is_empty() || filters.into_iter().any(|filter| named(filter)))
        && !skips.into_iter().any(|skip| named(skip))
}

/// Tells whoever watches.
fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
