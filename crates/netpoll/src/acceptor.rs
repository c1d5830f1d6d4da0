//! A listener at its poll: accepts within a budget, and steps back when descriptors run out.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mio::{Interest, Registry};

use crate::address;
use crate::inbox::{Command, Inboxes};
use crate::listener::Listener;
use crate::record::Cause;
use crate::server::Server;
use crate::sys;
use crate::token::Subject;

/// How long a listener rests when the process or the machine has no descriptor or memory to give. What
/// waits in its backlog is not lost; spinning on it would take the core from the open connections.
pub(crate) const REST: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) listener: Arc<Listener>,
    server: Arc<Server>,
    /// An event has told of connections, and not all have been accepted. Edge-triggered: no further
    /// event tells of these.
    pub(crate) is_ready: bool,
    is_armed: bool,
}

/// A connection on its way to the poll that will serve it.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) descriptor: OwnedFd,
    pub(crate) remote: [u32; 6],
    pub(crate) local: [u32; 6],
    pub(crate) is_unix: bool,
    pub(crate) server: Arc<Server>,
}

impl Accepted {
    /// Goes to a poll that takes it; closed when there is none.
    pub(crate) fn pass_on(self, inboxes: &Inboxes) {
        let refused = match inboxes.pick() {
            Some(poll) => inboxes.offer(poll, Command::Adopt(self)),
            None => Some(Command::Adopt(self)),
        };
        if let Some(Command::Adopt(accepted)) = refused {
            accepted.server.dismiss();
        }
    }
}

/// What one attempt came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    Accepted(Accepted),
    /// The peer was gone already, or one connection too many was turned away.
    Dropped,
    /// Nobody waits.
    Empty,
    /// No descriptor or memory is left, or something else that may pass: rest, then arm again.
    Exhausted,
    /// The listener is broken, or was closed.
    Failed(Cause),
}

impl Acceptor {
    pub(crate) fn new(listener: Arc<Listener>, server: Arc<Server>) -> Acceptor {
        Acceptor { listener, server, is_ready: false, is_armed: false }
    }

    pub(crate) fn arm(&mut self, registry: &Registry) -> io::Result<()> {
        if self.is_armed {
            return Ok(());
        }
        let token = Subject::Listener(self.listener.id).mio();
        sys::register(registry, self.listener.raw_fd(), token, Interest::READABLE)?;
        self.is_armed = true;
        Ok(())
    }

    pub(crate) fn disarm(&mut self, registry: &Registry) {
        if std::mem::take(&mut self.is_armed) {
            // It fails only for a descriptor that is not registered, and then there is nothing to undo.
            let _ = sys::deregister(registry, self.listener.raw_fd());
        }
        self.is_ready = false;
    }

    pub(crate) fn attempt(&self) -> Attempt {
        if self.listener.is_closed() {
            return Attempt::Failed(Cause::ORDERLY);
        }
        match sys::accept(self.listener.descriptor()) {
            Ok((descriptor, remote)) => self.admit(descriptor, &remote),
            Err(error) => self.refuse(&error),
        }
    }

    fn admit(&self, descriptor: OwnedFd, remote: &socket2::SockAddr) -> Attempt {
        if !self.server.admit() {
            return Attempt::Dropped;
        }
        Attempt::Accepted(Accepted {
            local: self.listener.local_address(&descriptor),
            remote: address::encode(remote),
            is_unix: self.listener.is_unix(),
            server: self.server.clone(),
            descriptor,
        })
    }

