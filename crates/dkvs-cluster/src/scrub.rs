//! Reads all records, slowly and again and again, in search of damage.
//!
//! A copy that nobody reads can rot unnoticed until the day the other copies are needed. Reading it tells (its checksum is
//! wrong, or the engine's is), while there are others to repair it from. Whoever passes by everything also finds the values that
//! expired long ago, and has their bytes dropped.
//!
//! What the engine cannot read has no keys here to be repaired by. The others know them: the partitions are compared
//! ([`Tree::doubt`](crate::tree::Tree::doubt)).
//!
//! ```text
//!   page ── pause ── page ── pause ── ... ── end: one pass ──── long pause ──── from the start
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_storage::{ScanLimit, Store};
use tokio::time::sleep;

use crate::clock::Clock;
use crate::replica::{Replica, Scrubbed};

/// Bytes read in one go. It keeps a worker of the runtime for some 100 µs.
const PAGE: ScanLimit = ScanLimit { entries_max: 256, bytes_max: 64 << 10 };

/// Pause after a page could not be read just now, and after one that is damaged. A block of the engine's may span very many partitions, if
/// these hold little.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
const DAMAGE_PAUSE: Duration = Duration::from_millis(2);

/// How far it got.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    passes: AtomicU64,
}

impl Scrub {
    /// How often all records were looked at since the start.
    pub(crate) fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }
}

/// Looks at all records, `bytes_per_s` of them in a second, and begins again after `pause`. Never, when that is 0.
pub(crate) async fn run<T: Store>(
    replica: Replica<T>,
    clock: Arc<Clock>,
    bytes_per_s: u64,
    pause: Duration,
    done: Arc<Scrub>,
) {
    if bytes_per_s == 0 {
        return;
    }
    loop {
        let mut after: Option<Bytes> = None;
        let mut is_told = false;
        loop {
            let scrubbed = replica.scrub(after.as_deref(), PAGE, clock.long_ago());
            let (error, pause) = match scrubbed {
                Ok(Scrubbed { last: None, damage: None, .. }) => break,
                Ok(Scrubbed { last, bytes, damage }) => {
                    is_told &= last.is_none();
                    after = last.or(after);
                    sleep(Duration::from_secs(1).mul_f64(bytes as f64 / bytes_per_s as f64)).await;
                    let Some(error) = damage else { continue };
                    replica.tree().doubt(partition_behind(after.as_deref()));
                    (error, DAMAGE_PAUSE)
                }
                Err(error) => (error, ERROR_PAUSE),
            };
            if !std::mem::replace(&mut is_told, true) {
                let partition = partition_behind(after.as_deref()).number();
                tracing::error!(%error, partition, "records cannot be read in search of damage, and perhaps more that follow");
            }
            sleep(pause).await;
            match beyond(after.as_deref()) {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        done.passes.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
    }
}

/// Where the partition after that of a store's key begins; `None` after the last. What the engine cannot read is passed
/// over, as nobody can tell where it ends.
pub(crate) fn beyond(after: Option<&[u8]>) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&partition_behind(after).number().checked_add(1)?.to_be_bytes()))
}

/// The first partition that may have entries behind a store's key.
fn partition_behind(after: Option<&[u8]>) -> Partition {
    let number = after.and_then(|key| key.first_chunk());
    Partition::new(number.map_or(0, |number| u16::from_be_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_passed_over_by_partitions() {
        assert_eq!(beyond(None).as_deref(), Some(&[0, 1][..]));
        assert_eq!(beyond(Some(&[0, 255, 7, 7])).as_deref(), Some(&[1, 0][..]));
        assert_eq!(beyond(Some(&[255, 255, 1])), None);
    }
}
