//! A server may be stopped in order at every moment of what it does by itself: it goes on where it was, and nothing is lost.

use std::time::Duration;

use dkvs_sim::history::Action;
use dkvs_sim::nemesis::{Fault, ProcessFault, Strike};
use dkvs_sim::plan::{Plan, Rests, Wishes};
use dkvs_sim::run::run_plan;

const SERVERS: usize = 3;

/// The last server is down meanwhile, and the others keep what it misses.
const DOWN_AT: Duration = Duration::from_millis(300);
const BACK_AT: Duration = Duration::from_millis(1_000);

/// Nobody writes from then on: hints are delivered, servers compare, and what was deleted is forgotten.
const QUIET_FROM: Duration = Duration::from_millis(1_300);

/// When all of that is over if nobody stops.
const OVER_AT: Duration = Duration::from_millis(3_100);

/// Time between the moments at which servers are stopped. Several times as long as a message takes, and no multiple of it.
const STEP: Duration = Duration::from_millis(13);
const STOPPED_FOR: Duration = Duration::from_millis(150);

/// Few hints fit the budget, or all.
fn plan(hint_bytes_max: u64) -> Plan {
    let wishes = Wishes { steps: Some(60), servers: u16::try_from(SERVERS).ok() };
    // Any seed whose run is not about something else.
    let mut plan = (0..)
        .map(|seed| Plan::of(seed, wishes))
        .find(|plan| {
            let is_plain = !(plan.damage || plan.late || plan.mad) && plan.scarcity.is_none();
            is_plain && plan.expiry.is_none() && plan.given.is_empty() && plan.keys.len() >= 3
        })
        .expect("there are endless seeds");
    plan.timeout = Duration::from_millis(300);
    plan.latency = (Duration::from_millis(1), Duration::from_millis(5));
    plan.tick = Duration::from_millis(1);
    plan.chaos = OVER_AT;
    plan.think = OVER_AT / 60;
    plan.mix.deletes = 0.6;
    plan.hint_bytes_max = hint_bytes_max;
    plan.repair_interval = Some(Duration::from_millis(200));
    plan.repair_bytes_per_s_max = 64 << 10;
    plan.reap_interval = Some(Duration::from_millis(50));
    plan.ping_interval = Duration::from_millis(50);
    plan.quiet = true;
    let every = 10 * OVER_AT;
    for key in &mut plan.keys {
        (key.retires, key.sloppy) = (None, 0.0);
        key.rests = Some(Rests { every, lasts: every - QUIET_FROM, from: every - QUIET_FROM });
    }
    let fault = Fault::Process(ProcessFault::Kill(vec![SERVERS - 1]));
    plan.strikes = vec![Strike { at: DOWN_AT, lasts: BACK_AT - DOWN_AT, fault }];
    plan
}

#[test]
fn a_server_that_is_stopped_at_any_moment_goes_on_where_it_was() {
    let (mut hinted, mut forgotten) = (0, 0);
    let mut at = BACK_AT;
    for number in 0.. {
        let mut plan = plan(if number % 2 == 0 { 256 << 20 } else { 300 });
        let fault = Fault::Process(ProcessFault::Stop(number % SERVERS));
        plan.strikes.push(Strike { at, lasts: STOPPED_FOR, fault });
        let report = run_plan(plan, false);
        assert_eq!(report.violations, [], "server {} stopped at {at:?}", number % SERVERS);
        let is_write = |action: &Action| matches!(action, Action::Write { .. });
        assert!(report.history.operations.iter().any(|operation| is_write(&operation.action)));
        let keeps_hints =
            |stored: &Vec<dkvs_sim::history::Stored>| stored.iter().any(|s| s.hint_for.is_some());
        hinted += usize::from(report.history.stored.values().any(keeps_hints));
        forgotten += usize::from(!report.history.reaped.is_empty());
        at += STEP;
        if at > OVER_AT {
            assert!(
                hinted > number / 2 && forgotten > number / 2,
                "{hinted} and {forgotten} of {number} runs"
            );
            return;
        }
    }
}
