//! Any calls of a LinkBuffer against the bytes that it should hold.

use std::sync::Arc;

use super::bytes::Bytes;
use crate::barrier::{Barrier, BARRIER_LEN};
use crate::block::{Block, BlockTable, Range, MAX_BLOCK};
use crate::link_buffer::{Hold, LinkBuffer};
use crate::pin::PinTable;
use crate::sys::IoVec;

/// Bytes of a case's blocks together.
const MAX_MEMORY: u64 = 16 << 20;

/// Makes calls of the bytes, and compares the buffer with a plain sequence of bytes after each of them. What a buffer
/// has lent stays what it was, whoever gets the blocks that came back; in the end all of them have.
pub fn link_buffer_ops(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut bench = Bench::new();
    while !bytes.is_empty() {
        bench.step(&mut bytes);
        bench.check();
    }
    bench.give_everything_back();
}

struct Bench {
    table: Arc<BlockTable>,
    pins: Arc<PinTable>,
    buffer: LinkBuffer,
    /// What it should hold, and behind how many bytes that begins.
    model: Vec<u8>,
    passed: usize,
    lent: Vec<Lent>,
    /// The block of the last range and where that ends, for one that touches it, or nearly so.
    last: Option<(Block, u32)>,
    charged: u64,
    /// How many bytes were ever pushed.
    pushed: usize,
}

