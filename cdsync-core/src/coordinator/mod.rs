//! The coordinator: what the master decides.
