//! System calls as they are needed here: epoll, accept4, a connect with a chosen source address.

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Turns the answer of a system call into a Result.
macro_rules! syscall {
    ($name:ident ( $($argument:expr),* $(,)? )) => {{
        // SAFETY: the kernel checks the descriptor; pointers among the arguments are borrowed from values that
        // outlive the call, with their own sizes.
        let answer = unsafe { libc::$name($($argument),*) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }};
}

/// No system call of connecting, or of a blocking request, takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A blocking connection to `127.0.0.1:port` from the address `source`.
pub fn connect(port: u16, source: Ipv4Addr) -> io::Result<TcpStream> {
    let fd = syscall!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
    // SAFETY: `fd` has just been made by socket and nobody else owns it.
    let socket = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    // The port is then chosen by connect, for which only the pair of both ends has to be free.
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1)?;
    let size = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let (from, to) = (address(source, 0), address(Ipv4Addr::LOCALHOST, port));
    syscall!(bind(fd, (&raw const from).cast(), size))?;
    syscall!(connect(fd, (&raw const to).cast(), size))?;
    Ok(socket)
}

/// Lets the connection end by a RST when it is closed.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    set_option(
        socket.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_LINGER,
        &libc::linger { l_onoff: 1, l_linger: 0 },
    )
}

/// Makes the backlog of a listening socket long enough for a burst of connects.
pub fn set_backlog(listener: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    syscall!(listen(listener.as_raw_fd(), backlog)).map(drop)
}

/// The next connection of a non-blocking listener, non-blocking as well; None when there is none.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<TcpStream>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let fd = match syscall!(accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags))
    {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        answer => answer?,
    };
    // SAFETY: `fd` has just been made by accept4 and nobody else owns it.
    let socket = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // It fails on a unix socket, which needs none.
    let _ = socket.set_nodelay(true);
    Ok(Some(socket))
}

/// How many of `bytes` the kernel takes now.
pub fn send(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        answer => answer,
    }
}

/// Which readiness is asked for, level-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Only the end of a connection.
    Nothing,
    Read,
    Write,
    Both,
}

/// An epoll instance and the events of its last wait.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("fd", &self.fd).field("events", &self.events.len()).finish()
    }
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        let fd = syscall!(epoll_create1(libc::EPOLL_CLOEXEC))?;
        // SAFETY: `fd` has just been made by epoll_create1 and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, events: Vec::with_capacity(1024) })
    }

    /// Closing the descriptor takes it out again.
    pub fn add(&self, source: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source.as_fd(), key, interest)
    }

    pub fn change(&self, source: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, source.as_fd(), key, interest)
    }

    /// The number of events that are there; `key(i)` tells whose they are. None of them after a signal.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        self.gather(timeout.map_or(-1, |time| time.as_millis().min(1 << 30) as i32 + 1))
    }

    /// As `wait`, but only what is there already.
    pub fn look(&mut self) -> io::Result<usize> {
        self.gather(0)
    }

    pub fn key(&self, event: usize) -> usize {
        self.events[event].u64 as usize
    }

    fn gather(&mut self, milliseconds: i32) -> io::Result<usize> {
        let (events, room) = (self.events.as_mut_ptr(), self.events.capacity() as i32);
        let count = match syscall!(epoll_wait(self.fd.as_raw_fd(), events, room, milliseconds)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            answer => answer? as usize,
        };
        // SAFETY: epoll_wait has filled the first `count` of the events, at most as many as there is room for.
        unsafe { self.events.set_len(count) };
        Ok(count)
    }

    fn control(
        &self,
        operation: i32,
        source: BorrowedFd<'_>,
        key: usize,
        interest: Interest,
    ) -> io::Result<()> {
        let events = match interest {
            Interest::Nothing => 0,
            Interest::Read => libc::EPOLLIN,
            Interest::Write => libc::EPOLLOUT,
            Interest::Both => libc::EPOLLIN | libc::EPOLLOUT,
        };
        let mut event = libc::epoll_event { events: events as u32, u64: key as u64 };
        syscall!(epoll_ctl(self.fd.as_raw_fd(), operation, source.as_raw_fd(), &raw mut event)).map(drop)
    }
}

fn set_option<T>(fd: i32, level: i32, option: i32, value: &T) -> io::Result<()> {
    let size = mem::size_of::<T>() as libc::socklen_t;
    syscall!(setsockopt(fd, level, option, (&raw const *value).cast(), size)).map(drop)
}

fn address(ip: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    }
}
