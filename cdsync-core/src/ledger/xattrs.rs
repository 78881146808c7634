//! Extended attributes, POSIX access lists among them.

use serde::{Deserialize, Serialize};

/// The most bytes that the names and values of one object's attributes have together.
pub const XATTRS_MAX_BYTES: usize = 64 * 1024;

/// The most attributes of one object that are taken.
const XATTRS_MAX: usize = 1024;

/// The longest name of an attribute, in bytes: the kernel's own bound.
pub const XATTR_NAME_MAX_BYTES: usize = 255;

/// The access list of an object.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The access list that what is made in a folder begins with.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// What a program may do whoever runs it.
pub const CAPABILITY: &[u8] = b"security.capability";

/// Whether an attribute is kept identical: what people and programs set. Labels of a security
/// policy belong to the server, not to the tree.
#[must_use]
pub fn is_carried(name: &[u8]) -> bool {
    let plain = |prefix: &[u8]| name.starts_with(prefix) && name.len() > prefix.len();
    name.len() <= XATTR_NAME_MAX_BYTES
        && !name.contains(&0)
        && (plain(b"user.")
            || plain(b"trusted.")
            || [ACL_ACCESS, ACL_DEFAULT, CAPABILITY].contains(&name))
}

/// The attributes of one object that are kept identical, in the order of their names, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Xattrs(
    #[serde(deserialize_with = "crate::bounds::list::<_, _, XATTRS_MAX>")] Vec<(Vec<u8>, Vec<u8>)>,
);

impl Xattrs {
    /// None. Costs nothing.
    pub const NONE: Self = Self(Vec::new());

    /// Those of `all` that are carried. Also whether some had to be left out, because all together
    /// are beyond [`XATTRS_MAX_BYTES`]: the last by their names.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> (Self, bool) {
        let mut kept: Vec<_> = all.into_iter().filter(|(n, _)| is_carried(n)).collect();
        kept.sort_unstable();
        kept.dedup_by(|a, b| a.0 == b.0);
        let before = kept.len();
        let mut bytes = 0;
        kept.retain(|(name, value)| {
            bytes += name.len() + value.len();
            bytes <= XATTRS_MAX_BYTES
        });
        kept.truncate(XATTRS_MAX);
        let left_out = kept.len() < before;
        (Self(kept), left_out)
    }

    /// As a hostile peer could send them.
    #[cfg(test)]
    pub(crate) const fn unchecked(all: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self(all)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// The value of one.
    #[must_use]
    pub fn value(&self, name: &[u8]) -> Option<&[u8]> {
        let at = self.0.binary_search_by(|(n, _)| n[..].cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// These but for one.
    #[must_use]
    pub fn without(&self, name: &[u8]) -> Self {
        let others = self.0.iter().filter(|(n, _)| n != name);
        Self(others.cloned().collect())
    }

    /// How many bytes names and values have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(n, v)| n.len() + v.len()).sum()
    }

    /// Whether these can be somebody's: what a hostile peer could send ends here.
    #[must_use]
    pub fn fit(&self) -> bool {
        self.bytes() <= XATTRS_MAX_BYTES
            && self.0.iter().all(|(name, _)| is_carried(name))
            && self.0.is_sorted_by(|a, b| a.0 < b.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, bytes: usize) -> (Vec<u8>, Vec<u8>) {
        (name.as_bytes().to_vec(), vec![7; bytes])
    }

    /// Proves that labels of the server's own policy are not carried, and that order does not
    /// matter.
    #[test]
    fn only_what_people_set_is_carried() {
        let all = [
            pair("user.b", 1),
            pair("security.selinux", 5),
            pair("system.posix_acl_access", 4),
            pair("user.", 1),
            pair("user.a", 1),
            pair("btrfs.compression", 3),
        ];
        let (kept, left_out) = Xattrs::new(all);
        let names: Vec<_> = kept.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [ACL_ACCESS, b"user.a", b"user.b"]);
        assert!(!left_out && kept.fit());
        assert_eq!(kept.value(b"user.b"), Some(&[7][..]));
        assert_eq!(kept.value(b"user.c"), None);
    }

    /// Proves that attributes beyond the bound are left out and said to be.
    #[test]
    fn the_bound_holds() {
        let (kept, left_out) = Xattrs::new([pair("user.a", 60_000), pair("user.b", 60_000)]);
        assert!(left_out && kept.fit());
        assert_eq!(kept.iter().count(), 1);
        assert!(!Xattrs(vec![pair("user.a", 70_000)]).fit());
        assert!(!Xattrs(vec![pair("user.b", 1), pair("user.a", 1)]).fit());
        assert!(!Xattrs(vec![pair("security.selinux", 1)]).fit());
    }
}
