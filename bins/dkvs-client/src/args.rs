//! The command line, read into types.
//!
//! The form is `dkvs-client [OPTIONS] OP [OPTIONS] -- ARGS`. The options that every operation shares are clap's
//! global arguments, which is what lets them stand on both sides of OP. Keys and values are bytes, so they are
//! read as the operating system hands them over, never as text.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use dkvs::{Context, Durability, Quorum, ServerName};

use crate::failure::Failure;
use crate::input::{self, ValueArg};

/// Where a server is looked for when nothing says otherwise.
pub(crate) const CONNECT_DEFAULT: &str = "127.0.0.1:1234";

/// Longest time an operation may be given. Far beyond what helps anybody, and small enough to be added to a clock.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time after which a value may expire.
const TTL_MAX: Duration = dkvs::TTL_MAX;

/// Servers count in milliseconds.
const DURATION_MIN: Duration = Duration::from_millis(1);

const AFTER_HELP: &str = "\
Values:
  TEXT     the text itself       -      what stdin brings
  @FILE    what the file holds   @@x    the text @x
  Put -- before arguments that start with a dash: dkvs-client put -- KEY -5

Where the ring comes from:
  --servers FILE, else servers.txt in the working directory, else the server at --connect

Answers on stdout: OK, OK VALUE or OK INDEX; FAIL, with the reason on stderr.

Exit status:
  0  success
  1  not found
  2  usage error, nothing was sent
  3  quorum not reached or no server answered; of a write the outcome may be unknown
  4  any other failure

Examples:
  dkvs-client put color green
  dkvs-client get -r 1 color
  dkvs-client put --sloppy cart '3 apples'
  dkvs-client put -n 3 -w 3 photo @photo.jpg && dkvs-client get --raw photo > copy.jpg
  dkvs-client substr color -3 2 middle";

/// The command line client of DKVS, a leaderless, replicated, durable key-value store
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, subcommand_value_name = "OP", subcommand_help_heading = "Operations")]
#[command(
    override_usage = "dkvs-client [OPTIONS] OP [--] [ARGS]",
    arg_required_else_help = true,
    args_override_self = true
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) op: Op,
}

/// What every operation may be told. In help it follows what only one operation may be told.
#[derive(Debug, clap::Args)]
#[command(next_display_order = 100)]
pub(crate) struct Common {
    /// Read the ring from this file: one IP PORT COUNT a line
    #[arg(long, global = true, value_name = "FILE", env = "DKVS_SERVERS", hide_env_values = true)]
    pub(crate) servers: Option<PathBuf>,

    /// Ask this server for the ring [default: 127.0.0.1:1234]
    #[arg(long, global = true, value_name = "HOST:PORT", env = "DKVS_CONNECT", hide_env_values = true)]
    pub(crate) connect: Option<ServerName>,

    /// Longest wait for each read or write: 500ms, 1s, 2m, or seconds without a unit
    #[arg(long, global = true, value_name = "D", default_value = "1s", value_parser = timeout)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) timeout: Duration,

    /// Copies of a key [default: 3, or the number of servers if there are fewer]
    #[arg(short, global = true, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub(crate) n: Option<usize>,

    /// Servers that must hold a write before it is done [default: a majority of N]
    #[arg(short, global = true, value_name = "W", value_parser = count, allow_negative_numbers = true)]
    pub(crate) w: Option<usize>,

    /// Servers that must agree on a read [default: a majority of N]
    #[arg(short, global = true, value_name = "R", value_parser = count, allow_negative_numbers = true)]
    pub(crate) r: Option<usize>,

    /// Let other servers stand in for owners that are down; the answer says how many did, and promises less
    #[arg(long, global = true)]
    pub(crate) sloppy: bool,

    /// Let only owners count, which is the default unless the cluster's configuration says otherwise
    #[arg(long, global = true)]
    pub(crate) strict: bool,

    /// How durable every server makes a write before it acknowledges, where that is more than its own level
    #[arg(long, global = true, value_enum, value_name = "LEVEL")]
    pub(crate) durability: Option<DurabilityLevel>,

    /// Print the bytes of the value alone: no OK, no FAIL, no newline
    #[arg(long, global = true)]
    pub(crate) raw: bool,

    /// Print a JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say on stderr which ring is used, who answered, and the context
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// What a write may ask for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DurabilityLevel {
    /// On disk
    Fsync,
    /// In the system's hands, and on disk a moment later
    Interval,
    /// Whatever the servers do
    Memory,
}

