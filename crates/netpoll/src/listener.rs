//! Listening sockets: bound and listening at once, accepted from when an event loop serves them.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::{Domain, SockAddr, SockRef, Socket};

use crate::address::{self, AddressError, Endpoint, Target};
use crate::sys;

/// How a listener is made. Options of the socket are inherited by the connections it accepts.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted.
    pub backlog: i32,
    /// Share the port with others that ask for the same.
    pub reuse_port: bool,
    /// For an IPv6 wildcard: take no IPv4 connections.
    pub ipv6_only: bool,
    /// TCP_NODELAY.
    pub no_delay: bool,
    /// SO_KEEPALIVE.
    pub keep_alive: bool,
    /// SO_RCVBUF in bytes.
    pub recv_buffer: Option<usize>,
    /// SO_SNDBUF in bytes.
    pub send_buffer: Option<usize>,
    /// Remove a stale socket file at the path first.
    pub unlink: bool,
}

#[cfg(test)]
impl ListenOptions {
    /// What tests need, who add what they are about.
    pub(crate) const PLAIN: ListenOptions = ListenOptions {
        backlog: 8,
        reuse_port: false,
        ipv6_only: false,
        no_delay: true,
        keep_alive: false,
        recv_buffer: None,
        send_buffer: None,
        unlink: false,
    };
}

/// Why there is no listener.
#[derive(Debug)]
pub enum ListenError {
    /// The text is no address, or one that only a resolver could turn into one.
    Address(AddressError),
    /// A system call failed.
    System {
        /// Named as `net` names it: 'listen' for bind and listen.
        syscall: &'static str,
        /// With its errno.
        error: io::Error,
    },
    /// The descriptor is a listener's already.
    Taken,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenError::Address(error) => error.fmt(f),
            ListenError::System { syscall, error } => write!(f, "{syscall}: {error}"),
            ListenError::Taken => f.write_str("the descriptor is a listener's already"),
        }
    }
}

impl std::error::Error for ListenError {}

/// Its descriptor is closed when the last of poll and JavaScript lets go of it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: u32,
    socket: Socket,
    pub(crate) endpoint: Endpoint,
    /// What its connections have as local address, when they all have the same.
    local: Option<[u32; 6]>,
    /// Relaxed: a hint for what an accept error means; the error itself orders nothing.
    closed: AtomicBool,
    /// Others may listen at the same socket: it and its path are not ours to end.
    is_inherited: bool,
}

/// Descriptors of the listeners of this process, in whatever environment: none is taken over twice.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

impl Listener {
    pub(crate) fn bind(
        id: u32,
        network: &str,
        text: &str,
        options: &ListenOptions,
    ) -> Result<Listener, ListenError> {
        let target = address::parse(network, text).map_err(ListenError::Address)?;
        let candidates = address::listen_addresses(&target).map_err(ListenError::Address)?;
        if let Target::Path(path) = &target {
            if options.unlink {
                remove_stale(path);
            }
        }
        let mut outcome = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        for candidate in &candidates {
            outcome = open(candidate, options.ipv6_only || network == "tcp6", options);
            match &outcome {
                // Without IPv6 in the kernel the next candidate is the IPv4 wildcard.
                Err(error) if is_unsupported(error) => continue,
                _ => break,
            }
        }
        let socket = outcome.map_err(|error| ListenError::System { syscall: "listen", error })?;
        let listener = Listener::of(id, socket, false).map_err(|(_, error)| {
            if let Target::Path(path) = &target {
                let _ = std::fs::remove_file(path);
            }
            ListenError::System { syscall: "getsockname", error }
        })?;
        taken().insert(listener.raw_fd());
        Ok(listener)
    }

