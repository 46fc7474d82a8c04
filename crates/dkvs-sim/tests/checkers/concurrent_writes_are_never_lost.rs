use crate::story::Story;

const CLAIM: &str = "concurrent_writes_are_never_lost";

#[test]
fn a_write_that_vanished_from_a_sight_is_caught() {
    let beside = |title| {
        Story::of(title).put(1).dot("A1").seeing("").at(10, 20).put(2).dot("B1").seeing("").at(10, 20)
    };
    beside("from a get of one owner").get("2", "A1 B1").quorum(1).breaks_only(CLAIM);
    beside("from one disk").disk('A', "A1 B1", "B1").disk('B', "A1 B1", "A1 B1").breaks_only(CLAIM);
    beside("even when damaged").wipe('A').get("2", "A1 B1").breaks_only(CLAIM);
    Story::of("an unknown write, heard of and not shown")
        .put(1)
        .dot("A1")
        .seeing("")
        .unknown()
        .get("", "A1")
        .breaks(CLAIM);
    Story::of("its dot was used by another")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("A2")
        .seeing("")
        .get("2", "A2")
        .quorum(1)
        .breaks_only(CLAIM);
    Story::of("a deletion that vanished")
        .delete(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("2", "A1 B1")
        .quorum(1)
        .breaks_only(CLAIM);
    Story::of("a blind put that was over before it began")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("1", "A1 B1")
        .quorum(1)
        .breaks_only(CLAIM);
    Story::of("an unknown put would explain it, but every event covered was seen, and none is that put's")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .seeing("A1")
        .unknown()
        .put(3)
        .dot("B1")
        .seeing("")
        .get("3", "A1 B1")
        .quorum(1)
        .breaks_only(CLAIM);
    Story::of("a put executed once more would explain it, but that event is not covered")
        .put(1)
        .dot("A1")
        .again("C1")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("1", "A1 B1")
        .quorum(1)
        .breaks_only(CLAIM);
}

#[test]
fn a_write_that_is_gone_in_the_end_is_caught() {
    let both = |title| Story::of(title).put(1).dot("A1").at(10, 20).put(2).dot("B1").at(15, 25);
    both("blind puts that discarded each other").everywhere("A1 B1", "").breaks_only(CLAIM);
    both("nothing on any disk").everywhere("", "").breaks_only(CLAIM);
    Story::of("the last of a chain is gone")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .put(3)
        .dot("C1")
        .seeing("")
        .everywhere("A1 C1", "C1")
        .breaks_only(CLAIM);
    Story::of("covered by the context of a failed put")
        .put(1)
        .dot("A1")
        .put(2)
        .seeing("A1")
        .failed()
        .everywhere("A1", "")
        .breaks_only(CLAIM);
    Story::of("covered by the context of a put that never was anywhere")
        .put(1)
        .dot("A1")
        .put(2)
        .seeing("A1")
        .unknown()
        .everywhere("A1", "")
        .breaks_only(CLAIM);
    Story::of("one damaged disk of two").put(1).dot("A1").wipe('A').everywhere("", "").breaks_only(CLAIM);
}

#[test]
fn writes_that_were_replaced_pass() {
    let both = |title| Story::of(title).put(1).dot("A1").at(10, 20).put(2).dot("B1").at(15, 25);
    both("one of two blind puts survives").everywhere("A1 B1", "B1").keeps(CLAIM);
    both("both survive").everywhere("A1 B1", "A1 B1").keeps(CLAIM);
    Story::of("a chain that ends on the disks")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .unknown()
        .delete(3)
        .dot("C1")
        .seeing("A1 B1")
        .everywhere("A1 B1 C1", "C1")
        .keeps(CLAIM);
    Story::of("two in one commit, the first never seen on a disk")
        .put(1)
        .dot("A1")
        .put(2)
        .at(20, 30)
        .put(3)
        .dot("A3")
        .at(20, 30)
        .returning("A3")
        .get("3", "A3")
        .everywhere("A3", "A3")
        .keeps(CLAIM);
    Story::of("replaced by the first of two in one commit")
        .put(1)
        .dot("A1")
        .put(2)
        .at(20, 30)
        .put(3)
        .dot("A3")
        .seeing("")
        .at(20, 30)
        .get("3", "A3")
        .keeps(CLAIM);
    Story::of("one execution of a retried blind put replaced the other, and a third put that")
        .put(1)
        .dot("A1")
        .again("B1")
        .put(2)
        .dot("C1")
        .seeing("B1")
        .get("2", "A1 B1 C1")
        .everywhere("A1 B1 C1", "C1")
        .keeps(CLAIM);
    Story::of("every copy was damaged")
        .put(1)
        .dot("A1")
        .wipe('A')
        .wipe('B')
        .everywhere("", "")
        .keeps("replaced_values_never_return");
}
