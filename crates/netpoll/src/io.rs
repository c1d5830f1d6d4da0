//! The system calls of open connections, and the records that tell of them.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use mio::{Interest, Registry};

use crate::barrier::Barrier;
use crate::block::{BlockTable, Pressure, Range};
use crate::border::{Border, StatusEntry};
use crate::connection::{Finish, Input};
use crate::counters::Counters;
use crate::demand::{Load, ACCEPT_ARRIVALS};
use crate::intake::{Intake, ReadSize};
use crate::lending::{Setting, ZeroCopy};
use crate::operators::{Operator, Parts};
use crate::pin::PinTable;
use crate::quantum::Quantum;
use crate::record::{Cause, Completion, Lent};
use crate::ring::Producer;
use crate::sys::{self, IoVec, Report, TcpInfo};
use crate::token::Subject;

/// Reads of one connection in one visit: then the others have their turn.
const READS_PER_VISIT: u32 = 4;

/// Unread bytes thrown away before a descriptor is closed: without that the kernel answers our close with
/// RST, and the peer may lose what we have sent. Bounded, for the peer may never stop.
const DISCARD: usize = 16 * 1024 * 1024;

/// PRIORITY tells of urgent data, at whose mark a read is short.
const READS: Interest = Interest::READABLE.add(Interest::PRIORITY);

#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) registry: Registry,
    pub(crate) table: Arc<BlockTable>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) intake: Intake,
    zero_copy: Arc<Setting>,
    completions: Producer,
    barrier: Barrier,
    /// A record has been put that JavaScript should hear of now.
    is_urgent: bool,
    /// Bytes of one connection in one visit, read or sent.
    quantum: Quantum,
    /// Bytes ever read.
    received: u64,
    /// Reads that brought bytes, and connections that came.
    arrivals: u64,
}

/// How a visit of a connection with bytes to read ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Visit {
    /// There may be more.
    Unfinished,
    /// There is no memory to read into.
    Starved,
    /// Nothing more is there, or the connection does not want it.
    Finished,
    /// The connection is over.
    Over(Cause),
    /// Its descriptor is to be given away.
    Leaving,
}

impl Io {
    pub(crate) fn new(
        registry: Registry,
        border: &Border,
        table: Arc<BlockTable>,
        counters: Arc<Counters>,
        zero_copy: Arc<Setting>,
    ) -> Io {
        Io {
            registry,
            intake: Intake::new(table.clone()),
            table,
            counters,
            zero_copy,
            completions: Producer::new(border.completions()),
            barrier: Barrier::default(),
            is_urgent: false,
            quantum: Quantum::default(),
            received: 0,
            arrivals: 0,
        }
    }

    /// Puts a record that JavaScript should hear of at once.
    pub(crate) fn tell(&mut self, completion: Completion) {
        self.is_urgent = true;
        self.tell_some_time(completion);
    }

    /// Puts a record that may wait for the next one.
    pub(crate) fn tell_some_time(&mut self, completion: Completion) {
        self.counters.records.add(1);
        self.completions.put(completion.encode());
    }

    /// Shows JavaScript what has been put. True when its bell should ring.
    pub(crate) fn publish(&mut self) -> bool {
        // What has waited for room was put in an earlier turn, and the bell of that turn did not tell of it.
        let had_backlog = self.completions.is_backlogged();
        self.completions.publish();
        std::mem::take(&mut self.is_urgent) | had_backlog
    }

    /// JavaScript should look at the header, whether or not there are records.
    pub(crate) fn urge(&mut self) {
        self.is_urgent = true;
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Reads that brought bytes and connections that came, and the bytes.
    pub(crate) fn arrived(&self) -> (u64, u64) {
        (self.arrivals, self.received)
    }

    pub(crate) fn unread_records(&self) -> u32 {
        self.completions.unread()
    }

    /// A connection has come.
    pub(crate) fn accepted(&mut self) {
        self.counters.accepts.add(1);
        self.arrivals += ACCEPT_ARRIVALS;
    }

    /// What has come since `before`, and the records that were unread then.
    pub(crate) fn load_since(&self, before: (u64, u64), backlog: u32) -> Load {
        let arrivals = (self.arrivals - before.0) as u32;
        Load { arrivals, bytes: self.received - before.1, backlog }
    }

    /// JavaScript has fallen behind: nothing may be read or accepted until it has caught up.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.completions.is_backlogged()
    }

