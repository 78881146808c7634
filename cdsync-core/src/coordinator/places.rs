//! A job's declaration against the servers that there are: who is the source, who the targets, and
//! what is wrong with it.

use std::collections::BTreeMap;

use thiserror::Error;

use super::Job;
use crate::ids::{Label, ServerId};
use crate::job::{Place, RootPath, Who};
use crate::topology::{Server, Topology};

/// A root of a job on a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root<'a> {
    pub(super) server: &'a Server,
    pub(super) path: &'a RootPath,
}

/// What a job comes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Resolved<'a> {
    pub(super) source: Option<Root<'a>>,
    /// By name.
    pub(super) targets: Vec<Root<'a>>,
    pub(super) problems: Vec<Problem>,
}

/// What keeps a part of a job from running, with what to do next. None is retryable without that.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// A server that nobody joined.
    #[error(
        "there is no server {server}; next: cdsync master token --name {server} --group REGION/GROUP, then run the join command there"
    )]
    NoServer {
        /// Its name.
        server: Label,
    },
    /// A group or region without servers.
    #[error(
        "{place} has no servers; next: cdsync server list, then join one or correct the job file"
    )]
    NoMembers {
        /// The place.
        place: Place,
    },
    /// The server's operator did not allow the root.
    #[error(
        "the operator of {server} does not allow {root} (allowed: {allowed}); next: on {server}, add it to roots in agent.toml and start the agent again, or use a path below an allowed one"
    )]
    RootNotAllowed {
        /// The server.
        server: Label,
        /// The root.
        root: RootPath,
        /// What is allowed there.
        allowed: String,
    },
    /// One server would hold the job twice.
    #[error(
        "{server} is a target twice, at {first} and at {second}; next: name one of them, or make a second job"
    )]
    TwoRoots {
        /// The server.
        server: Label,
        /// The root that counts.
        first: RootPath,
        /// The one left out.
        second: RootPath,
    },
    /// Source and target lie in each other on one server.
    #[error(
        "on {server} the target {target} and the source {origin} lie in each other; next: choose a target outside"
    )]
    Nested {
        /// The server.
        server: Label,
        /// The source's root.
        origin: RootPath,
        /// The target's root.
        target: RootPath,
    },
    /// The target's root overlaps another target's root, of this or another job.
    #[error(
        "on {server} the target {root} overlaps {other}, a target of job {job}; next: choose another path"
    )]
    Overlap {
        /// The server.
        server: Label,
        /// The root.
        root: RootPath,
        /// The other job's root.
        other: RootPath,
        /// The other job.
        job: Label,
    },
    /// All targets are the source itself.
    #[error("every target is the source itself; next: add a target elsewhere")]
    OnlyItself,
}

/// Whether one root lies in the other, or they are the same.
pub(super) fn overlap(a: &RootPath, b: &RootPath) -> bool {
    let within = |inner: &str, outer: &str| {
        let outer = outer.trim_end_matches('/');
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(a.as_str(), b.as_str()) || within(b.as_str(), a.as_str())
}

/// Finds the servers of a job.
pub(super) fn resolve<'a>(topology: &'a Topology, job: &'a Job) -> Resolved<'a> {
    let mut resolved = Resolved::default();
    if let Some((name, path)) = job.source() {
        match topology.by_name(name) {
            Some(server) => {
                resolved.check_allowed(server, path);
                resolved.source = Some(Root { server, path });
            }
            None => resolved.problems.push(Problem::NoServer {
                server: name.clone(),
            }),
        }
    }
    let mut targets: BTreeMap<&Label, Root<'a>> = BTreeMap::new();
    let mut skipped_itself = false;
    for place in &job.spec.targets {
        let mut found = false;
        for server in topology.expand(&place.who) {
            found = true;
            let root = Root {
                server,
                path: &place.path,
            };
            skipped_itself |= !resolved.add_target(&mut targets, root);
        }
        if !found {
            resolved.problems.push(match &place.who {
                Who::Server(server) => Problem::NoServer {
                    server: server.clone(),
                },
                _ => Problem::NoMembers {
                    place: place.clone(),
                },
            });
        }
    }
    resolved.targets = targets.into_values().collect();
    if resolved.targets.is_empty() && skipped_itself && resolved.problems.is_empty() {
        resolved.problems.push(Problem::OnlyItself);
    }
    resolved
}

impl<'a> Resolved<'a> {
    /// Returns whether the root is a target; it is not when it is the source itself or in its way.
    fn add_target(&mut self, targets: &mut BTreeMap<&'a Label, Root<'a>>, root: Root<'a>) -> bool {
        let Root { server, path } = root;
        if let Some(source) = self.source
            && source.server.id == server.id
        {
            if source.path == path {
                return false;
            }
            if overlap(source.path, path) {
                self.problems.push(Problem::Nested {
                    server: server.name.clone(),
                    origin: source.path.clone(),
                    target: path.clone(),
                });
                return true;
            }
        }
        match targets.get(&server.name) {
            Some(first) if first.path == path => {}
            Some(first) => self.problems.push(Problem::TwoRoots {
                server: server.name.clone(),
                first: first.path.clone(),
                second: path.clone(),
            }),
            None => {
                self.check_allowed(server, path);
                targets.insert(&server.name, root);
            }
        }
        true
    }

    fn check_allowed(&mut self, server: &Server, path: &RootPath) {
        if server.allows(path) {
            return;
        }
        let allowed = server.roots.as_deref().unwrap_or_default().join(", ");
        let allowed = crate::path::Escaped(allowed.as_bytes()).to_string();
        self.problems.push(Problem::RootNotAllowed {
            server: server.name.clone(),
            root: path.clone(),
            allowed: allowed.chars().take(300).collect(),
        });
    }

    pub(super) fn target(&self, server: ServerId) -> Option<Root<'a>> {
        self.targets
            .iter()
            .find(|root| root.server.id == server)
            .copied()
    }
}
