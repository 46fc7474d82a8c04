use crate::story::Story;

const CLAIM: &str = "forgotten_values_never_return";
const READABLE: &str = "acknowledged_writes_are_readable";
const NEVER_BACK: &str = "gets_never_go_back";
const REGISTER: &str = "single_writers_are_linearizable";

/// Put 1 as A1 and delete it as A2, seen by a get; then a server forgets.
fn forgotten(title: &'static str) -> Story {
    let story = Story::of(title).put(1).dot("A1").delete(2).dot("A2").seeing("A1");
    story.get("x", "A2").forgets('A', "A2", "A2")
}

#[test]
fn a_value_that_comes_back_is_caught() {
    forgotten("a get that shows it").get("1", "A1").breaks(CLAIM);
    forgotten("a disk that holds it").disk('A', "", "").disk('B', "A1", "A1").disk('C', "", "").breaks(CLAIM);
    Story::of("a write that a get shows beside a newer one")
        .put(1)
        .dot("A1")
        .delete(2)
        .dot("A2")
        .seeing("A1")
        .forgets('A', "A2", "A2")
        .put(3)
        .dot("B1")
        .seeing("")
        .get("3 1", "B1 A1")
        .breaks(CLAIM);
}

#[test]
fn a_key_of_which_nothing_is_left_is_in_order() {
    let never_written = || forgotten("nothing is left").get("", "").get("", "");
    for claim in [CLAIM, READABLE, NEVER_BACK, REGISTER] {
        never_written().everywhere("", "").keeps(claim);
    }
    forgotten("half of the servers have").get("x", "A2").disk('A', "", "").disk('B', "A2", "A2").keeps(CLAIM);
    let anew = || forgotten("it is written anew").put(3).dot("B1").seeing("").get("3", "B1");
    for claim in [CLAIM, READABLE, NEVER_BACK, REGISTER] {
        anew().everywhere("B1", "B1").keeps(claim);
    }
    forgotten("both")
        .put(3)
        .dot("B1")
        .seeing("")
        .get("3 x", "A2 B1")
        .everywhere("A2 B1", "A2 B1")
        .keeps(CLAIM);
}

/// A server that forgets later than others, or has its forgetting undone, shows a deletion of which a blind put had not heard.
#[test]
fn a_deletion_may_stand_beside_what_was_written_after_it_was_forgotten() {
    const REPLACED: &str = "replaced_values_never_return";
    let beside = |story: Story| story.get("3 x", "A2 B1").everywhere("A2 B1", "A2 B1");
    beside(forgotten("before the blind put").put(3).dot("B1")).keeps(REPLACED);
    let later = Story::of("after it").put(1).dot("A1").delete(2).dot("A2").seeing("A1");
    beside(later.put(3).dot("B1").forgets('A', "A2", "A2")).breaks(REPLACED);
}

/// Forgetting excuses nothing else.
#[test]
fn what_nobody_deleted_is_still_owed() {
    Story::of("a put lost with it")
        .put(1)
        .dot("A1")
        .put(3)
        .dot("B1")
        .seeing("")
        .delete(2)
        .dot("A2")
        .seeing("A1")
        .forgets('A', "A2", "A2")
        .get("", "")
        .breaks(READABLE);
    Story::of("before it was forgotten")
        .put(1)
        .dot("A1")
        .delete(2)
        .dot("A2")
        .seeing("A1")
        .get("", "")
        .forgets('A', "A2", "A2")
        .breaks(READABLE);
    forgotten("what came later").put(3).dot("B1").seeing("").get("", "").breaks(READABLE);
}
