//! Real servers killed at any moment, and real clients that remember what they were told.
//!
//! Three release servers work for writers until some or all of them are killed (SIGKILL), at a random moment of their
//! work or of their start. Then all are started again, the writers finish, and every key that was written since the
//! last check is read from all owners, and from one of them alone:
//!
//! - what was acknowledged is there, with exactly its value;
//! - what was deleted is not there;
//! - what was told to have failed, and what nobody has written, is not there;
//! - a write of unknown outcome is there or not, and once it was seen it stays.
//!
//! In the end all keys of the run are read once more.
//!
//! What it leaves out: power cuts. A killed process leaves its writes with the kernel, so the levels `fsync` and
//! `interval` must both lose nothing here; what `interval` loses with the power, the simulator knows. A seed repeats
//! which servers are killed and when, not what they were doing.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DKVS_CRASH_CYCLES` | how often servers are killed and checked; 0 skips the tests | 50 with `fsync`, 10 with `interval` |
//! | `DKVS_CRASH_SEED` | which are killed, and when | a new one every time |
//! | `DKVS_CRASH_SERVER` | a `dkvs-server` to use | built in release mode |

#![allow(clippy::unwrap_used)]

mod expectation;

mod load;

mod run;

use crate::run::Plan;

#[test]
fn fsync_what_was_acknowledged_survives_kills_at_any_moment() {
    run::run(&Plan { name: "fsync", settings: "durability = \"fsync\"", cycles: 50, always_all: false });
}

/// The flush interval is longer than the test: nothing that is found was on the disk for sure.
#[test]
fn interval_what_was_acknowledged_survives_kills_of_all_servers() {
    let settings = "durability = \"interval\"\nflush_interval_ms = 600000";
    run::run(&Plan { name: "interval", settings, cycles: 10, always_all: true });
}
