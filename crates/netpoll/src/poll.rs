//! One epoll instance and everything that hangs on it. Its only entry is [`Poll::turn`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Events;

use crate::acceptor::Acceptor;
use crate::block::{BlockTable, Pressure};
use crate::border::{Border, Doorbell};
use crate::connection::{Expired, Finish};
use crate::counters::Counters;
use crate::demand::Load;
use crate::handover::Handover;
use crate::inbox::{Command, Inboxes};
use crate::io::{Io, Visit};
use crate::lending::Setting;
use crate::limbo::{Limbo, LIMBO_DELAY};
use crate::operators::{Operator, Operators};
use crate::pin::PinTable;
use crate::ready_list::ReadyList;
use crate::record::{Cause, Completion};
use crate::ring::Consumer;
use crate::sys;
use crate::timers::Timers;
use crate::token::{Subject, Token};

mod detachment;
mod dials;
mod events;
mod listeners;
mod moves;
mod scarcity;
mod submissions;

use dials::Dials;
use moves::Stage;
use scarcity::{Scarcity, SCARCITY_DELAY};

pub(crate) use moves::Arrival;

/// How much one turn does of each kind, so that none starves the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Submission records taken.
    pub(crate) records: u32,
    /// Connections visited to read.
    pub(crate) visits: u32,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Connections accepted from each listener.
    pub(crate) accepts: u32,
    /// Whether epoll is asked what has happened.
    pub(crate) looks: bool,
}

impl Default for Budget {
    /// A ring full of records; every connection that epoll reports in one go, but no more bytes than a
    /// core's own cache holds until they are sent on (docs/performance.md); and, because an accept costs
    /// as much as several requests, few enough of those to leave the open connections their turn.
    fn default() -> Budget {
        Budget { records: 4096, visits: 1024, bytes: 2 << 20, accepts: 64, looks: true }
    }
}

impl Budget {
    /// For a turn that only does what JavaScript has put.
    pub(crate) fn records() -> Budget {
        Budget { visits: 0, bytes: 0, accepts: 0, looks: false, ..Budget::default() }
    }
}

/// What a turn leaves to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// When the next turn is due even if nothing happens.
    pub(crate) next_deadline: Option<Instant>,
    /// Whether it is due now: something was left for want of budget.
    pub(crate) more: bool,
    pub(crate) load: Load,
}

/// Events that one wait can bring at first; doubled each time that they were all used.
const EVENTS: usize = 256;
const MAX_EVENTS: usize = 16 * 1024;

/// How long an ACCEPT that nobody asked to hear of may wait for a record that rings anyway.
const ACCEPT_DELAY: Duration = Duration::from_millis(5);

/// Entries that the timers may hold beyond two for each connection and dial before the stale ones are dropped.
const TIMER_SLACK: usize = 1024;

/// What the polls of an environment share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) table: Arc<BlockTable>,
    pub(crate) pins: Arc<PinTable>,
    pub(crate) inboxes: Arc<Inboxes>,
    pub(crate) handover: Arc<Handover>,
    pub(crate) doorbell: Doorbell,
    pub(crate) zero_copy: Arc<Setting>,
}

#[derive(Debug)]
pub(crate) struct Poll {
    index: usize,
    shared: Shared,
    border: Border,
    mio: mio::Poll,
    events: Events,
    /// `events` holds what a wait has brought and no turn has looked at.
    is_collected: bool,
    submissions: Consumer,
    /// Taken out of the inbox, and not yet followed.
    commands: VecDeque<Command>,
    operators: Operators,
    io: Io,
    ready: ReadyList,
    dirty: VecDeque<Token>,
    acceptors: Vec<Acceptor>,
    dials: Dials,
    timers: Timers,
    /// When the bell must ring for ACCEPTs that may wait.
    announce_at: Option<Instant>,
    scarcity: Scarcity,
    /// Somebody's reading or accepting rests until memory or JavaScript allows it again.
    is_held: bool,
    stage: Stage,
    /// Connections whose move has not begun.
    leaving: Vec<Token>,
    /// Connections that JavaScript has let go of, and by which key.
    released: Vec<(Token, u32)>,
    /// Connections that are closed, of which the kernel still holds memory.
    limbo: Limbo,
}

impl Poll {
    pub(crate) fn new(
        index: usize,
        mio: mio::Poll,
        border: Border,
        shared: Shared,
        counters: Arc<Counters>,
    ) -> Result<Poll> {
        let registry = mio.registry().try_clone()?;
        Ok(Poll {
            index,
            border,
            mio,
            events: Events::with_capacity(EVENTS),
            is_collected: false,
            submissions: Consumer::new(border.submissions()),
            commands: VecDeque::new(),
            operators: Operators::new(border.slots()),
            io: Io::new(registry, &border, shared.table.clone(), counters, shared.zero_copy.clone()),
            ready: ReadyList::default(),
            dirty: VecDeque::new(),
            acceptors: Vec::new(),
            dials: Dials::default(),
            timers: Timers::default(),
            announce_at: None,
            scarcity: Scarcity::default(),
            is_held: false,
            stage: Stage::Serving,
            leaving: Vec::new(),
            released: Vec::new(),
            limbo: Limbo::default(),
            shared,
        })
    }

