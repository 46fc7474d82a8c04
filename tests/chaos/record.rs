//! What is written down during a run: the history, what nemeses did, and what must not have happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dkvs_sim::history::{Action, Micros, Operation, Outcome, ValueId};

/// Grows while the run goes on.
pub(crate) struct Record {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
    troubles: Mutex<Vec<String>>,
    notes: Mutex<File>,
    begun_twice: Mutex<BTreeSet<ValueId>>,
    writes: AtomicU64,
    clients: AtomicU32,
}

/// What is the same for all requests on one key: n, and the quorums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quorums {
    pub(crate) n: usize,
    pub(crate) r: usize,
    pub(crate) w: usize,
}

impl Record {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            start: Instant::now(),
            operations: Mutex::default(),
            troubles: Mutex::default(),
            notes: Mutex::new(File::create(directory.join("nemesis.log")).unwrap()),
            begun_twice: Mutex::default(),
            writes: AtomicU64::new(0),
            clients: AtomicU32::new(0),
        }
    }

    /// Microseconds since the start.
    pub(crate) fn now(&self) -> Micros {
        u64::try_from(self.start.elapsed().as_micros()).unwrap()
    }

    /// A number for a client that nobody had before.
    pub(crate) fn new_client(&self) -> u32 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a write that no other has.
    pub(crate) fn new_write(&self) -> ValueId {
        1 + self.writes.fetch_add(1, Ordering::Relaxed)
    }

    /// An operation is about to be called.
    pub(crate) fn called(
        &self,
        client: u32,
        key: &str,
        quorums: Quorums,
        timeout: Duration,
        action: Action,
    ) -> usize {
        let Quorums { n, r, w } = quorums;
        let quorum = match &action {
            Action::Write { .. } => w,
            Action::Read => r,
        };
        let mut operations = lock(&self.operations);
        let (id, called) = (operations.len(), self.now());
        operations.push(Operation {
            id,
            client,
            key: key.to_owned(),
            n,
            quorum,
            sloppy: false,
            called,
            returned: None,
            deadline: called + u64::try_from(timeout.as_micros()).unwrap(),
            action,
            outcome: Outcome::Pending,
        });
        id
    }

    /// It returned.
    pub(crate) fn returned(&self, id: usize, outcome: Outcome) {
        let mut operations = lock(&self.operations);
        operations[id].returned = Some(self.now());
        operations[id].outcome = outcome;
    }

    /// The client may have given a write to a second server, and the first may have begun it too.
    pub(crate) fn may_be_begun_twice(&self, write: ValueId) {
        lock(&self.begun_twice).insert(write);
    }

    /// All such writes.
    pub(crate) fn begun_twice(&self) -> BTreeSet<ValueId> {
        lock(&self.begun_twice).clone()
    }

    /// Something that must never happen.
    pub(crate) fn trouble(&self, what: impl Display) {
        self.note(format_args!("TROUBLE: {what}"));
        lock(&self.troubles).push(what.to_string());
    }

    /// Something worth knowing.
    pub(crate) fn note(&self, what: impl Display) {
        let at = self.start.elapsed().as_secs_f64();
        let _ = writeln!(lock(&self.notes), "{at:8.3} {what}");
    }

    /// Everything that must never have happened.
    pub(crate) fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).clone()
    }

    /// All operations, in the order of their calls.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        lock(&self.operations).clone()
    }

    /// How many operations had which outcome.
    pub(crate) fn summary(&self) -> String {
        let mut counts = BTreeMap::<_, usize>::new();
        for operation in lock(&self.operations).iter() {
            let outcome = match operation.outcome {
                Outcome::Pending => "pending",
                Outcome::Written { .. } => "writes acknowledged",
                Outcome::Read { .. } => "reads answered",
                Outcome::Failed => "writes failed",
                Outcome::Unknown => "writes unknown",
                Outcome::Unavailable => "reads unavailable",
            };
            *counts.entry(outcome).or_default() += 1;
        }
        let counts = counts.into_iter().map(|(outcome, count)| format!("{count} {outcome}"));
        counts.collect::<Vec<_>>().join(", ")
    }
}

/// Writes the history where somebody may look for what went wrong.
pub(crate) fn write_history(path: &Path, operations: &[Operation]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    operations.iter().try_for_each(|operation| writeln!(file, "{operation:?}"))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
