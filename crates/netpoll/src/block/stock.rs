//! Which blocks are free, and how much memory is in use.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Chunk, CHUNK_SIZE, SHIFTS};

/// What the table and its chunks share, so that a block finds its way back also when the table is gone.
/// The numbers are Relaxed: they order nothing, each is only compared with itself or a limit.
#[derive(Debug, Default)]
pub(super) struct Stock {
    max_memory: u64,
    /// Bytes of the blocks that are out and of what is charged; never above `max_memory`.
    used: AtomicU64,
    bytes_out: AtomicU64,
    blocks_out: AtomicU64,
    shelves: [Mutex<Shelf>; SHIFTS.len()],
}

/// How much of `max_memory` is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Less than three quarters.
    Low,
    /// Three quarters or more: the rest is for what brings memory back.
    High,
    /// Seven eighths or more.
    Scarce,
    /// There is no room for one more of the largest blocks.
    Full,
}

impl Stock {
    pub(super) fn new(max_memory: u64) -> Arc<Stock> {
        Arc::new(Stock { max_memory, ..Stock::default() })
    }

    pub(super) fn max_memory(&self) -> u64 {
        self.max_memory
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    pub(super) fn blocks_out(&self) -> u64 {
        self.blocks_out.load(Relaxed)
    }

    pub(super) fn shelf(&self, class: usize) -> MutexGuard<'_, Shelf> {
        // A shelf is whole between any two statements that can panic.
        self.shelves[class].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.max_memory);
        self.used.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub(super) fn unreserve(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "more is discharged than was charged");
    }

    pub(super) fn count_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
        self.blocks_out.fetch_add(1, Relaxed);
    }

    /// Takes back a block that has no references.
    pub(super) fn put(&self, chunk: &Chunk, index: u32) {
        let bytes = 1 << chunk.shift;
        let idle = self.shelf(chunk.class).put(chunk.place, index, chunk.counts.len());
        if idle {
            // Nobody can take a block of this chunk before it is back on the shelf. Where the kernel does
            // not take the pages, they stay.
            let _ = chunk.memory.discard(0, CHUNK_SIZE);
            self.shelf(chunk.class).cold.push(chunk.place);
        }
        self.blocks_out.fetch_sub(1, Relaxed);
        self.bytes_out.fetch_sub(bytes, Relaxed);
        // Last: the budget is what bounds the number of chunks, so the block has to be there before it.
        self.unreserve(bytes);
    }
}

/// Free blocks of one size that keep their pages at least: bursts of large blocks come again.
const KEPT: usize = 16;

/// The free blocks of one size.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// For each chunk of this size its number and its free blocks; the last one is used next.
    chunks: Vec<(u32, Vec<u16>)>,
    /// Places in `chunks` where some are free; the last one is used next.
    open: Vec<usize>,
    /// Places whose blocks are all free and have no pages; used when nothing is open.
    cold: Vec<usize>,
    /// Free blocks of all that is open.
    free: usize,
}

impl Shelf {
    pub(super) fn add(&mut self, chunk: u32, blocks: usize) -> usize {
        // The other way round, so that the first block is used first.
        self.chunks.push((chunk, (0..blocks as u16).rev().collect()));
        let place = self.chunks.len() - 1;
        self.cold.push(place);
        place
    }

    /// Chunk and number of a free block.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        if self.open.is_empty() {
            let place = self.cold.pop()?;
            self.open.push(place);
            self.free += self.chunks[place].1.len();
        }
        let (chunk, blocks) = &mut self.chunks[*self.open.last()?];
        let index = blocks.pop()?;
        self.free -= 1;
        if blocks.is_empty() {
            self.open.pop();
        }
        Some((*chunk, index.into()))
    }

    /// Puts a block back. True when all `of` blocks of its chunk are free and there are as many elsewhere:
    /// then the chunk is taken off the shelf, and the caller gives its pages back and adds it to `cold`.
    /// (With fewer elsewhere the next few blocks might need the pages again at once.)
    fn put(&mut self, place: usize, index: u32, of: usize) -> bool {
        let blocks = &mut self.chunks[place].1;
        if blocks.is_empty() {
            self.open.push(place);
        }
        blocks.push(index as u16);
        self.free += 1;
        let idle = blocks.len() == of && self.free >= of + of.max(KEPT);
        if idle {
            self.open.retain(|open| *open != place);
            self.free -= of;
        }
        idle
    }
}
