//! What the polls of an environment agree on when memory is scarce: one connection of them all may read on, and
//! one at a time has to go. Only polls that have seen that it is scarce take part; a lock is cheap enough then.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The agreement of all polls.
#[derive(Debug, Default)]
pub(crate) struct Rations(Mutex<Agreement>);

#[derive(Debug, Default)]
struct Agreement {
    /// The poll whose favorite reads on. It goes on to the highest bid.
    holder: Option<usize>,
    /// By the polls' numbers.
    bids: Vec<Bid>,
    burdens: Vec<Burden>,
    full_since: Option<Instant>,
    /// Before this nobody else has to go.
    relieved_until: Option<Instant>,
}

/// What a poll would have read on: the unread bytes of a message of which more is wanted, and less than any such
/// message somebody who has nothing unread. `None` is nobody.
pub(crate) type Bid = Option<u64>;

/// What the connections of a poll keep of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Burden {
    /// Pending output of all, of the one that has most, and of the one that has most of those whose peers have long
    /// taken nothing.
    pub(crate) output: u64,
    pub(crate) most_pending: u64,
    pub(crate) most_stalled: u64,
    /// The longest message of which more is wanted.
    pub(crate) most_wanted: u64,
}

/// What an asking poll is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Granted,
    /// It is this poll's turn now, which has to be told.
    Passed(usize),
    /// Somebody has it, or nobody needs it.
    Denied,
}

/// Which connection of a poll has to go: the one that is foremost in this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Victim {
    Pending,
    Stalled,
    Wanted,
}

/// How full memory is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shortage {
    pub(crate) is_full: bool,
    pub(crate) max_memory: u64,
    /// How long it may be full before the longest message has to go.
    pub(crate) patience: Duration,
    /// How long the next one is spared when one has gone.
    pub(crate) pause: Duration,
}

impl Rations {
    /// Asks for the turn, on behalf of a poll that has no favorite now; `had_one` until now. Of equals those that had
    /// none come first.
    pub(crate) fn ask(&self, poll: usize, bid: Bid, had_one: bool) -> Answer {
        let mut agreement = self.lock();
        *place(&mut agreement.bids, poll) = bid;
        if agreement.holder.is_some_and(|holder| holder != poll) {
            return Answer::Denied;
        }
        let best = agreement.best_but(poll);
        let others = best.and_then(|best| agreement.bids[best]);
        agreement.holder = if others > bid || (had_one && others == bid) { best } else { bid.map(|_| poll) };
        match agreement.holder {
            Some(holder) if holder == poll => Answer::Granted,
            Some(holder) => Answer::Passed(holder),
            None => Answer::Denied,
        }
    }

    /// The poll takes no part any more: memory is not scarce, or it has ended.
    pub(crate) fn leave(&self, poll: usize) {
        let mut agreement = self.lock();
        *place(&mut agreement.bids, poll) = None;
        *place(&mut agreement.burdens, poll) = Burden::default();
        agreement.holder.take_if(|holder| *holder == poll);
    }

    /// Notes whether memory is full, and tells since when.
    pub(crate) fn full_since(&self, is_full: bool, now: Instant) -> Option<Instant> {
        let mut agreement = self.lock();
        if is_full {
            agreement.full_since.get_or_insert(now);
        } else {
            agreement.full_since = None;
        }
        agreement.full_since
    }

    /// Which connection of the poll has to go now: the one that is worst of all polls', and one at a time.
    pub(crate) fn victim(
        &self,
        poll: usize,
        burden: Burden,
        shortage: Shortage,
        now: Instant,
    ) -> Option<Victim> {
        let mut agreement = self.lock();
        *place(&mut agreement.burdens, poll) = burden;
        if agreement.relieved_until.is_some_and(|until| until > now) {
            return None;
        }
        let victim = agreement.worst_kind(shortage, now).filter(|kind| agreement.is_worst(poll, *kind))?;
        agreement.relieved_until = Some(now + shortage.pause);
        agreement.full_since = None;
        Some(victim)
    }

    fn lock(&self) -> MutexGuard<'_, Agreement> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agreement {
    /// Who bids most besides a poll: of equals the next one after it.
    fn best_but(&self, poll: usize) -> Option<usize> {
        let count = self.bids.len();
        let others = (1..count).map(|step| (poll + step) % count).rev();
        others.filter(|other| self.bids[*other].is_some()).max_by_key(|other| self.bids[*other])
    }

    fn worst_kind(&self, shortage: Shortage, now: Instant) -> Option<Victim> {
        let is_over = self.full_since.is_some_and(|since| now >= since + shortage.patience);
        let output = self.burdens.iter().map(|burden| burden.output).sum::<u64>();
        let any = |kind: Victim| self.burdens.iter().any(|burden| burden.of(kind) > 0);
        if shortage.is_full && output > 0 && output >= shortage.max_memory / 2 {
            Some(Victim::Pending)
        } else if any(Victim::Stalled) {
            Some(Victim::Stalled)
        } else {
            (shortage.is_full && is_over && any(Victim::Wanted)).then_some(Victim::Wanted)
        }
    }

    /// Of equals the first one.
    fn is_worst(&self, poll: usize, kind: Victim) -> bool {
        let own = self.burdens[poll].of(kind);
        let is_worse = |(other, burden): (usize, &Burden)| {
            burden.of(kind) > own || (burden.of(kind) == own && other < poll)
        };
        own > 0 && !self.burdens.iter().enumerate().any(is_worse)
    }
}

