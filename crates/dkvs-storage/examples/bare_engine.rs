//! The engine alone, to compare a server's memory and start with: opens the engine in a directory, without a server,
//! and prints how long that took and how much memory the process has.
//!
//! ```text
//! cargo run --release -p dkvs-storage --example bare_engine -- DATA_DIR/store
//! cargo run --release -p dkvs-storage --example bare_engine -- /some/new/dir 10000000
//! ```
//! With a count it then writes so many entries, as long as those of a server with 16-byte keys and 100-byte values, and
//! prints the memory again.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

/// Of an entry of the keyspace `records` with a 16-byte key: two bytes of partition before it.
const KEY_LEN: usize = 18;
/// Of an entry with a 100-byte value: what a record keeps beside it has 104 bytes.
const VALUE_LEN: usize = 204;
const BATCH_LEN: u64 = 256;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: bare_engine DIR [COUNT]")?;
    let count = arguments.next().map(|count| count.parse()).transpose()?.unwrap_or(0);
    report("before it is opened", Instant::now())?;
    let start = Instant::now();
    // As dkvs_storage::FjallStore opens it.
    let db = Database::builder(Path::new(&dir))
        .worker_threads(3)
        .max_cached_files(Some(256))
        .cache_size(32 << 20)
        .max_journaling_size(128 << 20)
        .open()?;
    let options = || KeyspaceCreateOptions::default().max_memtable_size(16 << 20);
    let records = db.keyspace("records", options)?;
    let _meta = db.keyspace("meta", options)?;
    report("opened", start)?;
    if count > 0 {
        let start = Instant::now();
        load(&db, &records, count)?;
        report(&format!("{count} entries written"), start)?;
    }
    Ok(())
}

fn load(db: &Database, records: &Keyspace, count: u64) -> Result<(), AnyError> {
    for first in (0..count).step_by(usize::try_from(BATCH_LEN)?) {
        let mut batch = db.batch().durability(Some(PersistMode::Buffer));
        for number in first..count.min(first + BATCH_LEN) {
            batch.insert(records, key(number), [b'v'; VALUE_LEN]);
        }
        batch.commit()?;
    }
    Ok(())
}

/// Keys come in no order, as partitions do.
fn key(number: u64) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    let partition = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    key[..2].copy_from_slice(&partition[..2]);
    key[2..].copy_from_slice(format!("{number:016}").as_bytes());
    key
}

/// Prints the process's memory as Linux counts it: all of it, and what is its own rather than mapped files'.
fn report(what: &str, start: Instant) -> Result<(), AnyError> {
    let seconds = start.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status")?;
    let sizes: Vec<&str> = status
        .lines()
        .filter(|line| ["VmHWM", "VmRSS", "RssAnon"].iter().any(|name| line.starts_with(name)))
        .collect();
    writeln!(std::io::stdout(), "{what} after {seconds:.2} s: {}", sizes.join(", ").replace('\t', " "))?;
    Ok(())
}
