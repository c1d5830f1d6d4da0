//! The memory that a poll and JavaScript share, and the bell between them: `docs/border.md`.

use std::fmt;
use std::sync::Arc;

use crate::record::RECORD_WORDS;
use crate::ring::Ring;
use crate::sync::{fence, AtomicU32, Ordering};
use crate::token::Token;

const HEADER_WORDS: usize = 64;
const STATUS_WORDS: usize = 8;
const ADDRESS_WORDS: usize = 16;
/// Words of one encoded endpoint; an address entry holds the remote and the local one.
const ENDPOINT_WORDS: usize = 6;

const COMPLETION_TAIL: usize = 0;
const COMPLETION_BACKLOGGED: usize = 1;
const DIED: usize = 2;
const SCARCE: usize = 3;
const RETIRED: usize = 4;
const ON_LOOP: usize = 5;
const COMPLETION_HEAD: usize = 16;
const SUBMISSION_TAIL: usize = 32;
const SUBMISSION_BACKLOGGED: usize = 33;
const SUBMISSION_HEAD: usize = 48;
const SLEEPING: usize = 49;

/// How far a poll has come that is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retired {
    /// It has no connections any more, and puts no more records.
    Empty = 1,
    /// Its thread ends, and has taken all records.
    Ended = 2,
}

/// The memory of one poll.
#[derive(Clone, Copy, Debug)]
pub struct Border {
    words: &'static [AtomicU32],
    ring_words: usize,
    slots: u32,
}

impl Border {
    /// `None` when the memory is not of the size that rings and tables need, or the ring's length is no
    /// power of two of at least 8.
    pub fn new(words: &'static [AtomicU32], ring_entries: u32, slots: u32) -> Option<Border> {
        let border = Border { words, ring_words: ring_entries as usize * RECORD_WORDS, slots };
        let sound =
            ring_entries.is_power_of_two() && ring_entries >= 8 && words.len() == border.words_needed();
        sound.then_some(border)
    }

    fn words_needed(&self) -> usize {
        HEADER_WORDS + 2 * self.ring_words + self.slots as usize * (STATUS_WORDS + ADDRESS_WORDS)
    }

    /// The endpoints of the connection in `slot`: remote and local, as encoded by `address::encode`.
    pub fn addresses(&self, slot: u32) -> Option<[[u32; ENDPOINT_WORDS]; 2]> {
        let entry = self.address_entry(slot)?;
        // Relaxed: written before the ACCEPT that told JavaScript of this slot; the ring's tail ordered it.
        let load = |start: usize| std::array::from_fn(|word| entry[start + word].load(Ordering::Relaxed));
        Some([load(0), load(ENDPOINT_WORDS)])
    }