    /// Of a descriptor that this process was given when it started.
    pub(crate) fn inherit(id: u32, descriptor: RawFd) -> Result<Listener, ListenError> {
        if !taken().insert(descriptor) {
            return Err(ListenError::Taken);
        }
        let socket = sys::inherited_listener(descriptor).map(Socket::from);
        let listener = socket.and_then(|socket| {
            Listener::of(id, socket, true).map_err(|(socket, error)| {
                // It stays its owner's, and open.
                let _ = socket.into_raw_fd();
                error
            })
        });
        let listener = listener.map_err(|error| {
            taken().remove(&descriptor);
            ListenError::System { syscall: "listen", error }
        })?;
        // What createListener() does by default; it can fail for no inet socket.
        let set = || sys::through("setsockopt", || listener.socket.set_tcp_nodelay(true));
        let _ = listener.is_unix() || set().is_ok();
        Ok(listener)
    }

    fn of(id: u32, socket: Socket, is_inherited: bool) -> Result<Listener, (Socket, io::Error)> {
        let address = match sys::through("getsockname", || socket.local_addr()) {
            Ok(address) => address,
            Err(error) => return Err((socket, error)),
        };
        let is_wildcard = address.as_socket().is_some_and(|address| address.ip().is_unspecified());
        let local = (!is_wildcard).then(|| address::encode(&address));
        let endpoint = Endpoint::of(&address);
        Ok(Listener { id, socket, endpoint, local, closed: AtomicBool::new(false), is_inherited })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.endpoint.family == Endpoint::UNIX
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Refuses new connections from now on, before any poll has noticed; the port is free again.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) || self.is_inherited {
            return;
        }
        // It can fail only for a socket that does not listen any more.
        let _ = sys::through("shutdown", || self.socket.shutdown(std::net::Shutdown::Both));
        if self.endpoint.family == Endpoint::UNIX && !self.endpoint.address.starts_with('@') {
            // As `net` does; somebody may have removed it already.
            let _ = std::fs::remove_file(&self.endpoint.address);
        }
    }

    /// Of a connection accepted here: asked of the kernel only where the listener's own says nothing.
    pub(crate) fn local_address(&self, connection: &OwnedFd) -> [u32; 6] {
        let ask = || sys::through("getsockname", || SockRef::from(connection).local_addr());
        self.local.unwrap_or_else(|| ask().map(|address| address::encode(&address)).unwrap_or_default())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        taken().remove(&self.raw_fd());
    }
}

fn taken() -> MutexGuard<'static, BTreeSet<RawFd>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(address: &SockAddr, ipv6_only: bool, options: &ListenOptions) -> io::Result<Socket> {
    let domain = Domain::from(i32::from(address.family()));
    let socket = sys::new_socket(domain)?;
    sys::through("setsockopt", || set_options(&socket, domain, ipv6_only, options))?;
    sys::through("bind", || socket.bind(address))?;
    sys::through("listen", || socket.listen(options.backlog)).inspect_err(|_| {
        // Who comes next would find the path taken, by nobody.
        let _ = address.as_pathname().map(std::fs::remove_file);
    })?;
    Ok(socket)
}

fn set_options(socket: &Socket, domain: Domain, ipv6_only: bool, options: &ListenOptions) -> io::Result<()> {
    if domain != Domain::UNIX {
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(options.no_delay)?;
        socket.set_keepalive(options.keep_alive)?;
        socket.set_reuse_port(options.reuse_port)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(ipv6_only)?;
    }
    options.recv_buffer.map_or(Ok(()), |size| socket.set_recv_buffer_size(size))?;
    options.send_buffer.map_or(Ok(()), |size| socket.set_send_buffer_size(size))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(crate::sys::EAFNOSUPPORT | crate::sys::EADDRNOTAVAIL))
}

/// Only a socket that nobody listens at is stale; anything else at the path stays, and bind reports it.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && is_refused(path) {
        let _ = std::fs::remove_file(path);
    }
}

/// Does not wait for a listener whose backlog is full: that one is alive.
fn is_refused(path: &Path) -> bool {
    let attempt = || {
        let socket = sys::new_socket(Domain::UNIX)?;
        let address = SockAddr::unix(path)?;
        sys::through("connect", || socket.connect(&address))
    };
    attempt().is_err_and(|error| error.raw_os_error() == Some(crate::sys::ECONNREFUSED))
}
