//! What a server says about itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dkvs_core::hlc::WallMs;
use dkvs_core::record::{Body, Record, Sibling};
use dkvs_core::ring::RingId;
use dkvs_core::servers::{ServerEntry, ServerIndex};
use dkvs_net::Socket;
use dkvs_proto::message::Refusal;
use dkvs_proto::message::admin::{
    AdminAnswer, AdminRequest, HintReport, KeyReport, PeerReport, RingReport, RingServer, ScanEntry,
    ScanPage, SiblingReport, SiblingState, StatusReport,
};
use dkvs_proto::message::client::Token;
use dkvs_proto::record;
use dkvs_storage::{ScanLimit, Store, StoreError};

use crate::coordinator::Coordinator;
use crate::replica::{Entry, ReplicaError};
use crate::server::Running;
use crate::tree;
use crate::writer::Totals;

/// Most entries of a page, and most bytes whatever was asked.
const PAGE_ENTRIES_MAX: usize = 4_096;
const PAGE_LEN_MAX: usize = 1 << 20;

impl<S: Socket, T: Store> Running<S, T> {
    pub(crate) fn handle_admin(&self, request: AdminRequest) -> AdminAnswer {
        match request {
            AdminRequest::Ring => AdminAnswer::Ring(self.ring_report()),
            AdminRequest::Status => AdminAnswer::Status(self.status()),
            AdminRequest::Scan { after, len_max } => match self.scan(after, len_max) {
                Ok(page) => AdminAnswer::Page(page),
                Err(error) => AdminAnswer::Refused(Refusal::Storage(error.to_string())),
            },
            AdminRequest::Explain { ring, key } => match self.explain(ring, &key) {
                Ok(report) => AdminAnswer::Key(report),
                Err(error) => AdminAnswer::Refused(error.refusal()),
            },
        }
    }

    fn ring_report(&self) -> RingReport {
        let server = |entry: &ServerEntry| RingServer {
            host: entry.name.host().to_string(),
            port: entry.name.port(),
            nodes: entry.nodes,
        };
        let [n, r, w] = [self.quorum.n(), self.quorum.r(), self.quorum.w()]
            .map(|number| u16::try_from(number).unwrap_or(u16::MAX));
        let servers = self.coordinator.ring.servers().iter().map(server).collect();
        RingReport { servers, n, r, w, sloppy: self.sloppy }
    }

