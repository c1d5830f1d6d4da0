//! Where reads land: blocks that all connections of a poll share one after the other.
//!
//! A thousand connections with small requests need one warm block instead of a thousand. A read is
//! offered the rest of the current block and, when that is short, a spare one behind it (`readv`); what
//! was read becomes a range, and the next read, of whichever connection, goes on behind it.
//!
//! ```text
//!   current  ┌──────┬──────┬──────┬─────────────┐   spare  ┌────────────────────┐
//!            │ c1   │ c2   │ c1   │ offered     │          │ offered, if short  │
//!            └──────┴──────┴──────┴─────────────┘          └────────────────────┘
//!                                 used
//! ```

use std::sync::Arc;

use crate::barrier::Barrier;
use crate::block::{Block, BlockTable, Range};
use crate::sys::IoVec;

/// A read that is offered less than this is offered the spare block too.
const SHORT_OFFER: u32 = 16 * 1024;

/// How much a connection is offered, learnt from what it sends: it grows when a read fills the offer and
/// shrinks after reads that would have fitted the next smaller size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ReadSize {
    class: u8,
    small_reads: u8,
}

impl ReadSize {
    const BLOCKS: [u32; 3] = [64 * 1024, 256 * 1024, 1024 * 1024];
    /// Short reads in a row before the size shrinks: one may be the end of a message.
    const PATIENCE: u8 = 4;

    fn block(self) -> u32 {
        Self::BLOCKS[usize::from(self.class)]
    }

    /// Of a connection that sends little at a time.
    pub(crate) fn is_least(self) -> bool {
        self.class == 0
    }

    /// The same, or the least one when its blocks have more than `most` bytes.
    pub(crate) fn within(self, most: usize) -> ReadSize {
        if self.block() as usize <= most {
            self
        } else {
            ReadSize::default()
        }
    }

