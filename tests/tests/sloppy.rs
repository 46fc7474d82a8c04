//! Other servers stand in for owners that are down, keep what was put for them, and bring it home.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use dkvs::{ClientConfig, Error, ServerIndex, ServerName};
use dkvs_core::record::Body;
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, SILENCE_MAX, TestClient, eventually};

const KEY: &str = "k";

/// Five servers. The first two or three in the key's order of preference own it, and the others are left over to stand in.
struct Story {
    cluster: Cluster,
    client: TestClient,
    /// All servers, in that order.
    preference: Vec<ServerIndex>,
}

impl Story {
    async fn begin() -> Self {
        Self::begin_with(Plan::of(5)).await
    }

    async fn begin_with(plan: Plan) -> Self {
        let cluster = Cluster::start(plan).await;
        let timeout = Duration::from_secs(10);
        let config = ClientConfig { timeout, silence_max: SILENCE_MAX, ..ClientConfig::default() };
        let client = cluster.client_with(config).await;
        let preference = cluster.owners(KEY, 5);
        Self { cluster, client, preference }
    }

    fn name(&self, place: usize) -> ServerName {
        self.cluster.ring().servers()[self.preference[place]].name.clone()
    }

    fn kill(&mut self, places: &[usize]) {
        places.iter().for_each(|&place| self.cluster.kill(self.preference[place]));
    }

    async fn restart(&mut self, places: &[usize]) {
        for &place in places {
            self.cluster.restart(self.preference[place]).await;
        }
    }

    async fn put(&self, value: &str, n: usize, w: usize) -> dkvs::Written {
        self.client.put(KEY, value.to_owned()).n(n).w(w).sloppy(true).await.unwrap()
    }

    async fn get(&self, n: usize, r: usize) -> dkvs::Got {
        self.client.get(KEY).n(n).r(r).sloppy(true).siblings().await.unwrap()
    }

    /// The values that a server holds as its own.
    fn values(&self, place: usize) -> BTreeSet<String> {
        let record = self.cluster.stored(self.preference[place], KEY);
        let text = |body: &Body| body.value().map(|value| String::from_utf8(value.to_vec()).unwrap());
        record.siblings().iter().filter_map(|sibling| text(&sibling.write.body)).collect()
    }

    fn hints(&self, place: usize) -> usize {
        self.cluster.entries(self.preference[place], Keyspace::Hints).len()
    }

    /// Waits until the first `n` servers hold exactly these values, and nobody else holds anything or keeps hints.
    async fn came_home(&self, n: usize, values: &[&str]) {
        let values: BTreeSet<String> = values.iter().map(ToString::to_string).collect();
        let places = 0..self.preference.len();
        eventually("the owners to hold it, and nobody else", async || {
            let is_right = |place| {
                let held = self.values(place);
                self.hints(place) == 0 && if place < n { held == values } else { held.is_empty() }
            };
            places.clone().all(is_right).then_some(())
        })
        .await;
    }
}

