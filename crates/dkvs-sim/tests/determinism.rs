//! The seed decides everything.

use std::collections::BTreeMap;

use dkvs_sim::plan::Wishes;
use dkvs_sim::run::run;

const FEW: Wishes = Wishes { steps: Some(60), servers: None };

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let mut seeds: BTreeMap<u64, u64> = BTreeMap::new();
    for seed in 0..20 {
        let report = run(seed, FEW, false);
        assert_eq!(report.violations, [], "seed {seed}");
        assert!(report.events > 100, "seed {seed}: {} events", report.events);
        if seed < 5 {
            let again = run(seed, FEW, false);
            assert_eq!((report.hash, report.history.operations), (again.hash, again.history.operations));
        }
        let other = seeds.insert(report.hash, seed);
        assert_eq!(other, None, "seed {seed} gives the run of another");
    }
}
