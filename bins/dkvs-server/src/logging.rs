//! The log: what is worth telling an operator, on stderr.
//!
//! The level is the `--log` flag's, else `RUST_LOG`'s, else the configuration file's, else `warn`: a server that works
//! says nothing. A word that is neither a level nor `TARGET=LEVEL` is an error; the filter's own parser would take
//! `inof` for the name of a module. A level alone is meant for DKVS: the storage engine, which tells of each file it
//! opens, stays at warnings unless it is named (`fjall=info`).

use std::env;
use std::io::{self, IsTerminal};

use anyhow::{anyhow, bail, ensure};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, LogFormat};

const ENVIRONMENT: &str = "RUST_LOG";
const LEVEL_DEFAULT: &str = "warn";

/// Starts to log, for the rest of the process.
pub(crate) fn start(flag: Option<&str>, config: &Config) -> anyhow::Result<()> {
    let environment = env::var(ENVIRONMENT).ok().filter(|text| !text.is_empty());
    let (source, text) = match (flag, &environment, &config.log) {
        (Some(text), _, _) => ("--log", text),
        (None, Some(text), _) => (ENVIRONMENT, text.as_str()),
        (None, None, Some(text)) => ("the setting log", text.as_str()),
        (None, None, None) => ("the default", LEVEL_DEFAULT),
    };
    // RUST_LOG may be meant for other programs too.
    if source != ENVIRONMENT {
        check(source, text)?;
    }
    let filter = EnvFilter::try_new(with_quiet_engine(text))
        .map_err(|error| anyhow!("{source} is {text:?}: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match config.log_format {
        LogFormat::Human => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| anyhow!("cannot start to log: {error}"))
}

/// Keeps the engine quiet where a level alone would make it talk.
fn with_quiet_engine(text: &str) -> String {
    match text.parse::<LevelFilter>() {
        Ok(level) if level > LevelFilter::WARN => format!("{text},fjall=warn,lsm_tree=warn"),
        Ok(_) | Err(_) => text.to_owned(),
    }
}

fn check(source: &str, text: &str) -> anyhow::Result<()> {
    for directive in text.split(',') {
        let level = directive.rsplit('=').next().unwrap_or(directive).trim();
        ensure!(
            !level.is_empty(),
            "{source} is {text:?}, which has an empty part; leave out the surplus comma"
        );
        if level.parse::<LevelFilter>().is_err() {
            bail!(
                "{source} is {text:?}, and {level:?} is not a level; \
                 levels are off, error, warn, info, debug and trace, alone or as TARGET=LEVEL,..."
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_dkvs() {
        assert_eq!(with_quiet_engine("info"), "info,fjall=warn,lsm_tree=warn");
        for as_it_is in ["warn", "off", "info,fjall=trace"] {
            assert_eq!(with_quiet_engine(as_it_is), as_it_is);
        }
    }

    #[test]
    fn a_misspelt_level_is_an_error() {
        for good in ["info", "WARN", "off", "dkvs_net=debug,info", "warn,dkvs_cluster=trace"] {
            check("--log", good).unwrap();
        }
        for bad in ["inof", "", "info,", "dkvs_net=loud", "7x"] {
            let error = check("--log", bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--log is {bad:?}")), "{error}");
        }
    }
}
