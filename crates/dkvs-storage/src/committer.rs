//! Group commit: one thread writes for everyone.
//!
//! A flush costs the same for one batch as for a hundred, and an engine that holds its journal's lock through
//! the flush gains nothing from more threads. So callers queue their batches, and one thread takes everything
//! that queued while it was flushing, applies it as one batch with the strongest durability among them, and
//! answers all. Load makes the groups larger and the cost per batch smaller; a lone batch never waits for
//! company.
//!
//! ```text
//!   commit(a) ─┐
//!   commit(b) ─┼─> queue ─> a + b + c ─> Engine::apply ─> answer a, b, c
//!   commit(c) ─┘             while this runs, d and e queue
//! ```
//!
//! Invariants: batches are applied in the order they queued; every caller is answered, also when the engine
//! fails or panics; after the first failure the engine is never asked to write again.
//!
//! What it leaves out: fairness and priorities. A caller with a large batch delays the others' answers by the
//! time its bytes take to write.

use crate::{Batch, Durability, StoreError};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Commits that may be queued or under way; more wait for room without blocking their thread. Enough that one
/// flush serves a burst, few enough that a stalled disk holds back its writers instead of filling memory.
const COMMITS_QUEUED_MAX: usize = 4_096;

/// A group takes no further batch once it has this many bytes, so that one flush stays short (some 20 ms on a
/// plain SSD) and the engine's write buffer is not passed several times over by one group.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the thread writes to. Its methods are called by that thread only.
pub(crate) trait Engine: Send + 'static {
    /// Applies the group atomically; when it returns Ok the group is durable as asked and visible. `Interval`
    /// means written like `Memory`: the thread calls `sync` in time.
    fn apply(&mut self, group: &Batch, durability: Durability) -> Result<(), StoreError>;

    /// Flushes everything applied so far to disk.
    fn sync(&mut self) -> Result<(), StoreError>;
}

/// The callers' side: queues batches, awaits answers.
#[derive(Debug)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    /// The first failure, once there is one.
    poison: Arc<OnceLock<Arc<str>>>,
    closing: AtomicBool,
    /// How the thread ended, once it did; the sender dies with the thread.
    end: watch::Receiver<Option<Result<(), StoreError>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Message {
    Commit(Request),
    Close,
}

#[derive(Debug)]
struct Request {
    batch: Batch,
    durability: Durability,
    answer: oneshot::Sender<Answer>,
    /// Its place among [`COMMITS_QUEUED_MAX`], given back when the request is dropped.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Answer {
    result: Result<(), StoreError>,
    /// What was committed goes back to whoever made it, to be freed there. On the commit thread all would wait for that,
    /// and memory is freed more slowly by another thread than the one that took it.
    _done: Option<Batch>,
}

impl Committer {
    pub(crate) fn start(engine: impl Engine, flush_interval: Duration) -> std::io::Result<Self> {
        let (queue, requests) = mpsc::channel();
        let (ended, end) = watch::channel(None);
        let poison = Arc::new(OnceLock::new());
        let worker = Worker {
            engine,
            requests,
            ended,
            poison: Arc::clone(&poison),
            flush_interval,
            unsynced_since: None,
            closing: false,
        };
        let thread = thread::Builder::new().name("dkvs-commit".into()).spawn(move || worker.run())?;
        Ok(Self {
            queue,
            room: Arc::new(Semaphore::new(COMMITS_QUEUED_MAX)),
            poison,
            closing: AtomicBool::new(false),
            end,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(crate) async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        batch.check()?;
        self.check_open()?;
        if batch.is_empty() {
            return Ok(());
        }
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let request = Request { batch, durability, answer, _room: room };
        if self.queue.send(Message::Commit(request)).is_err() {
            // The thread is gone and the batch never reached it.
            return Err(self.check_open().err().unwrap_or(StoreError::Closed));
        }
        answered.await.map_or_else(|_| Err(self.lost_answer()), |answer| answer.result)
    }

    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.begin_close();
        let mut end = self.end.clone();
        let result = match end.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(self.poisoned()),
        };
        self.join();
        result
    }

