use crate::story::Story;

const CLAIM: &str = "sloppy_answers_are_what_they_say";

/// A write that asks for two of three, with its event at A.
fn written(title: &'static str) -> Story {
    Story::of(title).put(1).dot("A1").sloppy()
}

#[test]
fn answers_that_do_not_add_up_are_caught() {
    let get = |title| Story::of(title).get("", "");
    get("strict, with a stand-in").counted("A", "DB").breaks_only(CLAIM);
    get("too few").counted("A", "").breaks_only(CLAIM);
    get("too few together").sloppy().counted("", "DB").breaks_only(CLAIM);
    get("an owner twice").counted("AA", "").breaks_only(CLAIM);
    get("a stand-in counted as an owner").sloppy().counted("AD", "").breaks_only(CLAIM);
    get("an owner stands in").sloppy().counted("A", "CB").breaks_only(CLAIM);
    get("a slot twice, by its owner").sloppy().counted("AB", "DB").breaks_only(CLAIM);
    get("a slot twice, by others").sloppy().counted("", "DB EB").breaks_only(CLAIM);
    get("a server in two slots").sloppy().counted("", "DA DB").breaks_only(CLAIM);
    get("for nobody").sloppy().counted("A", "DE").breaks_only(CLAIM);
}

#[test]
fn one_that_counted_and_had_not_written_it_is_caught() {
    written("no hint").counted("A", "DB").stored('A', None, "A1").breaks_only(CLAIM);
    let at_a = |title| written(title).counted("A", "DB").stored('A', None, "A1");
    at_a("a hint of something else").stored('D', Some('B'), "B1").breaks_only(CLAIM);
    at_a("a hint for another").stored('D', Some('C'), "A1").breaks_only(CLAIM);
    at_a("a record of its own").stored('D', None, "A1").breaks_only(CLAIM);
    at_a("too late").at(10, 15).stored_at(16, 'D', Some('B'), "A1").breaks_only(CLAIM);
    let no_owner = written("an owner has not").counted("AB", "").stored('A', None, "A1");
    no_owner.stored('B', Some('A'), "A1").breaks_only(CLAIM);
    Story::of("nor in a strict answer")
        .put(1)
        .dot("A1")
        .counted("AB", "")
        .stored('A', None, "A1")
        .breaks_only(CLAIM);
}

/// B is stood in for by D.
fn stood_in(title: &'static str) -> Story {
    written(title).counted("A", "DB").stored('A', None, "A1").stored('D', Some('B'), "A1").at(100, 105)
}

fn lost(story: Story) -> Story {
    story.quiet('A', "A1").quiet('B', "").quiet('C', "A1")
}

#[test]
fn a_hint_that_counted_and_did_not_come_home_is_caught_whatever_its_coordinator_may_have_lost() {
    lost(stood_in("dropped over the budget").marked('D', 'B').marked('A', 'B')).breaks_only(CLAIM);
    lost(stood_in("its coordinator ended").ended('A', 100, 200)).breaks_only(CLAIM);
    lost(stood_in("its holder ended").ended('A', 100, 200).ended('D', 100, 200)).breaks_only(CLAIM);
    lost(stood_in("another was wiped").ended('A', 100, 200).wipe('C')).breaks_only(CLAIM);
}

#[test]
fn what_adds_up_and_came_home_or_was_damaged_passes() {
    stood_in("it came home").quiet('A', "A1").quiet('B', "A1").quiet('C', "A1").keeps(CLAIM);
    Story::of("strict").get("", "").counted("AB", "").keeps(CLAIM);
    Story::of("stand-ins alone").get("", "").sloppy().counted("", "DA EC").keeps(CLAIM);
    Story::of("more than asked for").get("", "").sloppy().counted("ABC", "").keeps(CLAIM);
    lost(stood_in("its holder was wiped").ended('A', 100, 200).wipe('D')).keeps(CLAIM);
    lost(stood_in("the owner was wiped").ended('A', 100, 200).wipe('B')).keeps(CLAIM);
    let flipped = written("put aside, and not recorded").flip('A', "k").at(200, 205);
    flipped.counted("AB", "").stored('B', None, "A1").keeps(CLAIM);
}
