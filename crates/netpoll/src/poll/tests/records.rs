//! Whatever lies in a submission ring, a poll goes on, and what is said of one connection touches no other.

use proptest::prelude::*;
use socket2::SockAddr;

use super::desk::{done, Desk, Lent, Plan, MS};
use super::peer::{pattern, Peer};
use crate::steps::{any_step_bytes, steps, with_sockets, Step};
use crate::token::Token;

/// Records between two looks at the victim.
const BATCH: usize = 8;

const DONE: u32 = 1;

/// Two connections of one poll: of the one any nonsense is said, the other only does what it always does.
struct Scene {
    desk: Desk,
    address: SockAddr,
    intruder: (Peer, usize),
    victim: (Peer, usize),
    /// Of a connection that is no more.
    stale: Token,
    exchanged: usize,
}

impl Scene {
    fn new() -> Scene {
        let mut desk = Desk::new(Plan { ring_entries: 64, slots: 4, ..Plan::default() });
        let address = desk.listen_unix();
        let (_, gone) = desk.connect(&address);
        desk.until_closed_by_its_peer(gone);
        let stale = desk.books[gone].token;
        let intruder = desk.connect(&address);
        let victim = desk.connect(&address);
        Scene { desk, address, intruder, victim, stale, exchanged: 0 }
    }

    /// Says the records, and sees to it that nothing but the intruder has noticed.
    fn batch<'a>(&mut self, steps: impl Iterator<Item = Step<'a>>) {
        if self.desk.books[self.intruder.1].closed.is_some() {
            self.intruder = self.desk.connect(&self.address);
        }
        let lent = self.desk.lend(0, b"of the intruder");
        let pin = self.desk.pin(b"pinned");
        self.intruder.0.write(b"something to read");
        for mut step in steps {
            let record = self.record(&mut step, lent, pin);
            self.desk.put_record(0, record);
            match step.byte() {
                0..=63 => self.desk.turn(),
                64..=79 => self.desk.pass(step.below(500) * MS),
                _ => {}
            }
        }
        (0..2).for_each(|_| self.desk.turn());
        self.desk.put_record(0, done(lent));
        self.desk.turn();
        self.desk.pins.remove(pin);
        drop(self.desk.take_detached(self.intruder.1));
        self.exchange();
    }

    fn record(&self, step: &mut Step, lent: Lent, pin: u32) -> [u32; 8] {
        let victim = self.desk.books[self.victim.1].token;
        let choices = step.byte();
        let kind = match step.byte() {
            255 => step.word(),
            kind => u32::from(kind) % 20,
        };
        let Token { slot, generation } = match choices & 7 {
            0..=3 => self.desk.books[self.intruder.1].token,
            4 => self.stale,
            5 => Token { slot: victim.slot, generation: victim.generation.wrapping_add(step.word()) },
            _ => Token { slot: step.word(), generation: step.word() },
        };
        let range = [lent.chunk, lent.offset, lent.length];
        let [first, second, third] = match choices >> 3 & 7 {
            0..=2 => range,
            3 => [lent.chunk, lent.offset.wrapping_add(step.word()), step.word()],
            4 => [pin, 0, 0],
            5 => [step.below(4), step.below(4), step.below(1000)],
            _ => [step.word(), step.word(), step.word()],
        };
        let record = match kind {
            DONE if choices & 0x40 == 0 => [kind, lent.chunk, lent.offset, first % 4, 0, 0, 0, 0],
            DONE => [kind, first, second, third, 0, 0, 0, 0],
            _ => [kind, slot, generation, first, second, third, step.word(), step.word()],
        };
        let names_the_victim = record[0] != DONE && record[1..3] == [victim.slot, victim.generation];
        if names_the_victim {
            [0; 8]
        } else {
            record
        }
    }

    /// The victim answers, and hears nothing but that.
    fn exchange(&mut self) {
        let (peer, book) = &self.victim;
        let bytes = pattern(100 + self.exchanged)[self.exchanged..].to_vec();
        assert_eq!(peer.write(&bytes), bytes.len());
        self.exchanged += bytes.len();
        self.desk.until_arrived(*book, self.exchanged);
        assert!(self.desk.books[*book].arrived.ends_with(&bytes));
        self.desk.write(*book, &bytes);
        assert_eq!(self.desk.peer_reads(peer, bytes.len()), bytes);
        let page = &self.desk.books[*book];
        assert_eq!((page.closed, page.is_ended, page.timeouts.len(), page.drained), (None, false, 0, 0));
    }
}

/// Each step is a record of any kind, with any arguments, of any connection but the victim.
fn any_records(bytes: &[u8]) {
    let mut scene = Scene::new();
    let mut steps = steps(bytes).take(40 * BATCH).peekable();
    while steps.peek().is_some() {
        scene.batch(steps.by_ref().take(BATCH));
    }
}

proptest! {
    #![proptest_config(with_sockets())]

    #[test]
    fn whatever_is_said_of_one_connection_touches_no_other(bytes in any_step_bytes(5 * BATCH)) {
        any_records(&bytes);
    }
}
