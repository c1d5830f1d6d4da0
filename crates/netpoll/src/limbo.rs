//! Sockets that are reset while the kernel still sends from our memory.
//!
//! A reset drops what the socket holds, and with it nearly everything that it sends from. But a network card may be
//! reading a part at this very moment, and its peer would believe what it reads. So the memory comes back when the
//! error queue says so, of a descriptor that is disconnected and that nobody else has any more.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::operators::Parts;
use crate::sys;

/// How often it is asked whether the kernel is done.
pub(crate) const LIMBO_DELAY: Duration = Duration::from_millis(10);

/// How long a network card may take. What it has not sent by then is lost, as it would be in a card that hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a poll that ends waits for all its peers: `process.exit()` waits for it.
const FAREWELL: Duration = Duration::from_millis(20);
const LOOKS: u32 = 20;

#[derive(Debug, Default)]
pub(crate) struct Limbo(Vec<Remains>);

/// Of one connection.
#[derive(Debug)]
struct Remains {
    descriptor: OwnedFd,
    ledger: Ledger,
    /// When it is given up; None until it was first looked at.
    until: Option<Instant>,
}

impl Limbo {
    /// Closes what a connection was made of. What the kernel holds of it comes back when it is done, and until then
    /// its peer is reset.
    pub(crate) fn take(&mut self, parts: Parts) {
        let Parts { connection, descriptor, .. } = parts;
        let ledger = connection.output.lending.ledger;
        if ledger.is_empty() {
            return;
        }
        if sys::disconnect(descriptor.as_fd()).is_err() {
            // No kernel is known to refuse. Then closing resets it, and the reports are lost.
            let _ = sys::abort_on_close(descriptor.as_fd());
        }
        let mut remains = Remains { descriptor, ledger, until: None };
        if !remains.is_done() {
            self.0.push(remains);
        }
    }

    /// The same for all at once, of which the kernel gets a moment to send what it holds: their poll ends, and nobody
    /// will look after them. What it still holds then never comes back.
    pub(crate) fn part_with(&mut self, all: Vec<Parts>) {
        let mut looks = LOOKS;
        for mut parts in all {
            // Behind it nothing more is sent.
            let _ = sys::shutdown_write(parts.descriptor.as_fd());
            let Parts { connection, descriptor, .. } = &mut parts;
            while !is_done(descriptor, &mut connection.output.lending.ledger) && looks > 0 {
                thread::sleep(FAREWELL / LOOKS);
                looks -= 1;
            }
            self.take(parts);
        }
    }

    /// Lets go of what the kernel is done with.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.0.retain_mut(|remains| !remains.is_done() && !remains.give_up(now));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Remains {
    fn is_done(&mut self) -> bool {
        is_done(&self.descriptor, &mut self.ledger)
    }

    fn give_up(&mut self, now: Instant) -> bool {
        let is_over = now >= *self.until.get_or_insert(now + PATIENCE);
        if is_over {
            self.ledger.release();
        }
        is_over
    }
}

fn is_done(descriptor: &OwnedFd, ledger: &mut Ledger) -> bool {
    while let Ok(report) = sys::receive_report(descriptor.as_fd()) {
        report.map(|report| ledger.complete(report));
    }
    ledger.is_empty()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;
    use crate::block::BlockTable;
    use crate::connection::{Connection, Limits};
    use crate::link_buffer::Hold;
    use crate::server::Server;

    /// A connection that has lent a block for a send of which its kernel knows nothing, and its peer.
    fn lending(table: &Arc<BlockTable>) -> (Parts, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        let mut connection = Connection::new(&limits, Instant::now());
        connection.output.lending.ledger.record(0, 1, vec![Hold::Block(table.alloc(1).unwrap())]);
        let server = Arc::new(Server::new(0, limits, 0, true));
        let descriptor = listener.accept().unwrap().0.into();
        (Parts { connection, server, descriptor, is_unix: false }, peer)
    }

    fn is_reset(mut peer: &TcpStream) -> bool {
        peer.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    #[test]
    fn a_peer_is_reset_at_once_and_memory_that_is_never_reported_comes_back_after_a_while() {
        let (table, mut limbo, now) = (BlockTable::new(64 << 20), Limbo::default(), Instant::now());
        let (parts, peer) = lending(&table);
        limbo.take(parts);
        assert!(is_reset(&peer));
        for moment in [now, now + PATIENCE - LIMBO_DELAY] {
            limbo.settle(moment);
            assert_eq!((limbo.is_empty(), table.blocks_out()), (false, 1));
        }
        limbo.settle(now + PATIENCE);
        assert_eq!((limbo.is_empty(), table.blocks_out()), (true, 0));
    }

    #[test]
    fn what_a_poll_that_ends_cannot_wait_for_is_never_used_again() {
        let (table, mut limbo) = (BlockTable::new(64 << 20), Limbo::default());
        let (parts, peer) = lending(&table);
        limbo.part_with(vec![parts]);
        drop(limbo);
        assert_eq!(table.blocks_out(), 1);
        assert!(is_reset(&peer) || peer.peek(&mut [0]).is_ok_and(|read| read == 0), "FIN, then RST");
    }

    #[test]
    fn a_connection_of_which_nothing_is_lent_is_closed() {
        let (table, mut limbo) = (BlockTable::new(64 << 20), Limbo::default());
        let (mut parts, mut peer) = lending(&table);
        parts.connection.output.lending.ledger.release();
        limbo.take(parts);
        assert!(limbo.is_empty());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