fn text(got: &dkvs::Got) -> BTreeSet<&str> {
    let values = got.siblings().iter().flatten();
    values.map(|value: &Bytes| std::str::from_utf8(value).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_owners_down_a_put_succeeds_a_get_returns_it_and_the_owners_get_it_when_they_are_back() {
    for delete in [false, true] {
        let mut story = Story::begin().await;
        let before = story.client.put(KEY, "before").n(2).w(2).await.unwrap();
        story.kill(&[0, 1]);
        // Without a context it would only replace what those who stand in have heard of.
        let write = if delete { story.client.delete(KEY) } else { story.client.put(KEY, "v") };
        let written = write.n(2).w(2).sloppy(true).context(before.context()).await.unwrap();
        assert!(written.acked().is_empty(), "{written:?}");
        let owners: BTreeSet<_> = written.stand_ins().iter().map(|stand_in| &stand_in.owner).collect();
        let servers: BTreeSet<_> = written.stand_ins().iter().map(|stand_in| &stand_in.server).collect();
        assert_eq!(owners, BTreeSet::from([&story.name(0), &story.name(1)]));
        assert!(servers.len() == 2 && servers.is_disjoint(&owners), "{written:?}");

        let got = story.get(2, 2).await;
        assert_eq!(text(&got), if delete { BTreeSet::new() } else { BTreeSet::from(["v"]) });
        assert_eq!((got.answered().len(), got.stand_ins().len()), (0, 2));
        for place in 2..5 {
            assert!(story.values(place).is_empty(), "what is kept for others is not the server's own");
        }

        story.restart(&[0, 1]).await;
        story.came_home(2, if delete { &[] } else { &["v"] }).await;
        let got = story.client.get(KEY).n(2).r(2).await.unwrap();
        assert_eq!(got.value().map(|value| &value[..]), if delete { None } else { Some(&b"v"[..]) });
        assert!(got.stand_ins().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_owner_down_is_made_up_for_and_the_answer_says_two_owners_and_a_stand_in() {
    let mut story = Story::begin().await;
    story.kill(&[2]);
    let written = story.put("v", 3, 3).await;
    let acked: BTreeSet<_> = written.acked().iter().cloned().collect();
    assert_eq!(acked, BTreeSet::from([story.name(0), story.name(1)]));
    let [stand_in] = written.stand_ins() else { panic!("{written:?}") };
    assert_eq!(stand_in.owner, story.name(2));
    assert!([story.name(3), story.name(4)].contains(&stand_in.server));
    let got = story.get(3, 3).await;
    assert_eq!((got.answered().len(), got.stand_ins().len(), text(&got)), (2, 1, BTreeSet::from(["v"])));
    story.restart(&[2]).await;
    story.came_home(3, &["v"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_owners_up_a_sloppy_answer_is_a_strict_one() {
    let story = Story::begin().await;
    let written = story.put("v", 3, 3).await;
    assert_eq!((written.acked().len(), written.stand_ins()), (3, &[][..]));
    let got = story.get(3, 3).await;
    assert_eq!((got.answered().len(), got.stand_ins()), (3, &[][..]));
    story.came_home(3, &["v"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_request_fails_where_a_sloppy_one_succeeds() {
    let mut story = Story::begin().await;
    story.kill(&[1, 2]);
    let timeout = Duration::from_secs(1);
    let strict = story.client.put(KEY, "strict").n(3).w(2).timeout(timeout).await.unwrap_err();
    let Error::Unknown(report) = &strict else { panic!("{strict}") };
    assert_eq!((report.acked(), report.stand_ins.len()), (1, 0), "{strict}");
    story.put("sloppy", 3, 2).await;
    let strict = story.client.get(KEY).n(3).r(2).timeout(timeout).await.unwrap_err();
    assert!(matches!(strict, Error::Unavailable(_)), "{strict}");
    assert_eq!(text(&story.get(3, 2).await), BTreeSet::from(["sloppy"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stand_ins_keep_what_counted_over_their_own_end_and_over_the_budget() {
    let mut story = Story::begin_with(Plan { hint_bytes_max: 0, ..Plan::of(5) }).await;
    story.kill(&[0, 1]);
    story.put("v", 2, 2).await;
    for place in 2..5 {
        story.kill(&[place]);
        story.restart(&[place]).await;
    }
    assert_eq!(text(&story.get(2, 2).await), BTreeSet::from(["v"]));
    story.restart(&[0, 1]).await;
    // What need not be kept has left marks, as the budget is used up.
    eventually("the owners to hold it, and no hint to be left", async || {
        let holds = |place| story.values(place) == BTreeSet::from(["v".to_owned()]);
        let kept = |&holder: &ServerIndex| {
            story.preference[..2]
                .iter()
                .map(|&target| story.cluster.hints(holder, target).len())
                .sum::<usize>()
        };
        let left: usize = story.preference.iter().map(kept).sum();
        (holds(0) && holds(1) && left == 0).then_some(())
    })
    .await;
}

/// Those who stand in have not heard of what the owners hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_without_a_context_through_stand_ins_leaves_what_owners_held_as_a_sibling() {
    let mut story = Story::begin().await;
    story.client.put(KEY, "before").n(2).w(2).await.unwrap();
    story.kill(&[0, 1]);
    story.put("after", 2, 2).await;
    assert_eq!(text(&story.get(2, 2).await), BTreeSet::from(["after"]));
    story.restart(&[0, 1]).await;
    story.came_home(2, &["after", "before"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_through_stand_ins_and_one_through_owners_that_have_not_heard_of_it_leave_siblings() {
    let mut story = Story::begin().await;
    story.kill(&[0, 1]);
    story.put("through stand-ins", 2, 2).await;
    // Those who keep it are away when the owners are back.
    story.kill(&[2, 3, 4]);
    story.restart(&[0, 1]).await;
    story.client.put(KEY, "through owners").n(2).w(2).await.unwrap();
    story.restart(&[2, 3, 4]).await;
    story.came_home(2, &["through owners", "through stand-ins"]).await;
}

/// Each replaces the one before, also where another server coordinates it; none takes an epoch of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_through_stand_ins_one_after_the_other_replace_each_other_and_do_not_lengthen_the_vector() {
    let mut story = Story::begin().await;
    story.kill(&[0, 1]);
    for number in 0..20 {
        story.put(&format!("v{number}"), 2, 2).await;
    }
    assert_eq!(text(&story.get(2, 2).await), BTreeSet::from(["v19"]));
    story.restart(&[0, 1]).await;
    story.came_home(2, &["v19"]).await;
    let vv = story.cluster.stored(story.preference[0], KEY).vv().clone();
    assert!(vv.len() <= 3, "at most one actor for each server: {vv:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_servers_left_over_nobody_stands_in() {
    let mut cluster = Cluster::start(Plan::of(3)).await;
    let client = cluster.client().await;
    let [.., down_a, down_b] = cluster.owners(KEY, 3)[..] else { panic!("three owners") };
    cluster.kill(down_a);
    cluster.kill(down_b);
    let put = client.put(KEY, "v").n(3).w(2).sloppy(true).timeout(Duration::from_secs(1));
    let error = put.await.unwrap_err();
    let Error::Unknown(report) = &error else { panic!("{error}") };
    assert_eq!((report.acked(), report.stand_ins.len()), (1, 0));
}

/// What a client asks for comes before what it was configured with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_be_sloppy_by_default_and_a_request_strict() {
    let mut story = Story::begin().await;
    let timeout = Duration::from_secs(10);
    let config =
        ClientConfig { sloppy: Some(true), timeout, silence_max: SILENCE_MAX, ..ClientConfig::default() };
    story.client = story.cluster.client_with(config).await;
    story.kill(&[0, 1]);
    let written = story.client.put(KEY, "v").n(2).w(2).await.unwrap();
    assert_eq!(written.stand_ins().len(), 2);
    let strict = story.client.get(KEY).n(2).r(1).sloppy(false).timeout(Duration::from_secs(1)).await;
    assert!(matches!(strict, Err(Error::Unavailable(_))), "{strict:?}");
}
