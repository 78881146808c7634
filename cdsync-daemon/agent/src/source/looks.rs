//! Looks at the source's disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use cdsync_core::coalescer::{
    FolderKey, Found, ListRequest, LookError, LookRequest, Looked, NameSeen, Whereabouts,
};
use cdsync_core::ledger::access::FolderAt;
use cdsync_fs::{DirRef, Finder, FsError, FsErrorKind, LookWants, Root};

use super::Input;
use super::room::Room;
use crate::mailbox::{Gone, Mailbox};
use crate::owners::OwnerNames;

/// How many entries of a listing go to the engine at once.
const LIST_CHUNK: usize = 512;

pub(crate) fn dir_ref(folder: &FolderAt) -> DirRef {
    DirRef {
        id: folder.id,
        path: folder.path.clone(),
        identity: folder.identity,
    }
}

/// Looks at every name of the requests, folder by folder.
pub(super) fn look(root: &Root, owners: &OwnerNames, requests: Vec<LookRequest>) -> Vec<Looked> {
    requests
        .into_iter()
        .map(|request| look_folder(root, owners, request))
        .collect()
}

fn look_folder(root: &Root, owners: &OwnerNames, request: LookRequest) -> Looked {
    let mut looked = look_at_names(root, request);
    let names = looked
        .names
        .iter_mut()
        .filter_map(|(_, seen)| seen.as_mut().ok());
    for seen in names.flatten().chain(looked.itself.as_mut().ok()) {
        owners.name(&mut seen.meta);
    }
    looked
}

fn look_at_names(root: &Root, request: LookRequest) -> Looked {
    let folder = request.folder.id;
    let dir = match root.dir(&dir_ref(&request.folder)) {
        Ok(dir) => dir,
        Err(error) => {
            let names = request
                .names
                .into_iter()
                .map(|name| (name, Ok(None)))
                .collect();
            return Looked {
                folder,
                itself: Err(folder_error(&error)),
                names,
            };
        }
    };
    let names = request
        .names
        .into_iter()
        .map(|name| {
            let seen: NameSeen = dir.look(&name, LookWants::ALL).map_err(|e| name_error(&e));
            (name, seen)
        })
        .collect();
    let itself = dir.self_look().map_err(|e| folder_error(&e));
    Looked {
        folder,
        itself,
        names,
    }
}

/// Finds out where objects are that hints named without a name that is there.
pub(super) fn find(root: &Root, strays: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Found)> {
    let finder = Finder::open(root);
    let find = |object: &[u8]| match finder.as_ref().map(|finder| finder.find(object)) {
        Ok(Ok(Some(found))) => Found::At(Whereabouts {
            identity: found.identity,
            name: found
                .name
                .map(|(folder, name)| (FolderKey::Handle(folder), name)),
            several: found.several,
        }),
        Ok(Ok(None)) => Found::Gone,
        Ok(Err(error)) if passes(&error) => Found::Failed,
        Err(error) if passes(error) => Found::Failed,
        // What must not or cannot be found is left to the safety scan.
        Ok(Err(_)) | Err(_) => Found::Gone,
    };
    let found = strays.into_iter().map(|object| {
        let found = find(&object);
        (object, found)
    });
    found.collect()
}

/// Whether it is worth while to try again.
fn passes(error: &FsError) -> bool {
    error.kind() == FsErrorKind::TooManyOpen
}

/// Lists folders for the engine until it is gone: the body of the scanner thread.
pub(super) fn scan(
    root: &Root,
    owners: &OwnerNames,
    requests: &std::sync::mpsc::Receiver<Vec<ListRequest>>,
    engine: &Mailbox<Input>,
) {
    let room = Room::new();
    while let Ok(requests) = requests.recv() {
        for request in requests {
            if list(root, owners, &request.folder, &room, engine).is_err() {
                return;
            }
        }
    }
}

fn list(
    root: &Root,
    owners: &OwnerNames,
    folder: &FolderAt,
    room: &Arc<Room>,
    engine: &Mailbox<Input>,
) -> Result<(), Gone> {
    let id = folder.id;
    let mut gone = false;
    // The part that may be the last one: it goes with the end.
    let mut last = Vec::new();
    let listed = root.dir(&dir_ref(folder)).and_then(|dir| {
        dir.list(LIST_CHUNK, LookWants::ALL, &mut |piece| {
            let piece = piece.into_iter().map(|(name, mut seen)| {
                if let Ok(seen) = &mut seen {
                    owners.name(&mut seen.meta);
                }
                (name, seen.map_err(|e| name_error(&e)))
            });
            let entries = std::mem::replace(&mut last, piece.collect());
            let folder = id;
            if !entries.is_empty() {
                let room = room.take(entries.len());
                let part = Input::Listed {
                    folder,
                    entries,
                    _room: room,
                };
                gone = engine.send(part).is_err();
            }
            if gone {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        dir.self_look()
    });
    if gone {
        return Err(Gone);
    }
    let mut itself = listed.map_err(|e| folder_error(&e));
    if let Ok(seen) = &mut itself {
        owners.name(&mut seen.meta);
    }
    engine.send(Input::ListEnd {
        folder: id,
        _room: room.take(last.len()),
        entries: last,
        itself,
    })
}

fn folder_error(error: &FsError) -> LookError {
    match error.kind() {
        FsErrorKind::NotFound | FsErrorKind::Moved | FsErrorKind::Link | FsErrorKind::NotFolder => {
            LookError::Moved
        }
        FsErrorKind::OtherFilesystem => LookError::OtherFilesystem,
        _ => LookError::Failed(error.to_string()),
    }
}

fn name_error(error: &FsError) -> LookError {
    match error.kind() {
        FsErrorKind::OtherFilesystem => LookError::OtherFilesystem,
        _ => LookError::Failed(error.to_string()),
    }
}
