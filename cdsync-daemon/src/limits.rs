//! What the system lets a process have: raised here, because the libraries never do.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below it a busy server runs out of descriptors: every lane, file and watch takes one.
const ENOUGH: u64 = 4096;

/// Lets this process have as many descriptors as the system allows it, and says when that is few.
pub(crate) fn raise() {
    let limit = raise_descriptors();
    if let Some(advice) = advice(&limit) {
        tracing::warn!("{advice}");
    }
}

/// The limit that is in force afterwards.
fn raise_descriptors() -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Refused, as some sandboxes do: the old one stays, and is told when it is too low.
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => getrlimit(Resource::Nofile),
        Err(_) => limit,
    }
}

fn advice(limit: &Rlimit) -> Option<String> {
    let few = limit.current.filter(|few| *few < ENOUGH)?;
    Some(format!(
        "only {few} files and connections may be open at once, which is too few for many servers; \
         next: set LimitNOFILE=65536 in the unit, or `ulimit -Hn 65536` before the start"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that the limit is raised to what the system allows, and that one that is too low is told
    /// with what to do.
    #[test]
    fn descriptors_are_raised_and_told() {
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit {
            current: before.current.map(|current| current - 1),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, lower).unwrap();
        let raised = raise_descriptors();
        assert_eq!(raised.current, before.maximum);
        let few = Rlimit {
            current: Some(256),
            maximum: Some(256),
        };
        let told = advice(&few).unwrap();
        assert!(told.contains("256") && told.contains("next:"), "{told}");
        let enough = Rlimit {
            current: Some(65_536),
            ..few
        };
        assert_eq!(advice(&enough), None);
    }
}
