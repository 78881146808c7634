//! Masters and agents, their orders and what may happen to both: restarts, older copies of a
//! master's store, a second master beside the first, lost, late, repeated and forged orders.

use std::collections::{BTreeMap, BTreeSet};

use super::kinds::Bed;
use super::rng::Rng;
use crate::coordinator::{Coordinator, Job, MasterIdentity};
use crate::ids::{JobId, Label, ServerId};
use crate::job::{JobSpec, Mode, Settings};
use crate::orders::{Obedience, in_force};
use crate::time::WallMillis;
use crate::topology::Server;
use crate::wire::{Epoch, Hello, Orders, Signed, SigningKey, VerifyingKey};

const CLUSTER: u64 = 1;
const SERVERS: u64 = 5;
const DAY_MS: u64 = 24 * 3_600_000;

/// What a master keeps durably.
#[derive(Debug, Clone, Default)]
struct Store {
    term: u64,
    servers: BTreeMap<ServerId, Server>,
    jobs: BTreeMap<JobId, Job>,
    revoked: BTreeMap<ServerId, WallMillis>,
}

/// A master; not running without a coordinator.
#[derive(Debug)]
struct Master {
    store: Store,
    coordinator: Option<Coordinator>,
}

impl Master {
    fn start(&mut self, rng: &mut Rng) {
        self.store.term += 1;
        let identity = MasterIdentity {
            cluster: CLUSTER,
            instance: rng.next_u64(),
            term: self.store.term,
        };
        let servers = self.store.servers.values().cloned();
        let jobs = self.store.jobs.values().cloned();
        let coordinator = Coordinator::new(identity, key(), servers, jobs)
            .with_revoked(self.store.revoked.clone());
        self.coordinator = Some(coordinator);
    }

    /// A person changes something.
    fn command(&mut self, rng: &mut Rng, now: WallMillis) {
        let Some(coordinator) = &mut self.coordinator else {
            return;
        };
        let id = JobId(1 + rng.below(3) as u64);
        match rng.below(6) {
            0 => {
                self.store.jobs.remove(&id);
                coordinator.handle_job_removed(id);
            }
            1 if self.store.servers.len() > 2 => {
                let server = ServerId(1 + rng.below(SERVERS as usize) as u64);
                self.store.servers.remove(&server);
                self.store.revoked.insert(server, now);
                coordinator.handle_removed(server, now);
            }
            2 => coordinator.handle_time(now),
            _ => {
                let target = 1 + rng.below(SERVERS as usize);
                let spec = job(id, 1 + rng.below(SERVERS as usize), target);
                // A person is told why a job is refused.
                if let Ok(job) = coordinator.prepare_job(spec, id, rng.one_in(2)) {
                    self.store.jobs.insert(job.id, job.clone());
                    coordinator.handle_job(job);
                }
            }
        }
    }

    /// A person reads that the master is outranked, and accepts.
    fn accept_restore(&mut self, now: WallMillis) {
        let Some(coordinator) = &mut self.coordinator else {
            return;
        };
        let Some(outranked) = coordinator.outranked().cloned() else {
            return;
        };
        self.store.term = self.store.term.max(outranked.term) + 1;
        for server in outranked.revoked {
            self.store.servers.remove(&server);
            self.store.revoked.insert(server, now);
        }
        coordinator.handle_restore_accepted(self.store.term, now);
        assert!(coordinator.outranked().is_none());
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[5; 32])
}

fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

fn job(id: JobId, source: usize, target: usize) -> JobSpec {
    let place = |server: usize| format!("s{server}:/j{}", id.0).parse().expect("a place");
    JobSpec {
        name: label(&format!("j{}", id.0)),
        mode: Mode::Realtime,
        sources: vec![place(source)],
        targets: vec![place(target)],
        filter: crate::filter::FilterSpec::default(),
        settings: Settings::default(),
    }
}

/// An agent; what it obeys is durable.
#[derive(Debug)]
struct Agent {
    id: ServerId,
    obedience: Obedience,
    kept: Option<Signed>,
    /// Which master it is connected to.
    master: Option<usize>,
    /// On their way to it.
    incoming: Vec<Signed>,
}

impl Agent {
    fn new(id: ServerId) -> Self {
        Self {
            id,
            obedience: Obedience::new(key().verifying_key(), id, CLUSTER),
            kept: None,
            master: None,
            incoming: Vec::new(),
        }
    }

    fn standing(&self) -> (Epoch, u64) {
        self.obedience
            .current()
            .map_or_else(Default::default, |orders| (orders.epoch, orders.instance))
    }

