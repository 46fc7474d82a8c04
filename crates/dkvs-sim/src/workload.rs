//! What clients do: workers that read and write a few keys at random, and an auditor that reads them all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::client::{Machine, NewValue, Recorded, Worker};
use crate::mad;
use crate::plan::{ExpiryPlan, KeyPlan, Mix, Plan, QuorumPlan, pick};
use crate::seed;
use crate::shared::{Host, Shared};
use crate::trace::now;

/// Mean pause of a worker once the faults have ended.
const CALM_THINK: Duration = Duration::from_millis(400);

/// Pause of the auditor between looks, and before it asks again.
const AUDITOR_PAUSE: Duration = Duration::from_millis(50);

/// How long the auditor waits for one answer.
const AUDITOR_TIMEOUT: Duration = Duration::from_secs(2);

/// All workers of one machine.
pub(crate) async fn run(shared: Arc<Shared>, host: Host) -> turmoil::Result {
    let machine = Machine::start(shared.clone(), host).await?;
    let first = (host - usize::from(shared.plan.servers)) * usize::from(shared.plan.workers_per_host);
    let workers = (first..first + usize::from(shared.plan.workers_per_host))
        .map(|index| work(shared.clone(), machine.clone(), index));
    futures::future::try_join_all(workers).await?;
    Ok(())
}

async fn work(shared: Arc<Shared>, machine: Arc<Machine>, index: usize) -> turmoil::Result {
    let mut worker = Worker::new(machine.client().await?);
    let mut random = seed::random(shared.plan.seed, "worker", index as u64);
    let mut ttl_random = seed::random(shared.plan.seed, "ttl", index as u64);
    let mut sloppy_random = seed::random(shared.plan.seed, "sloppy requests", index as u64);
    while !shared.is_stopping() {
        let think = if shared.is_healed() { CALM_THINK } else { shared.plan.think };
        sleep(think.mul_f64(random.random_range(0.0..2.0))).await;
        let chaos_is_over = shared.steps.load(Ordering::Relaxed) >= shared.plan.steps;
        if shared.is_stopping() || (chaos_is_over && !shared.is_healed()) {
            continue;
        }
        let Some(key) = key(&shared.plan, &mut random) else { continue };
        shared.steps.fetch_add(1, Ordering::Relaxed);
        worker.use_client(machine.client().await?);
        let ttl = ttl(shared.plan.expiry.as_ref(), &mut ttl_random);
        let choice = Choice { ttl, sloppy: sloppy_random.random_bool(key.sloppy) };
        act(&shared.plan, &mut worker, key, index, choice, &mut random).await;
    }
    shared.finished.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// For how long the next value is to be shown; `None` for ever.
fn ttl(expiry: Option<&ExpiryPlan>, random: &mut StdRng) -> Option<Duration> {
    let expiry = expiry.filter(|expiry| random.random_bool(expiry.share))?;
    Some(*pick(&expiry.ttls, random))
}

/// A key that is still in use.
fn key<'a>(plan: &'a Plan, random: &mut StdRng) -> Option<&'a KeyPlan> {
    let time = Duration::from_micros(now());
    let in_use: Vec<_> = plan.keys.iter().filter(|key| key.retires.is_none_or(|at| time < at)).collect();
    if in_use.is_empty() { None } else { Some(*pick(&in_use, random)) }
}

/// What is drawn from generators of its own.
struct Choice {
    ttl: Option<Duration>,
    sloppy: bool,
}

async fn act(
    plan: &Plan,
    worker: &mut Worker,
    key: &KeyPlan,
    index: usize,
    Choice { ttl, sloppy }: Choice,
    random: &mut StdRng,
) {
    let quorum = QuorumPlan { sloppy, ..*pick(&key.quorums, random) };
    // What nobody but its writer writes, others read.
    let rests = key.rests.is_some_and(|rests| rests.at(Duration::from_micros(now())));
    let may_write = key.writer.is_none_or(|writer| writer == index) && !rests;
    let Mix { get, blind, with_context, update, .. } = plan.mix;
    let choice = random.random_range(0..get + blind + with_context + update);
    if choice < get || !may_write {
        worker.get(key, quorum, plan.timeout).await;
    } else if choice < get + blind {
        let what = NewValue::of(value_len(&plan.mix, random), ttl);
        worker.write(key, quorum, plan.timeout, None, what).await;
    } else {
        let is_update = choice >= get + blind + with_context;
        if is_update && !worker.get(key, quorum, plan.timeout).await {
            return;
        }
        let what = NewValue::of(value_len(&plan.mix, random), ttl);
        worker.write(key, quorum, plan.timeout, worker.seen(key), what).await;
    }
}

/// The length of a new value; `None` to delete.
fn value_len(mix: &Mix, random: &mut StdRng) -> Option<usize> {
    if random.random_bool(mix.deletes) {
        None
    } else if random.random_bool(mix.large) {
        Some(random.random_range(1_000..40_000))
    } else {
        Some(random.random_range(0..100))
    }
}

/// The auditor reads every key with R = N whenever it is asked to, again and again until that has worked.
pub(crate) async fn audit(shared: Arc<Shared>, host: Host) -> turmoil::Result {
    let mut worker = Worker::new(Recorded::start(shared.clone(), host, 0).await?);
    if shared.plan.mad {
        shared.recorder.with(|history| history.has_mad_peer = true);
        tokio::spawn(mad::run(shared.clone(), host));
    }
    loop {
        sleep(AUDITOR_PAUSE).await;
        let wanted = shared.sweeps_wanted.load(Ordering::Relaxed);
        if wanted > shared.sweeps_done.load(Ordering::Relaxed) {
            for key in &shared.plan.keys {
                while !worker.get(key, all_of(key), AUDITOR_TIMEOUT).await {
                    sleep(AUDITOR_PAUSE).await;
                }
            }
            shared.trace.note(now(), format_args!("sweep {wanted} done"));
            shared.sweeps_done.store(wanted, Ordering::Relaxed);
        }
    }
}

fn all_of(key: &KeyPlan) -> QuorumPlan {
    let n = key.n_max();
    QuorumPlan { n, r: n, w: n, sloppy: false }
}
