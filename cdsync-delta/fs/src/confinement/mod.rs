//! Tests: whoever owns a tree gets nothing done outside of it by who syncs it.
//!
//! `canary` is what must not change, `places` one test for each way out, `races` the same under
//! somebody who swaps every component of every path all the time.
//!
//! `CDSYNC_CONFINEMENT_MS` sets how long each race runs (milliseconds, 400 unless told), and
//! `CDSYNC_SEED` repeats one.

mod canary;
mod places;
mod races;
