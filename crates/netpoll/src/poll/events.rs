//! What epoll has told.

use std::collections::VecDeque;

use mio::Events;

use super::{mark_dirty, Poll, MAX_EVENTS};
use crate::border::StatusEntry;
use crate::io::Io;
use crate::operators::Operator;
use crate::token::{Subject, Token};

impl Poll {
    pub(super) fn take_events(&mut self) {
        self.is_collected = false;
        let mut count = 0;
        for event in &self.events {
            count += 1;
            match Subject::unpack(event.token().0 as u64) {
                Subject::Waker => self.io.counters.wakeups.add(1),
                Subject::Listener(id) => {
                    if let Some(acceptor) =
                        self.acceptors.iter_mut().find(|acceptor| acceptor.listener.id == id)
                    {
                        acceptor.is_ready = true;
                    }
                }
                Subject::Dial(id, attempt) => self.dials.told.push((id, attempt)),
                Subject::Connection(token) => match self.operators.get_mut(token) {
                    Some(operator) => {
                        take_event(operator, event, &mut self.io, &mut self.dirty);
                        self.ready.list(operator);
                    }
                    None => self.io.counters.stale_records.add(1),
                },
            }
        }
        if count == self.events.capacity() && count < MAX_EVENTS {
            self.events = Events::with_capacity(count * 2);
        }
    }
}

/// Errors and hang-ups are only reasons to read and to send: what those come to decides. A connection
/// of which the error queue tells that a send without a copy is done looks broken and is not.
fn take_event(operator: &mut Operator, event: &mio::event::Event, io: &mut Io, dirty: &mut VecDeque<Token>) {
    if event.is_read_closed() {
        operator.connection.input.hang_up = true;
        operator.status.raise(StatusEntry::READ_ENDED);
    }
    if event.is_priority() {
        operator.connection.input.urgent = true;
    }
    if event.is_readable() || event.is_read_closed() || event.is_error() {
        operator.connection.input.ready = true;
    }
    if event.is_error() && (io.notice_error(operator) | operator.connection.output.lending.notice()) {
        mark_dirty(dirty, operator);
    }
    if (event.is_writable() || event.is_error()) && operator.connection.output.is_blocked {
        io.unblock(operator);
        mark_dirty(dirty, operator);
    }
}
