//! What a poll has done so far, for `stats()`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one poll. The poll is the only writer of each, so they cost a load and a store; relaxed,
/// for they guard nothing.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) turns: Counter,
    pub(crate) wakeups: Counter,
    pub(crate) doorbells: Counter,
    pub(crate) reads: Counter,
    pub(crate) sends: Counter,
    pub(crate) accepts: Counter,
    pub(crate) records: Counter,
    pub(crate) stale_records: Counter,
    pub(crate) flips: Counter,
    pub(crate) is_on_thread: Counter,
    pub(crate) lent: Counter,
    pub(crate) copied: Counter,
    pub(crate) fallbacks: Counter,
}

/// A copy of a poll's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct PollStats {
    /// Connections whose descriptor is open.
    pub connections: u64,
    /// Turns taken.
    pub turns: u64,
    /// Waits that ended because JavaScript rang.
    pub wakeups: u64,
    /// Times that the poll has rung JavaScript's bell.
    pub doorbells: u64,
    /// System calls that read.
    pub reads: u64,
    /// System calls that sent.
    pub sends: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Completion records put.
    pub records: u64,
    /// Submission records and events that named a connection which is no more, or were no records at all.
    pub stale_records: u64,
    /// Times that the driver has changed.
    pub flips: u64,
    /// Whether its thread runs it now, and not the loop.
    pub is_on_thread: bool,
    /// Of `sends`, those without a copy.
    pub lent: u64,
    /// Of `lent`, those for which the kernel reported that it had to copy all the same.
    pub copied: u64,
    /// Of `sends`, those with a copy because the kernel had no room for one more without.
    pub fallbacks: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.set(self.0.load(Ordering::Relaxed) + amount);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn snapshot(&self) -> PollStats {
        PollStats {
            connections: self.connections.now(),
            turns: self.turns.now(),
            wakeups: self.wakeups.now(),
            doorbells: self.doorbells.now(),
            reads: self.reads.now(),
            sends: self.sends.now(),
            accepts: self.accepts.now(),
            records: self.records.now(),
            stale_records: self.stale_records.now(),
            flips: self.flips.now(),
            is_on_thread: self.is_on_thread.now() != 0,
            lent: self.lent.now(),
            copied: self.copied.now(),
            fallbacks: self.fallbacks.now(),
        }
    }
}
