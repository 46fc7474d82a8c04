//! What people and programs are shown: answers on stdout, reasons and remarks on stderr, an exit status.
//!
//! ```text
//!            done        a value        an index    not done
//!   text     OK          OK VALUE       OK INDEX    FAIL          and the reason on stderr
//!   --raw                VALUE          INDEX                     and the reason on stderr
//!   --json   {"ok":true, "value":…      "index":…}  {"ok":false,"error":…,"kind":…}
//! ```
//!
//! A value is written as it is, whatever bytes it has; JSON cannot hold all of them, so there a value that is not
//! UTF-8 is `value_hex`, and `encoding` says which it was. Where values are listed one a line, in `dump-ring`, they
//! are [`escaped`].
//!
//! Nobody reading any longer (`| head`) is not an error: the program ends quietly, as if it had written everything.

use std::fmt::{self, Write as _};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use dkvs::{Bytes, Context, Got, ServerName, StandIn, Written};
use serde::Serialize;

use crate::args::{Args, Common};
use crate::failure::Failure;

/// How the program ends. Scripts depend on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Success = 0,
    NotFound = 1,
    Usage = 2,
    /// Quorum not reached, or no server answered.
    Unavailable = 3,
    Other = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Raw,
    Json,
}

/// Stdout, and how answers are written on it.
pub(crate) struct Output<W: Write> {
    stdout: BufWriter<W>,
    format: Format,
    verbose: bool,
}

impl<W: Write> Output<W> {
    pub(crate) fn new(stdout: W, common: &Common) -> Self {
        let format = match (common.raw, common.json) {
            (true, _) => Format::Raw,
            (false, true) => Format::Json,
            (false, false) => Format::Text,
        };
        Self { stdout: BufWriter::new(stdout), format, verbose: common.verbose }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// A write that is done.
    pub(crate) fn written(&mut self, written: &Written) -> Result<(), Failure> {
        self.remark("acknowledged", written.acked(), written.stand_ins(), written.context());
        match self.format {
            Format::Text => self.bytes(b"OK\n"),
            Format::Raw => Ok(()),
            Format::Json => {
                let (acked, context) = (names(written.acked()), written.context().to_string());
                let stand_ins = StandInJson::of(written.stand_ins());
                self.json(&WrittenJson { ok: true, acked, stand_ins, context })
            }
        }
    }

    /// The value of a key.
    pub(crate) fn value(&mut self, value: &Bytes, got: &Got) -> Result<(), Failure> {
        self.remark("answered", got.answered(), got.stand_ins(), got.context());
        match self.format {
            Format::Text => {
                self.note_siblings(got.sibling_count());
                self.ok_value(value)
            }
            Format::Raw => {
                self.note_siblings(got.sibling_count());
                self.bytes(value)
            }
            Format::Json => {
                self.json(&GotJson { ok: true, found: ValueJson::of(value), seen: SeenJson::of(got) })
            }
        }
    }

    /// All values of a key.
    pub(crate) fn siblings(&mut self, got: &Got) -> Result<(), Failure> {
        self.remark("answered", got.answered(), got.stand_ins(), got.context());
        match self.format {
            Format::Text | Format::Raw => got.siblings().iter().try_for_each(|sibling| match sibling {
                Some(value) => self.ok_value(value),
                None => self.bytes(b"DELETED\n"),
            }),
            Format::Json => {
                let values = got.siblings().iter().map(SiblingJson::of).collect();
                self.json(&SiblingsJson { ok: true, values, seen: SeenJson::of(got) })
            }
        }
    }

    /// Where something was found.
    pub(crate) fn index(&mut self, index: Option<usize>) -> Result<(), Failure> {
        let index = index.map_or_else(|| "-1".into(), |index| index.to_string());
        match self.format {
            Format::Text => self.text(format_args!("OK {index}\n")),
            Format::Raw => self.bytes(index.as_bytes()),
            Format::Json => self.text(format_args!("{{\"ok\":true,\"index\":{index}}}\n")),
        }
    }

    /// How it ended instead.
    pub(crate) fn failed(&mut self, failure: &Failure, op: &str) -> Exit {
        let (kind, exit) = failure.class();
        match failure {
            Failure::Usage(reason) => return usage(op, reason),
            Failure::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Success,
            // The answer, that every server is down, is already there.
            Failure::NobodyAnswered if self.format == Format::Json => {}
            Failure::NobodyAnswered => note(&failure.to_string()),
            Failure::NotFound(got) => {
                self.remark("answered", got.answered(), got.stand_ins(), got.context());
                self.fail(failure, kind, Some(got));
                if self.format != Format::Json {
                    self.note_siblings(got.sibling_count());
                }
            }
            Failure::SourceNotFound(_)
            | Failure::OutOfRange { .. }
            | Failure::TooLong { .. }
            | Failure::NoRing { .. }
            | Failure::Client(_)
            | Failure::Spool(_)
            | Failure::Stdout(_)
            | Failure::Runtime(_) => self.fail(failure, kind, None),
        }
        exit
    }

    /// FAIL on stdout, then the reason on stderr, in this order where both are one terminal; in JSON, both in one
    /// object. A stdout that takes nothing does not keep the reason from being told.
    fn fail(&mut self, failure: &Failure, kind: &str, got: Option<&Got>) {
        let error = failure.to_string();
        let shown = match self.format {
            Format::Json => {
                let seen = got.map(SeenJson::of);
                self.json(&FailJson { ok: false, error: &error, kind, seen, held: HeldJson::of(failure) })
            }
            Format::Text => self.bytes(b"FAIL\n"),
            Format::Raw => Ok(()),
        };
        let shown = shown.and_then(|()| self.finish());
        if self.format != Format::Json || shown.is_err() {
            note(&error);
            if self.verbose
                && let Some(held) = HeldJson::of(failure)
            {
                note(&format!("context: {}", held.context));
            }
        }
    }

    /// Writes what is still kept here. Until then nothing is certain to have been written.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(Failure::Stdout)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).map_err(Failure::Stdout)
    }

