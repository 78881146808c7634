//! Until when orders and grants hold.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdsync_core::orders::in_force;
use cdsync_core::time::WallMillis;
use cdsync_core::wire::Orders;
use tokio::sync::watch;

use crate::clock::wall;

/// How long a sleep is trusted: a machine that was suspended, or whose clock was set, is noticed
/// after this.
const STEP: Duration = Duration::from_secs(60);

/// Time that never runs backwards: the larger of the clock, and the last time seen plus what passed
/// since. A clock that is set back makes no lease longer.
#[derive(Debug)]
pub(crate) struct LeaseClock(Mutex<(Instant, WallMillis)>, Mutex<Trust>);

/// How far this server's own clock may be from the master's, or jump, for what is old to be
/// removed by it.
const APART_MAX_MS: u64 = 3_600_000;

/// Whether this server's own clock is right.
#[derive(Debug, Default)]
struct Trust {
    /// The master's clock agreed, and it did not jump since.
    confirmed: bool,
    /// When it was looked at last, and what it showed.
    last: Option<(Instant, WallMillis)>,
}

impl Trust {
    /// Looks whether the clock jumped since the last time.
    fn look(&mut self, now: Instant, clock: WallMillis) {
        if let Some((at, before)) = self.last.replace((now, clock)) {
            let passed = now.saturating_duration_since(at).as_millis();
            let due = before
                .0
                .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
            self.confirmed &= due.abs_diff(clock.0) <= APART_MAX_MS;
        }
    }
}

impl LeaseClock {
    pub(crate) fn start() -> Self {
        Self(Mutex::new((Instant::now(), wall())), Mutex::default())
    }

    /// It is at least so late: the master said so.
    pub(crate) fn seen(&self, at: WallMillis) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (Instant::now(), step(*last, Instant::now(), at));
    }

    /// The master says now how late it is.
    pub(crate) fn told(&self, at: WallMillis) {
        self.seen(at);
        self.judge(Instant::now(), wall(), Some(at));
    }

    /// How late it is by this server's clock, for removing what is old; `None` from a jump of more
    /// than an hour on until the master's clock agrees, and before it has agreed once.
    pub(crate) fn trusted(&self) -> Option<WallMillis> {
        let clock = wall();
        self.judge(Instant::now(), clock, None).then_some(clock)
    }

    fn judge(&self, now: Instant, clock: WallMillis, master: Option<WallMillis>) -> bool {
        let mut trust = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        trust.look(now, clock);
        trust.confirmed |= master.is_some_and(|at| at.0.abs_diff(clock.0) <= APART_MAX_MS);
        trust.confirmed
    }

    pub(crate) fn now(&self) -> WallMillis {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *last = (now, step(*last, now, wall()));
        last.1
    }

    /// How long until then; zero when it is past.
    pub(crate) fn left(&self, until: WallMillis) -> Duration {
        Duration::from_millis(until.0.saturating_sub(self.now().0))
    }

    /// Waits until then. Cancel safe.
    pub(crate) async fn wait(&self, until: WallMillis) {
        loop {
            let left = self.left(until);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(STEP)).await;
        }
    }

    /// What is to be done under orders now: after their end nothing moves, and everything is kept.
    pub(crate) fn in_force(&self, orders: Orders) -> Orders {
        in_force(orders, self.now())
    }
}

fn step((at, last): (Instant, WallMillis), now: Instant, clock: WallMillis) -> WallMillis {
    let passed = u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
    WallMillis(last.0.saturating_add(passed)).max(clock)
}