    fn restart(&mut self) {
        let (before, kept) = (self.standing(), self.kept.take());
        *self = Self::new(self.id);
        if let Some(kept) = &kept {
            let orders = self.obedience.verify(kept).expect("it was obeyed before");
            self.obedience.obey(orders);
        }
        self.kept = kept;
        assert_eq!(self.standing(), before, "a restart obeys the same orders");
    }

    fn take(&mut self, signed: Signed) {
        let before = self.standing();
        if let Ok(orders) = self.obedience.judge(&signed) {
            self.kept = Some(signed);
            self.obedience.obey(orders);
        }
        let after = self.standing();
        assert!(after.0 >= before.0, "orders never step back");
        assert!(
            after.0.term != before.0.term || after.1 == before.1 || before.1 == 0,
            "two runs of a master are not obeyed in one term"
        );
    }

    fn hello(&self) -> Hello {
        Hello {
            program: String::new(),
            address: format!("s{}:7410", self.id.0),
            roots: vec!["/".into()],
            standing: self
                .obedience
                .current()
                .map_or_else(Signed::default, |orders| orders.standing.clone()),
            watching: String::new(),
        }
    }
}

/// Masters and agents under one seed.
#[derive(Debug)]
pub(super) struct PlanWorld {
    masters: Vec<Master>,
    agents: Vec<Agent>,
    /// Older copies of a master's store.
    copies: Vec<Store>,
    /// Everything that was ever sent: it may come again.
    sent: Vec<(ServerId, Signed)>,
    /// What masters really ordered.
    ordered: BTreeSet<(ServerId, Epoch, u64)>,
    now: WallMillis,
    rng: Rng,
    history: Vec<String>,
}

/// How many steps a run has.
const STEPS: usize = 150;

impl Bed for PlanWorld {
    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step();
            self.deliver_orders();
            self.check();
        }
        self.settle()
    }

    fn story(&self) -> String {
        self.history.join("\n")
    }
}

