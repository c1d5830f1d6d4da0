//! A poll, JavaScript and a peer in all orders of what they do. The sockets and epoll are the kernel's own: before each
//! system call of one of them the others may act.

#![cfg(loom)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loom::thread;
use mio::unix::SourceFd;
use mio::{Events, Interest};

use super::{Budget, Poll, Shared};
use crate::acceptor::Accepted;
use crate::block::BlockTable;
use crate::border::models::{border, is_to_be_woken};
use crate::border::{Border, Doorbell};
use crate::connection::Limits;
use crate::handover::Handover;
use crate::inbox::{Command, Inboxes};
use crate::operators::Operator;
use crate::pin::PinTable;
use crate::record::Record;
use crate::ring::{Consumer, Producer};
use crate::server::Server;
use crate::sync::models::{enter_kernel, explore, leak, Event, HAPPENED};
use crate::sync::{fence, AtomicU32, Ordering};
use crate::token::{Subject, Token};

const ACCEPT: u32 = 1;
const DATA: u32 = 2;
const DRAINED: u32 = 5;

const DONE: u32 = 1;
const SEND: u32 = 2;
const WATCH_DRAIN: u32 = 5;
const PAUSE: u32 = 6;
const RESUME: u32 = 7;
const CLOSE: u32 = 11;

/// Words of the poll's stack: loom gives a thread less than a turn needs.
const STACK: usize = 0x8000;

/// Of the only connection.
const TOKEN: Token = Token { slot: 0, generation: 1 };

/// In the place of a sleep in epoll: all threads of a model are one for the kernel. Afterwards nobody needs to wait.
pub(super) fn awaken(mio: &mio::Poll, timeout: Option<Duration>) -> Option<Duration> {
    enter_kernel();
    while timeout != Some(Duration::ZERO) && !has_events(mio) {
        HAPPENED.wait();
        enter_kernel();
    }
    Some(Duration::ZERO)
}

/// Without taking them.
fn has_events(mio: &mio::Poll) -> bool {
    let mut outer = mio::Poll::new().unwrap();
    outer
        .registry()
        .register(&mut SourceFd(&mio.as_raw_fd()), Subject::Waker.mio(), Interest::READABLE)
        .unwrap();
    let mut events = Events::with_capacity(1);
    outer.poll(&mut events, Some(Duration::ZERO)).unwrap();
    !events.is_empty()
}

/// JavaScript's ends.
struct Desk {
    border: Border,
    scheduled: &'static AtomicU32,
    bell: Arc<Event>,
    inboxes: Arc<Inboxes>,
    submissions: Producer,
    completions: Consumer,
}

impl Desk {
    fn put(&mut self, kind: u32, arguments: [u32; 3]) {
        let [first, second, third] = arguments;
        self.submissions.put([kind, TOKEN.slot, TOKEN.generation, first, second, third, 0, 0]);
    }

    fn publish(&mut self) {
        self.submissions.publish();
        if is_to_be_woken(&self.border) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.inboxes.wake(0);
        HAPPENED.set();
    }

    /// Drains when the bell has rung, until it has seen what it waits for. Without a bell that would be for ever.
    fn until(&mut self, mut is_last: impl FnMut(Record) -> bool) {
        let mut is_over = false;
        while !is_over {
            self.bell.wait();
            self.scheduled.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while let Some(record) = self.completions.take() {
                is_over |= is_last(record);
            }
            if self.completions.release() {
                self.wake();
            }
            self.publish();
        }
    }
}

/// A poll without connections, and its desk.
fn scene() -> (Poll, Desk) {
    let mio = mio::Poll::new().unwrap();
    let inboxes = Arc::new(Inboxes::new(1));
    inboxes.open(0, mio::Waker::new(mio.registry(), Subject::Waker.mio()).unwrap());
    let (border, scheduled, bell) = (border(4), &leak(1)[0], Arc::new(Event::default()));
    let rung = bell.clone();
    let shared = Shared {
        table: BlockTable::new(8 << 20),
        pins: PinTable::new(),
        inboxes: inboxes.clone(),
        handover: Arc::<Handover>::default(),
        doorbell: Doorbell::new(scheduled, Arc::new(move || rung.set())),
        zero_copy: Arc::default(),
    };
    let poll = Poll::new(0, mio, border, shared, Arc::default()).unwrap();
    let (submissions, completions) =
        (Producer::new(border.submissions()), Consumer::new(border.completions()));
    (poll, Desk { border, scheduled, bell, inboxes, submissions, completions })
}

/// A poll that has a connection, of which JavaScript knows.
fn scene_with(stream: UnixStream, is_unix: bool) -> (Poll, Desk) {
    let (mut poll, mut desk) = scene();
    adopt(&desk.inboxes, stream, is_unix);
    poll.turn(Instant::now(), Budget::default()).unwrap();
    desk.until(|record| record[0] == ACCEPT);
    (poll, desk)
}

/// The poll's end and the peer's.
fn streams() -> (UnixStream, UnixStream) {
    let streams = UnixStream::pair().unwrap();
    [&streams.0, &streams.1].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    streams
}

fn adopt(inboxes: &Inboxes, stream: UnixStream, is_unix: bool) {
    let limits = Limits { read_high_water_mark: 1 << 20, idle_timeout: None, write_timeout: None };
    let server = Arc::new(Server::new(0, limits, 0, true));
    let (descriptor, address) = (stream.into(), [0; 6]);
    inboxes
        .send(0, Command::Adopt(Accepted { descriptor, remote: address, local: address, is_unix, server }));
}

