//! Proof that a sender receives at the address its datagrams claim to come from.
//!
//! Anybody can put a victim's address on a request and let a server's larger answer hit the victim. So a server
//! does nothing for a request without a *proof*: a keyed hash of the sender's address and the current period,
//! which only the server can make and only the holder of the address can have received. RFC 9000 §8.1 does the same
//! for QUIC, RFC 7873 for DNS.
//!
//! A proof is good for the period it was made in and the next. That bounds how late a datagram can still be
//! executed, and so for how long answers must be remembered: the two are one mechanism. The key is drawn at every
//! start, so no datagram from before a restart is executed after it.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use siphasher::sip::SipHasher24;
use tokio::time::Instant;

/// How long a period lasts. A caller pays one round trip per server and period or two.
const PERIOD: Duration = Duration::from_secs(30);

/// After this long, no proof made before is valid.
pub(crate) const PROOF_LIFETIME: Duration = Duration::from_secs(60);

const _: () = assert!(PROOF_LIFETIME.as_secs() == 2 * PERIOD.as_secs(), "this period and the next");

/// Makes and checks proofs.
#[derive(Debug)]
pub(crate) struct AddressProofs {
    key: (u64, u64),
    start: Instant,
}

impl AddressProofs {
    pub(crate) fn new(key: (u64, u64)) -> Self {
        Self { key, start: Instant::now() }
    }

    /// The proof to hand to whoever receives at `address`.
    pub(crate) fn issue(&self, address: SocketAddr) -> u64 {
        self.made_in(self.period(), address)
    }

    pub(crate) fn accepts(&self, address: SocketAddr, proof: u64) -> bool {
        let now = self.period();
        proof == self.made_in(now, address)
            || now.checked_sub(1).is_some_and(|before| proof == self.made_in(before, address))
    }

    fn period(&self) -> u64 {
        self.start.elapsed().as_secs() / PERIOD.as_secs()
    }

    /// Never 0, which stands for "no proof".
    fn made_in(&self, period: u64, address: SocketAddr) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        (period, address).hash(&mut hasher);
        hasher.finish().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_good_for_its_address_this_period_and_the_next() {
        let proofs = AddressProofs::new((1, 2));
        let (ours, other) = ("10.0.0.1:5".parse().unwrap(), "10.0.0.1:6".parse().unwrap());
        let proof = proofs.issue(ours);
        assert!(proofs.accepts(ours, proof) && !proofs.accepts(other, proof) && !proofs.accepts(ours, 0));
        tokio::time::advance(PERIOD).await;
        assert!(proofs.accepts(ours, proof));
        tokio::time::advance(PERIOD).await;
        assert!(!proofs.accepts(ours, proof));
        assert!(!AddressProofs::new((1, 3)).accepts(ours, AddressProofs::new((1, 2)).issue(ours)));
    }
}
