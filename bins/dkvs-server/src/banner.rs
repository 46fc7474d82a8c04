//! What a user sees on stdout: which servers run, where their data is, and what to type next.
//!
//! It is printed once, when every server listens; who starts the program from another may wait for its last line.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use dkvs_core::quorum::Quorum;
use dkvs_core::servers::ServerName;
use dkvs_storage::{Durability, Start};

/// Everything the banner tells.
pub(crate) struct Banner {
    /// What this is, in a line: "a local cluster of 3 servers".
    pub(crate) what: String,
    pub(crate) servers: Vec<Row>,
    pub(crate) quorum: Quorum,
    pub(crate) durability: Durability,
    /// Initial pairs.
    pub(crate) pairs: usize,
    /// Something a user would be surprised by.
    pub(crate) note: Option<String>,
}

/// One server.
pub(crate) struct Row {
    pub(crate) name: ServerName,
    pub(crate) listen: SocketAddr,
    /// `None` in memory.
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) start: Start,
}

impl Banner {
    /// Prints it, and tells the log. Who closed stdout did not want to read it, and the server goes on.
    pub(crate) fn print(&self) {
        for row in &self.servers {
            let (name, listen, start) = (&row.name, row.listen, row.start);
            let data_dir = row.data_dir.as_ref().map(|path| path.display().to_string());
            tracing::info!(%name, %listen, data_dir, ?start, "serving");
        }
        print(self);
    }

    /// Prints how it ended.
    pub(crate) fn print_stopped(&self) {
        let data = if self.in_memory() {
            "the data was in memory and is gone"
        } else {
            "what was acknowledged is on disk"
        };
        print(format_args!("Stopped cleanly: {data}.\n"));
    }

    fn in_memory(&self) -> bool {
        self.servers.iter().all(|row| row.data_dir.is_none())
    }

    fn promise(&self) -> &'static str {
        match self.durability {
            _ if self.in_memory() => "in memory: all data is LOST when this stops",
            Durability::Fsync => "on disk before a write is acknowledged",
            Durability::Interval => {
                "on disk a moment after a write is acknowledged; a power cut loses that moment"
            }
            Durability::Memory => "on disk when the system likes; a power cut loses what was not written yet",
        }
    }
}

fn print(text: impl Display) {
    let mut stdout = io::stdout().lock();
    let _ = write!(stdout, "{text}").and_then(|()| stdout.flush());
}

impl Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "DKVS {}: {}\n", env!("CARGO_PKG_VERSION"), self.what)?;
        let width = self.servers.iter().map(|row| row.to_string().len()).max().unwrap_or(0);
        for row in &self.servers {
            writeln!(f, "  {:width$}  {}", row.to_string(), row.data())?;
        }
        let (n, r, w) = (self.quorum.n(), self.quorum.r(), self.quorum.w());
        writeln!(f)?;
        writeln!(f, "  data    {}", self.promise())?;
        writeln!(
            f,
            "  copies  {n} of each key; reads wait for {r}, writes for {w}  (n = {n}, r = {r}, w = {w})"
        )?;
        if self.pairs > 0 {
            writeln!(f, "  pairs   {} from the command line", self.pairs)?;
        }
        if let Some(note) = &self.note {
            writeln!(f, "  note    {note}")?;
        }
        let server = self.servers.first().map(client_flag).unwrap_or_default();
        let client = client_command();
        writeln!(f, "\nTry, in another terminal:\n")?;
        for command in ["put color green", "get color", "status"] {
            writeln!(f, "  {client}{server} {command}")?;
        }
        writeln!(f, "\nCtrl-C stops {}.", if self.servers.len() == 1 { "it" } else { "them" })
    }
}

/// The server's name, and where it listens if that differs.
impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, listen) = (self.name.to_string(), self.listen.to_string());
        f.write_str(&name)?;
        if name != listen { write!(f, " (listening on {listen})") } else { Ok(()) }
    }
}

impl Row {
    fn data(&self) -> String {
        let Some(data_dir) = &self.data_dir else { return "in memory".into() };
        let mut text = data_dir.display().to_string();
        let _ = match self.start {
            Start::New => write!(text, "  (new)"),
            Start::Clean => Ok(()),
            Start::Unclean => write!(text, "  (was not stopped cleanly; recovered)"),
        };
        text
    }
}

/// How the client is started: by cargo where cargo started this, as it is then hardly on the path.
fn client_command() -> &'static str {
    match (std::env::var_os("CARGO"), cfg!(debug_assertions)) {
        (None, _) => "dkvs-client",
        (Some(_), false) => "cargo run --release --bin dkvs-client --",
        (Some(_), true) => "cargo run --bin dkvs-client --",
    }
}

/// How the client is told of a server that is not where it looks by itself.
fn client_flag(row: &Row) -> String {
    match row.name.to_string() {
        name if name == "127.0.0.1:1234" => String::new(),
        name => format!(" --connect {name}"),
    }
}
