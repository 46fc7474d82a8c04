//! The seed decides everything.

use std::collections::BTreeMap;

use dkvs_sim::plan::Wishes;
use dkvs_sim::run::run;

const FEW: Wishes = Wishes { steps: Some(60), servers: None };
const SEEDS: u64 = 40;

/// The second time a seed runs, the process has run all others: nothing may be left of them that changes a run.
#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let mut seeds: BTreeMap<u64, u64> = BTreeMap::new();
    let mut first = Vec::new();
    for seed in 0..SEEDS {
        let report = run(seed, FEW, false);
        assert_eq!(report.violations, [], "seed {seed}");
        assert!(report.events > 100, "seed {seed}: {} events", report.events);
        let other = seeds.insert(report.hash, seed);
        assert_eq!(other, None, "seed {seed} gives the run of another");
        first.push((report.hash, report.history.operations));
    }
    for (seed, first) in (0..SEEDS).zip(first) {
        let again = run(seed, FEW, false);
        assert_eq!((again.hash, again.history.operations), first, "seed {seed}, a second time");
    }
}
