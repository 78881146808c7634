use cdsync_core::ledger::loss::Losses;
use cdsync_core::ledger::object::{Kind, Metadata};
use cdsync_core::ledger::xattrs::{ACL_ACCESS, ACL_DEFAULT, CAPABILITY, Xattrs};
use rustix::fs::XattrFlags;

use crate::dir::LookWants;
use crate::testing::{Place, is_root, meta, name};

/// An access list by which user 4242 may read and write besides what the mode says.
fn acl(group: u16) -> Vec<u8> {
    let entries = [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 6, 4242),
        (0x04, group, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 4, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// A capability to bind low ports, as version 2 of the kernel's form has it.
fn capability() -> Vec<u8> {
    let words = [0x0200_0001_u32, 1 << 10, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn xattrs(all: &[(&[u8], Vec<u8>)]) -> Xattrs {
    Xattrs::new(all.iter().map(|(n, v)| (n.to_vec(), v.clone()))).0
}

fn set(place: &Place, file: &str, attribute: &[u8], value: &[u8]) {
    rustix::fs::lsetxattr(place.at(file), attribute, value, XattrFlags::empty()).unwrap();
}

fn give(place: &Place, file: &str, kind: Kind, wanted: &Metadata) -> Losses {
    let top = place.root.top();
    let applied = top.set_metadata(&name(file), None, wanted, kind).unwrap();
    applied.losses
}

fn meta_of(place: &Place, file: &str) -> Metadata {
    let seen = place.root.top().look(&name(file), LookWants::ALL).unwrap();
    seen.unwrap().meta
}

/// Proves that attributes which people set are seen on files, folders and links by one look, and
/// what the server's own policy sets is not.
#[test]
fn attributes_are_seen() {
    let place = Place::new();
    place.write("f", b"x");
    std::fs::create_dir(place.at("d")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.at("l")).unwrap();
    set(&place, "f", b"user.a", b"1");
    set(&place, "f", b"user.long", &[7; 2000]);
    set(&place, "d", b"user.b", b"");
    let wanted = xattrs(&[(b"user.a", b"1".to_vec()), (b"user.long", vec![7; 2000])]);
    assert_eq!(meta_of(&place, "f").xattrs, wanted);
    assert_eq!(meta_of(&place, "d").xattrs, xattrs(&[(b"user.b", vec![])]));
    assert!(meta_of(&place, "l").xattrs.is_empty());
    if is_root("labels of a link") {
        set(&place, "l", b"trusted.t", b"link");
        let wanted = xattrs(&[(b"trusted.t", b"link".to_vec())]);
        assert_eq!(meta_of(&place, "l").xattrs, wanted);
    }
}

/// Proves that an object gets exactly the wanted attributes and access lists, with its mode, extras
/// go, and doing it again changes nothing.
#[test]
fn attributes_are_made_equal() {
    let place = Place::new();
    place.write("f", b"x");
    std::fs::create_dir(place.at("d")).unwrap();
    set(&place, "f", b"user.extra", b"goes");
    set(&place, "f", b"user.other", b"value");
    set(&place, "d", ACL_DEFAULT, &acl(7));
    let all: [(&[u8], Vec<u8>); 2] = [(ACL_ACCESS, acl(5)), (b"user.other", b"new".to_vec())];
    let wanted = Metadata {
        xattrs: xattrs(&all),
        ..meta(0o664)
    };
    assert!(give(&place, "f", Kind::File, &wanted).is_empty());
    assert_eq!(meta_of(&place, "f"), wanted);
    let before = place.look("f").unwrap();
    assert!(give(&place, "f", Kind::File, &wanted).is_empty());
    assert_eq!(place.look("f").unwrap().fingerprint, before.fingerprint);
    // The default list goes, and another one comes.
    assert!(give(&place, "d", Kind::Folder, &meta(0o750)).is_empty());
    assert_eq!(meta_of(&place, "d"), meta(0o750));
    let wanted = Metadata {
        xattrs: xattrs(&[(ACL_DEFAULT, acl(5))]),
        ..meta(0o555)
    };
    assert!(give(&place, "d", Kind::Folder, &wanted).is_empty());
    assert_eq!(meta_of(&place, "d"), wanted);
}

/// Proves that capabilities and set-id bits survive the change of owner that comes with them.
#[test]
fn capabilities_outlive_the_owner() {
    if !is_root("capabilities") {
        return;
    }
    let place = Place::new();
    place.write("f", b"x");
    let wanted = Metadata {
        uid: 1234,
        gid: 5678,
        xattrs: xattrs(&[(CAPABILITY, capability()), (b"trusted.t", b"1".to_vec())]),
        ..meta(0o6755)
    };
    assert!(give(&place, "f", Kind::File, &wanted).is_empty());
    assert_eq!(meta_of(&place, "f"), wanted);
    // Another owner still.
    let wanted = Metadata { uid: 99, ..wanted };
    assert!(give(&place, "f", Kind::File, &wanted).is_empty());
    assert_eq!(meta_of(&place, "f"), wanted);
}

/// Proves that attributes come to what may not be written, and that its mode is what it was.
#[test]
fn what_may_not_be_written_gets_attributes() {
    let place = Place::new();
    place.write("f", b"x");
    let wanted = Metadata {
        xattrs: xattrs(&[(b"user.a", b"1".to_vec())]),
        ..meta(0o000)
    };
    assert!(give(&place, "f", Kind::File, &meta(0o000)).is_empty());
    assert!(give(&place, "f", Kind::File, &wanted).is_empty());
    let found = meta_of(&place, "f");
    assert_eq!((found.mode, found.mtime), (wanted.mode, wanted.mtime));
    if is_root("reading what may not be read") {
        assert_eq!(found, wanted);
    }
}

/// Measures what the attributes cost a listing of 20,000 files that have none.
#[test]
#[ignore = "a measurement"]
fn cost_of_attributes() {
    let place = Place::new();
    for n in 0..20_000 {
        place.write(&format!("d{}/f{n}", n % 40), b"x");
    }
    let pass = |wants| {
        let start = std::time::Instant::now();
        for folder in 0..40 {
            let dir = place.dir(&format!("d{folder}"));
            let mut each = |_| std::ops::ControlFlow::Continue(());
            dir.list(512, wants, &mut each).unwrap();
        }
        start.elapsed()
    };
    pass(LookWants::ALL);
    let mut best = [std::time::Duration::MAX; 2];
    for _ in 0..7 {
        best[0] = best[0].min(pass(LookWants::HANDLE));
        best[1] = best[1].min(pass(LookWants::ALL));
    }
    println!("without {:?}, with {:?}", best[0], best[1]);
}