    pub(crate) fn text(&mut self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        self.stdout.write_fmt(text).map_err(Failure::Stdout)
    }

    /// One JSON object on a line.
    pub(crate) fn json(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        self.json_part(object)?;
        self.bytes(b"\n")
    }

    /// A part of a JSON object that is written bit by bit.
    pub(crate) fn json_part(&mut self, part: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.stdout, part).map_err(|error| Failure::Stdout(error.into()))
    }

    /// All that is left to read from `source`.
    pub(crate) fn copy(&mut self, source: &mut impl io::Read) -> Result<(), Failure> {
        io::copy(source, &mut self.stdout).map(drop).map_err(Failure::Stdout)
    }

    fn ok_value(&mut self, value: &[u8]) -> Result<(), Failure> {
        self.bytes(b"OK ")?;
        self.bytes(value)?;
        self.bytes(b"\n")
    }

    fn note_siblings(&self, siblings: usize) {
        if siblings > 1 {
            note(&format!("{siblings} siblings; --siblings shows them"));
        }
    }

    /// Who did what was asked. An answer that rests on stand-ins promises less, and says so to people who did not ask.
    fn remark(&self, did: &str, owners: &[ServerName], stand_ins: &[StandIn], context: &Context) {
        if !stand_ins.is_empty() && self.format != Format::Json {
            note(&format!("{did} by {}", counted(owners.len(), stand_ins.len())));
        }
        if self.verbose {
            if !owners.is_empty() {
                note(&format!("{did}: {}", names(owners).join(", ")));
            }
            for StandIn { server, owner } in stand_ins {
                note(&format!("{server} stood in for {owner}"));
            }
            note(&format!("context: {context}"));
        }
    }
}

/// `2 owners, 1 stand-in`.
fn counted(owners: usize, stand_ins: usize) -> String {
    let plural = |number: usize| if number == 1 { "" } else { "s" };
    format!("{owners} owner{}, {stand_ins} stand-in{}", plural(owners), plural(stand_ins))
}

/// A line on stderr. When nobody can be told, nothing can be done about it.
pub(crate) fn note(text: &str) {
    let _not_shown = writeln!(io::stderr(), "{text}");
}

/// What clap has to say instead of a command: help and the version, or what is wrong.
pub(crate) fn help_or_usage(not_run: &clap::Error) -> Exit {
    let _not_shown = not_run.print();
    if not_run.exit_code() == 0 { Exit::Success } else { Exit::Usage }
}

/// A usage error that clap could not find, in its style.
fn usage(op: &str, reason: &str) -> Exit {
    let mut command = Args::command();
    command.build();
    let error = match command.find_subcommand_mut(op) {
        Some(op) => op.error(ErrorKind::ValueValidation, reason),
        None => command.error(ErrorKind::ValueValidation, reason),
    };
    help_or_usage(&error)
}

/// Bytes on one line of text: control characters, backslashes and what is not UTF-8 as `\n`, `\\` and `\x..`.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let hex = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            write!(text, "\\x{byte:02x}").expect("a String takes any text");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => hex(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        hex(&mut text, chunk.invalid());
    }
    text
}

