//! Which address of a dial is tried when, as happy eyeballs do (RFC 8305). Addresses are numbers here; the
//! [`dialer`](crate::dialer) knows them.
//!
//! ```text
//!   untried ── try ──▶ running ── connected ──▶ the race is won
//!      ▲                │   │
//!      │    try again   │   └── failed ──▶ the next one at once; the first failure is told when none is left
//!      └───── later ────┘
//! ```

use std::time::{Duration, Instant};

use crate::record::Cause;

/// How long an attempt goes on alone before the next address is tried beside it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The kernel tells nobody when a unix socket's backlog has room again.
const BUSY_DELAY: Duration = Duration::from_millis(5);

/// As Go does: how often an address is tried again whose connection came to be one with itself.
const MEETINGS: u32 = 2;

#[derive(Debug)]
pub(crate) struct Race {
    /// `tried <= count`: the addresses below `tried` have had their turn.
    count: usize,
    tried: usize,
    /// Attempts that have neither failed nor won, those in `again` among them.
    running: usize,
    /// When the next address is due although others run.
    next_at: Option<Instant>,
    /// Attempts that could not begin, and when they are tried again.
    again: Vec<(Instant, usize)>,
    meetings: u32,
    deadline: Option<Instant>,
    first: Option<Failure>,
}

/// Why a dial has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) place: Place,
}

/// Whose failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The address with this number could not be reached.
    Remote(usize),
    /// Our own address could not be bound.
    Local,
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Try(usize),
    /// Something must happen first, or the deadline pass.
    Wait,
    Lost(Failure),
}

impl Race {
    pub(crate) fn new(count: usize, timeout: Option<Duration>, now: Instant) -> Race {
        Race {
            count,
            tried: 0,
            running: 0,
            next_at: None,
            again: Vec::new(),
            meetings: 0,
            deadline: timeout.and_then(|timeout| now.checked_add(timeout)),
            first: None,
        }
    }

