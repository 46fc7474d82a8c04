//! Bytes from the command line: arguments as the operating system has them, files, and stdin.
//!
//! ```text
//!   put KEY green      the text            put KEY -       what stdin brings
//!   put KEY @FILE      what FILE holds     put KEY @@x     the text "@x"
//! ```
//!
//! Files and stdin are read to one byte past the limit and no further: `/dev/zero` is a usage error, not a full
//! memory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;

use crate::failure::Failure;

/// Where a value comes from. Nothing is read until everything else about the command is known to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ValueArg {
    Text(Bytes),
    File(PathBuf),
    Stdin,
}

impl ValueArg {
    pub(crate) fn read(text: OsString) -> Result<Self, String> {
        let bytes = bytes(text)?;
        Ok(match bytes.as_ref() {
            b"-" => Self::Stdin,
            [b'@', b'@', ..] => Self::Text(bytes.slice(1..)),
            [b'@', file @ ..] => Self::File(path(file)?),
            _ => Self::Text(bytes),
        })
    }
}

/// The value itself.
pub(crate) fn load(value: &ValueArg, len_max: usize) -> Result<Bytes, Failure> {
    match value {
        ValueArg::Text(text) => Ok(text.clone()),
        ValueArg::File(file) => {
            let name = file.display().to_string();
            let opened = File::open(file).map_err(|error| unreadable(&name, &error))?;
            read_limited(opened, &name, len_max)
        }
        ValueArg::Stdin => read_limited(io::stdin().lock(), "stdin", len_max),
    }
}

fn read_limited(from: impl Read, name: &str, len_max: usize) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(len_max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit).read_to_end(&mut bytes).map_err(|error| unreadable(name, &error))?;
    if bytes.len() > len_max {
        return Err(Failure::Usage(format!(
            "{name} is too long for a value; at most {len_max} bytes are allowed"
        )));
    }
    Ok(bytes.into())
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot read {name}: {error}"))
}

/// An argument's bytes: any on Unix, UTF-8 elsewhere.
#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "on other platforms it can fail")]
pub(crate) fn bytes(text: OsString) -> Result<Bytes, String> {
    use std::os::unix::ffi::OsStringExt;
    Ok(text.into_vec().into())
}

/// An argument's bytes: any on Unix, UTF-8 elsewhere.
#[cfg(not(unix))]
pub(crate) fn bytes(text: OsString) -> Result<Bytes, String> {
    text.into_string().map(Bytes::from).map_err(|_| "it is not valid Unicode".into())
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "on other platforms it can fail")]
fn path(bytes: &[u8]) -> Result<PathBuf, String> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::OsStr::from_bytes(bytes).into())
}

#[cfg(not(unix))]
fn path(bytes: &[u8]) -> Result<PathBuf, String> {
    std::str::from_utf8(bytes).map(PathBuf::from).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_where_it_comes_from() {
        let text = |text: &'static str| ValueArg::Text(Bytes::from(text));
        for (argument, expected) in [
            ("green", text("green")),
            ("", text("")),
            ("-", ValueArg::Stdin),
            ("--", text("--")),
            ("@a.bin", ValueArg::File("a.bin".into())),
            ("@-", ValueArg::File("-".into())),
            ("@", ValueArg::File("".into())),
            ("@@", text("@")),
            ("@@a", text("@a")),
            ("@@@a", text("@@a")),
            ("a@b", text("a@b")),
        ] {
            assert_eq!(ValueArg::read(argument.into()), Ok(expected), "{argument}");
        }
    }

    #[test]
    fn reading_stops_one_byte_past_the_limit() {
        let mut from = io::repeat(7).take(100);
        let refused = read_limited(&mut from, "big.bin", 10).map_err(|failure| failure.to_string());
        assert_eq!(refused, Err("big.bin is too long for a value; at most 10 bytes are allowed".into()));
        assert_eq!(from.limit(), 89);
        assert_eq!(read_limited(&[7; 10][..], "fits", 10).unwrap().len(), 10);
    }
}