    /// Does what there is to do, and never blocks. Sends what JavaScript has submitted, reads what has
    /// arrived, and shows JavaScript the records of it.
    pub(crate) fn turn(&mut self, now: Instant, budget: Budget) -> Result<Turn> {
        self.io.counters.turns.add(1);
        let mut more = self.take_submissions(now, budget.records);
        self.take_commands(now);
        let (before, backlog) = (self.io.arrived(), self.io.unread_records());
        if budget.looks {
            self.collect()?;
            self.take_events();
        }
        self.take_dial_events(now);
        self.transmit_dirty(now);
        if self.io.is_backlogged() {
            // JavaScript may have made room; then reading goes on in this turn.
            self.publish(now);
        }
        let pressure = self.watch_memory(now);
        self.is_held = self.io.is_backlogged() || pressure != Pressure::Low;
        if !self.io.is_backlogged() {
            more |= self.receive_ready(now, budget);
            if pressure <= Pressure::High {
                more |= self.accept_ready(now, budget.accepts);
            }
        }
        more |= !self.dirty.is_empty();
        self.expire_deadlines(now);
        self.relieve(now);
        self.limbo.settle(now);
        more |= self.move_connections();
        more |= self.move_dials(now);
        self.return_pins();
        self.publish(now);
        if !self.released.is_empty() {
            self.hand_over_released();
            self.publish(now);
        }
        self.leave_when_empty();
        Ok(Turn { next_deadline: self.next_deadline(now), more, load: self.io.load_since(before, backlog) })
    }

    /// Waits until something happens or `turn` says that the next one is due.
    pub(crate) fn wait(&mut self, turn: Turn, now: Instant) -> Result<()> {
        let timeout = if turn.more || self.is_awaited() {
            Some(Duration::ZERO)
        } else {
            turn.next_deadline.map(|at| at.saturating_duration_since(now))
        };
        if turn.more {
            // JavaScript may share the core: what it has been given should be used while it is warm.
            std::thread::yield_now();
        }
        let outcome = self.poll_events(timeout);
        self.border.wake_up();
        outcome
    }

    /// JavaScript need not ring for what it puts from now on.
    pub(crate) fn wake_up(&self) {
        self.border.wake_up();
    }

    /// Looks for work. True when there is some.
    pub(crate) fn look(&mut self) -> Result<bool> {
        self.poll_events(Some(Duration::ZERO))?;
        // What comes after a look that has found nothing is for the next turn to collect.
        self.is_collected = !self.events.is_empty();
        Ok(self.is_collected || self.has_been_asked())
    }

    /// Announces the wait to JavaScript, and tells whether something came in the meantime.
    pub(crate) fn is_awaited(&mut self) -> bool {
        self.border.fall_asleep();
        self.has_been_asked()
    }

    fn has_been_asked(&mut self) -> bool {
        self.submissions.look() || self.shared.inboxes.has_commands(self.index)
    }

    fn poll_events(&mut self, timeout: Option<Duration>) -> Result<()> {
        #[cfg(all(test, loom))]
        let timeout = models::awaken(&self.mio, timeout);
        match sys::wait(&mut self.mio, &mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => self.is_collected = true,
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        if self.is_collected {
            return Ok(());
        }
        self.poll_events(Some(Duration::ZERO))
    }

    // ---- the end of a connection

    fn reset(&mut self, token: Token, cause: Cause) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        // It fails only for what is no TCP socket; closing one of those with unread bytes resets it too.
        let _ = sys::abort_on_close(operator.descriptor());
        operator.connection.output.finish = Finish::Open;
        self.close(token, cause);
        true
    }

    fn close(&mut self, token: Token, cause: Cause) {
        if let Some(mut operator) = self.operators.close(token) {
            operator.moving_to.inspect(|target| self.shared.inboxes.came(*target));
            self.io.close(&mut operator, cause);
            self.limbo.take(operator.into_parts());
        }
        self.rest_without_connections();
    }

    fn rest_without_connections(&mut self) {
        if self.operators.open() == 0 {
            self.io.intake.release();
        }
    }

    // ---- what connections have to send and to read

    fn transmit_dirty(&mut self, now: Instant) {
        // What is not finished is put behind, for the next turn.
        for _ in 0..self.dirty.len() {
            let Some(token) = self.dirty.pop_front() else { break };
            let Some(operator) = self.operators.get_mut(token) else { continue };
            operator.is_dirty = false;
            let visit = self.io.transmit(operator, now);
            arm(&mut self.timers, operator);
            self.ready.list(operator);
            match visit {
                Visit::Unfinished => mark_dirty(&mut self.dirty, operator),
                Visit::Finished | Visit::Starved => {}
                Visit::Over(cause) => self.close(token, cause),
                Visit::Leaving => self.give_away(token),
            }
        }
    }

