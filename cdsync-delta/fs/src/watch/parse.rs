//! What fanotify reports, taken apart: bytes in, hints out. Trusts no length.
#![expect(
    clippy::host_endian_bytes,
    reason = "the kernel writes its own byte order"
)]

use cdsync_core::path::Name;

use super::{FolderRef, Hint, HintFlags};

/// Length of `struct fanotify_event_metadata`, version 3.
pub(super) const METADATA_BYTES: usize = 24;
const METADATA_VERSION: u8 = 3;
/// Type, padding and length of an information record, then the filesystem id.
const INFO_BYTES: usize = 4 + 8;

/// What one buffer held besides its hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Parsed {
    /// How many events, the merged and the unknown ones too.
    pub(crate) events: u64,
    /// The queue overflowed.
    pub(super) overflow: bool,
    /// Something is not as documented; the rest of the buffer was skipped.
    pub(super) malformed: bool,
}

/// Appends the hints in `buffer`, as one `read` gave it, to `hints`.
pub(crate) fn parse(buffer: &[u8], hints: &mut Vec<Hint>) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = buffer;
    while !rest.is_empty() {
        let Some((event, after)) = split_event(rest) else {
            parsed.malformed = true;
            break;
        };
        rest = after;
        parsed.events += 1;
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            parsed.overflow = true;
            continue;
        }
        match hint_of(&event) {
            Ok(Some(hint)) => push(hints, hint),
            // Of a kind that was not asked for.
            Ok(None) => {}
            Err(Malformed) => parsed.malformed = true,
        }
    }
    parsed
}

/// Joins a hint to the last one when they speak of the same name: a file that is created, written
/// and closed by one process gives three events in a row.
fn push(hints: &mut Vec<Hint>, hint: Hint) {
    if let Some(last) = hints.last_mut()
        && last.renamed_to.is_none()
        && hint.renamed_to.is_none()
        && last.name == hint.name
        && last.pid == hint.pid
        && last.folder == hint.folder
        && are_of_one(last.object.as_ref(), hint.object.as_ref())
    {
        last.what.merge(hint.what);
        last.object = last.object.take().or(hint.object);
        return;
    }
    hints.push(hint);
}

/// Whether two hints of one name may speak of one object.
fn are_of_one(a: Option<&Vec<u8>>, b: Option<&Vec<u8>>) -> bool {
    a.is_none() || b.is_none() || a == b
}

struct Event<'a> {
    mask: u64,
    pid: i32,
    info: &'a [u8],
}

struct Malformed;

fn split_event(buffer: &[u8]) -> Option<(Event<'_>, &[u8])> {
    let event_len = u32_at(buffer, 0)? as usize;
    let version = *buffer.get(4)?;
    let metadata_len = u16_at(buffer, 6)? as usize;
    let event = buffer.get(..event_len)?;
    if version != METADATA_VERSION || metadata_len < METADATA_BYTES {
        return None;
    }
    let mask = u64::from_ne_bytes(*event.get(8..16)?.first_chunk()?);
    let pid = u32_at(event, 20)? as i32;
    let info = event.get(metadata_len..)?;
    Some((Event { mask, pid, info }, &buffer[event_len..]))
}

fn hint_of(event: &Event<'_>) -> Result<Option<Hint>, Malformed> {
    let mut at = None;
    let mut old = None;
    let mut new = None;
    let mut object = None;
    let mut rest = event.info;
    while !rest.is_empty() {
        let kind = rest[0];
        let length = u16_at(rest, 2).ok_or(Malformed)? as usize;
        if length < 4 {
            return Err(Malformed);
        }
        let record = rest.get(..length).ok_or(Malformed)?;
        rest = &rest[length..];
        match kind {
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID => {
                at = Some(named(record)?);
            }
            libc::FAN_EVENT_INFO_TYPE_FID => object = Some(named(record)?.0),
            libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => old = Some(named(record)?),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => new = Some(named(record)?),
            _ => {}
        }
    }
    let mut what = flags_of(event.mask);
    let object = match object {
        Some(FolderRef::Handle(handle)) if !what.is_folder => Some(handle),
        _ => None,
    };
    let ((folder, name), renamed_to) = match (at, old, new) {
        (Some(at), _, _) => (at, None),
        (None, Some(old), Some((folder, Some(name)))) => (old, Some((folder, name))),
        // Only one end is on this filesystem's mark.
        (None, Some(old), _) => {
            what.removed = true;
            (old, None)
        }
        (None, None, Some(new)) => {
            what.created = true;
            (new, None)
        }
        // It got or lost a name, or somebody works on it who did not come by a name.
        (None, None, None) if object.is_some() => ((FolderRef::Nowhere, None), None),
        (None, None, None) => return Ok(None),
    };
    Ok(Some(Hint {
        folder,
        name,
        what,
        pid: event.pid,
        renamed_to,
        object,
    }))
}

