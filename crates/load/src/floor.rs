//! The floor: the least that a server has to do for echo and for frames.
//!
//! One thread, epoll level-triggered, one read and one write per event into and from one buffer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process;
use std::thread;

use crate::arguments::Arguments;
use crate::endpoint::Endpoint;
use crate::frame;
use crate::sys::{self, Epoll, Interest};

/// For answers of 1 MiB the best of 64 KiB to 1 MiB; smaller ones do not notice.
const BUFFER: usize = 512 * 1024;

/// Connections have their index plus one.
const LISTENER: usize = 0;

pub fn serve(arguments: &mut Arguments) -> io::Result<()> {
    let endpoint = Endpoint::from_arguments(arguments)?;
    let framed = arguments.flag("frame");
    arguments.finish()?;
    let (listener, port) = endpoint.listen()?;
    end_with_stdin();
    println!("ready {port}");
    Floor::new(listener, framed)?.run()
}

fn end_with_stdin() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    });
}

struct Floor {
    epoll: Epoll,
    listener: OwnedFd,
    framed: bool,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    socket: TcpStream,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    /// What the kernel did not take at once, and how much of it has been sent since; while anything is left,
    /// nothing is read.
    unsent: Vec<u8>,
    sent: usize,
}

impl Floor {
    fn new(listener: OwnedFd, framed: bool) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER, Interest::Read)?;
        let (connections, free) = (Vec::new(), Vec::new());
        Ok(Self { epoll, listener, framed, connections, free, buffer: vec![0; BUFFER] })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            for event in 0..self.epoll.wait(None)? {
                match self.epoll.key(event) {
                    LISTENER => self.accept()?,
                    key => self.attend(key),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let socket = match sys::accept(self.listener.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                answer => answer?,
            };
            // It fails on a unix socket, which needs none.
            let _ = socket.set_nodelay(true);
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.epoll.add(&socket, index + 1, Interest::Read)?;
            let connection = Some(Connection::new(socket));
            match self.connections.get_mut(index) {
                Some(place) => *place = connection,
                None => self.connections.push(connection),
            }
        }
    }

    fn attend(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key - 1).and_then(Option::as_mut) else { return };
        let open = if connection.unsent.is_empty() {
            connection.answer(&mut self.buffer, self.framed, &self.epoll, key)
        } else {
            connection.flush(&self.epoll, key)
        };
        if !open.unwrap_or(false) {
            self.connections[key - 1] = None;
            self.free.push(key - 1);
        }
    }
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self { socket, partial: Vec::new(), unsent: Vec::new(), sent: 0 }
    }

    /// Reads once and sends back what is complete. False when the peer has finished.
    fn answer(&mut self, buffer: &mut Vec<u8>, framed: bool, epoll: &Epoll, key: usize) -> io::Result<bool> {
        let held = self.partial.len();
        if buffer.len() < held + BUFFER {
            buffer.resize(held + BUFFER, 0);
        }
        buffer[..held].copy_from_slice(&self.partial);
        let length = held + self.socket.read(&mut buffer[held..])?;
        if length == held {
            return Ok(false);
        }
        let complete = if framed { frame::complete(&buffer[..length]) } else { length };
        self.partial.clear();
        self.partial.extend_from_slice(&buffer[complete..length]);
        let sent = if complete > 0 { self.send(&buffer[..complete])? } else { 0 };
        if sent < complete {
            self.unsent.extend_from_slice(&buffer[sent..complete]);
            epoll.change(&self.socket, key, Interest::Write)?;
        }
        Ok(true)
    }

    fn flush(&mut self, epoll: &Epoll, key: usize) -> io::Result<bool> {
        self.sent += self.send(&self.unsent[self.sent..])?;
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
            epoll.change(&self.socket, key, Interest::Read)?;
        }
        Ok(true)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match (&self.socket).write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            answer => answer,
        }
    }
}