    /// The poll has died: what it has lent without a record that JavaScript will see comes back.
    pub(crate) fn abandon(&mut self, pins: &PinTable) {
        for record in self.completions.finish() {
            match Completion::lends(&record) {
                Some(Lent::Block { chunk, offset }) => {
                    self.table.give_back(chunk, offset, 1);
                }
                Some(Lent::Pin(pin)) => pins.release(pin),
                None => {}
            }
        }
    }

    pub(crate) fn register(&self, operator: &Operator) -> std::io::Result<()> {
        let interest = if operator.is_unix { READS } else { READS | Interest::WRITABLE };
        let token = Subject::Connection(operator.token).mio();
        sys::register(&self.registry, operator.descriptor().as_raw_fd(), token, interest)
    }

    /// The poll hears no more of it.
    pub(crate) fn deregister(&self, operator: &Operator) {
        // It fails only for a descriptor that is not registered.
        let _ = sys::deregister(&self.registry, operator.descriptor().as_raw_fd());
    }

    /// Reads what is there, within this visit's budget.
    pub(crate) fn receive(&mut self, operator: &mut Operator, now: Instant) -> Visit {
        let quantum = self.quantum.bytes(now);
        let limit = self.received + quantum as u64;
        for _ in 0..READS_PER_VISIT {
            if !operator.may_read() {
                return Visit::Finished;
            }
            if self.received >= limit {
                break;
            }
            if self.table.pressure() != Pressure::Low {
                // What is left shall not go at one draught.
                operator.connection.input.size = ReadSize::default();
            }
            let size = operator.connection.input.size.within(quantum);
            let offered = self.intake.offer(size, &mut self.barrier);
            if offered == 0 {
                return Visit::Starved;
            }
            self.counters.reads.add(1);
            match read(operator, self.barrier.as_slice()) {
                Ok((0, _)) => return self.receive_end(operator),
                Ok((read, is_cut)) => {
                    self.deliver(operator, size, read, now);
                    let Input { hang_up, urgent, .. } = operator.connection.input;
                    if read < offered && !(hang_up || urgent || is_cut) {
                        if operator.connection.input.size.is_least() {
                            self.quantum.read(read, now);
                        }
                        return self.receive_nothing(operator);
                    }
                }
                Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => {
                    return self.receive_nothing(operator)
                }
                Err(error) => return Visit::Over(Cause::of(&error)),
            }
        }
        Visit::Unfinished
    }

    fn deliver(&mut self, operator: &mut Operator, size: ReadSize, read: usize, now: Instant) {
        let Operator { token, connection, status, .. } = operator;
        if size == connection.input.size {
            connection.input.size.learn(read);
        }
        connection.input.delivered += read as u64;
        self.received += read as u64;
        self.arrivals += 1;
        connection.deadlines.last_traffic = now;
        status.set_bytes_read(connection.input.delivered);
        for range in self.intake.take(size, read) {
            let range = own_when_scarce(&self.table, range);
            let (chunk, offset, length) = range.lend();
            self.completions.put(Completion::Data { token: *token, chunk, offset, length }.encode());
            self.counters.records.add(1);
        }
        self.is_urgent = true;
    }

    fn receive_nothing(&mut self, operator: &mut Operator) -> Visit {
        operator.connection.input.ready = false;
        operator.connection.input.urgent = false;
        match operator.connection.failure {
            Some(cause) => Visit::Over(cause),
            None => Visit::Finished,
        }
    }

    fn receive_end(&mut self, operator: &mut Operator) -> Visit {
        if let Some(cause) = operator.connection.failure {
            // The failed send has taken the error out of the socket; this is no FIN.
            return Visit::Over(cause);
        }
        operator.connection.input.ended = true;
        operator.status.raise(StatusEntry::READ_ENDED);
        self.tell(Completion::Eof { token: operator.token });
        if operator.connection.input.suspect && operator.is_cut() {
            return Visit::Over(Cause::PEER_RESET);
        }
        visit_end(operator)
    }

    /// An event has told of an error. True when the connection is over: the peer has reset it after its FIN.
    pub(crate) fn notice_error(&mut self, operator: &mut Operator) -> bool {
        operator.connection.input.suspect = true;
        let is_over = operator.connection.input.ended && operator.is_cut();
        if is_over {
            self.fail(operator, Cause::PEER_RESET);
        }
        is_over
    }