    pub(crate) fn learn(&mut self, read: usize) {
        if read >= self.block() as usize / 2 {
            self.class = (self.class + 1).min(Self::BLOCKS.len() as u8 - 1);
            self.small_reads = 0;
        } else if self.class > 0 && read < self.block() as usize / 8 {
            self.small_reads += 1;
            if self.small_reads == Self::PATIENCE {
                *self = ReadSize { class: self.class - 1, small_reads: 0 };
            }
        } else {
            self.small_reads = 0;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Intake {
    table: Arc<BlockTable>,
    shared: [Shared; ReadSize::BLOCKS.len()],
}

/// The current and the spare block of one size. `used <= current.len()`.
#[derive(Debug, Default)]
struct Shared {
    current: Option<Block>,
    used: u32,
    spare: Option<Block>,
}

impl Intake {
    pub(crate) fn new(table: Arc<BlockTable>) -> Intake {
        Intake { table, shared: Default::default() }
    }

    /// Fills the barrier with room for one read and returns how much that is: 0 when memory has run out.
    pub(crate) fn offer(&mut self, size: ReadSize, barrier: &mut Barrier) -> usize {
        barrier.clear();
        let shared = &mut self.shared[usize::from(size.class)];
        let rest = shared.rest();
        if rest < SHORT_OFFER && shared.spare.is_none() {
            shared.spare = self.table.alloc(size.block());
        }
        shared.offer(barrier)
    }

    /// Takes the `read` bytes that were read into the last offer of this size, in one or two ranges.
    pub(crate) fn take(&mut self, size: ReadSize, read: usize) -> impl Iterator<Item = Range> {
        let shared = &mut self.shared[usize::from(size.class)];
        let read = u32::try_from(read).unwrap_or(u32::MAX);
        let first = read.min(shared.rest());
        let head = shared.cut(first);
        if first < read {
            (shared.current, shared.used) = (shared.spare.take(), 0);
        }
        [head, shared.cut(read - first)].into_iter().flatten()
    }

    /// Gives up the blocks that only wait for the next read.
    pub(crate) fn release(&mut self) {
        self.shared = Default::default();
    }
}

impl Shared {
    fn rest(&self) -> u32 {
        self.current.as_ref().map_or(0, |block| block.len() - self.used)
    }

    fn offer(&self, barrier: &mut Barrier) -> usize {
        let mut offered = 0;
        if let Some(current) = self.current.as_ref().filter(|block| self.used < block.len()) {
            let rest = (current.len() - self.used) as usize;
            // SAFETY: `used < len`, so the place lies in the block, which `self` keeps until the read is
            // over; what lies behind `used` has been given to nobody.
            barrier.push(unsafe { IoVec::new(current.as_ptr().add(self.used as usize), rest) });
            offered += rest;
        }
        if let Some(spare) = self.spare.as_ref().filter(|_| self.rest() < SHORT_OFFER) {
            // SAFETY: the whole block, which `self` keeps and has given to nobody.
            barrier.push(unsafe { IoVec::new(spare.as_ptr(), spare.len() as usize) });
            offered += spare.len() as usize;
        }
        offered
    }

    fn cut(&mut self, length: u32) -> Option<Range> {
        let block = self.current.as_ref().filter(|_| length > 0)?.clone();
        let range = Range::new(block, self.used, length)?;
        self.used += length;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intake() -> Intake {
        Intake::new(BlockTable::new(64 << 20))
    }

    #[test]
    fn one_block_serves_many_reads_one_behind_the_other() {
        let mut intake = intake();
        let mut barrier = Barrier::default();
        let size = ReadSize::default();
        let mut places = Vec::new();
        for _ in 0..3 {
            assert!(intake.offer(size, &mut barrier) >= SHORT_OFFER as usize);
            places.extend(intake.take(size, 100).map(|range| range.address()));
        }
        let (chunk, offset) = places[0];
        assert_eq!(places, [(chunk, offset), (chunk, offset + 100), (chunk, offset + 200)]);
        assert_eq!(intake.table.blocks_out(), 1);
    }

    #[test]
    fn a_read_across_the_end_gives_two_ranges_and_goes_on_in_the_spare_block() {
        let mut intake = intake();
        let mut barrier = Barrier::default();
        let size = ReadSize::default();
        intake.offer(size, &mut barrier);
        drop(intake.take(size, 60 * 1024).collect::<Vec<_>>());
        let offered = intake.offer(size, &mut barrier);
        assert_eq!(offered, 4 * 1024 + 64 * 1024);
        let lengths = intake.take(size, 5 * 1024).map(|range| range.len()).collect::<Vec<_>>();
        assert_eq!(lengths, [4 * 1024, 1024]);
        assert_eq!(intake.take(size, 1).map(|range| range.address().1).collect::<Vec<_>>().len(), 1);
    }

    #[test]
    fn without_memory_the_offer_is_empty() {
        let mut intake = Intake::new(BlockTable::new(0));
        assert_eq!(intake.offer(ReadSize::default(), &mut Barrier::default()), 0);
    }

    #[test]
    fn the_size_grows_with_full_reads_and_shrinks_with_patience() {
        let mut size = ReadSize::default();
        size.learn(64 * 1024);
        size.learn(256 * 1024);
        size.learn(1024 * 1024);
        assert_eq!(size.block(), 1024 * 1024);
        (0..ReadSize::PATIENCE - 1).for_each(|_| size.learn(10));
        assert_eq!(size.block(), 1024 * 1024);
        size.learn(10);
        assert_eq!(size.block(), 256 * 1024);
    }

    #[test]
    fn a_size_whose_blocks_are_too_large_gives_way_to_the_least_one() {
        let size = ReadSize { class: 1, small_reads: 3 };
        assert_eq!(size.within(256 * 1024), size);
        assert_eq!(size.within(256 * 1024 - 1), ReadSize::default());
        assert_eq!(ReadSize::default().within(1), ReadSize::default());
    }

    #[test]
    fn what_was_taken_and_dropped_is_back_when_the_intake_lets_go() {
        let mut intake = intake();
        let mut barrier = Barrier::default();
        for _ in 0..100 {
            intake.offer(ReadSize::default(), &mut barrier);
            drop(intake.take(ReadSize::default(), 5000).collect::<Vec<_>>());
        }
        intake.release();
        assert_eq!(intake.table.blocks_out(), 0);
    }
}