    fn begin_close(&self) {
        if !self.closing.swap(true, Ordering::AcqRel) {
            // A thread that is gone cannot be told, and need not be.
            let _ = self.queue.send(Message::Close);
        }
    }

    /// Waits for a thread that has said its last word, or is about to.
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the commit thread panicked outside the engine");
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        if self.poison.get().is_some() || self.end.has_changed().is_err() {
            return Err(self.poisoned());
        }
        Ok(())
    }

    /// The first failure, once there is one.
    pub(crate) fn poisoned_by(&self) -> Option<Arc<str>> {
        self.poison.get().cloned()
    }

    fn poisoned(&self) -> StoreError {
        StoreError::Poisoned { reason: self.poison_reason() }
    }

    fn poison_reason(&self) -> Arc<str> {
        self.poison.get().cloned().unwrap_or_else(|| "the commit thread ended unexpectedly".into())
    }

    /// For a queued batch whose answer never came. A thread that ended in order dropped it untouched.
    fn lost_answer(&self) -> StoreError {
        if self.end.borrow().is_some() {
            return StoreError::Closed;
        }
        StoreError::Unknown { reason: self.poison_reason() }
    }
}

impl Drop for Committer {
    /// What `close` does, for those who forgot: blocks until everything queued is on disk.
    fn drop(&mut self) {
        self.begin_close();
        self.join();
    }
}

/// The thread's side.
struct Worker<E> {
    engine: E,
    requests: mpsc::Receiver<Message>,
    ended: watch::Sender<Option<Result<(), StoreError>>>,
    poison: Arc<OnceLock<Arc<str>>>,
    flush_interval: Duration,
    /// When the oldest `Interval` commit that is not on disk yet was applied.
    unsynced_since: Option<Instant>,
    closing: bool,
}

impl<E: Engine> Worker<E> {
    fn run(mut self) {
        while !self.closing {
            match self.next_message() {
                Some(Message::Commit(request)) => self.commit_group(request),
                Some(Message::Close) => self.closing = true,
                None => break,
            }
            self.sync_if_due();
        }
        while let Ok(message) = self.requests.try_recv() {
            if let Message::Commit(request) = message {
                let _ = request.answer.send(Answer { result: Err(StoreError::Closed), _done: None });
            }
        }
        let result = self.guarded("the last flush", Engine::sync);
        let Self { engine, ended, poison, .. } = self;
        // The engine's own threads end here, before anyone hears that the store is closed.
        if catch_unwind(AssertUnwindSafe(|| drop(engine))).is_err() {
            let _ = poison.set("the engine panicked while it was closed".into());
        }
        let result = match poison.get() {
            Some(reason) => result.and(Err(StoreError::Poisoned { reason: Arc::clone(reason) })),
            None => result,
        };
        ended.send_replace(Some(result));
    }

