//! The memory that sockets are read into and sent from: blocks, counted by reference, which JavaScript sees
//! too.
//!
//! ```text
//!  BlockTable ── one for each environment
//!   │ chunks
//!   ├─ 0 ──▶ Chunk: 4 MiB divided into blocks of 4 KiB      ◀── Arc held by each mapping in JavaScript
//!   │         ┌─────────┬─────────┬─────────┬─────────┬──
//!   │         │  block  │  block  │  block  │  block  │ …     Range: start and len inside one block,
//!   │         │         │ ▒▒▒▒▒▒  │         │         │       and a reference that keeps it
//!   │         └─────────┴─────────┴─────────┴─────────┴──
//!   │   refs       0         3         1         0            who may use the block
//!   │   lent       0         2         0         0            how many of these JavaScript has
//!   ├─ 1 ──▶ Chunk: 4 MiB divided into blocks of 64 KiB
//!   │ stock
//!   └─ a shelf for each size: the free blocks of its chunks
//! ```
//!
//! A block that is out holds one count of its chunk's Arc, so memory outlives the table where it must.
//! JavaScript may read and write a block at any moment while native code has it: nobody here makes a
//! reference to its bytes, there are only raw pointers.

mod stock;

use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{fence, AtomicU32, AtomicUsize};
use std::sync::{Arc, OnceLock};

pub use self::stock::Pressure;
use self::stock::{Shelf, Stock};
use crate::rations::Rations;
use crate::sys::Mapping;

/// Bytes of a chunk.
pub const CHUNK_SIZE: usize = 4 << 20;

/// Bytes of the smallest block.
pub const MIN_BLOCK: u32 = 4 << 10;

/// Bytes of the largest block.
pub const MAX_BLOCK: u32 = 1 << 20;

/// Logarithms of the block sizes.
const SHIFTS: [u32; 5] = [12, 14, 16, 18, 20];

/// What a table is bounded to when asked for more: a terabyte needs 20 MiB for the list of its chunks.
const MAX_TABLE: u64 = 1 << 40;

/// All blocks of an environment. Any thread may take, lend and drop any of them.
#[derive(Debug)]
pub struct BlockTable {
    /// Filled from the front and never emptied, so that looking one up takes no lock. There is room for
    /// all that can be needed: a size maps another chunk only when all blocks of its chunks are out, and
    /// what is out never exceeds `max_memory`. A chunk that gives its pages back (`Stock::put`) has none to
    /// give meanwhile, so there may be one more for each thread that is at that; should there be no room for
    /// it, there is no memory at that moment.
    chunks: Box<[OnceLock<Arc<Chunk>>]>,
    /// How many of `chunks` have been given to someone to fill.
    mapped: AtomicUsize,
    stock: Arc<Stock>,
    /// Who may still read when little is left.
    pub(crate) rations: Rations,
}

impl BlockTable {
    /// A table whose blocks, together with what is charged, never take more than `max_memory` bytes.
    pub fn new(max_memory: u64) -> Arc<BlockTable> {
        let max_memory = max_memory.min(MAX_TABLE);
        let room = SHIFTS.len() * (max_memory as usize / CHUNK_SIZE + 1);
        Arc::new(BlockTable {
            chunks: (0..room).map(|_| OnceLock::new()).collect(),
            mapped: AtomicUsize::new(0),
            stock: Stock::new(max_memory),
            rations: Rations::default(),
        })
    }

    /// A block of the smallest size that holds `size` bytes. None when there is no such size, when it would
    /// pass `max_memory`, or when the system has no memory.
    pub fn alloc(&self, size: u32) -> Option<Block> {
        let class = SHIFTS.iter().position(|shift| size <= 1 << shift)?;
        let bytes = 1 << SHIFTS[class];
        if !self.stock.reserve(bytes) {
            return None;
        }
        let block = self.take(class);
        match block {
            Some(_) => self.stock.count_out(bytes),
            None => self.stock.unreserve(bytes),
        }
        block
    }

