//! Orders: who does what, under which epoch, until when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::places::{Resolved, resolve};
use super::{Coordinator, Job};
use crate::ids::ServerId;
use crate::ledger::object::Seq;
use crate::time::WallMillis;
use crate::wire::{
    Adopt, ClaimedByAll, Epoch, Grant, JobOrder, Orders, Signed, SourceOrder, Standing,
    TargetOrder, Upstream,
};

/// How long orders and grants hold without hearing from the master.
pub const LEASE: Duration = Duration::from_hours(7 * 24);

/// How much longer than a lease a removed server is named: clocks differ.
const REVOKED_LONGER: Duration = Duration::from_hours(24);

/// What a server was last told to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The epoch in which this became so.
    pub(super) epoch: Epoch,
    /// The jobs, their grants left out: those are signed when the orders are.
    jobs: Vec<JobOrder>,
    /// When it was last signed.
    issued: Option<WallMillis>,
}

/// Orders to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrdersFor {
    /// To whom.
    pub server: ServerId,
    /// Their epoch.
    pub epoch: Epoch,
    /// The signed message.
    pub orders: Signed,
}

impl Coordinator {
    /// Makes everybody's orders anew. Those whose orders changed get them under one new epoch.
    pub(super) fn replan(&mut self) {
        let mut wanted: BTreeMap<ServerId, Vec<JobOrder>> = self
            .topology
            .iter()
            .map(|server| (server.id, Vec::new()))
            .collect();
        for job in self.jobs.values() {
            let resolved = resolve(&self.topology, job);
            for (server, order) in job_orders(job, &resolved) {
                wanted.entry(server).or_default().push(order);
            }
        }
        self.plans.retain(|server, _| wanted.contains_key(server));
        self.unsent.retain(|server| wanted.contains_key(server));
        wanted.retain(|server, jobs| self.plans.get(server).is_none_or(|plan| plan.jobs != *jobs));
        if wanted.is_empty() {
            return;
        }
        self.counter += 1;
        let epoch = self.epoch();
        for (server, jobs) in wanted {
            self.plans.insert(
                server,
                Plan {
                    epoch,
                    jobs,
                    issued: None,
                },
            );
            self.unsent.insert(server);
        }
    }

    /// Renews the leases that are half over, under a new epoch. Call it every minute or so.
    pub fn handle_time(&mut self, now: WallMillis) {
        let half = millis(LEASE) / 2;
        let due: Vec<ServerId> = self
            .plans
            .iter()
            .filter(|(_, plan)| plan.issued.is_some_and(|at| now.0.abs_diff(at.0) >= half))
            .map(|(server, _)| *server)
            .collect();
        if due.is_empty() {
            return;
        }
        self.counter += 1;
        let epoch = self.epoch();
        for server in due {
            if let Some(plan) = self.plans.get_mut(&server) {
                plan.epoch = epoch;
                plan.issued = None;
            }
            self.tell(server);
        }
    }

    /// Everybody's orders say something new, under one new epoch.
    pub(super) fn tell_all(&mut self) {
        self.counter += 1;
        let epoch = self.epoch();
        for (server, plan) in &mut self.plans {
            plan.epoch = epoch;
            plan.issued = None;
            self.unsent.insert(*server);
        }
    }

    /// What all targets claim of the jobs whose source a server is. A job is left out while a target
    /// has not reported since the master started, or speaks of another ledger; and all of them while
    /// this master obeys nobody's word but shows only.
    #[must_use]
    pub fn claimed(&self, source: ServerId) -> Vec<ClaimedByAll> {
        if self.outranked.is_some() {
            // An older copy may not know of all targets.
            return Vec::new();
        }
        let orders = self.plans.get(&source).map_or(&[][..], |plan| &plan.jobs);
        let jobs = orders
            .iter()
            .filter(|order| order.source.is_some())
            .filter_map(|order| self.jobs.get(&order.job));
        jobs.filter_map(|job| self.claimed_of(job)).collect()
    }

