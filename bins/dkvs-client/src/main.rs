//! dkvs-client
fn main() {}