    /// Takes back `count` references that were lent, of the block at `offset`. False, and nothing has
    /// changed, when there is no such block or fewer are lent. All arguments may be anything.
    pub fn give_back(&self, chunk: u32, offset: u32, count: u32) -> bool {
        let Some((chunk, index)) = self.locate(chunk, offset) else { return false };
        if !chunk.count(index).take_lent(count) {
            return false;
        }
        // SAFETY: what has just been taken from `lent` are `count` references that nobody else owns, and
        // they keep the block out and with it the chunk.
        unsafe { release(pointer(chunk), index, count) };
        true
    }

    /// Takes back all that is lent: JavaScript has ended, and says no more. What it has mapped stays until it lets go
    /// of that.
    pub fn take_back_all(&self) {
        for chunk in self.chunks.iter().filter_map(OnceLock::get) {
            for index in 0..chunk.counts.len() as u32 {
                // Acquire: with the Release of `lend`.
                let lent = chunk.count(index).lent.swap(0, Acquire);
                if lent > 0 {
                    // SAFETY: as in `give_back`.
                    unsafe { release(pointer(chunk), index, lent) };
                }
            }
        }
    }

    /// One more lent reference of the block at `offset`, which has some. False, and nothing has changed, when
    /// it has none. Both arguments may be anything.
    pub fn share(&self, chunk: u32, offset: u32) -> bool {
        let block = self.lent_block(chunk, offset);
        block.map(Block::lend).is_some()
    }

    /// A new reference to a range of a block that is lent. None when the range is empty, crosses a block,
    /// or its block is not lent. All arguments may be anything.
    pub fn range(&self, chunk: u32, offset: u32, len: u32) -> Option<Range> {
        let block = self.lent_block(chunk, offset)?;
        let start = offset & (block.len() - 1);
        (len > 0).then(|| Range::new(block, start, len))?
    }

    /// The chunk with this number, for a mapping, which keeps it.
    #[inline]
    pub fn chunk(&self, index: u32) -> Option<Arc<Chunk>> {
        self.find(index).cloned()
    }

    /// Charges memory that is held for connections but lies in no block (pins, backlogs); false when it
    /// would pass `max_memory`.
    pub fn charge(&self, bytes: u64) -> bool {
        self.stock.reserve(bytes)
    }

    /// Takes back what was charged.
    pub fn discharge(&self, bytes: u64) {
        self.stock.unreserve(bytes);
    }

    /// How near to `max_memory` blocks and charges are.
    pub fn pressure(&self) -> Pressure {
        let max = self.stock.max_memory();
        let left = max.saturating_sub(self.stock.used());
        if left < u64::from(MAX_BLOCK) {
            Pressure::Full
        } else if left <= max / 8 {
            Pressure::Scarce
        } else if left <= max / 4 {
            Pressure::High
        } else {
            Pressure::Low
        }
    }

    /// Whether so much is out (1/8 of `max_memory`) that small reads should not share blocks any more:
    /// one unread byte can hold a shared block.
    pub fn above_shared_limit(&self) -> bool {
        self.bytes_out() > self.stock.max_memory() / 8
    }

    /// Bytes of the blocks that are out.
    pub fn bytes_out(&self) -> u64 {
        self.stock.bytes_out()
    }

    /// How many blocks are out.
    pub fn blocks_out(&self) -> u64 {
        self.stock.blocks_out()
    }

    /// Bytes of address space that chunks take.
    pub fn chunk_bytes(&self) -> u64 {
        (self.mapped.load(Relaxed).min(self.chunks.len()) * CHUNK_SIZE) as u64
    }

    /// The limit.
    pub fn max_memory(&self) -> u64 {
        self.stock.max_memory()
    }

