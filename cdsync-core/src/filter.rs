//! Which paths a job carries: lists of regular expressions over the bytes of the relative path.

use regex::bytes::{RegexSet, RegexSetBuilder};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::path::{RESERVED_NAME, RelPath};

/// The most expressions in one list.
pub const LIST_MAX: usize = 256;
/// The longest expression, in bytes.
pub const EXPRESSION_MAX_BYTES: usize = 4096;
/// The compiled size of one list, in bytes: bounds what an expression such as `(a{999}){999}` takes.
const COMPILED_MAX_BYTES: usize = 8 << 20;

/// A filter as people write it. An empty include list means everything; exclude wins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterSpec {
    /// What is carried.
    #[serde(default)]
    pub include: Vec<String>,
    /// What is not, whatever the include list says.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Why a filter does not compile; not retryable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Over [`LIST_MAX`] or [`EXPRESSION_MAX_BYTES`].
    #[error("a filter list takes at most 256 expressions of 4096 bytes")]
    TooLarge,
    /// An expression does not parse or compiles too large.
    #[error("in the {list} list: {reason}")]
    Expression {
        /// `include` or `exclude`.
        list: &'static str,
        /// What the parser said.
        reason: String,
    },
}

/// What a filter says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Carried.
    Included,
    /// A folder that matches no include: looked into, and made only for what it contains.
    Descend,
    /// Not carried; a folder is not looked into.
    Excluded,
}

/// A compiled filter. Expressions are searched for anywhere in the path (unanchored); a folder's
/// path ends in `/` for matching.
#[derive(Debug, Clone)]
pub struct Filter {
    include: Option<RegexSet>,
    exclude: Option<RegexSet>,
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// [`FilterError`]; not retryable.
    pub fn new(spec: &FilterSpec) -> Result<Self, FilterError> {
        Ok(Self {
            include: compile("include", &spec.include)?,
            exclude: compile("exclude", &spec.exclude)?,
        })
    }

    /// Whether nothing is ever excluded but what belongs to CDSync.
    #[must_use]
    pub fn is_trivial(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    /// Judges one path by itself; that its folder was not excluded is the caller's to know.
    #[must_use]
    pub fn judge(&self, path: &RelPath, is_folder: bool) -> Verdict {
        if path.components().last() == Some(RESERVED_NAME) {
            return Verdict::Excluded;
        }
        if path.is_root() || self.is_trivial() {
            return Verdict::Included;
        }
        let mut with_slash = Vec::new();
        let subject = if is_folder {
            with_slash.extend_from_slice(path.as_bytes());
            with_slash.push(b'/');
            &with_slash[..]
        } else {
            path.as_bytes()
        };
        if self
            .exclude
            .as_ref()
            .is_some_and(|set| set.is_match(subject))
        {
            Verdict::Excluded
        } else if self
            .include
            .as_ref()
            .is_none_or(|set| set.is_match(subject))
        {
            Verdict::Included
        } else if is_folder {
            Verdict::Descend
        } else {
            Verdict::Excluded
        }
    }

    /// Judges a path together with every folder above it.
    #[must_use]
    pub fn judge_deep(&self, path: &RelPath, is_folder: bool) -> Verdict {
        let bytes = path.as_bytes();
        for (at, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let Ok(above) = RelPath::new(bytes[..at].to_vec()) else {
                return Verdict::Excluded;
            };
            if self.judge(&above, true) == Verdict::Excluded {
                return Verdict::Excluded;
            }
        }
        self.judge(path, is_folder)
    }
}

fn compile(list: &'static str, expressions: &[String]) -> Result<Option<RegexSet>, FilterError> {
    if expressions.is_empty() {
        return Ok(None);
    }
    if expressions.len() > LIST_MAX || expressions.iter().any(|e| e.len() > EXPRESSION_MAX_BYTES) {
        return Err(FilterError::TooLarge);
    }
    RegexSetBuilder::new(expressions)
        .unicode(false)
        .size_limit(COMPILED_MAX_BYTES)
        .build()
        .map(Some)
        .map_err(|e| FilterError::Expression {
            list,
            reason: e.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Filter::new(&FilterSpec {
            include: list(include),
            exclude: list(exclude),
        })
        .unwrap()
    }

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::new(bytes.to_vec()).unwrap()
    }

    /// Proves the documented rules: exclude wins, folders match with a slash, unmatched folders are
    /// descended, names need not be UTF-8.
    #[test]
    fn verdicts() {
        let f = filter(&[r"\.html$"], &[r"(^|/)\.git/", "secret"]);
        assert_eq!(f.judge(&path(b"a/index.html"), false), Verdict::Included);
        assert_eq!(f.judge(&path(b"a/secret.html"), false), Verdict::Excluded);
        assert_eq!(f.judge(&path(b"a"), true), Verdict::Descend);
        assert_eq!(f.judge(&path(b"a/.git"), true), Verdict::Excluded);
        assert_eq!(f.judge(&path(b"a/.git"), false), Verdict::Excluded);
        assert_eq!(
            f.judge_deep(&path(b"a/.git/x.html"), false),
            Verdict::Excluded
        );
        assert_eq!(f.judge(&path(b"\xff.html"), false), Verdict::Included);
        let all = filter(&[], &[r"(^|/)\.git/"]);
        assert_eq!(all.judge(&path(b".git"), false), Verdict::Included);
        assert_eq!(all.judge(&path(b"x/.cdsync"), true), Verdict::Excluded);
    }

    /// Proves that a bad or oversized expression is refused with its list's name.
    #[test]
    fn bad_expressions_are_refused() {
        let spec = FilterSpec {
            include: vec![],
            exclude: vec!["(".into()],
        };
        assert!(matches!(
            Filter::new(&spec),
            Err(FilterError::Expression {
                list: "exclude",
                ..
            })
        ));
        let spec = FilterSpec {
            include: vec!["x".into(); LIST_MAX + 1],
            exclude: vec![],
        };
        assert_eq!(Filter::new(&spec).unwrap_err(), FilterError::TooLarge);
    }
}
