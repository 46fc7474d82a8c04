//! The command line: what may be said, and what it asks for.
//!
//! It knows the shape of arguments only. What a configuration file may say as well is handed on as [`Flags`], to be
//! laid over the file.

use std::ffi::OsString;
use std::path::PathBuf;

use bytes::Bytes;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use dkvs_core::limits::KEY_LEN_MAX;
use dkvs_core::servers::ServerName;

use crate::config::{DurabilityLevel, LogFormat};

/// Servers of a local cluster: three is the fewest that keep working, with their usual quorums, when one fails.
const SERVERS_DEFAULT: u16 = 3;
/// Each has threads and open files of its own.
const SERVERS_MAX: i64 = 64;
const BASE_PORT_DEFAULT: u16 = 1234;

const USAGE: &str = "dkvs-server [OPTIONS]
       dkvs-server [OPTIONS] IP PORT [KEY VALUE]...
       dkvs-server [OPTIONS] --config FILE
       dkvs-server check --data-dir DIR";

const ABOUT: &str = "\
The server of DKVS, a leaderless, replicated, durable key-value store.

Without a server's name it runs a local cluster of three servers in one process, on loopback. With IP and PORT, or \
with --config, it is one server of the ring that servers.txt describes.";

const EXAMPLES: &str = "\
Examples:
  dkvs-server
          Three servers on 127.0.0.1:1234 to 1236, data under ./dkvs-data
  dkvs-server --servers 5 --base-port 7000 --memory
          Five servers on 127.0.0.1:7000 to 7004, data gone when they stop
  dkvs-server 127.0.0.1 1234 color green size XL
          The server 127.0.0.1:1234 of servers.txt, with two pairs
  dkvs-server --config dkvs.toml --log info
          One server as a file describes it, saying more in its log
  dkvs-server check --data-dir dkvs-data/127.0.0.1-1234
          Whether everything in a stopped server's data directory is whole; exit status 1 if not

servers.txt lists the ring, one server a line: IP PORT COUNT, where COUNT is its number of virtual nodes. All servers \
read the same list.

Exit status: 0 after a clean stop by Ctrl-C or SIGTERM, 1 when something failed, 2 for a wrong command line, 130 when \
a second signal cut the stop short.";

/// The command line as written.
#[derive(Parser, Debug)]
#[command(version, about = ABOUT, override_usage = USAGE, after_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Be the server with this address or host name, as servers.txt has it
    #[arg(value_name = "IP", requires = "port", conflicts_with_all = ["servers", "base_port"])]
    ip: Option<String>,

    /// Be the server with this port; its number serves UDP and TCP
    #[arg(value_name = "PORT")]
    port: Option<String>,

    /// Pairs to start with: older than any put, and the same pair on several servers is one value. Keys are 1 to
    /// 32768 bytes. Write -- before a key that starts with a hyphen
    #[arg(value_name = "KEY VALUE")]
    pairs: Vec<OsString>,

    /// Run a local cluster of N servers, 1 to 64 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=SERVERS_MAX))]
    #[arg(help_heading = "Local cluster")]
    servers: Option<u16>,

    /// First port of the local cluster; 0 finds free ones [default: 1234]
    #[arg(long, value_name = "PORT", help_heading = "Local cluster")]
    base_port: Option<u16>,

    #[command(flatten)]
    flags: Flags,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What can be done instead of running a server.
