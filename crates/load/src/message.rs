//! What is sent, and what has therefore to come back.

use std::io;

use crate::arguments::Arguments;
use crate::frame;

/// Stands at the beginning of each body: the connection and the number of the message, u32 each.
const STAMP: usize = 8;

/// A longer piece of an answer is compared at both ends only: comparing a MiB costs half as much as sending it.
const COMPARED: usize = 4096;

/// The bytes of all connections: each sends the same message, again and again, with its stamp in it.
#[derive(Debug)]
pub struct Message {
    /// As many messages one after the other as can be unanswered; stamped anew for each use.
    bytes: Vec<u8>,
    /// Of one message, with the frame's header.
    length: usize,
    /// Where the body of a message begins.
    body: usize,
}

impl Message {
    pub fn from_arguments(arguments: &mut Arguments, inflight: usize) -> io::Result<Self> {
        let size = arguments.required("size")?;
        if size < STAMP {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "size is at least 8"));
        }
        Ok(Self::new(size, arguments.flag("frame"), inflight))
    }

    fn new(size: usize, framed: bool, inflight: usize) -> Self {
        let mut message = Vec::new();
        if framed {
            message.extend((size as u32).to_be_bytes());
        }
        message.extend((0..size).map(|index| (index % 251) as u8));
        let body = if framed { frame::HEADER } else { 0 };
        Self { length: message.len(), bytes: message.repeat(inflight), body }
    }

    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// The bytes that `connection` sends from position `from` of its stream up to the end of its `count`-th message.
    ///
    /// They are at most as many messages as can be unanswered.
    pub fn stream(&mut self, connection: u32, from: u64, count: u64) -> &[u8] {
        let first = from / self.length();
        let messages = (count - first) as usize;
        for (number, message) in (first..).zip(self.bytes.chunks_exact_mut(self.length).take(messages)) {
            let stamp = u64::from(connection) << 32 | u64::from(number as u32);
            message[self.body..self.body + STAMP].copy_from_slice(&stamp.to_be_bytes());
        }
        let offset = (from - first * self.length()) as usize;
        &self.bytes[offset..messages * self.length]
    }

    /// Whether `piece` is what `connection` has sent at position `from`.
    pub fn agrees(&mut self, connection: u32, from: u64, piece: &[u8]) -> bool {
        let count = (from + piece.len() as u64).div_ceil(self.length());
        let expected = &self.stream(connection, from, count)[..piece.len()];
        if piece.len() <= 2 * COMPARED {
            return piece == expected;
        }
        let end = piece.len() - COMPARED;
        piece[..COMPARED] == expected[..COMPARED] && piece[end..] == expected[end..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_carries_its_length_the_connection_and_its_number() {
        let mut message = Message::new(9, true, 2);
        let bytes = message.stream(7, 13 * 5, 7).to_vec();
        assert_eq!(bytes[..13], [0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 5, 8]);
        assert_eq!(bytes[13..], [0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 6, 8]);
    }

    #[test]
    fn a_stream_agrees_with_itself_wherever_it_is_cut() {
        let mut message = Message::new(20, true, 3);
        let bytes = message.stream(1, 0, 3).to_vec();
        for from in 0..bytes.len() {
            for to in from + 1..=bytes.len() {
                assert!(message.agrees(1, from as u64, &bytes[from..to]));
            }
        }
    }

    #[test]
    fn another_connection_number_length_or_place_does_not_agree() {
        let mut message = Message::new(16, false, 2);
        let bytes = message.stream(1, 0, 2).to_vec();
        assert!(message.agrees(1, 0, &bytes));
        assert!(!message.agrees(2, 0, &bytes), "connection");
        assert!(!message.agrees(1, 16, &bytes), "number");
        assert!(!message.agrees(1, 0, &bytes[1..]), "place");
    }

    #[test]
    fn a_long_piece_is_checked_at_both_ends() {
        let mut message = Message::new(20_000, false, 1);
        let mut bytes = message.stream(1, 0, 1).to_vec();
        assert!(message.agrees(1, 0, &bytes));
        bytes[19_999] ^= 1;
        assert!(!message.agrees(1, 0, &bytes));
    }
}
