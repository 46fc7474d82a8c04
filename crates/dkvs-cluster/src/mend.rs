//! Repairs records that were damaged here, from the other owners.
//!
//! What was lost can have been acknowledged by this server and as few as W - 1 others, whichever they are. So a record
//! counts as repaired only when *all* other owners have told what they hold, and all of it is merged here: a write that any
//! of them acknowledged is then in it. While one of them is down, or damaged itself, the key waits, and reads get their
//! quorums from the others.
//!
//! A server that owns a key alone has nobody to ask. It goes on refusing to read the key until something is written
//! there: what was lost cannot be had again, and nobody is told that it never was.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_core::record::Record;
use dkvs_core::ring::ServerIndex;
use dkvs_net::Socket;
use dkvs_storage::{Store, StoreError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

use crate::coordinator::Coordinator;
use crate::replica::ReplicaError;
use crate::stored::key_of;

/// How long the other owners of one key may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Pause before keys whose owners did not all answer are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Repairs what there is, again and again. `n` is how many copies there are of a key, unless requests asked for more.
pub(crate) async fn run<S: Socket, T: Store>(coordinator: Arc<Coordinator<S, T>>, n: usize) {
    loop {
        if let Err(error) = all(&coordinator, n).await {
            tracing::warn!(%error, "damaged records cannot be repaired now");
        }
        let news = coordinator.replica.damage().news.notified();
        if coordinator.replica.damage().waiting() == 0 {
            news.await;
        } else {
            // Of no matter which there was.
            let _ = timeout(RETRY, news).await;
        }
    }
}

async fn all<S: Socket, T: Store>(coordinator: &Arc<Coordinator<S, T>>, n: usize) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = coordinator.replica.damaged_keys(after.as_ref())?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        for key in page.iter().filter_map(key_of) {
            if let Err(error) = one(coordinator, key, n).await {
                tracing::warn!(%error, "a damaged record cannot be repaired now");
            }
        }
    }
}

/// Asks all other owners of a key, and merges what they hold.
async fn one<S: Socket, T: Store>(
    coordinator: &Arc<Coordinator<S, T>>,
    key: Bytes,
    n: usize,
) -> Result<(), ReplicaError> {
    let _under_way = coordinator.replica.watches().begin(&key);
    let others = other_owners(coordinator, &key, n);
    let nothing = Record::new();
    if others.is_empty() && !coordinator.replica.is_written_anew(&key)? {
        return Ok(());
    }
    let deadline = Instant::now() + ANSWER_MAX;
    let known = (nothing.hash(), nothing.clone());
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .map(|owner| coordinator.clone().fetch_at(owner, key.clone(), known.clone(), deadline))
        .collect();
    let mut theirs = nothing;
    while let Some((owner, answer)) = answers.next().await {
        match answer {
            Ok(record) => theirs.merge(&record),
            Err(reason) => {
                tracing::debug!(?owner, ?reason, "a damaged record waits for another owner");
                return Ok(());
            }
        }
    }
    coordinator.replica.mend(key, theirs).await
}

/// Who else may hold a key that this server holds: the first n of its preference list, and whoever stands before this
/// server in it, since then some request has asked for more copies.
fn other_owners<S: Socket, T: Store>(
    coordinator: &Coordinator<S, T>,
    key: &[u8],
    n: usize,
) -> Vec<ServerIndex> {
    let list = coordinator.ring.preference_list(Partition::of_key(key));
    let place = list.iter().position(|&server| server == coordinator.me).unwrap_or(0);
    list.iter().copied().take(n.max(place + 1)).filter(|&server| server != coordinator.me).collect()
}