    fn status(&self) -> StatusReport {
        let replica = &self.coordinator.replica;
        let (totals, health, damage) = (replica.totals(), replica.health(), replica.damage());
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            ring: self.coordinator.ring.id(),
            uptime_ms: ms(self.start.elapsed()),
            keys: totals.keys,
            tombstones: totals.tombstones,
            bytes: totals.bytes,
            data_dir: self.data_dir.clone(),
            clock_skew_ms: self.clock.skew_ms_seen(),
            junk_datagrams: self.coordinator.endpoint.counters().junk.load(Ordering::Relaxed),
            poisoned: health.poisoned.as_deref().unwrap_or_default().into(),
            disk_free: health.free_bytes,
            disk_free_min: self.disk_free_bytes_min,
            damaged_found: damage.found(),
            damaged_waiting: damage.waiting(),
            scrubs: self.scrub.passes(),
            siblings_warned: replica.siblings_warned(),
            partitions_unread: replica.tree().unknown_len() as u64,
            reaped: replica.watches().reaped(),
            converges_ms: self.converges_in(&totals).map(ms),
            peers: self.coordinator.peers().into_iter().map(|peer| self.peer_report(peer)).collect(),
        }
    }

    /// How long it takes at most until this server and all others hold the same, once faults have ended: if this one was empty, or all
    /// others were.
    fn converges_in(&self, totals: &Totals) -> Option<Duration> {
        let noticed = self.coordinator.detector.ping_interval() * 2;
        let entries = totals.keys + totals.tombstones;
        let compared = self.coordinator.anti_entropy.takes_at_most(entries, totals.bytes)?;
        Some(compared.saturating_add(noticed + tree::read_takes(entries)))
    }

    fn peer_report(&self, server: ServerIndex) -> PeerReport {
        let view = self.coordinator.detector.view(server);
        let pair = self.coordinator.anti_entropy.pair(server);
        let progress = pair.progress();
        let kept = self.coordinator.replica.hints_kept().tally(self.coordinator.target(server));
        PeerReport {
            server,
            liveness: view.liveness,
            since_ms: ms(view.since.elapsed()),
            reason: view.reason.to_string(),
            hints: kept.hints,
            hint_bytes: kept.bytes,
            dirty_partitions: kept.dirty,
            agreed_ms: pair.agreed_ago().map(ms),
            differing_partitions: progress.differing as u64,
            records_moved: pair.moved(),
        }
    }

    fn scan(&self, after: Option<Token>, len_max: u32) -> Result<ScanPage, StoreError> {
        let bytes_max = usize::try_from(len_max).unwrap_or(PAGE_LEN_MAX).min(PAGE_LEN_MAX);
        let limit = ScanLimit { entries_max: PAGE_ENTRIES_MAX, bytes_max };
        let (entries, next) = self.coordinator.replica.page(after.as_ref().map(|token| &*token.0), limit)?;
        let now = self.clock.now();
        let entries = entries.into_iter().filter_map(|entry| scan_entry(entry, now)).collect();
        Ok(ScanPage { entries, next: next.map(Token) })
    }

    /// What this server holds of a key: its own record, whoever owns the key, and hints.
    fn explain(&self, ring: RingId, key: &[u8]) -> Result<KeyReport, ReplicaError> {
        let Coordinator { replica, .. } = &*self.coordinator;
        self.coordinator.check(ring, key).map_err(ReplicaError::Refused)?;
        let (record, is_damaged) = match replica.fetch(key) {
            Err(ReplicaError::Damaged) => (Record::new(), true),
            record => (record?, false),
        };
        let mut hints = Vec::new();
        for target in self.coordinator.peers() {
            if let Some((hint, bytes)) = replica.hint_held(self.coordinator.target(target), key)? {
                hints.push(hint_report(target, hint.record.ok().as_ref(), bytes));
            }
        }
        let is_stored = !record.vv().is_empty();
        Ok(KeyReport {
            clock_ms: self.clock.now(),
            is_damaged,
            hash: record.hash(),
            bytes: if is_stored { record::to_vec(&record).len() as u64 } else { 0 },
            vv: record.vv().iter().collect(),
            siblings: record.siblings().iter().map(sibling_report).collect(),
            hints,
        })
    }
}

fn hint_report(target: ServerIndex, record: Option<&Record>, bytes: u64) -> HintReport {
    HintReport {
        target,
        hash: record.map(Record::hash),
        bytes,
        vv: record.into_iter().flat_map(|record| record.vv().iter()).collect(),
        siblings: record.into_iter().flat_map(Record::siblings).map(sibling_report).collect(),
    }
}

fn sibling_report(sibling: &Sibling) -> SiblingReport {
    let Sibling { dot, write } = sibling;
    let state = match write.body {
        Body::Value(_) => SiblingState::Value,
        Body::Tombstone if sibling.is_dropped() => SiblingState::Dropped,
        Body::Tombstone => SiblingState::Tombstone,
    };
    let len = write.body.len() as u64;
    SiblingReport { dot: *dot, op: write.op, hlc: write.hlc, expires: write.expires, state, len }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a get would show of a key at this time; `None` when it is deleted or has expired.
fn scan_entry((key, record): Entry, now: WallMs) -> Option<ScanEntry> {
    let Body::Value(value) = record.winner(now)?.write.body.clone() else { return None };
    let siblings = u32::try_from(record.values(now).len()).unwrap_or(u32::MAX);
    Some(ScanEntry { key, value, siblings })
}