    fn refuse(&self, error: &io::Error) -> Attempt {
        match error.raw_os_error() {
            Some(sys::EAGAIN) => Attempt::Empty,
            Some(sys::EINVAL | sys::EBADF | sys::ENOTSOCK | sys::EOPNOTSUPP) => {
                let cause = if self.listener.is_closed() { Cause::ORDERLY } else { Cause::of(error) };
                Attempt::Failed(cause)
            }
            // accept passes on the errors of a connection that is gone already.
            Some(sys::ECONNABORTED | sys::EPROTO | sys::ENETDOWN | sys::EHOSTUNREACH | sys::ENETUNREACH) => {
                Attempt::Dropped
            }
            // Whatever else stands in the way (a security policy, say) will not be gone at once.
            _ => Attempt::Exhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use mio::{Events, Poll};

    use super::*;
    use crate::connection::Limits;
    use crate::listener::ListenOptions;

    fn acceptor(max_connections: u32) -> Acceptor {
        acceptor_at("tcp", "127.0.0.1:0", max_connections)
    }

    fn acceptor_at(network: &str, address: &str, max_connections: u32) -> Acceptor {
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        let listener = Listener::bind(3, network, address, &ListenOptions::PLAIN).unwrap();
        Acceptor::new(Arc::new(listener), Arc::new(Server::new(1, limits, max_connections, true)))
    }

    fn connect(acceptor: &Acceptor) -> TcpStream {
        let address = SocketAddr::from(([127, 0, 0, 1], acceptor.listener.endpoint.port));
        TcpStream::connect(address).unwrap()
    }

    /// Attempts until somebody has come: the kernel may take a moment to queue whom it has told so.
    fn attempt(acceptor: &Acceptor) -> Attempt {
        let start = Instant::now();
        loop {
            match acceptor.attempt() {
                Attempt::Empty => assert!(start.elapsed() < Duration::from_secs(10), "nobody came"),
                other => return other,
            }
        }
    }

    fn refusal(acceptor: &Acceptor, errno: i32) -> Attempt {
        acceptor.refuse(&io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn whoever_waits_is_accepted_with_both_addresses() {
        let acceptor = acceptor(0);
        assert!(matches!(acceptor.attempt(), Attempt::Empty));
        let client = connect(&acceptor);
        let Attempt::Accepted(accepted) = attempt(&acceptor) else { panic!("it was not accepted") };
        let ports = [accepted.remote, accepted.local].map(|words| address::decode(words).unwrap().port);
        assert_eq!(ports, [client.local_addr().unwrap().port(), client.peer_addr().unwrap().port()]);
        assert!(matches!(acceptor.attempt(), Attempt::Empty));
    }

    #[test]
    fn one_too_many_is_dropped() {
        let acceptor = acceptor(1);
        let _clients = [(); 2].map(|()| connect(&acceptor));
        assert!(matches!(attempt(&acceptor), Attempt::Accepted(_)));
        assert!(matches!(attempt(&acceptor), Attempt::Dropped));
    }

    #[test]
    fn nobody_is_accepted_from_a_closed_listener() {
        let tcp = acceptor(0);
        let _client = connect(&tcp);
        let path = std::env::temp_dir().join(format!("netpoll-acceptor-{}", std::process::id()));
        let unix = acceptor_at("unix", path.to_str().unwrap(), 0);
        // The kernel would still give this one away.
        let _other = UnixStream::connect(&path).unwrap();
        for acceptor in [tcp, unix] {
            acceptor.listener.close();
            assert!(matches!(acceptor.attempt(), Attempt::Failed(Cause::ORDERLY)));
        }
    }

    #[test]
    fn an_error_means_what_it_says_about_listener_process_or_peer() {
        let acceptor = acceptor(0);
        assert!(matches!(refusal(&acceptor, sys::EAGAIN), Attempt::Empty));
        for errno in [sys::EMFILE, sys::ENFILE, sys::ENOBUFS, sys::ENOMEM] {
            assert!(matches!(refusal(&acceptor, errno), Attempt::Exhausted), "{errno}");
        }
        for errno in [sys::EINVAL, sys::EBADF, sys::ENOTSOCK, sys::EOPNOTSUPP] {
            let Attempt::Failed(cause) = refusal(&acceptor, errno) else { panic!("{errno}") };
            assert_eq!(cause, Cause::of(&io::Error::from_raw_os_error(errno)));
        }
        let aborted = (1..200)
            .find(|errno| io::Error::from_raw_os_error(*errno).kind() == ErrorKind::ConnectionAborted);
        assert!(matches!(refusal(&acceptor, aborted.unwrap()), Attempt::Dropped));
        acceptor.listener.close();
        assert!(matches!(refusal(&acceptor, sys::EINVAL), Attempt::Failed(Cause::ORDERLY)));
    }

    #[test]
    fn arming_again_after_a_rest_tells_of_those_who_have_waited() {
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(8);
        let mut acceptor = acceptor(0);
        acceptor.arm(poll.registry()).unwrap();
        acceptor.arm(poll.registry()).unwrap();
        let _client = connect(&acceptor);
        for _ in 0..3 {
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            let tokens = events.iter().map(|event| event.token()).collect::<Vec<_>>();
            assert_eq!(tokens, [Subject::Listener(3).mio()]);
            acceptor.is_ready = true;
            acceptor.disarm(poll.registry());
            assert!(!acceptor.is_ready);
            acceptor.disarm(poll.registry());
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert!(events.is_empty(), "a listener at rest costs nothing");
            acceptor.arm(poll.registry()).unwrap();
        }
    }
}
