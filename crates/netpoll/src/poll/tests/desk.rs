//! JavaScript's part of the border, played by a test.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef};

use super::peer::Peer;
use crate::address::Endpoint;
use crate::block::BlockTable;
use crate::border::{Border, Doorbell};
use crate::connection::Limits;
use crate::counters::{Counters, PollStats};
use crate::demand::Load;
use crate::dialer::{DialOptions, Request};
use crate::handover::Handover;
use crate::inbox::{Command, Inboxes};
use crate::lending::{Setting, ZeroCopy};
use crate::listener::{ListenError, ListenOptions, Listener};
use crate::operators::Operator;
use crate::pin::PinTable;
use crate::poll::{Budget, Poll, Shared, Turn};
use crate::record::{Cause, Record};
use crate::ring::{Consumer, Producer};
use crate::server::Server;
use crate::sys;
use crate::tests::words;
use crate::token::{Subject, Token};

/// Turns before a test gives up: each waits for at most a millisecond.
const TURNS: usize = 10_000;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// How often a test does what goes wrong seldom: as said first, or second where there is time (`npm run test:hard`).
pub(super) fn often(soon: usize, with_time: usize) -> usize {
    if std::env::var_os("NETPOLL_HARD").is_some() {
        with_time
    } else {
        soon
    }
}

/// The kinds of submission records, as `docs/border.md` numbers them.
pub(super) mod submission {
    pub(crate) const DONE: u32 = 1;
    pub(crate) const SEND: u32 = 2;
    pub(crate) const SEND_PIN: u32 = 3;
    pub(crate) const INPUT: u32 = 4;
    pub(crate) const WATCH_DRAIN: u32 = 5;
    pub(crate) const PAUSE: u32 = 6;
    pub(crate) const RESUME: u32 = 7;
    pub(crate) const TIMER: u32 = 8;
    pub(crate) const OPTION: u32 = 9;
    pub(crate) const END: u32 = 10;
    pub(crate) const CLOSE: u32 = 11;
    pub(crate) const RESET: u32 = 12;
    pub(crate) const ACK: u32 = 13;
    pub(crate) const MOVE_ACK: u32 = 14;
    pub(crate) const DETACH: u32 = 15;
    pub(crate) const INFO: u32 = 16;
    pub(crate) const SEND_LENT: u32 = 17;
}
use submission::*;

/// What a test's environment is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) polls: usize,
    pub(super) ring_entries: u32,
    pub(super) slots: u32,
    pub(super) max_memory: u64,
    pub(super) limits: Limits,
    pub(super) max_connections: u32,
    pub(super) announce_accept: bool,
    pub(super) send_buffer: Option<usize>,
    pub(super) zero_copy: ZeroCopy,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            polls: 1,
            ring_entries: 1024,
            slots: 64,
            max_memory: 64 << 20,
            limits: Limits { read_high_water_mark: 1 << 20, idle_timeout: None, write_timeout: None },
            max_connections: 0,
            announce_accept: true,
            send_buffer: None,
            zero_copy: ZeroCopy::Off,
        }
    }
}

/// What the desk does by itself when it hears of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// Gives blocks back as soon as it has read them.
    pub(super) gives_back: bool,
    /// Tells that it has consumed what it has read.
    pub(super) credits: bool,
    /// Forgets what is closed.
    pub(super) acknowledges: bool,
    /// Lets go of what moves.
    pub(super) lets_go: bool,
}

/// Bytes in a block that is lent to the desk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lent {
    pub(super) chunk: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// Everything that the desk has heard of one connection.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) poll: usize,
    pub(super) token: Token,
    pub(super) arrived: Vec<u8>,
    /// Where what has arrived lies, unless it was given back.
    pub(super) kept: Vec<Lent>,
    pub(super) is_ended: bool,
    pub(super) closed: Option<i32>,
    pub(super) drained: usize,
    /// Kind and sequence.
    pub(super) timeouts: Vec<(u32, u32)>,
    /// Round trip, its deviation, retransmits.
    pub(super) infos: Vec<[u32; 3]>,
    /// Its descriptor has been given away, and can be taken from the handover.
    pub(super) detached: Option<i32>,
    /// Where it is to move, from MOVED to ARRIVED.
    pub(super) moving_to: Option<usize>,
    /// Kind and arguments of what the desk has said since MOVE_ACK.
    said: Option<Vec<(u32, [u32; 3])>>,
    /// It has ended for want of a slot where it was to arrive.
    pub(super) missed: Option<i32>,
    is_acknowledged: bool,
    /// By the desk, when the test was over.
    is_told_to_end: bool,
}

