//! How bad the network is just now, for every datagram on its way out.
//!
//! turmoil has latency, partitions and links that hold everything back. What it lacks is decided here, datagram by
//! datagram: loss, repetition, damage that no UDP checksum notices, and delays of single datagrams, which put them
//! behind later ones. Conditions hold for all hosts, for all that one host sends and gets, or both; the worse counts.
//! One direction of a link can also be late: everything sent there arrives at one moment, while the other direction, and
//! the sender's other links, are as they were. So a request arrives when its sender has long gone elsewhere.
//!
//! What is delayed waits in the network, in its receiver's `Inbox`, and not with its sender: it arrives although its
//! sender has been killed, and reaches the process that listens there by then.
//!
//! Streams are damaged, as TCP repairs loss and order itself but its 16-bit checksum lets damage through, and they break: for
//! the sender at once, though what it sent arrives.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::history::Micros;
use crate::trace::{micros, now};

/// What may happen to a datagram. Probabilities are from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// It is lost.
    pub loss: f64,
    /// It arrives twice.
    pub duplication: f64,
    /// Some of its bits arrive flipped, or its end is missing.
    pub corruption: f64,
    /// It is overtaken by later ones.
    pub delay: f64,
    /// By how much at most.
    pub delay_max: Duration,
}

impl Conditions {
    fn worse(self, other: Self) -> Self {
        Self {
            loss: self.loss.max(other.loss),
            duplication: self.duplication.max(other.duplication),
            corruption: self.corruption.max(other.corruption),
            delay: self.delay.max(other.delay),
            delay_max: self.delay_max.max(other.delay_max),
        }
    }
}

/// The weather over one simulated network.
#[derive(Debug)]
pub struct Weather(Mutex<State>);

/// Datagrams with an address, each with the moment at which it arrives. They are in order of that.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    parcels: Mutex<BTreeMap<(Micros, u64), Parcel>>,
    changed: Notify,
}

/// A datagram and who sent it.
pub(crate) type Parcel = (SocketAddr, Vec<u8>);

impl Inbox {
    fn put(&self, due: Micros, parcel: Parcel) {
        let mut parcels = self.parcels();
        // Of those due at one moment, the one sent later comes later.
        let number =
            parcels.range((due, 0)..=(due, u64::MAX)).next_back().map_or(0, |((_, number), _)| number + 1);
        parcels.insert((due, number), parcel);
        drop(parcels);
        self.changed.notify_one();
    }

    /// Waits until something has arrived. There may be one receiver.
    pub(crate) async fn arrived(&self) {
        loop {
            let due = self.parcels().keys().next().map(|&(due, _)| due);
            let left = due.map(|due| Duration::from_micros(due.saturating_sub(now())));
            match left {
                None => self.changed.notified().await,
                Some(Duration::ZERO) => return,
                Some(left) => tokio::select! {
                    biased;
                    () = self.changed.notified() => {}
                    () = sleep(left) => {}
                },
            }
        }
    }

    /// Takes the first datagram that has arrived.
    pub(crate) fn take(&self) -> Option<Parcel> {
        let mut parcels = self.parcels();
        let first = parcels.first_entry()?;
        (first.key().0 <= now()).then(|| first.remove())
    }

    fn parcels(&self) -> MutexGuard<'_, BTreeMap<(Micros, u64), Parcel>> {
        self.parcels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    inboxes: BTreeMap<SocketAddr, Arc<Inbox>>,
    everywhere: Vec<Conditions>,
    at: Vec<(IpAddr, Conditions)>,
    /// Directions that are late, or will be.
    late: BTreeMap<(IpAddr, IpAddr), Late>,
    /// Directions in which streams break, once for each fault.
    breaking: Vec<(IpAddr, IpAddr)>,
    random: StdRng,
}

#[derive(Clone, Copy, Debug)]
struct Late {
    until: Micros,
    /// Whether it begins only with the next datagram the other way.
    once_spoken_to: bool,
    /// Whether it also arrives at once.
    echoes: bool,
}

/// One copy of a datagram on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) delay: Duration,
    pub(crate) bytes: Vec<u8>,
}

impl Weather {
    /// Fair weather, with this source of fate.
    #[must_use]
    pub fn new(random: StdRng) -> Self {
        let (everywhere, at, breaking) = (Vec::new(), Vec::new(), Vec::new());
        let (late, inboxes) = (BTreeMap::new(), BTreeMap::new());
        Self(Mutex::new(State { inboxes, everywhere, at, late, breaking, random }))
    }

    /// The inbox of an address that is listened to from now on. What has arrived before is lost.
    pub(crate) fn listen(&self, at: SocketAddr) -> Arc<Inbox> {
        let inbox = self.state().inboxes.entry(at).or_default().clone();
        while inbox.take().is_some() {}
        inbox
    }

