//! Writes the history: what clients asked and heard, and which dots were seen on disks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use dkvs_core::record::{OpId, Record};
use dkvs_core::servers::ServerIndex;
use dkvs_net::Level;

use crate::history::{Counted, Damage, History, Life, Micros, Operation, Outcome, Reaped, Stored, ValueId};
use crate::plan::KEY_PREFIX;

/// The history of the run under way. Shared by clients, disks and the runner.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    clients: u32,
    writes: ValueId,
}

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client number nobody has.
    pub(crate) fn new_client(&self) -> u32 {
        let mut state = self.state();
        state.clients += 1;
        state.clients
    }

    /// A write number nobody has.
    pub(crate) fn new_write(&self) -> ValueId {
        let mut state = self.state();
        state.writes += 1;
        state.writes
    }

    /// An operation is called. Its `id` is set here, and returned.
    pub(crate) fn called(&self, operation: Operation) -> usize {
        let mut state = self.state();
        let id = state.history.operations.len();
        state.history.operations.push(Operation { id, ..operation });
        id
    }

    /// Which write an operation of the real client stands for.
    pub(crate) fn wrote(&self, op: OpId, write: ValueId) {
        self.state().history.ops.insert(op, write);
    }

    /// An operation has returned.
    pub(crate) fn returned(&self, id: usize, at: Micros, outcome: Outcome) {
        let operation = &mut self.state().history.operations[id];
        operation.returned = Some(at);
        operation.outcome = outcome;
    }

    /// A record was written to some disk.
    pub(crate) fn seen(&self, key: &Bytes, record: &Record) {
        let mut state = self.state();
        let key = String::from_utf8_lossy(key).into_owned();
        let dots = state.history.dots.entry(key.clone()).or_default();
        for sibling in record.siblings() {
            dots.entry(sibling.dot).or_default().insert(sibling.write.op);
        }
        let expiries = state.history.expiries.entry(key).or_default();
        for sibling in record.siblings() {
            expiries.entry(sibling.dot).or_default().insert(sibling.write.expires);
        }
    }

    /// Who counted for an operation that succeeded.
    pub(crate) fn counted(&self, id: usize, counted: Counted) {
        self.state().history.counted.insert(id, counted);
    }

    /// A record of a client's key is written to a server's disk, as its own or as a hint.
    pub(crate) fn stores(&self, server: ServerIndex, key: &Bytes, stored: Stored) {
        if key.starts_with(KEY_PREFIX.as_bytes()) {
            let key = String::from_utf8_lossy(key).into_owned();
            self.state().history.stored.entry((server, key)).or_default().push(stored);
        }
    }

    /// A record of a client's key is removed from a server's disk.
    pub(crate) fn reaps(&self, reaped: Reaped) {
        if reaped.key.starts_with(KEY_PREFIX) {
            self.state().history.reaped.push(reaped);
        }
    }

    /// A server has numbered an event of its own under this incarnation.
    pub(crate) fn numbers(&self, server: ServerIndex, incarnation: u64) {
        self.state().history.coordinators.insert(incarnation, server);
    }

    /// Something happened to a disk.
    pub(crate) fn damaged(&self, damage: Damage) {
        self.state().history.damage.push(damage);
    }

    /// A life of a server or client is over.
    pub(crate) fn lived(&self, who: String, levels: Vec<Level>) {
        self.state().history.lives.push(Life { who, levels });
    }

    /// Looks at the history, or adds to it.
    pub(crate) fn with<A>(&self, look: impl FnOnce(&mut History) -> A) -> A {
        look(&mut self.state().history)
    }

    /// The history so far; the recorder starts anew.
    pub(crate) fn take(&self) -> History {
        std::mem::take(&mut self.state().history)
    }
}
