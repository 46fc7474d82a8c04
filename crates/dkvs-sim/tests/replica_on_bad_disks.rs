//! One server's replica over simulated disks: whatever they do, what was acknowledged is read back or reported damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_cluster::ReplicaError;
use dkvs_cluster::write_path::WritePath;
use dkvs_core::record::OpId;
use dkvs_sim::disk::{Disk, SimStore};
use dkvs_sim::trace::Trace;
use dkvs_storage::Durability;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEEDS: u64 = 300;
const STEPS: u64 = 120;
const KEYS: u64 = 4;

/// What a key may hold.
#[derive(Debug, Default)]
struct Expected {
    /// Acknowledged last; `None` if nothing was.
    acknowledged: Option<Bytes>,
    /// Put since then, with an outcome that is not known.
    unknown: Vec<Bytes>,
    is_damaged: bool,
}

struct Run {
    disk: Disk,
    random: StdRng,
    replica: WritePath<SimStore>,
    durability: Durability,
    lives: u64,
    sequence: u64,
    expected: BTreeMap<Bytes, Expected>,
}

async fn open(disk: &Disk, durability: Durability, seed: u64) -> Option<WritePath<SimStore>> {
    let (store, start) = disk.open();
    WritePath::open(store, start, durability, Arc::new(|| 1_000), seed).await.ok()
}

impl Run {
    async fn start(seed: u64) -> Self {
        let disks_random = StdRng::seed_from_u64(seed);
        let trace = Arc::new(Trace::new(false));
        let disk = Disk::new(0, Duration::from_millis(100), disks_random, Arc::default(), trace);
        let mut random = StdRng::seed_from_u64(!seed);
        let durability =
            [Durability::Fsync, Durability::Interval, Durability::Memory][random.random_range(0..3)];
        let replica = open(&disk, durability, seed).await.expect("a new disk is in order");
        Self { disk, random, replica, durability, lives: seed << 20, sequence: 0, expected: BTreeMap::new() }
    }

    fn key(&mut self) -> Bytes {
        format!("key-{}", self.random.random_range(0..KEYS)).into()
    }

    async fn put(&mut self) {
        let key = self.key();
        self.sequence += 1;
        let value = Bytes::from(format!("value {}", self.sequence));
        let op = OpId { client: 1, sequence: self.sequence };
        let put = self.replica.put(key.clone(), value.clone(), op).await;
        let expected = self.expected.entry(key).or_default();
        match put {
            Ok(()) => {
                expected.acknowledged = Some(value);
                expected.unknown.clear();
            }
            Err(ReplicaError::Refused(_)) => {}
            Err(_) => expected.unknown.push(value),
        }
    }

    /// Reads every key. One that is damaged stays so: a server alone has nobody to repair it from.
    fn check(&mut self, seed: u64) {
        for (key, expected) in &mut self.expected {
            match self.replica.get(key) {
                Ok(found) => {
                    let is_known = found == expected.acknowledged
                        || found.as_ref().is_some_and(|found| expected.unknown.contains(found));
                    assert!(is_known, "seed {seed}: {key:?} is {found:?}, not {expected:?}");
                }
                Err(ReplicaError::Damaged) => {
                    assert!(expected.is_damaged, "seed {seed}: {key:?} reads as damaged, but was not");
                }
                // A bad sector, this once.
                Err(_) => {}
            }
        }
    }

    /// The server ends in some way, and starts again.
    async fn end(&mut self) {
        self.disk.set(|disk| *disk = dkvs_sim::disk::DiskConditions::healthy());
        if self.random.random_bool(0.5) && self.durability == Durability::Fsync {
            // What it takes beside is what was flipped since the last flush: such bits may be whole again.
            self.disk.cut_power(0, true);
        } else {
            self.disk.kill();
        }
        self.lives += 1;
        self.replica = open(&self.disk, self.durability, self.lives).await.expect("a disk in order");
    }

    async fn step(&mut self, seed: u64) {
        match self.random.random_range(0..20) {
            0 => self.end().await,
            1 => {
                let faults = (self.random.random_range(0.0..0.2), self.random.random_range(0.0..0.1));
                self.disk.set(|disk| (disk.read_fault, disk.write_fault) = faults);
            }
            2 => {
                let free = [0, 1 << 19, u64::MAX][self.random.random_range(0..3)];
                self.disk.set(|disk| disk.free = free);
            }
            3 => {
                if let Some(key) = self.disk.flip_record(None) {
                    self.expected.entry(key).or_default().is_damaged = true;
                }
            }
            4..=7 => self.check(seed),
            _ => self.put().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_read_back_or_reported_damaged() {
    let mut damaged = 0;
    for seed in 0..SEEDS {
        let mut run = Run::start(seed).await;
        for _ in 0..STEPS {
            run.step(seed).await;
        }
        run.end().await;
        run.check(seed);
        damaged += run.expected.values().filter(|expected| expected.is_damaged).count();
    }
    assert!(damaged > 100, "{damaged}");
}
