//! What clients do while servers are killed.
//!
//! Each writer has keys of its own, and writes to one after the other: a few puts and deletes without a context, and now
//! and then a get. It goes on to the next key when it does not know what became of a write, or when two servers may have
//! begun it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Error, Got};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::expectation::{Expectation, Outcome, Put, State};

/// Writers at one time: enough that commits have company, few enough that two cores can also start servers.
pub(crate) const WRITERS: u64 = 6;
/// Writes to one key, at most.
const WRITES_MAX: u32 = 5;
/// What a write may take; far more than servers that were killed need to be back.
const TIMEOUT: Duration = Duration::from_secs(4);
/// A server that is silent for so long is passed over, and may have begun what the next one is given.
const SILENCE: Duration = Duration::from_millis(500);
/// Longest value: far above a datagram, so that both lanes are used.
const VALUE_LEN_MAX: usize = 24_000;

/// What everybody knows about all keys.
#[derive(Default)]
pub(crate) struct Board {
    keys: Mutex<BTreeMap<String, Expectation>>,
    /// Keys written to since they were checked.
    unchecked: Mutex<BTreeSet<String>>,
    puts: AtomicU64,
    troubles: Mutex<Vec<String>>,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) reads: AtomicU64,
}

impl Board {
    /// Keys that were written to since this was asked last.
    pub(crate) fn take_unchecked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.unchecked)).into_iter().collect()
    }

    /// All keys.
    pub(crate) fn all(&self) -> Vec<String> {
        lock(&self.keys).keys().cloned().collect()
    }

    /// Compares what was found under a key with what may be.
    pub(crate) fn found(&self, key: &str, found: &State, where_from: &str) {
        let mut keys = lock(&self.keys);
        let expectation = keys.get_mut(key).expect("a key of the run");
        if !expectation.admits(found) {
            self.trouble(format!("{key:?} shows {found:?} {where_from}; expected is one of {expectation:?}"));
        }
    }

    pub(crate) fn trouble(&self, what: String) {
        lock(&self.troubles).push(what);
    }

    /// What must not have happened.
    pub(crate) fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).clone()
    }

    fn wrote(&self, key: &str, put: Option<Put>, outcome: Outcome) {
        lock(&self.keys).entry(key.to_owned()).or_insert_with(Expectation::nothing).wrote(put, outcome);
        lock(&self.unchecked).insert(key.to_owned());
        let counter = match outcome {
            Outcome::Acknowledged => &self.acknowledged,
            Outcome::Unknown => &self.unknown,
            Outcome::Failed => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn is_certain(&self, key: &str) -> bool {
        lock(&self.keys)[key].is_certain()
    }
}

/// The value of a put. It says whose it is, and every byte of it follows from that.
pub(crate) fn value(key: &str, put: Put) -> Bytes {
    let mut random = StdRng::seed_from_u64(put);
    let len = if random.random_bool(0.15) {
        random.random_range(0..VALUE_LEN_MAX)
    } else {
        random.random_range(0..90)
    };
    let mut value = format!("{put} {key} ").into_bytes();
    let filling = (0..len).map(|_| random.random::<u8>());
    value.extend(filling);
    value.into()
}

/// What a get shows; an error says that nobody can have put that.
pub(crate) fn state(key: &str, got: &Got) -> Result<State, String> {
    let mut state = State::new();
    for bytes in got.siblings().iter().flatten() {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let put = text.split_once(' ').and_then(|(put, _)| put.parse().ok());
        match put.filter(|&put| value(key, put) == bytes) {
            Some(put) => drop(state.insert(put)),
            None => {
                return Err(format!(
                    "{key:?} shows a value that nobody put, of {} bytes: {text:?}",
                    bytes.len()
                ));
            }
        }
    }
    Ok(state)
}

/// How writers are configured.
pub(crate) fn config() -> ClientConfig {
    ClientConfig { timeout: TIMEOUT, silence_max: SILENCE, ..ClientConfig::default() }
}

/// One writer.
pub(crate) struct Writer {
    pub(crate) client: Client,
    pub(crate) board: Arc<Board>,
    pub(crate) random: StdRng,
    /// Keys begin with it.
    pub(crate) name: String,
    pub(crate) keys: u64,
}

impl Writer {
    /// Writes until it is told to stop. Its last write is finished.
    pub(crate) async fn work(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            self.keys += 1;
            let key = format!("{} {}", self.name, self.keys);
            for _ in 0..self.random.random_range(1..=WRITES_MAX) {
                let goes_on = self.write(&key).await;
                if self.random.random_bool(0.1) {
                    self.read(&key).await;
                }
                if !goes_on || stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        self
    }

    /// Returns whether the key may be written to again.
    async fn write(&mut self, key: &str) -> bool {
        let deletes = self.random.random_bool(0.2);
        let put = (!deletes).then(|| 1 + self.board.puts.fetch_add(1, Ordering::Relaxed));
        let request = match put {
            Some(put) => self.client.put(key.to_owned(), value(key, put)),
            None => self.client.delete(key.to_owned()),
        };
        let start = Instant::now();
        let outcome = match request.await {
            Ok(_) => Outcome::Acknowledged,
            Err(error) => {
                self.judge(&error);
                if error.nothing_was_written() { Outcome::Failed } else { Outcome::Unknown }
            }
        };
        self.board.wrote(key, put, outcome);
        outcome != Outcome::Unknown && start.elapsed() < SILENCE
    }

    /// Reads a key that nobody writes to. Only what is certain is compared: of other writes, owners may not agree yet.
    async fn read(&mut self, key: &str) {
        let Ok(got) = self.client.get(key.to_owned()).siblings().await else { return };
        self.board.reads.fetch_add(1, Ordering::Relaxed);
        match state(key, &got) {
            Ok(found) if self.board.is_certain(key) => self.board.found(key, &found, "under load"),
            Ok(_) => {}
            Err(trouble) => self.board.trouble(trouble),
        }
    }

    /// Servers end, but do not refuse what is right.
    fn judge(&self, error: &Error) {
        match error {
            Error::Unknown(_) | Error::Unavailable(_) => {}
            Error::Usage(_)
            | Error::Connect { .. }
            | Error::WrongRing { .. }
            | Error::Refused { .. }
            | Error::TooManySiblings { .. } => {
                self.board.trouble(format!("a writer was told: {error}"));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