#[derive(Subcommand, Debug)]
enum Command {
    /// Look at the data of a stopped server: is every record whole, and where it belongs? Changes no record; what a crash has
    /// cut short is dropped, as at the server's next start
    Check {
        /// The server's data directory
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

/// What a configuration file may say as well. A flag that is given overrides the file.
#[derive(clap::Args, Debug)]
pub(crate) struct Flags {
    /// Read settings from this TOML file; configs/dkvs.toml explains all of them
    #[arg(long, value_name = "FILE", help_heading = "One server", conflicts_with_all = ["servers", "base_port"])]
    pub(crate) config: Option<PathBuf>,

    /// The ring's servers [default: servers.txt if there is one, else this server alone]
    #[arg(long, value_name = "FILE", help_heading = "One server", conflicts_with_all = ["servers", "base_port"])]
    pub(crate) ring: Option<PathBuf>,

    /// Listen here instead of on IP PORT, for example on 0.0.0.0:1234
    #[arg(long, value_name = "IP:PORT", help_heading = "One server")]
    #[arg(conflicts_with_all = ["servers", "base_port"])]
    pub(crate) listen: Option<String>,

    /// Listen beyond loopback. Nothing is encrypted or authenticated yet: whoever reaches the port can read and write
    /// everything
    #[arg(long, action = ArgAction::SetTrue, help_heading = "One server")]
    pub(crate) insecure: bool,

    /// Where the data is [default: ./dkvs-data/local for a local cluster, ./dkvs-data/IP-PORT for one server]
    #[arg(long, value_name = "DIR", help_heading = "Data", conflicts_with = "memory")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Keep data in memory only; it is lost when the server stops
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Data")]
    pub(crate) memory: bool,

    /// When a write may be acknowledged [default: fsync]
    #[arg(long, value_enum, value_name = "LEVEL", help_heading = "Data")]
    pub(crate) durability: Option<DurabilityLevel>,

    /// Copies of a key, for clients that do not choose [default: 3, or the number of servers if fewer]
    #[arg(short, value_name = "N", help_heading = "Quorums")]
    pub(crate) n: Option<usize>,

    /// Copies a read waits for, likewise [default: a majority of n]
    #[arg(short, value_name = "R", help_heading = "Quorums")]
    pub(crate) r: Option<usize>,

    /// Copies a write waits for, likewise [default: a majority of n]
    #[arg(short, value_name = "W", help_heading = "Quorums")]
    pub(crate) w: Option<usize>,

    /// What to log, on stderr: off, error, warn, info, debug, trace, or TARGET=LEVEL,... [default: RUST_LOG if set,
    /// else warn]
    #[arg(long, value_name = "LEVEL", help_heading = "Running")]
    pub(crate) log: Option<String>,

    /// How to write the log [default: human]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Running")]
    pub(crate) log_format: Option<LogFormat>,

    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub(crate) threads: Option<usize>,
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// A cluster in this process.
    Local(LocalPlan),
    /// One server.
    Single(SinglePlan),
    /// Look at the data in this directory.
    Check(PathBuf),
}

/// A cluster in this process.
#[derive(Debug, PartialEq)]
pub(crate) struct LocalPlan {
    pub(crate) servers: u16,
    /// 0 for any.
    pub(crate) base_port: u16,
}

/// One server.
#[derive(Debug, PartialEq)]
pub(crate) struct SinglePlan {
    /// Its name; `None` if the configuration file has it.
    pub(crate) name: Option<ServerName>,
    /// What it starts with.
    pub(crate) pairs: Vec<(Bytes, Bytes)>,
}

impl Args {
    /// Checks what clap cannot.
    pub(crate) fn into_plan(self) -> Result<(Flags, Plan), clap::Error> {
        if let Some(Command::Check { data_dir }) = self.command {
            return Ok((self.flags, Plan::Check(data_dir)));
        }
        let pairs = pairs(self.pairs)?;
        let name = match (&self.ip, &self.port) {
            (Some(ip), Some(port)) => {
                let name = ServerName::from_fields(ip, port);
                Some(name.map_err(|error| usage(ErrorKind::ValueValidation, error.to_string()))?)
            }
            _ => None,
        };
        if name.is_some() || self.flags.config.is_some() {
            return Ok((self.flags, Plan::Single(SinglePlan { name, pairs })));
        }
        let needs_a_server = [
            ("--ring", self.flags.ring.is_some()),
            ("--listen", self.flags.listen.is_some()),
            ("--insecure", self.flags.insecure),
        ];
        if let Some((flag, _)) = needs_a_server.iter().find(|(_, given)| *given) {
            let message = format!("{flag} is for one server: say which with IP PORT, or with --config FILE");
            return Err(usage(ErrorKind::MissingRequiredArgument, message));
        }
        let servers = self.servers.unwrap_or(SERVERS_DEFAULT);
        let base_port = self.base_port.unwrap_or(BASE_PORT_DEFAULT);
        if base_port.checked_add(servers - 1).is_none() {
            let message = format!(
                "--base-port {base_port} leaves no room for {servers} servers below port 65536; \
                 it may be at most {}",
                u16::MAX - (servers - 1)
            );
            return Err(usage(ErrorKind::ValueValidation, message));
        }
        Ok((self.flags, Plan::Local(LocalPlan { servers, base_port })))
    }
}

fn pairs(arguments: Vec<OsString>) -> Result<Vec<(Bytes, Bytes)>, clap::Error> {
    // The bytes themselves on Unix; UTF-8 for all text elsewhere.
    let mut arguments = arguments.into_iter().map(|argument| Bytes::from(argument.into_encoded_bytes()));
    let mut pairs = Vec::new();
    while let Some(key) = arguments.next() {
        let shown = excerpt(&key);
        if !(1..=KEY_LEN_MAX).contains(&key.len()) {
            let message =
                format!("key {shown} has {} bytes; allowed are 1 to {KEY_LEN_MAX} bytes", key.len());
            return Err(usage(ErrorKind::ValueValidation, message));
        }
        let value = arguments.next().ok_or_else(|| {
            let message = format!("key {shown} has no value: after IP PORT come pairs, KEY VALUE ...");
            usage(ErrorKind::WrongNumberOfValues, message)
        })?;
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// The start of a key, in quotes, for a message.
pub(crate) fn excerpt(key: &[u8]) -> String {
    const SHOWN_MAX: usize = 40;
    let text = String::from_utf8_lossy(key);
    let start: String = text.chars().take(SHOWN_MAX).collect();
    let more = if start.len() < text.len() { "..." } else { "" };
    format!("{start:?}{more}")
}

fn usage(kind: ErrorKind, message: String) -> clap::Error {
    Args::command().error(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let args = Args::try_parse_from([&["dkvs-server"], arguments].concat());
        args.and_then(Args::into_plan).map(|(_, plan)| plan).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_arguments_are_three_local_servers() {
        let local = |servers, base_port| Ok(Plan::Local(LocalPlan { servers, base_port }));
        assert_eq!(plan(&[]), local(3, 1234));
        assert_eq!(plan(&["--servers", "5", "--base-port", "7000", "--memory"]), local(5, 7000));
        assert_eq!(plan(&["--base-port", "65533"]), local(3, 65533));
    }

    #[test]
    fn an_address_is_one_server_with_its_pairs() {
        let pair = |key: &'static str, value: &'static str| (key.into(), value.into());
        let single = |pairs| {
            let name = Some(ServerName::new("127.0.0.1", 1234).unwrap());
            Ok(Plan::Single(SinglePlan { name, pairs }))
        };
        assert_eq!(plan(&["127.0.0.1", "1234"]), single(vec![]));
        assert_eq!(
            plan(&["127.0.0.1", "1234", "a", "", "b", "2"]),
            single(vec![pair("a", ""), pair("b", "2")])
        );
        assert_eq!(plan(&["127.0.0.1", "1234", "a", "1", "-n", "1"]), single(vec![pair("a", "1")]));
        assert_eq!(plan(&["127.0.0.1", "1234", "--", "-n", "1"]), single(vec![pair("-n", "1")]));
        assert_eq!(plan(&["--config", "x"]), Ok(Plan::Single(SinglePlan { name: None, pairs: vec![] })));
    }

    #[test]
    fn a_wrong_command_line_is_told_what_is_wrong() {
        let long = "k".repeat(KEY_LEN_MAX + 1);
        let table: &[(&[&str], &str)] = &[
            (&["127.0.0.1"], "<PORT>"),
            (&["127.0.0.1", "1234", "a"], "key \"a\" has no value"),
            (&["127.0.0.1", "1234", "", "1"], "key \"\" has 0 bytes; allowed are 1 to 32768"),
            (&["127.0.0.1", "1234", &long, "1"], "\"... has 32769 bytes; allowed are 1 to 32768"),
            (&["300.0.0.1", "1234"], "IP is \"300.0.0.1\""),
            (&["127.0.0.1", "70000"], "PORT is \"70000\"; allowed are whole numbers from 1 to 65535"),
            (&["127.0.0.1", "0"], "PORT is \"0\""),
            (&["--servers", "0"], "0 is not in 1..=64"),
            (&["--servers", "65"], "65 is not in 1..=64"),
            (&["--base-port", "65534"], "may be at most 65533"),
            (&["--memory", "--data-dir", "x"], "cannot be used with"),
            (&["--servers", "3", "127.0.0.1", "1234"], "cannot be used with"),
            (&["--servers", "3", "--config", "x"], "cannot be used with"),
            (&["--ring", "x"], "--ring is for one server: say which with IP PORT"),
            (&["--listen", "0.0.0.0:1"], "--listen is for one server"),
            (&["--insecure"], "--insecure is for one server"),
            (&["--durability", "fsnyc"], "[possible values: fsync, interval, memory]"),
            (&["--log-format", "xml"], "[possible values: human, json]"),
        ];
        for (arguments, expected) in table {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?} gave {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn keys_and_values_may_be_any_bytes() {
        use std::os::unix::ffi::OsStringExt;
        let read = pairs(vec![OsString::from_vec(vec![0xFF, 1]), OsString::from_vec(vec![0xC0])]).unwrap();
        assert_eq!(read, [(Bytes::from_static(&[0xFF, 1]), Bytes::from_static(&[0xC0]))]);
    }
}