    fn claimed_of(&self, job: &Job) -> Option<ClaimedByAll> {
        let origin = self.source_of(job)?.origin;
        let mut lowest = None;
        for root in resolve(&self.topology, job).targets {
            // Who is away comes again with this claim or a higher one.
            let report = self.target_of(job, root.server.id)?;
            if report.origin != origin {
                return None;
            }
            lowest = Some(lowest.map_or(report.claim, |seq: Seq| seq.min(report.claim)));
        }
        lowest.map(|upto| ClaimedByAll {
            job: job.id,
            origin,
            upto,
        })
    }

    /// Servers whose grants may not have ended yet although they were removed.
    fn revoked_at(&self, now: WallMillis) -> Vec<ServerId> {
        let kept = millis(LEASE + REVOKED_LONGER);
        self.revoked
            .iter()
            .filter(|(_, at)| at.0.saturating_add(kept) > now.0)
            .map(|(server, _)| *server)
            .collect()
    }

    /// Its orders are to be sent; a server that is away gets them when it is back.
    fn tell(&mut self, server: ServerId) {
        if self.is_connected(server) {
            self.unsent.insert(server);
        }
    }

    /// The next orders to send, to a server that is connected and was not told yet. `None` when
    /// there are none, or while this master is outranked; ask again after every input.
    pub fn poll_orders(&mut self, now: WallMillis) -> Option<OrdersFor> {
        if self.outranked.is_some() {
            return None;
        }
        let server = *self
            .unsent
            .iter()
            .find(|server| self.is_connected(**server))?;
        self.unsent.remove(&server);
        let revoked = self.revoked_at(now);
        let plan = self.plans.get_mut(&server)?;
        plan.issued = Some(now);
        let (epoch, mut jobs) = (plan.epoch, plan.jobs.clone());
        let lease_until = WallMillis(now.0.saturating_add(millis(LEASE)));
        for order in &mut jobs {
            if let Some(target) = &mut order.target {
                target.grant = self.key.sign(&Grant {
                    cluster: self.identity.cluster,
                    job: order.job,
                    holder: server,
                    epoch,
                    until: lease_until,
                });
            }
        }
        let standing = self.key.sign(&Standing {
            cluster: self.identity.cluster,
            epoch,
            instance: self.identity.instance,
            revoked: revoked.clone(),
        });
        let orders = self.key.sign(&Orders {
            cluster: self.identity.cluster,
            server,
            epoch,
            instance: self.identity.instance,
            issued: now,
            lease_until,
            jobs,
            revoked,
            standing,
        });
        Some(OrdersFor {
            server,
            epoch,
            orders,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One job's orders, by server. A job without its source has none: a target would wait for nobody.
fn job_orders(job: &Job, resolved: &Resolved<'_>) -> BTreeMap<ServerId, JobOrder> {
    let mut orders = BTreeMap::new();
    let Some(source) = resolved.source else {
        return orders;
    };
    let blank = || JobOrder {
        job: job.id,
        name: job.name().clone(),
        mode: job.spec.mode,
        filter: job.spec.filter.clone(),
        paused: job.paused,
        settings: job.spec.settings.clone(),
        source: None,
        target: None,
    };
    orders.entry(source.server.id).or_insert_with(blank).source = Some(SourceOrder {
        root: source.path.clone(),
        run: job.run,
        resume: job.resume,
        decision: job.decision,
    });
    for target in &resolved.targets {
        let accepted = job.is_accepted(target.server.id, target.path);
        orders.entry(target.server.id).or_insert_with(blank).target = Some(TargetOrder {
            root: target.path.clone(),
            upstreams: vec![Upstream {
                server: source.server.id,
                name: source.server.name.clone(),
                address: source.server.address.clone(),
            }],
            adopt: if accepted { Adopt::Accept } else { Adopt::Ask },
            resume: job.resume,
            restore: job.restore,
            accepts: job.accepts,
            grant: Signed::default(),
        });
    }
    orders
}
