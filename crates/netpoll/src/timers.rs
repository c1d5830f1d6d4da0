//! Deadlines of many things, at no cost for each request.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// A lazy heap of deadlines. A deadline that moves with each request (a connection's idle timeout) would
/// need one heap operation per request; so none is ever moved or removed here. An entry only says: look at
/// `key` then. The owner keeps the true deadline in a field that a request writes, and when the entry fires
///
/// - the true deadline has been reached: it acts;
/// - it is later by now: it arms the key again, at that time;
/// - the key is gone or its deadline was switched off: it does nothing.
///
/// Only a deadline that becomes *earlier* than the one entry that its owner has out needs another one.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    /// Asks to look at `key` when `at` has come.
    pub fn arm(&mut self, at: Instant, key: u64) {
        self.heap.push(Reverse((at, key)));
    }

    /// The key of the earliest entry, which is removed, if its time has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<u64> {
        self.next().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse((_, key))| key)
    }

    /// Drops the entries that `keep` does not want, by time and key.
    pub fn retain(&mut self, mut keep: impl FnMut(Instant, u64) -> bool) {
        self.heap.retain(|Reverse((at, key))| keep(*at, *key));
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// When the next entry fires.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn entries_fire_in_the_order_of_their_times_and_never_early() {
        let start = Instant::now();
        let mut timers = Timers::default();
        for (ms, key) in [(30, 3), (10, 1), (20, 2), (10, 4)] {
            timers.arm(start + ms * MS, key);
        }
        assert_eq!(timers.pop_due(start + 9 * MS), None);
        let due: Vec<u64> = std::iter::from_fn(|| timers.pop_due(start + 20 * MS)).collect();
        assert_eq!(due, [1, 4, 2]);
        assert_eq!(timers.next(), Some(start + 30 * MS));
        assert_eq!(timers.pop_due(start + 30 * MS), Some(3));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_that_moves_with_each_request_keeps_one_entry() {
        let start = Instant::now();
        let (mut timers, mut deadline) = (Timers::default(), start + 10 * MS);
        timers.arm(deadline, 1);
        let (mut now, mut looks) = (start, 0);
        for _ in 0..1000 {
            now += MS;
            while let Some(key) = timers.pop_due(now) {
                looks += 1;
                assert!(deadline > now, "the true deadline is later each time");
                timers.arm(deadline, key);
            }
            deadline = now + 10 * MS;
            assert_eq!(timers.heap.len(), 1);
        }
        assert!(looks <= 1000 / 9, "{looks}");
        assert_eq!(timers.pop_due(now + 10 * MS), Some(1));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arm(u64, u64),
        Pass(u64),
        Retain(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..1000u64, 0..10u64).prop_map(|(ms, key)| Step::Arm(ms, key)),
            (0..300u64).prop_map(Step::Pass),
            (0..10u64).prop_map(Step::Retain),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_calls_is_one_on_a_sorted_list(steps in vec(any_step(), 0..200)) {
            let mut now = Instant::now();
            let (mut timers, mut model) = (Timers::default(), Vec::<(Instant, u64)>::new());
            for step in steps {
                match step {
                    Step::Arm(ms, key) => {
                        let at = now + ms as u32 * MS;
                        timers.arm(at, key);
                        model.push((at, key));
                        model.sort_unstable();
                    }
                    Step::Pass(ms) => {
                        now += ms as u32 * MS;
                        let count = model.partition_point(|(at, _)| *at <= now);
                        let due = model.drain(..count).map(|(_, key)| key).collect::<Vec<_>>();
                        prop_assert_eq!(std::iter::from_fn(|| timers.pop_due(now)).collect::<Vec<_>>(), due);
                    }
                    Step::Retain(unwanted) => {
                        timers.retain(|_, key| key != unwanted);
                        model.retain(|(_, key)| *key != unwanted);
                    }
                }
                prop_assert_eq!((timers.len(), timers.next()), (model.len(), model.first().map(|first| first.0)));
            }
        }
    }
}
