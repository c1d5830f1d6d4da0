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
    /// The number by which it can be taken from this poll.
    pub(crate) fn offer(&self, poll: usize, descriptor: OwnedFd) -> RawFd {
        let fd = descriptor.as_raw_fd();
        self.lock().push((poll, descriptor));
        fd
    }

    /// `None` when the poll has not offered it, or it is closed already. Its number may be that of another one then,
    /// which another poll has offered since.
    pub(crate) fn take(&self, poll: usize, fd: RawFd) -> Option<OwnedFd> {
        let mut waiting = self.lock();
        let is_meant = |(from, descriptor): &(usize, OwnedFd)| *from == poll && descriptor.as_raw_fd() == fd;
        let place = waiting.iter().position(is_meant)?;
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
        let taken = handover.take(0, fd).unwrap();
        assert!(handover.take(0, fd).is_none());
        handover.forget(0);
        assert!(taken.as_raw_fd() == fd && !is_closed(&peer));
    }

    #[test]
    fn what_a_poll_has_offered_in_vain_is_closed() {
        let handover = Handover::default();
        let (gone, kept) = (offer(&handover, 0), offer(&handover, 1));
        handover.forget(0);
        assert!(is_closed(&gone.1) && !is_closed(&kept.1));
        assert!(handover.take(0, gone.0).is_none() && handover.take(1, kept.0).is_some());
    }

    #[test]
    fn a_number_that_was_a_dead_polls_does_not_give_what_another_poll_has_offered_since() {
        let handover = Handover::default();
        let (fd, peer) = offer(&handover, 1);
        assert!(handover.take(0, fd).is_none() && !is_closed(&peer));
        assert!(handover.take(1, fd).is_some());
    }
}
