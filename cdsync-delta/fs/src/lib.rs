//! Watching, scanning and changing directory trees through directory handles.
