//! The state of one connection, without its descriptor and without a clock.
//!
//! ```text
//!            received, may_read               push, sent, blocked
//!   socket ──────────▶ Input ─▶ JavaScript ─▶ Output ──────────▶ socket
//!                      open                   open ── end ──▶ ending ── FIN ──▶ ended
//!                      ended (FIN)            open ── close ▶ closing ─ FIN ──▶ ended
//! ```
//!
//! The two directions end apart. A connection is finished when both have ended, or when JavaScript has
//! closed it and its output has ended; then the poll closes the descriptor. But while the kernel sends from our
//! memory it lingers: a descriptor that is closed reports nothing any more.

use std::time::{Duration, Instant};

use crate::intake::ReadSize;
use crate::lending::Lending;
use crate::link_buffer::LinkBuffer;
use crate::record::{Cause, Deadline};

/// How long a connection without a write timeout may linger for a peer that takes nothing.
pub(crate) const LINGER: Duration = Duration::from_secs(30);

/// What a server gives each of its connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unread bytes above which the poll stops reading.
    pub read_high_water_mark: u32,
    /// Time without traffic after which JavaScript is told.
    pub idle_timeout: Option<Duration>,
    /// Time that pending output may make no progress.
    pub write_timeout: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) deadlines: Deadlines,
    /// Set by a failed send; what the kernel still holds is read, then the connection closes with it.
    pub(crate) failure: Option<Cause>,
    /// JavaScript wants the descriptor, open, as soon as all output is sent. Nothing is read any more.
    pub(crate) is_leaving: bool,
}

impl Connection {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Connection {
        Connection {
            input: Input::new(limits.read_high_water_mark),
            output: Output::default(),
            deadlines: Deadlines::new(limits, now),
            failure: None,
            is_leaving: false,
        }
    }

    /// Whether the poll should read now.
    pub(crate) fn may_read(&self) -> bool {
        if self.input.ended || self.output.finish == Finish::Close || self.is_leaving {
            return false;
        }
        self.failure.is_some() || !self.input.paused && self.input.unread() < u64::from(self.input.mark)
    }

    /// A send has failed: nothing more is sent, but what the peer had sent before is still delivered.
    pub(crate) fn fail(&mut self, cause: Cause) {
        self.failure.get_or_insert(cause);
        self.output.queue.clear();
        self.output.is_blocked = false;
        self.output.blocked_since = None;
        self.output.ended = true;
    }

    /// Whether the descriptor can be closed.
    pub(crate) fn is_finished(&self) -> bool {
        if self.is_leaving {
            return self.failure.is_some();
        }
        self.has_ended() && (self.output.is_settled() || self.failure.is_some())
    }

    /// Neither direction matters any more.
    fn has_ended(&self) -> bool {
        self.output.ended && (self.input.ended || self.output.finish == Finish::Close)
    }

    /// Only what the kernel holds of ours keeps the descriptor open.
    fn is_lingering(&self) -> bool {
        self.has_ended() && !self.is_finished() && !self.is_leaving
    }

    /// Whether the descriptor can be given away.
    pub(crate) fn may_leave(&self) -> bool {
        let is_sent = self.output.queue.is_empty() && !self.output.wants_fin() && self.output.is_settled();
        self.is_leaving && self.failure.is_none() && is_sent
    }

    pub(crate) fn cause(&self) -> Cause {
        self.failure.unwrap_or(Cause::ORDERLY)
    }

    /// The earliest deadline that holds now.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let read = self.deadlines.read.map(|(at, _)| at);
        [read, self.idle_deadline(), self.write_deadline()].into_iter().flatten().min()
    }

    /// Takes a deadline that has passed: each fires once.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Expired> {
        if let Some((_, sequence)) = self.deadlines.read.filter(|(at, _)| *at <= now) {
            self.deadlines.read = None;
            return Some(Expired::Told(Deadline::Read, sequence));
        }
        if self.idle_deadline().is_some_and(|at| at <= now) {
            self.deadlines.idle_armed = false;
            return Some(Expired::Told(Deadline::Idle, self.deadlines.idle_sequence));
        }
        let stalled = self.write_deadline().is_some_and(|at| at <= now);
        stalled.then_some(Expired::Write)
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let timeout = self.deadlines.idle.filter(|_| self.deadlines.idle_armed)?;
        self.deadlines.last_traffic.checked_add(timeout)
    }

    fn write_deadline(&self) -> Option<Instant> {
        let linger = self.is_lingering().then_some(LINGER);
        self.output.blocked_since?.checked_add(self.deadlines.write.or(linger)?)
    }
}