impl Burden {
    fn of(&self, kind: Victim) -> u64 {
        match kind {
            Victim::Pending => self.most_pending,
            Victim::Stalled => self.most_stalled,
            Victim::Wanted => self.most_wanted,
        }
    }
}

fn place<T: Default + Clone>(all: &mut Vec<T>, poll: usize) -> &mut T {
    if all.len() <= poll {
        all.resize(poll + 1, T::default());
    }
    &mut all[poll]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn full() -> Shortage {
        Shortage { is_full: true, max_memory: 16, patience: 2 * SECOND, pause: SECOND }
    }

    #[test]
    fn one_poll_has_the_turn_and_the_others_wait_until_it_has_no_favorite_any_more() {
        let rations = Rations::default();
        assert_eq!(rations.ask(1, Some(5), false), Answer::Granted);
        assert_eq!(rations.ask(0, Some(9), false), Answer::Denied);
        assert_eq!(rations.ask(2, Some(7), false), Answer::Denied);
        assert_eq!(rations.ask(1, Some(6), true), Answer::Passed(0));
        assert_eq!(rations.ask(2, Some(7), false), Answer::Denied);
        assert_eq!(rations.ask(0, None, true), Answer::Passed(2));
        assert_eq!(rations.ask(2, None, true), Answer::Passed(1));
        assert_eq!(rations.ask(1, None, false), Answer::Denied, "who has nobody passes it on to nobody");
        assert_eq!(rations.ask(2, Some(0), false), Answer::Granted);
    }

    #[test]
    fn a_turn_that_is_free_goes_to_the_highest_bid_whoever_asks_first() {
        let rations = Rations::default();
        assert_eq!(rations.ask(0, Some(1), false), Answer::Granted);
        assert_eq!(rations.ask(1, Some(3), false), Answer::Denied);
        rations.leave(0);
        assert_eq!(rations.ask(2, Some(2), false), Answer::Passed(1));
    }

    #[test]
    fn equals_take_turns() {
        let rations = Rations::default();
        let bid = Some(4);
        assert_eq!(rations.ask(0, bid, false), Answer::Granted);
        (1..3).for_each(|poll| assert_eq!(rations.ask(poll, bid, false), Answer::Denied));
        for (poll, next) in [(0, 1), (1, 2), (2, 0)] {
            assert_eq!(rations.ask(poll, bid, true), Answer::Passed(next));
            assert_eq!(rations.ask(next, bid, false), Answer::Granted);
        }
    }

    #[test]
    fn a_poll_that_leaves_gives_the_turn_up_and_is_given_none() {
        let rations = Rations::default();
        assert_eq!(rations.ask(0, Some(1), false), Answer::Granted);
        assert_eq!(rations.ask(1, Some(2), false), Answer::Denied);
        rations.leave(1);
        assert_eq!(rations.ask(0, Some(1), true), Answer::Granted);
        rations.leave(0);
        assert_eq!(rations.ask(1, Some(1), false), Answer::Granted);
    }

    #[test]
    fn output_of_all_polls_together_is_to_blame_and_the_one_with_most_of_it_goes() {
        let rations = Rations::default();
        let now = Instant::now();
        let burden = |output, most_pending| Burden { output, most_pending, ..Burden::default() };
        assert_eq!(rations.victim(0, burden(4, 4), full(), now), None, "less than half of the memory");
        assert_eq!(rations.victim(1, burden(4, 3), full(), now), None, "another poll has a worse one");
        assert_eq!(rations.victim(0, burden(4, 4), full(), now), Some(Victim::Pending));
        assert_eq!(rations.victim(0, burden(4, 4), full(), now), None, "one at a time");
        assert_eq!(rations.victim(1, burden(4, 4), full(), now + SECOND), None, "of equals the first");
        assert_eq!(rations.victim(0, burden(4, 4), full(), now + SECOND), Some(Victim::Pending));
    }

    #[test]
    fn the_longest_message_of_all_polls_goes_when_memory_has_long_been_full() {
        let rations = Rations::default();
        let start = Instant::now();
        let burden = |most_wanted| Burden { most_wanted, ..Burden::default() };
        assert_eq!(rations.full_since(true, start), Some(start));
        let end = start + 2 * SECOND;
        assert_eq!(rations.full_since(true, end), Some(start));
        assert_eq!(rations.victim(0, burden(3), full(), end - SECOND / 2), None);
        assert_eq!(rations.victim(1, burden(4), full(), end - SECOND / 2), None);
        assert_eq!(rations.victim(0, burden(3), full(), end), None);
        assert_eq!(rations.victim(1, burden(4), full(), end), Some(Victim::Wanted));
        assert_eq!(rations.full_since(true, end), Some(end), "what it held may come back now");
        assert_eq!(rations.full_since(false, end), None);
    }

    #[test]
    fn who_is_stalled_goes_before_memory_is_full() {
        let rations = Rations::default();
        let now = Instant::now();
        let scarce = Shortage { is_full: false, ..full() };
        let stalled = Burden { output: 1, most_pending: 1, most_stalled: 1, most_wanted: 9 };
        assert_eq!(rations.victim(3, stalled, scarce, now), Some(Victim::Stalled));
        let waiting = Burden { most_wanted: 9, ..Burden::default() };
        assert_eq!(rations.victim(3, waiting, scarce, now + SECOND), None);
    }
}
