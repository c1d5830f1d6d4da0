//! The floor of a relay: a connection of its own to the upstream for each that is accepted.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use crate::endpoint::Endpoint;
use crate::floor::BUFFER;
use crate::sys::{self, Epoll, Interest};

const LISTENER: usize = 0;

pub struct Relay {
    epoll: Epoll,
    listener: OwnedFd,
    upstream: Endpoint,
    /// Pairs: those with an even index were accepted, the one behind each was dialed for it. The key is the index plus
    /// one.
    sides: Vec<Option<Side>>,
    /// Even indices.
    free: Vec<usize>,
    buffer: Vec<u8>,
    dialed: usize,
}

struct Side {
    socket: TcpStream,
    /// What the kernel did not take of the other side's bytes; while anything is left, the other side is not read.
    unsent: Vec<u8>,
    interest: Interest,
}

impl Relay {
    pub fn new(listener: OwnedFd, upstream: Endpoint) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER, Interest::Read)?;
        let (sides, free) = (Vec::new(), Vec::new());
        Ok(Self { epoll, listener, upstream, sides, free, buffer: vec![0; BUFFER], dialed: 0 })
    }

    pub fn run(&mut self) -> io::Result<()> {
        loop {
            for event in 0..self.epoll.wait(None)? {
                match self.epoll.key(event) {
                    LISTENER => self.accept()?,
                    key => self.attend(key - 1),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(accepted) = sys::accept(self.listener.as_fd())? {
            let dialed = self.upstream.connect(self.dialed)?;
            dialed.set_nonblocking(true)?;
            self.dialed += 1;
            let index = self.free.pop().unwrap_or(self.sides.len());
            if index == self.sides.len() {
                self.sides.extend([None, None]);
            }
            for (index, socket) in [(index, accepted), (index + 1, dialed)] {
                self.epoll.add(&socket, index + 1, Interest::Read)?;
                self.sides[index] = Some(Side { socket, unsent: Vec::new(), interest: Interest::Read });
            }
        }
        Ok(())
    }

    fn attend(&mut self, index: usize) {
        let other = index ^ 1;
        let (Some(mut side), Some(mut far)) = (self.sides[index].take(), self.sides[other].take()) else {
            return;
        };
        if self.turn(&mut side, &mut far, index).unwrap_or(false) {
            (self.sides[index], self.sides[other]) = (Some(side), Some(far));
        } else {
            self.free.push(index & !1);
        }
    }

    /// False when the peer has finished.
    fn turn(&mut self, side: &mut Side, far: &mut Side, index: usize) -> io::Result<bool> {
        if !side.unsent.is_empty() {
            let sent = sys::send(&side.socket, &side.unsent)?;
            side.unsent.drain(..sent);
        }
        let open = !far.unsent.is_empty() || self.forward(side, far)?;
        side.watch(far, &self.epoll, index)?;
        far.watch(side, &self.epoll, index ^ 1)?;
        Ok(open)
    }

    /// Reads once and sends that on. False when there is nothing more to come.
    fn forward(&mut self, from: &mut Side, to: &mut Side) -> io::Result<bool> {
        let bytes = match from.socket.read(&mut self.buffer) {
            Ok(length) => &self.buffer[..length],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        if !bytes.is_empty() {
            let sent = sys::send(&to.socket, bytes)?;
            to.unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(!bytes.is_empty())
    }
}

impl Side {
    /// A side is read while the other one has nothing unsent; both may be blocked at once.
    fn watch(&mut self, far: &Side, epoll: &Epoll, index: usize) -> io::Result<()> {
        let interest = match (far.unsent.is_empty(), self.unsent.is_empty()) {
            (true, true) => Interest::Read,
            (true, false) => Interest::Both,
            (false, true) => Interest::Nothing,
            (false, false) => Interest::Write,
        };
        if interest != self.interest {
            self.interest = interest;
            epoll.change(&self.socket, index + 1, interest)?;
        }
        Ok(())
    }
}