    /// Connections that it has room for.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    pub(crate) fn completions(&self) -> Ring {
        self.ring(COMPLETION_HEAD, COMPLETION_TAIL, COMPLETION_BACKLOGGED, HEADER_WORDS)
    }

    pub(crate) fn submissions(&self) -> Ring {
        let start = HEADER_WORDS + self.ring_words;
        self.ring(SUBMISSION_HEAD, SUBMISSION_TAIL, SUBMISSION_BACKLOGGED, start)
    }

    /// Tells JavaScript that nothing more will come from this poll.
    pub(crate) fn set_died(&self) {
        // Release: pairs with JavaScript's Atomics.load when the bell has rung.
        self.words[DIED].store(1, Ordering::Release);
    }

    /// Whether JavaScript shall tell at once what it has consumed, and for whom it needs more.
    pub(crate) fn set_scarce(&self, is_scarce: bool) {
        // Relaxed: the bell that is rung after it orders it; a stale word is looked at again at the next one.
        self.words[SCARCE].store(u32::from(is_scarce), Ordering::Relaxed);
    }

    /// Tells JavaScript whether its own loop runs the poll.
    pub(crate) fn set_on_loop(&self, is_on_loop: bool) {
        // Relaxed: JavaScript only asks whether the poll has a thread that goes on while it is busy itself.
        self.words[ON_LOOP].store(u32::from(is_on_loop), Ordering::Relaxed);
    }

    /// Tells JavaScript how far a poll has come that is to end; it is followed by a bell.
    pub(crate) fn set_retired(&self, retired: Retired) {
        // Release: pairs with JavaScript's Atomics.load when the bell has rung.
        self.words[RETIRED].store(retired as u32, Ordering::Release);
    }

    /// Announces a wait. The caller must look at the submission ring once more before it waits:
    /// JavaScript puts a record, then looks at this word (store-buffering).
    pub(crate) fn fall_asleep(&self) {
        self.words[SLEEPING].store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Relaxed: a stale 1 costs JavaScript one needless call, no more.
    pub(crate) fn wake_up(&self) {
        self.words[SLEEPING].store(0, Ordering::Relaxed);
    }

    /// Writes what the connection's slot looks like when it is given away.
    pub(crate) fn open_slot(&self, token: Token, remote: [u32; 6], local: [u32; 6]) {
        if let Some(entry) = self.address_entry(token.slot) {
            for (word, value) in entry.iter().zip(remote.into_iter().chain(local)) {
                word.store(value, Ordering::Relaxed);
            }
        }
        let status = self.status(token);
        status.set_bytes_read(0);
        status.set_bytes_sent(0);
        status.words[StatusEntry::FLAGS].store(0, Ordering::Relaxed);
        status.words[StatusEntry::GENERATION].store(token.generation, Ordering::Relaxed);
    }

    /// The status entry of an open connection.
    pub(crate) fn status(&self, token: Token) -> StatusEntry {
        let start = HEADER_WORDS + 2 * self.ring_words + token.slot as usize * STATUS_WORDS;
        StatusEntry { words: &self.words[start..start + STATUS_WORDS] }
    }

    fn address_entry(&self, slot: u32) -> Option<&'static [AtomicU32]> {
        let tables = HEADER_WORDS + 2 * self.ring_words + self.slots as usize * STATUS_WORDS;
        let start = tables + slot as usize * ADDRESS_WORDS;
        self.words.get(start..start + ADDRESS_WORDS)
    }

    fn ring(&self, head: usize, tail: usize, backlogged: usize, start: usize) -> Ring {
        let words = &self.words[start..start + self.ring_words];
        Ring { head: &self.words[head], tail: &self.words[tail], backlogged: &self.words[backlogged], words }
    }
}

/// What JavaScript may know of a connection without a record. Relaxed throughout: each word stands for
/// itself, and whoever needs an order has it from the record that tells the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusEntry {
    words: &'static [AtomicU32],
}

impl StatusEntry {
    const GENERATION: usize = 0;
    const FLAGS: usize = 1;
    const BYTES_READ: usize = 2;
    const BYTES_SENT: usize = 4;
    /// 1 while the high word of a count changes, which no single store can do together with the low one.
    const CARRY: usize = 6;

    /// The peer has sent FIN or RST, or the connection has failed.
    pub(crate) const READ_ENDED: u32 = 1;
    /// Our FIN is sent, or the connection has failed.
    pub(crate) const WRITE_ENDED: u32 = 2;
    pub(crate) const CLOSED: u32 = 4;

    pub(crate) fn raise(&self, flags: u32) {
        // The poll is the only writer: no read-modify-write is needed.
        self.words[Self::FLAGS].store(self.flags() | flags, Ordering::Relaxed);
    }

    pub(crate) fn flags(&self) -> u32 {
        self.words[Self::FLAGS].load(Ordering::Relaxed)
    }

    pub(crate) fn set_bytes_read(&self, bytes: u64) {
        self.set(Self::BYTES_READ, bytes);
    }

    pub(crate) fn set_bytes_sent(&self, bytes: u64) {
        self.set(Self::BYTES_SENT, bytes);
    }

    fn set(&self, word: usize, value: u64) {
        let (low, high) = (value as u32, (value >> 32) as u32);
        if self.words[word + 1].load(Ordering::Relaxed) == high {
            return self.words[word].store(low, Ordering::Relaxed);
        }
        // Release throughout: JavaScript, which reads high, low, CARRY, high (Atomics.load), sees them in
        // this order: a low word of the new count comes with a CARRY, or with the new high word.
        self.words[Self::CARRY].store(1, Ordering::Release);
        self.words[word].store(low, Ordering::Release);
        self.words[word + 1].store(high, Ordering::Release);
        self.words[Self::CARRY].store(0, Ordering::Release);
    }
}

