use crate::story::Story;

const CLAIM: &str = "acknowledged_writes_reach_all_owners";

fn missed(title: &'static str) -> Story {
    Story::of(title).put(1).dot("A1").at(100, 105).deadline(1_000)
}

fn without_c(story: Story) -> Story {
    story.quiet('A', "A1").quiet('B', "A1").quiet('C', "")
}

#[test]
fn an_owner_that_never_heard_of_an_acknowledged_write_is_caught() {
    without_c(missed("one has nothing")).breaks_only(CLAIM);
    missed("one has no record").quiet('A', "A1").quiet('B', "A1").breaks_only(CLAIM);
    missed("one knows another").quiet('A', "A1").quiet('B', "A1").quiet('C', "B1").breaks_only(CLAIM);
    without_c(missed("a server ended before it").ended('A', 50, 99)).breaks_only(CLAIM);
    without_c(missed("a server ended long after it").ended('A', 12_000, 12_000)).breaks_only(CLAIM);
    without_c(missed("another owner ended").ended('B', 100, 200)).breaks_only(CLAIM);
    without_c(missed("another owner has a mark").marked('B', 'C')).breaks_only(CLAIM);
    without_c(missed("its coordinator has a mark for another").marked('A', 'B')).breaks_only(CLAIM);
    without_c(missed("another key's bits flipped").flip('C', "other")).breaks_only(CLAIM);
    without_c(missed("its coordinator's bits flipped").flip('A', "k")).breaks_only(CLAIM);
    without_c(missed("nothing flushed can be lost").flushed().cut_off('A')).breaks_only(CLAIM);
    without_c(missed("another owner was wiped").wipe('B')).breaks_only(CLAIM);
    without_c(missed("it is among the cluster's n").comparing(3)).breaks_only(CLAIM);
}

#[test]
fn writes_that_all_have_or_of_which_hints_may_be_lost_pass() {
    let all = |story: Story| story.quiet('A', "A1").quiet('B', "A1").quiet('C', "A1");
    all(missed("all have it")).keeps(CLAIM);
    all(missed("it was replaced").put(2).dot("A2").seeing("A1").at(200, 205).deadline(1_000))
        .quiet('A', "A2")
        .quiet('B', "A2")
        .quiet('C', "A2")
        .keeps(CLAIM);
    // Each beside a write that is put to the test.
    let other = |story: Story| all(story.on("other").put(9).dot("A1").at(90_000, 90_005).deadline(91_000));
    other(without_c(missed("its coordinator may have ended").ended('A', 500, 500))).keeps(CLAIM);
    other(without_c(missed("its coordinator took no writes").ended('A', 50, 20_000))).keeps(CLAIM);
    let again = missed("one of two coordinators ended").returning("A1 B1").again("B1");
    other(without_c(again.ended('B', 100, 200))).keeps(CLAIM);
    other(without_c(missed("its coordinator lost what was not flushed").cut_off('A'))).keeps(CLAIM);
    other(without_c(missed("its coordinator was wiped").wipe('A'))).keeps(CLAIM);
    other(without_c(missed("the owner's bits flipped").flip('C', "k"))).keeps(CLAIM);
    other(missed("damaged before").quiet('A', "A1").quiet('B', "A1").unreadable('C')).keeps(CLAIM);
    other(without_c(missed("marked").marked('A', 'C'))).keeps(CLAIM);
    other(without_c(missed("unknown").unknown())).keeps(CLAIM);
    other(without_c(missed("beyond the cluster's n").comparing(2))).keeps(CLAIM);
}
