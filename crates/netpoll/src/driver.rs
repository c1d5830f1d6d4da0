//! A poll under way: who runs its turns, and how it ends.

use std::os::fd::RawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::border::{Border, Doorbell, Retired};
use crate::busy_poll::BusyPoll;
use crate::counters::Counters;
use crate::demand::{Demand, Load};
use crate::helm::{Helm, Side};
use crate::poll::Poll;

/// Who runs the turns of polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// A thread of each poll.
    Thread,
    /// The loop of the environment.
    Loop,
    /// The loop while there is little to do at a time, the thread while there is much.
    Adaptive,
}

/// How the polls of an environment are driven.
#[derive(Clone, Copy, Debug)]
pub struct Driving {
    /// Who runs their turns.
    pub driver: Driver,
    /// How long a poll looks for more instead of sleeping, when there was some a moment ago. 0 = never.
    pub busy_poll: Duration,
}

/// A poll from its start to its end.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) index: usize,
    pub(crate) helm: Helm<Driven>,
    /// Its epoll descriptor, open until the end.
    pub(crate) descriptor: RawFd,
    pub(crate) stop: AtomicBool,
    /// The sides may change.
    pub(crate) is_adaptive: AtomicBool,
    /// There is a core that its thread may use up.
    pub(crate) may_spin: AtomicBool,
    /// For tests: the sides are to change after this turn.
    flips: AtomicBool,
    /// Told when the poll's descriptors are closed.
    done: Sender<()>,
    border: Border,
    doorbell: Doorbell,
    counters: Arc<Counters>,
}

/// What the side at the helm uses.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) poll: Poll,
    pub(crate) busy: BusyPoll,
    demand: Demand,
}

impl Driven {
    pub(crate) fn new(poll: Poll, busy_poll: Duration, now: Instant) -> Driven {
        Driven { poll, busy: BusyPoll::new(busy_poll), demand: Demand::new(now) }
    }

    /// The side that should run the next turn, when `side` has run this one.
    pub(crate) fn next_side(&mut self, drive: &Drive, load: Load, side: Side, now: Instant) -> Side {
        drive.choose(&mut self.demand, load, side, now)
    }
}

/// What a poll shares with those who look at it from outside.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) border: Border,
    pub(crate) doorbell: Doorbell,
    pub(crate) counters: Arc<Counters>,
    pub(crate) done: Sender<()>,
}

impl Drive {
    pub(crate) fn new(
        index: usize,
        descriptor: RawFd,
        driven: Driven,
        driver: Driver,
        outside: Outside,
    ) -> Drive {
        let side = if driver == Driver::Thread { Side::Thread } else { Side::Loop };
        let Outside { border, doorbell, counters, done } = outside;
        border.set_on_loop(side == Side::Loop);
        counters.is_on_thread.set(side as u64);
        Drive {
            index,
            helm: Helm::new(side, driven),
            descriptor,
            stop: AtomicBool::new(false),
            is_adaptive: AtomicBool::new(driver == Driver::Adaptive),
            may_spin: AtomicBool::new(false),
            flips: AtomicBool::new(false),
            done,
            border,
            doorbell,
            counters,
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        // Acquire: pairs with the Releases of `ask_to_stop`, before which what the last turn takes was put, and of
        // `conclude`.
        self.stop.load(Ordering::Acquire)
    }

    /// Whoever has the helm ends the poll; the caller has to wake it. True when that is the caller, on the loop.
    pub(crate) fn ask_to_stop(&self) -> bool {
        self.stop.store(true, Ordering::Release);
        // Store-buffering with a thread that passes the helm: see `Helm::pass`.
        fence(Ordering::SeqCst);
        self.helm.is_with(Side::Loop)
    }

    /// The side that should run the next turn. Relaxed: both words are hints.
    pub(crate) fn choose(&self, demand: &mut Demand, load: Load, side: Side, now: Instant) -> Side {
        if !self.is_adaptive.load(Ordering::Relaxed) {
            return side;
        }
        if self.flips.load(Ordering::Relaxed) && self.flips.swap(false, Ordering::Relaxed) {
            return if side == Side::Loop { Side::Thread } else { Side::Loop };
        }
        demand.meet(load, side, now)
    }

    pub(crate) fn flip(&self) {
        self.flips.store(true, Ordering::Relaxed);
    }

    pub(crate) fn pass(&self, to: Side) {
        self.counters.flips.add(1);
        self.counters.is_on_thread.set(to as u64);
        self.border.set_on_loop(to == Side::Loop);
        self.helm.pass(to);
    }

    /// The loop is to look after a poll that it has been given.
    pub(crate) fn summon(&self) {
        self.doorbell.summon();
    }

    /// Ends a poll that nobody could be found to run. What has come to it already goes to others.
    pub(crate) fn abandon(&self) {
        if let Some(Driven { mut poll, .. }) = self.helm.take() {
            poll.leave();
        }
    }

    /// Ends the poll, if the other side has not done so, and tells whoever waits for that. After a turn that has
    /// failed it has died.
    pub(crate) fn conclude(&self, is_sound: bool, now: Instant) {
        let Some(Driven { mut poll, .. }) = self.helm.take() else { return };
        // Release: pairs with the Acquire of `is_stopped`. Nobody shall look for a descriptor that is closed below, for
        // its number may be somebody else's then.
        self.stop.store(true, Ordering::Release);
        let has_retired = is_sound && poll.is_empty();
        // Whoever stops such a poll has put its last records before.
        let is_sound = is_sound && attempt(|| has_retired.then(|| poll.take_last_records(now)));
        let has_retired = has_retired && is_sound;
        // There is nobody left to tell of a panic from here on.
        attempt(|| poll.leave());
        attempt(|| drop(poll));
        if has_retired {
            self.border.set_retired(Retired::Ended);
        } else if !is_sound {
            self.border.set_died();
        }
        if has_retired || !is_sound {
            attempt(|| self.doorbell.ring());
        }
        // Nobody listens any more when the environment has given up waiting.
        let _ = self.done.send(());
    }
}

/// False when it has panicked. What it was at must only be dropped then.
fn attempt<T>(act: impl FnOnce() -> T) -> bool {
    // AssertUnwindSafe: the caller's promise.
    catch_unwind(AssertUnwindSafe(act)).is_ok()
}
