//! A dial and its sockets: connects to the addresses that its [`race`](crate::race) names.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Registry};
use socket2::{Domain, SockAddr, Socket};

use crate::acceptor::Accepted;
use crate::address::{self, AddressError, Endpoint, Local};
use crate::race::{Failure, Place, Race, Step};
use crate::record::Cause;
use crate::server::Server;
use crate::sys;
use crate::token::Subject;

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// TCP_NODELAY.
    pub no_delay: bool,
    /// After which it is given up.
    pub timeout: Option<Duration>,
    /// What the socket is bound to first: an IP address, alone or with a port.
    pub local: Option<String>,
}

/// What a poll is asked for: a connection to the first address that answers.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: u32,
    addresses: Vec<SockAddr>,
    local: Option<Local>,
    no_delay: bool,
    timeout: Option<Duration>,
    /// What the connection starts with; it has no other connections.
    server: Arc<Server>,
}

/// A request that a poll works at.
#[derive(Debug)]
pub(crate) struct Dial {
    request: Request,
    race: Race,
    attempts: Vec<Attempt>,
    /// How often another poll has taken it over.
    pub(crate) moves: u32,
    /// The earliest entry that the poll's timers hold for it.
    pub(crate) armed: Option<Instant>,
}

#[derive(Debug)]
struct Attempt {
    address: usize,
    socket: Socket,
}

/// What a dial has come to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// An attempt, or time, goes on.
    Racing,
    Won(Accepted),
    Lost(Failure),
}

enum Outcome {
    Pending,
    Connected,
    Busy,
    MetItself,
    Failed(Failure),
}

impl Request {
    /// `resolved` are the IP addresses of the host, if it is a name.
    pub(crate) fn new(
        id: u32,
        (network, text): (&str, &str),
        resolved: &[String],
        options: DialOptions,
        server: Server,
    ) -> Result<Request, AddressError> {
        let DialOptions { no_delay, timeout, local } = options;
        let local = local.map(|local| Local::parse(network, &local)).transpose()?;
        let target = address::parse(network, text)?;
        let addresses = address::dial_addresses(&target, resolved, local.as_ref())?;
        Ok(Request { id, addresses, local, no_delay, timeout, server: Arc::new(server) })
    }

    /// The addresses in the order in which they are tried.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.addresses.iter().map(Endpoint::of).collect()
    }

    fn address(&self, number: usize) -> io::Result<&SockAddr> {
        self.addresses.get(number).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    fn open(&self, address: &SockAddr) -> io::Result<Socket> {
        let domain = Domain::from(i32::from(address.family()));
        let socket = sys::new_socket(domain)?;
        if domain != Domain::UNIX {
            sys::through("setsockopt", || socket.set_tcp_nodelay(self.no_delay))?;
        }
        Ok(socket)
    }

    fn bind(&self, socket: &Socket, address: &SockAddr) -> io::Result<()> {
        let Some(local) = self.local.as_ref().and_then(|local| local.address_for(address)) else {
            return Ok(());
        };
        if self.has_local_port() {
            // Else the port could not be used for a minute after each of its connections.
            sys::through("setsockopt", || socket.set_reuse_address(true))?;
        }
        sys::through("bind", || socket.bind(&local))
    }

    fn has_local_port(&self) -> bool {
        self.local.as_ref().is_some_and(|local| local.port != 0)
    }
}

impl Dial {
    pub(crate) fn new(request: Request, now: Instant) -> Dial {
        let race = Race::new(request.addresses.len(), request.timeout, now);
        Dial { request, race, attempts: Vec::new(), moves: 0, armed: None }
    }

    pub(crate) fn id(&self) -> u32 {
        self.request.id
    }