impl PlanWorld {
    /// One master that runs, and agents that nobody has told anything.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        let servers = (1..=SERVERS).map(|number| Server {
            id: ServerId(number),
            name: label(&format!("s{number}")),
            region: label("r"),
            group: label("g"),
            address: format!("s{number}:7410"),
            roots: Some(vec!["/".into()]),
        });
        let mut world = Self {
            masters: vec![Master {
                store: Store {
                    servers: servers.map(|server| (server.id, server)).collect(),
                    ..Store::default()
                },
                coordinator: None,
            }],
            agents: (1..=SERVERS).map(|id| Agent::new(ServerId(id))).collect(),
            copies: Vec::new(),
            sent: Vec::new(),
            ordered: BTreeSet::new(),
            now: WallMillis(1_000_000),
            rng: Rng::new(seed),
            history: Vec::new(),
        };
        world.masters[0].start(&mut world.rng);
        world
    }

    fn step(&mut self) {
        self.now.0 += self.rng.below(60_000) as u64;
        let (master, agent) = (
            self.rng.below(self.masters.len()),
            self.rng.below(self.agents.len()),
        );
        let choice = self.rng.below(22);
        self.history
            .push(format!("{choice} master {master} agent {agent}"));
        match choice {
            0..=4 => self.masters[master].command(&mut self.rng, self.now),
            5 => self.stop(master),
            6 | 7 => self.restart(master),
            8 => self.copies.push(self.masters[master].store.clone()),
            9 => self.restore(master),
            10 => self.add_rogue(),
            11 if self.masters.len() > 1 => self.remove(master),
            12 => self.masters[master].accept_restore(self.now),
            13..=15 => self.connect(agent, master),
            16 => self.disconnect(agent),
            17 => self.agents[agent].restart(),
            18 => self.replay(agent),
            19 => self.forge(agent),
            20 => self.now.0 += self.rng.below(20) as u64 * DAY_MS,
            _ => self.arrive(agent),
        }
    }

    fn stop(&mut self, master: usize) {
        self.masters[master].coordinator = None;
        for agent in &mut self.agents {
            if agent.master == Some(master) {
                agent.master = None;
            }
        }
    }

    fn restart(&mut self, master: usize) {
        self.stop(master);
        self.masters[master].start(&mut self.rng);
    }

    /// The master is put back to an older copy.
    fn restore(&mut self, master: usize) {
        if let Some(copy) = self.rng.pick(&self.copies).cloned() {
            self.masters[master].store = copy;
            self.restart(master);
        }
    }

    /// An older copy is started beside the master.
    fn add_rogue(&mut self) {
        if self.masters.len() < 3
            && let Some(store) = self.rng.pick(&self.copies).cloned()
        {
            self.masters.push(Master {
                store,
                coordinator: None,
            });
            self.restart(self.masters.len() - 1);
        }
    }

    fn remove(&mut self, master: usize) {
        self.stop(master);
        self.masters.remove(master);
        for agent in &mut self.agents {
            // They are known by their place.
            if let Some(at) = &mut agent.master
                && *at > master
            {
                *at -= 1;
            }
        }
    }

    fn connect(&mut self, agent: usize, master: usize) {
        self.disconnect(agent);
        let agent = &mut self.agents[agent];
        let Some(coordinator) = &mut self.masters[master].coordinator else {
            return;
        };
        if coordinator.topology().server(agent.id).is_some() {
            coordinator.handle_hello(agent.id, agent.hello(), self.now);
            agent.master = Some(master);
        }
    }

    fn disconnect(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        agent.incoming.clear();
        let master = agent.master.take().map(|at| &mut self.masters[at]);
        if let Some(coordinator) = master.and_then(|master| master.coordinator.as_mut()) {
            coordinator.handle_disconnected(agent.id, self.now);
        }
    }

    /// Old orders, to whoever they were for, once more.
    fn replay(&mut self, agent: usize) {
        if let Some((_, signed)) = self.rng.pick(&self.sent).cloned() {
            self.agents[agent].take(signed);
        }
    }

    /// Orders of somebody who does not have the key, and of the master for somebody else.
    fn forge(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        let Some(mut orders) = agent.obedience.current().cloned() else {
            return;
        };
        let before = agent.standing();
        orders.epoch.term += 1_000;
        agent.take(SigningKey::from_seed(&[6; 32]).sign(&orders));
        orders.server = ServerId(99);
        agent.take(key().sign(&orders));
        assert_eq!(agent.standing(), before, "forged orders are not obeyed");
    }

    /// Something that was sent arrives, not always in the order of sending.
    fn arrive(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        if !agent.incoming.is_empty() {
            let at = self.rng.below(agent.incoming.len());
            let signed = agent.incoming.remove(at);
            agent.take(signed);
        }
    }

    fn deliver_orders(&mut self) {
        let verifying: VerifyingKey = key().verifying_key();
        for (at, master) in self.masters.iter_mut().enumerate() {
            let Some(coordinator) = &mut master.coordinator else {
                continue;
            };
            while let Some(next) = coordinator.poll_orders(self.now) {
                assert!(coordinator.outranked().is_none(), "it orders nothing");
                let orders: Orders = next.orders.verify(&verifying).expect("it is signed");
                self.ordered
                    .insert((next.server, orders.epoch, orders.instance));
                self.sent.push((next.server, next.orders.clone()));
                let agent = self.agents.iter_mut().find(|agent| agent.id == next.server);
                if let Some(agent) = agent.filter(|agent| agent.master == Some(at)) {
                    agent.incoming.push(next.orders);
                }
            }
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        for agent in &self.agents {
            let Some(orders) = agent.obedience.current() else {
                continue;
            };
            let ordered = (agent.id, orders.epoch, orders.instance);
            assert!(
                self.ordered.contains(&ordered),
                "only what a master ordered is obeyed"
            );
            // Whether there is a master or not: the orders stand until their lease ends, and then
            // nothing moves, and nothing is forgotten.
            let just_before = in_force(orders.clone(), WallMillis(orders.lease_until.0 - 1));
            assert_eq!(just_before, *orders);
            let after = in_force(orders.clone(), orders.lease_until);
            assert!(after.jobs.iter().all(|job| job.paused));
            assert_eq!(after.jobs.len(), orders.jobs.len());
        }
    }

    /// One master is left, a person accepts it where that is needed, and everybody connects.
    fn settle(&mut self) -> Result<(), String> {
        while self.masters.len() > 1 {
            self.remove(1);
        }
        self.restart(0);
        for _ in 0..2 {
            for agent in 0..self.agents.len() {
                self.connect(agent, 0);
            }
            self.masters[0].accept_restore(self.now);
            self.deliver_orders();
            for agent in &mut self.agents {
                for signed in std::mem::take(&mut agent.incoming) {
                    agent.take(signed);
                }
            }
            self.check();
        }
        let Some(coordinator) = &self.masters[0].coordinator else {
            return Err("the master does not run".to_owned());
        };
        let identity = coordinator.identity();
        for agent in &self.agents {
            if coordinator.topology().server(agent.id).is_none() {
                continue;
            }
            let (epoch, instance) = agent.standing();
            if epoch.term != identity.term || instance != identity.instance {
                return Err(format!(
                    "{:?} obeys {epoch} of {instance:x}, and not {identity:?}",
                    agent.id
                ));
            }
        }
        Ok(())
    }
}
