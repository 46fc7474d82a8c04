//! dkvs-server
fn main() {}