/// The bell on JavaScript's side, one for all polls of an environment: rung at most once for each time
/// that JavaScript has begun to drain.
#[derive(Clone)]
pub struct Doorbell {
    scheduled: &'static AtomicU32,
    ring: Arc<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// `scheduled` is the environment's SCHEDULED word; `ring` makes JavaScript drain, some time soon.
    pub fn new(scheduled: &'static AtomicU32, ring: Arc<dyn Fn() + Send + Sync>) -> Doorbell {
        Doorbell { scheduled, ring }
    }

    /// To be called after the records have been published. True when the bell was not ringing yet.
    pub(crate) fn ring(&self) -> bool {
        // Store-buffering: we have stored a tail and now read SCHEDULED; JavaScript stores SCHEDULED 0 (an
        // Atomics.store) and then reads the tails.
        fence(Ordering::SeqCst);
        let rung =
            self.scheduled.load(Ordering::Relaxed) == 0 && self.scheduled.swap(1, Ordering::Relaxed) == 0;
        if rung {
            (self.ring)();
        }
        rung
    }

    /// Rings whether or not JavaScript is about to drain: the loop is to look after a poll.
    pub(crate) fn summon(&self) {
        (self.ring)();
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").field("scheduled", &self.scheduled).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::tests::words;

    const ENTRIES: u32 = 8;
    const SLOTS: u32 = 3;
    const WORDS: usize = 64 + 2 * 8 * 8 + 3 * (8 + 16);

    fn values(words: &[AtomicU32]) -> Vec<u32> {
        words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn only_memory_of_the_right_size_and_rings_of_a_power_of_two_are_taken() {
        assert!(Border::new(words(WORDS), ENTRIES, SLOTS).is_some());
        assert!(Border::new(words(WORDS - 1), ENTRIES, SLOTS).is_none());
        assert!(Border::new(words(WORDS + 1), ENTRIES, SLOTS).is_none());
        assert!(Border::new(words(64 + 2 * 12 * 8), 12, 0).is_none());
        assert!(Border::new(words(64 + 2 * 4 * 8), 4, 0).is_none());
        assert!(Border::new(words(64), 0, 0).is_none());
    }

    #[test]
    fn no_two_parts_overlap_and_together_they_are_all_there_is() {
        let border = Border::new(words(WORDS), ENTRIES, SLOTS).unwrap();
        let token = |slot| Token { slot, generation: 1 };
        let mut parts =
            vec![&border.words[..HEADER_WORDS], border.completions().words, border.submissions().words];
        parts.extend((0..SLOTS).map(|slot| border.status(token(slot)).words));
        parts.extend((0..SLOTS).map(|slot| border.address_entry(slot).unwrap()));
        let places = parts.iter().flat_map(|part| part.iter().map(std::ptr::from_ref)).collect::<Vec<_>>();
        assert_eq!(places.len(), WORDS);
        assert_eq!(places.into_iter().collect::<HashSet<_>>().len(), WORDS);
    }

    #[test]
    fn a_slot_that_is_opened_has_its_generation_its_addresses_and_nothing_of_its_former_connection() {
        let border = Border::new(words(WORDS), ENTRIES, SLOTS).unwrap();
        let token = Token { slot: 1, generation: 5 };
        let status = border.status(token);
        status.raise(StatusEntry::READ_ENDED);
        status.raise(StatusEntry::CLOSED);
        status.set_bytes_read(1 << 32 | 2);
        status.set_bytes_sent(3 << 32 | 4);
        assert_eq!(values(status.words), [0, 5, 2, 1, 4, 3, 0, 0]);
        let (remote, local) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        border.open_slot(token, remote, local);
        assert_eq!(values(status.words), [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(border.addresses(1), Some([remote, local]));
        assert_eq!(border.addresses(0), Some([[0; 6]; 2]), "other slots are untouched");
    }

    #[test]
    fn a_slot_that_is_not_there_has_no_addresses() {
        let border = Border::new(words(WORDS), ENTRIES, SLOTS).unwrap();
        assert_eq!([SLOTS, u32::MAX].map(|slot| border.addresses(slot)), [None, None]);
    }

    #[test]
    fn the_header_is_where_the_contract_has_it() {
        let border = Border::new(words(WORDS), ENTRIES, SLOTS).unwrap();
        border.set_died();
        border.set_scarce(true);
        border.set_on_loop(true);
        border.fall_asleep();
        border.completions().tail.store(10, Ordering::Relaxed);
        border.completions().backlogged.store(11, Ordering::Relaxed);
        border.completions().head.store(12, Ordering::Relaxed);
        border.submissions().tail.store(13, Ordering::Relaxed);
        border.submissions().backlogged.store(14, Ordering::Relaxed);
        border.submissions().head.store(15, Ordering::Relaxed);
        let header = values(&border.words[..HEADER_WORDS]);
        let set = (0..).zip(header).filter(|(_, value)| *value != 0).collect::<Vec<(usize, u32)>>();
        assert_eq!(
            set,
            [(0, 10), (1, 11), (2, 1), (3, 1), (5, 1), (16, 12), (32, 13), (33, 14), (48, 15), (49, 1)]
        );
        border.wake_up();
        assert_eq!(border.words[SLEEPING].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_bell_that_rings_is_not_rung_again() {
        let (scheduled, count) = (&words(1)[0], Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        let ring = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let doorbell = Doorbell::new(scheduled, Arc::new(ring));
        assert_eq!([(); 3].map(|()| doorbell.ring()), [true, false, false]);
        scheduled.store(0, Ordering::Relaxed);
        assert!(doorbell.ring());
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}

/// JavaScript's Atomics have one order that all see, which loom does not know: a fence between two of them stands for it.
#[cfg(test)]
#[cfg(loom)]
pub(crate) mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::ring::models::{numbered, ring};
    use crate::ring::{Consumer, Producer};
    use crate::sync::models::{explore, leak, Event};

    pub(crate) fn border(ring_entries: usize) -> Border {
        let border = Border { words: &[], ring_words: ring_entries * RECORD_WORDS, slots: 1 };
        Border { words: leak(border.words_needed()), ..border }
    }

    /// A poll shows a record while JavaScript begins to drain, of which the bell has told before.
    fn rings(ring_bell: impl Fn(&Doorbell) + Copy + Send + Sync + 'static) {
        explore(3, move || {
            let (completions, scheduled) = (ring(1), &leak(1)[0]);
            scheduled.store(1, Ordering::Relaxed);
            let bell = Arc::new(loom::sync::atomic::AtomicBool::new(false));
            let rung = bell.clone();
            let thread = thread::spawn(move || {
                let doorbell =
                    Doorbell::new(scheduled, Arc::new(move || rung.store(true, Ordering::Relaxed)));
                let mut producer = Producer::new(completions);
                producer.put(numbered(1));
                producer.publish();
                ring_bell(&doorbell);
            });
            let mut consumer = Consumer::new(completions);
            scheduled.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let has_taken = consumer.take().is_some();
            thread.join().unwrap();
            assert!(has_taken || bell.load(Ordering::Relaxed), "nobody will drain");
        });
    }

    #[test]
    fn a_record_that_a_drain_has_missed_rings_again() {
        rings(|doorbell| {
            doorbell.ring();
        });
    }

    #[test]
    #[should_panic(expected = "nobody will drain")]
    fn without_the_fence_of_the_doorbell_a_record_could_be_missed() {
        rings(|doorbell| {
            if doorbell.scheduled.swap(1, Ordering::Relaxed) == 0 {
                (doorbell.ring)();
            }
        });
    }

    /// JavaScript puts a record while a poll falls asleep.
    fn sleeps(fall_asleep: impl Fn(&Border) + Copy + Send + Sync + 'static) {
        explore(3, move || {
            let border = border(1);
            let thread = thread::spawn(move || {
                let mut consumer = Consumer::new(border.submissions());
                fall_asleep(&border);
                consumer.look()
            });
            let is_woken = submit(&border, &mut Producer::new(border.submissions()));
            assert!(thread.join().unwrap() || is_woken, "it sleeps for ever");
        });
    }

    /// As JavaScript does it. True when the poll has to be woken.
    fn submit(border: &Border, producer: &mut Producer) -> bool {
        producer.put(numbered(1));
        producer.publish();
        is_to_be_woken(border)
    }

    pub(crate) fn is_to_be_woken(border: &Border) -> bool {
        fence(Ordering::SeqCst);
        border.words[SLEEPING].compare_exchange(1, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    #[test]
    fn a_poll_that_falls_asleep_sees_what_is_put_or_is_woken() {
        sleeps(Border::fall_asleep);
    }

    #[test]
    #[should_panic(expected = "it sleeps for ever")]
    fn without_the_fence_of_its_sleep_a_poll_could_miss_a_record() {
        sleeps(|border| border.words[SLEEPING].store(1, Ordering::Relaxed));
    }

    /// A poll that answers each submission with a completion, as its turns and waits do it.
    fn echo(border: Border, count: usize, doorbell: &Doorbell, wake: &Event) {
        let mut submissions = Consumer::new(border.submissions());
        let mut completions = Producer::new(border.completions());
        let mut echoed = 0;
        loop {
            while let Some(record) = submissions.take() {
                completions.put(record);
                echoed += 1;
            }
            if submissions.release() {
                doorbell.ring();
            }
            completions.publish();
            doorbell.ring();
            if echoed == count && !completions.is_backlogged() {
                return;
            }
            border.fall_asleep();
            if !submissions.look() {
                wake.wait();
            }
            border.wake_up();
        }
    }

    /// Both ends of both rings, which are full nearly always, and of both bells.
    #[test]
    fn whatever_is_put_is_answered_although_the_rings_are_full_and_both_sides_sleep() {
        explore(2, || {
            const COUNT: usize = 2;
            let (border, scheduled) = (border(1), &leak(1)[0]);
            let (bell, wake) = (Arc::new(Event::default()), Arc::new(Event::default()));
            let (rung, woken) = (bell.clone(), wake.clone());
            let thread = thread::spawn(move || {
                echo(border, COUNT, &Doorbell::new(scheduled, Arc::new(move || rung.set())), &woken);
            });
            let mut submissions = Producer::new(border.submissions());
            let mut completions = Consumer::new(border.completions());
            (0..COUNT as u32).for_each(|number| submissions.put(numbered(number)));
            let mut answers = Vec::new();
            loop {
                submissions.publish();
                if is_to_be_woken(&border) {
                    wake.set();
                }
                if answers.len() == COUNT {
                    break;
                }
                bell.wait();
                scheduled.store(0, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                answers.extend(std::iter::from_fn(|| completions.take()));
                if completions.release() {
                    wake.set();
                }
            }
            thread.join().unwrap();
            assert_eq!(answers, (0..COUNT as u32).map(numbered).collect::<Vec<_>>());
        });
    }

    const BEFORE: u64 = u32::MAX as u64;
    const AFTER: u64 = 1 << 32 | 1;

    /// A count passes 2^32 while JavaScript reads it, as `count` of ts/poll.ts does.
    fn counts(set: impl Fn(&StatusEntry, u64) + Copy + Send + Sync + 'static) {
        explore(3, move || {
            let words = leak(STATUS_WORDS);
            let status = StatusEntry { words };
            status.set_bytes_read(BEFORE);
            let thread = thread::spawn(move || set(&status, AFTER));
            let [low, high] = [0, 1].map(|word| &words[StatusEntry::BYTES_READ + word]);
            let first = high.load(Ordering::SeqCst);
            let count = u64::from(first) << 32 | u64::from(low.load(Ordering::SeqCst));
            let carries = words[StatusEntry::CARRY].load(Ordering::SeqCst) != 0;
            let is_read = !carries && high.load(Ordering::SeqCst) == first;
            thread.join().unwrap();
            assert!(!is_read || count == BEFORE || count == AFTER, "a count that never was: {count:#x}");
        });
    }

    #[test]
    fn a_count_is_read_as_it_was_at_some_time() {
        counts(StatusEntry::set_bytes_read);
    }

    #[test]
    #[should_panic(expected = "a count that never was")]
    fn without_its_carry_a_count_could_be_read_that_never_was() {
        counts(|status, count| {
            status.words[StatusEntry::BYTES_READ].store(count as u32, Ordering::Release);
            status.words[StatusEntry::BYTES_READ + 1].store((count >> 32) as u32, Ordering::Release);
        });
    }
}
