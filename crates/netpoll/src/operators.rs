//! What a poll knows of the descriptors of its connections: a slab of operators, one slot each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::border::StatusEntry;
use crate::connection::Connection;
use crate::limbo::Limbo;
use crate::server::Server;
use crate::sys;
use crate::token::Token;

/// A connection and its descriptor.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) token: Token,
    pub(crate) connection: Connection,
    pub(crate) status: StatusEntry,
    pub(crate) server: Arc<Server>,
    descriptor: OwnedFd,
    /// A unix socket: it tells of room for output each time the peer reads, so it is asked only while
    /// output waits.
    pub(crate) is_unix: bool,
    /// Whether it stands on the poll's ready list.
    pub(crate) is_listed: bool,
    /// Whether it stands on the poll's list of connections with new output.
    pub(crate) is_dirty: bool,
    /// The poll that it leaves for: it is not watched any more, and waits for MOVE_ACK.
    pub(crate) moving_to: Option<usize>,
}

impl Operator {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Whether the poll should read now.
    pub(crate) fn may_read(&self) -> bool {
        self.moving_to.is_none() && self.connection.may_read()
    }

    /// Whether the connection is no more, although we have not ended our output.
    pub(crate) fn is_cut(&self) -> bool {
        !self.connection.output.ended && sys::is_disconnected(self.descriptor())
    }

    pub(crate) fn into_parts(self) -> Parts {
        let Operator { connection, server, descriptor, is_unix, .. } = self;
        Parts { connection, server, descriptor, is_unix }
    }
}

/// What an operator is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) connection: Connection,
    pub(crate) server: Arc<Server>,
    pub(crate) descriptor: OwnedFd,
    pub(crate) is_unix: bool,
}

#[derive(Debug)]
pub(crate) struct Operators {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: u32,
    open: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    Open(Box<Operator>),
    /// The descriptor is closed, JavaScript has not acknowledged it yet.
    Closed,
}

impl Operators {
    /// `limit` is the number of slots that the tables shared with JavaScript have.
    pub(crate) fn new(limit: u32) -> Operators {
        Operators { slots: Vec::new(), free: Vec::new(), limit, open: 0 }
    }

