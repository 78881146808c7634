//! The embeddable CDSync master: topology, jobs, orders, and the HTTP API.