    /// A new reference to the block at `offset`, if it is lent.
    #[inline]
    fn lent_block(&self, chunk: u32, offset: u32) -> Option<Block> {
        let (chunk, index) = self.locate(chunk, offset)?;
        let block = Block::revive(chunk, index)?;
        // Relaxed: who names a lent block has learned of it after `lend`. A give_back meanwhile does no
        // harm, for the block can not be free any more.
        (chunk.count(index).lent.load(Relaxed) > 0).then_some(block)
    }

    #[inline]
    fn find(&self, index: u32) -> Option<&Arc<Chunk>> {
        self.chunks.get(index as usize)?.get()
    }

    /// The chunk and the number of the block in it.
    #[inline]
    fn locate(&self, chunk: u32, offset: u32) -> Option<(&Arc<Chunk>, u32)> {
        let chunk = self.find(chunk)?;
        ((offset as usize) < CHUNK_SIZE).then_some((chunk, offset >> chunk.shift))
    }

    fn take(&self, class: usize) -> Option<Block> {
        let mut shelf = self.stock.shelf(class);
        let (chunk, index) = shelf.take().or_else(|| {
            self.add_chunk(class, &mut shelf)?;
            shelf.take()
        })?;
        drop(shelf);
        Some(Block::first(self.find(chunk)?, index))
    }

    fn add_chunk(&self, class: usize, shelf: &mut Shelf) -> Option<()> {
        let memory = Mapping::new(CHUNK_SIZE).ok()?;
        // Relaxed: this only makes the number unique; the OnceLock publishes the chunk.
        let index = self.mapped.fetch_add(1, Relaxed);
        let room = self.chunks.get(index)?;
        let shift = SHIFTS[class];
        let counts = (0..CHUNK_SIZE >> shift).map(|_| Count::default()).collect();
        let place = shelf.add(index as u32, CHUNK_SIZE >> shift);
        let stock = self.stock.clone();
        room.set(Arc::new(Chunk { memory, shift, counts, index: index as u32, class, place, stock })).ok()
    }
}

/// Memory divided into blocks of one size. It is unmapped when the table, all its blocks and all mappings
/// in JavaScript have let go of it.
#[derive(Debug)]
pub struct Chunk {
    memory: Mapping,
    /// Logarithm of the size of its blocks.
    shift: u32,
    counts: Box<[Count]>,
    index: u32,
    class: usize,
    /// Its number on the shelf.
    place: usize,
    stock: Arc<Stock>,
}

impl Chunk {
    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Length in bytes: `CHUNK_SIZE`.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Logarithm of the size of its blocks.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// The counts of the block `index`, which came from the stock or from an offset inside the chunk.
    #[inline]
    fn count(&self, index: u32) -> &Count {
        &self.counts[index as usize]
    }
}

/// One reference to a block; a clone is one more. With the last one the block goes back to the stock.
#[derive(Debug)]
pub struct Block {
    /// Points into the Arc of which this block, as long as it is out, owns one count.
    chunk: NonNull<Chunk>,
    index: u32,
}

// SAFETY: the counts are atomic, the stock is behind locks, and the memory is only handed out as a pointer.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// The number of its chunk.
    #[inline]
    pub fn chunk(&self) -> u32 {
        self.home().index
    }

    /// Where it begins in its chunk.
    #[inline]
    pub fn offset(&self) -> u32 {
        self.index << self.home().shift
    }

    /// Its size in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u32 {
        1 << self.home().shift
    }

    /// Its first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.home().as_ptr().wrapping_add(self.offset() as usize)
    }

    /// Lends this reference to JavaScript, until `BlockTable::give_back`.
    #[inline]
    pub fn lend(self) {
        // Release: with the Acquire of take_lent, so that whoever takes this one back finds it in `refs`.
        self.home().count(self.index).lent.fetch_add(1, Release);
        // What this value counted for in `refs` belongs to JavaScript now.
        std::mem::forget(self);
    }

    /// The first reference to a block that the stock has just handed out.
    fn first(chunk: &Arc<Chunk>, index: u32) -> Block {
        let block = Block { chunk: pointer(chunk), index };
        // The count that `release` drops.
        let _ = Arc::into_raw(chunk.clone());
        // Relaxed: whoever gets a reference gets it from this one. The previous life of the block ended
        // before its lock on the shelf, ours began after.
        block.home().count(index).refs.store(1, Relaxed);
        block
    }

    /// One more reference, if there is still one.
    fn revive(chunk: &Arc<Chunk>, index: u32) -> Option<Block> {
        // Relaxed: the ring that brought the address has ordered the bytes, `release` orders the end.
        let more = |refs| if refs == 0 { None } else { Some(refs + 1) };
        chunk.count(index).refs.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Block { chunk: pointer(chunk), index })
    }

    #[inline]
    fn home(&self) -> &Chunk {
        // SAFETY: this reference keeps the block out, and the block keeps the chunk.
        unsafe { self.chunk.as_ref() }
    }
}