/// Says when the newest orders' lease ends, once for each; until nobody gives orders any more.
pub(crate) async fn watch_end(
    clock: Arc<LeaseClock>,
    mut newest: watch::Receiver<Option<Orders>>,
    ended: impl Fn(Orders),
) {
    loop {
        let orders = newest.borrow_and_update().clone();
        let changed = match orders {
            None => newest.changed().await,
            Some(orders) => tokio::select! {
                changed = newest.changed() => changed,
                () = clock.wait(orders.lease_until) => {
                    tracing::error!(epoch = %orders.epoch,
                        "the orders' lease ended: nothing moves until the master is heard of");
                    ended(orders);
                    newest.changed().await
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use cdsync_core::filter::FilterSpec;
    use cdsync_core::ids::{JobId, Label, ServerId};
    use cdsync_core::job::{Mode, Settings};
    use cdsync_core::wire::{Epoch, JobOrder, Signed};

    use super::*;

    fn orders(lease_until: WallMillis) -> Orders {
        Orders {
            cluster: 1,
            server: ServerId(2),
            epoch: Epoch::default(),
            instance: 3,
            issued: WallMillis(0),
            lease_until,
            jobs: vec![JobOrder {
                job: JobId(4),
                name: Label::new("site").unwrap(),
                mode: Mode::Realtime,
                filter: FilterSpec::default(),
                paused: false,
                settings: Settings::default(),
                source: None,
                target: None,
            }],
            revoked: Vec::new(),
            standing: Signed::default(),
        }
    }

    /// Proves that a clock that is set back makes no lease longer, and that what the master says
    /// counts where the clock is behind.
    #[test]
    fn time_never_runs_backwards() {
        let began = Instant::now();
        let later = began + Duration::from_secs(5);
        let last = (began, WallMillis(100_000));
        assert_eq!(step(last, later, WallMillis(50)), WallMillis(105_000));
        assert_eq!(step(last, later, WallMillis(900_000)), WallMillis(900_000));
        let clock = LeaseClock::start();
        let ahead = WallMillis(wall().0 + 1_000_000);
        clock.seen(ahead);
        assert!(clock.now() >= ahead);
        assert!(clock.left(ahead).is_zero());
    }

    /// Proves that nothing is too old by a clock that nobody confirmed, or that jumped by more than
    /// an hour since, until the master's clock agrees with it.
    #[test]
    fn a_clock_that_jumps_is_not_trusted() {
        let clock = LeaseClock::start();
        let began = Instant::now();
        let after = |secs| began + Duration::from_secs(secs);
        let at = |secs: u64| WallMillis(1_000_000_000 + secs * 1000);
        assert!(!clock.judge(after(0), at(0), None), "never confirmed");
        assert!(!clock.judge(after(1), at(1), Some(at(4000))), "far from it");
        assert!(clock.judge(after(2), at(2), Some(at(30))));
        assert!(
            clock.judge(after(50_000), at(53_000), None),
            "drifted a bit"
        );
        for jumped in [70_000, 40_000] {
            assert!(!clock.judge(after(50_001), at(jumped), None), "{jumped}");
            assert!(!clock.judge(after(50_002), at(jumped + 1), None), "still");
            assert!(clock.judge(after(50_003), at(jumped + 2), Some(at(jumped))));
        }
    }

    /// Proves that the end of a lease is noticed without new orders, that nothing moves from then
    /// on, and that newer orders count instead.
    #[tokio::test]
    async fn the_end_of_a_lease_is_noticed() {
        let clock = Arc::new(LeaseClock::start());
        let soon = orders(WallMillis(wall().0 + 50));
        assert!(!clock.in_force(soon.clone()).jobs[0].paused);
        let (newest, watched) = watch::channel(Some(soon));
        let (told, ends) = mpsc::channel();
        let watching = tokio::spawn(watch_end(Arc::clone(&clock), watched, move |orders| {
            told.send(orders).unwrap();
        }));
        let ended = tokio::task::spawn_blocking(move || {
            let ended = ends.recv_timeout(Duration::from_secs(20)).unwrap();
            (ended, ends)
        });
        let (ended, ends) = ended.await.unwrap();
        assert!(clock.in_force(ended).jobs[0].paused);
        newest.send_replace(Some(orders(WallMillis(wall().0 + 1_000_000))));
        drop(newest);
        watching.await.unwrap();
        assert!(ends.try_recv().is_err(), "once");
    }
}
