//! A listener at its poll: accepts within a budget, and steps back when descriptors run out.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::address;
use crate::listener::Listener;
use crate::record::Cause;
use crate::server::Server;
use crate::sys;
use crate::token::Subject;

/// How long a listener rests when the process or the machine has no descriptor or memory to give. What
/// waits in its backlog is not lost; spinning on it would take the core from the open connections.
pub(crate) const REST: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) listener: Arc<Listener>,
    server: Arc<Server>,
    /// An event has told of connections, and not all have been accepted. Edge-triggered: no further
    /// event tells of these.
    pub(crate) is_ready: bool,
    is_armed: bool,
}

/// A connection on its way to the poll that will serve it.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) descriptor: OwnedFd,
    pub(crate) remote: [u32; 6],
    pub(crate) local: [u32; 6],
    pub(crate) is_unix: bool,
    pub(crate) server: Arc<Server>,
}

/// What one attempt came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    Accepted(Accepted),
    /// The peer was gone already, or one connection too many was turned away.
    Dropped,
    /// Nobody waits.
    Empty,
    /// No descriptor or memory is left: rest, then arm again.
    Exhausted,
    /// The listener is broken, or was closed.
    Failed(Cause),
}

impl Acceptor {
    pub(crate) fn new(listener: Arc<Listener>, server: Arc<Server>) -> Acceptor {
        Acceptor { listener, server, is_ready: false, is_armed: false }
    }

    pub(crate) fn arm(&mut self, registry: &Registry) -> io::Result<()> {
        if self.is_armed {
            return Ok(());
        }
        let token = Subject::Listener(self.listener.id).mio();
        registry.register(&mut SourceFd(&self.listener.raw_fd()), token, Interest::READABLE)?;
        self.is_armed = true;
        Ok(())
    }

    pub(crate) fn disarm(&mut self, registry: &Registry) {
        if std::mem::take(&mut self.is_armed) {
            // It fails only for a descriptor that is not registered, and then there is nothing to undo.
            let _ = registry.deregister(&mut SourceFd(&self.listener.raw_fd()));
        }
        self.is_ready = false;
    }

    pub(crate) fn attempt(&self) -> Attempt {
        if self.listener.is_closed() {
            return Attempt::Failed(Cause::ORDERLY);
        }
        match sys::accept(self.listener.descriptor()) {
            Ok((descriptor, remote)) => self.admit(descriptor, &remote),
            Err(error) => self.refuse(&error),
        }
    }

    fn admit(&self, descriptor: OwnedFd, remote: &socket2::SockAddr) -> Attempt {
        if !self.server.admit() {
            return Attempt::Dropped;
        }
        Attempt::Accepted(Accepted {
            local: self.listener.local_address(&descriptor),
            remote: address::encode(remote),
            is_unix: self.listener.is_unix(),
            server: self.server.clone(),
            descriptor,
        })
    }

    fn refuse(&self, error: &io::Error) -> Attempt {
        match error.raw_os_error() {
            Some(sys::EAGAIN) => Attempt::Empty,
            Some(sys::EMFILE | sys::ENFILE | sys::ENOBUFS | sys::ENOMEM) => Attempt::Exhausted,
            Some(sys::EINVAL | sys::EBADF | sys::ENOTSOCK | sys::EOPNOTSUPP) => {
                let cause = if self.listener.is_closed() { Cause::ORDERLY } else { Cause::of(error) };
                Attempt::Failed(cause)
            }
            // accept passes on errors of the connection itself (ECONNABORTED, EPROTO, ENETDOWN ...).
            _ => Attempt::Dropped,
        }
    }
}
