//! The poll's dials: what events and time bring them, and how the winner becomes a connection.

use std::collections::HashMap;
use std::time::Instant;

use super::moves::{Stage, MOVES_PER_TURN};
use super::Poll;
use crate::acceptor::Accepted;
use crate::dialer::{Dial, Progress, Request};
use crate::inbox::Command;
use crate::race::{Failure, Place};
use crate::record::{Cause, Completion};
use crate::token::{Subject, Token};

/// The place of our own address in a DIALED record.
const LOCAL: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Dials {
    by_id: HashMap<u32, Dial>,
    /// Attempts of which an event has told in this turn.
    pub(super) told: Vec<(u32, u16)>,
}

impl Dials {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn is_armed(&self, id: u32, at: Instant) -> bool {
        self.by_id.get(&id).is_some_and(|dial| dial.armed == Some(at))
    }
}

impl Poll {
    pub(super) fn dial(&mut self, request: Request, now: Instant) {
        self.race(Dial::new(request, now), now);
    }

    /// Goes on with a dial that another poll has begun.
    pub(super) fn carry_on(&mut self, mut dial: Dial, now: Instant) {
        dial.arrive(&self.io.registry);
        self.race(dial, now);
    }

    fn race(&mut self, dial: Dial, now: Instant) {
        let id = dial.id();
        self.dials.by_id.insert(id, dial);
        self.advance_dial(id, now);
    }

    /// Of a poll that retires: hands over as many dials as a turn may. True when there are more to hand over now.
    pub(super) fn move_dials(&mut self, now: Instant) -> bool {
        if self.stage != Stage::Retiring {
            return false;
        }
        for _ in 0..MOVES_PER_TURN {
            let Some(id) = self.dials.by_id.keys().next().copied() else { return false };
            // Where every poll is full it is the first one that says so. While there is none they go on here.
            let Some(target) = self.shared.inboxes.pick().or(self.shared.inboxes.first()) else {
                return false;
            };
            self.move_dial(id, target, now);
        }
        self.dials.len() > 0
    }

    fn move_dial(&mut self, id: u32, target: usize, now: Instant) {
        let Some(mut dial) = self.dials.by_id.remove(&id) else { return };
        dial.leave(&self.io.registry);
        let moved = Completion::DialMoved { dial: id, poll: target as u32, moves: dial.moves };
        match self.shared.inboxes.offer(target, Command::CarryOn(Box::new(dial))) {
            // That poll has ended meanwhile.
            Some(Command::CarryOn(dial)) => self.carry_on(*dial, now),
            _ => self.io.tell(moved),
        }
    }

    /// Each dial has one answer: this one, unless it was given already.
    pub(super) fn cancel_dial(&mut self, id: u32) {
        if self.dials.by_id.contains_key(&id) {
            self.lose(id, Failure { cause: Cause::CANCELED, place: Place::Local });
        }
    }

    pub(super) fn take_dial_events(&mut self, now: Instant) {
        for (id, attempt) in std::mem::take(&mut self.dials.told) {
            let Some(dial) = self.dials.by_id.get_mut(&id) else { continue };
            match dial.take_event(usize::from(attempt), &self.io.registry, now) {
                Some(won) => self.win(id, won, now),
                None => self.advance_dial(id, now),
            }
        }
    }

    pub(super) fn expire_dial(&mut self, id: u32, now: Instant) {
        let Some(dial) = self.dials.by_id.get_mut(&id) else { return };
        dial.armed = None;
        self.advance_dial(id, now);
    }

    fn advance_dial(&mut self, id: u32, now: Instant) {
        let Some(dial) = self.dials.by_id.get_mut(&id) else { return };
        match dial.advance(&self.io.registry, now) {
            Progress::Won(won) => self.win(id, won, now),
            Progress::Lost(failure) => self.lose(id, failure),
            Progress::Racing => {
                let Some(at) = dial.due() else { return };
                if dial.armed.is_none_or(|armed| at < armed) {
                    dial.armed = Some(at);
                    self.timers.arm(at, Subject::Dial(id, 0).pack());
                }
            }
        }
    }

    fn win(&mut self, id: u32, won: Accepted, now: Instant) {
        let Some(token) = self.enter(won, now) else {
            return self.lose(id, Failure { cause: Cause::EXHAUSTED, place: Place::Remote(0) });
        };
        self.dials.by_id.remove(&id);
        self.io.tell(Completion::Dialed { token, dial: id, cause: Cause::ORDERLY, place: 0 });
        self.attend(token);
    }

    fn lose(&mut self, id: u32, Failure { cause, place }: Failure) {
        self.dials.by_id.remove(&id);
        let place = match place {
            Place::Remote(address) => address as u32,
            Place::Local => LOCAL,
        };
        self.io.tell(Completion::Dialed { token: Token::NONE, dial: id, cause, place });
    }
}
