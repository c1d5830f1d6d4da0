//! Which sends without a copy the kernel has not done with, and what keeps their memory until then.
//!
//! ```text
//!    complete(first..=last)                      record
//!   ┌──────┐   ┌──────┐   ┌──────┐   ┌──────┐   ┌──────┐
//!   │ done │   │ held │   │ done │   │ held │   │ held │ ◀──
//!   └──────┘   └──────┘   └──────┘   └──────┘   └──────┘
//!    oldest     + 1        + 2        + 3        + 4        numbers as the kernel counts, modulo 2^32
//!   └ leaves
//! ```

use std::collections::VecDeque;
use std::mem;

use crate::link_buffer::Hold;
use crate::sys::Report;

/// The sends of one socket. Each holds what its bytes lie in, and lets go when the kernel reports it: one by one or
/// many at a time, in any order, and never twice.
///
/// A ledger that is dropped while the kernel still sends leaks what it holds: memory that never comes back does no
/// harm to what the peer receives. Whoever knows that the kernel is done says `release` before.
#[derive(Debug)]
pub(crate) struct Ledger<H = Hold> {
    /// The first of them is not done.
    sends: VecDeque<Send<H>>,
    /// The number of the first one, or of the next one when there are none.
    oldest: u32,
    /// Bytes of those that are not done.
    bytes: u64,
}

#[derive(Debug)]
struct Send<H> {
    /// Where it begins in the stream.
    start: u64,
    len: usize,
    held: Vec<H>,
    is_done: bool,
}

impl<H> Default for Ledger<H> {
    fn default() -> Ledger<H> {
        Ledger { sends: VecDeque::new(), oldest: 0, bytes: 0 }
    }
}

impl<H> Ledger<H> {
    /// One whose next number is this one.
    #[cfg(any(all(test, not(loom)), fuzzing))]
    pub(crate) fn starting_at(oldest: u32) -> Ledger<H> {
        Ledger { sends: VecDeque::new(), oldest, bytes: 0 }
    }

    /// The next send, of `len` bytes from `start` of the stream on.
    pub(crate) fn record(&mut self, start: u64, len: usize, held: Vec<H>) {
        #[cfg(test)]
        let held = if FORGETS.get() { Vec::new() } else { held };
        self.bytes += len as u64;
        self.sends.push_back(Send { start, len, held, is_done: false });
    }

    /// Lets go of what the kernel has done with, and returns how many sends that were. A report may name sends that
    /// are done already, or never were.
    pub(crate) fn complete(&mut self, report: Report) -> usize {
        // Of the two ways to read a difference of numbers the shorter one: half of 2^32 sends are never under way.
        let first = i64::from(report.first.wrapping_sub(self.oldest) as i32);
        let end = first + 1 + i64::from(report.last.wrapping_sub(report.first) as i32);
        let place = |at: i64| at.clamp(0, self.sends.len() as i64) as usize;
        let (first, end) = (place(first), place(end));
        let mut completed = 0;
        for send in self.sends.range_mut(first..end.max(first)).filter(|send| !send.is_done) {
            send.is_done = true;
            send.held = Vec::new();
            self.bytes -= send.len as u64;
            completed += 1;
        }
        while self.sends.front().is_some_and(|send| send.is_done) {
            self.sends.pop_front();
            self.oldest = self.oldest.wrapping_add(1);
        }
        completed
    }

    /// Lets go of everything: the kernel is done with all of it, whether or not it has said so.
    pub(crate) fn release(&mut self) {
        self.oldest = self.oldest.wrapping_add(self.sends.len() as u32);
        self.sends.clear();
        self.bytes = 0;
    }

    /// Where the oldest send begins in the stream that is not done.
    pub(crate) fn start(&self) -> Option<u64> {
        self.sends.front().map(|send| send.start)
    }

    /// Bytes of the sends that are not done.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the kernel holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }
}

impl<H> Drop for Ledger<H> {
    fn drop(&mut self) {
        self.sends.drain(..).for_each(|send| mem::forget(send.held));
    }
}

