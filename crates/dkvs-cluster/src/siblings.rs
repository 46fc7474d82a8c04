//! How many siblings a key may have.
//!
//! Clients that put again and again with an old context, or with that of a key that was not found, leave a sibling each time. The
//! record grows, and each get and put of the key moves all of it. So there is a number at which a warning is due, and one that no
//! client's put may exceed: it is refused, and the client told how to resolve the key. A put that leaves fewer siblings than
//! there are is never refused, and neither are merges: what was acknowledged elsewhere must be held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dkvs_core::record::Record;
use dkvs_core::version::VersionVector;
use dkvs_proto::context;
use dkvs_proto::message::Refusal;
use dkvs_proto::message::client::Token;
use tokio::time::Instant;

/// Warnings are logged once in this time; all of them are counted.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many siblings are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiblingLimits {
    /// With so many a warning is due.
    pub warn: usize,
    /// Most that a client's put may leave.
    pub max: usize,
}

impl Default for SiblingLimits {
    fn default() -> Self {
        Self { warn: 25, max: 100 }
    }
}

impl SiblingLimits {
    /// Refuses a put whose context would leave a key's record with too many siblings, unless it leaves fewer than there are.
    pub(crate) fn admit(self, key: &[u8], record: &Record, context: &VersionVector) -> Result<(), Refusal> {
        let siblings = record.siblings();
        // An event replaces what was given at a start, whatever its context.
        let stays = siblings.iter().filter(|s| !s.dot.actor.is_initial() && !context.covers(s.dot)).count();
        if stays < self.max || stays + 1 < siblings.len() {
            return Ok(());
        }
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Err(Refusal::TooManySiblings {
            siblings: count(siblings.len()),
            siblings_max: count(self.max),
            context: Token(context::encode(key, record.vv())),
        })
    }
}

/// Counts warnings, and logs some of them.
#[derive(Debug, Default)]
pub(crate) struct SiblingWarnings {
    count: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

impl SiblingWarnings {
    /// How many there were since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A change has given a key so many siblings; it had so many before.
    pub(crate) fn look(&self, limits: SiblingLimits, key: &[u8], before: usize, after: usize) {
        if after < limits.warn || after <= before {
            return;
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| now - at >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(
                key = format_args!("{:?}", String::from_utf8_lossy(key)),
                siblings = after,
                count,
                "a key has many siblings: a get with all of them, then a put with its context, resolves it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use dkvs_core::hlc::Hlc;
    use dkvs_core::record::{Body, OpId, Write};
    use dkvs_core::version::{Actor, Dot};

    use super::*;

    const LIMITS: SiblingLimits = SiblingLimits { warn: 2, max: 3 };

    fn dot(number: u64) -> Dot {
        Dot { actor: Actor { incarnation: number, epoch: 1 }, counter: 1 }
    }

    fn record(siblings: u64) -> Record {
        let mut record = Record::new();
        for number in 1..=siblings {
            let op = OpId { client: 1, sequence: number };
            let write = Write { op, hlc: Hlc::default(), expires: None, body: Body::Tombstone };
            record.event(&VersionVector::new(), dot(number), write);
        }
        record
    }

    fn context(covered: u64) -> VersionVector {
        (1..=covered).map(dot).collect()
    }

    #[test]
    fn a_put_that_leaves_too_many_is_refused_unless_it_leaves_fewer_than_there_are() {
        let refused = |siblings: u32| {
            let context = Token(context::encode(b"k", &context(siblings.into())));
            Err(Refusal::TooManySiblings { siblings, siblings_max: 3, context })
        };
        for (siblings, covered, expected) in [
            (2, 0, Ok(())),
            (3, 0, refused(3)),
            (3, 1, Ok(())),
            (9, 0, refused(9)),
            (9, 1, refused(9)),
            (9, 2, Ok(())),
            (9, 9, Ok(())),
        ] {
            assert_eq!(
                LIMITS.admit(b"k", &record(siblings), &context(covered)),
                expected,
                "{siblings}, {covered}"
            );
        }
    }

    #[tokio::test]
    async fn a_warning_is_counted_when_a_key_has_more_siblings_than_before() {
        let warnings = SiblingWarnings::default();
        for (before, after) in [(0, 1), (1, 2), (2, 2), (3, 2), (2, 3)] {
            warnings.look(LIMITS, b"k", before, after);
        }
        assert_eq!(warnings.count(), 2);
    }
}
