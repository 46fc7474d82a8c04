use crate::story::Story;

const CLAIM: &str = "single_writers_are_linearizable";

#[test]
fn answers_of_no_register_are_caught() {
    Story::of("an unknown put takes effect, is replaced, and comes back as the same event")
        .put(1)
        .dot("A1")
        .unknown()
        .put(2)
        .dot("B1")
        .get("1", "A1 B1")
        .get("2", "A1 B1")
        .get("1", "A1 B1")
        .breaks(CLAIM);
    Story::of("an acknowledged put under a later acknowledged put")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .get("1", "A1 B1")
        .breaks(CLAIM);
    Story::of("new, then old, while the put is under way")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .pending()
        .get("2", "A1 B1")
        .get("1", "A1 B1")
        .breaks(CLAIM);
    Story::of("a value, then never written")
        .put(1)
        .dot("A1")
        .pending()
        .get("1", "A1")
        .get("", "A1")
        .breaks(CLAIM);
    Story::of("a deletion that was replaced")
        .delete(1)
        .dot("A1")
        .put(2)
        .dot("A2")
        .seeing("A1")
        .get("x", "A2")
        .breaks(CLAIM);
    Story::of("a failed put has no effect").put(1).dot("A1").put(2).failed().get("2", "A1").breaks(CLAIM);
    Story::of("the two rounds of an acknowledged put come to nothing later")
        .put(1)
        .dot("A1 A2")
        .put(2)
        .dot("B1")
        .seeing("A2")
        .get("1", "A2 B1")
        .breaks(CLAIM);
    Story::of("a retried put that its first coordinator executes after the next put, instead of it")
        .put(1)
        .dot("B1")
        .again("A1")
        .put(2)
        .dot("B2")
        .get("2", "B2")
        .get("1", "A1 B2")
        .breaks(CLAIM);
    Story::of("a get in the microsecond of its own put's return")
        .put(1)
        .dot("A1")
        .at(10, 20)
        .get("", "")
        .at(20, 25)
        .breaks(CLAIM);
}

#[test]
fn answers_of_a_register_pass() {
    Story::of("an unknown put that comes late, between two gets")
        .put(1)
        .dot("A1")
        .unknown()
        .put(2)
        .dot("B1")
        .get("2", "B1")
        .get("1", "A1 B1")
        .keeps(CLAIM);
    Story::of("an unknown put beside the next one")
        .put(1)
        .dot("A1")
        .unknown()
        .put(2)
        .dot("B1")
        .get("1 2", "A1 B1")
        .get("2 1", "A1 B1")
        .keeps(CLAIM);
    Story::of("a get that overlaps a put may see it, and the next one must")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("A2")
        .at(30, 60)
        .get("1", "A1")
        .by(2)
        .at(35, 40)
        .get("2", "A2")
        .by(3)
        .at(45, 50)
        .get("2", "A2")
        .by(2)
        .at(55, 58)
        .keeps(CLAIM);
    Story::of("a retried put that its first coordinator keeps to itself until after the next put")
        .put(1)
        .dot("B1")
        .again("A1")
        .put(2)
        .dot("B2")
        .get("2", "B2")
        .get("1 2", "A1 B2")
        .keeps(CLAIM);
    Story::of("puts and gets in one microsecond, one client after the other")
        .put(1)
        .dot("A1")
        .at(10, 20)
        .get("1", "A1")
        .at(20, 20)
        .put(2)
        .dot("A2")
        .at(20, 30)
        .get("2", "A2")
        .at(30, 30)
        .keeps(CLAIM);
}

#[test]
fn keys_that_are_no_registers_are_left_alone() {
    let readable = "acknowledged_writes_are_readable";
    Story::of("two writers")
        .put(1)
        .dot("A1")
        .at(10, 30)
        .put(2)
        .dot("B1")
        .at(20, 40)
        .get("1 2", "A1 B1")
        .get("2", "A1 B1")
        .keeps(readable);
    Story::of("quorums that do not overlap").put(1).dot("A1").quorum(1).get("", "").keeps(readable);
    Story::of("an unsettled get")
        .put(1)
        .dot("A1")
        .wipe('A')
        .get("", "")
        .get("1", "A1")
        .quorum(3)
        .get("1", "A1")
        .keeps(CLAIM);
}

#[test]
fn what_servers_were_given_counts_as_never_written() {
    let given = |title| Story::of(title).given('A', 7);
    given("now not met, now met").get("", "").get("7", "g7").put(1).dot("A1").get("1", "A1").keeps(CLAIM);
    given("after a put").put(1).dot("A1").get("7", "g7").breaks(CLAIM);
}