    /// Sends what is pending until the kernel takes no more or this visit's budget is spent, and FIN behind
    /// it when it is due.
    pub(crate) fn transmit(&mut self, operator: &mut Operator, now: Instant) -> Visit {
        self.settle(operator, now);
        let (quantum, start) = (self.quantum.bytes(now), operator.connection.output.sent);
        while !operator.connection.output.queue.is_empty() && !operator.connection.output.is_blocked {
            let sent = (operator.connection.output.sent - start) as usize;
            if sent >= quantum {
                return Visit::Unfinished;
            }
            let bytes = operator.connection.output.queue.iovecs(&mut self.barrier, quantum - sent);
            debug_assert!(bytes > 0);
            self.counters.sends.add(1);
            match self.send(operator, bytes) {
                Ok(()) => {
                    operator.connection.deadlines.last_traffic = now;
                    operator.status.set_bytes_sent(operator.connection.output.settled());
                }
                Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => self.block(operator, now),
                Err(error) => self.fail(operator, Cause::of(&error)),
            }
        }
        if operator.connection.output.queue.is_empty() {
            self.quantum.sent((operator.connection.output.sent - start) as usize, now);
        }
        self.finish_output(operator);
        if !operator.connection.output.is_settled() && operator.connection.output.blocked_since.is_none() {
            let held = unacknowledged(operator);
            operator.connection.output.wait(now, held);
        }
        if operator.connection.output.take_drained() {
            self.tell(Completion::Drained { token: operator.token });
        }
        visit_end(operator)
    }

