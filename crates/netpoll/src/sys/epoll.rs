//! What is asked of epoll, through mio.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

#[cfg(feature = "fault")]
use super::fault;
use super::through;

/// Lets the descriptor's events be told, of which those that are true already come at once.
pub fn register(registry: &Registry, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
    through("epoll_ctl", || registry.register(&mut SourceFd(&fd), token, interest))?;
    #[cfg(feature = "fault")]
    fault::note(registry, fd, token, interest);
    Ok(())
}

/// The same for one that is registered.
pub fn reregister(registry: &Registry, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
    through("epoll_ctl", || registry.reregister(&mut SourceFd(&fd), token, interest))?;
    #[cfg(feature = "fault")]
    fault::note(registry, fd, token, interest);
    Ok(())
}

/// Nothing more is told of it. It fails for a descriptor that is not registered.
pub fn deregister(registry: &Registry, fd: RawFd) -> io::Result<()> {
    through("epoll_ctl", || registry.deregister(&mut SourceFd(&fd)))?;
    #[cfg(feature = "fault")]
    fault::forget(fd);
    Ok(())
}

/// Waits for events, at most for the timeout.
pub fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    through("epoll_wait", || poll.poll(events, timeout))
}