#[cfg(test)]
thread_local! {
    /// A fault, for the control of tests: memory is not held.
    pub(crate) static FORGETS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::allocated;

    fn report(first: u32, last: u32) -> Report {
        Report { first, last, copied: false }
    }

    /// A ledger whose next number is `oldest`, with so many sends of 10 bytes, and what each of them holds.
    fn ledger(oldest: u32, sends: usize) -> (Ledger<Rc<()>>, Vec<Rc<()>>) {
        let mut ledger = Ledger::starting_at(oldest);
        let held = (0..sends).map(|_| Rc::new(())).collect::<Vec<_>>();
        for (number, hold) in held.iter().enumerate() {
            ledger.record(10 * number as u64, 10, vec![hold.clone()]);
        }
        (ledger, held)
    }

    fn is_held(held: &[Rc<()>]) -> Vec<bool> {
        held.iter().map(|hold| Rc::strong_count(hold) == 2).collect()
    }

    #[test]
    fn a_send_holds_its_memory_until_it_is_reported() {
        let (mut ledger, held) = ledger(0, 2);
        assert_eq!((ledger.bytes(), ledger.start()), (20, Some(0)));
        assert_eq!(ledger.complete(report(0, 0)), 1);
        assert_eq!((is_held(&held), ledger.bytes(), ledger.start()), (vec![false, true], 10, Some(10)));
        assert_eq!(ledger.complete(report(1, 1)), 1);
        assert_eq!((is_held(&held), ledger.is_empty(), ledger.start()), (vec![false; 2], true, None));
    }

    #[test]
    fn one_report_may_tell_of_many_sends() {
        let (mut ledger, held) = ledger(0, 5);
        assert_eq!(ledger.complete(report(0, 3)), 4);
        assert_eq!(is_held(&held), [false, false, false, false, true]);
        ledger.release();
    }

    #[test]
    fn what_is_reported_out_of_order_is_let_go_at_once_and_the_start_waits_for_the_oldest() {
        let (mut ledger, held) = ledger(0, 4);
        assert_eq!(ledger.complete(report(2, 2)), 1);
        assert_eq!((is_held(&held), ledger.start()), (vec![true, true, false, true], Some(0)));
        assert_eq!(ledger.complete(report(0, 1)), 2);
        assert_eq!((ledger.start(), ledger.bytes()), (Some(30), 10), "over what was done already");
        ledger.release();
    }

    #[test]
    fn a_report_of_what_is_done_or_never_was_changes_nothing() {
        let (mut ledger, held) = ledger(100, 2);
        for (first, last) in [(0, 99), (102, 103), (102, u32::MAX), (99, 98), (101, 100), (1 << 31, 0)] {
            assert_eq!(ledger.complete(report(first, last)), 0, "{first}..={last}");
        }
        assert_eq!(is_held(&held), [true; 2]);
        assert_eq!(ledger.complete(report(100, 100)), 1);
        assert_eq!(ledger.complete(report(100, 100)), 0, "twice");
        assert_eq!(ledger.complete(report(50, 150)), 1, "more than there is counts as what there is");
    }

    #[test]
    fn numbers_go_on_from_0_behind_the_last_one() {
        let (mut ledger, held) = ledger(u32::MAX - 1, 5);
        assert_eq!(ledger.complete(report(0, 0)), 1);
        assert_eq!(is_held(&held), [true, true, false, true, true]);
        assert_eq!(ledger.complete(report(u32::MAX, 1)), 2, "around the end");
        assert_eq!(is_held(&held), [true, false, false, false, true]);
        assert_eq!(ledger.complete(report(u32::MAX - 1, u32::MAX - 1)), 1);
        assert_eq!((ledger.oldest, ledger.start()), (2, Some(40)));
        assert_eq!(ledger.complete(report(2, 2)), 1);
        assert!(ledger.is_empty());
    }

    #[test]
    fn release_lets_go_of_everything_and_numbers_go_on() {
        let (mut ledger, held) = ledger(7, 3);
        ledger.release();
        assert_eq!((is_held(&held), ledger.bytes(), ledger.oldest), (vec![false; 3], 0, 10));
    }

    #[test]
    fn what_is_dropped_while_the_kernel_sends_is_never_used_again() {
        let (ledger, held) = ledger(0, 2);
        drop(ledger);
        assert_eq!(is_held(&held), [true; 2]);
    }

    #[test]
    fn a_ledger_that_holds_nothing_leaves_nothing_behind() {
        let before = allocated();
        let (mut done, held) = ledger(0, 100);
        done.complete(report(0, 99));
        drop((done, held));
        let (mut released, held) = ledger(0, 100);
        released.release();
        drop((released, held));
        assert_eq!(allocated(), before);
    }

    /// Start, length and hold of each send that is not done, by a number that does not wrap.
    type Model = BTreeMap<u64, (u64, usize, Rc<()>)>;

    fn take(model: &mut Model, from: u64, to: u64) -> Vec<Rc<()>> {
        let named = model.range(from..=to).map(|(number, _)| *number).collect::<Vec<_>>();
        named.into_iter().filter_map(|number| Some(model.remove(&number)?.2)).collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Record(usize),
        /// From how far before or behind the oldest one on, and how many.
        Complete(i64, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..100usize).prop_map(Step::Record),
            (-3..12i64, 0..6u32).prop_map(|(from, more)| Step::Complete(from, more)),
            (-3..1i64, 0..6u32).prop_map(|(from, more)| Step::Complete(from, more)),
        ]
    }

    proptest! {
        /// The model counts with 64 bits and forgets what is done.
        #[test]
        fn any_reports_let_go_of_what_they_name_once(
            first in prop_oneof![Just(0u32), any::<u32>(), (u32::MAX - 40)..=u32::MAX],
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut ledger = Ledger::starting_at(first);
            let mut model = Model::new();
            let (mut next, mut position) = (1u64 << 32 | u64::from(first), 0);
            for step in steps {
                match step {
                    Step::Record(len) => {
                        let hold = Rc::new(());
                        ledger.record(position, len, vec![hold.clone()]);
                        model.insert(next, (position, len, hold));
                        next += 1;
                        position += len as u64;
                    }
                    Step::Complete(from, more) => {
                        let oldest = *model.keys().next().unwrap_or(&next);
                        let from = oldest.wrapping_add_signed(from);
                        let to = from + u64::from(more);
                        let done = take(&mut model, from, to);
                        prop_assert_eq!(ledger.complete(report(from as u32, to as u32)), done.len());
                        prop_assert!(done.iter().all(|hold| Rc::strong_count(hold) == 1));
                    }
                }
                prop_assert_eq!(ledger.bytes(), model.values().map(|(_, len, _)| *len as u64).sum::<u64>());
                prop_assert_eq!(ledger.start(), model.values().next().map(|(start, ..)| *start));
                prop_assert!(model.values().all(|(.., hold)| Rc::strong_count(hold) == 2));
            }
            ledger.release();
            prop_assert!(model.values().all(|(.., hold)| Rc::strong_count(hold) == 1));
        }
    }
}