impl Clone for Block {
    /// One atomic addition. It can not overflow: each of 2^32 references would take memory of its own.
    #[inline]
    fn clone(&self) -> Block {
        // Relaxed: `self` keeps the count above 0, there is nothing to order yet.
        self.home().count(self.index).refs.fetch_add(1, Relaxed);
        Block { ..*self }
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns ends here.
        unsafe { release(self.chunk, self.index, 1) };
    }
}

/// Part of a block, and a reference that keeps it. `start + len <= block.len()` always.
#[derive(Clone, Debug)]
pub struct Range {
    block: Block,
    start: u32,
    len: u32,
}

impl Range {
    /// `len` bytes from `start` of the block; None when they do not lie in it.
    #[inline]
    pub fn new(block: Block, start: u32, len: u32) -> Option<Range> {
        let inside = start.checked_add(len).is_some_and(|end| end <= block.len());
        inside.then_some(Range { block, start, len })
    }

    /// The block that it is part of.
    #[inline]
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.block.as_ptr().wrapping_add(self.start as usize)
    }

    /// Chunk, and where it begins in the chunk.
    #[inline]
    pub fn address(&self) -> (u32, u32) {
        (self.block.chunk(), self.block.offset() + self.start)
    }

    /// Lends the range's reference to JavaScript: chunk, offset in the chunk, and length.
    #[inline]
    pub fn lend(self) -> (u32, u32, u32) {
        let (chunk, offset) = self.address();
        let Range { block, len, .. } = self;
        block.lend();
        (chunk, offset, len)
    }

    /// Drops the first `n` bytes, at most all.
    #[inline]
    pub fn advance(&mut self, n: u32) {
        let n = n.min(self.len);
        self.start += n;
        self.len -= n;
    }

    /// The same bytes in a block of their own. None when there is no memory.
    pub fn copied(&self, table: &BlockTable) -> Option<Range> {
        let block = table.alloc(self.len)?;
        // SAFETY: both are held here, the new block is at least as long as the range and nobody else has it
        // yet. Whether JavaScript still writes to the range changes which bytes are copied, nothing else.
        unsafe { self.as_ptr().copy_to_nonoverlapping(block.as_ptr(), self.len as usize) };
        Range::new(block, 0, self.len)
    }

    /// Becomes longer by `next` if that begins in the same block where this ends; otherwise gives it back.
    #[inline]
    pub fn join(&mut self, next: Range) -> Result<(), Range> {
        let same = self.block.chunk == next.block.chunk && self.block.index == next.block.index;
        if !same || self.start + self.len != next.start {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }
}

/// The references of one block. `lent <= refs`; both are 0 while it is free.
#[derive(Debug, Default)]
struct Count {
    refs: AtomicU32,
    /// How many of `refs` belong to JavaScript.
    lent: AtomicU32,
}

impl Count {
    /// Takes `count` out of `lent`, if there are as many and that is not 0.
    fn take_lent(&self, count: u32) -> bool {
        let less = |lent: u32| if count == 0 { None } else { lent.checked_sub(count) };
        // Acquire: with the Release of `lend`.
        self.lent.fetch_update(Acquire, Relaxed, less).is_ok()
    }
}

