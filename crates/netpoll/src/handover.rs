//! Open descriptors on their way from the polls to JavaScript.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps each descriptor that a DETACHED names until JavaScript has heard of it: if it never does, because its
/// environment ends or the poll dies, the descriptor is closed.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// With the poll that has let go of it.
    waiting: Mutex<Vec<(usize, OwnedFd)>>,
}

impl Handover {
    /// The number by which it can be taken.
    pub(crate) fn offer(&self, poll: usize, descriptor: OwnedFd) -> RawFd {
        let fd = descriptor.as_raw_fd();
        self.lock().push((poll, descriptor));
        fd
    }

    /// `None` when nobody has offered it, or it is closed already.
    pub(crate) fn take(&self, fd: RawFd) -> Option<OwnedFd> {
        let mut waiting = self.lock();
        let place = waiting.iter().position(|(_, descriptor)| descriptor.as_raw_fd() == fd)?;
        Some(waiting.swap_remove(place).1)
    }

    /// Closes what the poll has offered: no record of it will be heard.
    pub(crate) fn forget(&self, poll: usize) {
        self.lock().retain(|(from, _)| *from != poll);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, OwnedFd)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn offer(handover: &Handover, poll: usize) -> (RawFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (handover.offer(poll, ours.into()), theirs)
    }

    fn is_closed(mut peer: &UnixStream) -> bool {
        peer.read(&mut [0]).is_ok_and(|read| read == 0)
    }

    #[test]
    fn a_descriptor_is_taken_open_and_once() {
        let handover = Handover::default();
        let (fd, peer) = offer(&handover, 0);
        let taken = handover.take(fd).unwrap();
        assert!(handover.take(fd).is_none());
        handover.forget(0);
        assert!(taken.as_raw_fd() == fd && !is_closed(&peer));
    }

    #[test]
    fn what_a_poll_has_offered_in_vain_is_closed() {
        let handover = Handover::default();
        let (gone, kept) = (offer(&handover, 0), offer(&handover, 1));
        handover.forget(0);
        assert!(is_closed(&gone.1) && !is_closed(&kept.1));
        assert!(handover.take(gone.0).is_none() && handover.take(kept.0).is_some());
    }
}
