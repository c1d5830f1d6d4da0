//! Whatever the two sides of connections do in whatever order, against a model of plain bytes and ends.

use std::io::Result;
use std::time::Instant;

use proptest::prelude::*;
use socket2::SockAddr;

use super::desk::submission::{CLOSE, END, PAUSE, RESET, RESUME, TIMER};
use super::desk::{Desk, Plan, MS};
use super::peer::Peer;
use crate::connection::Limits;
use crate::steps::{any_step_bytes, steps, with_sockets, Step};

const PAIRS: usize = 2;
const WRITE_TIMEOUT: u32 = 400;
const TIMED_OUT: i32 = -1;

/// How a side has ended its output, or the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    Fin,
    /// Ours alone.
    Close {
        drop: bool,
    },
    Reset,
}

/// A connection, and what must have come of it.
struct Pair {
    book: usize,
    /// None when it has reset the connection.
    peer: Option<Peer>,
    ours: End,
    theirs: End,
    /// What each side has written before it ended.
    to_us: Vec<u8>,
    to_them: Vec<u8>,
    heard: Vec<u8>,
    heard_end: Option<Result<()>>,
    /// We have closed it while more was under way, for which the kernel sends RST: that may drop our last bytes.
    closes_on_unread: bool,
    /// What had been delivered when the poll was first seen to pause.
    frozen: Option<u64>,
    /// Time has passed while the kernel took nothing.
    may_time_out: bool,
    timer: Option<(Instant, u32)>,
    fired: Vec<(u32, u32)>,
}

impl Pair {
    fn new(desk: &mut Desk, address: &SockAddr) -> Pair {
        let (peer, book) = desk.adopt(Peer::connect_with(address, Some(4096)));
        Pair {
            book,
            peer: Some(peer),
            ours: End::Open,
            theirs: End::Open,
            to_us: Vec::new(),
            to_them: Vec::new(),
            heard: Vec::new(),
            heard_end: None,
            closes_on_unread: false,
            frozen: None,
            may_time_out: false,
            timer: None,
            fired: Vec::new(),
        }
    }

    fn run(&mut self, desk: &mut Desk, step: &mut Step) {
        let is_gone = desk.books[self.book].closed.is_some();
        let is_over = matches!(self.ours, End::Close { .. } | End::Reset);
        match step.below(32) {
            0..=5 if !is_gone && !is_over => self.peer_writes(&step.bytes(20_000)),
            6..=9 if !is_gone && self.ours == End::Open => {
                let bytes = step.bytes(60_000);
                desk.write(self.book, &bytes);
                self.to_them.extend(bytes);
            }
            10..=14 => self.peer_reads(),
            15 if self.ours == End::Open => self.end(desk, END, End::Fin),
            16 if !is_over => self.close(desk, false),
            17 if !is_over => self.close(desk, true),
            18 if self.ours != End::Reset => self.end(desk, RESET, End::Reset),
            19..=20 if !is_gone && !is_over && self.theirs == End::Open => self.peer_finishes(),
            21 if step.below(2) == 0 => self.peer_resets(),
            22..=23 => desk.put(self.book, PAUSE, [0; 3]),
            24..=25 => desk.put(self.book, RESUME, [0; 3]),
            26..=28 if !is_gone => self.set_timer(desk, step.below(4) * step.below(200), step.below(100)),
            _ => {}
        }
    }

    fn peer_writes(&mut self, bytes: &[u8]) {
        if let (Some(peer), End::Open) = (&self.peer, self.theirs) {
            self.to_us.extend(&bytes[..peer.write(bytes)]);
        }
    }

    fn peer_reads(&mut self) {
        let Some(peer) = &self.peer else { return };
        while self.heard_end.is_none() {
            match peer.read() {
                Ok(None) => return,
                Ok(Some(bytes)) if bytes.is_empty() => self.heard_end = Some(Ok(())),
                Ok(Some(bytes)) => self.heard.extend(bytes),
                Err(error) => self.heard_end = Some(Err(error)),
            }
        }
    }

    fn peer_finishes(&mut self) {
        if let Some(peer) = &self.peer {
            peer.finish();
            self.theirs = End::Fin;
        }
    }

    fn peer_resets(&mut self) {
        if let Some(peer) = self.peer.take() {
            peer.reset();
            self.theirs = End::Reset;
        }
    }

    fn end(&mut self, desk: &mut Desk, kind: u32, end: End) {
        desk.put(self.book, kind, [0; 3]);
        self.ours = end;
    }

    fn close(&mut self, desk: &mut Desk, drop: bool) {
        self.closes_on_unread |= desk.books[self.book].arrived.len() != self.to_us.len();
        desk.put(self.book, CLOSE, [u32::from(drop), 0, 0]);
        self.ours = End::Close { drop };
    }

    fn set_timer(&mut self, desk: &mut Desk, milliseconds: u32, sequence: u32) {
        desk.put(self.book, TIMER, [1, milliseconds, sequence]);
        self.timer = (milliseconds > 0).then(|| (desk.now + milliseconds * MS, sequence));
    }

