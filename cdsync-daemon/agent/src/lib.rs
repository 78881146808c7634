//! The embeddable CDSync agent: watches sources, serves and applies changes.
