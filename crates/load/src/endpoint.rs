//! Where the server is: a port of 127.0.0.1 or the path of a unix socket.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::sys;

/// More from one source address, and connect has to search long for a port that is free.
const PORTS_PER_SOURCE: usize = 10_000;

/// A burst of this length fits into every server's backlog; after each there is a pause, 16 a millisecond.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(4);

const BACKLOG: i32 = 4096;

#[derive(Debug)]
pub enum Endpoint {
    Tcp(u16),
    Unix(PathBuf),
}

impl Endpoint {
    pub fn from_arguments(arguments: &mut Arguments) -> io::Result<Self> {
        match arguments.optional("unix")? {
            Some(path) => Ok(Self::Unix(path)),
            None => arguments.required("port").map(Self::Tcp),
        }
    }

    /// A non-blocking listener and its port.
    pub fn listen(&self) -> io::Result<(OwnedFd, u16)> {
        let (fd, port) = match self {
            Self::Tcp(port) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
                listener.set_nonblocking(true)?;
                let port = listener.local_addr()?.port();
                (OwnedFd::from(listener), port)
            }
            Self::Unix(path) => {
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                (OwnedFd::from(listener), 0)
            }
        };
        sys::set_backlog(fd.as_fd(), BACKLOG)?;
        Ok((fd, port))
    }

    /// The `serial`-th connection of this process, blocking.
    ///
    /// A unix socket is a TcpStream too: all that is called on it is recv, send and fcntl.
    pub fn connect(&self, serial: usize) -> io::Result<TcpStream> {
        match self {
            Self::Tcp(port) => sys::connect(*port, source(serial)),
            Self::Unix(path) => {
                UnixStream::connect(path).map(|socket| TcpStream::from(OwnedFd::from(socket)))
            }
        }
    }

    /// As `connect`, but slowly enough that a server which has to accept many can keep up.
    pub fn connect_paced(&self, serial: usize) -> io::Result<TcpStream> {
        if serial % BURST == BURST - 1 {
            thread::sleep(PAUSE);
        }
        self.connect(serial)
    }
}

/// 127.0.0.1, then 127.0.1.1 and so on: with one address churn would wait for ports in TIME_WAIT.
fn source(serial: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, (serial / PORTS_PER_SOURCE) as u8, 1)
}