    /// Before so much time passes.
    fn foresee(&mut self, desk: &mut Desk, later: Instant) {
        if desk.books[self.book].closed.is_some() {
            return;
        }
        self.may_time_out |= desk.operator(self.book).connection.output.blocked_since.is_some();
        if let Some((_, sequence)) = self.timer.take_if(|(at, _)| *at <= later) {
            self.fired.push((1, sequence));
        }
    }

    /// While it is paused nothing is delivered, unless it has failed.
    fn watch_pause(&mut self, desk: &mut Desk) {
        if desk.books[self.book].closed.is_some() {
            return;
        }
        let connection = &desk.operator(self.book).connection;
        let delivered = connection.input.delivered;
        let is_paused = connection.input.paused && connection.failure.is_none();
        let frozen = self.frozen.filter(|_| is_paused).unwrap_or(delivered);
        assert_eq!(delivered, frozen, "a paused connection is not read");
        self.frozen = is_paused.then_some(frozen);
    }

    fn has_timed_out(&self, desk: &Desk) -> bool {
        desk.books[self.book].closed == Some(TIMED_OUT)
    }

    fn is_cut(&self, desk: &Desk) -> bool {
        self.ours == End::Reset || self.theirs == End::Reset || self.has_timed_out(desk)
    }

    /// Whether all that the peer has written must arrive.
    fn hears_all(&self, desk: &Desk) -> bool {
        !self.is_cut(desk) && !matches!(self.ours, End::Close { .. })
    }

    /// Whether the peer must read all that we have written.
    fn tells_all(&self, desk: &Desk) -> bool {
        !self.is_cut(desk) && self.ours != End::Close { drop: true } && !self.closes_on_unread
    }

    fn closes(&self, desk: &Desk) -> bool {
        let both_end = self.ours == End::Fin && self.theirs == End::Fin;
        self.is_cut(desk) || both_end || matches!(self.ours, End::Close { .. })
    }

    fn is_settled(&self, desk: &Desk) -> bool {
        let page = &desk.books[self.book];
        (page.closed.is_some() || !self.closes(desk))
            && (page.arrived.len() >= self.to_us.len() || !self.hears_all(desk))
            && (page.is_ended || self.theirs != End::Fin || !self.hears_all(desk))
            && (self.heard.len() >= self.to_them.len() || !self.tells_all(desk))
            && (self.heard_end.is_some() || self.ours == End::Open || self.peer.is_none())
    }

    fn check(&self, desk: &Desk) {
        let page = &desk.books[self.book];
        assert_eq!(page.closed.is_some(), self.closes(desk), "it is closed when it has ended");
        assert!(self.to_us.starts_with(&page.arrived) && self.to_them.starts_with(&self.heard));
        assert!(page.arrived.len() == self.to_us.len() || !self.hears_all(desk), "all has arrived");
        assert!(self.heard.len() == self.to_them.len() || !self.tells_all(desk), "all is sent");
        assert!(!page.is_ended || self.theirs != End::Open, "EOF comes of an end");
        assert!(!self.has_timed_out(desk) || self.may_time_out, "only who is blocked times out");
        if !self.is_cut(desk) {
            assert!(page.closed.is_none_or(|cause| cause == 0), "{:?}", page.closed);
            if self.tells_all(desk) {
                assert!(matches!(self.heard_end, None | Some(Ok(()))), "{:?}", self.heard_end);
            }
        }
        assert!(self.fired.starts_with(&page.timeouts), "{:?} of {:?}", page.timeouts, self.fired);
        assert!(page.closed.is_some() || page.timeouts.len() == self.fired.len());
    }
}

/// The first step says what they have in common.
fn any_sequence(bytes: &[u8]) {
    let mut steps = steps(bytes);
    let Some(mut first) = steps.next() else { return };
    let write_timeout = (first.below(2) == 0).then_some(WRITE_TIMEOUT * MS);
    let limits = Limits { write_timeout, read_high_water_mark: 1 + first.below(30_000), idle_timeout: None };
    let ring_entries = 8 << first.below(6);
    let mut desk = Desk::new(Plan { limits, ring_entries, send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen();
    let mut pairs: [Pair; PAIRS] = std::array::from_fn(|_| Pair::new(&mut desk, &address));
    for mut step in steps {
        match step.below(8) {
            0 => {
                let time = step.below(300) * MS;
                let later = desk.now + time;
                pairs.iter_mut().for_each(|pair| pair.foresee(&mut desk, later));
                desk.pass(time);
            }
            1 => desk.wait(),
            which => {
                pairs[which as usize % PAIRS].run(&mut desk, &mut step);
                desk.turn();
            }
        }
        pairs.iter_mut().for_each(|pair| pair.watch_pause(&mut desk));
    }
    for pair in &pairs {
        desk.put(pair.book, RESUME, [0; 3]);
    }
    desk.until("all that has to come has come", |desk| {
        pairs.iter_mut().for_each(Pair::peer_reads);
        pairs.iter().all(|pair| pair.is_settled(desk))
    });
    desk.idle();
    pairs.iter().for_each(|pair| pair.check(&desk));
}

proptest! {
    #![proptest_config(with_sockets())]

    #[test]
    fn every_connection_ends_as_its_sides_have_ended_it_and_loses_nothing_before(bytes in any_step_bytes(60)) {
        any_sequence(&bytes);
    }
}
