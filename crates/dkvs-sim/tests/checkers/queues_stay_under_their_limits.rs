use crate::story::Story;

const CLAIM: &str = "queues_stay_under_their_limits";

#[test]
fn a_queue_that_was_longer_than_its_limit_is_caught() {
    let story = |title| Story::of(title).level("outbox", 3, 64);
    story("one too many").level("calls", 9, 8).breaks_only(CLAIM);
    story("what may hold nothing").level("background_bytes", 1, 0).breaks_only(CLAIM);
    story("a life before a quiet one").level("streams", 3, 2).level("streams", 1, 2).breaks_only(CLAIM);
}

#[test]
fn a_queue_that_was_full_passes() {
    Story::of("full to the brim").level("calls", 8, 8).keeps(CLAIM);
    Story::of("empty, and never anything else").level("background_bytes", 0, 0).keeps(CLAIM);
}