/// What is to be done about a passed deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expired {
    /// JavaScript is told, and decides.
    Told(Deadline, u32),
    /// The connection is reset, unless the peer makes progress that only the kernel has seen.
    Write,
}

#[derive(Debug)]
pub(crate) struct Input {
    /// Bytes ever delivered to JavaScript.
    pub(crate) delivered: u64,
    /// Bytes that JavaScript has told it has consumed: `consumed <= delivered`.
    consumed: u64,
    /// The poll reads while fewer bytes than this are unread.
    mark: u32,
    /// JavaScript can do nothing with what is unread before more has come. Told only while memory is scarce.
    pub(crate) wanted: bool,
    pub(crate) paused: bool,
    /// FIN has been read. No byte follows.
    pub(crate) ended: bool,
    /// The kernel may have bytes: set by an event, cleared by a short read. Edge-triggered: while this
    /// is set no further event will come for what is already there.
    pub(crate) ready: bool,
    /// An event has told of FIN or RST, so a short read is not the last.
    pub(crate) hang_up: bool,
    /// An event has told of an error: behind a FIN no read tells of a RST.
    pub(crate) suspect: bool,
    /// An event has told of urgent data, at whose mark a read ends although more is there.
    pub(crate) urgent: bool,
    pub(crate) size: ReadSize,
}

impl Input {
    fn new(mark: u32) -> Input {
        Input {
            delivered: 0,
            consumed: 0,
            mark,
            wanted: false,
            paused: false,
            ended: false,
            ready: false,
            hang_up: false,
            suspect: false,
            urgent: false,
            size: ReadSize::default(),
        }
    }

    pub(crate) fn unread(&self) -> u64 {
        self.delivered - self.consumed
    }

    /// JavaScript has consumed `credit` more bytes and takes up to `mark` unread ones from now on.
    pub(crate) fn credit(&mut self, credit: u32, mark: u32, wanted: bool) {
        self.consumed = self.delivered.min(self.consumed + u64::from(credit));
        self.mark = mark;
        self.wanted = wanted;
    }
}

/// How JavaScript has asked the output to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Finish {
    #[default]
    Open,
    /// FIN after what is pending.
    End,
    /// The same, and the input does not matter any more.
    Close,
}

#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) queue: LinkBuffer,
    /// Bytes ever taken by the kernel.
    pub(crate) sent: u64,
    /// What of it the kernel sends from our memory.
    pub(crate) lending: Lending,
    /// The kernel has no room. Edge-triggered: an event will tell when it has some again.
    pub(crate) is_blocked: bool,
    /// Since when the kernel has taken nothing of what is pending, or has given nothing back of what it was lent.
    pub(crate) blocked_since: Option<Instant>,
    /// Bytes that the kernel held and the peer had not acknowledged when progress was last looked for.
    pub(crate) unacknowledged: u32,
    pub(crate) finish: Finish,
    /// JavaScript has closed it and waits for no room: what the kernel does not take is dropped.
    pub(crate) drops: bool,
    /// FIN has been sent, or nothing can be sent any more.
    pub(crate) ended: bool,
    /// The low word of the count of sent bytes that JavaScript waits for.
    watch: Option<u32>,
}

impl Output {
    /// The kernel has taken `sent` more bytes.
    pub(crate) fn advance(&mut self, sent: usize) {
        self.queue.advance(sent);
        self.sent += sent as u64;
        self.blocked_since = None;
    }

    /// The kernel has taken `sent` more bytes, which it sends from where they lie.
    pub(crate) fn lend(&mut self, sent: usize) {
        let held = self.queue.lend(sent);
        self.lending.ledger.record(self.sent, sent, held);
        self.sent += sent as u64;
        self.blocked_since = None;
    }

