//! Many numbered keys, written by a client that does not wait long for servers that are down.

use std::ops::Range;
use std::time::Duration;

use dkvs::ClientConfig;
use futures::{StreamExt, stream};

use crate::{Cluster, SILENCE_MAX, TestClient};

/// Requests at one time.
const SIDE_BY_SIDE: usize = 64;

/// A key's name.
#[must_use]
pub fn key(number: usize) -> String {
    format!("key {number}")
}

/// A client whose requests are given up, and hints written, after a while that no busy machine exceeds.
pub async fn client(cluster: &Cluster) -> TestClient {
    let timeout = Duration::from_secs(5);
    let config = ClientConfig { timeout, silence_max: SILENCE_MAX, ..ClientConfig::default() };
    cluster.client_with(config).await
}

/// Puts a value under each of these keys.
///
/// # Panics
/// When two owners of one do not acknowledge it.
pub async fn put_all(client: &TestClient, numbers: Range<usize>, value: &str) {
    let puts = numbers.map(|number| client.put(key(number), format!("{value} {number}")).w(2).into_future());
    let done = |put: Result<_, _>| async { drop(put.expect("two owners are up")) };
    stream::iter(puts).buffer_unordered(SIDE_BY_SIDE).for_each(done).await;
}

/// Deletes these keys.
///
/// # Panics
/// When two owners of one do not acknowledge it.
pub async fn delete_all(client: &TestClient, numbers: Range<usize>) {
    let deletes = numbers.map(|number| client.delete(key(number)).w(2).into_future());
    let done = |delete: Result<_, _>| async { drop(delete.expect("two owners are up")) };
    stream::iter(deletes).buffer_unordered(SIDE_BY_SIDE).for_each(done).await;
}
