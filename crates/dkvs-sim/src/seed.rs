//! Where randomness comes from: everything random in a run has a seed of its own, made from the run's seed and a name.
//!
//! Parts that draw from separate generators do not disturb each other: a nemesis that draws once more changes no
//! client's next operation, so a failing run stays recognisable when something is taken out of it.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A seed for the part called `name`, the `number`-th of its kind.
#[must_use]
pub fn derive(seed: u64, name: &str, number: u64) -> u64 {
    let mut state = seed;
    for byte in name.bytes().map(u64::from).chain([number]) {
        state = mix(state ^ mix(byte.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    }
    state
}

/// A generator for the part called `name`, the `number`-th of its kind.
#[must_use]
pub fn random(seed: u64, name: &str, number: u64) -> StdRng {
    StdRng::seed_from_u64(derive(seed, name, number))
}

/// The finaliser of SplitMix64 (Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn parts_of_one_run_and_runs_of_one_part_differ() {
        let seeds: BTreeSet<u64> = (0..100)
            .flat_map(|seed| ["disk", "clock"].map(|name| (seed, name)))
            .flat_map(|(seed, name)| (0..10).map(move |number| derive(seed, name, number)))
            .collect();
        assert_eq!(seeds.len(), 2_000);
    }
}
