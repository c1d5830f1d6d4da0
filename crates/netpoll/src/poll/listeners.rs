//! The poll's listeners, and how their connections come to a poll.

use std::time::Instant;

use super::{arm, Poll, ACCEPT_DELAY};
use crate::acceptor::{Accepted, Acceptor, Attempt, REST};
use crate::connection::Connection;
use crate::inbox::Command;
use crate::operators::Parts;
use crate::record::{Cause, Completion};
use crate::token::{Subject, Token};

impl Poll {
    pub(super) fn take_commands(&mut self, now: Instant) {
        // If one makes the poll panic, `leave` finds the others.
        self.commands.extend(self.shared.inboxes.take(self.index));
        while let Some(command) = self.commands.pop_front() {
            match command {
                Command::Serve(listener, server) => self.serve(Acceptor::new(listener, server)),
                Command::CloseListener(id) => self.drop_listener(id, Cause::ORDERLY),
                Command::Adopt(accepted) => {
                    self.adopt(accepted, now);
                    self.shared.inboxes.came(self.index);
                }
                Command::Arrive(arrival) => {
                    self.arrive(*arrival);
                    self.shared.inboxes.came(self.index);
                }
                Command::Dial(request) => self.dial(*request, now),
                Command::CancelDial(id) => self.cancel_dial(id),
                Command::CarryOn(dial) => self.carry_on(*dial, now),
                Command::Retire => self.retire(),
                Command::Crash => crash(),
            }
        }
    }

    fn serve(&mut self, mut acceptor: Acceptor) {
        let id = acceptor.listener.id;
        let armed = acceptor.arm(&self.io.registry);
        self.acceptors.push(acceptor);
        if let Err(error) = armed {
            self.drop_listener(id, Cause::of(&error));
        }
    }

    fn drop_listener(&mut self, id: u32, cause: Cause) {
        let Some(place) = self.acceptors.iter().position(|acceptor| acceptor.listener.id == id) else {
            return;
        };
        let mut acceptor = self.acceptors.swap_remove(place);
        acceptor.disarm(&self.io.registry);
        self.io.tell(Completion::Listener { id, cause });
    }

    fn adopt(&mut self, accepted: Accepted, now: Instant) {
        let server = accepted.server.clone();
        let Some(token) = self.enter(accepted, now) else { return };
        self.io.accepted();
        self.announce(Completion::Accept { token, server: server.id }, server.announce_accept, now);
        self.attend(token);
    }

    /// Gives a connection a slot, of which JavaScript is to be told before `attend`. `None`, and it is closed,
    /// when every slot is taken.
    pub(super) fn enter(&mut self, accepted: Accepted, now: Instant) -> Option<Token> {
        let Accepted { descriptor, remote, local, is_unix, server } = accepted;
        let connection = Connection::new(&server.limits, now);
        let parts = Parts { connection, server: server.clone(), descriptor, is_unix };
        let border = self.border;
        let open = |token| {
            border.open_slot(token, remote, local);
            border.status(token)
        };
        let token = self.operators.insert(parts, open);
        if token.is_none() {
            server.dismiss();
        }
        token
    }

    /// From now on events and deadlines tell of the connection.
    pub(super) fn attend(&mut self, token: Token) {
        let Some(operator) = self.operators.get_mut(token) else { return };
        arm(&mut self.timers, operator);
        if let Err(error) = self.io.register(operator) {
            return self.close(token, Cause::of(&error));
        }
        self.follow(token);
    }

    fn announce(&mut self, accept: Completion, at_once: bool, now: Instant) {
        if at_once {
            self.io.tell(accept);
        } else {
            self.io.tell_some_time(accept);
            self.announce_at.get_or_insert(now + ACCEPT_DELAY);
        }
    }

    pub(super) fn accept_ready(&mut self, now: Instant, budget: u32) -> bool {
        let mut more = false;
        // From the end: a listener that fails is taken out of the list.
        for place in (0..self.acceptors.len()).rev() {
            for _ in 0..budget {
                if !self.acceptors.get(place).is_some_and(|acceptor| acceptor.is_ready)
                    || !self.accept(place, now)
                {
                    break;
                }
            }
            more |= self.acceptors.get(place).is_some_and(|acceptor| acceptor.is_ready);
        }
        more
    }

    /// False when the listener has nothing more to give now.
    fn accept(&mut self, place: usize, now: Instant) -> bool {
        let attempt = if self.has_place() { self.acceptors[place].attempt() } else { Attempt::Exhausted };
        match attempt {
            Attempt::Accepted(accepted) => self.place(accepted, now),
            Attempt::Dropped => {}
            Attempt::Empty => {
                self.acceptors[place].is_ready = false;
                return false;
            }
            Attempt::Exhausted => {
                self.rest(place, now);
                return false;
            }
            Attempt::Failed(cause) => {
                self.drop_listener(self.acceptors[place].listener.id, cause);
                return false;
            }
        }
        true
    }

    /// Whether some poll has a slot. Only this one knows which of its own are free by now.
    fn has_place(&self) -> bool {
        self.tell_load();
        self.shared.inboxes.have_room()
    }

    pub(super) fn tell_load(&self) {
        self.shared.inboxes.set_taken(self.index, self.operators.taken());
    }

    /// Brings a connection to the poll that is chosen for it.
    fn place(&mut self, accepted: Accepted, now: Instant) {
        match self.shared.inboxes.pick() {
            Some(index) if index != self.index => {
                let refused = self.shared.inboxes.offer(index, Command::Adopt(accepted));
                if let Some(Command::Adopt(accepted)) = refused {
                    // That poll has gone just now.
                    self.adopt(accepted, now);
                }
            }
            _ => self.adopt(accepted, now),
        }
    }

    fn rest(&mut self, place: usize, now: Instant) {
        let acceptor = &mut self.acceptors[place];
        acceptor.disarm(&self.io.registry);
        self.timers.arm(now + REST, Subject::Listener(acceptor.listener.id).pack());
    }

    pub(super) fn rearm(&mut self, id: u32) {
        let Some(acceptor) = self.acceptors.iter_mut().find(|acceptor| acceptor.listener.id == id) else {
            return;
        };
        if let Err(error) = acceptor.arm(&self.io.registry) {
            self.drop_listener(id, Cause::of(&error));
        }
    }
}

/// Tests make a poll's thread panic to see what becomes of its connections.
#[allow(clippy::panic)]
fn crash() {
    panic!("this poll was asked to crash");
}
