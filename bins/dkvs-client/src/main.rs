//! The command line client: one operation, its answer on stdout, and an exit status that says what became of it.
//!
//! ```text
//!   args ──> connect ──> ops | inspect ──> output
//!   input    a ring      the cluster       OK, FAIL, tables; the exit status
//! ```
//!
//! Whatever can be wrong with the command itself is found before an operation is sent, and is a usage error: in words
//! on stderr, status 2, nothing on stdout. All other endings are a [`Failure`], which knows its own status.

mod args;

mod input;

mod connect;

mod ops;

mod inspect;

mod explain;

mod failure;

mod output;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Op};
use crate::failure::Failure;
use crate::output::{Exit, Output};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(not_run) => return output::help_or_usage(&not_run).into(),
    };
    // What the library logs, for those who ask for it in RUST_LOG.
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    }
    let mut out = Output::new(io::stdout().lock(), &args.common);
    match run(&args, &mut out).and_then(|()| out.finish()) {
        Ok(()) => Exit::Success.into(),
        Err(failure) => out.failed(&failure, args.op.name()).into(),
    }
}

fn run(args: &Args, out: &mut Output<impl io::Write>) -> Result<(), Failure> {
    args.check()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(async {
        match &args.op {
            Op::Data(op) => ops::run(op, &args.common, out).await,
            Op::Inspect(op) => inspect::run(op, &args.common, out).await,
        }
    })
}
