use crate::story::Story;

const CLAIM: &str = "operations_end_in_time";

#[test]
fn operations_that_end_late_are_caught() {
    Story::of("a put").put(1).dot("A1").at(10, 161).deadline(110).breaks_only(CLAIM);
    Story::of("a get").get("", "").at(10, 161).deadline(110).breaks_only(CLAIM);
    Story::of("an unknown put").put(1).at(10, 161).deadline(110).unknown().breaks_only(CLAIM);
    Story::of("a failed put").put(1).at(10, 161).deadline(110).failed().breaks_only(CLAIM);
    Story::of("still under way at the end of the run")
        .put(1)
        .deadline(110)
        .pending()
        .on("other")
        .get("", "")
        .at(150, 161)
        .breaks_only(CLAIM);
    let mut story = Story::of("still under way when all was healed").put(1).deadline(110).pending();
    for _ in 0..16 {
        story = story.healed();
    }
    story.breaks(CLAIM);
}

#[test]
fn operations_that_end_in_time_pass() {
    Story::of("at the last moment").put(1).dot("A1").at(10, 160).deadline(110).keeps(CLAIM);
    Story::of("under way, and the run ended first").put(1).pending().get("", "").keeps(CLAIM);
}
