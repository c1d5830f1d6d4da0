//! Any records in a submission ring.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::bytes::Bytes;
use crate::acceptor::Accepted;
use crate::block::{BlockTable, CHUNK_SIZE};
use crate::border::{Border, Doorbell};
use crate::connection::Limits;
use crate::counters::Counters;
use crate::demand::Load;
use crate::handover::Handover;
use crate::inbox::{Command, Inboxes};
use crate::lending::{Setting, ZeroCopy};
use crate::pin::PinTable;
use crate::poll::{Budget, Poll, Shared, Turn};
use crate::record::{Record, Submission};
use crate::ring::{Consumer, Producer};
use crate::server::Server;
use crate::token::{Subject, Token};

/// Puts records that are made of the bytes into the ring of a poll. Some of its connections they may name; others they
/// do not, and those have to bring each byte to the other side, whatever becomes of the first. In the end the
/// poll, all blocks, pins and descriptors have come to an end.
pub fn ring_records(data: &[u8]) {
    let _turn = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = Bytes::new(data);
    let mut bench = Bench::new(&mut bytes);
    bench.connect(Role::Bystander);
    bench.connect(Role::Named);
    bench.connect(Role::Bystander);
    while !bytes.is_empty() {
        bench.step(&mut bytes);
    }
    bench.end();
}

const ENTRIES: u32 = 64;
const SLOTS: u32 = 4;
const STATUS_TABLE: usize = 64 + 16 * ENTRIES as usize;
const WORDS: usize = STATUS_TABLE + 24 * SLOTS as usize;

// The header's words, as docs/border.md numbers them.
const RETIRED: usize = 4;
const SUBMISSION_TAIL: usize = 32;

/// What JavaScript shares with a poll, one case after the other.
static SHARED: [AtomicU32; WORDS] = [const { AtomicU32::new(0) }; WORDS];
static SCHEDULED: AtomicU32 = AtomicU32::new(0);
static IN_USE: Mutex<()> = Mutex::new(());

static PINNED: [u8; 3000] = [9; 3000];

/// MSG_NOSIGNAL: who writes to a peer that is gone is told by an error.
const NO_SIGNAL: i32 = 0x4000;

/// Turns in which something must happen: each waits for at most a millisecond.
const TURNS: usize = 10_000;

/// Bytes that one peer writes at most, so that memory never becomes scarce.
const MUCH: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Records may name it.
    Named,
    Bystander,
}

#[derive(Debug)]
struct Connection {
    role: Role,
    token: Token,
    peer: Socket,
    /// How much the peer has written, has read, how much has arrived, and how much it was sent.
    written: usize,
    read: usize,
    arrived: usize,
    sent: usize,
    is_closed: bool,
}

struct Bench {
    poll: Poll,
    submissions: Producer,
    completions: Consumer,
    table: Arc<BlockTable>,
    pins: Arc<PinTable>,
    inboxes: Arc<Inboxes>,
    handover: Arc<Handover>,
    server: Arc<Server>,
    counters: Arc<Counters>,
    is_tcp: bool,
    now: Instant,
    left: Turn,
    /// What has been put and no turn has taken.
    put: Vec<Record>,
    connections: Vec<Connection>,
    /// By chunk and offset of the block.
    lent: HashMap<(u32, u32), u32>,
    /// Pins that no UNPIN has named.
    pinned: Vec<u32>,
}

