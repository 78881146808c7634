//! Examples of embedding CDSync.
