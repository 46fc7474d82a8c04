//! How fields of variable length are read: from what has arrived, never reserving what was only claimed.
//!
//! serde's own `Vec` reserves up to 1 MiB on the strength of a claimed length, and an owned byte string all of it.
//! These modules are used with `#[serde(with = "...")]`.

/// Byte strings.
pub(crate) mod bytes {
    use std::fmt;

    use bytes::Bytes;
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_bytes(BytesVisitor)
    }

    struct BytesVisitor;

    impl Visitor<'_> for BytesVisitor {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, arrived: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(arrived))
        }
    }
}

/// Texts.
pub(crate) mod text {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        from.deserialize_str(TextVisitor)
    }

    struct TextVisitor;

    impl Visitor<'_> for TextVisitor {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: Error>(self, arrived: &str) -> Result<String, E> {
            Ok(arrived.to_owned())
        }
    }
}

/// Lists. The elements must take at least one byte each. An element of one byte may take dozens in memory, so a list
/// is refused beyond [`LIST_LEN_MAX`](crate::limits::LIST_LEN_MAX) elements.
pub(crate) mod list {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::limits::LIST_LEN_MAX;

    pub(crate) fn serialize<S: Serializer, T: Serialize>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list)
    }

    pub(crate) fn deserialize<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        from.deserialize_seq(ListVisitor(PhantomData))
    }

    struct ListVisitor<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut arrived: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = arrived.next_element()? {
                if list.len() == LIST_LEN_MAX {
                    return Err(A::Error::custom(format_args!("more than {LIST_LEN_MAX} elements")));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
}

/// Lists of byte strings.
pub(crate) mod keys {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Key(#[serde(with = "super::bytes")] Bytes);

    pub(crate) fn serialize<S: Serializer>(keys: &[Bytes], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(keys.iter().cloned().map(Key))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Bytes>, D::Error> {
        let keys: Vec<Key> = super::list::deserialize(from)?;
        Ok(keys.into_iter().map(|Key(key)| key).collect())
    }
}

/// Records, in their own layout.
pub(crate) mod record {
    use dkvs_core::record::Record;
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(record: &Record, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&crate::record::to_vec(record))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Record, D::Error> {
        let bytes = super::bytes::deserialize(from)?;
        crate::record::decode(&bytes).map_err(D::Error::custom)
    }
}
