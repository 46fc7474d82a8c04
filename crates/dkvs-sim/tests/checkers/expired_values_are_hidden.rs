use crate::story::{BYTES_KEPT_MS, Story};

const CLAIM: &str = "expired_values_are_hidden";
const READABLE: &str = "acknowledged_writes_are_readable";
const REPLACED: &str = "replaced_values_never_return";
const REGISTER: &str = "single_writers_are_linearizable";
const HOUR: i64 = 3_600_000;

/// Put at 10 ms for 100 ms, and acknowledged by 15 ms.
fn put_for_100_ms(title: &'static str) -> Story {
    Story::of(title).put(1).ttl(100).dot("A1").expiring("A1", 112)
}

#[test]
fn what_is_shown_after_its_time_by_every_clock_is_caught() {
    put_for_100_ms("later").get("1", "A1").at(200, 205).breaks_only(CLAIM);
    put_for_100_ms("beside another")
        .put(2)
        .dot("B1")
        .seeing("")
        .get("2 1", "A1 B1")
        .at(200, 205)
        .breaks_only(CLAIM);
    put_for_100_ms("clocks that are only ahead")
        .clock('B', 0, HOUR)
        .get("1", "A1")
        .at(200, 205)
        .breaks(CLAIM);
    put_for_100_ms("two executions, both over")
        .again("B1")
        .expiring("B1", 130)
        .get("1", "A1 B1")
        .at(200, 205)
        .breaks_only(CLAIM);
}

#[test]
fn what_is_shown_before_its_time_or_by_a_clock_that_is_behind_is_in_order() {
    put_for_100_ms("in time").get("1", "A1").at(80, 85).keeps(CLAIM);
    put_for_100_ms("while its time comes").get("1", "A1").at(80, 205).keeps(CLAIM);
    put_for_100_ms("a clock behind").clock('B', 0, -HOUR).get("1", "A1").at(200, 205).keeps(CLAIM);
    put_for_100_ms("a second execution, later")
        .again("B1")
        .expiring("B1", 1_000)
        .get("1", "A1 B1")
        .at(200, 205)
        .keeps(CLAIM);
    Story::of("another put without a time")
        .put(1)
        .dot("A1")
        .lasting("A1")
        .put(2)
        .ttl(100)
        .dot("B1")
        .seeing("")
        .expiring("B1", 122)
        .get("1", "A1 B1")
        .at(300, 305)
        .keeps(CLAIM);
}

#[test]
fn what_is_hidden_before_its_time_by_every_clock_is_caught() {
    put_for_100_ms("at once").get("", "A1").at(30, 35).breaks(READABLE);
    put_for_100_ms("a clock that is ahead only later")
        .get("", "A1")
        .at(30, 35)
        .clock('B', 1_000, HOUR)
        .breaks(READABLE);
    put_for_100_ms("a clock that was ahead, but by too little to drop bytes")
        .clock('B', 0, i64::try_from(BYTES_KEPT_MS).unwrap())
        .clock('B', 5, 0)
        .get("", "A1")
        .at(50, 55)
        .breaks(READABLE);
    Story::of("one without a time")
        .put(1)
        .dot("A1")
        .lasting("A1")
        .get("", "A1")
        .at(9_000, 9_005)
        .breaks(READABLE);
}

#[test]
fn what_is_hidden_after_its_time_by_some_clock_is_in_order_and_may_be_shown_again() {
    put_for_100_ms("later").get("", "A1").at(200, 205).keeps(READABLE);
    put_for_100_ms("a clock ahead").clock('B', 0, HOUR).get("", "A1").at(30, 35).keeps(READABLE);
    put_for_100_ms("a clock that was ahead, and bytes that are gone")
        .clock('B', 0, HOUR)
        .clock('B', 25, 0)
        .get("", "A1")
        .at(60, 65)
        .keeps(READABLE);
    for claim in [REPLACED, REGISTER] {
        put_for_100_ms("hidden by one server, shown by another")
            .clock('B', 0, HOUR)
            .get("", "A1")
            .at(30, 35)
            .get("1", "A1")
            .at(50, 55)
            .everywhere("A1", "A1")
            .keeps(claim);
    }
    put_for_100_ms("not heard of").get("", "").at(200, 205).breaks(READABLE);
}

#[test]
fn what_an_expired_value_had_replaced_is_caught_when_it_shows() {
    let put_over = |title| {
        Story::of(title)
            .put(1)
            .dot("A1")
            .lasting("A1")
            .put(2)
            .ttl(100)
            .dot("A2")
            .seeing("A1")
            .expiring("A2", 122)
    };
    put_over("in time").get("2", "A1 A2").at(50, 55).keeps(CLAIM);
    put_over("hidden").get("", "A1 A2").at(300, 305).keeps(READABLE);
    put_over("the one before").get("1", "A1 A2").at(300, 305).breaks(REPLACED);
    put_over("the one before, by one who missed the other").get("1", "A1").at(300, 305).breaks(READABLE);
}

#[test]
fn an_event_with_two_times_or_another_than_was_asked_for_is_caught() {
    put_for_100_ms("two times").expiring("A1", 113).breaks_only(CLAIM);
    put_for_100_ms("once without").lasting("A1").breaks_only(CLAIM);
    Story::of("not asked for").put(1).dot("A1").expiring("A1", 112).breaks_only(CLAIM);
    Story::of("forgotten").put(1).ttl(100).dot("A1").lasting("A1").breaks_only(CLAIM);
    Story::of("too short").put(1).ttl(100).dot("A1").expiring("A1", 50).breaks_only(CLAIM);
    // The deadline is at 1,010 ms.
    Story::of("too long").put(1).ttl(100).dot("A1").expiring("A1", 1_200).breaks_only(CLAIM);
    Story::of("a clock ahead")
        .put(1)
        .ttl(100)
        .dot("A1")
        .clock('C', 0, HOUR)
        .expiring("A1", 3_600_112)
        .keeps(CLAIM);
}