fn pointer(chunk: &Arc<Chunk>) -> NonNull<Chunk> {
    // SAFETY: an Arc never points to null.
    unsafe { NonNull::new_unchecked(Arc::as_ptr(chunk).cast_mut()) }
}

/// Ends `n` references of a block, which goes back to the stock with the last one.
///
/// # Safety
/// The caller owns these references, and does not use them any more.
#[inline]
unsafe fn release(chunk: NonNull<Chunk>, index: u32, n: u32) {
    // SAFETY: the caller's references keep the chunk until they are subtracted.
    let count = unsafe { chunk.as_ref() }.count(index);
    // Release: with the fence below in whichever thread ends the last reference.
    if count.refs.fetch_sub(n, Release) == n {
        // Acquire: with the Release above in all threads that had one. Their use of the block is over
        // before it is handed out again.
        fence(Acquire);
        // SAFETY: from `Block::first`, which left this count for the end of the last reference.
        let chunk = unsafe { Arc::from_raw(chunk.as_ptr()) };
        chunk.stock.put(&chunk, index);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(block: &Block, byte: u8) {
        // SAFETY: the block is 4 KiB or more and this test alone has it.
        unsafe { block.as_ptr().write_bytes(byte, MIN_BLOCK as usize) }
    }

    fn first_byte(block: &Block) -> u8 {
        // SAFETY: as in `write`.
        unsafe { block.as_ptr().read() }
    }

    #[test]
    fn a_block_is_of_the_smallest_size_that_fits() {
        let table = BlockTable::new(64 * MIB);
        let sizes = [(0, 12), (1, 12), (4096, 12), (4097, 14), (16385, 16), (65537, 18), (MAX_BLOCK, 20)];
        for (size, shift) in sizes {
            let block = table.alloc(size).unwrap();
            assert_eq!(block.len(), 1 << shift);
            assert_eq!(block.offset() % block.len(), 0);
            assert_eq!(table.chunk(block.chunk()).unwrap().shift(), shift);
        }
        assert!(table.alloc(MAX_BLOCK + 1).is_none());
        assert_eq!((table.blocks_out(), table.bytes_out()), (0, 0));
    }

    #[test]
    fn blocks_that_are_out_never_overlap_and_all_come_back() {
        let table = BlockTable::new(64 * MIB);
        let blocks: Vec<Block> = (0..3000).map(|_| table.alloc(MIN_BLOCK).unwrap()).collect();
        let places: HashSet<_> = blocks.iter().map(|block| (block.chunk(), block.offset())).collect();
        assert_eq!(places.len(), 3000);
        assert_eq!((table.blocks_out(), table.bytes_out()), (3000, 3000 * 4096));
        assert_eq!(table.chunk_bytes(), 3 * CHUNK_SIZE as u64);
        drop(blocks);
        assert_eq!((table.blocks_out(), table.bytes_out()), (0, 0));
    }

    #[test]
    fn the_block_that_came_back_last_is_used_first() {
        let table = BlockTable::new(64 * MIB);
        let [a, b] = [table.alloc(1).unwrap(), table.alloc(1).unwrap()];
        let (first, second) = (a.offset(), b.offset());
        drop(b);
        drop(a);
        let again = [table.alloc(1).unwrap(), table.alloc(1).unwrap()];
        assert_eq!(again.map(|block| block.offset()), [first, second]);
    }

    #[test]
    fn a_block_goes_back_with_its_last_clone() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        let clone = block.clone();
        drop(block);
        assert_eq!(table.blocks_out(), 1);
        drop(clone);
        assert_eq!(table.blocks_out(), 0);
    }

    #[test]
    fn blocks_and_charges_together_stay_below_max_memory() {
        let table = BlockTable::new(4 * MIB);
        assert!(table.charge(MIB));
        let blocks: Vec<_> = (0..4).map(|_| table.alloc(MAX_BLOCK)).collect();
        assert_eq!(blocks.iter().flatten().count(), 3);
        assert!(!table.charge(1));
        assert!(table.alloc(1).is_none());
        table.discharge(MIB);
        assert!(table.alloc(MAX_BLOCK).is_some());
    }

    #[test]
    fn a_charge_without_bounds_is_refused() {
        let table = BlockTable::new(4 * MIB);
        assert!(table.charge(1));
        assert!(!table.charge(u64::MAX));
    }

    #[test]
    fn any_mix_of_sizes_finds_a_chunk_until_max_memory_is_reached() {
        let table = BlockTable::new(5 * MIB);
        for _ in 0..3 {
            for size in SHIFTS.map(|shift| 1 << shift) {
                let blocks: Vec<_> = std::iter::from_fn(|| table.alloc(size)).collect();
                assert_eq!(blocks.len() as u64, 5 * MIB / u64::from(size));
            }
        }
        assert_eq!(table.bytes_out(), 0);
    }

    #[test]
    fn pressure_rises_with_what_is_used_and_falls_again() {
        let table = BlockTable::new(16 * MIB);
        assert!(table.charge(12 * MIB - 1));
        assert_eq!(table.pressure(), Pressure::Low);
        assert!(table.charge(1));
        assert_eq!(table.pressure(), Pressure::High);
        assert!(table.charge(2 * MIB));
        assert_eq!(table.pressure(), Pressure::Scarce);
        assert!(table.charge(MIB + 1));
        assert_eq!(table.pressure(), Pressure::Full);
        table.discharge(15 * MIB + 1);
        assert_eq!(table.pressure(), Pressure::Low);
    }

    #[test]
    fn the_shared_limit_is_an_eighth() {
        let table = BlockTable::new(8 * MIB);
        let _one = table.alloc(MAX_BLOCK).unwrap();
        assert!(!table.above_shared_limit());
        let _another = table.alloc(1).unwrap();
        assert!(table.above_shared_limit());
    }

    #[test]
    fn a_lent_block_comes_back_when_javascript_has_given_back_all() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        let (chunk, offset) = (block.chunk(), block.offset());
        block.clone().lend();
        block.clone().lend();
        drop(block);
        assert!(table.give_back(chunk, offset, 1));
        assert_eq!(table.blocks_out(), 1);
        assert!(table.give_back(chunk, offset + 4095, 1));
        assert_eq!(table.blocks_out(), 0);
    }

    #[test]
    fn all_that_is_lent_can_be_taken_back_and_what_others_hold_stays() {
        let table = BlockTable::new(64 * MIB);
        let [once, often, ours] = [1, 65_536, 1].map(|size| table.alloc(size).unwrap());
        often.clone().lend();
        often.lend();
        once.lend();
        ours.clone().lend();
        let chunk = Arc::downgrade(&table.chunk(ours.chunk()).unwrap());
        table.take_back_all();
        assert_eq!((table.blocks_out(), table.bytes_out()), (1, 4096));
        assert!(!table.give_back(ours.chunk(), ours.offset(), 1), "it is not lent any more");
        drop((table, ours));
        assert!(chunk.upgrade().is_none(), "the memory is unmapped");
    }

    #[test]
    fn nothing_is_given_back_that_was_not_lent() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        let (chunk, offset) = (block.chunk(), block.offset());
        assert!(!table.give_back(chunk, offset, 1));
        block.clone().lend();
        let wrong = [(chunk + 1, offset, 1), (u32::MAX, offset, 1), (chunk, CHUNK_SIZE as u32, 1)];
        for (chunk, offset, count) in wrong {
            assert!(!table.give_back(chunk, offset, count));
        }
        for count in [0, 2, u32::MAX] {
            assert!(!table.give_back(chunk, offset, count));
        }
        assert!(!table.give_back(chunk, offset + MIN_BLOCK, 1));
        assert!(table.give_back(chunk, offset, 1));
        assert!(!table.give_back(chunk, offset, 1));
        assert_eq!(table.blocks_out(), 1);
    }

    #[test]
    fn a_range_of_a_lent_block_keeps_it_after_it_was_given_back() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        let (chunk, offset, start) = (block.chunk(), block.offset(), block.as_ptr());
        block.clone().lend();
        drop(block);
        let range = table.range(chunk, offset + 10, 20).unwrap();
        assert!(table.give_back(chunk, offset, 1));
        assert_eq!(table.blocks_out(), 1);
        assert_eq!((range.len(), range.address()), (20, (chunk, offset + 10)));
        assert_eq!(range.as_ptr(), start.wrapping_add(10));
        drop(range);
        assert_eq!(table.blocks_out(), 0);
    }

    #[test]
    fn there_is_no_range_outside_of_a_lent_block() {
        let table = BlockTable::new(64 * MIB);
        let (block, held) = (table.alloc(1).unwrap(), table.alloc(1).unwrap());
        let (chunk, offset) = (block.chunk(), block.offset());
        block.clone().lend();
        assert!(table.range(chunk, offset, MIN_BLOCK).is_some());
        let wrong = [
            (chunk, offset, 0),
            (chunk, offset, MIN_BLOCK + 1),
            (chunk, offset + 1, MIN_BLOCK),
            (chunk, offset + 1, u32::MAX),
            (chunk, u32::MAX, 1),
            (chunk + 1, offset, 1),
            (held.chunk(), held.offset(), 1),
            (chunk, 2 * MIN_BLOCK, 1),
        ];
        for (chunk, offset, len) in wrong {
            assert!(table.range(chunk, offset, len).is_none(), "{chunk} {offset} {len}");
        }
        assert!(table.give_back(chunk, offset, 1));
        assert!(table.range(chunk, offset, 1).is_none());
        drop((block, held));
        assert_eq!(table.blocks_out(), 0);
    }

    #[test]
    fn a_range_lies_in_its_block_and_becomes_shorter_from_the_front() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        for (start, len) in [(0, MIN_BLOCK + 1), (MIN_BLOCK, 1), (u32::MAX, 1), (1, u32::MAX)] {
            assert!(Range::new(block.clone(), start, len).is_none());
        }
        let mut range = Range::new(block.clone(), 1, 5).unwrap();
        range.advance(2);
        assert_eq!((range.len(), range.address().1), (3, block.offset() + 3));
        range.advance(9);
        assert!(range.is_empty());
        assert_eq!(range.address().1, block.offset() + 6);
    }

    #[test]
    fn ranges_join_only_where_they_touch_in_one_block() {
        let table = BlockTable::new(64 * MIB);
        let (block, next) = (table.alloc(1).unwrap(), table.alloc(1).unwrap());
        let mut range = Range::new(block.clone(), 0, 5).unwrap();
        range.join(Range::new(block.clone(), 5, 3).unwrap()).unwrap();
        assert_eq!(range.len(), 8);
        range.join(Range::new(block.clone(), 9, 1).unwrap()).unwrap_err();
        range.join(Range::new(next, 8, 1).unwrap()).unwrap_err();
        assert_eq!(range.len(), 8);
    }

    /// Sixteen of these are a chunk.
    const QUARTER: u32 = 256 << 10;

    #[test]
    fn an_idle_chunk_gives_its_pages_back_and_is_used_again() {
        let table = BlockTable::new(64 * MIB);
        let mut blocks: Vec<Block> = (0..32).map(|_| table.alloc(QUARTER).unwrap()).collect();
        blocks.iter().for_each(|block| write(block, 7));
        let address = blocks[31].as_ptr();
        blocks.drain(0..16);
        blocks.clear();
        let chunk = table.chunk(1).unwrap();
        assert!((chunk.as_ptr()..chunk.as_ptr().wrapping_add(chunk.len())).contains(&address));
        // SAFETY: the chunk is mapped, and no block of it is out.
        assert_eq!(unsafe { address.read() }, 0, "the pages are gone");
        let blocks: Vec<Block> = (0..32).map(|_| table.alloc(QUARTER).unwrap()).collect();
        assert_eq!(blocks.iter().map(first_byte).filter(|byte| *byte == 7).count(), 16, "one chunk was kept");
        assert_eq!(table.chunk_bytes(), 2 * CHUNK_SIZE as u64);
    }

    #[test]
    fn a_chunk_whose_pages_are_gone_is_used_after_the_others() {
        let table = BlockTable::new(64 * MIB);
        let mut blocks: Vec<Block> = (0..32).map(|_| table.alloc(QUARTER).unwrap()).collect();
        blocks.drain(0..16);
        blocks.clear();
        let chunks: Vec<u32> = (0..32).map(|_| table.alloc(QUARTER).unwrap().chunk()).collect();
        assert_eq!(chunks, [0; 32]);
    }

    #[test]
    fn the_only_idle_chunk_of_a_size_keeps_its_pages() {
        let table = BlockTable::new(64 * MIB);
        let block = table.alloc(1).unwrap();
        write(&block, 7);
        let place = (block.chunk(), block.offset());
        drop(block);
        let block = table.alloc(1).unwrap();
        assert_eq!(((block.chunk(), block.offset()), first_byte(&block)), (place, 7));
    }

    #[test]
    fn blocks_and_chunks_outlive_the_table() {
        let table = BlockTable::new(64 * MIB);
        let (block, other) = (table.alloc(1).unwrap(), table.alloc(MAX_BLOCK).unwrap());
        let mapping = table.chunk(other.chunk()).unwrap();
        let stock = Arc::downgrade(&table.stock);
        drop((table, other));
        write(&block, 7);
        assert_eq!(first_byte(&block), 7);
        drop(block);
        // SAFETY: the mapping keeps its chunk.
        assert_eq!(unsafe { mapping.as_ptr().read() }, 0);
        assert!(stock.upgrade().is_some());
        drop(mapping);
        assert!(stock.upgrade().is_none(), "the last chunk is gone");
    }

    #[test]
    fn two_threads_that_share_blocks_lose_none() {
        let table = BlockTable::new(32 * MIB);
        let (send, receive) = std::sync::mpsc::sync_channel::<Block>(64);
        let maker = table.clone();
        let thread = thread::spawn(move || {
            for i in 0..20_000u32 {
                let block = maker.alloc(1 << (12 + i % 5)).unwrap();
                write(&block, i as u8);
                let clone = block.clone();
                send.send(block).unwrap();
                assert_eq!(first_byte(&clone), i as u8, "nobody else has the block");
            }
        });
        let mut received = 0u32;
        for block in receive {
            assert_eq!(first_byte(&block.clone()), received as u8);
            received += 1;
        }
        thread.join().unwrap();
        assert_eq!((received, table.blocks_out(), table.bytes_out()), (20_000, 0, 0));
        assert_eq!(table.pressure(), Pressure::Low);
    }

    #[test]
    fn what_one_thread_lends_another_can_send_and_give_back() {
        let table = BlockTable::new(32 * MIB);
        let (send, receive) = std::sync::mpsc::sync_channel::<(u32, u32)>(64);
        let lender = table.clone();
        let thread = thread::spawn(move || {
            for _ in 0..20_000 {
                let block = lender.alloc(1).unwrap();
                block.clone().lend();
                send.send((block.chunk(), block.offset())).unwrap();
            }
        });
        for (chunk, offset) in receive {
            let range = table.range(chunk, offset, 8).unwrap();
            assert!(table.give_back(chunk, offset, 1));
            assert_eq!(range.address(), (chunk, offset));
        }
        thread.join().unwrap();
        assert_eq!((table.blocks_out(), table.bytes_out()), (0, 0));
    }
}
