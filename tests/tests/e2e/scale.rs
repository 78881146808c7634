//! Many files, the short form; `make million` has the long one.

use cdsync_tests::{Scale, Shape};

/// Proves that ten thousand files of each shape arrive, are equal also after a restart, and that
/// the agents stay within their bound of memory.
#[test]
fn ten_thousand_files_of_each_shape() {
    for shape in [
        Shape::Folders,
        Shape::OneFolder,
        Shape::Identical,
        Shape::Empty,
    ] {
        let files = 10_000;
        eprintln!("{shape:?}: {:?}", Scale { files, shape }.run());
    }
}