    /// Sends what the barrier holds, the first of what is pending: without a copy where that pays.
    fn send(&mut self, operator: &mut Operator, bytes: usize) -> std::io::Result<()> {
        let (zero_copy, pieces) = (self.zero_copy.get(), self.barrier.as_slice());
        if operator.connection.output.lending.is_worth_it(zero_copy, bytes, pieces.len())
            && may_lend(operator)
        {
            match sys::send_zero_copy(operator.descriptor(), pieces) {
                Ok(sent) => {
                    self.counters.lent.add(1);
                    operator.connection.output.lend(sent);
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(sys::ENOBUFS) => {
                    self.counters.fallbacks.add(1);
                    operator.connection.output.lending.ran_short(zero_copy);
                }
                Err(error) => return Err(error),
            }
        }
        let sent = sys::send_vectored(operator.descriptor(), pieces)?;
        operator.connection.output.advance(sent);
        Ok(())
    }

    /// Takes what the error queue tells, if an event has told that there is something.
    fn settle(&mut self, operator: &mut Operator, now: Instant) {
        if !std::mem::take(&mut operator.connection.output.lending.is_reported) {
            return;
        }
        let zero_copy = self.zero_copy.get();
        // The kernel joins reports that touch, so few wait at a time.
        loop {
            match sys::receive_report(operator.descriptor()) {
                Ok(Some(report)) => self.take_report(operator, report, zero_copy, now),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => return,
                // No further event would tell of what is still there.
                Err(error) => return self.fail(operator, Cause::of(&error)),
            }
        }
    }

    fn take_report(&self, operator: &mut Operator, report: Report, zero_copy: ZeroCopy, now: Instant) {
        let output = &mut operator.connection.output;
        let completed = output.lending.complete(report, zero_copy);
        if completed > 0 {
            output.returned(now);
            operator.status.set_bytes_sent(output.settled());
        }
        if report.copied {
            self.counters.copied.add(completed as u64);
        }
    }

    fn block(&mut self, operator: &mut Operator, now: Instant) {
        let held = unacknowledged(operator);
        operator.connection.output.is_blocked = true;
        operator.connection.output.wait(now, held);
        operator.connection.output.queue.detach_small_tail(&self.table);
        if let Err(error) = self.want_room(operator, true) {
            // Nothing would ever tell that there is room.
            self.fail(operator, Cause::of(&error));
        }
    }

    /// The kernel may have room again: the next `transmit` tries.
    pub(crate) fn unblock(&mut self, operator: &mut Operator) {
        operator.connection.output.is_blocked = false;
        // Events that nobody asks for any more are only events too many.
        let _ = self.want_room(operator, false);
    }

    fn want_room(&self, operator: &Operator, wanted: bool) -> std::io::Result<()> {
        // One on its way is registered nowhere: where it arrives it is registered, and sending is tried again.
        if !operator.is_unix || operator.moving_to.is_some() {
            return Ok(());
        }
        let interest = if wanted { READS | Interest::WRITABLE } else { READS };
        let token = Subject::Connection(operator.token).mio();
        sys::reregister(&self.registry, operator.descriptor().as_raw_fd(), token, interest)
    }

    fn fail(&mut self, operator: &mut Operator, cause: Cause) {
        operator.connection.fail(cause);
        operator.status.raise(StatusEntry::READ_ENDED | StatusEntry::WRITE_ENDED);
        // What the kernel still holds is delivered, whether or not an event has told of it.
        operator.connection.input.ready = true;
    }

    fn finish_output(&mut self, operator: &mut Operator) {
        operator.connection.output.drop_blocked();
        if operator.connection.output.wants_fin() {
            let refused = sys::shutdown_write(operator.descriptor()).err();
            // Of a connection that is gone reading tells why. Otherwise the peer would wait for the end.
            if let Some(error) = refused.filter(|error| error.raw_os_error() != Some(sys::ENOTCONN)) {
                self.fail(operator, Cause::of(&error));
            }
            operator.connection.output.ended = true;
            operator.status.raise(StatusEntry::WRITE_ENDED);
        }
    }

    /// Whether the peer has taken bytes out of the kernel's hands since output was last found blocked.
    pub(crate) fn progresses(&self, operator: &mut Operator, now: Instant) -> bool {
        let held = unacknowledged(operator);
        operator.connection.output.progress(held, now)
    }

    /// Tells JavaScript what the kernel knows of the connection; a round trip of -1 where that is nothing.
    pub(crate) fn inform(&mut self, operator: &Operator) {
        let token = operator.token;
        let nothing = TcpInfo { rtt: u32::MAX, variance: 0, retransmits: 0, window: 0, unacked: 0 };
        let TcpInfo { rtt, variance, retransmits, window, unacked } =
            sys::tcp_info(operator.descriptor()).unwrap_or(nothing);
        self.tell(Completion::Info { token, rtt, variance, retransmits, window, unacked });
    }

    /// Lets go of the descriptor, which stays open. The operator has been taken out of its slot.
    pub(crate) fn release(&self, operator: Operator) -> Parts {
        // Before anybody else has it: a registration would outlive our hold on the socket.
        self.deregister(&operator);
        operator.status.raise(StatusEntry::READ_ENDED | StatusEntry::WRITE_ENDED | StatusEntry::CLOSED);
        operator.server.dismiss();
        operator.into_parts()
    }

    /// Closes the descriptor and tells JavaScript so. The operator has been taken out of its slot.
    pub(crate) fn close(&mut self, operator: &mut Operator, cause: Cause) {
        // What has been reported counts, although no event may have told of it. The time does not matter any more.
        operator.connection.output.lending.is_reported = !operator.connection.output.is_settled();
        self.settle(operator, operator.connection.deadlines.last_traffic);
        if operator.connection.output.finish == Finish::Close && !operator.connection.input.ended {
            discard_input(operator);
        }
        // A duplicate in a child would keep firing, so it goes before the close.
        self.deregister(operator);
        operator.status.raise(StatusEntry::READ_ENDED | StatusEntry::WRITE_ENDED | StatusEntry::CLOSED);
        operator.server.dismiss();
        self.tell(Completion::Closed { token: operator.token, cause });
    }
}

/// The bytes read, and whether the read ended where more may be.
fn read(operator: &Operator, into: &[IoVec]) -> std::io::Result<(usize, bool)> {
    if operator.is_unix {
        sys::receive_cut(operator.descriptor(), into)
    } else {
        Ok((sys::read_vectored(operator.descriptor(), into)?, false))
    }
}

/// Whether the socket can be sent from without a copy; it is asked once.
fn may_lend(operator: &mut Operator) -> bool {
    let is_asked = !operator.connection.output.lending.is_untried();
    // Of unix sockets none can.
    let can = is_asked || !operator.is_unix && sys::enable_zero_copy(operator.descriptor()).is_ok();
    operator.connection.output.lending.tried(can);
    can
}

fn unacknowledged(operator: &Operator) -> u32 {
    // It does not fail for a stream socket; if it does, there is no progress to be seen.
    sys::unacknowledged(operator.descriptor()).unwrap_or(u32::MAX)
}

fn visit_end(operator: &Operator) -> Visit {
    if operator.connection.may_leave() {
        Visit::Leaving
    } else if operator.connection.is_finished() {
        Visit::Over(operator.connection.cause())
    } else {
        Visit::Finished
    }
}

/// It takes several calls where one throws away only a little.
fn discard_input(operator: &Operator) {
    let mut left = DISCARD;
    while let Ok(1..) = sys::discard_input(operator.descriptor(), left).inspect(|gone| left -= gone) {}
}

/// While much is held, one slow reader must not hold a block that others share: its bytes move to a block
/// of their own size.
fn own_when_scarce(table: &BlockTable, range: Range) -> Range {
    if table.above_shared_limit() && range.len() <= range.block().len() / 4 {
        range.copied(table).unwrap_or(range)
    } else {
        range
    }
}