/// Runs the poll until its connection is closed. `slip` is what it does wrong before each turn.
fn attend(mut poll: Poll, slip: impl Fn(&mut Poll) + Send + 'static) -> thread::JoinHandle<()> {
    let run = move || {
        let now = Instant::now();
        loop {
            slip(&mut poll);
            let turn = poll.turn(now, Budget::default()).unwrap();
            if poll.operators.taken() > poll.operators.open() {
                return;
            }
            poll.wait(turn, now).unwrap();
        }
    };
    thread::Builder::new().stack_size(STACK).spawn(run).unwrap()
}

fn close(mut desk: Desk, threads: [thread::JoinHandle<()>; 2]) {
    desk.put(CLOSE, [0; 3]);
    desk.publish();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn nothing(_: &mut Poll) {}

fn connection(poll: &mut Poll) -> Option<&mut Operator> {
    poll.operators.get_mut(TOKEN)
}

/// What a wait has brought is lost when epoll is asked once more before a turn has looked at it.
fn forget_events(poll: &mut Poll) {
    poll.is_collected = false;
}

// ---- pause against readable

/// The peer writes while JavaScript pauses the connection and resumes it.
fn pauses(slip: impl Fn(&mut Poll) + Copy + Send + Sync + 'static) {
    explore(2, move || {
        let (stream, mut peer) = streams();
        let (poll, mut desk) = scene_with(stream, true);
        let poll = attend(poll, slip);
        let _open = peer.try_clone().unwrap();
        let peer = thread::spawn(move || {
            enter_kernel();
            peer.write_all(b"x").unwrap();
            HAPPENED.set();
        });
        for kind in [PAUSE, RESUME] {
            desk.put(kind, [0; 3]);
            desk.publish();
        }
        desk.until(|record| record[0] == DATA);
        close(desk, [poll, peer]);
    });
}

#[test]
fn what_arrives_while_a_connection_is_paused_is_read_when_it_is_resumed() {
    pauses(nothing);
}

#[test]
#[should_panic(expected = "deadlock")]
fn what_has_become_readable_while_it_was_paused_must_not_be_forgotten() {
    pauses(|poll| {
        if let Some(operator) = connection(poll) {
            operator.connection.input.ready &= !operator.connection.input.paused;
        }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn what_a_wait_has_brought_must_be_looked_at_or_bytes_stay_unread() {
    pauses(forget_events);
}

// ---- flush against writable

/// JavaScript sends and waits until it is sent, while the kernel's buffer is full and the peer begins to read.
fn flushes(is_unix: bool, slip: impl Fn(&mut Poll) + Copy + Send + Sync + 'static) {
    explore(2, move || {
        let (stream, mut peer) = streams();
        fill(&stream);
        let (poll, mut desk) = scene_with(stream, is_unix);
        let block = poll.shared.table.alloc(1).unwrap();
        let [chunk, offset] = [block.chunk(), block.offset()];
        block.lend();
        let poll = attend(poll, slip);
        let _open = peer.try_clone().unwrap();
        let peer = thread::spawn(move || {
            for length in [1, 1 << 16] {
                enter_kernel();
                assert!(peer.read(&mut vec![0; length]).unwrap() > 0);
                HAPPENED.set();
            }
        });
        desk.put(SEND, [chunk, offset, 1]);
        desk.submissions.put([DONE, chunk, offset, 1, 0, 0, 0, 0]);
        desk.publish();
        desk.put(WATCH_DRAIN, [1, 0, 0]);
        desk.publish();
        desk.until(|record| record[0] == DRAINED);
        close(desk, [poll, peer]);
    });
}

/// Until the kernel takes no more.
fn fill(mut stream: &UnixStream) {
    socket2::SockRef::from(stream).set_send_buffer_size(1).unwrap();
    while stream.write(&[0; 1024]).is_ok_and(|written| written > 0) {}
}

#[test]
fn output_that_finds_the_kernel_full_is_sent_when_its_peer_reads() {
    flushes(true, nothing);
}

#[test]
fn output_of_a_socket_that_always_tells_of_room_is_sent_when_its_peer_reads() {
    flushes(false, nothing);
}

#[test]
#[should_panic(expected = "deadlock")]
fn who_does_not_ask_for_room_is_not_told_of_it() {
    flushes(true, |poll| {
        if let Some(operator) = connection(poll) {
            // Now it is asked no more, and was not asked from the beginning either.
            operator.is_unix = false;
        }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn what_a_wait_has_brought_must_be_looked_at_or_output_waits_for_ever() {
    flushes(false, forget_events);
}

// ---- a command against the poll's sleep

#[test]
fn a_command_that_comes_while_a_poll_falls_asleep_is_followed() {
    explore(2, || {
        let (poll, mut desk) = scene();
        let (stream, _peer) = streams();
        let poll = attend(poll, nothing);
        let inboxes = desk.inboxes.clone();
        let other = thread::spawn(move || {
            adopt(&inboxes, stream, true);
            HAPPENED.set();
        });
        desk.until(|record| record[0] == ACCEPT);
        close(desk, [poll, other]);
    });
}
