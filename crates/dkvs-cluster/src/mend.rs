//! Repairs records that were damaged here, from the other owners.
//!
//! What was lost can have been acknowledged by this server and as few as W - 1 others, whichever they are. So a record
//! counts as repaired only when *all* other owners have told what they hold, and all of it is merged here: a write that any
//! of them acknowledged is then in it. While one of them is down the key waits, and reads get their quorums from the others. The
//! other servers that are up are asked as well, for copies that requests with a larger N have left with them.
//!
//! An owner that has lost its own record tells what was written to it since. More than that nobody will ever know, so two
//! such owners do not wait for each other. But if *no* owner has kept what it had, the key goes on being refused until
//! something is written there: what was lost cannot be had again, and nobody is told that it never was.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_core::record::Record;
use dkvs_core::ring::ServerIndex;
use dkvs_net::Socket;
use dkvs_proto::message::replica::{ReplicaAnswer, ReplicaRequest};
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

/// Asks all other owners of a key, and merges what they hold and what was written to it since they lost theirs.
async fn one<S: Socket, T: Store>(
    coordinator: &Arc<Coordinator<S, T>>,
    key: Bytes,
    n: usize,
) -> Result<(), ReplicaError> {
    let _under_way = coordinator.replica.watches().begin(&key);
    let again = coordinator.replica.damage().again();
    let deadline = Instant::now() + ANSWER_MAX;
    let ask = |owner| {
        let (ring, known) = (coordinator.ring.id(), Record::new().hash());
        let request = ReplicaRequest::Fetch { ring, key: key.clone(), known };
        async move { (owner, coordinator.ask(owner, request, deadline).await) }
    };
    let owners = other_owners(coordinator, &key, n);
    let may_know = |server: &ServerIndex| owners.contains(server) || coordinator.detector.is_up(*server);
    let asked = coordinator.peers().into_iter().filter(may_know);
    let mut answers: FuturesUnordered<_> = asked.map(ask).collect();
    let (mut theirs, mut beyond) = (Record::new(), Record::new());
    let (mut is_whole_somewhere, mut is_lost_elsewhere) = (false, false);
    while let Some((owner, answer)) = answers.next().await {
        match answer {
            Ok(ReplicaAnswer::Record(record) | ReplicaAnswer::Incomplete(record))
                if !owners.contains(&owner) =>
            {
                beyond.merge(&record);
            }
            _ if !owners.contains(&owner) => {}
            Ok(ReplicaAnswer::Same) => is_whole_somewhere = true,
            Ok(ReplicaAnswer::Record(record)) => {
                is_whole_somewhere = true;
                theirs.merge(&record);
            }
            Ok(ReplicaAnswer::Incomplete(record)) => {
                is_lost_elsewhere = true;
                theirs.merge(&record);
            }
            other => {
                tracing::debug!(?owner, answer = ?other, "a damaged record waits for another owner");
                return Ok(());
            }
        }
    }
    let is_written_anew =
        !theirs.vv().is_empty() || !coordinator.replica.stored(&key)?.record.vv().is_empty();
    if !is_whole_somewhere && !is_written_anew {
        return Ok(());
    }
    if is_lost_elsewhere {
        let key = String::from_utf8_lossy(&key);
        tracing::warn!(?key, "damaged on other owners too: what only damaged copies held is lost");
    }
    theirs.merge(&beyond);
    coordinator.replica.mend(key, theirs, again).await
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