/// Folder and name of a record; no name when it is `.`, the folder itself.
fn named(record: &[u8]) -> Result<(FolderRef, Option<Name>), Malformed> {
    // struct file_handle: length, type, bytes; then the name with its NUL, and padding.
    let handle_len = u32_at(record, INFO_BYTES).ok_or(Malformed)? as usize;
    let handle_type = record
        .get(INFO_BYTES + 4..INFO_BYTES + 8)
        .ok_or(Malformed)?;
    let handle_start = INFO_BYTES + 8;
    let handle_end = handle_start.checked_add(handle_len).ok_or(Malformed)?;
    let handle = record.get(handle_start..handle_end).ok_or(Malformed)?;
    let kind = i32::from_ne_bytes(*handle_type.first_chunk().ok_or(Malformed)?);
    let mut bytes = Vec::with_capacity(4 + handle.len());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(handle);
    let text = &record[handle_end..];
    let name = match text
        .iter()
        .position(|&b| b == 0)
        .map_or(text, |end| &text[..end])
    {
        b"" | b"." => None,
        name => Some(Name::new(name).map_err(|_| Malformed)?),
    };
    Ok((FolderRef::Handle(bytes), name))
}

fn flags_of(mask: u64) -> HintFlags {
    let has = |bit: u64| mask & bit != 0;
    HintFlags {
        created: has(libc::FAN_CREATE) || has(libc::FAN_MOVED_TO),
        written: has(libc::FAN_MODIFY),
        closed: has(libc::FAN_CLOSE_WRITE),
        removed: has(libc::FAN_DELETE) || has(libc::FAN_MOVED_FROM),
        attributes: has(libc::FAN_ATTRIB),
        is_folder: has(libc::FAN_ONDIR),
    }
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel writes its own byte order"
)]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel writes its own byte order"
)]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::host_endian_bytes,
        reason = "the kernel writes its own byte order"
    )]

    use proptest::prelude::*;

    use super::*;

    fn event(mask: u64, pid: i32, info: &[u8]) -> Vec<u8> {
        let length = (METADATA_BYTES + info.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([METADATA_VERSION, 0]);
        bytes.extend((METADATA_BYTES as u16).to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(info);
        bytes
    }

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let length = (INFO_BYTES + 8 + handle.len() + name.len() + 1).next_multiple_of(4);
        let mut bytes = vec![kind, 0];
        bytes.extend((length as u16).to_ne_bytes());
        bytes.extend([7; 8]);
        bytes.extend((handle.len() as u32).to_ne_bytes());
        bytes.extend(1i32.to_ne_bytes());
        bytes.extend(handle);
        bytes.extend(name);
        bytes.resize(length, 0);
        bytes
    }

    fn handle(bytes: &[u8]) -> FolderRef {
        FolderRef::Handle([&1i32.to_le_bytes()[..], bytes].concat())
    }

    /// Proves that an overflow, which names nothing, is told and hides no other event.
    #[test]
    fn overflow_is_told() {
        let mut bytes = event(libc::FAN_Q_OVERFLOW, 0, &[]);
        bytes.extend(event(libc::FAN_CREATE, 4, &record(2, b"dir", b"x")));
        let mut hints = Vec::new();
        let parsed = parse(&bytes, &mut hints);
        assert_eq!(
            parsed,
            Parsed {
                events: 2,
                overflow: true,
                malformed: false
            }
        );
        assert_eq!(hints.len(), 1);
    }

    /// Proves that a rename gives one hint with both ends, also with a further record of an unknown
    /// type, and that the folder itself has no name.
    #[test]
    fn renames_and_folders_themselves() {
        let mut info = record(10, b"from", b"a");
        info.extend(record(12, b"to", b"b"));
        info.extend(record(99, b"??", b"?"));
        let mut bytes = event(libc::FAN_RENAME | libc::FAN_ONDIR, 9, &info);
        bytes.extend(event(
            libc::FAN_ATTRIB | libc::FAN_ONDIR,
            9,
            &record(2, b"dir", b"."),
        ));
        let mut hints = Vec::new();
        assert!(!parse(&bytes, &mut hints).malformed);
        assert_eq!(hints[0].folder, handle(b"from"));
        assert_eq!(hints[0].name, Some(Name::new(b"a").unwrap()));
        assert_eq!(
            hints[0].renamed_to,
            Some((handle(b"to"), Name::new(b"b").unwrap()))
        );
        assert!(hints[0].what.is_folder && !hints[0].what.removed);
        assert_eq!(
            (hints[1].name.clone(), hints[1].what.attributes),
            (None, true)
        );
    }

    /// Proves that what one process does to one name in a row becomes one hint.
    #[test]
    fn neighbours_are_joined() {
        let of = |mask, pid| event(mask, pid, &record(2, b"dir", b"x"));
        let bytes = [
            of(libc::FAN_CREATE, 1),
            of(libc::FAN_MODIFY, 1),
            of(libc::FAN_CLOSE_WRITE, 2),
        ];
        let mut hints = Vec::new();
        assert_eq!(parse(&bytes.concat(), &mut hints).events, 3);
        assert_eq!(hints.len(), 2);
        assert!(hints[0].what.created && hints[0].what.written && !hints[0].what.closed);
    }

    /// Proves that a change tells which object it happened to, that of a folder does not, and that
    /// one without any name is a hint too; and that what happened to another object behind the same
    /// name stays a hint of its own.
    #[test]
    fn objects_are_told() {
        let of = |mask, object: &[u8]| {
            let mut info = record(2, b"dir", b"x");
            info.extend(record(1, object, b""));
            event(mask, 1, &info)
        };
        let mut bytes = of(libc::FAN_MODIFY, b"one");
        bytes.extend(event(libc::FAN_CREATE, 1, &record(2, b"dir", b"x")));
        bytes.extend(of(libc::FAN_ATTRIB, b"two"));
        bytes.extend(of(libc::FAN_ATTRIB | libc::FAN_ONDIR, b"folder"));
        bytes.extend(event(libc::FAN_ATTRIB, 1, &record(1, b"three", b"")));
        let mut hints = Vec::new();
        assert!(!parse(&bytes, &mut hints).malformed);
        let told: Vec<_> = hints.iter().map(|hint| hint.object.clone()).collect();
        let own = |bytes: &[u8]| Some([&1i32.to_le_bytes()[..], bytes].concat());
        assert_eq!(told, [own(b"one"), own(b"two"), own(b"three")]);
        assert!(hints[0].what.created && hints[1].what.is_folder);
        assert_eq!(
            (&hints[2].folder, &hints[2].name),
            (&FolderRef::Nowhere, &None)
        );
    }

    /// Proves that every cut of a good buffer is refused without a panic.
    #[test]
    fn cut_buffers_are_malformed() {
        let bytes = event(libc::FAN_CREATE, 1, &record(2, b"dir", b"name"));
        for length in 1..bytes.len() {
            let mut hints = Vec::new();
            assert!(parse(&bytes[..length], &mut hints).malformed, "{length}");
            assert!(hints.is_empty());
        }
    }

    proptest! {
        /// Proves that no bytes make the parser panic or run on.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            parse(&bytes, &mut Vec::new());
        }

        /// Proves the same for good events with some bytes spoilt, at any alignment.
        #[test]
        fn spoilt_events_are_survived(
            at in 0usize..200, with: u8, shift in 0usize..8, name in "[a-z]{1,40}",
        ) {
            let mut info = record(10, b"handle", name.as_bytes());
            info.extend(record(12, b"h", name.as_bytes()));
            let mut bytes = vec![0; shift];
            bytes.extend(event(libc::FAN_RENAME, 3, &info));
            bytes.extend(event(libc::FAN_MODIFY, 3, &record(2, b"dir", name.as_bytes())));
            let at = shift + at % (bytes.len() - shift);
            bytes[at] = with;
            parse(&bytes[shift..], &mut Vec::new());
        }
    }
}
