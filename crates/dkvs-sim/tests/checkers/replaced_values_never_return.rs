use crate::story::Story;

const CLAIM: &str = "replaced_values_never_return";

/// Put 1, replaced by put 2 whose context covers it.
fn replaced(title: &'static str) -> Story {
    Story::of(title).put(1).dot("A1").put(2).dot("B1").seeing("A1")
}

#[test]
fn a_replaced_value_beside_what_replaced_it_is_caught() {
    replaced("in a get").get("1 2", "A1 B1").breaks_only(CLAIM);
    replaced("in a get from one owner").get("1 2", "A1 B1").quorum(1).breaks_only(CLAIM);
    replaced("in a get that met damage").wipe('A').get("1 2", "A1 B1").breaks_only(CLAIM);
    replaced("on one disk").disk('A', "A1 B1", "A1 B1").disk('B', "A1 B1", "B1").breaks_only(CLAIM);
    Story::of("replaced by a put that nobody acknowledged")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .unknown()
        .get("1 2", "A1 B1")
        .breaks_only(CLAIM);
    Story::of("a deleted value")
        .put(1)
        .dot("A1")
        .delete(2)
        .dot("B1")
        .seeing("A1")
        .get("1 x", "A1 B1")
        .breaks_only(CLAIM);
    Story::of("a deletion that was replaced")
        .delete(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .get("x 2", "A1 B1")
        .breaks_only(CLAIM);
}

#[test]
fn a_value_that_a_get_had_seen_gone_is_caught() {
    let blind = |title| Story::of(title).put(1).dot("A1").put(2).dot("B1").pending();
    blind("by a later get").get("2", "A1 B1").get("1 2", "A1 B1").breaks_only(CLAIM);
    blind("on the disks in the end")
        .get("2", "A1 B1")
        .quorum(1)
        .everywhere("A1 B1", "A1 B1")
        .breaks_only(CLAIM);
    Story::of("a deletion, and no other can be meant")
        .delete(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .pending()
        .get("2", "A1 B1")
        .get("x 2", "A1 B1")
        .breaks_only(CLAIM);
}

#[test]
fn a_blind_put_alone_that_leaves_what_was_acknowledged_is_caught() {
    let blind = |title| Story::of(title).put(1).dot("A1").put(2).dot("B1");
    blind("in a get").get("1 2", "A1 B1").breaks_only(CLAIM);
    blind("in the end").everywhere("A1 B1", "A1 B1").breaks_only(CLAIM);
    Story::of("in the end, put with a context that covers it")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .disk('A', "A1", "A1")
        .disk('B', "A1", "A1")
        .disk('C', "A1", "A1")
        .breaks(CLAIM);
}

#[test]
fn what_a_context_covered_is_caught_in_later_gets() {
    replaced("and nothing else is shown").get("1", "A1 B1").breaks(CLAIM);
    replaced("beside a third, which replaced the second")
        .put(3)
        .dot("C1")
        .seeing("A1 B1")
        .get("1 3", "A1 B1 C1")
        .breaks(CLAIM);
    let unknown =
        |title| Story::of(title).put(1).dot("A1").put(2).dot("B1").seeing("A1").unknown().put(3).dot("C1");
    unknown("a blind put saw only an unknown put that had replaced it")
        .get("1 3", "A1 B1 C1")
        .breaks_only(CLAIM);
}

#[test]
fn siblings_that_nobody_had_to_replace_pass() {
    Story::of("a replica behind, told of an event by its number alone")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("A1")
        .put(3)
        .dot("B2")
        .seeing("")
        .put(4)
        .dot("C1")
        .seeing("B2")
        .unknown()
        .get("1 4", "A1 B2 C1")
        .quorum(1)
        .keeps(CLAIM);
    Story::of("the second round of a blind put that was read and replaced under way")
        .put(1)
        .dot("A1 A2")
        .at(10, 60)
        .get("1", "A1")
        .at(20, 25)
        .put(2)
        .dot("B1")
        .seeing("A1")
        .at(30, 40)
        .get("2", "A1 B1")
        .at(42, 45)
        .get("1 2", "A2 B1")
        .at(50, 55)
        .everywhere("A2 B1", "A2 B1")
        .keeps(CLAIM);
    Story::of("puts side by side")
        .put(1)
        .dot("A1")
        .at(10, 20)
        .put(2)
        .dot("B1")
        .at(15, 25)
        .get("1 2", "A1 B1")
        .everywhere("A1 B1", "A1 B1")
        .keeps(CLAIM);
    Story::of("contexts of a key not found")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("2 1", "A1 B1")
        .keeps(CLAIM);
    Story::of("2W = N")
        .put(1)
        .dot("A1")
        .quorum(1)
        .put(2)
        .dot("B1")
        .quorum(1)
        .get("1 2", "A1 B1")
        .quorum(3)
        .keeps(CLAIM);
    Story::of("a blind put, then the second execution of an earlier put")
        .put(1)
        .dot("A1")
        .again("B1")
        .seeing("")
        .put(2)
        .dot("C1")
        .get("1 2", "A1 B1 C1")
        .keeps(CLAIM);
    Story::of("a blind put that a third disturbed")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .at(30, 40)
        .put(3)
        .dot("C1")
        .seeing("B1")
        .at(35, 45)
        .get("1 3", "A1 B1 C1")
        .keeps(CLAIM);
    Story::of("the second event of a retried put, unseen by who replaced the first")
        .put(1)
        .dot("A1")
        .again("B1")
        .put(2)
        .dot("C1")
        .seeing("A1")
        .get("1 2", "A1 B1 C1")
        .everywhere("A1 B1 C1", "B1 C1")
        .keeps(CLAIM);
    Story::of("a get from one owner that is behind")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .pending()
        .get("2", "A1 B1")
        .quorum(1)
        .get("1 2", "A1 B1")
        .quorum(1)
        .keeps(CLAIM);
    replaced("a wiped owner and one that missed the second put").wipe('B').get("1", "A1").keeps(CLAIM);
    Story::of("one deletion is gone, another is shown")
        .delete(1)
        .dot("A1")
        .delete(2)
        .dot("B1")
        .seeing("A1")
        .get("x", "A1 B1")
        .get("x", "A1 B1")
        .keeps(CLAIM);
}

#[test]
fn a_given_pair_beside_a_put_is_caught_whatever_the_context() {
    let given = |title| Story::of(title).given('A', 7).given('B', 7).put(1).dot("A1");
    given("beside the put").get("1 7", "A1").breaks_only(CLAIM);
    given("beside a put nobody knows the outcome of").unknown().get("7", "A1").quorum(1).breaks(CLAIM);
    given("instead of the put").get("7", "A1").breaks(CLAIM);
    given("after damage").wipe('A').get("7 1", "A1 g7").quorum(1).breaks(CLAIM);
}

#[test]
fn a_given_pair_before_any_put_passes() {
    let given = |title| Story::of(title).given('A', 7).given('B', 8);
    given("first one, then both").get("7", "g7").quorum(1).get("7 8", "g7 g8").quorum(3).keeps(CLAIM);
    given("then a put").get("7", "g7").put(1).seeing("g7").dot("A1").get("1", "A1").keeps(CLAIM);
    given("by one who has not heard of the put").put(1).dot("A1").get("8", "g8").quorum(1).keeps(CLAIM);
}
