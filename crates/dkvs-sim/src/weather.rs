//! How bad the network is just now, for every datagram on its way out.
//!
//! turmoil has latency, partitions and links that hold everything back. What it lacks is decided here, datagram by
//! datagram: loss, repetition, damage that no UDP checksum notices, and delays of single datagrams, which put them
//! behind later ones. Conditions hold for all hosts, for all that one host sends and gets, or both; the worse counts.
//!
//! Streams are only damaged: TCP repairs loss and order itself, but its 16-bit checksum lets damage through.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

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

#[derive(Debug)]
struct State {
    everywhere: Conditions,
    at: BTreeMap<IpAddr, Conditions>,
    random: StdRng,
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
        Self(Mutex::new(State { everywhere: Conditions::default(), at: BTreeMap::new(), random }))
    }

    /// Changes the conditions of the whole network.
    pub fn set_everywhere(&self, conditions: Conditions) {
        self.state().everywhere = conditions;
    }

    /// Changes the conditions around one host.
    pub fn set_at(&self, host: IpAddr, conditions: Conditions) {
        self.state().at.insert(host, conditions);
    }

    /// What becomes of a datagram: no copy, one, or two.
    pub(crate) fn fate(&self, from: IpAddr, to: IpAddr, bytes: &[u8]) -> Vec<Flight> {
        let mut state = self.state();
        let conditions = state.between(from, to);
        let random = &mut state.random;
        if random.random_bool(conditions.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(random.random_bool(conditions.duplication));
        let flight = |_| Flight {
            delay: if random.random_bool(conditions.delay) {
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

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn between(&self, from: IpAddr, to: IpAddr) -> Conditions {
        let local = [from, to].into_iter().filter_map(|host| self.at.get(&host).copied());
        local.fold(self.everywhere, Conditions::worse)
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
        (0..1_000).flat_map(|_| weather.fate(from, to, &[7; 100])).collect()
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
        weather.set_at(A, Conditions { loss: 0.5, ..Conditions::default() });
        for (from, to) in [(A, B), (B, A)] {
            let count = arrived(&weather, from, to).len();
            assert!((400..600).contains(&count), "{count}");
        }
        assert_eq!(arrived(&weather, B, C).len(), 1_000);
    }

    #[test]
    fn every_kind_of_trouble_happens_about_as_often_as_asked() {
        let weather = Weather::new(StdRng::seed_from_u64(1));
        let delay_max = Duration::from_millis(100);
        weather.set_everywhere(Conditions {
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
