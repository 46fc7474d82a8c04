//! Operations on keys: those the cluster has, and three made of them.
//!
//! `cat`, `substr` and `find` are reads followed by local work and, for the first two, one put. They are not
//! transactions: a source that changes between two reads, or between read and write, is not noticed. Each read asks
//! for R of N, and the write for W of N, as a get or put by itself would.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use dkvs::Got;

use crate::args::{Common, DataOp};
use crate::connect::{Cluster, config, with_context};
use crate::failure::Failure;
use crate::input;
use crate::output::Output;

pub(crate) async fn run(op: &DataOp, common: &Common, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let len_max = config(common).value_len_max;
    match op {
        DataOp::Put { key, value, context, ttl } => {
            let value = input::load(value, len_max)?;
            let cluster = Cluster::open(common).await?;
            let put = with_context(cluster.put(key, value), context.as_ref());
            let written = match ttl {
                Some(ttl) => put.ttl(*ttl).await?,
                None => put.await?,
            };
            out.written(&written)
        }
        DataOp::Delete { key, context } => {
            let cluster = Cluster::open(common).await?;
            let written = with_context(cluster.delete(key), context.as_ref()).await?;
            out.written(&written)
        }
        DataOp::Get { key, siblings } => {
            let cluster = Cluster::open(common).await?;
            let get = cluster.get(key);
            if *siblings { show_siblings(get.siblings().await?, out) } else { show_value(get.await?, out) }
        }
        DataOp::Cat { keys } => {
            let Some((dest, keys)) = keys.split_last() else {
                unreachable!("clap takes no fewer than 2 keys")
            };
            let cluster = Cluster::open(common).await?;
            let whole = cat(&cluster, keys, len_max).await?;
            out.written(&cluster.put(dest, whole).await?)
        }
        DataOp::Substr { key, pos, len, dest } => {
            let cluster = Cluster::open(common).await?;
            let part = part(&read(&cluster, key).await?, *pos, *len)?;
            out.written(&cluster.put(dest, part).await?)
        }
        DataOp::Find { haystack, needle } => {
            let cluster = Cluster::open(common).await?;
            let haystack = read(&cluster, haystack).await?;
            let needle = read(&cluster, needle).await?;
            out.index(leftmost(&haystack, &needle))
        }
    }
}

fn show_value(got: Got, out: &mut Output<impl Write>) -> Result<(), Failure> {
    match got.value() {
        Some(value) => out.value(value, &got),
        None => Err(Failure::NotFound(Box::new(got))),
    }
}

fn show_siblings(got: Got, out: &mut Output<impl Write>) -> Result<(), Failure> {
    if got.siblings().iter().any(Option::is_some) {
        out.siblings(&got)
    } else {
        Err(Failure::NotFound(Box::new(got)))
    }
}

/// The value of a key that an operation needs.
async fn read(cluster: &Cluster, key: &Bytes) -> Result<Bytes, Failure> {
    let got = cluster.get(key).await?;
    got.value().cloned().ok_or_else(|| Failure::SourceNotFound(key.clone()))
}

/// The values of the keys, one after the other.
async fn cat(cluster: &Cluster, keys: &[Bytes], len_max: usize) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    for key in keys {
        let value = read(cluster, key).await?;
        // Checked as it grows: a thousand keys must not fill the memory before they are found to be too much.
        if whole.len() + value.len() > len_max {
            return Err(Failure::TooLong { len_max });
        }
        whole.extend_from_slice(&value);
    }
    Ok(whole.freeze())
}

/// `len` bytes from `pos`, which counts from the end if it is negative.
fn part(value: &Bytes, pos: i64, len: u64) -> Result<Bytes, Failure> {
    let outside = || Failure::OutOfRange { pos, len, value_len: value.len() };
    let distance = usize::try_from(pos.unsigned_abs()).map_err(|_| outside())?;
    let start = if pos < 0 { value.len().checked_sub(distance) } else { Some(distance) };
    let start = start.ok_or_else(outside)?;
    let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
    let end = end.filter(|&end| end <= value.len()).ok_or_else(outside)?;
    Ok(value.slice(start..end))
}

/// Where `needle` first starts in `haystack`; at 0 if it is empty. Takes time linear in both lengths, whatever the
/// bytes (Knuth, Morris and Pratt 1977): two values of 8 MiB that nearly match everywhere would otherwise take hours.
fn leftmost(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.len() > haystack.len() {
        return None;
    }
    let borders = borders(needle);
    let mut matched = 0;
    for (i, &byte) in haystack.iter().enumerate() {
        if matched == needle.len() {
            return Some(i - matched);
        }
        matched = longer_match(needle, &borders, matched, byte);
    }
    (matched == needle.len()).then(|| haystack.len() - matched)
}

/// For each start of `needle`, by its length less 1: the length of the longest shorter start that is also its end.
fn borders(needle: &[u8]) -> Vec<usize> {
    let mut borders = vec![0; needle.len()];
    for i in 1..needle.len() {
        borders[i] = longer_match(needle, &borders, borders[i - 1], needle[i]);
    }
    borders
}

/// How much of the needle is matched when `byte` follows after `matched` of it were.
fn longer_match(needle: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && needle[matched] != byte {
        matched = borders[matched - 1];
    }
    if needle.get(matched) == Some(&byte) { matched + 1 } else { matched }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_inside_the_value() {
        let value = Bytes::from("hello");
        let taken = |pos, len| part(&value, pos, len).ok();
        for (pos, len, expected) in [
            (0, 5, "hello"),
            (0, 0, ""),
            (1, 3, "ell"),
            (4, 1, "o"),
            (5, 0, ""),
            (-1, 1, "o"),
            (-1, 0, ""),
            (-5, 5, "hello"),
            (-3, 2, "ll"),
        ] {
            assert_eq!(taken(pos, len).as_deref(), Some(expected.as_bytes()), "{pos} {len}");
        }
        for (pos, len) in
            [(0, 6), (5, 1), (6, 0), (-1, 2), (-6, 1), (-6, 0), (i64::MIN, 0), (i64::MAX, 1), (1, u64::MAX)]
        {
            assert_eq!(taken(pos, len), None, "{pos} {len}");
        }
        assert_eq!(
            part(&value, -6, 1).unwrap_err().to_string(),
            "POS -6, LEN 1 is not inside the value, which has 5 bytes"
        );
    }

    #[test]
    fn the_leftmost_match_is_the_one_a_comparison_at_every_place_finds() {
        let word = |bits: usize, len: usize| (0..len).map(|i| b'a' + u8::from(bits >> i & 1 == 1)).collect();
        let words = |len: usize| (0..1 << len).map(move |bits| word(bits, len));
        for haystack in (0..=7).flat_map(words) {
            let haystack: Vec<u8> = haystack;
            for needle in (0..=4).flat_map(words) {
                let needle: Vec<u8> = needle;
                let places = haystack.len() + 1;
                let expected = (0..places).find(|&place| haystack[place..].starts_with(&needle));
                assert_eq!(leftmost(&haystack, &needle), expected, "{haystack:?} {needle:?}");
            }
        }
    }

    #[test]
    fn a_search_that_nearly_matches_everywhere_is_quick() {
        let haystack = vec![b'a'; 4 << 20];
        let mut needle = vec![b'a'; 2 << 20];
        needle.push(b'b');
        assert_eq!(leftmost(&haystack, &needle), None);
    }
}
