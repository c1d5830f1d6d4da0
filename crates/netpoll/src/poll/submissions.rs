//! What JavaScript has submitted, as its records say it.

use std::time::Instant;

use socket2::{SockRef, TcpKeepalive};

use super::{arm, mark_dirty, Poll};
use crate::connection::Finish;
use crate::operators::Operator;
use crate::record::{Cause, SocketOption, Submission};
use crate::sys;
use crate::token::Token;

impl Poll {
    /// True when there are more than so many.
    pub(crate) fn take_submissions(&mut self, now: Instant, budget: u32) -> bool {
        for _ in 0..budget {
            let Some(record) = self.submissions.take() else { break };
            if !Submission::decode(&record).is_some_and(|submission| self.submit(submission, now)) {
                self.io.counters.stale_records.add(1);
            }
        }
        if self.submissions.release() {
            // JavaScript holds records for which there was no room: it moves them up when it drains.
            self.ring();
        }
        self.submissions.look()
    }

    pub(crate) fn take_last_records(&mut self, now: Instant) {
        while self.take_submissions(now, u32::MAX) {}
    }

    /// False when the record names something that is not, or not any more.
    fn submit(&mut self, submission: Submission, now: Instant) -> bool {
        match submission {
            Submission::Done { chunk, offset, count } => self.shared.table.give_back(chunk, offset, count),
            Submission::Ack { token } => self.operators.acknowledge(token) || self.forget(token),
            Submission::MoveAck { token, key } => self.let_go(token, key),
            Submission::Reset { token } => self.reset(token, Cause::ORDERLY),
            Submission::Send { token, chunk, offset, length } => self.send(token, chunk, offset, length),
            Submission::SendLent { token, chunk, offset, length } => {
                self.send(token, chunk, offset, length) & self.shared.table.give_back(chunk, offset, 1)
            }
            Submission::SendPin { token, pin } => self.send_pin(token, pin),
            Submission::End { token } => self.finish(token, Finish::End),
            Submission::Close { token, drop } => self.shut(token, drop),
            Submission::Detach { token } => self.detach(token),
            Submission::Info { token } => self.inform(token),
            Submission::WatchDrain { token, target } => self.watch(token, target),
            Submission::Timer { token, which, milliseconds, sequence } => self.change(token, |operator| {
                operator.connection.deadlines.set(which, milliseconds, sequence, now)
            }),
            Submission::Input { token, credit, mark, wanted } => {
                self.change(token, |operator| operator.connection.input.credit(credit, mark, wanted))
            }
            Submission::Pause { token } => {
                self.change(token, |operator| operator.connection.input.paused = true)
            }
            Submission::Resume { token } => {
                self.change(token, |operator| operator.connection.input.paused = false)
            }
            Submission::Option { token, option } => {
                self.change(token, |operator| set_option(operator, option))
            }
        }
    }

    /// Changes a connection, and does what the change may have made due.
    fn change(&mut self, token: Token, change: impl FnOnce(&mut Operator)) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        change(operator);
        self.ready.list(operator);
        arm(&mut self.timers, operator);
        true
    }

    fn send(&mut self, token: Token, chunk: u32, offset: u32, length: u32) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        let Some(range) = self.shared.table.range(chunk, offset, length) else { return false };
        // After the end of the output there is nothing to send it with; the range goes back by itself.
        if operator.connection.output.is_open() {
            operator.connection.output.queue.push(range);
            mark_dirty(&mut self.dirty, operator);
        }
        true
    }

    fn send_pin(&mut self, token: Token, pin: u32) -> bool {
        let Some(pin) = self.shared.pins.take(pin) else { return false };
        let Some(operator) = self.operators.get_mut(token) else { return false };
        if operator.connection.output.is_open() {
            operator.connection.output.queue.push_pin(pin);
            mark_dirty(&mut self.dirty, operator);
        }
        true
    }

    fn finish(&mut self, token: Token, finish: Finish) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        operator.connection.output.finish(finish);
        mark_dirty(&mut self.dirty, operator);
        true
    }

    fn shut(&mut self, token: Token, drop: bool) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        operator.connection.output.drops |= drop;
        self.finish(token, Finish::Close)
    }

    fn inform(&mut self, token: Token) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        self.io.inform(operator);
        true
    }

    fn watch(&mut self, token: Token, target: u32) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        operator.connection.output.watch(target);
        mark_dirty(&mut self.dirty, operator);
        true
    }
}

/// Options that the kernel refuses for this kind of socket are left as they are, as `net` does.
fn set_option(operator: &Operator, option: SocketOption) {
    let descriptor = operator.descriptor();
    let socket = SockRef::from(&descriptor);
    let _ = sys::through("setsockopt", || match option {
        _ if operator.is_unix => Ok(()),
        SocketOption::NoDelay(on) => socket.set_tcp_nodelay(on),
        SocketOption::KeepAlive { on: true, idle_seconds } if idle_seconds > 0 => {
            let idle = std::time::Duration::from_secs(u64::from(idle_seconds));
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))
        }
        SocketOption::KeepAlive { on, .. } => socket.set_keepalive(on),
        SocketOption::UserTimeout { milliseconds } => sys::set_user_timeout(descriptor, milliseconds),
    });
}