impl Bench {
    fn new(bytes: &mut Bytes) -> Bench {
        SHARED.iter().chain([&SCHEDULED]).for_each(|word| word.store(0, Ordering::Relaxed));
        let kind = bytes.byte();
        let zero_copy = Arc::<Setting>::default();
        zero_copy.set(if kind & 2 == 0 { ZeroCopy::Off } else { ZeroCopy::Always });
        let border = Border::new(&SHARED, ENTRIES, SLOTS).unwrap();
        let (table, pins, handover) =
            (BlockTable::new(64 << 20), PinTable::new(), Arc::<Handover>::default());
        let mio = mio::Poll::new().unwrap();
        let inboxes = Arc::new(Inboxes::new(SLOTS));
        inboxes.open(0, mio::Waker::new(mio.registry(), Subject::Waker.mio()).unwrap());
        let shared = Shared {
            table: table.clone(),
            pins: pins.clone(),
            inboxes: inboxes.clone(),
            handover: handover.clone(),
            doorbell: Doorbell::new(&SCHEDULED, Arc::new(|| ())),
            zero_copy,
        };
        let counters = Arc::<Counters>::default();
        let limits = Limits { read_high_water_mark: MUCH as u32, idle_timeout: None, write_timeout: None };
        Bench {
            poll: Poll::new(0, mio, border, shared, counters.clone()).unwrap(),
            submissions: Producer::new(border.submissions()),
            completions: Consumer::new(border.completions()),
            table,
            pins,
            inboxes,
            handover,
            server: Arc::new(Server::new(1, limits, 0, true)),
            counters,
            is_tcp: kind & 1 == 1,
            now: Instant::now(),
            left: Turn { next_deadline: None, more: false, load: Load::default() },
            put: Vec::new(),
            connections: Vec::new(),
            lent: HashMap::new(),
            pinned: Vec::new(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes) {
        match bytes.byte() % 16 {
            0 => self.put_unless_for_a_bystander(std::array::from_fn(|_| bytes.word())),
            1..=7 => {
                let record = self.record(bytes);
                self.put_unless_for_a_bystander(record);
            }
            8 => self.turn(),
            9 => self.visit_named_peer(bytes),
            10 => self.exchange(bytes),
            11 => self.pass([1, 1000, 40_000][bytes.up_to(2)]),
            12 => self.damage_tail(bytes.word()),
            13 => self.lend(bytes.word() % (1 << 18)),
            14 => self.pin(bytes.up_to(PINNED.len())),
            _ => self.connect(if bytes.bit() { Role::Bystander } else { Role::Named }),
        }
    }

    // ---- what JavaScript says

    /// A record that may make sense.
    fn record(&mut self, bytes: &mut Bytes) -> Record {
        let kind = u32::from(bytes.byte()) % 20;
        let Token { slot, generation } = self.some_token(bytes);
        let [first, second, third] = [(); 3].map(|()| match bytes.byte() {
            255 => bytes.word(),
            small => u32::from(small),
        });
        match (kind, self.some_lent(bytes)) {
            (1, Some((chunk, offset))) => [1, chunk, offset, first % 4, 0, 0, 0, 0],
            (2 | 17, Some((chunk, offset))) => {
                let (into, length) = (second.wrapping_mul(251), third.wrapping_mul(1021));
                [kind, slot, generation, chunk, offset.wrapping_add(into), length, 0, 0]
            }
            (3, _) if !self.pinned.is_empty() => {
                [3, slot, generation, self.pinned[first as usize % self.pinned.len()], 0, 0, 0, 0]
            }
            _ => [kind, slot, generation, first, second, third, 0, 0],
        }
    }

    /// Of a connection that is or was, or nearly so.
    fn some_token(&self, bytes: &mut Bytes) -> Token {
        let choice = bytes.byte();
        let connection = &self.connections[usize::from(choice & 15) % self.connections.len()];
        let Token { slot, generation } = connection.token;
        match choice >> 5 {
            0..=4 => Token { slot, generation },
            5 => Token { slot, generation: generation.wrapping_sub(1) },
            6 => Token { slot, generation: generation.wrapping_add(1) },
            _ => Token { slot: bytes.word(), generation },
        }
    }

    /// A block that is lent, or was.
    fn some_lent(&self, bytes: &mut Bytes) -> Option<(u32, u32)> {
        let choice = usize::from(bytes.byte());
        let is_meant = |count: u32| count > 0 || choice > 200;
        let lent = self.lent.iter().filter(|(_, count)| is_meant(**count)).map(|(at, _)| *at);
        let mut lent = lent.collect::<Vec<_>>();
        lent.sort_unstable();
        lent.get(choice % lent.len().max(1)).copied()
    }

    fn put_unless_for_a_bystander(&mut self, record: Record) {
        let [kind, slot, generation, ..] = record;
        let is_named = |connection: &Connection| connection.token == Token { slot, generation };
        let bystander = |connection: &Connection| connection.role == Role::Bystander && !connection.is_closed;
        if kind == 1
            || !self.connections.iter().any(|connection| is_named(connection) && bystander(connection))
        {
            self.put(record);
        }
    }

    fn put(&mut self, record: Record) {
        if self.put.len() == ENTRIES as usize {
            self.turn();
        }
        self.submissions.put(record);
        self.put.push(record);
    }

    fn put_about(&mut self, connection: usize, kind: u32, arguments: [u32; 3]) {
        let Token { slot, generation } = self.connections[connection].token;
        let [first, second, third] = arguments;
        self.put([kind, slot, generation, first, second, third, 0, 0]);
    }

    /// A block for JavaScript to write to.
    fn lend(&mut self, size: u32) {
        if self.table.bytes_out() > 32 << 20 {
            return;
        }
        let block = self.table.alloc(size).unwrap();
        *self.lent.entry((block.chunk(), block.offset())).or_default() += 1;
        block.lend();
    }

    fn pin(&mut self, length: usize) {
        // SAFETY: static memory stays.
        self.pinned.push(unsafe { self.pins.insert(PINNED.as_ptr(), length) });
    }

    /// For one turn the ring's tail is where it cannot be.
    fn damage_tail(&mut self, by: u32) {
        self.turn();
        let tail = SHARED[SUBMISSION_TAIL].load(Ordering::Relaxed);
        let by = (ENTRIES + 1).saturating_add(by);
        SHARED[SUBMISSION_TAIL].store(tail.wrapping_add(by), Ordering::Relaxed);
        self.turn();
        SHARED[SUBMISSION_TAIL].store(tail, Ordering::Relaxed);
    }

    // ---- the peers

    /// A connection that gets a slot, if there is one.
    fn connect(&mut self, role: Role) {
        let (ours, peer): (OwnedFd, Socket) = if self.is_tcp { tcp_pair() } else { unix_pair() };
        let known = self.connections.len();
        assert!(self.server.admit());
        let (remote, local) = ([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]);
        let (is_unix, server) = (!self.is_tcp, self.server.clone());
        let accepted = Accepted { descriptor: ours, remote, local, is_unix, server };
        self.inboxes.send(0, Command::Adopt(accepted));
        let token = Token::NONE;
        let (written, read, arrived, sent) = (0, 0, 0, 0);
        self.connections.push(Connection {
            role,
            token,
            peer,
            written,
            read,
            arrived,
            sent,
            is_closed: false,
        });
        self.turn();
        if self.connections[known].token == Token::NONE {
            self.connections.pop();
        }
    }

    fn visit_named_peer(&mut self, bytes: &mut Bytes) {
        let choice = bytes.byte();
        let named = self.connections.iter_mut().filter(|connection| connection.role == Role::Named);
        let mut named = named.collect::<Vec<_>>();
        let place = usize::from(choice >> 4) % named.len();
        let Connection { peer, written, .. } = &mut *named[place];
        match choice % 8 {
            0..=3 if *written < MUCH => {
                *written += peer.send_with_flags(&[7; 65_536][..bytes.up_to(65_535)], NO_SIGNAL).unwrap_or(0)
            }
            4 => drop(peer.shutdown(Shutdown::Write)),
            5 => drop(peer.shutdown(Shutdown::Both)),
            _ => drop(peer.read(&mut [0; 65_536])),
        }
    }

    /// Bytes to and from a bystander.
    fn exchange(&mut self, bytes: &mut Bytes) {
        let choice = usize::from(bytes.byte());
        let bystander = |(_, connection): &(usize, &Connection)| connection.role == Role::Bystander;
        let bystanders = self.connections.iter().enumerate().filter(bystander).map(|(place, _)| place);
        let bystanders = bystanders.collect::<Vec<_>>();
        let place = bystanders[choice % bystanders.len()];
        let length = bytes.half();
        if choice < 128 {
            self.peer_writes(place, length.into());
        } else {
            self.write(place, length.into());
        }
    }

    fn peer_writes(&mut self, place: usize, length: usize) {
        let connection = &mut self.connections[place];
        let part = part(connection.written, length);
        if connection.written + length <= MUCH {
            connection.written += connection.peer.send_with_flags(&part, NO_SIGNAL).unwrap_or(0);
        }
    }

    /// What a flush comes to. What others have put may give the block back, so it is taken first.
    fn write(&mut self, place: usize, length: usize) {
        self.turn();
        let bytes = part(self.connections[place].sent, length);
        let Some(block) = self.table.alloc(length as u32).filter(|_| length > 0) else { return };
        // SAFETY: the block is at least as long as the bytes, and nobody else has it yet.
        unsafe { block.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), length) };
        let (chunk, offset) = (block.chunk(), block.offset());
        *self.lent.entry((chunk, offset)).or_default() += 1;
        block.lend();
        self.connections[place].sent += length;
        self.put_about(place, 2, [chunk, offset, length as u32]);
        self.put([1, chunk, offset, 1, 0, 0, 0, 0]);
        self.turn();
    }