    /// Has a datagram arrive after so long.
    pub(crate) fn delay(&self, delay: Duration, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let inbox = self.state().inboxes.entry(to).or_default().clone();
        inbox.put(now() + micros(delay), (from, bytes));
    }

    /// Adds to the conditions of the whole network.
    pub fn begin_everywhere(&self, conditions: Conditions) {
        self.state().everywhere.push(conditions);
    }

    /// Ends what [`Weather::begin_everywhere`] added.
    pub fn end_everywhere(&self, conditions: Conditions) {
        remove_one(&mut self.state().everywhere, &conditions);
    }

    /// Adds to the conditions around one host.
    pub fn begin_at(&self, host: IpAddr, conditions: Conditions) {
        self.state().at.push((host, conditions));
    }

    /// Ends what [`Weather::begin_at`] added.
    pub fn end_at(&self, host: IpAddr, conditions: Conditions) {
        remove_one(&mut self.state().at, &(host, conditions));
    }

    /// What is sent from one host to another before this moment arrives after it.
    pub fn late_until(&self, from: IpAddr, to: IpAddr, until: Micros) {
        self.state().late.insert((from, to), Late { until, once_spoken_to: false, echoes: false });
    }

    /// What is sent from one host to another before this moment arrives at once, and a copy of it after the moment.
    pub fn echo_until(&self, from: IpAddr, to: IpAddr, until: Micros) {
        self.state().late.insert((from, to), Late { until, once_spoken_to: false, echoes: true });
    }

    /// The same as [`Weather::late_until`], from the next datagram on that is sent the other way.
    pub fn late_once_spoken_to(&self, from: IpAddr, to: IpAddr, until: Micros) {
        self.state().late.insert((from, to), Late { until, once_spoken_to: true, echoes: false });
    }

    /// From now on streams from one host to another break when something has been sent on them, and none can be opened.
    pub fn begin_breaking(&self, from: IpAddr, to: IpAddr) {
        self.state().breaking.push((from, to));
    }

    /// Ends what [`Weather::begin_breaking`] began.
    pub fn end_breaking(&self, from: IpAddr, to: IpAddr) {
        remove_one(&mut self.state().breaking, &(from, to));
    }

