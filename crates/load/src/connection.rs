//! One connection under load.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::message::Message;
use crate::sys::{Epoll, Interest};

/// Bytes received never exceed those that answer bytes sent, and these never exceed `asked` messages.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    /// Goes into the stamp of each message.
    id: u32,
    /// Messages that are to be sent, all in all.
    asked: u64,
    sent: u64,
    received: u64,
    /// When each unanswered message was asked for, oldest first.
    since: VecDeque<Instant>,
    /// Whether epoll was told that output waits.
    blocked: bool,
}

impl Connection {
    pub fn new(socket: TcpStream, id: u32) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, id, asked: 0, sent: 0, received: 0, since: VecDeque::new(), blocked: false })
    }

    /// The first registration; `key` is repeated in later calls.
    pub fn register(&self, epoll: &Epoll, key: usize) -> io::Result<()> {
        epoll.add(&self.socket, key, Interest::Read)
    }

    pub fn unanswered(&self) -> usize {
        self.since.len()
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn ask(&mut self, messages: usize, now: Instant) {
        self.asked += messages as u64;
        self.since.extend(std::iter::repeat_n(now, messages));
    }

    /// Sends what has been asked for, or as much as the kernel takes of `most` bytes, and keeps epoll informed.
    pub fn send(&mut self, message: &mut Message, most: usize, epoll: &Epoll, key: usize) -> io::Result<()> {
        let wanted = self.asked * message.length();
        if self.sent < wanted {
            let bytes = message.stream(self.id, self.sent, self.asked);
            self.sent += taken(self.socket.write(&bytes[..bytes.len().min(most)]))? as u64;
        }
        if self.blocked != (self.sent < wanted) {
            self.blocked = !self.blocked;
            epoll.change(&self.socket, key, if self.blocked { Interest::Both } else { Interest::Read })?;
        }
        Ok(())
    }

    /// Reads once and answers with when each message that is now complete was asked for.
    pub fn receive(
        &mut self,
        message: &mut Message,
        buffer: &mut [u8],
    ) -> io::Result<impl Iterator<Item = Instant> + '_> {
        let read = self.socket.read(buffer);
        if matches!(read, Ok(0)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let piece = &buffer[..taken(read)?];
        let end = self.received + piece.len() as u64;
        if end > message.answerable(self.sent) || !message.agrees(self.id, self.received, piece) {
            let text = format!("connection {}: wrong answer at byte {}", self.id, self.received);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let length = message.answer_length();
        let complete = (end / length - self.received / length) as usize;
        self.received = end;
        Ok(self.since.drain(..complete))
    }
}

/// The kernel's "not now" is no failure: nothing was taken.
fn taken(answer: io::Result<usize>) -> io::Result<usize> {
    match answer {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        answer => answer,
    }
}
