//! Runs the turns of a poll on the loop of its environment, as far as that is no matter of the loop's own functions.

use std::os::fd::RawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use crate::driver::{Drive, Driven};
use crate::helm::Side;
use crate::poll::Budget;

/// The loop's side of a poll. All its methods are for the thread of the loop.
#[derive(Clone, Debug)]
pub struct LoopDriver {
    drive: Arc<Drive>,
}

/// What the loop does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoopTurn {
    /// It waits for the poll's descriptor.
    Wait {
        /// When the next turn is due even if nothing happens.
        next_deadline: Option<Instant>,
        /// Until when the loop should not sleep.
        busy_until: Option<Instant>,
    },
    /// The next turn is due as soon as the loop has looked at its other work.
    Again,
    /// It lets go of the descriptor, and hands the poll to its thread.
    Leave,
    /// It lets go of the descriptor, and ends the poll, which can not go on.
    Fail,
}

/// What brings a turn about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// The descriptor may be readable, or a deadline has come, or a turn was not finished.
    Event,
    /// JavaScript has put records.
    Records,
}

impl LoopDriver {
    pub(crate) fn new(drive: Arc<Drive>) -> LoopDriver {
        LoopDriver { drive }
    }

    /// Whether it is the loop that runs this poll.
    pub fn is_at_helm(&self) -> bool {
        self.drive.helm.is_with(Side::Loop) && !self.drive.is_stopped()
    }

    /// The descriptor that is readable when there is work. It stays open while the loop is at the helm.
    pub fn descriptor(&self) -> RawFd {
        self.drive.descriptor
    }

    /// Runs a turn, which never blocks. None when it is not the loop's.
    pub fn turn(&self, occasion: Occasion) -> Option<LoopTurn> {
        let budget = match occasion {
            Occasion::Event => Budget::default(),
            Occasion::Records => Budget::records(),
        };
        self.drive.helm.steer(Side::Loop, |driven| {
            // AssertUnwindSafe: after a panic the poll is only dropped.
            catch_unwind(AssertUnwindSafe(|| take_turn(&self.drive, driven, budget)))
                .unwrap_or(LoopTurn::Fail)
        })
    }

    /// Nothing has come until the end of the time in which the loop did not sleep.
    pub fn rest(&self) {
        self.drive.helm.steer(Side::Loop, |driven| driven.busy.expire());
    }

    /// The loop can not look after the poll: its thread does from now on, for good.
    pub fn give_up(&self) {
        // Relaxed: a hint, see `Drive::choose`.
        self.drive.is_adaptive.store(false, Ordering::Relaxed);
    }

    /// Ends a poll that can not go on.
    pub fn fail(&self) {
        self.drive.conclude(false, Instant::now());
    }
}

fn take_turn(drive: &Drive, driven: &mut Driven, budget: Budget) -> LoopTurn {
    let now = Instant::now();
    driven.poll.wake_up();
    let Ok(turn) = driven.poll.turn(now, budget) else { return LoopTurn::Fail };
    let busy_until = driven.busy.rest(turn.load.arrivals > 0, now);
    if driven.next_side(drive, turn.load, Side::Loop, now) == Side::Thread {
        return LoopTurn::Leave;
    }
    // Asleep in between: JavaScript rings for what it puts, and that is sent then and there.
    if driven.poll.is_awaited() || turn.more {
        return LoopTurn::Again;
    }
    LoopTurn::Wait { next_deadline: turn.next_deadline, busy_until }
}