impl From<DurabilityLevel> for Durability {
    fn from(level: DurabilityLevel) -> Self {
        match level {
            DurabilityLevel::Fsync => Self::Fsync,
            DurabilityLevel::Interval => Self::Interval,
            DurabilityLevel::Memory => Self::Memory,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Op {
    #[command(flatten)]
    Data(DataOp),
    #[command(flatten)]
    Inspect(InspectOp),
}

/// Operations on keys.
#[derive(Debug, Subcommand)]
pub(crate) enum DataOp {
    /// Write a value
    Put {
        /// The key to write, 1 to 32768 bytes
        #[arg(value_parser = bytes())]
        key: Bytes,
        /// TEXT, @FILE, - for stdin, or @@TEXT for a text that starts with @
        #[arg(value_parser = OsStringValueParser::new().try_map(ValueArg::read))]
        value: ValueArg,
        /// Replace exactly what a get saw, as its --json or --verbose shows it; without, all that was acknowledged
        #[arg(long, value_name = "HEX")]
        context: Option<Context>,
        /// Have it expire: gets do not find it from so long on: 500ms, 30s, 5m, 1h, 7d, or seconds without a unit
        #[arg(long, value_name = "D", value_parser = ttl, allow_hyphen_values = true)]
        ttl: Option<Duration>,
    },
    /// Read a value
    Get {
        /// The key to read
        #[arg(value_parser = bytes())]
        key: Bytes,
        /// Show all values that nobody has replaced, the latest first, one OK VALUE or DELETED each
        #[arg(long)]
        siblings: bool,
    },
    /// Delete a key, whether it exists or not
    Delete {
        /// The key to delete
        #[arg(value_parser = bytes())]
        key: Bytes,
        /// Delete exactly what a get saw, as its --json or --verbose shows it; without, all that was acknowledged
        #[arg(long, value_name = "HEX")]
        context: Option<Context>,
    },
    /// Write the values of KEYs, one after the other, to DEST
    // One list: clap reads a list with one more argument behind it wrong when their values start with a dash.
    #[command(override_usage = "dkvs-client cat [OPTIONS] [--] KEY... DEST")]
    Cat {
        /// The keys to read, and last the key to write
        #[arg(value_parser = bytes(), required = true, num_args = 2.., value_name = "KEY")]
        keys: Vec<Bytes>,
    },
    /// Write a part of the value of KEY to DEST
    Substr {
        /// The key to read
        #[arg(value_parser = bytes())]
        key: Bytes,
        /// Where the part starts: from 0 at the start, from -1 at the last byte backwards
        #[arg(allow_negative_numbers = true)]
        pos: i64,
        /// How many bytes; all must lie inside the value
        #[arg(allow_negative_numbers = true, value_parser = length)]
        len: u64,
        /// The key to write
        #[arg(value_parser = bytes())]
        dest: Bytes,
    },
    /// Find the value of NEEDLE in the value of HAYSTACK: the leftmost index from 0, or -1
    Find {
        /// The key whose value is searched
        #[arg(value_parser = bytes())]
        haystack: Bytes,
        /// The key whose value is looked for
        #[arg(value_parser = bytes())]
        needle: Bytes,
    },
}

/// Operations on servers.
#[derive(Debug, Subcommand)]
pub(crate) enum InspectOp {
    /// Show the ring, and everything each server stores
    DumpRing,
    /// Show the nodes of the ring, or the servers of a key in their order of preference
    Ring {
        /// The key whose servers to show
        #[arg(value_parser = bytes())]
        key: Option<Bytes>,
    },
    /// Show how each server is
    Status,
    /// Show what each owner of a key holds of it, and hints elsewhere: events, times and sizes, not the values
    Explain {
        /// The key to look at
        #[arg(value_parser = bytes())]
        key: Bytes,
    },
}

impl Common {
    /// Whether stand-ins may count; `None` to leave it to the cluster.
    pub(crate) fn sloppy(&self) -> Option<bool> {
        match (self.sloppy, self.strict) {
            (false, false) => None,
            (sloppy, _) => Some(sloppy),
        }
    }
}

impl Args {
    /// What clap cannot check, and what needs no ring to be checked.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let usage = |text: String| Err(Failure::Usage(text));
        let Common { raw, json, n, r, w, sloppy, strict, .. } = self.common;
        if raw && json {
            return usage("--raw and --json exclude each other".into());
        }
        if sloppy && strict {
            return usage("--sloppy and --strict exclude each other".into());
        }
        if let (true, Op::Inspect(_)) = (raw, &self.op) {
            return usage(format!("--raw does not apply to {}", self.op.name()));
        }
        if let (true, Op::Data(DataOp::Get { siblings: true, .. })) = (raw, &self.op) {
            return usage(
                "--raw shows one value, and --siblings several; --json shows where each ends".into(),
            );
        }
        if let Some(n) = n {
            Quorum::new(n, r.unwrap_or(1), w.unwrap_or(1)).map_err(dkvs::Error::from)?;
        }
        match &self.op {
            Op::Data(op) => op.keys().into_iter().try_for_each(|key| Ok(dkvs::check_key(key)?)),
            Op::Inspect(InspectOp::Ring { key: Some(key) } | InspectOp::Explain { key }) => {
                Ok(dkvs::check_key(key)?)
            }
            Op::Inspect(InspectOp::Ring { key: None } | InspectOp::DumpRing | InspectOp::Status) => Ok(()),
        }
    }
}

impl Op {
    /// As it is typed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Data(DataOp::Put { .. }) => "put",
            Self::Data(DataOp::Get { .. }) => "get",
            Self::Data(DataOp::Delete { .. }) => "delete",
            Self::Data(DataOp::Cat { .. }) => "cat",
            Self::Data(DataOp::Substr { .. }) => "substr",
            Self::Data(DataOp::Find { .. }) => "find",
            Self::Inspect(InspectOp::DumpRing) => "dump-ring",
            Self::Inspect(InspectOp::Ring { .. }) => "ring",
            Self::Inspect(InspectOp::Status) => "status",
            Self::Inspect(InspectOp::Explain { .. }) => "explain",
        }
    }
}