    fn peers_read(&mut self) {
        for connection in self.connections.iter_mut().filter(|connection| connection.role == Role::Bystander)
        {
            let mut bytes = [0; 65_536];
            match connection.peer.read(&mut bytes) {
                Ok(read) => {
                    assert!(bytes[..read] == part(connection.read, read), "a bystander's output changes");
                    connection.read += read;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "a bystander fails"),
            }
        }
    }

    // ---- time

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.turn();
    }

    fn turn(&mut self) {
        self.submissions.publish();
        assert!(!self.submissions.is_backlogged());
        for record in std::mem::take(&mut self.put) {
            self.take(&record);
        }
        self.left = self.poll.turn(self.now, Budget::default()).unwrap();
        while let Some(record) = self.completions.take() {
            self.hear(&record);
        }
        self.completions.release();
        self.check_bystanders();
    }

    /// One after the other, so that what becomes of one says nothing of another. Nothing happens in between.
    fn take(&mut self, record: &Record) {
        let must_be_refused = self.must_be_refused(record);
        let before = self.counters.snapshot().stale_records;
        self.poll.take_submissions(self.now, 1);
        let is_refused = self.counters.snapshot().stale_records > before;
        assert!(is_refused || !must_be_refused, "a block that is not lent is used");
        let is_done = matches!(Submission::decode(record), Some(Submission::Done { .. }));
        assert!(!is_refused || must_be_refused || !is_done, "a block that is lent is not taken back");
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Bench) -> bool) {
        for turn in 0..TURNS {
            // What is closed gives up what it has lent after a second.
            self.pass(10);
            self.peers_read();
            if condition(self) {
                return;
            }
            // Most of it needs no more than some turns.
            if turn > 2 {
                let next_deadline = Some(self.now + Duration::from_millis(1));
                self.poll.wait(Turn { next_deadline, ..self.left }, self.now).unwrap();
            }
        }
        panic!("it did not happen that {what}: {:?}", self.connections);
    }

    // ---- what JavaScript hears

    fn hear(&mut self, record: &Record) {
        let [kind, slot, generation, first, second, third, ..] = *record;
        match kind {
            1 => {
                let new = self.connections.last_mut().unwrap();
                assert_eq!(new.token, Token::NONE, "one connection has come");
                new.token = Token { slot, generation };
            }
            6 => {
                let place = self.pinned.iter().position(|pin| *pin == slot);
                self.pinned.swap_remove(place.expect("an UNPIN names a pin, once"));
                assert!(self.pins.remove(slot));
            }
            _ => self.hear_of(Token { slot, generation }, kind, [first, second, third]),
        }
    }

    fn hear_of(&mut self, token: Token, kind: u32, [first, second, third]: [u32; 3]) {
        let mut connections = self.connections.iter_mut();
        let connection =
            connections.find(|connection| connection.token == token).expect("a record of nobody");
        assert!(!connection.is_closed, "CLOSED is the last record");
        let is_named = connection.role == Role::Named;
        match kind {
            2 => {
                let bytes = read(&self.table, first, second, third);
                let is_right = is_named || bytes == part(connection.arrived, bytes.len());
                assert!(is_right, "a bystander's input changes");
                connection.arrived += bytes.len();
                *self.lent.entry(block_of(&self.table, first, second).unwrap()).or_default() += 1;
            }
            4 => connection.is_closed = true,
            11 => {
                connection.is_closed = true;
                assert!(self.handover.take(0, first as i32).is_some(), "a descriptor that is there");
            }
            3 | 5 | 7 | 12 => {}
            _ => panic!("no such record comes: {kind}"),
        }
        assert!(is_named || matches!(kind, 2), "a bystander hears of {kind}");
    }

    /// Whether the record names a block that is not lent, or gives back nothing. Lent references that it gives back are noted.
    fn must_be_refused(&mut self, record: &Record) -> bool {
        let (chunk, offset, count) = match Submission::decode(record) {
            Some(Submission::Done { count: 0, .. }) => return true,
            Some(Submission::Done { chunk, offset, count }) => (chunk, offset, count),
            Some(Submission::SendLent { chunk, offset, .. }) => (chunk, offset, 1),
            Some(Submission::Send { chunk, offset, .. }) => (chunk, offset, 0),
            _ => return false,
        };
        let lent = block_of(&self.table, chunk, offset).and_then(|block| self.lent.get_mut(&block));
        let Some(lent) = lent.filter(|lent| **lent >= count.max(1)) else { return true };
        *lent -= count;
        false
    }

    fn check_bystanders(&self) {
        for connection in self.connections.iter().filter(|connection| connection.role == Role::Bystander) {
            if connection.token == Token::NONE || connection.is_closed {
                continue;
            }
            let word = |word: usize| {
                SHARED[STATUS_TABLE + 8 * connection.token.slot as usize + word].load(Ordering::Relaxed)
                    as usize
            };
            assert_eq!((word(0) as u32, word(1)), (connection.token.generation, 0), "a bystander's status");
            assert_eq!(
                (word(2), word(3), word(5)),
                (connection.arrived, 0, 0),
                "what has come to a bystander"
            );
            assert!(word(4) <= connection.sent);
        }
    }

    // ---- the end

    fn end(mut self) {
        self.turn();
        self.until("all bytes of the bystanders have come", |bench| {
            let all = |connection: &Connection| {
                connection.role == Role::Named
                    || (connection.arrived, connection.read) == (connection.written, connection.sent)
            };
            bench.connections.iter().all(all)
        });
        self.connections.iter_mut().for_each(|connection| connection.role = Role::Named);
        (0..self.connections.len()).for_each(|place| self.put_about(place, 12, [0; 3]));
        self.until("all are closed", |bench| bench.connections.iter().all(|connection| connection.is_closed));
        (0..self.connections.len()).for_each(|place| self.put_about(place, 13, [0; 3]));
        self.inboxes.retire(0);
        self.until("the poll has nothing left", |_| SHARED[RETIRED].load(Ordering::Relaxed) == 1);
        self.check_memory();
    }

    fn check_memory(self) {
        for ((chunk, offset), count) in self.lent {
            assert!(count == 0 || self.table.give_back(chunk, offset, count), "lent and not there");
            assert!(!self.table.give_back(chunk, offset, 1), "there and not lent");
        }
        assert_eq!(self.table.blocks_out(), 0, "blocks out are blocks back");
        assert!(self.pinned.into_iter().all(|pin| self.pins.remove(pin)), "pins that were never taken");
        assert!(self.pins.is_empty());
        assert_eq!(Arc::strong_count(&self.server), 1, "nobody is left");
    }
}