    fn receive_ready(&mut self, now: Instant, budget: Budget) -> bool {
        // Each connection at most once a turn: what is not finished comes again behind the others.
        let visits = self.ready.len().min(budget.visits as usize);
        let limit = self.io.received() + budget.bytes;
        let mut more = self.ready.len() > visits;
        for _ in 0..visits {
            if self.io.received() >= limit {
                return true;
            }
            let Some(token) = self.ready.next() else { break };
            let Some(operator) = self.operators.get_mut(token) else { continue };
            operator.is_listed = false;
            if !self.scarcity.admits(operator, self.shared.table.pressure()) {
                self.ready.list(operator);
                self.is_held = true;
                continue;
            }
            match self.io.receive(operator, now) {
                Visit::Unfinished => {
                    self.ready.list(operator);
                    more = true;
                }
                Visit::Finished => {}
                Visit::Starved => {
                    self.ready.list(operator);
                    self.is_held = true;
                    return false;
                }
                Visit::Over(cause) => self.close(token, cause),
                Visit::Leaving => self.give_away(token),
            }
        }
        more
    }

    // ---- time, memory, the bell

    fn expire_deadlines(&mut self, now: Instant) {
        let owners = self.operators.open() as usize + self.dials.len();
        if self.timers.len() > 2 * owners + TIMER_SLACK {
            self.drop_stale_timers();
        }
        while let Some(key) = self.timers.pop_due(now) {
            match Subject::unpack(key) {
                Subject::Listener(id) => self.rearm(id),
                Subject::Connection(token) => self.expire(token, now),
                Subject::Dial(id, _) => self.expire_dial(id, now),
                Subject::Waker => {}
            }
        }
    }

    /// Entries of connections that are no more, and of deadlines that have become earlier since.
    fn drop_stale_timers(&mut self) {
        let (operators, dials) = (&mut self.operators, &self.dials);
        self.timers.retain(|at, key| match Subject::unpack(key) {
            Subject::Connection(token) => operators
                .get_mut(token)
                .is_some_and(|operator| operator.connection.deadlines.armed == Some(at)),
            Subject::Dial(id, _) => dials.is_armed(id, at),
            Subject::Listener(_) | Subject::Waker => true,
        });
    }

    fn expire(&mut self, token: Token, now: Instant) {
        let Some(operator) = self.operators.get_mut(token) else { return };
        if operator.connection.deadlines.armed.is_some_and(|armed| armed > now) {
            // An entry from before a deadline became earlier: another one looks at what is left.
            return;
        }
        operator.connection.deadlines.armed = None;
        while let Some(expired) = operator.connection.expired(now) {
            match expired {
                Expired::Told(which, sequence) => {
                    self.io.tell(Completion::Timeout { token, which, sequence })
                }
                Expired::Write if self.io.progresses(operator, now) => {}
                Expired::Write => {
                    self.reset(token, Cause::WRITE_TIMEOUT);
                    return;
                }
            }
        }
        arm(&mut self.timers, operator);
    }

    fn return_pins(&mut self) {
        if self.is_empty() {
            return;
        }
        for pin in self.shared.pins.drain_released() {
            self.io.tell(Completion::Unpin { pin });
        }
    }

    fn publish(&mut self, now: Instant) {
        let is_due = self.announce_at.is_some_and(|at| at <= now);
        if self.io.publish() | is_due {
            self.announce_at = None;
            self.ring();
        }
        self.io.counters.connections.set(u64::from(self.operators.open()));
        self.tell_load();
    }

    fn ring(&self) {
        if self.shared.doorbell.ring() {
            self.io.counters.doorbells.add(1);
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let waits = self.ready.len() > 0 || self.acceptors.iter().any(|acceptor| acceptor.is_ready);
        let relieves = self.shared.table.pressure() >= Pressure::Scarce;
        let retry = (self.is_held && waits || relieves).then(|| now + SCARCITY_DELAY);
        let look = (!self.limbo.is_empty()).then(|| now + LIMBO_DELAY);
        [self.timers.next(), self.announce_at, self.scarcity.due(), retry, look].into_iter().flatten().min()
    }
}

fn mark_dirty(dirty: &mut VecDeque<Token>, operator: &mut Operator) {
    if !std::mem::replace(&mut operator.is_dirty, true) {
        dirty.push_back(operator.token);
    }
}

/// Makes sure that the timers look at the connection no later than its next deadline.
fn arm(timers: &mut Timers, operator: &mut Operator) {
    let Some(at) = operator.connection.deadline() else { return };
    if operator.connection.deadlines.armed.is_none_or(|armed| at < armed) {
        operator.connection.deadlines.armed = Some(at);
        timers.arm(at, Subject::Connection(operator.token).pack());
    }
}

#[cfg(test)]
mod models;
#[cfg(test)]
mod tests;