    /// When `advance` is due even if no event comes.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.race.due()
    }

    /// Does what is due. When it is over, dropping this makes an end of all other attempts.
    pub(crate) fn advance(&mut self, registry: &Registry, now: Instant) -> Progress {
        loop {
            match self.race.step(now) {
                Step::Wait => return Progress::Racing,
                Step::Try(address) => {
                    if let Some(won) = self.attempt(address, registry, now) {
                        return Progress::Won(won);
                    }
                }
                Step::Lost(failure) => return Progress::Lost(failure),
            }
        }
    }

    /// Its poll lets go of it: nothing tells of its attempts until `arrive`.
    pub(crate) fn leave(&mut self, registry: &Registry) {
        for Attempt { socket, .. } in &self.attempts {
            // It cannot fail for a descriptor that is registered.
            let _ = sys::deregister(registry, socket.as_raw_fd());
        }
        self.armed = None;
        self.moves = self.moves.wrapping_add(1);
    }

    /// Its new poll watches its attempts. Of one that has succeeded meanwhile, an event tells at once.
    pub(crate) fn arrive(&mut self, registry: &Registry) {
        for Attempt { address, socket } in std::mem::take(&mut self.attempts) {
            self.watch(address, socket, registry);
        }
    }

    /// An event has told of an attempt. The winner, if it is one.
    pub(crate) fn take_event(
        &mut self,
        address: usize,
        registry: &Registry,
        now: Instant,
    ) -> Option<Accepted> {
        let place = self.attempts.iter().position(|attempt| attempt.address == address)?;
        let outcome = look(&self.attempts[place].socket, address);
        if matches!(outcome, Outcome::Pending) {
            return None;
        }
        let Attempt { socket, .. } = self.attempts.swap_remove(place);
        // As a connection it is registered anew. It cannot fail for a descriptor that is registered.
        let _ = sys::deregister(registry, socket.as_raw_fd());
        self.settle(outcome, socket, address, now)
    }

    fn attempt(&mut self, address: usize, registry: &Registry, now: Instant) -> Option<Accepted> {
        let (socket, outcome) = match self.connect(address) {
            Ok(begun) => begun,
            Err(failure) => {
                self.race.failed(failure);
                return None;
            }
        };
        if !matches!(outcome, Outcome::Pending) {
            return self.settle(outcome, socket, address, now);
        }
        self.watch(address, socket, registry);
        None
    }

    fn watch(&mut self, address: usize, socket: Socket, registry: &Registry) {
        let token = Subject::Dial(self.request.id, address as u16).mio();
        // After connect: a socket that has not begun to connect looks hung up.
        match sys::register(registry, socket.as_raw_fd(), token, Interest::WRITABLE) {
            Ok(()) => self.attempts.push(Attempt { address, socket }),
            Err(error) => self.race.failed(remote(address)(error)),
        }
    }

    fn connect(&self, number: usize) -> Result<(Socket, Outcome), Failure> {
        let address = self.request.address(number).map_err(remote(number))?;
        let socket = self.request.open(address).map_err(remote(number))?;
        let unbound = |error| Failure { cause: Cause::of(&error), place: Place::Local };
        self.request.bind(&socket, address).map_err(unbound)?;
        let outcome = match sys::through("connect", || socket.connect(address)) {
            Ok(()) => look(&socket, number),
            Err(error) => match error.raw_os_error() {
                Some(sys::EINPROGRESS) => Outcome::Pending,
                Some(sys::EAGAIN) if address.is_unix() => Outcome::Busy,
                _ => return Err(remote(number)(error)),
            },
        };
        Ok((socket, outcome))
    }

    /// The winner, unless it is none; then its socket is closed.
    fn settle(&mut self, outcome: Outcome, socket: Socket, address: usize, now: Instant) -> Option<Accepted> {
        match outcome {
            Outcome::Connected => match self.winner(socket, address) {
                Ok(won) => return Some(won),
                Err(error) => self.race.failed(remote(address)(error)),
            },
            Outcome::Busy => self.race.busy(address, now),
            Outcome::MetItself => self.race.met_itself(address, !self.request.has_local_port(), now),
            Outcome::Failed(failure) => self.race.failed(failure),
            Outcome::Pending => {}
        }
        None
    }

    fn winner(&self, socket: Socket, address: usize) -> io::Result<Accepted> {
        let address = self.request.address(address)?;
        let local = address::encode(&local_address(&socket)?);
        let server = self.request.server.clone();
        server.admit();
        let (remote, is_unix) = (address::encode(address), address.is_unix());
        Ok(Accepted { descriptor: OwnedFd::from(socket), remote, local, is_unix, server })
    }
}

/// The one place where SO_ERROR decides: asking takes the error away, and here nobody else wants it.
fn look(socket: &Socket, address: usize) -> Outcome {
    match sys::through("getsockopt", || socket.take_error()) {
        Ok(None) => {}
        Ok(Some(error)) | Err(error) => return Outcome::Failed(remote(address)(error)),
    }
    match sys::through("getpeername", || socket.peer_addr()) {
        // An event that was about a former socket.
        Err(error) if error.raw_os_error() == Some(sys::ENOTCONN) => Outcome::Pending,
        Err(error) => Outcome::Failed(remote(address)(error)),
        Ok(peer) if !peer.is_unix() && local_address(socket).is_ok_and(|local| local == peer) => {
            Outcome::MetItself
        }
        Ok(_) => Outcome::Connected,
    }
}

fn local_address(socket: &Socket) -> io::Result<SockAddr> {
    sys::through("getsockname", || socket.local_addr())
}

fn remote(address: usize) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure { cause: Cause::of(&error), place: Place::Remote(address) }
}
