//! The cdsync command.
fn main() {}
