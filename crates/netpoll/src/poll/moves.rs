//! Connections that move from one poll to another, and the end of a poll that has moved them all.
//!
//! ```text
//!            old poll                       JavaScript                      new poll
//!   stops reading, deregisters ─ MOVED ─▶ keeps what it says
//!                                         of the connection
//!   takes it out of its slot ◀─ MOVE_ACK ─┘
//!          └───────────────────────── Command::Arrive ──────────────────▶ gives it a slot, registers
//!                                         says what it has kept ◀─ ARRIVED ─┘
//!   frees the slot ◀───────────── ACK ────┘
//! ```
//!
//! What the old poll has delivered lies in its ring before MOVED, what JavaScript has said lies before
//! MOVE_ACK, so nothing overtakes anything on the way.

use super::{arm, mark_dirty, Poll};
use crate::border::Retired;
use crate::inbox::Command;
use crate::limbo::Limbo;
use crate::operators::Parts;
use crate::record::{Cause, Completion};
use crate::token::Token;

/// Moves begun in one turn: each is a system call here and another one there.
pub(super) const MOVES_PER_TURN: usize = 256;

/// A connection between two polls.
#[derive(Debug)]
pub(crate) struct Arrival {
    parts: Parts,
    remote: [u32; 6],
    local: [u32; 6],
    /// Of its status entry.
    flags: u32,
    /// By which JavaScript knows it meanwhile.
    key: u32,
}

impl Arrival {
    /// Nobody takes it in.
    pub(crate) fn discard(self) {
        Limbo::default().take(self.parts);
    }
}

/// What a poll is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Serving,
    /// Its connections move to other polls.
    Retiring,
    /// They have, and JavaScript has been told; what it has still put is taken.
    Empty,
}

