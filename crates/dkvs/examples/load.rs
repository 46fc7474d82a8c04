//! Loads a cluster with many small records: 16-byte keys, 100-byte values.
//!
//! ```text
//! dkvs-server 127.0.0.1 4321 --durability interval               # in one terminal
//! cargo run --release -p dkvs --example load -- 127.0.0.1:4321 1000000 512
//! ```
//! Arguments: a server, how many records, how many puts are in flight at once, and the number of the first record (0 if
//! it is not given). A put that fails is counted and sent again. It is blind, so that a second copy does no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dkvs::{Client, ClientConfig, Error};

/// A loader would rather wait for a busy server than ask again.
const TIMEOUT: Duration = Duration::from_secs(20);

const VALUE: &[u8] = &[b'v'; 100];

/// What all puts share.
struct Load {
    next: AtomicU64,
    end: u64,
    failed: AtomicU64,
}

/// Puts records one after the other for as long as there are any.
async fn put_rest(client: Client, load: Arc<Load>) {
    loop {
        let number = load.next.fetch_add(1, Ordering::Relaxed);
        if number >= load.end {
            return;
        }
        while client.put(format!("{number:016}"), VALUE).await.is_err() {
            load.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn usage() -> Error {
    Error::Usage("usage: load SERVER COUNT IN_FLIGHT [FIRST]".into())
}

fn number(text: Option<String>) -> Result<u64, Error> {
    text.and_then(|text| text.parse().ok()).ok_or_else(usage)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().ok_or_else(usage)?;
    let count = number(arguments.next())?;
    let in_flight = number(arguments.next())?;
    let first = arguments.next().map_or(Ok(0), |text| number(Some(text)))?;

    let config = ClientConfig { timeout: TIMEOUT, silence_max: TIMEOUT / 4, ..ClientConfig::default() };
    let client = Client::connect_with(&server, config).await?;
    let load = Arc::new(Load { next: first.into(), end: first + count, failed: 0.into() });
    let start = Instant::now();
    let puts: Vec<_> = (0..in_flight).map(|_| tokio::spawn(put_rest(client.clone(), load.clone()))).collect();
    for put in puts {
        // A put that panicked has said so on stderr.
        let _ = put.await;
    }
    let (seconds, failed) = (start.elapsed().as_secs_f64(), load.failed.load(Ordering::Relaxed));
    let shown = Duration::from_secs_f64(seconds / count.max(1) as f64);
    write(&format!("{count} records in {seconds:.1} s, {shown:?} each; {failed} puts were sent again"));
    Ok(())
}

fn write(line: &str) {
    use std::io::Write as _;
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stdout(), "{line}");
}