    /// An error if streams from one host to another break.
    pub(crate) fn breaks(&self, from: IpAddr, to: IpAddr) -> io::Result<()> {
        let is_breaking = self.state().breaking.contains(&(from, to));
        if is_breaking { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// What becomes of a datagram sent now: no copy, one, or two.
    pub(crate) fn fate(&self, now: Micros, from: IpAddr, to: IpAddr, bytes: &[u8]) -> Vec<Flight> {
        let mut state = self.state();
        let conditions = state.between(from, to);
        let (late, echoes) = state.lateness(now, from, to);
        let random = &mut state.random;
        if random.random_bool(conditions.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(random.random_bool(conditions.duplication)) + usize::from(echoes);
        let lateness = |copy| if echoes && copy > 0 { Duration::ZERO } else { Duration::from_micros(late) };
        let flight = |copy| Flight {
            delay: lateness(copy)
                + if random.random_bool(conditions.delay) {
                    conditions.delay_max.mul_f64(random.random_range(0.0..1.0))
                } else {
                    Duration::ZERO
                },
            bytes: {
                let mut bytes = bytes.to_vec();
                if random.random_bool(conditions.corruption) {
                    damage(&mut bytes, random);
                }
                bytes
            },
        };
        (0..copies).map(flight).collect()
    }

    /// Damages bytes that came by stream, now and then.
    pub(crate) fn wear(&self, from: IpAddr, to: IpAddr, bytes: &mut [u8]) {
        let mut state = self.state();
        let corruption = state.between(from, to).corruption;
        if state.random.random_bool(corruption) {
            flip(bytes, &mut state.random);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// By how much a datagram sent now is late, and whether only one copy of it is.
    fn lateness(&mut self, now: Micros, from: IpAddr, to: IpAddr) -> (Micros, bool) {
        if let Some(other_way) = self.late.get_mut(&(to, from)) {
            other_way.once_spoken_to = false;
        }
        let late = self.late.get(&(from, to)).filter(|late| !late.once_spoken_to && late.until > now);
        late.map_or((0, false), |late| (late.until - now, late.echoes))
    }

    fn between(&self, from: IpAddr, to: IpAddr) -> Conditions {
        let local =
            self.at.iter().filter(|(host, _)| [from, to].contains(host)).map(|(_, conditions)| conditions);
        self.everywhere.iter().chain(local).copied().fold(Conditions::default(), Conditions::worse)
    }
}

fn remove_one<A: PartialEq>(all: &mut Vec<A>, one: &A) {
    if let Some(i) = all.iter().position(|other| other == one) {
        all.remove(i);
    }
}

/// What checksums are for: some bits flipped, or the end missing, or a stretch overwritten.
fn damage(bytes: &mut Vec<u8>, random: &mut StdRng) {
    if bytes.is_empty() {
        return;
    }
    match random.random_range(0..4) {
        0 => bytes.truncate(random.random_range(0..bytes.len())),
        1 => {
            let start = random.random_range(0..bytes.len());
            bytes[start..].iter_mut().take(16).for_each(|byte| *byte = random.random());
        }
        _ => flip(bytes, random),
    }
}

/// Flips one to four bits.
pub(crate) fn flip(bytes: &mut [u8], random: &mut StdRng) {
    for _ in 0..random.random_range(1..=4) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    fn arrived(weather: &Weather, from: IpAddr, to: IpAddr) -> Vec<Flight> {
        (0..1_000).flat_map(|_| weather.fate(0, from, to, &[7; 100])).collect()
    }

    #[test]
    fn fair_weather_changes_nothing() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        let flights = arrived(&weather, A, B);
        assert_eq!(flights.len(), 1_000);
        assert!(flights.iter().all(|flight| flight.delay.is_zero() && flight.bytes == [7; 100]));
    }

    #[test]
    fn bad_weather_at_a_host_hits_what_it_sends_and_gets_and_nothing_else() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        let bad = Conditions { loss: 0.5, ..Conditions::default() };
        weather.begin_at(A, bad);
        for (from, to) in [(A, B), (B, A)] {
            let count = arrived(&weather, from, to).len();
            assert!((400..600).contains(&count), "{count}");
        }
        assert_eq!(arrived(&weather, B, C).len(), 1_000);
        weather.end_at(A, bad);
        assert_eq!(arrived(&weather, A, B).len(), 1_000);
    }

    #[test]
    fn storms_that_overlap_end_one_by_one() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        let (all, half) = (
            Conditions { loss: 1.0, ..Conditions::default() },
            Conditions { loss: 0.5, ..Conditions::default() },
        );
        weather.begin_everywhere(all);
        weather.begin_everywhere(half);
        assert_eq!(arrived(&weather, A, B).len(), 0);
        weather.end_everywhere(all);
        assert!((400..600).contains(&arrived(&weather, A, B).len()));
        weather.end_everywhere(half);
        assert_eq!(arrived(&weather, A, B).len(), 1_000);
    }

    #[test]
    fn a_late_direction_is_late_until_one_moment_and_the_other_is_not() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        weather.late_until(A, B, 900);
        let delay = |now, from, to| weather.fate(now, from, to, &[7]).remove(0).delay;
        assert_eq!(delay(200, A, B), Duration::from_micros(700));
        assert_eq!(delay(900, A, B), Duration::ZERO);
        assert_eq!(delay(1_000, A, B), Duration::ZERO);
        assert_eq!(delay(200, B, A), Duration::ZERO);
        assert_eq!(delay(200, A, C), Duration::ZERO);
        weather.echo_until(C, A, 900);
        let mut copies = weather.fate(200, C, A, &[7]);
        copies.sort_by_key(|flight| flight.delay);
        assert_eq!([copies[0].delay, copies[1].delay], [Duration::ZERO, Duration::from_micros(700)]);
        assert_eq!(weather.fate(900, C, A, &[7]).len(), 1);
        weather.late_once_spoken_to(B, C, 900);
        assert_eq!(delay(200, B, C), Duration::ZERO);
        assert_eq!(delay(200, C, B), Duration::ZERO);
        assert_eq!(delay(200, B, C), Duration::from_micros(700));
    }

    #[test]
    fn every_kind_of_trouble_happens_about_as_often_as_asked() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        let delay_max = Duration::from_millis(100);
        weather.begin_everywhere(Conditions {
            loss: 0.1,
            duplication: 0.2,
            corruption: 0.3,
            delay: 0.4,
            delay_max,
        });
        let flights = arrived(&weather, A, B);
        assert!((1_000..1_160).contains(&flights.len()), "{}", flights.len());
        let damaged = flights.iter().filter(|flight| flight.bytes != [7; 100]).count();
        assert!((250..400).contains(&damaged), "{damaged}");
        let late = flights.iter().filter(|flight| !flight.delay.is_zero()).count();
        assert!((350..520).contains(&late), "{late}");
        assert!(flights.iter().all(|flight| flight.delay <= delay_max));
    }
}
