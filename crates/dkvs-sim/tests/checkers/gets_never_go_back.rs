use crate::story::Story;

const CLAIM: &str = "gets_never_go_back";

#[test]
fn gets_that_go_back_are_caught() {
    let pending = |title| Story::of(title).put(1).dot("A1").pending();
    pending("new, then old").get("1", "A1").get("", "").breaks(CLAIM);
    pending("by another client").get("1", "A1").get("", "").by(2).breaks(CLAIM);
    pending("not the next get").get("1", "A1").get("1", "A1").by(2).get("", "").by(3).breaks(CLAIM);
    pending("R = 1 after R = 3").get("1", "A1").quorum(3).get("", "").quorum(1).breaks_only(CLAIM);
    pending("R = 3 after R = 1").get("1", "A1").quorum(1).get("", "").quorum(3).breaks_only(CLAIM);
    Story::of("to the other of two siblings")
        .put(1)
        .dot("A1")
        .pending()
        .put(2)
        .dot("B1")
        .pending()
        .get("1", "A1")
        .get("2", "B1")
        .breaks_only(CLAIM);
    Story::of("a deletion forgotten")
        .put(1)
        .dot("A1")
        .delete(2)
        .dot("A2")
        .pending()
        .get("x", "A2")
        .get("1", "A1")
        .breaks(CLAIM);
}

#[test]
fn gets_that_need_not_agree_pass() {
    let pending = |title| Story::of(title).put(1).dot("A1").pending();
    pending("overlapping gets")
        .get("1", "A1")
        .at(20, 30)
        .get("", "")
        .at(25, 35)
        .by(2)
        .keeps("nothing_unwritten_appears");
    pending("R = 1").get("1", "A1").quorum(1).get("", "").quorum(1).keeps("nothing_unwritten_appears");
    pending("sloppy").get("1", "A1").get("", "").sloppy().keeps("nothing_unwritten_appears");
    pending("another n").get("1", "A1").get("", "").n(5).quorum(4).keeps("nothing_unwritten_appears");
    pending("forward").get("", "").get("1", "A1").keeps(CLAIM);
    pending("the same vector, one sibling discarded")
        .put(2)
        .dot("B1")
        .pending()
        .get("1 2", "A1 B1")
        .get("2", "A1 B1")
        .keeps(CLAIM);
}

#[test]
fn damage_excuses_until_the_repair_and_for_what_was_only_there() {
    let read = |title| Story::of(title).put(1).dot("A1").pending().get("1", "A1");
    read("before the repair").wipe('A').get("", "").keeps("nothing_unwritten_appears");
    read("after the repair").wipe('A').repaired().get("", "").breaks(CLAIM);
    read("from one owner, which was wiped")
        .quorum(1)
        .wipe('A')
        .repaired()
        .get("", "")
        .quorum(3)
        .keeps("nothing_unwritten_appears");
    Story::of("a get that the damage fell into")
        .put(1)
        .dot("A1")
        .pending()
        .wipe('A')
        .get("1", "A1")
        .at(15, 30)
        .repaired()
        .get("", "")
        .keeps("nothing_unwritten_appears");
}
