//! A master over an in-memory network, with agents that the tests play.

mod agents;
mod api;
mod bed;
mod jobs;
