//! How a command fails: an exit code that scripts rely on, and what to do next.

use std::fmt;
use std::process::ExitCode;

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A condition is not met.
    Condition,
    /// The command or a file that it was given is wrong.
    Usage,
    /// The master does not answer.
    Unreachable,
    /// The master answers, and refuses who is asking.
    NotPermitted,
}

/// Why a command failed. What it says may have several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    kind: Kind,
    what: String,
    next: Option<String>,
    /// Everything was said already, for programs.
    silent: bool,
}

impl Failure {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        let what = what.into();
        let (what, next) = match what.rsplit_once("; next: ") {
            Some((before, next)) if !next.contains('\n') => {
                (before.to_owned(), Some(next.to_owned()))
            }
            _ => (what, None),
        };
        Self {
            kind,
            what,
            next,
            silent: false,
        }
    }

    /// Exit code 1. A text that ends in `; next: ..` has that split off.
    pub(crate) fn condition(what: impl Into<String>) -> Self {
        Self::new(Kind::Condition, what)
    }

    /// Exit code 1, with a text that is kept as it is: it may say of several servers what to do.
    pub(crate) fn told(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            kind: Kind::Condition,
            what: what.into(),
            next: Some(next.into()),
            silent: false,
        }
    }

    /// Exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// Exit code 3.
    pub(crate) fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, what)
    }

    /// Exit code 4.
    pub(crate) fn not_permitted(what: impl Into<String>) -> Self {
        Self::new(Kind::NotPermitted, what)
    }

    /// This machine failed.
    pub(crate) fn machine(error: &dyn std::error::Error) -> Self {
        Self::condition(chain(error))
    }

    /// Says what to do next.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says nothing: what there is to say went to stdout as JSON.
    pub(crate) fn silently(mut self) -> Self {
        self.silent = true;
        self
    }

    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Condition => 1,
            Kind::Usage => 2,
            Kind::Unreachable => 3,
            Kind::NotPermitted => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.next {
            Some(next) => write!(f, "\nnext: {next}"),
            None => Ok(()),
        }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
