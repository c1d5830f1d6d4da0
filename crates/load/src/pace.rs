//! Requests at given times, whether the last one was answered or not.

use std::time::{Duration, Instant};

/// When the next request is due. The time of an answer counts from there, so that a server which stops for a while
/// has all that would have been asked meanwhile against it.
#[derive(Debug)]
pub struct Pace {
    every: Duration,
    due: Instant,
    number: usize,
}

impl Pace {
    /// Faster than this, and the load would do nothing else.
    pub const LEAST: Duration = Duration::from_micros(5);

    pub fn new(every: Duration, start: Instant) -> Self {
        Self { every, due: start, number: 0 }
    }

    /// The number of a request and when it was due, if that was not after `now`.
    pub fn next(&mut self, now: Instant) -> Option<(usize, Instant)> {
        let (number, due) = (self.number, self.due);
        if due > now {
            return None;
        }
        self.number += 1;
        self.due += self.every;
        Some((number, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_due_at_its_own_time() {
        let start = Instant::now();
        let every = Duration::from_millis(1);
        let mut pace = Pace::new(every, start);
        let late = start + 2 * every;
        let due: Vec<_> = std::iter::from_fn(|| pace.next(late)).collect();
        assert_eq!(due, [(0, start), (1, start + every), (2, late)]);
        assert_eq!(pace.next(late + every / 2), None);
    }
}