/// What a DIALED record has told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dialed {
    pub(super) dial: u32,
    pub(super) cause: i32,
    pub(super) place: i32,
}

/// A slot's status entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status {
    pub(super) generation: u32,
    pub(super) flags: u32,
    pub(super) read: u64,
    pub(super) sent: u64,
}

/// A poll and the desk's ends of its rings.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) poll: Poll,
    pub(super) border: Border,
    /// What the poll's last turn has left to do.
    pub(super) left: Turn,
    words: &'static [AtomicU32],
    status_table: usize,
    completions: Consumer,
    submissions: Producer,
    has_put: bool,
    counters: Arc<Counters>,
    /// Which book a slot stands for, from ACCEPT to ACK.
    slots: HashMap<u32, usize>,
}

/// Reads completions when the bell has rung and never otherwise, keeps a book of each connection, and
/// checks on the way that a connection's records come in the order that the contract promises. When it is
/// dropped it ends all connections and sees to it that nothing is left of them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) seats: Vec<Seat>,
    pub(super) table: Arc<BlockTable>,
    pub(super) pins: Arc<PinTable>,
    pub(super) server: Arc<Server>,
    pub(super) inboxes: Arc<Inboxes>,
    pub(super) handover: Arc<Handover>,
    pub(super) now: Instant,
    pub(super) budget: Budget,
    pub(super) manners: Manners,
    /// In the order of their ACCEPTs and DIALEDs.
    pub(super) books: Vec<Book>,
    pub(super) unpinned: Vec<u32>,
    /// Listeners that are closed, and why.
    pub(super) fallen: Vec<(u32, i32)>,
    /// Answers to dials.
    pub(super) dialed: Vec<Dialed>,
    /// What DIAL_MOVED has told: the dial, where it goes on, and after how many moves.
    pub(super) dials_moved: Vec<[u32; 3]>,
    pub(super) listeners: Vec<Arc<Listener>>,
    /// Whether the kernel is asked at the end which sockets are left. It has to tell of all that this machine has.
    pub(super) counts_sockets: bool,
    scheduled: &'static AtomicU32,
    bells: Arc<AtomicU32>,
    send_buffer: Option<usize>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk::new(Plan::default())
    }
}

impl Desk {
    pub(super) fn new(plan: Plan) -> Desk {
        let table = BlockTable::new(plan.max_memory);
        let pins = PinTable::new();
        let bells = Arc::new(AtomicU32::new(0));
        let scheduled = &clean_words(1)[0];
        let ring = {
            let bells = bells.clone();
            Arc::new(move || {
                bells.fetch_add(1, Ordering::Relaxed);
            })
        };
        let polls = (0..plan.polls).map(|_| mio::Poll::new().unwrap()).collect::<Vec<_>>();
        let waker = |poll: &mio::Poll| mio::Waker::new(poll.registry(), Subject::Waker.mio()).unwrap();
        let inboxes = Arc::new(Inboxes::new(plan.slots));
        polls.iter().enumerate().for_each(|(index, poll)| inboxes.open(index, waker(poll)));
        let doorbell = Doorbell::new(scheduled, ring);
        let handover = Arc::<Handover>::default();
        let zero_copy = Arc::<Setting>::default();
        zero_copy.set(plan.zero_copy);
        let shared = Shared {
            table: table.clone(),
            pins: pins.clone(),
            inboxes: inboxes.clone(),
            handover: handover.clone(),
            doorbell,
            zero_copy: zero_copy.clone(),
        };
        let seat = |(index, mio)| Seat::new(index, mio, &plan, shared.clone());
        Desk {
            seats: polls.into_iter().enumerate().map(seat).collect(),
            table,
            pins,
            server: Arc::new(Server::new(7, plan.limits, plan.max_connections, plan.announce_accept)),
            inboxes,
            handover,
            now: Instant::now(),
            budget: Budget::default(),
            manners: Manners { gives_back: true, credits: true, acknowledges: true, lets_go: true },
            books: Vec::new(),
            unpinned: Vec::new(),
            fallen: Vec::new(),
            dialed: Vec::new(),
            dials_moved: Vec::new(),
            listeners: Vec::new(),
            counts_sockets: true,
            scheduled,
            bells,
            send_buffer: plan.send_buffer,
        }
    }

    // ---- the environment's calls

    /// A listener on a port of the loopback interface, served by the first poll.
    pub(super) fn listen(&mut self) -> SockAddr {
        self.listen_at("tcp", "127.0.0.1:0")
    }

    /// The same with an abstract unix socket.
    pub(super) fn listen_unix(&mut self) -> SockAddr {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.listen_at("unix", &format!("@netpoll-desk-{}-{number}", std::process::id()))
    }

