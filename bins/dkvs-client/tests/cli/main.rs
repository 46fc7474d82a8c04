//! The real client binary against servers in this process, in memory, on ports that the system chose.
//!
//! Every test has a cluster and a directory of its own. Nothing sleeps; deadlines are long, except where a test waits
//! for a server that must not answer.

mod cluster;

mod operations;

mod endings;

mod inspection;
