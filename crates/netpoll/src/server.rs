//! An event loop as the core sees it: what its connections get, and how many there are.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::connection::Limits;

/// Shared by the listeners of one event loop and by its connections on every poll.
#[derive(Debug)]
pub struct Server {
    /// The number by which JavaScript knows it.
    pub id: u32,
    /// What each connection starts with.
    pub limits: Limits,
    /// Connections above this number are closed as soon as they are accepted; 0 is no limit.
    pub max_connections: u32,
    /// Whether an ACCEPT is announced at once, or may wait for the first bytes.
    pub announce_accept: bool,
    /// Connections now. Relaxed: a count that guards no other memory.
    connections: AtomicU32,
}

impl Server {
    /// A server without connections.
    pub fn new(id: u32, limits: Limits, max_connections: u32, announce_accept: bool) -> Server {
        Server { id, limits, max_connections, announce_accept, connections: AtomicU32::new(0) }
    }

    /// Counts one more connection, unless there are as many as there may be.
    pub(crate) fn admit(&self) -> bool {
        let limit = if self.max_connections == 0 { u32::MAX } else { self.max_connections };
        let more = |now| (now < limit).then_some(now + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(crate) fn dismiss(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(max_connections: u32) -> Server {
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        Server::new(1, limits, max_connections, true)
    }

    #[test]
    fn as_many_as_there_may_be_are_admitted_and_one_more_when_one_has_left() {
        let server = server(2);
        assert_eq!([(); 3].map(|()| server.admit()), [true, true, false]);
        server.dismiss();
        assert_eq!([(); 2].map(|()| server.admit()), [true, false]);
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let server = server(0);
        assert!((0..1000).all(|_| server.admit()));
    }
}
