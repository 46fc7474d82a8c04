use crate::story::Story;

const CLAIM: &str = "contexts_cover_what_was_seen";

#[test]
fn a_get_whose_context_does_not_cover_what_it_shows_is_caught() {
    Story::of("an empty context").put(1).dot("A1").get("1", "").breaks(CLAIM);
    Story::of("one of two siblings")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("1 2", "A1")
        .breaks(CLAIM);
    Story::of("an older event").put(1).dot("A1").put(2).dot("A2").pending().get("2", "A1").breaks(CLAIM);
}

#[test]
fn a_put_whose_context_covers_what_its_client_had_not_seen_is_caught() {
    let beside = |title| Story::of(title).put(1).dot("A1").seeing("").put(2).dot("A2").seeing("");
    beside("the coordinator's own event before it").returning("A2").get("1 2", "A2").breaks_only(CLAIM);
    beside("all that the coordinator held").returning("A1 A2 B1").get("1 2", "A2 B1").breaks_only(CLAIM);
    Story::of("another coordinator's event")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("B1")
        .seeing("")
        .returning("A1 B1")
        .get("1 2", "A1 B1")
        .breaks_only(CLAIM);
    Story::of("a deletion")
        .delete(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("B1")
        .seeing("")
        .returning("A1 B1")
        .get("x 2", "A1 B1")
        .breaks_only(CLAIM);
}

#[test]
fn contexts_that_cover_what_was_seen_pass() {
    Story::of("its own put, named").put(1).dot("A1").get("1", "A1").keeps(CLAIM);
    Story::of("its own put, which cannot be named without another")
        .put(1)
        .dot("A1")
        .seeing("")
        .put(2)
        .dot("A2")
        .seeing("")
        .returning("")
        .get("1 2", "A2")
        .keeps(CLAIM);
    Story::of("what it replaced blindly")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .returning("A1 B1")
        .get("2", "A1 B1")
        .keeps(CLAIM);
    Story::of("what others wrote later")
        .put(1)
        .dot("A1")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("1 2", "A1 B1")
        .keeps(CLAIM);
    Story::of("what may be of a retry not seen")
        .put(1)
        .dot("A1")
        .again("B1")
        .put(2)
        .dot("C1")
        .seeing("A1")
        .returning("A1 C1")
        .get("1 2", "A1 B1 C1")
        .keeps(CLAIM);
}
