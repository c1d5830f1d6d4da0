//! The two ends of a single-producer single-consumer ring in memory that JavaScript shares.
//!
//! ```text
//!            head                     tail
//!             ▼                        ▼
//!   ┌───┬───┬───┬───┬───┬───┬───┬───┬───┬───┐   entries: a power of two
//!   │   │   │ r │ r │ r │ r │ r │ r │   │   │   head and tail count records ever, mod 2^32
//!   └───┴───┴───┴───┴───┴───┴───┴───┴───┴───┘   tail - head <= entries
//! ```

use std::collections::VecDeque;

use crate::record::{Record, RECORD_WORDS};
use crate::sync::{fence, AtomicU32, Ordering};

/// Where a ring lies: its two counters, the word that tells of a backlog, and its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    pub(crate) head: &'static AtomicU32,
    pub(crate) tail: &'static AtomicU32,
    pub(crate) backlogged: &'static AtomicU32,
    /// A power of two times `RECORD_WORDS`.
    pub(crate) words: &'static [AtomicU32],
}

impl Ring {
    fn entries(&self) -> u32 {
        (self.words.len() / RECORD_WORDS) as u32
    }

    fn entry(&self, position: u32) -> &'static [AtomicU32] {
        let start = (position & (self.entries() - 1)) as usize * RECORD_WORDS;
        &self.words[start..start + RECORD_WORDS]
    }
}

/// The end that puts records. What finds no room waits in order behind it.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Ring,
    /// Records put; the shared tail follows with `publish`.
    tail: u32,
    /// The tail as the consumer may see it.
    published: u32,
    /// The consumer's head when it was last looked at: never ahead of the true one.
    head: u32,
    backlog: VecDeque<Record>,
}

impl Producer {
    pub(crate) fn new(ring: Ring) -> Producer {
        Producer { ring, tail: 0, published: 0, head: 0, backlog: VecDeque::new() }
    }

    /// Puts a record, or keeps it until there is room. Nobody sees it before `publish`.
    pub(crate) fn put(&mut self, record: Record) {
        if !self.backlog.is_empty() || !self.write(&record) {
            self.backlog.push_back(record);
        }
    }

    /// Shows the consumer everything put, after moving what fits out of the backlog.
    pub(crate) fn publish(&mut self) {
        if self.backlog.is_empty() && self.published == self.tail {
            return;
        }
        self.unload();
        if !self.backlog.is_empty() {
            // Store-buffering with the consumer, who writes its head, fences, and reads this word: either
            // it sees the word and rings, or the second look below sees the room it has made.
            self.ring.backlogged.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.unload();
        }
        if self.backlog.is_empty() {
            self.ring.backlogged.store(0, Ordering::Relaxed);
        }
        // Release: pairs with the consumer's load of the tail; it then sees the records written before.
        self.ring.tail.store(self.tail, Ordering::Release);
        self.published = self.tail;
    }

    pub(crate) fn is_backlogged(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Records that the consumer has not taken yet. Relaxed: a hint.
    pub(crate) fn unread(&self) -> u32 {
        self.published.wrapping_sub(self.ring.head.load(Ordering::Relaxed))
    }

    /// Shows the consumer what there is room for, for the last time, and returns the rest.
    pub(crate) fn finish(&mut self) -> VecDeque<Record> {
        self.publish();
        std::mem::take(&mut self.backlog)
    }

    fn unload(&mut self) {
        while let Some(record) = self.backlog.front() {
            let record = *record;
            if !self.write(&record) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn write(&mut self, record: &Record) -> bool {
        if self.tail.wrapping_sub(self.head) >= self.ring.entries() {
            // Acquire: pairs with the consumer's store of its head; it has read the entry we overwrite.
            self.head = self.ring.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head) >= self.ring.entries() {
                return false;
            }
        }
        for (word, value) in self.ring.entry(self.tail).iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        true
    }
}

/// The end that takes records.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: Ring,
    head: u32,
    /// The producer's tail when it was last looked at.
    tail: u32,
}

impl Consumer {
    pub(crate) fn new(ring: Ring) -> Consumer {
        Consumer { ring, head: 0, tail: 0 }
    }

