use crate::story::Story;

const CLAIM: &str = "owners_agree_after_healing";

fn ends(title: &'static str) -> Story {
    Story::of(title).put(1).dot("A1").seeing("").put(2).dot("B1").seeing("").healed()
}

#[test]
fn owners_that_disagree_are_caught() {
    let read = |title| ends(title).get("1 2", "A1 B1").quorum(3);
    read("one has nothing").disk('A', "A1 B1", "A1 B1").disk('B', "A1 B1", "A1 B1").breaks_only(CLAIM);
    read("one knows less").everywhere("A1 B1", "A1 B1").disk('C', "A1", "A1").breaks_only(CLAIM);
    read("one has a sibling less, and the same vector")
        .everywhere("A1 B1", "A1 B1")
        .disk('C', "A1 B1", "B1")
        .breaks(CLAIM);
    read("one knows more, and shows the same")
        .everywhere("A1 B1", "A1 B1")
        .disk('C', "A1 B1 C1", "A1 B1")
        .breaks_only(CLAIM);
    read("damage is no excuse").wipe('C').everywhere("A1 B1", "A1 B1").disk('C', "", "").breaks_only(CLAIM);
    ends("nobody read it").everywhere("A1 B1", "A1 B1").breaks_only(CLAIM);
    ends("read from two only").get("1 2", "A1 B1").everywhere("A1 B1", "A1 B1").breaks_only(CLAIM);
    ends("read with a smaller n")
        .get("1 2", "A1 B1")
        .quorum(3)
        .on("k")
        .put(3)
        .dot("C1")
        .seeing("")
        .n(5)
        .quorum(5)
        .everywhere("A1 B1 C1", "A1 B1 C1")
        .disk('D', "A1 B1 C1", "A1 B1 C1")
        .disk('E', "A1 B1 C1", "A1 B1 C1")
        .breaks_only(CLAIM);
}

#[test]
fn owners_that_agree_pass() {
    ends("read from all").get("2 1", "A1 B1").quorum(3).everywhere("A1 B1", "A1 B1").keeps(CLAIM);
    ends("read by the runner").repaired().everywhere("A1 B1", "A1 B1").keeps(CLAIM);
    ends("a server that does not own it holds an old copy")
        .repaired()
        .everywhere("A1 B1", "A1 B1")
        .disk('D', "A1", "A1")
        .keeps(CLAIM);
}