    /// Connections whose descriptor is open.
    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    /// Slots of connections that are open, or closed and not acknowledged.
    pub(crate) fn taken(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// Gives a slot a new generation. `None`, and the descriptor is closed, when every slot is taken.
    pub(crate) fn insert(
        &mut self,
        parts: Parts,
        status: impl FnOnce(Token) -> StatusEntry,
    ) -> Option<Token> {
        let Some(slot) = self.free_slot() else {
            Limbo::default().take(parts);
            return None;
        };
        let entry = self.slots.get_mut(slot as usize)?;
        entry.generation = Token::next_generation(entry.generation);
        let token = Token { slot, generation: entry.generation };
        let Parts { connection, server, descriptor, is_unix } = parts;
        let status = status(token);
        let operator = Operator {
            token,
            connection,
            status,
            server,
            descriptor,
            is_unix,
            is_listed: false,
            is_dirty: false,
            moving_to: None,
        };
        entry.state = State::Open(Box::new(operator));
        self.open += 1;
        Some(token)
    }

    /// The operator, unless the token is stale.
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut Operator> {
        match &mut self.slot(token)?.state {
            State::Open(operator) => Some(operator),
            State::Free | State::Closed => None,
        }
    }

    /// Takes the operator out; its slot stays taken until `acknowledge`.
    pub(crate) fn close(&mut self, token: Token) -> Option<Box<Operator>> {
        let slot = self.slot(token)?;
        match std::mem::replace(&mut slot.state, State::Closed) {
            State::Open(operator) => {
                self.open -= 1;
                Some(operator)
            }
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// Frees a closed slot. False when the token names none.
    pub(crate) fn acknowledge(&mut self, token: Token) -> bool {
        let Some(slot) = self.slot(token).filter(|slot| matches!(slot.state, State::Closed)) else {
            return false;
        };
        slot.state = State::Free;
        self.free.push(token.slot);
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Operator> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Open(operator) => Some(&**operator),
            State::Free | State::Closed => None,
        })
    }

    /// Those of which the kernel holds memory, taken out of their slots.
    pub(crate) fn take_lending(&mut self) -> Vec<Parts> {
        let lends = |operator: &&Operator| !operator.connection.output.is_settled();
        let tokens = self.iter().filter(lends).map(|operator| operator.token).collect::<Vec<_>>();
        tokens.into_iter().filter_map(|token| Some(self.close(token)?.into_parts())).collect()
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot> {
        self.slots.get_mut(token.slot as usize).filter(|slot| slot.generation == token.generation)
    }

    fn free_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = u32::try_from(self.slots.len()).ok().filter(|slot| *slot < self.limit)?;
        self.slots.push(Slot { generation: 0, state: State::Free });
        Some(slot)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use crate::border::Border;
    use crate::connection::Limits;
    use crate::tests::words;

    const SLOTS: u32 = 2;

    fn border() -> Border {
        Border::new(words(64 + 2 * 8 * 8 + SLOTS as usize * 24), 8, SLOTS).unwrap()
    }

    /// Gives a slot away, if there is one; the other end of the descriptor tells what has become of it.
    fn insert(operators: &mut Operators) -> (Option<Token>, UnixStream) {
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let parts = Parts {
            connection: Connection::new(&limits, Instant::now()),
            server: Arc::new(Server::new(1, limits, 0, true)),
            descriptor: ours.into(),
            is_unix: true,
        };
        let border = border();
        (operators.insert(parts, |token| border.status(token)), theirs)
    }

    fn is_closed(mut peer: UnixStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        peer.read(&mut [0]).is_ok_and(|read| read == 0)
    }

    #[test]
    fn slots_are_given_away_up_to_the_limit_and_then_the_descriptor_is_closed() {
        let mut operators = Operators::new(SLOTS);
        let [first, second, third] = [(); 3].map(|()| insert(&mut operators));
        assert_eq!([first.0, second.0].map(|token| token.unwrap().slot), [0, 1]);
        assert_eq!((third.0, operators.open(), operators.taken()), (None, 2, 2));
        assert!(is_closed(third.1) && !is_closed(first.1));
    }

    #[test]
    fn a_closed_slot_is_taken_until_it_is_acknowledged_and_has_another_generation_then() {
        let mut operators = Operators::new(1);
        let (token, peer) = insert(&mut operators);
        let token = token.unwrap();
        assert!(!operators.acknowledge(token), "an open slot is not freed");
        drop(operators.close(token));
        assert!(is_closed(peer));
        assert!(operators.close(token).is_none() && operators.get_mut(token).is_none());
        assert_eq!((operators.open(), operators.taken(), insert(&mut operators).0), (0, 1, None));
        assert!(operators.acknowledge(token) && !operators.acknowledge(token), "it is freed once");
        let next = insert(&mut operators).0.unwrap();
        assert_eq!((next.slot, next.generation), (token.slot, token.generation + 1));
    }

    #[test]
    fn a_stale_or_unknown_token_names_nothing() {
        let mut operators = Operators::new(SLOTS);
        let (token, _peer) = insert(&mut operators);
        let token = token.unwrap();
        let stale = Token { generation: token.generation + 1, ..token };
        let unknown = Token { slot: token.slot + 1, ..token };
        for wrong in [stale, unknown, Token { slot: u32::MAX, ..token }] {
            assert!(operators.get_mut(wrong).is_none());
            assert!(operators.close(wrong).is_none());
            assert!(!operators.acknowledge(wrong));
        }
        assert_eq!(operators.get_mut(token).map(|operator| operator.token), Some(token));
        assert_eq!(operators.iter().count(), 1);
    }
}