    fn listen_at(&mut self, network: &str, address: &str) -> SockAddr {
        let listener = self.bind(network, address);
        self.serve(listener)
    }

    /// A listener that no poll serves yet.
    pub(super) fn bind(&self, network: &str, address: &str) -> Listener {
        self.try_bind(network, address).unwrap()
    }

    pub(super) fn try_bind(&self, network: &str, address: &str) -> Result<Listener, ListenError> {
        let options = ListenOptions {
            backlog: 511,
            reuse_port: false,
            ipv6_only: false,
            no_delay: true,
            keep_alive: false,
            recv_buffer: None,
            send_buffer: self.send_buffer,
            unlink: false,
        };
        Listener::bind(self.listeners.len() as u32, network, address, &options)
    }

    /// Lets the first poll serve it, and returns its address.
    pub(super) fn serve(&mut self, listener: Listener) -> SockAddr {
        let listener = Arc::new(listener);
        let address = SockRef::from(&listener.descriptor()).local_addr().unwrap();
        self.inboxes.send(0, Command::Serve(listener.clone(), self.server.clone()));
        self.listeners.push(listener);
        self.turn();
        address
    }

    /// A peer and its book.
    pub(super) fn connect(&mut self, to: &SockAddr) -> (Peer, usize) {
        self.adopt(Peer::connect(to))
    }

    /// The book of a peer that has just connected.
    pub(super) fn adopt(&mut self, peer: Peer) -> (Peer, usize) {
        let book = self.books.len();
        self.until("a connection is accepted", |desk| desk.books.len() > book);
        (peer, book)
    }

    /// Lets the first poll dial, in its next turn.
    pub(super) fn dial(&mut self, id: u32, address: (&str, &str), resolved: &[&str], options: DialOptions) {
        self.dial_at(0, id, address, resolved, options);
    }

    /// The same with any poll.
    pub(super) fn dial_at(
        &mut self,
        poll: usize,
        id: u32,
        address: (&str, &str),
        resolved: &[&str],
        options: DialOptions,
    ) {
        let resolved = resolved.iter().map(|ip| ip.to_string()).collect::<Vec<_>>();
        let server = Server::new(0, self.server.limits, 0, true);
        let request = Request::new(id, address, &resolved, options, server).unwrap();
        self.inboxes.send(poll, Command::Dial(Box::new(request)));
    }

    /// The answer to the dial.
    #[track_caller]
    pub(super) fn until_dialed(&mut self, id: u32) -> Dialed {
        let find = |desk: &Desk| desk.dialed.iter().copied().find(|dialed| dialed.dial == id);
        self.until("the dial is answered", |desk| find(desk).is_some());
        find(self).unwrap()
    }

    // ---- time

    /// One turn of every poll at the desk's time, after which the desk hears what there is to hear.
    pub(super) fn turn(&mut self) {
        self.publish();
        for seat in &mut self.seats {
            seat.left = seat.poll.turn(self.now, self.budget).unwrap();
        }
        self.hear();
    }

    /// Shows the polls what has been put.
    pub(super) fn publish(&mut self) {
        for seat in &mut self.seats {
            if std::mem::take(&mut seat.has_put) {
                seat.submissions.publish();
            }
        }
    }

