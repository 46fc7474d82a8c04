use crate::story::Story;

const CLAIM: &str = "acknowledged_writes_are_readable";
const REGISTER: &str = "single_writers_are_linearizable";

#[test]
fn a_get_that_has_not_heard_of_an_acknowledged_put_is_caught() {
    Story::of("nothing there").put(1).dot("A1").get("", "").breaks(CLAIM);
    Story::of("another value").put(1).dot("A1").put(2).dot("B1").get("1", "A1").breaks(CLAIM);
    Story::of("a deletion unheard of")
        .put(1)
        .dot("A1")
        .delete(2)
        .dot("A2")
        .seeing("A1")
        .get("1", "A1")
        .breaks(CLAIM);
    Story::of("a value that vanished").put(1).dot("A1").get("", "A1").breaks(CLAIM);
    Story::of("R = 1 and W = 3 overlap too")
        .put(1)
        .dot("A1")
        .quorum(3)
        .get("", "")
        .quorum(1)
        .breaks_only(CLAIM);
    Story::of("n = 5").put(1).dot("A1").n(5).quorum(3).get("", "").n(5).quorum(3).breaks(CLAIM);
    Story::of("a write replaced by one that was called too late")
        .put(1)
        .dot("A1")
        .get("2", "A1 B1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .breaks(CLAIM);
    Story::of("what the returned context names")
        .put(1)
        .dot("A1")
        .returning("A1 B1")
        .get("1", "A1")
        .breaks_only(CLAIM);
    Story::of("an acknowledged put that no disk ever held").put(1).breaks_only(CLAIM);
}

#[test]
fn a_blind_put_that_was_over_replaces_nothing() {
    let story = |title| Story::of(title).put(1).dot("A1").put(2).dot("B1").get("1", "A1 B1");
    story("an old put that comes back on a later one").breaks(CLAIM);
}

#[test]
fn gets_that_owe_nothing_pass() {
    Story::of("a get that overlaps the put")
        .put(1)
        .dot("A1")
        .at(10, 20)
        .get("", "")
        .at(15, 18)
        .keeps(REGISTER);
    Story::of("R + W = N").put(1).dot("A1").quorum(1).get("", "").keeps(CLAIM);
    Story::of("another n").put(1).dot("A1").get("", "").n(5).quorum(3).keeps(CLAIM);
    Story::of("a put that is unknown").put(1).dot("A1").unknown().get("", "").keeps(REGISTER);
    Story::of("one microsecond for return and call, two clients")
        .put(1)
        .dot("A1")
        .at(10, 20)
        .get("", "")
        .by(2)
        .at(20, 25)
        .keeps(REGISTER);
}

#[test]
fn a_value_may_go_through_whatever_replaced_it() {
    Story::of("replaced with a context")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .get("2", "A1 B1")
        .keeps(CLAIM);
    Story::of("replaced by a put still under way")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .pending()
        .get("2", "A1 B1")
        .keeps(CLAIM);
    Story::of("an unknown blind put that came late")
        .put(1)
        .dot("A1")
        .unknown()
        .put(2)
        .dot("B1")
        .get("1", "A1 B1")
        .keeps(CLAIM);
    let again = |title| Story::of(title).put(1).dot("A1").again("B1").put(2).dot("A2");
    again("a second execution that shows after the next put, beside it").get("1 2", "A2 B1").keeps(CLAIM);
    again("a second execution that replaces the next put").get("1", "A2 B1").breaks(CLAIM);
    Story::of(
        "its acknowledged event was replaced in one commit and never seen, another execution comes late",
    )
    .put(1)
    .dot("B1")
    .seeing("")
    .returning("A1")
    .at(10, 30)
    .put(2)
    .dot("A2")
    .at(12, 30)
    .get("2", "A2")
    .keeps(CLAIM);
    Story::of("a deletion").put(1).dot("A1").delete(2).dot("A2").get("x", "A2").keeps(CLAIM);
}

#[test]
fn a_wiped_owner_excuses_gets_until_the_key_is_repaired() {
    let wiped = |title| Story::of(title).put(1).dot("A1").wipe('A');
    wiped("meets the wiped owner and the one that missed it").get("", "").keeps(CLAIM);
    wiped("and again, as a get from two repairs nothing").get("", "").get("", "").keeps(CLAIM);
    wiped("repaired by a get from all").get("", "").get("1", "A1").quorum(3).get("", "").breaks(CLAIM);
    wiped("repaired by the runner").repaired().get("", "").breaks(CLAIM);
    wiped("a get from all that the damage fell into repairs nothing")
        .get("1", "A1")
        .quorum(3)
        .at(15, 40)
        .get("", "")
        .keeps(CLAIM);
    Story::of("a server that does not own the key").put(1).dot("A1").wipe('D').get("", "").breaks(CLAIM);
    Story::of("a restored copy").put(1).dot("A1").restore('A', 5).get("", "").keeps(CLAIM);
    Story::of("written after the damage").wipe('A').put(1).dot("B1").repaired().get("", "").breaks(CLAIM);
}

#[test]
fn a_flipped_record_excuses_no_get_as_its_owner_sees_it() {
    let flipped = |title| Story::of(title).put(1).dot("A1").flip('A', "k");
    flipped("before the repair").get("", "").breaks(CLAIM);
    flipped("after it").repaired().get("", "").breaks(CLAIM);
    let during = |title| Story::of(title).flip('A', "k").put(1).dot("A1").at(5, 40);
    during("of a put that it fell into, before the repair").get("", "").keeps(CLAIM);
    during("and after one that began earlier").repaired().get("", "").keeps(CLAIM);
    during("and after it").get("1", "A1").quorum(3).get("", "").breaks(CLAIM);
    flipped("a blind put that did not hear of it")
        .put(2)
        .dot("C1")
        .get("1 2", "A1 C1")
        .keeps("replaced_values_never_return");
    flipped("and one after the repair")
        .repaired()
        .put(2)
        .dot("C1")
        .get("1 2", "A1 C1")
        .breaks("replaced_values_never_return");
}

#[test]
fn what_was_on_damaged_disks_only_may_be_gone_for_good() {
    let twice = |title| Story::of(title).put(1).dot("A1").wipe('A').wipe('B').repaired().get("", "");
    twice("both copies").keeps(CLAIM);
    let between = Story::of("repaired in between").put(1).dot("A1").wipe('A').repaired().wipe('B').repaired();
    between.get("", "").breaks(CLAIM);
    let in_turn = ['A', 'B', 'C'].into_iter().fold(
        Story::of("all disks, each after the repair of the one before").put(1).dot("A1"),
        |story, letter| story.wipe(letter).repaired(),
    );
    in_turn.get("", "").breaks(CLAIM);
    let same = Story::of("twice the same disk").put(1).dot("A1").wipe('A').wipe('A').repaired();
    same.get("", "").breaks(CLAIM);
}

#[test]
fn a_pair_given_to_enough_owners_must_be_readable() {
    let given = |title| Story::of(title).given('A', 7).given('B', 7);
    given("not found").get("", "").breaks_only(CLAIM);
    given("not found after damage").wipe('A').get("", "").breaks_only(CLAIM);
    given("the other one").given('C', 8).get("8", "g8").breaks_only(CLAIM);
    given("found").get("7", "g7").keeps(CLAIM);
    given("asked of too few").get("", "").quorum(1).get("7", "g7").keeps(CLAIM);
    given("replaced by a put nobody heard of").put(1).dot("A1").unknown().get("1", "A1").keeps(CLAIM);
    Story::of("given to too few").given('A', 7).get("", "").put(1).dot("B1").get("1", "B1").keeps(CLAIM);
}
