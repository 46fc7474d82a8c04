//! Who this server is to its dots: its incarnation, and which epochs it has spent. Kept in the store.
//!
//! ```text
//!   meta/"identity"   u8 layout version, 2 | u64 incarnation | u32 first epoch not leased | u32 CRC-32 of all before
//! ```
//! Epochs are leased in blocks, so that most events need not touch this entry; after a clean stop the rest of a block
//! is simply lost. The lease is part of the commit whose dots need it.

use bytes::Bytes;
use dkvs_core::version::{Dot, Dots, VersionVector};
use dkvs_storage::{Batch, Durability, Keyspace, Start, Store, StoreError};
use rand::Rng;
use rand::rngs::StdRng;

const KEY: &[u8] = b"identity";
const LAYOUT_VERSION: u8 = 2;
const LEASE_EPOCHS: u32 = 1_024;

/// The stored identity, if it can be read: the incarnation and the first epoch that is not leased.
pub(crate) fn stored(store: &impl Store) -> Result<Option<(u64, u32)>, StoreError> {
    Ok(store.get(Keyspace::Meta, KEY)?.as_ref().and_then(decode))
}

/// This server's numbering, and how much of it is on disk.
pub(crate) struct Identity {
    dots: Dots,
    lease_end: u32,
    random: StdRng,
}

impl Identity {
    /// Goes on with the stored identity after a clean stop. After anything else the server cannot prove what it
    /// remembers, and draws a new incarnation, which is stored at once: if this start too ends with a clean stop, the
    /// next one must not go on with the identity of before, even if nothing was numbered meanwhile.
    pub(crate) async fn open(store: &impl Store, start: Start, random: StdRng) -> Result<Self, StoreError> {
        let mut identity = Self::load(store, start, random)?;
        let mut batch = Batch::new();
        if identity.stage_lease(&mut batch) {
            store.commit(batch, Durability::Fsync).await?;
        }
        Ok(identity)
    }

    fn load(store: &impl Store, start: Start, mut random: StdRng) -> Result<Self, StoreError> {
        let found = match start {
            Start::Clean => stored(store)?,
            Start::New | Start::Unclean => None,
        };
        // The rest of the stored lease is not used: it ends where the epochs to come begin.
        let (incarnation, next_epoch, lease_end) = match found {
            Some((incarnation, lease_end)) => (incarnation, lease_end, lease_end),
            None => (random.next_u64(), 1, 0),
        };
        Ok(Self { dots: Dots::new(incarnation, next_epoch), lease_end, random })
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.dots.incarnation()
    }

    /// The dot of the next event on a key; see [`Dots::next`]. A peer or a context may name events of this server that it
    /// never made: their epochs are passed over, as many as one vector can name.
    pub(crate) fn next_dot(&mut self, known: &VersionVector, own: Option<Dot>) -> Dot {
        loop {
            match self.dots.next(known, own) {
                Some(dot) if !known.covers(dot) => return dot,
                Some(_) => {}
                None => {
                    self.dots = Dots::new(self.random.next_u64(), 1);
                    self.lease_end = 0;
                }
            }
        }
    }

    /// Adds a new lease to the batch if the dots handed out so far need one. Returns whether they did: then the batch
    /// must reach the disk whatever the server's durability.
    pub(crate) fn stage_lease(&mut self, batch: &mut Batch) -> bool {
        if self.dots.next_epoch() <= self.lease_end {
            return false;
        }
        self.lease_end = self.dots.next_epoch().saturating_add(LEASE_EPOCHS);
        batch.put(Keyspace::Meta, Bytes::from_static(KEY), encode(self.dots.incarnation(), self.lease_end));
        true
    }
}

fn encode(incarnation: u64, lease_end: u32) -> Vec<u8> {
    let bytes = [&[LAYOUT_VERSION][..], &incarnation.to_be_bytes(), &lease_end.to_be_bytes()].concat();
    let crc = crc32fast::hash(&bytes).to_be_bytes();
    [&bytes[..], &crc].concat()
}

