//! Room for the connections that are served, of which most only wait for their next request.
//!
//! Callers keep connections for later. If those could fill a server, it would be shut to all others until their time without
//! traffic is over, and those who keep them could go on like that for good. So a connection that waits gives its place to a new one
//! if there is no other: the one that has waited longest. Its caller opens another when it next needs one. A connection that has
//! a request under way, or has not had its first, keeps its place.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::gauges::{Gauge, Held};
use crate::lock;

/// The right to be served, given back when dropped.
pub(crate) type StreamPlace = Held<Arc<Gauge>>;

/// All places for connections. The gauge counts how often there was none free.
pub(crate) struct StreamPlaces {
    pub(crate) gauge: Arc<Gauge>,
    waiting: Mutex<Waiting>,
}

/// The places of connections that wait for their next request, and what ends the wait when dropped.
#[derive(Default)]
struct Waiting {
    longest_first: BTreeMap<u64, (StreamPlace, oneshot::Sender<()>)>,
    begun: u64,
}

impl StreamPlaces {
    pub(crate) fn new(max: usize) -> Self {
        Self { gauge: Arc::new(Gauge::new(max)), waiting: Mutex::default() }
    }

    /// A place that is free, or else that of the connection that has waited longest.
    pub(crate) fn take(&self) -> Option<StreamPlace> {
        Gauge::try_hold(self.gauge.clone(), 1).or_else(|| {
            let (_, (place, _)) = lock(&self.waiting).longest_first.pop_first()?;
            Some(place)
        })
    }

    /// Waits for a connection's `next` request. None if its place was taken meanwhile: then the connection is to be closed, even if
    /// a request was about to come.
    pub(crate) async fn wait<T>(
        &self,
        place: StreamPlace,
        next: impl Future<Output = T>,
    ) -> Option<(StreamPlace, T)> {
        let (until_taken, taken) = oneshot::channel();
        let wait = {
            let mut waiting = lock(&self.waiting);
            waiting.begun += 1;
            let number = waiting.begun;
            waiting.longest_first.insert(number, (place, until_taken));
            Wait { places: self, number }
        };
        tokio::select! {
            biased;
            _ = taken => None,
            next = next => Some((wait.over()?, next)),
        }
    }
}

/// One connection's wait. It is over when this is dropped, also with the future that waits.
struct Wait<'a> {
    places: &'a StreamPlaces,
    number: u64,
}

impl Wait<'_> {
    fn over(&self) -> Option<StreamPlace> {
        let (place, _) = lock(&self.places.waiting).longest_first.remove(&self.number)?;
        Some(place)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        drop(self.over());
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_has_waited_longest_gives_its_place_to_a_new_one() {
        let places = StreamPlaces::new(3);
        let [first, second, third] = [(); 3].map(|()| places.take());
        let [Some(first), Some(second), Some(third)] = [first, second, third] else {
            panic!("three are free")
        };
        assert!(places.take().is_none(), "all are in use");

        let mut waits_longest = Box::pin(places.wait(second, pending::<()>()));
        let mut waits_too = Box::pin(places.wait(first, pending::<()>()));
        assert!((&mut waits_longest).now_or_never().is_none());
        assert!((&mut waits_too).now_or_never().is_none());
        let fourth = places.take();
        assert!(fourth.is_some());
        assert!(waits_longest.now_or_never().is_some_and(|next| next.is_none()), "closed");
        assert!((&mut waits_too).now_or_never().is_none(), "goes on waiting");

        let had_another = places.wait(third, ready(7)).now_or_never();
        assert!(had_another.is_some_and(|next| next.is_some_and(|(_, request)| request == 7)));
        assert_eq!(places.gauge.level("of a test").peak, 3);
    }

    #[test]
    fn a_wait_that_is_given_up_gives_its_place_back() {
        let places = StreamPlaces::new(1);
        let place = places.take().expect("a place that is free");
        let mut wait = Box::pin(places.wait(place, pending::<()>()));
        assert!((&mut wait).now_or_never().is_none());
        drop(wait);
        assert_eq!(places.gauge.level("of a test").now, 0);
    }
}