pub(crate) fn names(servers: &[ServerName]) -> Vec<String> {
    servers.iter().map(ToString::to_string).collect()
}

/// Bytes as text if they are text, else as hexadecimal digits.
pub(crate) fn text_or_hex(bytes: &[u8]) -> Result<&str, String> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |digit: u8| char::from(DIGITS[usize::from(digit)]);
    std::str::from_utf8(bytes)
        .map_err(|_| bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
}

#[derive(Serialize)]
struct WrittenJson {
    ok: bool,
    acked: Vec<String>,
    stand_ins: Vec<StandInJson>,
    context: String,
}

#[derive(Serialize)]
struct StandInJson {
    server: String,
    #[serde(rename = "for")]
    owner: String,
}

impl StandInJson {
    fn of(stand_ins: &[StandIn]) -> Vec<Self> {
        let named = |stand_in: &StandIn| {
            let StandIn { server, owner } = stand_in;
            Self { server: server.to_string(), owner: owner.to_string() }
        };
        stand_ins.iter().map(named).collect()
    }
}

#[derive(Serialize)]
struct FailJson<'a> {
    ok: bool,
    error: &'a str,
    kind: &'a str,
    #[serde(flatten)]
    seen: Option<SeenJson>,
    #[serde(flatten)]
    held: Option<HeldJson>,
}

/// What a server holds that refused a put as there are too many siblings.
#[derive(Serialize)]
struct HeldJson {
    siblings: u32,
    siblings_max: u32,
    context: String,
}

impl HeldJson {
    fn of(failure: &Failure) -> Option<Self> {
        let Failure::Client(dkvs::Error::TooManySiblings { siblings, siblings_max, context, .. }) = failure
        else {
            return None;
        };
        Some(Self { siblings: *siblings, siblings_max: *siblings_max, context: context.to_string() })
    }
}

#[derive(Serialize)]
struct GotJson<'a> {
    ok: bool,
    #[serde(flatten)]
    found: ValueJson<'a>,
    #[serde(flatten)]
    seen: SeenJson,
}

#[derive(Serialize)]
struct SiblingsJson<'a> {
    ok: bool,
    values: Vec<SiblingJson<'a>>,
    #[serde(flatten)]
    seen: SeenJson,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SiblingJson<'a> {
    Value(ValueJson<'a>),
    Deleted { deleted: bool },
}

impl<'a> SiblingJson<'a> {
    fn of(sibling: &'a Option<Bytes>) -> Self {
        match sibling {
            Some(value) => Self::Value(ValueJson::of(value)),
            None => Self::Deleted { deleted: true },
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum ValueJson<'a> {
    Text { value: &'a str, encoding: &'static str },
    Hex { value_hex: String, encoding: &'static str },
}

impl<'a> ValueJson<'a> {
    fn of(value: &'a [u8]) -> Self {
        match text_or_hex(value) {
            Ok(value) => Self::Text { value, encoding: "utf8" },
            Err(value_hex) => Self::Hex { value_hex, encoding: "hex" },
        }
    }
}

#[derive(Serialize)]
struct SeenJson {
    siblings: usize,
    answered: Vec<String>,
    stand_ins: Vec<StandInJson>,
    context: String,
}

impl SeenJson {
    fn of(got: &Got) -> Self {
        let (answered, context) = (names(got.answered()), got.context().to_string());
        let stand_ins = StandInJson::of(got.stand_ins());
        Self { siblings: got.sibling_count(), answered, stand_ins, context }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_dump_shows_every_byte() {
        for (bytes, line) in [
            (&b"plain text"[..], "plain text"),
            (b"a\nb\t\x7f\0", "a\\x0ab\\x09\\x7f\\x00"),
            (b"c:\\x41", "c:\\\\x41"),
            ("grün ✓".as_bytes(), "grün ✓"),
            (b"\xff\xfegr\xc3", "\\xff\\xfegr\\xc3"),
            ("\u{85}".as_bytes(), "\\xc2\\x85"),
        ] {
            assert_eq!(escaped(bytes), line);
        }
    }

    #[test]
    fn owners_and_stand_ins_are_told_apart() {
        for (owners, stand_ins, text) in
            [(2, 1, "2 owners, 1 stand-in"), (1, 2, "1 owner, 2 stand-ins"), (0, 3, "0 owners, 3 stand-ins")]
        {
            assert_eq!(counted(owners, stand_ins), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_hexadecimal() {
        assert_eq!(text_or_hex("grün".as_bytes()), Ok("grün"));
        assert_eq!(text_or_hex(&[0, 0xff, 0x1a]), Err("00ff1a".into()));
    }
}