/// The incarnation and the end of its lease. `None` for anything unreadable: a new incarnation is always safe.
fn decode(bytes: &Bytes) -> Option<(u64, u32)> {
    let (bytes, crc) = bytes.split_last_chunk()?;
    if crc32fast::hash(bytes).to_be_bytes() != *crc {
        return None;
    }
    let (&[LAYOUT_VERSION], rest) = bytes.split_first_chunk()? else { return None };
    let (incarnation, rest) = rest.split_first_chunk()?;
    let lease_end = rest.try_into().ok()?;
    Some((u64::from_be_bytes(*incarnation), u32::from_be_bytes(lease_end)))
}

#[cfg(test)]
mod tests {
    use dkvs_storage::MemoryStore;
    use rand::SeedableRng;

    use super::*;

    async fn open(store: &MemoryStore, start: Start, seed: u64) -> Identity {
        Identity::open(store, start, StdRng::seed_from_u64(seed)).await.unwrap()
    }

    #[tokio::test]
    async fn after_a_clean_stop_the_incarnation_stays_and_no_epoch_is_reused() {
        let store = MemoryStore::new();
        let mut before = open(&store, Start::New, 1).await;
        let dots: Vec<Dot> = (0..3).map(|_| before.next_dot(&VersionVector::new(), None)).collect();
        assert!(!before.stage_lease(&mut Batch::new()), "one lease serves many epochs");

        let mut after = open(&store, Start::Clean, 2).await;
        let next = after.next_dot(&VersionVector::new(), None);
        assert_eq!(next.actor.incarnation, dots[0].actor.incarnation);
        assert!(dots.iter().all(|dot| dot.actor.epoch < next.actor.epoch), "{dots:?} {next:?}");
        assert!(after.stage_lease(&mut Batch::new()), "the old lease is not used up, but left");
    }

    #[tokio::test]
    async fn after_anything_but_a_clean_stop_the_incarnation_is_new() {
        let store = MemoryStore::new();
        let before = open(&store, Start::New, 1).await;
        assert_ne!(open(&store, Start::Unclean, 2).await.incarnation(), before.incarnation());
    }

    #[tokio::test]
    async fn an_incarnation_that_numbered_nothing_is_not_forgotten_by_a_clean_stop() {
        let store = MemoryStore::new();
        let before = open(&store, Start::New, 1).await;
        let idle = open(&store, Start::Unclean, 2).await;
        let after = open(&store, Start::Clean, 3).await;
        assert_eq!(after.incarnation(), idle.incarnation());
        assert_ne!(
            after.incarnation(),
            before.incarnation(),
            "which may have told others more than the store holds"
        );
    }

    /// A lease that reads shorter than it is would number events twice.
    #[test]
    fn a_flipped_bit_in_the_identity_makes_it_unreadable() {
        let bytes = encode(7, 1_025);
        assert_eq!(decode(&bytes.clone().into()), Some((7, 1_025)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged.into()), None, "bit {bit}");
        }
    }

    #[test]
    fn epochs_that_somebody_made_up_are_passed_over() {
        let mut identity =
            Identity { dots: Dots::new(7, 5), lease_end: 1_024, random: StdRng::seed_from_u64(3) };
        let invented = |epoch| Dot { actor: dkvs_core::version::Actor { incarnation: 7, epoch }, counter: 9 };
        let known = (5..9).map(invented).collect();
        let dot = identity.next_dot(&known, None);
        assert_eq!((dot.actor.incarnation, dot.actor.epoch, dot.counter), (7, 9, 1));
    }

    #[test]
    fn an_incarnation_without_epochs_left_is_replaced() {
        let mut identity = Identity {
            dots: Dots::new(7, u32::MAX - 1),
            lease_end: u32::MAX,
            random: StdRng::seed_from_u64(3),
        };
        let none = VersionVector::new();
        assert_eq!(identity.next_dot(&none, None).actor.incarnation, 7);
        let dot = identity.next_dot(&none, None);
        assert_ne!(dot.actor.incarnation, 7);
        assert_eq!(dot.actor.epoch, 1);
        assert!(identity.stage_lease(&mut Batch::new()));
    }
}