impl Poll {
    /// Whether nothing comes from here any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.stage == Stage::Empty
    }

    pub(super) fn retire(&mut self) {
        self.stage = Stage::Retiring;
        self.leaving = self.operators.iter().map(|operator| operator.token).collect();
    }

    /// Begins as many moves as a turn may. True when there are more to begin now.
    pub(super) fn move_connections(&mut self) -> bool {
        for _ in 0..MOVES_PER_TURN.min(self.leaving.len()) {
            // While no other poll can take them they stay and are served.
            let Some(target) = self.shared.inboxes.pick() else { return false };
            let Some(token) = self.leaving.pop() else { break };
            self.move_to(token, target);
        }
        !self.leaving.is_empty()
    }

    fn move_to(&mut self, token: Token, target: usize) {
        let Some(operator) = self.operators.get_mut(token) else { return };
        operator.moving_to = Some(target);
        self.io.deregister(operator);
        self.shared.inboxes.expect(target);
        self.io.tell(Completion::Moved { token, poll: target as u32 });
    }

    /// MOVE_ACK. False when the connection does not wait for it.
    pub(super) fn let_go(&mut self, token: Token, key: u32) -> bool {
        let waits = self.operators.get_mut(token).is_some_and(|operator| operator.moving_to.is_some());
        if waits {
            self.released.push((token, key));
        }
        waits
    }

    /// ACK of a connection that is still to be handed over: for JavaScript it has ended with its new poll.
    pub(super) fn forget(&mut self, token: Token) -> bool {
        let Some(place) = self.released.iter().position(|(released, _)| *released == token) else {
            return false;
        };
        self.released.swap_remove(place);
        if let Some(operator) = self.operators.close(token) {
            operator.moving_to.inspect(|target| self.shared.inboxes.came(*target));
            self.limbo.take(self.io.release(*operator));
        }
        self.operators.acknowledge(token)
    }

    /// Hands connections over, when JavaScript can see all that was said of them here.
    pub(super) fn hand_over_released(&mut self) {
        if !self.io.is_backlogged() {
            for (token, key) in std::mem::take(&mut self.released) {
                self.hand_over(token, key);
            }
        }
    }

    fn hand_over(&mut self, token: Token, key: u32) {
        let moving_to = self.operators.get_mut(token).and_then(|operator| operator.moving_to);
        let Some(target) = moving_to else { return };
        let Some(operator) = self.operators.close(token) else { return };
        let [remote, local] = self.border.addresses(token.slot).unwrap_or_default();
        let flags = operator.status.flags();
        let arrival = Arrival { parts: operator.into_parts(), remote, local, flags, key };
        let refused = self.shared.inboxes.offer(target, Command::Arrive(Box::new(arrival)));
        if let Some(Command::Arrive(arrival)) = refused {
            // That poll has ended meanwhile.
            self.shared.inboxes.came(target);
            self.arrive(*arrival);
        }
    }

    /// Takes a connection in, wherever it comes from.
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let Arrival { parts, remote, local, flags, key } = arrival;
        let (server, border) = (parts.server.clone(), self.border);
        let (delivered, sent) = (parts.connection.input.delivered, parts.connection.output.settled());
        let open = |token| {
            border.open_slot(token, remote, local);
            let status = border.status(token);
            status.set_bytes_read(delivered);
            status.set_bytes_sent(sent);
            status.raise(flags);
            status
        };
        let Some(token) = self.operators.insert(parts, open) else {
            server.dismiss();
            return self.io.tell(Completion::Arrived { token: Token::NONE, key, cause: Cause::EXHAUSTED });
        };
        self.io.tell(Completion::Arrived { token, key, cause: Cause::ORDERLY });
        self.resume(token);
        self.follow(token);
    }

    /// Of a connection that comes to a poll which retires: it goes on with the others.
    pub(super) fn follow(&mut self, token: Token) {
        if self.stage == Stage::Retiring {
            self.leaving.push(token);
        }
    }

    /// Edge-triggered: what events have told the old poll none tells this one.
    fn resume(&mut self, token: Token) {
        let Some(operator) = self.operators.get_mut(token) else { return };
        operator.connection.deadlines.armed = None;
        operator.connection.input.ready = true;
        arm(&mut self.timers, operator);
        if let Err(error) = self.io.register(operator) {
            return self.close(token, Cause::of(&error));
        }
        self.io.unblock(operator);
        self.ready.list(operator);
        mark_dirty(&mut self.dirty, operator);
    }

    /// Tells JavaScript when a poll that retires has nothing left. It ends when JavaScript has answered.
    pub(super) fn leave_when_empty(&mut self) {
        let is_done = self.stage == Stage::Retiring
            && self.operators.taken() == 0
            && self.acceptors.is_empty()
            && self.dials.len() == 0
            && self.limbo.is_empty()
            && !self.io.is_backlogged()
            && self.shared.inboxes.shut(self.index);
        if is_done {
            self.stage = Stage::Empty;
            self.io.intake.release();
            self.border.set_retired(Retired::Empty);
            self.ring();
        }
    }

    /// The thread ends, whatever the reason: nobody shall wait for this poll any more.
    pub(crate) fn leave(&mut self) {
        // What has not been taken JavaScript takes back itself.
        self.submissions.release();
        self.io.abandon(&self.shared.pins);
        let taken = std::mem::take(&mut self.commands);
        for command in taken.into_iter().chain(self.shared.inboxes.close(self.index)) {
            match command {
                Command::Adopt(accepted) => {
                    self.shared.inboxes.came(self.index);
                    accepted.pass_on(&self.shared.inboxes);
                }
                Command::Arrive(arrival) => {
                    self.shared.inboxes.came(self.index);
                    arrival.parts.server.dismiss();
                    arrival.discard();
                }
                // JavaScript knows which poll its dials are at.
                Command::Serve(..)
                | Command::CloseListener(_)
                | Command::Dial(_)
                | Command::CancelDial(_)
                | Command::CarryOn(_)
                | Command::Retire
                | Command::Crash => {}
            }
        }
        for operator in self.operators.iter() {
            operator.server.dismiss();
            operator.moving_to.inspect(|target| self.shared.inboxes.came(*target));
        }
        self.io.counters.connections.set(0);
        self.shared.table.rations.leave(self.index);
        self.limbo.part_with(self.operators.take_lending());
    }
}
