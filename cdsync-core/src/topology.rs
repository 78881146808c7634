//! Region > Group > Server.