/// What the buffer has let go of, and what it looked like then.
struct Lent {
    _holds: Vec<Hold>,
    pieces: Vec<(*const u8, usize)>,
    bytes: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            table: BlockTable::new(MAX_MEMORY),
            pins: PinTable::new(),
            buffer: LinkBuffer::default(),
            model: Vec::new(),
            passed: 0,
            lent: Vec::new(),
            last: None,
            charged: 0,
            pushed: 0,
        }
    }

    fn step(&mut self, bytes: &mut Bytes) {
        match bytes.byte() % 12 {
            0 | 1 => self.push(bytes.word() % (2 * MAX_BLOCK), bytes.word(), u32::from(bytes.half())),
            2 => self.push_behind_the_last(0, u32::from(bytes.half())),
            3 => self.push_behind_the_last(u32::from(bytes.byte()), u32::from(bytes.half())),
            4 => self.push_pin(bytes.up_to(PINNED.len()), bytes.up_to(PINNED.len())),
            5 => self.advance(bytes.up_to(u16::MAX.into())),
            6 => self.lend(bytes.up_to(u16::MAX.into())),
            7 if !self.lent.is_empty() => drop(self.lent.swap_remove(bytes.up_to(self.lent.len() - 1))),
            8 => self.buffer.detach_small_tail(&self.table),
            9 => self.clear(),
            10 => self.change_memory(bytes.byte()),
            _ => self.use_free_memory(bytes.byte()),
        }
    }

    /// A range of a block of its own. Where it would lie may be anything.
    fn push(&mut self, size: u32, start: u32, len: u32) {
        let block = self.table.alloc(size);
        assert!(block.is_none() || size <= MAX_BLOCK, "there is no block of {size} bytes");
        let Some(block) = block else { return };
        assert!(block.len() >= size);
        // Most of what is anything lies nowhere.
        let start = if start >> 31 == 0 { start % block.len() } else { start };
        let is_inside = u64::from(start) + u64::from(len) <= u64::from(block.len());
        self.last = Some((block.clone(), start.saturating_add(len)));
        let range = Range::new(block, start, len);
        assert_eq!(range.is_some(), is_inside);
        match range {
            Some(range) => self.push_range(range),
            None => self.last = None,
        }
    }

    fn push_behind_the_last(&mut self, gap: u32, len: u32) {
        let Some((block, end)) = self.last.take() else { return };
        let start = block.len().min(end + gap);
        let len = len.min(block.len() - start);
        self.last = Some((block.clone(), start + len));
        self.push_range(Range::new(block, start, len).unwrap());
    }

    fn push_range(&mut self, range: Range) {
        let bytes = (self.pushed..self.pushed + range.len() as usize).map(pattern).collect::<Vec<_>>();
        self.pushed += bytes.len();
        // SAFETY: the range lies in a block that only the bench has, and nobody was given this part of it before.
        unsafe { range.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.model.extend(bytes);
        self.buffer.push(range);
    }

    fn push_pin(&mut self, from: usize, to: usize) {
        let bytes = &PINNED[from.min(to)..to];
        // SAFETY: static memory stays.
        let id = unsafe { self.pins.insert(bytes.as_ptr(), bytes.len()) };
        self.buffer.push_pin(self.pins.take(id).unwrap());
        self.model.extend(bytes);
        self.last = None;
    }

    fn advance(&mut self, n: usize) {
        let n = n.min(self.expected().len());
        self.buffer.advance(n);
        self.passed += n;
    }

    /// At most what one call would send.
    fn lend(&mut self, n: usize) {
        let (mut pieces, sent) = self.pieces();
        let n = n.min(sent);
        let mut left = n;
        for (_, len) in &mut pieces {
            *len = left.min(*len);
            left -= *len;
        }
        let _holds = self.buffer.lend(n);
        let bytes = self.expected()[..n].to_vec();
        self.lent.push(Lent { _holds, pieces, bytes });
        self.passed += n;
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.passed = self.model.len();
    }

    /// Takes memory away that lies in no block, or gives it back.
    fn change_memory(&mut self, share: u8) {
        self.table.discharge(self.charged);
        let wanted = MAX_MEMORY * u64::from(share) / 255;
        self.charged = if self.table.charge(wanted) { wanted } else { 0 };
    }

    /// Writes to a block that nobody holds.
    fn use_free_memory(&mut self, choice: u8) {
        let size = 1 << [12, 12, 14, 14, 16, 16, 18, 20][usize::from(choice % 8)];
        let Some(block) = self.table.alloc(size) else { return };
        // SAFETY: the block is as long as that, and nobody else has it.
        unsafe { block.as_ptr().write_bytes(0xA5, size as usize) };
    }

    fn check(&self) {
        let ((pieces, sent), expected) = (self.pieces(), self.expected());
        assert_eq!((self.buffer.len(), self.buffer.is_empty()), (expected.len() as u64, expected.is_empty()));
        assert!(pieces.len() <= BARRIER_LEN && pieces.iter().all(|(_, len)| *len > 0));
        assert!(sent == expected.len() || pieces.len() == BARRIER_LEN, "as much as there is room for");
        assert!(are(&pieces, &expected[..sent]));
        assert!(self.lent.iter().all(|lent| are(&lent.pieces, &lent.bytes)), "what is lent does not change");
        assert!(self.table.bytes_out() + self.charged <= MAX_MEMORY);
    }

    fn expected(&self) -> &[u8] {
        &self.model[self.passed..]
    }

    /// What one call would send, and how many bytes that are.
    fn pieces(&self) -> (Vec<(*const u8, usize)>, usize) {
        let mut barrier = Barrier::default();
        let sent = self.buffer.iovecs(&mut barrier, usize::MAX);
        let pieces = barrier.as_slice().iter().map(IoVec::parts).collect::<Vec<_>>();
        assert_eq!(pieces.iter().map(|(_, len)| len).sum::<usize>(), sent);
        (pieces, sent)
    }

    fn give_everything_back(mut self) {
        self.clear();
        self.check();
        self.lent.clear();
        self.last = None;
        assert_eq!((self.table.blocks_out(), self.table.bytes_out()), (0, 0), "blocks out are blocks back");
        let mut released = self.pins.drain_released();
        released.sort_unstable();
        released.dedup();
        assert!(released.into_iter().all(|id| self.pins.remove(id)));
        assert!(self.pins.is_empty(), "{:?}", self.pins);
        self.table.discharge(self.charged);
        assert!(self.table.charge(MAX_MEMORY), "nothing is in use");
    }
}

static PINNED: [u8; 5000] = [9; 5000];

/// No two stretches of it are alike.
fn pattern(place: usize) -> u8 {
    ((place as u32).wrapping_mul(2_654_435_761) >> 24) as u8
}

fn are(pieces: &[(*const u8, usize)], mut bytes: &[u8]) -> bool {
    for &(start, len) in pieces {
        let (expected, rest) = bytes.split_at(len);
        // SAFETY: whoever has made the pieces holds what keeps them, and nobody writes there.
        if unsafe { std::slice::from_raw_parts(start, len) } != expected {
            return false;
        }
        bytes = rest;
    }
    bytes.is_empty()
}
