//! The DKVS server: parses, reads its configuration, wires a store and a port to a server, and runs until a signal.
//!
//! Without a server's name it is a whole [`local`] cluster in one process, with one it is a [`single`] server. Both
//! come to the same: a list of [`running`] servers, and a [`banner`] that says what they are.
//!
//! ```text
//!   args ──┐                      ┌─> local  ─┐
//!          ├─> config ─> settings ┤           ├─> listen ─> running (data directory, store, server) ─> banner
//!   file ──┘                      └─> single ─┘                                                          │
//!                                                      stop, mark the data directory clean <─ signals <──┘
//! ```
//!
//! Ports are bound before data directories are touched, and the banner is printed when all servers listen: a failed
//! start leaves no traces, and who waits for the banner may send.
//!
//! `dkvs-server check` looks at the data directory of a server that is stopped, and runs nothing.
//!
//! Exit status: 0 after a clean stop, 1 when something failed, 2 for a wrong command line, 130 when a second signal
//! cut the stop short.

mod args;

mod config;

mod settings;

mod logging;

mod local;

mod single;

mod remembered;

mod listen;

mod running;

mod banner;

mod signals;

mod inspect;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use dkvs_core::limits::KEY_LEN_MAX;

use crate::args::{Args, Flags, LocalPlan, Plan, SinglePlan};
use crate::config::Config;
use crate::settings::Settings;

const _: () = assert!(KEY_LEN_MAX == 32_768, "the help says how long a key may be");

fn main() -> ExitCode {
    let (flags, plan) = Args::parse().into_plan().unwrap_or_else(|error| error.exit());
    let ended = match plan {
        Plan::Check(data_dir) => return inspect::run(&data_dir),
        Plan::Local(local) => run(&flags, Servers::Local(local)),
        Plan::Single(single) => run(&flags, Servers::Single(single)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even this cannot be written, the exit status has to do.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be run.
enum Servers {
    Local(LocalPlan),
    Single(SinglePlan),
}

fn run(flags: &Flags, servers: Servers) -> anyhow::Result<()> {
    let mut config = match &flags.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.override_with(flags);
    logging::start(flags.log.as_deref(), &config)?;
    let settings = Settings::new(config)?;

    let mut builder = tokio::runtime::Builder::new_multi_thread();
    settings.threads.map(|threads| builder.worker_threads(threads));
    let runtime = builder.enable_all().build().context("cannot start the runtime's threads")?;
    let result = runtime.block_on(async {
        let (servers, banner) = match servers {
            Servers::Local(local) => local::start(&local, &settings).await?,
            Servers::Single(single) => single::start(single, &settings).await?,
        };
        running::until_signal(servers, &banner, settings.stop_grace).await
    });
    // Everything that matters has been waited for.
    runtime.shutdown_background();
    result
}