impl DataOp {
    fn keys(&self) -> Vec<&Bytes> {
        match self {
            Self::Put { key, .. } | Self::Get { key, .. } | Self::Delete { key, .. } => vec![key],
            Self::Cat { keys } => keys.iter().collect(),
            Self::Substr { key, dest, .. } => vec![key, dest],
            Self::Find { haystack, needle } => vec![haystack, needle],
        }
    }
}

fn bytes() -> impl TypedValueParser<Value = Bytes> {
    OsStringValueParser::new().try_map(|text: OsString| input::bytes(text))
}

fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| "it must be a whole number, at least 1".into())
}

fn length(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be a whole number, at least 0".into())
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text).filter(|timeout| (DURATION_MIN..=TIMEOUT_MAX).contains(timeout));
    timeout.ok_or_else(|| "it must be a number with a unit, such as 500ms, 1s or 2m, from 1ms to 24h".into())
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text).filter(|ttl| (DURATION_MIN..=TTL_MAX).contains(ttl));
    ttl.ok_or_else(|| "it must be a number with a unit, such as 500ms, 30s or 7d, from 1ms to 36500d".into())
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * unit_s).ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let args = Args::try_parse_from(format!("dkvs-client {line}").split_ascii_whitespace());
        args.map_err(|error| error.to_string()).and_then(|args| match args.check() {
            Ok(()) => Ok(args),
            Err(failure) => Err(failure.to_string()),
        })
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_after_the_operation() {
        for line in [
            "-n 4 -w 3 -r 2 --timeout 2s --json put k v",
            "put -n 4 -w 3 -r 2 --timeout 2s --json -- k v",
            "put k v -n 4 -w 3 -r 2 --timeout 2s --json",
            "-n4 -w3 put --json -r2 k --timeout=2 v",
        ] {
            let args = parse(line).expect(line);
            let common = &args.common;
            assert_eq!((common.n, common.w, common.r), (Some(4), Some(3), Some(2)), "{line}");
            assert_eq!((common.timeout, common.json), (Duration::from_secs(2), true), "{line}");
            assert_eq!(args.op.name(), "put");
        }
    }

    #[test]
    fn an_option_given_again_replaces_the_first() {
        for line in ["-n 2 -n 3 get k", "-n 2 get k -n 3", "get -n 2 k -n 3"] {
            assert_eq!(parse(line).expect(line).common.n, Some(3), "{line}");
        }
    }

    #[test]
    fn neither_sloppy_nor_strict_leaves_it_to_the_cluster() {
        for (line, expected) in [
            ("put k v", None),
            ("put --sloppy k v", Some(true)),
            ("--sloppy get k", Some(true)),
            ("delete k --strict", Some(false)),
        ] {
            assert_eq!(parse(line).expect(line).common.sloppy(), expected, "{line}");
        }
    }

    #[test]
    fn arguments_that_start_with_a_dash_stand_after_two_dashes() {
        let args = parse("get -- -n").unwrap();
        assert!(matches!(args.op, Op::Data(DataOp::Get { key, .. }) if key == "-n"));
        let args = parse("cat -v -- -a - --json -r").unwrap();
        assert!(matches!(args.op, Op::Data(DataOp::Cat { keys }) if keys == ["-a", "-", "--json", "-r"]));
        assert!(args.common.verbose && !args.common.json);
    }

    #[test]
    fn negative_positions_need_no_dashes() {
        for line in ["substr k -3 2 d", "substr -- k -3 2 d"] {
            let args = parse(line).expect(line);
            assert!(matches!(args.op, Op::Data(DataOp::Substr { pos: -3, len: 2, .. })), "{line}");
        }
    }

    #[test]
    fn timeouts_have_units() {
        let ms = |text| timeout(text).map(|timeout| timeout.as_millis());
        let cases = [
            ("500ms", 500),
            ("1s", 1_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("3", 3_000),
            ("0.5", 500),
            ("1.5s", 1_500),
        ];
        for (text, expected) in cases {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for bad in [
            "", "0", "0s", "0ms", "-1", "-1s", "1x", "s", "1 s", "2d", "inf", "nan", "1e3", "0.1ms", "25h",
            "1.2.3",
        ] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_may_expire_after_1_ms_to_100_years() {
        let ms = |text| ttl(text).map(|ttl| ttl.as_millis());
        for (text, expected) in [
            ("1ms", 1),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            ("1.5", 1_500),
            ("36500d", TTL_MAX.as_millis()),
        ] {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for bad in ["0", "0s", "0.9ms", "36501d", "1y", "forever", "-1s", "1e99"] {
            assert!(ms(bad).is_err(), "{bad}");
        }
        let args = parse("put --ttl 5m k v").unwrap();
        let expected = Some(Duration::from_secs(300));
        assert!(matches!(args.op, Op::Data(DataOp::Put { ttl, .. }) if ttl == expected));
        assert!(parse("delete --ttl 5m k").is_err());
    }

    #[test]
    fn usage_errors_name_what_is_wrong() {
        for (line, part) in [
            ("", "Usage:"),
            ("frobnicate", "unrecognized subcommand 'frobnicate'"),
            ("put k", "<VALUE>"),
            ("put k v w", "unexpected argument 'w'"),
            ("get", "<KEY>"),
            ("get -k", "unexpected argument '-k'"),
            ("cat a", "2 values required"),
            ("substr k x 1 d", "invalid value 'x' for '<POS>'"),
            ("substr k 0 -1 d", "invalid value '-1' for '<LEN>': it must be a whole number, at least 0"),
            ("find a", "<NEEDLE>"),
            ("dump-ring x", "unexpected argument 'x'"),
            ("-n 0 get k", "invalid value '0' for '-n <N>': it must be a whole number, at least 1"),
            ("-w -1 get k", "invalid value '-1' for '-w <W>'"),
            ("-r many get k", "invalid value 'many' for '-r <R>'"),
            ("-n 2 -r 3 get k", "r is 3, but only n = 2 copies are kept"),
            ("put k v -n 2 -w 3", "w is 3, but only n = 2 copies are kept"),
            ("--timeout 0 get k", "invalid value '0' for '--timeout <D>': it must be a number with a unit"),
            ("--timeout -1s get k", "invalid value '-1s' for '--timeout <D>'"),
            ("--connect nowhere get k", "server is \"nowhere\"; expected HOST:PORT"),
            ("--connect :1234 get k", "invalid value ':1234' for '--connect <HOST:PORT>'"),
            ("put k v --context xyz", "a context is an even number of hexadecimal digits"),
            ("--raw get k --json", "--raw and --json exclude each other"),
            ("--sloppy get k --strict", "--sloppy and --strict exclude each other"),
            ("--raw status", "--raw does not apply to status"),
            ("get --raw --siblings k", "--raw shows one value"),
        ] {
            let error = parse(line).map(|args| args.op.name()).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn keys_have_limits() {
        let check = |key: &str| {
            let args = Args::try_parse_from(["dkvs-client", "cat", "a", key]).unwrap();
            args.check().map_err(|failure| failure.to_string())
        };
        assert_eq!(check(""), Err("the key is empty; it must have at least 1 byte".into()));
        assert_eq!(check(&"k".repeat(32_768)), Ok(()));
        assert_eq!(
            check(&"k".repeat(32_769)),
            Err("the key has 32769 bytes; at most 32768 are allowed".into())
        );
    }
}
