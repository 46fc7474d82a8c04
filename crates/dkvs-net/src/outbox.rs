//! What waits to be sent, and how it is packed.
//!
//! A datagram costs the kernel microseconds, and what travels in it next to nothing. So messages that are ready at
//! the same moment share datagrams, and datagrams to one peer share a system call (segmentation offload). Nothing is
//! ever held back to fill one: the sender takes what is there, and while it sends, more gathers.
//!
//! ```text
//!   frames to A, B, A, A ──> A: [f1 f3 ..pad] [f4]   one send, cut into equal segments
//!                            B: [f2]                 one send
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use dkvs_proto::envelope::{DatagramBuilder, Header};
use tokio::sync::Notify;

use crate::gauges::Gauge;
use crate::lock;

/// Longest run of datagrams handed to the kernel at once: the kernel cuts at most 64 segments, 65,535 bytes in all.
const RUN_SEGMENTS_MAX: usize = 64;
const RUN_LEN_MAX: usize = 65_000;

/// A frame and where it goes.
type Outgoing = (SocketAddr, Arc<[u8]>);

/// A bounded queue that one task empties. While that sends what it took, as much again may gather.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Mutex<Vec<Outgoing>>,
    len_max: usize,
    pub(crate) gauge: Gauge,
    filled: Notify,
}

impl Outbox {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { queue: Mutex::default(), len_max, gauge: Gauge::new(len_max), filled: Notify::new() }
    }

    /// Queues a frame. Returns `false`, and loses it, when the queue is full.
    #[must_use]
    pub(crate) fn push(&self, to: SocketAddr, frame: Arc<[u8]>) -> bool {
        let mut queue = lock(&self.queue);
        if queue.len() >= self.len_max {
            self.gauge.was_full();
            return false;
        }
        queue.push((to, frame));
        self.gauge.set(queue.len());
        if queue.len() == 1 {
            self.filled.notify_one();
        }
        true
    }

    /// Waits until there is something to send.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Everything queued so far, by destination; in the order it was queued for each.
    pub(crate) fn take(&self) -> BTreeMap<SocketAddr, Vec<Arc<[u8]>>> {
        let taken = {
            let mut queue = lock(&self.queue);
            self.gauge.set(0);
            std::mem::take(&mut *queue)
        };
        let mut by_destination: BTreeMap<SocketAddr, Vec<Arc<[u8]>>> = BTreeMap::new();
        for (to, frame) in taken {
            by_destination.entry(to).or_default().push(frame);
        }
        by_destination
    }
}

/// Datagrams of one length, of which the last may be shorter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) bytes: Vec<u8>,
    pub(crate) segment_len: usize,
}

/// Packs frames for one destination. Each frame fits a datagram of `datagram_len_max` bytes.
pub(crate) fn pack(header: Header, frames: &[Arc<[u8]>], datagram_len_max: usize) -> Vec<Run> {
    let mut full: Vec<DatagramBuilder> = Vec::new();
    let mut open = DatagramBuilder::new(header);
    for frame in frames {
        if !open.is_empty() && open.len() + frame.len() > datagram_len_max {
            full.push(std::mem::replace(&mut open, DatagramBuilder::new(header)));
        }
        open.push_encoded(frame);
    }
    full.push(open);
    runs(full)
}

/// Joins datagrams into runs, padding all but the last of a run to equal length.
fn runs(datagrams: Vec<DatagramBuilder>) -> Vec<Run> {
    let longest = datagrams.iter().map(DatagramBuilder::len).max().unwrap_or(1);
    let per_run = (RUN_LEN_MAX / longest).clamp(1, RUN_SEGMENTS_MAX);
    let mut runs: Vec<Run> = Vec::new();
    let mut datagrams = datagrams.into_iter().peekable();
    while datagrams.peek().is_some() {
        let mut run = Run { bytes: Vec::new(), segment_len: longest };
        let mut of_this_run = datagrams.by_ref().take(per_run).peekable();
        while let Some(datagram) = of_this_run.next() {
            let len_min = if of_this_run.peek().is_some() { longest } else { 0 };
            run.bytes.extend_from_slice(&datagram.finish(len_min));
        }
        runs.push(run);
    }
    runs
}

#[cfg(test)]
mod tests {
    use dkvs_proto::envelope::{ENVELOPE_HEADER_LEN, parse};
    use dkvs_proto::frame::{Frame, Kind};

    use super::*;

    const HEADER: Header = Header { session: 1, proof: 2, oldest: 3 };

    fn frame(id: u64, body_len: usize) -> Arc<[u8]> {
        let mut bytes = Vec::new();
        Frame { kind: Kind::AdminRequest, id, expires: 0, body: &vec![7; body_len] }.write(&mut bytes);
        bytes.into()
    }

    fn ids(runs: &[Run]) -> Vec<u64> {
        let datagrams = runs.iter().flat_map(|run| run.bytes.chunks(run.segment_len));
        datagrams.flat_map(|d| parse(d).unwrap().1.iter().map(|f| f.id).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn small_messages_share_a_datagram() {
        let frames: Vec<_> = (0..10).map(|id| frame(id, 50)).collect();
        let runs = pack(HEADER, &frames, 1_200);
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].bytes.len(), ENVELOPE_HEADER_LEN + 10 * 71);
        assert_eq!(ids(&runs), Vec::from_iter(0..10));
    }

    #[test]
    fn no_datagram_exceeds_its_budget_and_none_is_lost() {
        for body_len in [0, 1, 100, 555, 556, 1_000, 1_147] {
            let frames: Vec<_> = (0..500).map(|id| frame(id, body_len)).collect();
            let runs = pack(HEADER, &frames, 1_200);
            assert!(runs.iter().all(|run| run.segment_len <= 1_200 && run.bytes.len() <= RUN_LEN_MAX));
            assert!(runs.iter().all(|run| run.bytes.len().div_ceil(run.segment_len) <= RUN_SEGMENTS_MAX));
            assert_eq!(ids(&runs), Vec::from_iter(0..500), "{body_len}");
        }
    }

    #[test]
    fn a_full_queue_loses_what_comes() {
        let outbox = Outbox::new(2);
        let to = "127.0.0.1:1".parse().unwrap();
        let kept: Vec<bool> = (0..3).map(|id| outbox.push(to, frame(id, 1))).collect();
        assert_eq!(kept, [true, true, false]);
        assert_eq!(outbox.take()[&to].len(), 2);
        assert!(outbox.take().is_empty());
    }
}
