//! Output that waits for its socket: a chain of ranges and pins.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::barrier::Barrier;
use crate::block::{Block, BlockTable, Range, MIN_BLOCK};
use crate::pin::Pin;
use crate::sys::IoVec;

/// The most bytes that one system call is asked to send.
const CALL_MAX: usize = i32::MAX as usize;

/// Bytes in the order in which they are to be sent. Nothing is copied: each node is a reference to a block
/// or a pin, and is dropped when the last byte of it has been sent.
///
/// ```text
///        advance ──▶                                   ◀── push, push_pin
///  ┌───────────────┐   ┌───────────────┐   ┌───────────────┐
///  │▓▓▓▓▓ left     │──▶│ range         │──▶│ pin           │
///  └───────────────┘   └───────────────┘   └───────────────┘
///   sent ▲                └── iovecs: up to 32 pieces, one sendmsg ──┘
/// ```
#[derive(Debug, Default)]
pub struct LinkBuffer {
    /// None of them is used up.
    nodes: VecDeque<Node>,
    /// The sum of what is left of all nodes.
    len: u64,
}

#[derive(Debug)]
enum Node {
    Range(Range),
    Pin { pin: Arc<Pin>, sent: usize },
}

/// What keeps bytes that have left the buffer and that the kernel still sends.
#[derive(Debug)]
#[allow(dead_code)] // nobody looks into it, it only has to be there
pub enum Hold {
    /// One more reference to their block.
    Block(Block),
    /// The pin of which they are part.
    Pin(Arc<Pin>),
}

impl LinkBuffer {
    /// Appends a range. It joins the last node where it touches it.
    pub fn push(&mut self, range: Range) {
        self.len += u64::from(range.len());
        let rest = match self.nodes.back_mut() {
            Some(Node::Range(last)) => last.join(range),
            _ => Err(range),
        };
        if let Err(range) = rest {
            self.append(Node::Range(range));
        }
    }

    /// Appends pinned memory.
    pub fn push_pin(&mut self, pin: Pin) {
        self.len += pin.len() as u64;
        self.append(Node::Pin { pin: Arc::new(pin), sent: 0 });
    }

    /// Drops the first `n` bytes, and with them the nodes that are used up.
    pub fn advance(&mut self, n: usize) {
        self.pass(n, |_| ());
    }

    /// Lets go of the first `n` bytes, and returns what keeps them.
    pub fn lend(&mut self, n: usize) -> Vec<Hold> {
        let mut held = Vec::new();
        self.pass(n, |node| held.push(node.hold()));
        held
    }

    fn pass(&mut self, mut n: usize, mut passed: impl FnMut(&Node)) {
        while let Some(node) = self.nodes.front_mut().filter(|_| n > 0) {
            passed(node);
            let step = n.min(node.len());
            node.advance(step);
            self.len -= step as u64;
            n -= step;
            if node.len() > 0 {
                break;
            }
            self.nodes.pop_front();
        }
        debug_assert_eq!(n, 0, "more was sent than there is");
    }

