//! A set of writes that happen together.
//!
//! A batch is a map, not a list: a later write to a key replaces an earlier one on the way in. That is what a
//! caller expects, and it is needed: the engine gives all entries of a commit one sequence number, so of two
//! writes to one key it could not tell which came last. For the same reason a group commit merges the batches
//! of several callers through [`Batch::append`].

use crate::{Keyspace, StoreError};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Longest key a store takes. The engine keeps a key's length in 16 bits.
pub const KEY_LEN_MAX: usize = 65_535;

/// Longest value a store takes: far above any record, far below where an engine's 32-bit lengths end.
pub const VALUE_LEN_MAX: usize = 256 * 1024 * 1024;

/// Writes to commit together; see [`Store::commit`](crate::Store::commit).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    writes: BTreeMap<(Keyspace, Bytes), Option<Bytes>>,
    /// Bytes of all keys and values, kept so that a group's size is known without a walk.
    byte_len: usize,
}

impl Batch {
    /// A batch without writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` under `key`, in place of any earlier write to it in this batch.
    pub fn put(&mut self, keyspace: Keyspace, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.write(keyspace, key.into(), Some(value.into()));
    }

    /// Removes `key`, in place of any earlier write to it in this batch. Removing what is not there is fine.
    pub fn delete(&mut self, keyspace: Keyspace, key: impl Into<Bytes>) {
        self.write(keyspace, key.into(), None);
    }

    /// Adds all writes of `later`; where both write a key, `later` wins.
    pub fn append(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        for ((keyspace, key), value) in later.writes {
            self.write(keyspace, key, value);
        }
    }

    /// Whether nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many keys would be written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// How many bytes the keys and values have together.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.byte_len
    }

    /// The writes, ordered by keyspace and key; `None` removes.
    pub fn writes(&self) -> impl Iterator<Item = (Keyspace, &Bytes, Option<&Bytes>)> {
        self.writes.iter().map(|((keyspace, key), value)| (*keyspace, key, value.as_ref()))
    }

    /// The one home of what every store refuses.
    ///
    /// # Errors
    /// [`StoreError::Refused`], with the entry at fault.
    pub fn check(&self) -> Result<(), StoreError> {
        for (keyspace, key, value) in self.writes() {
            let name = keyspace.name();
            let key_len = key.len();
            let value_len = value.map_or(0, Bytes::len);
            if key.is_empty() {
                return Err(StoreError::Refused { reason: format!("an empty key in {name}") });
            }
            if key_len > KEY_LEN_MAX {
                let reason = format!("a key of {key_len} bytes in {name}, at most {KEY_LEN_MAX} are stored");
                return Err(StoreError::Refused { reason });
            }
            if value_len > VALUE_LEN_MAX {
                let reason =
                    format!("a value of {value_len} bytes in {name}, at most {VALUE_LEN_MAX} are stored");
                return Err(StoreError::Refused { reason });
            }
        }
        Ok(())
    }

    fn write(&mut self, keyspace: Keyspace, key: Bytes, value: Option<Bytes>) {
        let key_len = key.len();
        self.byte_len += key_len + value.as_ref().map_or(0, Bytes::len);
        if let Some(replaced) = self.writes.insert((keyspace, key), value) {
            self.byte_len -= key_len + replaced.map_or(0, |bytes| bytes.len());
        }
    }
}

impl IntoIterator for Batch {
    type Item = ((Keyspace, Bytes), Option<Bytes>);
    type IntoIter = std::collections::btree_map::IntoIter<(Keyspace, Bytes), Option<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        self.writes.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_len_counts_what_is_left_after_overwrites() {
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, "key", "a long value");
        batch.put(Keyspace::Records, "key", "v");
        batch.put(Keyspace::Meta, "key", "v");
        batch.delete(Keyspace::Meta, "key");
        assert_eq!((batch.len(), batch.byte_len()), (2, "keyv".len() + "key".len()));
    }

    #[test]
    fn appending_lets_the_later_batch_win_and_keeps_the_rest() {
        let mut first = Batch::new();
        first.put(Keyspace::Records, "a", "1");
        first.put(Keyspace::Records, "b", "1");
        let mut second = Batch::new();
        second.delete(Keyspace::Records, "b");
        second.put(Keyspace::Records, "c", "2");
        first.append(second);

        let mut expected = Batch::new();
        expected.put(Keyspace::Records, "a", "1");
        expected.delete(Keyspace::Records, "b");
        expected.put(Keyspace::Records, "c", "2");
        assert_eq!(first, expected);
    }
}
