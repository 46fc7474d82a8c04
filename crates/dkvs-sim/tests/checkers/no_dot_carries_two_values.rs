use crate::story::Story;

const CLAIM: &str = "no_dot_carries_two_values";

#[test]
fn a_dot_with_two_values_is_caught() {
    let both = |title| Story::of(title).put(1).dot("A1").unknown().put(2).dot("B1").unknown();
    both("twice on disks").seen("A1", 2).breaks_only(CLAIM);
    both("after its server was wiped").wipe('A').seen("A1", 2).breaks_only(CLAIM);
    both("after its server was restored").restore('A', 5).seen("B1", 1).breaks_only(CLAIM);
    both("a value and an operation that no client made").seen("A1", 9).breaks(CLAIM);
    Story::of("a put and a deletion")
        .put(1)
        .dot("A1")
        .unknown()
        .delete(2)
        .dot("A1")
        .unknown()
        .breaks_only(CLAIM);
    Story::of("on another key")
        .on("b")
        .put(1)
        .dot("A1")
        .unknown()
        .put(2)
        .dot("A1")
        .unknown()
        .breaks_only(CLAIM);
}

#[test]
fn dots_that_only_look_alike_pass() {
    Story::of("one for each key").put(1).dot("A1").on("b").put(2).dot("A1").keeps(CLAIM);
    Story::of("one operation seen often").put(1).dot("A1").seen("A1", 1).seen("A1", 1).keeps(CLAIM);
    Story::of("one operation under two dots").put(1).dot("A1").again("B1").keeps(CLAIM);
}
