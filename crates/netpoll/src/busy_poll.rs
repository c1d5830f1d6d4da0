//! When to look again at once instead of sleeping: to sleep and to be woken costs more than a small request.

use std::time::{Duration, Instant};

/// The window after activity in which its poll does not sleep. It opens only while the gaps between arrivals are
/// shorter than it is: then looking finds something, and what is seldom met costs nothing.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    window: Duration,
    /// Of the gaps, a running mean in seconds.
    mean: f32,
    /// When the last turn was.
    last: Option<Instant>,
    /// The window was closed after it.
    slept: bool,
}

/// Of a new gap in the mean.
const WEIGHT: f32 = 1.0 / 8.0;

/// No gap counts for more windows than that: then a silence is soon forgotten.
const LONGEST: f32 = 4.0;

/// To be woken takes about so long; without the sleep the gap would have been shorter by that.
const WAKING: Duration = Duration::from_micros(20);

impl BusyPoll {
    /// With a window of 0 it never opens.
    pub(crate) fn new(window: Duration) -> BusyPoll {
        BusyPoll { window, mean: window.as_secs_f32() * LONGEST, last: None, slept: true }
    }

    /// After a turn: until when to look again at once. None when it is better to sleep.
    pub(crate) fn rest(&mut self, has_arrivals: bool, now: Instant) -> Option<Instant> {
        if has_arrivals {
            self.learn(now);
        }
        self.last = Some(now);
        let opens = self.mean < self.window.as_secs_f32();
        self.slept = !opens;
        opens.then(|| now + self.window)
    }

    /// Nothing has come in the window.
    pub(crate) fn expire(&mut self) {
        self.slept = true;
    }

    fn learn(&mut self, now: Instant) {
        let Some(last) = self.last else { return };
        let mut gap = now.saturating_duration_since(last);
        if self.slept {
            gap = gap.saturating_sub(WAKING);
        }
        let gap = gap.as_secs_f32().min(self.window.as_secs_f32() * LONGEST);
        self.mean += (gap - self.mean) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    /// Whether it is open after so many arrivals, each so long after the one before.
    fn is_open_after(busy: &mut BusyPoll, count: u32, gap: Duration, now: &mut Instant) -> bool {
        (0..count).fold(false, |_, _| {
            *now += gap;
            busy.rest(true, *now).is_some()
        })
    }

    #[test]
    fn it_opens_for_arrivals_that_follow_each_other_closely() {
        let (mut busy, mut now) = (BusyPoll::new(WINDOW), Instant::now());
        assert!(!is_open_after(&mut busy, 1, Duration::from_micros(20), &mut now), "not at the first");
        assert!(is_open_after(&mut busy, 50, Duration::from_micros(20), &mut now));
        let now = now + Duration::from_micros(20);
        assert_eq!(busy.rest(true, now), Some(now + WINDOW));
    }

    #[test]
    fn it_stays_shut_for_a_request_per_millisecond() {
        let (mut busy, mut now) = (BusyPoll::new(WINDOW), Instant::now());
        assert!(!is_open_after(&mut busy, 1000, Duration::from_millis(1), &mut now));
    }

    #[test]
    fn it_shuts_again_when_arrivals_become_rare() {
        let (mut busy, mut now) = (BusyPoll::new(WINDOW), Instant::now());
        assert!(is_open_after(&mut busy, 50, Duration::from_micros(10), &mut now));
        assert!(!is_open_after(&mut busy, 5, Duration::from_millis(1), &mut now));
    }

    #[test]
    fn the_time_that_waking_takes_is_no_gap() {
        let (mut busy, mut now) = (BusyPoll::new(WINDOW), Instant::now());
        assert!(is_open_after(&mut busy, 100, Duration::from_micros(60), &mut now));
    }

    #[test]
    fn a_turn_that_only_sends_begins_the_window_anew_and_is_no_arrival() {
        let (mut busy, mut now) = (BusyPoll::new(WINDOW), Instant::now());
        is_open_after(&mut busy, 50, Duration::from_micros(20), &mut now);
        now += Duration::from_millis(10);
        assert_eq!(busy.rest(false, now), Some(now + WINDOW));
        now += Duration::from_micros(20);
        assert!(busy.rest(true, now).is_some());
    }

    #[test]
    fn a_window_of_nothing_never_opens() {
        let (mut busy, mut now) = (BusyPoll::new(Duration::ZERO), Instant::now());
        assert!(!is_open_after(&mut busy, 1000, Duration::ZERO, &mut now));
    }
}
