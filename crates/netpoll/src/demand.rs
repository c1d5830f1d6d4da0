//! How much there is to do for a poll at a time, and so which side should run its turns.

use std::time::{Duration, Instant};

use crate::helm::Side;

/// What one turn has met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Reads that brought bytes, and connections that came, each of which counts as several.
    pub(crate) arrivals: u32,
    pub(crate) bytes: u64,
    /// Records that JavaScript had not taken when the turn began.
    pub(crate) backlog: u32,
}

/// A running mean of the load, with hysteresis: from many arrivals at a time on, a thread reads and sends while the loop
/// is left to the handlers; with few, the two hops between the threads would cost more than they bring.
#[derive(Debug)]
pub(crate) struct Demand {
    mean: f32,
    /// When a side took over.
    since: Instant,
}

/// The mean from which a thread takes over, and that at which the loop does. docs/performance.md has the figures.
const MANY: f32 = 12.0;
const FEW: f32 = 3.0;

/// What an accepted connection counts as: it is made, registered, closed and told of besides.
pub(crate) const ACCEPT_ARRIVALS: u64 = 4;

/// Bytes that count as much as one arrival. A block that was just read is still in the core's cache where the loop gives
/// it to a handler, so long copies alone are no reason to go to a thread (docs/performance.md).
const BYTES_PER_ARRIVAL: u64 = 512 * 1024;

/// Of a new turn in the mean.
const WEIGHT: f32 = 1.0 / 16.0;

/// A side keeps the helm for so long at least.
const DWELL: Duration = Duration::from_millis(20);

impl Demand {
    pub(crate) fn new(now: Instant) -> Demand {
        Demand { mean: 0.0, since: now }
    }

    /// Which side should run the next turn, when `side` has run this one.
    pub(crate) fn meet(&mut self, load: Load, side: Side, now: Instant) -> Side {
        if load.arrivals == 0 {
            return side;
        }
        let amount = u64::from(load.arrivals) + u64::from(load.backlog) + load.bytes / BYTES_PER_ARRIVAL;
        self.mean += (amount as f32 - self.mean) * WEIGHT;
        let wanted = match side {
            Side::Loop if self.mean >= MANY => Side::Thread,
            Side::Thread if self.mean <= FEW => Side::Loop,
            _ => side,
        };
        if wanted == side || now.saturating_duration_since(self.since) < DWELL {
            return side;
        }
        self.since = now;
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: Side = Side::Loop;
    const THREAD: Side = Side::Thread;

    /// The side after so many such turns, one a millisecond.
    fn after(demand: &mut Demand, side: Side, turns: u32, load: Load, now: &mut Instant) -> Side {
        (0..turns).fold(side, |side, _| {
            *now += Duration::from_millis(1);
            demand.meet(load, side, *now)
        })
    }

    fn arrivals(arrivals: u32) -> Load {
        Load { arrivals, ..Load::default() }
    }

    fn start() -> (Demand, Instant) {
        let now = Instant::now();
        (Demand::new(now), now)
    }

    #[test]
    fn few_connections_stay_on_the_loop_however_long() {
        let (mut demand, mut now) = start();
        assert_eq!(after(&mut demand, LOOP, 10_000, arrivals(8), &mut now), LOOP);
    }

    #[test]
    fn many_go_to_the_thread_and_few_come_back() {
        let (mut demand, mut now) = start();
        assert_eq!(after(&mut demand, LOOP, 100, arrivals(50), &mut now), THREAD);
        assert_eq!(after(&mut demand, THREAD, 1000, arrivals(5), &mut now), THREAD, "between the marks");
        assert_eq!(after(&mut demand, THREAD, 100, arrivals(1), &mut now), LOOP);
    }

    #[test]
    fn one_turn_with_many_is_not_yet_many() {
        let (mut demand, mut now) = start();
        after(&mut demand, LOOP, 100, arrivals(1), &mut now);
        assert_eq!(after(&mut demand, LOOP, 1, arrivals(100), &mut now), LOOP);
    }

    #[test]
    fn large_messages_weigh_more_than_small_ones_but_one_alone_is_not_many() {
        let (mut demand, mut now) = start();
        let large = |arrivals| Load { arrivals, bytes: 2 << 20, backlog: 0 };
        assert_eq!(after(&mut demand, LOOP, 100, large(1), &mut now), LOOP);
        assert_eq!(after(&mut demand, LOOP, 100, arrivals(9), &mut now), LOOP);
        assert_eq!(after(&mut demand, LOOP, 100, large(9), &mut now), THREAD);
    }

    #[test]
    fn handlers_that_do_not_keep_up_keep_the_thread_although_its_turns_meet_few() {
        let (mut demand, mut now) = start();
        let slow = Load { arrivals: 1, bytes: 64, backlog: 60 };
        assert_eq!(after(&mut demand, THREAD, 1000, slow, &mut now), THREAD);
    }

    #[test]
    fn a_side_keeps_the_helm_for_a_while() {
        let (mut demand, mut now) = start();
        let mut changes = 0;
        let mut side = LOOP;
        for round in 0..1000 {
            let load = arrivals(if round % 2 == 0 { 10_000 } else { 1 });
            let next = after(&mut demand, side, 1, load, &mut now);
            changes += u32::from(next != side);
            side = next;
        }
        assert!(changes <= 50, "{changes} in 1000 ms");
    }

    #[test]
    fn turns_without_arrivals_say_nothing() {
        let (mut demand, mut now) = start();
        assert_eq!(after(&mut demand, LOOP, 100, arrivals(50), &mut now), THREAD);
        assert_eq!(after(&mut demand, THREAD, 1000, arrivals(0), &mut now), THREAD);
    }
}