    /// Turns until the condition holds. The desk's clock stands still meanwhile.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Desk) -> bool) {
        for _ in 0..TURNS {
            if condition(self) {
                return;
            }
            self.turn();
            self.wait();
        }
        panic!("it did not happen that {what}: {:?}", self.books);
    }

    /// Turns, of which the desk hears nothing, until the first poll has more records than room.
    #[track_caller]
    pub(super) fn until_backlogged(&mut self) {
        for _ in 0..TURNS {
            if self.seats[0].is_backlogged() {
                return;
            }
            self.wait();
            self.seats[0].poll.turn(self.now, self.budget).unwrap();
        }
        panic!("the ring has room for everything");
    }

    /// Some turns in which something could happen that must not.
    pub(super) fn idle(&mut self) {
        for _ in 0..5 {
            self.turn();
            self.wait();
        }
    }

    /// Lets time pass, and takes a turn when it has. What the kernels of both sides may have done meanwhile, by
    /// their own clock, is no progress.
    pub(super) fn pass(&mut self, time: Duration) {
        for Book { poll, token, .. } in &self.books {
            self.seats[*poll].poll.operators.get_mut(*token).map(forget_progress);
        }
        self.now += time;
        self.turn();
    }

    /// Waits in epoll for an event, but not for simulated time.
    pub(super) fn wait(&mut self) {
        // What one wait has brought is lost when another follows without a turn.
        for seat in self.seats.iter_mut().filter(|seat| !seat.poll.is_collected) {
            let soon =
                Turn { next_deadline: Some(self.now + MS), more: seat.left.more, load: Load::default() };
            seat.poll.wait(soon, self.now).unwrap();
        }
    }

    // ---- what JavaScript hears

    /// Drains all rings, if the bell has rung since the last time.
    pub(super) fn hear(&mut self) {
        if self.scheduled.swap(0, Ordering::SeqCst) == 0 {
            return;
        }
        for poll in 0..self.seats.len() {
            self.drain(poll);
            let seat = &mut self.seats[poll];
            if seat.completions.release() {
                self.inboxes.wake(poll);
            }
            seat.submissions.publish();
            seat.has_put = false;
        }
    }

    fn drain(&mut self, poll: usize) {
        while let Some(record) = self.seats[poll].completions.take() {
            self.note(poll, &record);
        }
    }

    fn note(&mut self, poll: usize, record: &Record) {
        let [kind, slot, generation, first, second, third, ..] = *record;
        match kind {
            1 => self.note_accept(poll, Token { slot, generation }, first),
            6 => self.note_unpin(slot),
            8 => self.fallen.push((slot, first as i32)),
            9 => self.note_dialed(poll, Token { slot, generation }, [first, second, third]),
            13 => self.note_arrived(poll, Token { slot, generation }, first as usize, second as i32),
            14 => self.dials_moved.push([first, second, third]),
            _ => {
                let book =
                    *self.seats[poll].slots.get(&slot).expect("only slots that were given away are named");
                let page = &mut self.books[book];
                assert_eq!(page.token.generation, generation, "a record of another generation");
                assert_eq!(page.closed, None, "CLOSED is the last record");
                match kind {
                    2 => self.note_data(book, Lent { chunk: first, offset: second, length: third }),
                    3 => {
                        assert!(!std::mem::replace(&mut page.is_ended, true), "EOF comes once");
                        assert_eq!(self.status(book).flags & 1, 1, "the status tells no later");
                    }
                    4 => self.note_closed(book, first as i32),
                    5 => page.drained += 1,
                    7 => page.timeouts.push((first, second)),
                    10 => self.note_moved(book, first as usize),
                    11 => self.note_detached(book, first as i32),
                    12 => page.infos.push([first, second, third]),
                    _ => panic!("no record is of kind {kind}"),
                }
            }
        }
    }

    fn note_accept(&mut self, poll: usize, token: Token, server: u32) {
        assert_eq!(server, self.server.id);
        self.open_book(poll, token);
    }

    fn note_dialed(&mut self, poll: usize, token: Token, [dial, cause, place]: [u32; 3]) {
        assert!(self.dialed.iter().all(|dialed| dialed.dial != dial), "a dial is answered once");
        let (cause, place) = (cause as i32, place as i32);
        self.dialed.push(Dialed { dial, cause, place });
        if cause == 0 {
            self.open_book(poll, token);
        } else {
            assert_eq!(token, Token { slot: 0, generation: 0 }, "what has failed has no slot");
        }
    }

    fn open_book(&mut self, poll: usize, token: Token) {
        let book = self.books.len();
        assert_eq!(
            self.seats[poll].slots.insert(token.slot, book),
            None,
            "a slot is given away after ACK only"
        );
        self.books.push(Book {
            poll,
            token,
            arrived: Vec::new(),
            kept: Vec::new(),
            is_ended: false,
            closed: None,
            drained: 0,
            timeouts: Vec::new(),
            infos: Vec::new(),
            detached: None,
            moving_to: None,
            said: None,
            missed: None,
            is_acknowledged: false,
            is_told_to_end: false,
        });
        assert_eq!(self.status(book).generation, token.generation);
    }

    fn note_moved(&mut self, book: usize, target: usize) {
        assert_eq!(self.books[book].moving_to.replace(target), None, "MOVED comes once");
        if self.manners.lets_go {
            self.let_go(book);
        }
    }

    fn note_arrived(&mut self, poll: usize, token: Token, book: usize, cause: i32) {
        let old = self.books[book].poll;
        // What lies there was put before.
        self.drain(old);
        let said = self.books[book].said.take().expect("only what was let go arrives");
        self.books[book].moving_to = None;
        if cause != 0 {
            assert_eq!(token, Token::NONE);
            self.books[book].missed = Some(cause);
            self.books[book].closed = Some(cause);
            return self.acknowledge(book);
        }
        let before = self.status(book);
        let Token { slot, generation } = self.books[book].token;
        self.put_record(old, [ACK, slot, generation, 0, 0, 0, 0, 0]);
        self.seats[old].slots.remove(&slot);
        (self.books[book].poll, self.books[book].token) = (poll, token);
        assert_eq!(self.seats[poll].slots.insert(token.slot, book), None);
        let after = self.status(book);
        assert_eq!(after.generation, token.generation);
        // It may have gone on there already.
        assert!(after.read >= before.read && after.sent >= before.sent);
        assert_eq!(after.flags & before.flags, before.flags);
        said.into_iter().for_each(|(kind, arguments)| self.put(book, kind, arguments));
    }

    fn note_unpin(&mut self, pin: u32) {
        assert!(self.pins.remove(pin), "an UNPIN names a pin that is not used any more");
        self.unpinned.push(pin);
    }

    fn note_data(&mut self, book: usize, lent: Lent) {
        assert!(!self.books[book].is_ended, "no DATA follows EOF");
        let bytes = self.read(lent);
        self.books[book].arrived.extend(bytes);
        self.books[book].kept.push(lent);
        if self.manners.gives_back {
            self.give_back(book);
        }
        if self.manners.credits {
            self.put(book, INPUT, [lent.length, self.server.limits.read_high_water_mark, 0]);
        }
    }

    fn note_detached(&mut self, book: usize, descriptor: i32) {
        self.books[book].detached = Some(descriptor);
        self.note_closed(book, 0);
    }

    fn note_closed(&mut self, book: usize, cause: i32) {
        self.books[book].closed = Some(cause);
        self.forget_said(book);
        let status = self.status(book);
        assert_eq!(status.flags, 7, "a closed slot says so in its status");
        assert_eq!(status.read, self.books[book].arrived.len() as u64, "bytes read are bytes delivered");
        if self.manners.acknowledges {
            self.acknowledge(book);
        }
    }

    // ---- what JavaScript says

    /// Answers MOVED: what the desk says of the connection from now on goes to its new poll.
    pub(super) fn let_go(&mut self, book: usize) {
        self.put(book, MOVE_ACK, [book as u32, 0, 0]);
        self.books[book].said = Some(Vec::new());
    }

    /// Takes a connection for ended, as JavaScript does when its new poll has died.
    pub(super) fn forget(&mut self, book: usize) {
        self.forget_said(book);
        self.books[book].closed = Some(0);
        self.acknowledge(book);
    }

    /// It has ended on its way.
    fn forget_said(&mut self, book: usize) {
        self.books[book].moving_to = None;
        let lent = |(kind, [chunk, offset, length]): (u32, [u32; 3])| {
            (kind == SEND_LENT).then_some(Lent { chunk, offset, length })
        };
        for lent in self.books[book].said.take().into_iter().flatten().filter_map(lent) {
            self.put_record(self.books[book].poll, done(lent));
        }
    }

    /// A record about a connection.
    pub(super) fn put(&mut self, book: usize, kind: u32, arguments: [u32; 3]) {
        if let Some(said) = &mut self.books[book].said {
            return said.push((kind, arguments));
        }
        let Book { poll, token, .. } = self.books[book];
        let [first, second, third] = arguments;
        self.put_record(poll, [kind, token.slot, token.generation, first, second, third, 0, 0]);
    }

    pub(super) fn put_record(&mut self, poll: usize, record: Record) {
        self.seats[poll].submissions.put(record);
        self.seats[poll].has_put = true;
    }

    /// Gives back everything that is kept of a connection's input.
    pub(super) fn give_back(&mut self, book: usize) {
        for lent in std::mem::take(&mut self.books[book].kept) {
            self.put_record(self.books[book].poll, done(lent));
        }
    }

    pub(super) fn acknowledge(&mut self, book: usize) {
        self.put(book, ACK, [0; 3]);
        self.books[book].is_acknowledged = true;
        let Book { poll, token, .. } = self.books[book];
        self.seats[poll].slots.remove(&token.slot);
    }

    /// Bytes in a block of their own that holds at least `room`.
    pub(super) fn lend(&mut self, room: u32, bytes: &[u8]) -> Lent {
        let block = self.table.alloc(room.max(bytes.len() as u32)).unwrap();
        // SAFETY: the block is at least as long as the bytes, and nobody else has it yet.
        unsafe { block.as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
        block.clone().lend();
        Lent { chunk: block.chunk(), offset: block.offset(), length: bytes.len() as u32 }
    }

    pub(super) fn send(&mut self, book: usize, lent: Lent) {
        let is_on_its_way = self.books[book].said.is_some();
        if is_on_its_way {
            assert!(self.table.share(lent.chunk, lent.offset));
        }
        self.put(book, if is_on_its_way { SEND_LENT } else { SEND }, [lent.chunk, lent.offset, lent.length]);
    }

    /// What a flush comes to: SEND, and DONE right behind it.
    pub(super) fn write(&mut self, book: usize, bytes: &[u8]) {
        for part in bytes.chunks(1 << 20) {
            let lent = self.lend(0, part);
            self.send(book, lent);
            self.put_record(self.books[book].poll, done(lent));
        }
    }

    /// Pins memory of the test's own.
    pub(super) fn pin(&self, bytes: &'static [u8]) -> u32 {
        // SAFETY: static memory stays.
        unsafe { self.pins.insert(bytes.as_ptr(), bytes.len()) }
    }

    // ---- what peers hear and say

    /// The next `length` bytes that the peer reads.
    #[track_caller]
    pub(super) fn peer_reads(&mut self, peer: &Peer, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("the peer reads as much", |_| {
            bytes.extend(peer.read().unwrap().into_iter().flatten());
            bytes.len() >= length
        });
        assert_eq!(bytes.len(), length, "the peer reads no more than was sent");
        bytes
    }

    /// All that the peer reads, and how it ends.
    #[track_caller]
    pub(super) fn peer_reads_to_end(&mut self, peer: &Peer) -> (Vec<u8>, std::io::Result<()>) {
        let (mut bytes, mut end) = (Vec::new(), None);
        self.until("the peer reads the end", |_| {
            match peer.read() {
                Ok(Some(read)) if read.is_empty() => end = Some(Ok(())),
                Ok(read) => bytes.extend(read.into_iter().flatten()),
                Err(error) => end = Some(Err(error)),
            }
            end.is_some()
        });
        (bytes, end.unwrap())
    }

    /// Turns until the peer has written all of it.
    #[track_caller]
    pub(super) fn peer_writes(&mut self, peer: &Peer, bytes: &[u8]) {
        let mut written = 0;
        self.until("the peer has written it", |_| {
            written += peer.write(&bytes[written..]);
            written == bytes.len()
        });
    }

    // ---- what can be seen from outside

    pub(super) fn status(&self, book: usize) -> Status {
        let Book { poll, token, .. } = self.books[book];
        let seat = &self.seats[poll];
        let word = |word: usize| {
            let at = seat.status_table + token.slot as usize * 8 + word;
            seat.words[at].load(Ordering::Relaxed)
        };
        let count = |low: usize| u64::from(word(low + 1)) << 32 | u64::from(word(low));
        Status { generation: word(0), flags: word(1), read: count(2), sent: count(4) }
    }

    pub(super) fn stats(&self, poll: usize) -> PollStats {
        self.seats[poll].counters.snapshot()
    }

    /// Times that the bell has rung.
    pub(super) fn bells(&self) -> u32 {
        self.bells.load(Ordering::Relaxed)
    }

    /// How many events the first poll's epoll has now. No turn will look at them.
    pub(super) fn events(&mut self) -> usize {
        let poll = &mut self.seats[0].poll;
        poll.mio.poll(&mut poll.events, Some(Duration::ZERO)).unwrap();
        poll.events.iter().count()
    }

    /// The poll's side of a connection that is open.
    pub(super) fn operator(&mut self, book: usize) -> &mut Operator {
        let Book { poll, token, .. } = self.books[book];
        self.seats[poll].poll.operators.get_mut(token).expect("the connection is open")
    }

    /// Bytes that the kernel holds for the poll to read, as far as 64 KiB.
    pub(super) fn waiting_bytes(&mut self, book: usize) -> usize {
        let mut place = vec![std::mem::MaybeUninit::uninit(); 64 * 1024];
        SockRef::from(&self.operator(book).descriptor()).peek(&mut place).unwrap_or(0)
    }

    /// The same without a turn of any poll.
    #[track_caller]
    pub(super) fn until_waiting_without_turns(&mut self, book: usize, bytes: usize) {
        let looks = TURNS * 100;
        let is_there = (0..looks).any(|_| {
            std::thread::yield_now();
            self.waiting_bytes(book) == bytes
        });
        assert!(is_there, "the kernel does not hold {bytes} bytes");
    }

    #[track_caller]
    pub(super) fn until_waiting(&mut self, book: usize, bytes: usize) {
        self.until("the kernel holds it", |desk| desk.waiting_bytes(book) == bytes);
    }

    #[track_caller]
    pub(super) fn until_arrived(&mut self, book: usize, bytes: usize) {
        self.until("all bytes have arrived", |desk| desk.books[book].arrived.len() >= bytes);
        assert_eq!(self.books[book].arrived.len(), bytes);
    }

    /// The peer is gone, and we say our end too.
    pub(super) fn until_closed_by_its_peer(&mut self, book: usize) {
        self.put(book, END, [0; 3]);
        self.until_closed(book);
    }

    #[track_caller]
    pub(super) fn until_closed(&mut self, book: usize) -> i32 {
        self.until("the connection is closed", |desk| desk.books[book].closed.is_some());
        self.books[book].closed.unwrap()
    }

    /// The descriptor of a connection that has been detached, if its poll still offers it.
    pub(super) fn take_detached(&self, book: usize) -> Option<OwnedFd> {
        let book = &self.books[book];
        self.handover.take(book.poll, book.detached?)
    }

    /// Ends the last poll as its thread does when a turn has panicked.
    pub(super) fn lose_poll(&mut self) {
        let mut seat = self.seats.pop().unwrap();
        seat.poll.leave();
        for book in self.books.iter_mut().filter(|book| book.poll == self.seats.len()) {
            book.closed.get_or_insert(0);
            book.is_acknowledged = true;
        }
    }

    /// Fills the socket of a connection whose peer does not read, and returns what was sent so far.
    #[track_caller]
    pub(super) fn block(&mut self, book: usize) -> Vec<u8> {
        let part = pattern_part();
        let mut all = Vec::new();
        self.until("the output is blocked", |desk| {
            let is_blocked = desk.operator(book).connection.output.is_blocked;
            if !is_blocked {
                desk.write(book, &part);
                all.extend(&part);
            }
            is_blocked
        });
        all
    }

    fn read(&self, lent: Lent) -> Vec<u8> {
        let chunk = self.table.chunk(lent.chunk).expect("DATA names a chunk that is there");
        assert!((lent.offset + lent.length) as usize <= chunk.len());
        let start = chunk.as_ptr().wrapping_add(lent.offset as usize);
        // SAFETY: the range lies in the chunk, and the poll does not write to what it has lent.
        unsafe { std::slice::from_raw_parts(start, lent.length as usize) }.to_vec()
    }

    // ---- the end

    /// Ends what is open, gives everything back, and asserts that the poll has kept nothing.
    fn settle(&mut self) {
        self.manners = Manners { gives_back: true, credits: false, acknowledges: true, lets_go: true };
        self.now += 10 * MS;
        let endpoints = self.close_listeners();
        self.until("every connection ends", |desk| {
            // One that was on its way may be told of only now.
            (0..desk.books.len()).for_each(|book| desk.end(book));
            desk.is_quiet()
        });
        let held = endpoints.iter().filter(|_| self.counts_sockets).map(held_sockets).sum::<usize>();
        assert_eq!(held, 0, "descriptors are closed");
        assert!(self.pins.is_empty(), "{:?}", self.pins);
        for seat in &mut self.seats {
            assert_eq!((seat.poll.operators.open(), seat.poll.dials.len()), (0, 0));
            assert_eq!(seat.poll.operators.taken(), 0, "every slot is free again");
            seat.poll.io.intake.release();
        }
        assert_eq!(self.table.blocks_out(), 0, "blocks out are blocks back");
        self.server_is_empty();
    }

    fn end(&mut self, book: usize) {
        let page = &mut self.books[book];
        let is_open = page.closed.is_none();
        if is_open && !std::mem::replace(&mut page.is_told_to_end, true) {
            self.put(book, RESET, [0; 3]);
        } else if !is_open && !page.is_acknowledged {
            self.acknowledge(book);
        }
        self.give_back(book);
    }

    fn close_listeners(&mut self) -> Vec<Endpoint> {
        let close = |listener: Arc<Listener>| {
            listener.close();
            self.inboxes.send(0, Command::CloseListener(listener.id));
            listener.endpoint.clone()
        };
        std::mem::take(&mut self.listeners).into_iter().map(close).collect()
    }

    fn is_quiet(&mut self) -> bool {
        let said_all = |seat: &mut Seat| {
            !seat.has_put && !seat.submissions.is_backlogged() && !seat.poll.submissions.look()
        };
        self.seats.iter_mut().all(said_all)
            && self.books.iter().all(|book| book.closed.is_some() && book.is_acknowledged)
            && self.seats.iter().all(|seat| seat.poll.operators.open() == 0 && seat.poll.acceptors.is_empty())
    }

    /// A server for one connection, which counts as this one does, would let one in.
    fn server_is_empty(&self) {
        let limit = self.server.max_connections;
        let admitted = (0..limit).filter(|_| self.server.admit()).count();
        assert_eq!(admitted, limit as usize, "whoever left was counted");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.settle();
            let words = self.seats.drain(..).map(|seat| seat.words);
            LEFT.lock().unwrap_or_else(PoisonError::into_inner).extend(words);
        }
    }
}