    pub(crate) fn take(&mut self) -> Option<Record> {
        if self.head == self.tail && !self.look() {
            return None;
        }
        let mut record = [0; RECORD_WORDS];
        for (value, word) in record.iter_mut().zip(self.ring.entry(self.head)) {
            *value = word.load(Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        Some(record)
    }

    /// Gives the taken entries back to the producer. True when it holds records that had found no room.
    pub(crate) fn release(&self) -> bool {
        // Release: pairs with the producer's load of the head; our reads of the entries come before.
        self.ring.head.store(self.head, Ordering::Release);
        // Store-buffering with the producer, see `Producer::publish`.
        fence(Ordering::SeqCst);
        self.ring.backlogged.load(Ordering::Relaxed) != 0
    }

    /// Whether the producer has put something since the last look.
    pub(crate) fn look(&mut self) -> bool {
        // Acquire: pairs with the producer's store of the tail; the records before it are there.
        let tail = self.ring.tail.load(Ordering::Acquire);
        // A tail further ahead than the ring is long can only be damage; what it points at is not there.
        if tail.wrapping_sub(self.head) <= self.ring.entries() {
            self.tail = tail;
        }
        self.head != self.tail
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::tests::words;

    fn ring(entries: usize) -> Ring {
        let words = words(3 + entries * RECORD_WORDS);
        Ring { head: &words[0], tail: &words[1], backlogged: &words[2], words: &words[3..] }
    }

    fn numbered(number: u32) -> Record {
        [number, 1, 2, 3, 4, 5, 6, 7]
    }

    #[test]
    fn nothing_is_seen_before_publish() {
        let ring = ring(8);
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        producer.put(numbered(1));
        assert_eq!(consumer.take(), None);
        producer.publish();
        assert_eq!(consumer.take(), Some(numbered(1)));
    }

    #[test]
    fn what_finds_no_room_waits_in_order_and_tells_the_consumer() {
        let ring = ring(8);
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        (0..20).for_each(|number| producer.put(numbered(number)));
        producer.publish();
        assert!(producer.is_backlogged());
        let mut taken = Vec::new();
        loop {
            while let Some(record) = consumer.take() {
                taken.push(record[0]);
            }
            if !consumer.release() {
                break;
            }
            producer.publish();
        }
        assert_eq!(taken, (0..20).collect::<Vec<_>>());
        assert!(!producer.is_backlogged());
    }

    #[test]
    fn counters_wrap_around() {
        let ring = ring(8);
        let (mut producer, mut consumer) = ends_at(ring, u32::MAX - 3);
        for number in 0..100 {
            producer.put(numbered(number));
            producer.publish();
            assert_eq!(consumer.take().map(|record| record[0]), Some(number));
            consumer.release();
        }
    }

    #[test]
    fn a_tail_that_cannot_be_is_not_followed() {
        let ring = ring(8);
        let mut consumer = Consumer::new(ring);
        ring.tail.store(9, Ordering::Relaxed);
        assert_eq!(consumer.take(), None);
    }

    #[test]
    fn two_threads_pass_every_record_in_order() {
        let ring = ring(8);
        let count = 100_000;
        let mut producer = Producer::new(ring);
        let thread = std::thread::spawn(move || {
            for number in 0..count {
                producer.put(numbered(number));
                producer.publish();
                while producer.is_backlogged() {
                    std::thread::yield_now();
                    producer.publish();
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        for number in 0..count {
            let record = loop {
                if let Some(record) = consumer.take() {
                    break record;
                }
                std::thread::yield_now();
            };
            consumer.release();
            assert_eq!(record[0], number);
        }
        thread.join().unwrap();
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put,
        Publish,
        Take(usize),
        Release,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Put),
            2 => Just(Step::Publish),
            2 => (1..10usize).prop_map(Step::Take),
            2 => Just(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_put_is_taken_once_and_in_order(
            start: u32, shift in 0..5u32, steps in vec((any_step(), any::<Record>()), 0..200),
        ) {
            let (mut producer, mut consumer) = ends_at(ring(1 << shift), start);
            let (mut put, mut shown, mut taken) = (Vec::new(), 0, Vec::new());
            for (step, record) in steps {
                match step {
                    Step::Put => {
                        producer.put(record);
                        put.push(record);
                    }
                    Step::Publish => {
                        producer.publish();
                        shown = put.len() - producer.backlog.len();
                    }
                    Step::Take(count) => {
                        taken.extend(std::iter::from_fn(|| consumer.take()).take(count));
                    }
                    Step::Release => {
                        // The other way round it need not be: the word is as old as the last look.
                        prop_assert!(consumer.release() || !producer.is_backlogged() || shown < put.len());
                    }
                }
                prop_assert!(taken.len() <= shown && put.starts_with(&taken));
                prop_assert!(producer.unread() <= 1 << shift);
            }
            producer.publish();
            while taken.len() < put.len() {
                taken.extend(std::iter::from_fn(|| consumer.take()));
                consumer.release();
                producer.publish();
            }
            prop_assert!(taken == put && consumer.take().is_none() && !producer.is_backlogged());
        }

        #[test]
        fn whatever_the_other_side_writes_a_look_finds_no_more_than_the_ring_holds(
            start: u32, shift in 0..5u32, tails in vec(any::<u32>(), 0..20),
        ) {
            let ring = ring(1 << shift);
            let (_, mut consumer) = ends_at(ring, start);
            for tail in tails {
                // Both one of all numbers, which hardly ever can be, and one near to that.
                for tail in [tail, consumer.head.wrapping_add(tail % 40)] {
                    ring.tail.store(tail, Ordering::Relaxed);
                    prop_assert!(std::iter::from_fn(|| consumer.take()).take(100).count() <= 1 << shift);
                    consumer.release();
                }
            }
        }
    }

    /// The ends of an empty ring through which so many records have gone.
    fn ends_at(ring: Ring, start: u32) -> (Producer, Consumer) {
        ring.head.store(start, Ordering::Relaxed);
        ring.tail.store(start, Ordering::Relaxed);
        let producer = Producer { tail: start, published: start, head: start, ..Producer::new(ring) };
        (producer, Consumer { head: start, tail: start, ..Consumer::new(ring) })
    }
}

#[cfg(test)]
#[cfg(loom)]
pub(crate) mod models {
    use loom::thread;

    use super::*;
    use crate::sync::models::{explore, leak};

    pub(crate) fn ring(entries: usize) -> Ring {
        let words = leak(3 + entries * RECORD_WORDS);
        Ring { head: &words[0], tail: &words[1], backlogged: &words[2], words: &words[3..] }
    }

    /// One of which each word tells the number.
    pub(crate) fn numbered(number: u32) -> Record {
        std::array::from_fn(|word| number << 8 | word as u32)
    }

    /// Three records through two entries, of which each is shown as soon as it is put.
    fn passes(publish: impl Fn(&mut Producer) + Copy + Send + Sync + 'static) {
        explore(3, move || {
            let ring = ring(2);
            let thread = thread::spawn(move || {
                let mut producer = Producer::new(ring);
                (1..=3).for_each(|number| {
                    producer.put(numbered(number));
                    publish(&mut producer);
                });
                while producer.is_backlogged() {
                    thread::yield_now();
                    publish(&mut producer);
                }
            });
            let mut consumer = Consumer::new(ring);
            for number in 1..=3 {
                let record = loop {
                    match consumer.take() {
                        Some(record) => break record,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(record, numbered(number));
                consumer.release();
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn every_record_arrives_whole_and_in_order() {
        passes(Producer::publish);
    }

    #[test]
    #[should_panic(expected = "assertion `left == right` failed")]
    fn a_record_that_its_tail_does_not_release_may_not_be_there() {
        passes(|producer| {
            producer.unload();
            producer.ring.tail.store(producer.tail, Ordering::Relaxed);
            producer.published = producer.tail;
        });
    }

    /// The producer finds no room while the consumer makes some: one of them has to notice.
    fn notices(
        publish: impl Fn(&mut Producer) + Copy + Send + Sync + 'static,
        release: impl Fn(&Consumer) -> bool + Copy + Send + Sync + 'static,
    ) {
        explore(3, move || {
            let ring = ring(1);
            let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
            producer.put(numbered(1));
            producer.publish();
            let thread = thread::spawn(move || {
                producer.put(numbered(2));
                publish(&mut producer);
                producer.is_backlogged()
            });
            assert_eq!(consumer.take(), Some(numbered(1)));
            let rings = release(&consumer);
            let waits = thread.join().unwrap();
            assert!(rings || !waits, "a record is left behind");
        });
    }

    /// Without its first line, which only spares the rest.
    fn publish_without_fence(producer: &mut Producer) {
        producer.unload();
        if producer.is_backlogged() {
            producer.ring.backlogged.store(1, Ordering::Relaxed);
            producer.unload();
        }
        producer.ring.tail.store(producer.tail, Ordering::Release);
        producer.published = producer.tail;
    }

    fn release_without_fence(consumer: &Consumer) -> bool {
        consumer.ring.head.store(consumer.head, Ordering::Release);
        consumer.ring.backlogged.load(Ordering::Relaxed) != 0
    }

    #[test]
    fn a_producer_without_room_finds_some_or_is_rung() {
        notices(Producer::publish, Consumer::release);
    }

    #[test]
    #[should_panic(expected = "a record is left behind")]
    fn without_the_producers_fence_it_could_wait_for_ever() {
        notices(publish_without_fence, Consumer::release);
    }

    #[test]
    #[should_panic(expected = "a record is left behind")]
    fn without_the_consumers_fence_it_could_wait_for_ever() {
        notices(Producer::publish, release_without_fence);
    }
}
