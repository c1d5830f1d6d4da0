//! Scratch for the system calls that take many pieces of memory at once.

use crate::sys::IoVec;

/// The most pieces of one readv or sendmsg. More would not fit what a socket takes at once.
pub const BARRIER_LEN: usize = 32;

/// Room for the pieces of one system call. They are valid while the blocks and pins are held that they were
/// taken from: fill a barrier, make the call, and only then change the buffer.
#[derive(Debug)]
pub struct Barrier {
    iovecs: [IoVec; BARRIER_LEN],
    count: usize,
}

impl Barrier {
    /// Adds a piece. False when there is no room.
    #[inline]
    pub fn push(&mut self, iovec: IoVec) -> bool {
        let Some(place) = self.iovecs.get_mut(self.count) else { return false };
        *place = iovec;
        self.count += 1;
        true
    }

    /// The pieces that were added.
    #[inline]
    pub fn as_slice(&self) -> &[IoVec] {
        &self.iovecs[..self.count]
    }

    /// Forgets all pieces.
    #[inline]
    pub fn clear(&mut self) {
        self.count = 0;
    }
}

impl Default for Barrier {
    fn default() -> Barrier {
        Barrier { iovecs: [IoVec::EMPTY; BARRIER_LEN], count: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_holds_32_pieces_and_refuses_more() {
        let mut barrier = Barrier::default();
        assert_eq!((0..40).filter(|_| barrier.push(IoVec::EMPTY)).count(), BARRIER_LEN);
        assert_eq!(barrier.as_slice().len(), BARRIER_LEN);
        barrier.clear();
        assert!(barrier.as_slice().is_empty());
    }
}