impl Seat {
    fn new(index: usize, mio: mio::Poll, plan: &Plan, shared: Shared) -> Seat {
        let status_table = 64 + 16 * plan.ring_entries as usize;
        let words = clean_words(status_table + plan.slots as usize * 24);
        let border = Border::new(words, plan.ring_entries, plan.slots).unwrap();
        let counters = Arc::<Counters>::default();
        Seat {
            poll: Poll::new(index, mio, border, shared, counters.clone()).unwrap(),
            border,
            left: Turn { next_deadline: None, more: false, load: Load::default() },
            words,
            status_table,
            completions: Consumer::new(border.completions()),
            submissions: Producer::new(border.submissions()),
            has_put: false,
            counters,
            slots: HashMap::new(),
        }
    }

    /// How far a poll that is to end has come.
    pub(super) fn retired(&self) -> u32 {
        self.words[4].load(Ordering::Relaxed)
    }

    /// The word by which the poll tells that memory is scarce.
    pub(super) fn scarce(&self) -> &'static AtomicU32 {
        &self.words[3]
    }

    /// The word by which the poll tells that it waits.
    pub(super) fn sleeping(&self) -> &'static AtomicU32 {
        &self.words[49]
    }

    /// Whether records wait for room in the completion ring.
    pub(super) fn is_backlogged(&self) -> bool {
        self.words[1].load(Ordering::Relaxed) != 0
    }
}

