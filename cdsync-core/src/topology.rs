//! Region > Group > Server: which servers there are, and whom a place speaks of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{Label, ServerId};
use crate::job::{RootPath, Who};

/// A server that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its id, given at joining.
    pub id: ServerId,
    /// Its name, unique in the cluster.
    pub name: Label,
    /// The region that its group belongs to.
    pub region: Label,
    /// Its group.
    pub group: Label,
    /// Where other agents dial it: host and port.
    pub address: String,
    /// The roots that its operator allowed, `None` while it has never said.
    pub roots: Option<Vec<String>>,
}

impl Server {
    /// Whether its operator allows this root: it lies at or below an allowed one. `true` while
    /// nothing is known, because then the agent itself will say.
    #[must_use]
    pub fn allows(&self, path: &RootPath) -> bool {
        self.roots
            .as_ref()
            .is_none_or(|roots| roots.iter().any(|root| lies_below(path.as_str(), root)))
    }
}

/// Whether a path is `root` or lies below it, name by name.
fn lies_below(path: &str, root: &str) -> bool {
    let root = root.trim_end_matches('/');
    path.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Why a server is not taken in; not retryable without another name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Another server has the name.
    #[error("a server named {name} has joined before")]
    NameTaken {
        /// The name.
        name: Label,
    },
    /// Another server has the id.
    #[error("a server with the id {id} has joined before")]
    IdTaken {
        /// The id.
        id: ServerId,
    },
}

/// Every server of a cluster. Orders are by name, so that plans and tables come out the same.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    servers: BTreeMap<ServerId, Server>,
    names: BTreeMap<Label, ServerId>,
}

impl Topology {
    /// Takes in a server.
    ///
    /// # Errors
    /// [`TopologyError`] when its id or name is taken; not retryable.
    pub fn insert(&mut self, server: Server) -> Result<(), TopologyError> {
        if self.names.contains_key(&server.name) {
            return Err(TopologyError::NameTaken { name: server.name });
        }
        if self.servers.contains_key(&server.id) {
            return Err(TopologyError::IdTaken { id: server.id });
        }
        self.names.insert(server.name.clone(), server.id);
        self.servers.insert(server.id, server);
        Ok(())
    }

    /// Takes out a server.
    pub fn remove(&mut self, id: ServerId) -> Option<Server> {
        let server = self.servers.remove(&id)?;
        self.names.remove(&server.name);
        Some(server)
    }

    /// A server by its id.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(&id)
    }

    /// Sets what a server says of itself. Returns whether that is news.
    pub fn describe(&mut self, id: ServerId, address: &str, roots: &[String]) -> bool {
        let Some(server) = self.servers.get_mut(&id) else {
            return false;
        };
        let same = server.address == address && server.roots.as_deref() == Some(roots);
        if !same {
            address.clone_into(&mut server.address);
            server.roots = Some(roots.to_vec());
        }
        !same
    }

    /// A server by its name.
    #[must_use]
    pub fn by_name(&self, name: &Label) -> Option<&Server> {
        self.names.get(name).and_then(|id| self.servers.get(id))
    }

    /// All servers, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        self.names.values().filter_map(|id| self.servers.get(id))
    }

    /// Whom a place speaks of, by name. Empty when there is no such server, group or region.
    pub fn expand<'a>(&'a self, who: &'a Who) -> impl Iterator<Item = &'a Server> {
        self.iter().filter(move |server| match who {
            Who::Server(name) => server.name == *name,
            Who::Group { region, group } => server.region == *region && server.group == *group,
            Who::Region(region) => server.region == *region,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn server(id: u64, name: &str, region: &str, group: &str) -> Server {
        Server {
            id: ServerId(id),
            name: Label::new(name).unwrap(),
            region: Label::new(region).unwrap(),
            group: Label::new(group).unwrap(),
            address: format!("{name}:7410"),
            roots: Some(vec!["/srv".into()]),
        }
    }

    fn names<'a>(servers: impl Iterator<Item = &'a Server>) -> Vec<String> {
        servers.map(|s| s.name.to_string()).collect()
    }

    /// Proves that servers, groups and regions expand to exactly their servers, in order of names.
    #[test]
    fn places_expand() {
        let mut topology = Topology::default();
        for (id, name, region, group) in [
            (1, "seoul-2", "asia", "seoul"),
            (2, "tokyo-1", "asia", "tokyo"),
            (3, "seoul-1", "asia", "seoul"),
            (4, "paris-1", "europe", "seoul"),
        ] {
            topology.insert(server(id, name, region, group)).unwrap();
        }
        let label = |s: &str| Label::new(s).unwrap();
        let group = Who::Group {
            region: label("asia"),
            group: label("seoul"),
        };
        assert_eq!(names(topology.expand(&group)), ["seoul-1", "seoul-2"]);
        let region = Who::Region(label("asia"));
        assert_eq!(
            names(topology.expand(&region)),
            ["seoul-1", "seoul-2", "tokyo-1"]
        );
        let one = Who::Server(label("paris-1"));
        assert_eq!(names(topology.expand(&one)), ["paris-1"]);
        assert!(names(topology.expand(&Who::Region(label("mars")))).is_empty());
        topology.remove(ServerId(3));
        assert_eq!(names(topology.expand(&group)), ["seoul-2"]);
    }

    /// Proves that a second server under a name or id is refused and changes nothing.
    #[test]
    fn names_and_ids_are_unique() {
        let mut topology = Topology::default();
        topology.insert(server(1, "a", "r", "g")).unwrap();
        let name = Label::new("a").unwrap();
        assert_eq!(
            topology.insert(server(2, "a", "r", "g")),
            Err(TopologyError::NameTaken { name })
        );
        assert_eq!(
            topology.insert(server(1, "b", "r", "g")),
            Err(TopologyError::IdTaken { id: ServerId(1) })
        );
        assert_eq!(topology.iter().count(), 1);
    }

    /// Proves that an allowed root covers itself and what is below it, and no neighbour whose name
    /// only begins alike.
    #[test]
    fn roots_are_compared_by_name() {
        let server = server(1, "a", "r", "g");
        for (path, allowed) in [
            ("/srv", true),
            ("/srv/www", true),
            ("/srv2", false),
            ("/", false),
        ] {
            assert_eq!(
                server.allows(&RootPath::new(path).unwrap()),
                allowed,
                "{path}"
            );
        }
        let open = Server {
            roots: Some(vec!["/".into()]),
            ..server.clone()
        };
        assert!(open.allows(&RootPath::new("/any").unwrap()));
        let silent = Server {
            roots: None,
            ..server
        };
        assert!(silent.allows(&RootPath::new("/any").unwrap()));
    }
}
