//! The floor: the least that a server has to do.
//!
//! One thread, epoll level-triggered, one read and one write per event into and from one buffer.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process;
use std::thread;

use crate::arguments::Arguments;
use crate::endpoint::Endpoint;
use crate::relay::Relay;
use crate::service::Service;
use crate::sys::{self, Epoll, Interest};

/// For answers of 1 MiB the best of 64 KiB to 1 MiB; smaller ones do not notice.
pub const BUFFER: usize = 512 * 1024;

/// Connections have their index plus one.
const LISTENER: usize = 0;

pub fn serve(arguments: &mut Arguments) -> io::Result<()> {
    let endpoint = Endpoint::from_arguments(arguments)?;
    let upstream = arguments.optional("upstream")?;
    let service = Service::from_arguments(arguments)?;
    arguments.finish()?;
    let (listener, port) = endpoint.listen()?;
    end_with_stdin();
    println!("ready {port}");
    match upstream {
        Some(port) => Relay::new(listener, Endpoint::Tcp(port))?.run(),
        None => Floor::new(listener, service)?.run(),
    }
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
    service: Service,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    socket: TcpStream,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    /// Bytes that came before those.
    taken: u64,
    /// What the kernel did not take at once, and how much of it has been sent since; while anything is left,
    /// nothing is read.
    unsent: Vec<u8>,
    sent: usize,
    /// Bytes of bodies that are to be sent.
    owed: u64,
}

impl Floor {
    fn new(listener: OwnedFd, service: Service) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER, Interest::Read)?;
        let (connections, free) = (Vec::new(), Vec::new());
        Ok(Self { epoll, listener, service, connections, free, buffer: vec![0; BUFFER] })
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
        while let Some(socket) = sys::accept(self.listener.as_fd())? {
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.epoll.add(&socket, index + 1, Interest::Read)?;
            let connection = Some(Connection::new(socket));
            match self.connections.get_mut(index) {
                Some(place) => *place = connection,
                None => self.connections.push(connection),
            }
        }
        Ok(())
    }

    fn attend(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key - 1).and_then(Option::as_mut) else { return };
        let open = if connection.is_blocked() {
            connection.resume(&self.service, &self.epoll, key)
        } else {
            connection.answer(&mut self.buffer, &self.service, &self.epoll, key)
        };
        if !open.unwrap_or(false) {
            self.connections[key - 1] = None;
            self.free.push(key - 1);
        }
    }
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self { socket, partial: Vec::new(), taken: 0, unsent: Vec::new(), sent: 0, owed: 0 }
    }

    /// Reads once and sends back what is complete. False when the peer has finished.
    fn answer(
        &mut self,
        buffer: &mut Vec<u8>,
        service: &Service,
        epoll: &Epoll,
        key: usize,
    ) -> io::Result<bool> {
        let held = self.partial.len();
        if buffer.len() < held + BUFFER {
            buffer.resize(held + BUFFER, 0);
        }
        buffer[..held].copy_from_slice(&self.partial);
        let length = held + self.socket.read(&mut buffer[held..])?;
        if length == held {
            return Ok(false);
        }
        let (answer, taken) = service.answer(self.taken, &buffer[..length]);
        self.taken += taken as u64;
        self.partial.clear();
        self.partial.extend_from_slice(&buffer[taken..length]);
        self.owed += answer.bodies * service.body().len() as u64;
        self.send_or_keep(answer.bytes)?;
        self.send_or_keep(&answer.counts)?;
        self.pay(service)?;
        if self.is_blocked() {
            epoll.change(&self.socket, key, Interest::Write)?;
        }
        Ok(true)
    }

    fn is_blocked(&self) -> bool {
        !self.unsent.is_empty() || self.owed > 0
    }

    /// The kernel takes more.
    fn resume(&mut self, service: &Service, epoll: &Epoll, key: usize) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            self.sent += sys::send(&self.socket, &self.unsent[self.sent..])?;
        }
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
            self.pay(service)?;
        }
        if !self.is_blocked() {
            epoll.change(&self.socket, key, Interest::Read)?;
        }
        Ok(true)
    }

    fn send_or_keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            let sent = sys::send(&self.socket, bytes)?;
            self.unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(())
    }

    /// Sends of the bodies what the kernel takes.
    fn pay(&mut self, service: &Service) -> io::Result<()> {
        let body = service.body();
        while self.owed > 0 {
            let rest = (self.owed - 1) as usize % body.len() + 1;
            let sent = sys::send(&self.socket, &body[body.len() - rest..])?;
            self.owed -= sent as u64;
            if sent < rest {
                break;
            }
        }
        Ok(())
    }
}