/// The `length` bytes of a stream behind the first `from`. No two stretches of it are alike.
fn part(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|place| ((place as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Chunk and offset of the block around this place.
fn block_of(table: &BlockTable, chunk: u32, offset: u32) -> Option<(u32, u32)> {
    let shift = table.chunk(chunk).filter(|_| (offset as usize) < CHUNK_SIZE)?.shift();
    Some((chunk, offset >> shift << shift))
}

fn read(table: &BlockTable, chunk: u32, offset: u32, length: u32) -> Vec<u8> {
    let chunk = table.chunk(chunk).expect("DATA names a chunk that is there");
    assert!((offset + length) as usize <= chunk.len());
    let start = chunk.as_ptr().wrapping_add(offset as usize);
    // SAFETY: the range lies in the chunk, and the poll does not write between two turns.
    unsafe { std::slice::from_raw_parts(start, length as usize) }.to_vec()
}

fn unix_pair() -> (OwnedFd, Socket) {
    let (ours, peer) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    (ours.into(), OwnedFd::from(peer).into())
}

fn tcp_pair() -> (OwnedFd, Socket) {
    static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);
    let mut listener: MutexGuard<_> = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = listener.get_or_insert_with(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    let peer = Socket::from(OwnedFd::from(peer));
    // What is closed leaves its port at once.
    peer.set_linger(Some(Duration::ZERO)).unwrap();
    (ours.into(), peer)
}
