//! What is sent, and what has therefore to come back.

use std::io;

use crate::arguments::Arguments;
use crate::frame;

/// Stands at the beginning of each body: the connection and the number of the message, u32 each.
const STAMP: usize = 8;

/// A longer piece of an answer is compared at both ends only: comparing a MiB costs half as much as sending it.
const COMPARED: usize = 4096;

/// What comes back for a message.
#[derive(Debug)]
enum Answer {
    /// The message itself.
    Same,
    /// A u64, big endian: how many bytes of the stream have come with the message.
    Count,
    /// The same bytes each time.
    Body(Vec<u8>),
}

/// The bytes of all connections: each sends the same message, again and again, with its stamp in it.
#[derive(Debug)]
pub struct Message {
    /// As many messages one after the other as can be unanswered; stamped anew for each use.
    bytes: Vec<u8>,
    /// Of one message, with the frame's header.
    length: usize,
    /// Where the body of a message begins.
    body: usize,
    answer: Answer,
}

impl Message {
    pub fn from_arguments(arguments: &mut Arguments, inflight: usize) -> io::Result<Self> {
        let size = arguments.required("size")?;
        if size < STAMP {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "size is at least 8"));
        }
        Ok(match (arguments.flag("upload"), arguments.flag("download")) {
            (true, _) => Self { answer: Answer::Count, ..Self::new(size, false, inflight) },
            (_, true) => Self { answer: Answer::Body(pattern(size)), ..Self::new(STAMP, false, inflight) },
            _ => Self::new(size, arguments.flag("frame"), inflight),
        })
    }

    /// One that comes back as it is.
    pub fn new(size: usize, framed: bool, inflight: usize) -> Self {
        let mut message = Vec::new();
        if framed {
            message.extend((size as u32).to_be_bytes());
        }
        message.extend(pattern(size));
        let body = if framed { frame::HEADER } else { 0 };
        Self { length: message.len(), bytes: message.repeat(inflight), body, answer: Answer::Same }
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

    pub fn answer_length(&self) -> u64 {
        match &self.answer {
            Answer::Same => self.length(),
            Answer::Count => 8,
            Answer::Body(body) => body.len() as u64,
        }
    }

    /// How many bytes can have come back when `sent` were sent.
    pub fn answerable(&self, sent: u64) -> u64 {
        match self.answer {
            Answer::Same => sent,
            Answer::Count | Answer::Body(_) => sent / self.length() * self.answer_length(),
        }
    }

    /// Whether `piece` is what has to come back to `connection` at position `from`.
    pub fn agrees(&mut self, connection: u32, from: u64, piece: &[u8]) -> bool {
        match &self.answer {
            Answer::Same => {
                let count = (from + piece.len() as u64).div_ceil(self.length());
                agree(piece, self.stream(connection, from, count))
            }
            Answer::Count => (from..).zip(piece).all(|(position, byte)| {
                let count = (position / 8 + 1) * self.length();
                count.to_be_bytes()[position as usize % 8] == *byte
            }),
            Answer::Body(body) => {
                let (rest, start) = piece.split_at(piece.len().min(body.len() - from as usize % body.len()));
                agree(rest, &body[from as usize % body.len()..])
                    && start.chunks(body.len()).all(|piece| agree(piece, body))
            }
        }
    }
}

/// The bytes of a body: a shift by less than 251 shows.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

/// Whether `piece` is the beginning of `expected`.
fn agree(piece: &[u8], expected: &[u8]) -> bool {
    let expected = &expected[..piece.len()];
    if piece.len() <= 2 * COMPARED {
        return piece == expected;
    }
    let end = piece.len() - COMPARED;
    piece[..COMPARED] == expected[..COMPARED] && piece[end..] == expected[end..]
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

    #[test]
    fn an_upload_is_answered_by_the_count_of_bytes_up_to_its_end() {
        let mut message = Message { answer: Answer::Count, ..Message::new(1000, false, 1) };
        assert_eq!((message.answerable(1999), message.answerable(2000)), (8, 16));
        let answers = [1000_u64.to_be_bytes(), 2000_u64.to_be_bytes()].concat();
        for cut in 0..answers.len() {
            assert!(message.agrees(7, 0, &answers[..cut]));
            assert!(message.agrees(7, cut as u64, &answers[cut..]));
        }
        assert!(!message.agrees(7, 0, &1001_u64.to_be_bytes()));
    }

    #[test]
    fn a_download_is_answered_by_the_same_bytes_each_time() {
        let mut message = Message { answer: Answer::Body(pattern(300)), ..Message::new(8, false, 1) };
        assert_eq!((message.answerable(15), message.answerable(16)), (300, 600));
        let answers = pattern(300).repeat(3);
        for cut in 0..answers.len() {
            assert!(message.agrees(0, 0, &answers[..cut]));
            assert!(message.agrees(0, cut as u64, &answers[cut..]));
        }
        assert!(!message.agrees(0, 1, &answers));
    }
}