    /// The next message; `None` when a flush is due first or nobody is left to send one.
    fn next_message(&mut self) -> Option<Message> {
        loop {
            let Some(since) = self.unsynced_since else {
                return self.requests.recv().ok();
            };
            match self.requests.recv_timeout(self.flush_interval.saturating_sub(since.elapsed())) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => self.sync_if_due(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn sync_if_due(&mut self) {
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= self.flush_interval) {
            self.unsynced_since = None;
            // A failure poisons the store, which is how the next caller hears of it.
            let _ = self.guarded("a flush to disk", Engine::sync);
        }
    }

    fn commit_group(&mut self, first: Request) {
        let mut group = first.batch;
        let mut durability = first.durability;
        let mut waiting = vec![(first.answer, first._room)];
        while group.byte_len() < GROUP_BYTES_MAX {
            match self.requests.try_recv() {
                Ok(Message::Commit(request)) => {
                    group.append(request.batch);
                    durability = durability.max(request.durability);
                    waiting.push((request.answer, request._room));
                }
                Ok(Message::Close) => {
                    self.closing = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let result = self.guarded("a commit", |engine| engine.apply(&group, durability));
        if result.is_ok() {
            match durability {
                Durability::Memory => {}
                Durability::Interval => _ = self.unsynced_since.get_or_insert_with(Instant::now),
                // The flush reached everything written before it, too.
                Durability::Fsync => self.unsynced_since = None,
            }
        }
        let mut done = Some(group);
        for (answer, _room) in waiting {
            // A caller that stopped waiting is fine: its batch is in all the same.
            let _ = answer.send(Answer { result: result.clone(), _done: done.take() });
        }
    }

    /// Lets the engine work unless it has failed before; a failure or panic poisons the store for good.
    fn guarded(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut E) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if let Some(reason) = self.poison.get() {
            return Err(StoreError::Poisoned { reason: Arc::clone(reason) });
        }
        let engine = &mut self.engine;
        let reason: Arc<str> = match catch_unwind(AssertUnwindSafe(|| work(engine))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{what} failed: {error}").into(),
            Err(_) => format!("{what} panicked").into(),
        };
        tracing::error!(%reason, "the store is poisoned: it takes no more writes until it is restarted");
        let _ = self.poison.set(Arc::clone(&reason));
        Err(StoreError::Unknown { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keyspace;

    /// What a scripted engine does when asked to apply a batch that holds the key.
    const FAIL: &str = "fail";
    const PANIC: &str = "panic";
    const BLOCK: &str = "block";

    /// Reports what it is asked to do, and fails when a batch says so.
    struct Scripted {
        seen: mpsc::Sender<(Option<Durability>, usize)>,
        unblock: mpsc::Receiver<()>,
        sync_fails: bool,
    }

    impl Engine for Scripted {
        fn apply(&mut self, group: &Batch, durability: Durability) -> Result<(), StoreError> {
            self.seen.send((Some(durability), group.len())).unwrap();
            let has = |name: &str| group.writes().any(|(_, key, _)| key == name);
            if has(BLOCK) {
                self.unblock.recv().unwrap();
            }
            assert!(!has(PANIC), "as the test asked");
            if has(FAIL) {
                return Err(StoreError::io("write", "disk", std::io::Error::other("no more space")));
            }
            Ok(())
        }

        fn sync(&mut self) -> Result<(), StoreError> {
            // The test may be over by the time of the last flush.
            let _ = self.seen.send((None, 0));
            match self.sync_fails {
                true => Err(StoreError::io("flush", "disk", std::io::Error::other("bad block"))),
                false => Ok(()),
            }
        }
    }

    struct Rig {
        committer: Committer,
        seen: mpsc::Receiver<(Option<Durability>, usize)>,
        unblock: mpsc::Sender<()>,
    }

    fn rig(flush_interval: Duration, sync_fails: bool) -> Rig {
        let (seen_tx, seen) = mpsc::channel();
        let (unblock, unblocked) = mpsc::channel();
        let engine = Scripted { seen: seen_tx, unblock: unblocked, sync_fails };
        Rig { committer: Committer::start(engine, flush_interval).unwrap(), seen, unblock }
    }

    fn batch(key: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, key, "value");
        batch
    }

    const NEVER: Duration = Duration::from_secs(3_600);
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_failed_commit_is_unknown_and_every_later_one_is_poisoned() {
        let rig = rig(NEVER, false);
        let error = rig.committer.commit(batch(FAIL), Durability::Fsync).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the outcome of this commit is unknown, the store failed during it: \
             a commit failed: write disk: no more space"
        );
        for _ in 0..2 {
            let error = rig.committer.commit(batch("later"), Durability::Memory).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "the store takes no more writes until it is restarted: \
                 a commit failed: write disk: no more space"
            );
        }
        assert_eq!(rig.seen.try_iter().count(), 1, "the engine is not asked again");
        assert!(matches!(rig.committer.close().await, Err(StoreError::Poisoned { .. })));
    }

    #[tokio::test]
    async fn a_panic_in_the_engine_answers_the_whole_group_and_poisons() {
        let rig = rig(NEVER, false);
        let block = async {
            rig.committer.commit(batch(BLOCK), Durability::Memory).await.unwrap();
        };
        let others = async {
            // The thread is inside the engine, so these can only queue, and make one group.
            rig.seen.recv_timeout(PATIENCE).unwrap();
            tokio::join!(
                rig.committer.commit(batch(PANIC), Durability::Memory),
                rig.committer.commit(batch("innocent"), Durability::Memory),
                async { rig.unblock.send(()).unwrap() },
            )
        };
        let ((), (panicking, innocent, ())) = tokio::join!(block, others);
        for answer in [panicking, innocent] {
            let error = answer.unwrap_err();
            assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
            assert!(error.to_string().ends_with("a commit panicked"), "{error}");
        }
        let later = rig.committer.commit(batch("later"), Durability::Memory).await;
        assert!(matches!(later, Err(StoreError::Poisoned { .. })), "{later:?}");
    }

    #[tokio::test]
    async fn what_queues_during_a_commit_is_one_group_with_the_strongest_durability() {
        let rig = rig(NEVER, false);
        let block = async {
            rig.committer.commit(batch(BLOCK), Durability::Memory).await.unwrap();
        };
        let others = async {
            // The thread is inside the engine, so these can only queue.
            rig.seen.recv_timeout(PATIENCE).unwrap();
            let (a, b, c, ()) = tokio::join!(
                rig.committer.commit(batch("a"), Durability::Memory),
                rig.committer.commit(batch("b"), Durability::Fsync),
                rig.committer.commit(batch("c"), Durability::Interval),
                async { rig.unblock.send(()).unwrap() },
            );
            assert!(a.is_ok() && b.is_ok() && c.is_ok());
        };
        tokio::join!(block, others);
        assert_eq!(rig.seen.try_iter().collect::<Vec<_>>(), [(Some(Durability::Fsync), 3)]);
    }

    #[tokio::test]
    async fn an_interval_commit_is_flushed_without_any_further_call() {
        let rig = rig(Duration::from_millis(5), false);
        rig.committer.commit(batch("a"), Durability::Interval).await.unwrap();
        assert_eq!(rig.seen.recv_timeout(PATIENCE), Ok((Some(Durability::Interval), 1)));
        assert_eq!(rig.seen.recv_timeout(PATIENCE), Ok((None, 0)), "the flush");
    }

    #[tokio::test]
    async fn a_memory_commit_is_not_flushed_before_the_close() {
        let rig = rig(Duration::ZERO, false);
        rig.committer.commit(batch("a"), Durability::Memory).await.unwrap();
        rig.committer.commit(batch("b"), Durability::Memory).await.unwrap();
        rig.committer.close().await.unwrap();
        let seen: Vec<_> = rig.seen.try_iter().map(|(durability, _)| durability).collect();
        assert_eq!(seen, [Some(Durability::Memory), Some(Durability::Memory), None]);
    }

    #[tokio::test]
    async fn a_failed_flush_poisons_the_store() {
        let rig = rig(Duration::ZERO, true);
        rig.committer.commit(batch("a"), Durability::Interval).await.unwrap();
        rig.seen.recv_timeout(PATIENCE).unwrap();
        assert_eq!(rig.seen.recv_timeout(PATIENCE), Ok((None, 0)), "the flush");
        let error = rig.committer.commit(batch("b"), Durability::Memory).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned { .. }), "{error:?}");
        assert!(error.to_string().ends_with("a flush to disk failed: flush disk: bad block"), "{error}");
        assert!(rig.committer.close().await.is_err(), "such a stop is not clean");
    }

    #[tokio::test]
    async fn closing_twice_and_at_once_gives_the_same_answer() {
        let rig = rig(NEVER, false);
        let (first, second) = tokio::join!(rig.committer.close(), rig.committer.close());
        let third = rig.committer.close().await;
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        let error = rig.committer.commit(batch("a"), Durability::Memory).await.unwrap_err();
        assert!(matches!(error, StoreError::Closed));
    }
}
