//! Latencies in buckets whose width grows with their value.

use std::time::Duration;

/// Buckets per power of two are 2^7: no value is off by more than 1/128.
const BITS: u32 = 7;
const BUCKETS: usize = (65 - BITS as usize) << BITS;

/// Counts of nanoseconds. A value is reported as the highest one of its bucket.
#[derive(Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub fn record(&mut self, time: Duration) {
        let value = time.as_nanos() as u64;
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The time within which `share` (0 to 1) of the recorded ones lie; 0 when there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        let value = self.counts.iter().position(reached).map_or(0, highest);
        Duration::from_nanos(value.min(self.max))
    }
}

/// Values below 2^BITS have a bucket each; above, the BITS bits after the leading one choose it.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    ((shift as usize) << BITS) + (value >> shift) as usize
}

fn highest(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1);
    let first = (bucket - (shift << BITS)) as u64;
    ((first + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_bucket_and_close_to_its_top() {
        for value in (0..300).chain((8..63).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let top = highest(bucket(value));
            assert!(top >= value && top - value <= value >> BITS, "{value} is reported as {top}");
        }
        assert_eq!(highest(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for number in 1..BUCKETS {
            assert_eq!(bucket(highest(number - 1) + 1), number);
        }
    }

    #[test]
    fn quantiles_count_from_the_smallest_and_end_at_the_maximum() {
        let mut histogram = Histogram::new();
        for value in 1..=100 {
            histogram.record(Duration::from_nanos(value));
        }
        assert_eq!(histogram.quantile(0.5), Duration::from_nanos(50));
        assert_eq!(histogram.quantile(0.99), Duration::from_nanos(99));
        histogram.record(Duration::from_nanos(1_000_001));
        assert_eq!(histogram.quantile(1.0), Duration::from_nanos(1_000_001));
        assert_eq!(histogram.total(), 101);
    }

    #[test]
    fn nothing_recorded_is_zero() {
        assert_eq!(Histogram::new().quantile(0.5), Duration::ZERO);
    }
}