    /// The kernel has given back some of what it was lent.
    pub(crate) fn returned(&mut self, now: Instant) {
        let waits = self.is_blocked || !self.is_settled();
        self.blocked_since = waits.then_some(now);
    }

    /// Bytes that the kernel has taken and whose memory it does not need any more: as far as that is true of all.
    pub(crate) fn settled(&self) -> u64 {
        self.lending.ledger.start().unwrap_or(self.sent)
    }

    /// Whether the kernel holds nothing of ours.
    pub(crate) fn is_settled(&self) -> bool {
        self.lending.ledger.is_empty()
    }

    /// Bytes that hold memory: those that wait, and those that the kernel was lent.
    pub(crate) fn pending(&self) -> u64 {
        self.queue.len() + self.lending.ledger.bytes()
    }

    /// The kernel has taken nothing, or gives nothing back, for it still holds what `unacknowledged` counts.
    pub(crate) fn wait(&mut self, now: Instant, unacknowledged: u32) {
        if self.blocked_since.is_none() {
            self.blocked_since = Some(now);
            self.unacknowledged = unacknowledged;
        }
    }

    /// The kernel has no room yet and holds so much: less than before is progress of a slow peer.
    pub(crate) fn progress(&mut self, unacknowledged: u32, now: Instant) -> bool {
        let progressed = unacknowledged < self.unacknowledged;
        if progressed {
            self.unacknowledged = unacknowledged;
            self.blocked_since = Some(now);
        }
        progressed
    }

    /// Drops what the kernel has no room for, if nobody wants to wait for that.
    pub(crate) fn drop_blocked(&mut self) {
        if self.drops && self.is_blocked {
            self.queue.clear();
            self.blocked_since = None;
        }
    }

    /// Whether FIN is due.
    pub(crate) fn wants_fin(&self) -> bool {
        self.finish != Finish::Open && !self.ended && self.queue.is_empty()
    }

    /// Whether more may be put behind what is pending.
    pub(crate) fn is_open(&self) -> bool {
        self.finish == Finish::Open && !self.ended
    }

    /// END may become CLOSE, never the other way round.
    pub(crate) fn finish(&mut self, finish: Finish) {
        if self.finish != Finish::Close {
            self.finish = finish;
        }
    }

    pub(crate) fn watch(&mut self, target: u32) {
        self.watch = Some(target);
    }

    /// Takes the watch when its answer is due.
    pub(crate) fn take_drained(&mut self) -> bool {
        let settled = self.settled() as u32;
        let reached = |target: u32| settled.wrapping_sub(target) as i32 >= 0;
        // After the end nobody asks once more, so the answer is about all of it.
        let is_due = |target| if self.ended { self.is_settled() } else { reached(target) };
        let drained = self.watch.is_some_and(is_due);
        if drained {
            self.watch = None;
        }
        drained
    }
}

#[derive(Debug)]
pub(crate) struct Deadlines {
    pub(crate) read: Option<(Instant, u32)>,
    idle: Option<Duration>,
    idle_armed: bool,
    idle_sequence: u32,
    write: Option<Duration>,
    pub(crate) last_traffic: Instant,
    /// The earliest entry that the poll's timers hold for this connection.
    pub(crate) armed: Option<Instant>,
}

impl Deadlines {
    fn new(limits: &Limits, now: Instant) -> Deadlines {
        Deadlines {
            read: None,
            idle: limits.idle_timeout,
            idle_armed: true,
            idle_sequence: 0,
            write: limits.write_timeout,
            last_traffic: now,
            armed: None,
        }
    }

    pub(crate) fn set(&mut self, which: Deadline, milliseconds: u32, sequence: u32, now: Instant) {
        let timeout = (milliseconds > 0).then(|| Duration::from_millis(u64::from(milliseconds)));
        match which {
            Deadline::Read => {
                self.read = timeout.and_then(|timeout| Some((now.checked_add(timeout)?, sequence)))
            }
            Deadline::Idle => {
                self.idle = timeout;
                self.idle_armed = true;
                self.idle_sequence = sequence;
                self.last_traffic = now;
            }
            Deadline::Write => self.write = timeout,
        }
    }
}

#[cfg(test)]
mod tests;