fn forget_progress(operator: &mut Operator) {
    if let Ok(held) = sys::unacknowledged(operator.descriptor()) {
        operator.connection.output.unacknowledged = held;
    }
}

pub(super) fn done(lent: Lent) -> Record {
    [DONE, lent.chunk, lent.offset, 1, 0, 0, 0, 0]
}

/// The errno that a CLOSED tells of, as the standard library names it.
pub(super) fn error_kind(cause: i32) -> std::io::ErrorKind {
    assert!(cause > 0, "{cause} is no errno");
    std::io::Error::from_raw_os_error(cause).kind()
}

/// Number of a cause in the ring.
pub(super) fn number(cause: Cause) -> i32 {
    let token = Token { slot: 0, generation: 1 };
    crate::record::Completion::Closed { token, cause }.encode()[3] as i32
}

/// Zeroes that stay; those that a desk has left are used again, for a property makes many.
fn clean_words(count: usize) -> &'static [AtomicU32] {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(place) = left.iter().position(|left| left.len() == count) else {
        return words(count);
    };
    let words = left.swap_remove(place);
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    words
}

static LEFT: Mutex<Vec<&'static [AtomicU32]>> = Mutex::new(Vec::new());

fn pattern_part() -> Vec<u8> {
    super::peer::pattern(64 * 1024)
}

