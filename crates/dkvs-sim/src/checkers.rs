//! Checkers: they decide whether a history could be right.
//!
//! A checker is plain reasoning about a finished run; it knows nothing of servers. [`evidence`] puts together what the
//! history proves about each key. The others answer one question each: could some order of a register's operations
//! explain what was read ([`linearizability`]); do the siblings fit the contexts ([`causality`]); do the disks agree
//! ([`convergence`]); what may clocks have shown ([`clocks`]); what would be seen had nothing been forgotten ([`memory`]). What is promised, and so what is a violation, the [`invariants`](crate::invariants) say.
//!
//! # Time
//! *A precedes B* when A returned at an earlier time than B was called, or when both are one client's and B was called
//! next. Of two clients' events in one microsecond no order is assumed.

pub mod evidence;

pub mod causality;
pub mod clocks;
pub mod convergence;
pub mod linearizability;
pub mod memory;
