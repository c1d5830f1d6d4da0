//! What a poll knows of the descriptors of its connections: a slab of operators, one slot each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::border::StatusEntry;
use crate::connection::Connection;
use crate::server::Server;
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
}

impl Operator {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
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

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || (self.slots.len() as u64) < u64::from(self.limit)
    }

    /// Gives a slot a new generation. `None`, and the descriptor is closed, when every slot is taken.
    pub(crate) fn insert(
        &mut self,
        parts: Parts,
        status: impl FnOnce(Token) -> StatusEntry,
    ) -> Option<Token> {
        let slot = self.free_slot()?;
        let entry = self.slots.get_mut(slot as usize)?;
        entry.generation = Token::next_generation(entry.generation);
        let token = Token { slot, generation: entry.generation };
        let Parts { connection, server, descriptor, is_unix } = parts;
        let status = status(token);
        let (is_listed, is_dirty) = (false, false);
        let operator =
            Operator { token, connection, status, server, descriptor, is_unix, is_listed, is_dirty };
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