/// Sockets with this address of their own that somebody holds.
pub(super) fn held_sockets(endpoint: &Endpoint) -> usize {
    if endpoint.family == Endpoint::UNIX {
        return unix_sockets(&endpoint.address);
    }
    tcp_sockets(1, endpoint.port)
}

/// Sockets, of whoever holds them, that are connected to the port or on their way there.
pub(super) fn held_clients(port: u16) -> usize {
    tcp_sockets(2, port)
}

fn tcp_sockets(field: usize, port: u16) -> usize {
    let port = format!(":{port:04X}");
    let inode = |line: &str| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        let is_meant = fields.get(field).is_some_and(|address| address.ends_with(&port));
        // The kernel keeps a socket that is closed for a while; it has no inode then.
        fields.get(9).filter(|inode| is_meant && **inode != "0").map(|inode| inode.to_string())
    };
    listed("/proc/self/net/tcp", inode)
}

fn unix_sockets(path: &str) -> usize {
    let end = format!(" {path}");
    let inode = |line: &str| {
        let inode = line.split_whitespace().nth(6)?;
        line.ends_with(&end).then(|| inode.to_owned())
    };
    listed("/proc/self/net/unix", inode)
}

/// How many inodes there are in a table of sockets. While others come and go the kernel shows a line twice, or
/// leaves one out: so each inode counts once, whenever it is seen.
fn listed(table: &str, inode: impl Fn(&str) -> Option<String>) -> usize {
    let tables = [(); 3].map(|()| std::fs::read_to_string(table).unwrap());
    tables.iter().flat_map(|table| table.lines()).filter_map(inode).collect::<HashSet<_>>().len()
}
