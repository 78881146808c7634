//! Content ranges, hashes and differences: bytes in, bytes out, nothing else.