    /// To be asked again until it says that there is nothing to do now.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        if self.deadline.is_some_and(|at| at <= now) {
            return Step::Lost(Failure { cause: Cause::DIAL_TIMEOUT, place: Place::Remote(0) });
        }
        if let Some(due) = self.again.iter().position(|(at, _)| *at <= now) {
            return Step::Try(self.again.swap_remove(due).1);
        }
        if self.tried < self.count && self.next_at.is_none_or(|at| at <= now) {
            self.tried += 1;
            self.running += 1;
            self.next_at = now.checked_add(ATTEMPT_DELAY);
            return Step::Try(self.tried - 1);
        }
        match self.first {
            Some(first) if self.running == 0 => Step::Lost(first),
            _ => Step::Wait,
        }
    }

    /// An attempt has failed: the next address need not wait.
    pub(crate) fn failed(&mut self, failure: Failure) {
        self.running = self.running.saturating_sub(1);
        self.next_at = None;
        self.first.get_or_insert(failure);
    }

    /// An attempt found the backlog full.
    pub(crate) fn busy(&mut self, address: usize, now: Instant) {
        self.again.push((now + BUSY_DELAY, address));
    }

    /// An attempt has connected to itself: it is made again, with another port of ours if `may_differ`. Nobody
    /// listens at an address where that is possible.
    pub(crate) fn met_itself(&mut self, address: usize, may_differ: bool, now: Instant) {
        if may_differ && self.meetings < MEETINGS {
            self.meetings += 1;
            self.again.push((now, address));
        } else {
            self.failed(Failure { cause: Cause::REFUSED, place: Place::Remote(address) });
        }
    }

    /// When `step` has to be asked even if nothing happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        let next = self.next_at.filter(|_| self.tried < self.count);
        let again = self.again.iter().map(|(at, _)| *at);
        [self.deadline, next].into_iter().flatten().chain(again).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn refused(address: usize) -> Failure {
        Failure { cause: Cause::REFUSED, place: Place::Remote(address) }
    }

    fn timed_out() -> Step {
        Step::Lost(Failure { cause: Cause::DIAL_TIMEOUT, place: Place::Remote(0) })
    }

    #[test]
    fn each_address_is_tried_250_ms_after_the_one_before_it() {
        let now = Instant::now();
        let mut race = Race::new(3, None, now);
        assert_eq!([race.step(now), race.step(now)], [Step::Try(0), Step::Wait]);
        for address in 1..3 {
            let at = now + address as u32 * ATTEMPT_DELAY;
            assert_eq!((race.due(), race.step(at - MS)), (Some(at), Step::Wait));
            assert_eq!([race.step(at), race.step(at)], [Step::Try(address), Step::Wait]);
        }
        assert_eq!(race.due(), None);
    }

    #[test]
    fn the_next_address_is_tried_as_soon_as_one_has_failed() {
        let now = Instant::now();
        let mut race = Race::new(3, None, now);
        assert_eq!([race.step(now), race.step(now)], [Step::Try(0), Step::Wait]);
        race.failed(refused(0));
        assert_eq!([race.step(now), race.step(now)], [Step::Try(1), Step::Wait]);
        assert_eq!(race.due(), Some(now + ATTEMPT_DELAY));
    }

    #[test]
    fn the_first_failure_is_told_when_the_last_attempt_has_failed() {
        let now = Instant::now();
        let mut race = Race::new(2, None, now);
        assert_eq!(race.step(now), Step::Try(0));
        assert_eq!(race.step(now + ATTEMPT_DELAY), Step::Try(1));
        race.failed(refused(1));
        assert_eq!(race.step(now + ATTEMPT_DELAY), Step::Wait);
        race.failed(refused(0));
        assert_eq!(race.step(now + ATTEMPT_DELAY), Step::Lost(refused(1)));
    }

    #[test]
    fn the_deadline_ends_a_race_whatever_runs() {
        let now = Instant::now();
        let mut race = Race::new(2, Some(10 * MS), now);
        assert_eq!(race.step(now), Step::Try(0));
        assert_eq!(race.due(), Some(now + 10 * MS));
        assert_eq!(race.step(now + 10 * MS - Duration::from_nanos(1)), Step::Wait);
        assert_eq!(race.step(now + 10 * MS), timed_out());
    }

    #[test]
    fn an_attempt_that_found_the_backlog_full_is_made_again_until_the_deadline() {
        let now = Instant::now();
        let mut race = Race::new(1, Some(12 * MS), now);
        assert_eq!(race.step(now), Step::Try(0));
        for round in 1..=2 {
            let before = now + (round - 1) * BUSY_DELAY;
            race.busy(0, before);
            assert_eq!((race.due(), race.step(before)), (Some(before + BUSY_DELAY), Step::Wait));
            assert_eq!(race.step(before + BUSY_DELAY), Step::Try(0));
        }
        race.busy(0, now + 2 * BUSY_DELAY);
        assert_eq!(race.due(), Some(now + 12 * MS));
        assert_eq!(race.step(now + 12 * MS), timed_out());
    }

    #[test]
    fn a_connection_with_itself_is_tried_twice_again_and_then_refused() {
        let now = Instant::now();
        let mut race = Race::new(1, None, now);
        for _ in 0..=MEETINGS {
            assert_eq!([race.step(now), race.step(now)], [Step::Try(0), Step::Wait]);
            race.met_itself(0, true, now);
        }
        assert_eq!(race.step(now), Step::Lost(refused(0)));
    }

    #[test]
    fn a_connection_with_itself_from_a_port_that_was_asked_for_is_refused_at_once() {
        let now = Instant::now();
        let mut race = Race::new(1, None, now);
        assert_eq!(race.step(now), Step::Try(0));
        race.met_itself(0, false, now);
        assert_eq!(race.step(now), Step::Lost(refused(0)));
    }
}
