use crate::story::Story;

const CLAIM: &str = "nothing_unwritten_appears";

#[test]
fn what_nobody_wrote_is_caught() {
    let quiet = |title| Story::of(title).put(1).dot("A1").pending();
    quiet("an unknown value").get("7", "A1").quorum(1).breaks(CLAIM);
    quiet("a deletion").get("1 x", "A1").breaks_only(CLAIM);
    quiet("another key's value").on("other").get("1", "A1").quorum(1).breaks_only(CLAIM);
    Story::of("a value of the future").get("1", "A1").quorum(1).put(1).dot("A1").breaks(CLAIM);
    Story::of("a failed put on a disk").put(1).dot("A1").failed().breaks_only(CLAIM);
    Story::of("a failed put in a get").put(1).failed().get("1", "").quorum(1).breaks_only(CLAIM);
    quiet("an event of an operation that no client made").seen("B1", 77).breaks_only(CLAIM);
    quiet("a sibling of an operation that no client made").disk('A', "Z1", "Z1").breaks(CLAIM);
}

#[test]
fn what_somebody_wrote_passes() {
    Story::of("a put under way").put(1).dot("A1").pending().get("1", "A1").keeps(CLAIM);
    Story::of("an unknown put, long after")
        .put(1)
        .dot("A1")
        .unknown()
        .get("", "")
        .get("1", "A1")
        .keeps(CLAIM);
    Story::of("a put that was called in the instant of the return")
        .put(1)
        .dot("A1")
        .at(20, 40)
        .get("1", "A1")
        .at(15, 20)
        .by(2)
        .keeps(CLAIM);
    Story::of("a deletion").delete(1).dot("A1").get("x", "A1").everywhere("A1", "A1").keeps(CLAIM);
}

#[test]
fn pairs_given_at_a_start_are_no_inventions_and_others_are() {
    Story::of("a given pair").given('A', 7).get("7", "g7").everywhere("g7", "g7").keeps(CLAIM);
    Story::of("given for another key").on("other").given('A', 7).on("k").get("7", "g7").breaks_only(CLAIM);
    Story::of("a pair that nobody was given").given('A', 7).get("", "").disk('A', "g8", "g8").breaks(CLAIM);
}
