//! Examples of embedding CDSync: see `examples/`.
