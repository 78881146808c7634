//! Which names lie below a folder, as a sum that needs no order.

use std::ops::ControlFlow;

use cdsync_core::ledger::object::Kind;
use cdsync_core::path::{Name, RelPath};

use crate::dir::Dir;
use crate::error::{FsError, FsErrorKind};

pub use cdsync_core::path::NameSetDigest;

/// Where the walk stands: a path and the subfolders found there and not yet walked.
struct Frame {
    path: RelPath,
    folders: Vec<Name>,
}

/// Everything below `folder`, `.cdsync` too: it is no known name and keeps its folder. Holds one
/// open folder at a time, and the names of unwalked subfolders along one path.
pub(super) fn walk(folder: &Dir) -> Result<NameSetDigest, FsError> {
    let mut digest = NameSetDigest::new();
    let folders = add_folder(folder, &RelPath::root(), &mut digest)?;
    let mut stack = vec![Frame {
        path: RelPath::root(),
        folders,
    }];
    while let Some(frame) = stack.last_mut() {
        let Some(name) = frame.folders.pop() else {
            stack.pop();
            continue;
        };
        let path = frame.path.join(&name);
        match folder.open_below(&path) {
            Ok(dir) => {
                let folders = add_folder(&dir, &path, &mut digest)?;
                stack.push(Frame { path, folders });
            }
            // It vanished since; what was mounted over it is counted by its name alone.
            Err(e)
                if matches!(
                    e.kind(),
                    FsErrorKind::NotFound | FsErrorKind::OtherFilesystem
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(digest)
}

fn add_folder(dir: &Dir, path: &RelPath, digest: &mut NameSetDigest) -> Result<Vec<Name>, FsError> {
    let mut folders = Vec::new();
    let mut failed = None;
    dir.list_names(&mut |name, told| {
        digest.add(path.join(&name).as_bytes());
        match dir.kind_of(&name, told) {
            Ok(Some(Kind::Folder)) if !name.is_reserved() => folders.push(name),
            Ok(_) => {}
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(folders), Err)
}