    /// Moves what is left of the first node to a block of its own when it is less than a quarter of a block:
    /// such a rest may wait for a slow peer, and others are waiting for the block.
    pub fn detach_small_tail(&mut self, table: &BlockTable) {
        let Some(Node::Range(range)) = self.nodes.front_mut() else { return };
        let whole = range.block().len();
        if whole > MIN_BLOCK && range.len() < whole / 4 {
            if let Some(copy) = range.copied(table) {
                *range = copy;
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.len = 0;
    }

    /// Fills the barrier with the pieces to send first, of `most` bytes together, and returns how many bytes they are.
    /// They are valid until the buffer changes.
    pub fn iovecs(&self, barrier: &mut Barrier, most: usize) -> usize {
        let most = most.min(CALL_MAX);
        barrier.clear();
        let mut total = 0;
        for node in &self.nodes {
            let (start, len) = (node.as_ptr(), node.len().min(most - total));
            // SAFETY: the node keeps its memory until the buffer changes, and whoever fills a barrier makes
            // the call before that.
            if len == 0 || !barrier.push(unsafe { IoVec::new(start, len) }) {
                break;
            }
            total += len;
        }
        total
    }

    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn append(&mut self, node: Node) {
        if node.len() > 0 {
            self.nodes.push_back(node);
        }
    }
}

impl Node {
    fn as_ptr(&self) -> *mut u8 {
        match self {
            Node::Range(range) => range.as_ptr(),
            // Sending only reads it.
            Node::Pin { pin, sent } => pin.as_ptr().wrapping_add(*sent).cast_mut(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Node::Range(range) => range.len() as usize,
            Node::Pin { pin, sent } => pin.len() - sent,
        }
    }

    fn hold(&self) -> Hold {
        match self {
            Node::Range(range) => Hold::Block(range.block().clone()),
            Node::Pin { pin, .. } => Hold::Pin(pin.clone()),
        }
    }

    /// Drops the first `n` bytes, at most `len()`.
    fn advance(&mut self, n: usize) {
        match self {
            Node::Range(range) => range.advance(n as u32),
            Node::Pin { sent, .. } => *sent += n,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::barrier::BARRIER_LEN;
    use crate::pin::PinTable;
    use crate::steps::{any_step_bytes, steps, Step};

    fn table() -> Arc<BlockTable> {
        BlockTable::new(64 << 20)
    }

    /// A range of `block` with these bytes in it.
    fn range(block: &Block, start: u32, bytes: &[u8]) -> Range {
        let range = Range::new(block.clone(), start, bytes.len() as u32).unwrap();
        // SAFETY: the range lies in the block, which is the test's own.
        unsafe { range.as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
        range
    }

    fn pin(pins: &Arc<PinTable>, bytes: &'static [u8]) -> Pin {
        // SAFETY: static memory stays.
        let id = unsafe { pins.insert(bytes.as_ptr(), bytes.len()) };
        pins.take(id).unwrap()
    }

    /// What a call with all of the barrier's pieces would send.
    fn gather(buffer: &LinkBuffer) -> Vec<u8> {
        let mut barrier = Barrier::default();
        let total = buffer.iovecs(&mut barrier, CALL_MAX);
        let mut bytes = Vec::new();
        for (start, len) in barrier.as_slice().iter().map(IoVec::parts) {
            // SAFETY: the buffer keeps the memory, and nobody writes there now.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, len) });
        }
        assert_eq!(bytes.len(), total);
        bytes
    }

    #[test]
    fn what_was_pushed_is_sent_in_order() {
        let (table, pins) = (table(), PinTable::new());
        let block = table.alloc(1).unwrap();
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&block, 0, b"one"));
        buffer.push_pin(pin(&pins, b"two"));
        buffer.push(range(&block, 3, b"three"));
        assert_eq!((buffer.len(), gather(&buffer)), (11, b"onetwothree".to_vec()));
        buffer.advance(4);
        assert_eq!((buffer.len(), gather(&buffer)), (7, b"wothree".to_vec()));
    }

    #[test]
    fn ranges_that_touch_become_one_piece() {
        let table = table();
        let (block, other) = (table.alloc(1).unwrap(), table.alloc(1).unwrap());
        let mut buffer = LinkBuffer::default();
        let mut barrier = Barrier::default();
        let pieces = [
            (&block, 0, "ab", 1),
            (&block, 2, "cd", 1),
            (&other, 4, "ef", 2),
            (&block, 4, "gh", 3),
            (&block, 9, "ij", 4),
        ];
        for (block, start, bytes, count) in pieces {
            buffer.push(range(block, start, bytes.as_bytes()));
            buffer.iovecs(&mut barrier, CALL_MAX);
            assert_eq!(barrier.as_slice().len(), count);
        }
        assert_eq!(gather(&buffer), b"abcdefghij");
    }

    #[test]
    fn a_block_goes_back_when_its_last_byte_was_sent() {
        let table = table();
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(1).unwrap(), 0, b"abc"));
        buffer.advance(2);
        assert_eq!(table.blocks_out(), 1);
        buffer.advance(1);
        assert_eq!(table.blocks_out(), 0);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_pin_is_released_when_its_last_byte_was_sent() {
        let pins = PinTable::new();
        let mut buffer = LinkBuffer::default();
        buffer.push_pin(pin(&pins, b"abc"));
        buffer.advance(2);
        assert_eq!(pins.drain_released(), []);
        buffer.advance(1);
        assert_eq!(pins.drain_released(), [0]);
    }

    #[test]
    fn what_is_lent_is_kept_until_nobody_holds_it() {
        let (table, pins) = (table(), PinTable::new());
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(1).unwrap(), 0, b"one"));
        buffer.push_pin(pin(&pins, b"two"));
        buffer.push(range(&table.alloc(1).unwrap(), 0, b"three"));
        let first = buffer.lend(4);
        let second = buffer.lend(3);
        assert_eq!((first.len(), second.len(), buffer.len(), gather(&buffer)), (2, 2, 4, b"hree".to_vec()));
        assert_eq!((table.blocks_out(), pins.drain_released()), (2, vec![]));
        drop(first);
        assert_eq!(
            (table.blocks_out(), pins.drain_released()),
            (1, vec![]),
            "the pin's last byte is lent too"
        );
        drop(second);
        assert_eq!((table.blocks_out(), pins.drain_released()), (1, vec![0]), "a part waits to be sent");
        assert!(buffer.lend(0).is_empty());
        buffer.clear();
        assert_eq!(table.blocks_out(), 0);
    }

    #[test]
    fn nothing_to_send_is_not_kept() {
        let (table, pins) = (table(), PinTable::new());
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(1).unwrap(), 0, b""));
        buffer.push_pin(pin(&pins, b""));
        assert_eq!((buffer.is_empty(), table.blocks_out(), pins.drain_released()), (true, 0, vec![0]));
    }

    #[test]
    fn clear_gives_everything_back() {
        let (table, pins) = (table(), PinTable::new());
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(1).unwrap(), 0, b"abc"));
        buffer.push_pin(pin(&pins, b"def"));
        buffer.clear();
        assert_eq!((buffer.len(), table.blocks_out(), pins.drain_released()), (0, 0, vec![0]));
    }

    #[test]
    fn one_call_takes_no_more_pieces_than_a_barrier_holds() {
        let table = table();
        let block = table.alloc(1).unwrap();
        let mut buffer = LinkBuffer::default();
        for i in 0..40 {
            buffer.push(range(&block, 2 * i, b"x"));
        }
        assert_eq!((buffer.len(), gather(&buffer).len()), (40, BARRIER_LEN));
    }

    #[test]
    fn one_call_takes_no_more_bytes_than_a_call_may() {
        let pins = PinTable::new();
        let mut buffer = LinkBuffer::default();
        let mut barrier = Barrier::default();
        for _ in 0..2 {
            // SAFETY: nothing is read from it.
            let id = unsafe { pins.insert(b"".as_ptr(), CALL_MAX - 1) };
            buffer.push_pin(pins.take(id).unwrap());
        }
        assert_eq!(buffer.iovecs(&mut barrier, CALL_MAX), CALL_MAX);
        assert_eq!(
            barrier.as_slice().iter().map(|iovec| iovec.parts().1).collect::<Vec<_>>(),
            [CALL_MAX - 1, 1]
        );
        buffer.advance(CALL_MAX);
        assert_eq!(buffer.len(), CALL_MAX as u64 - 2);
    }

    #[test]
    fn a_small_rest_of_a_shared_block_lets_it_go() {
        let table = table();
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(65536).unwrap(), 100, &[7; 20_000]));
        buffer.push(range(&table.alloc(1).unwrap(), 0, b"behind"));
        buffer.detach_small_tail(&table);
        assert_eq!(table.bytes_out(), 65536 + 4096, "20,000 bytes are more than a quarter");
        buffer.advance(19_000);
        let before = gather(&buffer);
        buffer.detach_small_tail(&table);
        assert_eq!((table.blocks_out(), table.bytes_out()), (2, 2 * 4096));
        assert_eq!(gather(&buffer), before);
    }

    #[test]
    fn a_rest_stays_where_it_is_when_there_is_no_memory_or_no_smaller_block() {
        let table = table();
        let mut buffer = LinkBuffer::default();
        buffer.push(range(&table.alloc(65536).unwrap(), 0, b"abc"));
        let all = table.max_memory() - 65536;
        assert!(table.charge(all));
        buffer.detach_small_tail(&table);
        assert_eq!((gather(&buffer), table.bytes_out()), (b"abc".to_vec(), 65536));
        table.discharge(all);

        let mut small = LinkBuffer::default();
        small.push(range(&table.alloc(1).unwrap(), 0, b"abc"));
        let place = small.nodes[0].as_ptr();
        small.detach_small_tail(&table);
        assert_eq!(small.nodes[0].as_ptr(), place);
    }

    /// One step on both the buffer and the bytes that it should hold.
    fn step(
        step: &mut Step,
        buffer: &mut LinkBuffer,
        model: &mut Vec<u8>,
        table: &Arc<BlockTable>,
        pins: &Arc<PinTable>,
    ) {
        static PINNED: [u8; 3000] = [9; 3000];
        match step.below(10) {
            0..=2 => {
                let bytes = step.bytes(6000);
                let block = table.alloc(bytes.len() as u32 * 8).unwrap();
                let cut = step.below(bytes.len() as u32 + 1) as usize;
                buffer.push(range(&block, 0, &bytes[..cut]));
                buffer.push(range(&block, cut as u32, &bytes[cut..]));
                model.extend(bytes);
            }
            3 => {
                let bytes = &PINNED[..step.below(3001) as usize];
                buffer.push_pin(pin(pins, bytes));
                model.extend(bytes);
            }
            4..=7 => {
                let n = step.below(gather(buffer).len() as u32 + 1) as usize;
                buffer.advance(n);
                model.drain(..n);
            }
            8 => buffer.detach_small_tail(table),
            _ if step.below(8) == 0 => {
                buffer.clear();
                model.clear();
            }
            _ => {}
        }
    }

    /// Any sequence of calls keeps the bytes, and gives all memory back.
    fn any_steps(bytes: &[u8]) {
        let (table, pins) = (table(), PinTable::new());
        let (mut buffer, mut model) = (LinkBuffer::default(), Vec::new());
        for mut now in steps(bytes).take(500) {
            step(&mut now, &mut buffer, &mut model, &table, &pins);
            let sent = gather(&buffer);
            assert_eq!((buffer.len(), buffer.is_empty()), (model.len() as u64, model.is_empty()));
            assert!(model.starts_with(&sent) && sent.is_empty() == model.is_empty());
        }
        drop(buffer);
        assert!(pins.drain_released().into_iter().all(|id| pins.remove(id)));
        assert_eq!((table.blocks_out(), table.bytes_out(), pins.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn any_sequence_of_calls_keeps_the_bytes_and_gives_all_memory_back(bytes in any_step_bytes(200)) {
            any_steps(&bytes);
        }
    }
}
