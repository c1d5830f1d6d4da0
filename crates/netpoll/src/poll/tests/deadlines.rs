use std::io::ErrorKind;
use std::time::Duration;

use super::desk::submission::{RESET, TIMER};
use super::desk::{number, Desk, Plan, MS, SECOND};
use super::peer::{pattern, Peer};
use crate::connection::Limits;
use crate::poll::TIMER_SLACK;
use crate::record::Cause;
use crate::sys;

const READ: u32 = 1;
const IDLE: u32 = 2;
const WRITE: u32 = 3;
const A_BIT: Duration = Duration::from_nanos(1);

fn desk(idle_timeout: Option<Duration>, write_timeout: Option<Duration>) -> Desk {
    let limits = Limits { idle_timeout, write_timeout, ..Plan::default().limits };
    Desk::new(Plan { limits, send_buffer: Some(4096), ..Plan::default() })
}

fn narrow(desk: &mut Desk) -> (Peer, usize) {
    let address = desk.listen();
    desk.adopt(Peer::connect_with(&address, Some(4096)))
}

#[test]
fn output_without_progress_is_reset_after_exactly_the_write_timeout() {
    let mut desk = desk(None, Some(SECOND));
    let (peer, book) = narrow(&mut desk);
    desk.block(book);
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + SECOND));
    desk.pass(SECOND - A_BIT);
    assert_eq!(desk.books[book].closed, None);
    desk.pass(A_BIT);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
    assert_eq!(desk.peer_reads_to_end(&peer).1.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_peer_that_takes_less_than_makes_room_is_slow_and_not_stalled() {
    let limits = Limits { write_timeout: Some(SECOND), ..Plan::default().limits };
    let mut desk = Desk::new(Plan { limits, send_buffer: Some(1 << 20), ..Plan::default() });
    let (peer, book) = narrow(&mut desk);
    desk.block(book);
    let held = |desk: &mut Desk| sys::unacknowledged(desk.operator(book).descriptor()).unwrap();
    for _ in 0..5 {
        let before = held(&mut desk);
        desk.until("it takes a little", |desk| {
            let is_taken = held(desk) < before;
            is_taken || peer.read().is_err()
        });
        desk.now += SECOND;
        desk.turn();
        assert!(desk.operator(book).connection.output.is_blocked, "no event tells of it");
        assert_eq!(desk.books[book].closed, None);
    }
    desk.pass(SECOND);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
}

#[test]
fn progress_begins_the_write_timeout_anew() {
    let mut desk = desk(None, Some(SECOND));
    let (peer, book) = narrow(&mut desk);
    let mut pending = desk.block(book).len();
    for _ in 0..5 {
        desk.pass(SECOND - A_BIT);
        desk.write(book, &pattern(256 * 1024));
        pending += 256 * 1024;
        let sent = desk.status(book).sent;
        desk.until("a little goes out", |desk| {
            pending -= peer.read().unwrap().map_or(0, |bytes| bytes.len());
            desk.status(book).sent > sent && desk.operator(book).connection.output.is_blocked
        });
    }
    desk.pass(SECOND - A_BIT);
    assert_eq!(desk.books[book].closed, None);
    desk.peer_reads(&peer, pending);
    desk.pass(10 * SECOND);
    assert_eq!(desk.books[book].closed, None, "nothing pending, nothing to time out");
}

/// Of one attempt to send more.
fn takes_nothing(desk: &mut Desk, book: usize) -> bool {
    let sends = desk.stats(0).sends;
    desk.operator(book).connection.output.is_blocked = false;
    desk.write(book, b"more");
    desk.turn();
    desk.stats(0).sends == sends + 1
}

#[test]
fn an_attempt_of_which_the_kernel_takes_nothing_is_no_progress() {
    let mut desk = desk(None, Some(SECOND));
    let (_peer, book) = narrow(&mut desk);
    desk.block(book);
    desk.until("no acknowledgement will make room any more, and none is left", |desk| {
        let in_flight = sys::tcp_info(desk.operator(book).descriptor()).unwrap().unacked;
        in_flight == 0 && takes_nothing(desk, book)
    });
    desk.pass(SECOND / 2);
    assert!(takes_nothing(&mut desk, book));
    assert!(desk.operator(book).connection.output.is_blocked);
    desk.pass(SECOND / 2);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
}

#[test]
fn after_a_failed_send_there_is_no_write_timeout_any_more() {
    let limits = Limits { write_timeout: Some(SECOND), ..Plan::default().limits };
    let mut desk =
        Desk::new(Plan { limits, max_memory: 16 << 20, send_buffer: Some(4096), ..Plan::default() });
    desk.manners.credits = false;
    let (peer, book) = narrow(&mut desk);
    peer.write(b"unread");
    desk.until_arrived(book, 6);
    desk.block(book);
    let held = (12 << 20) + (1 << 19);
    assert!(desk.table.charge(held));
    peer.reset();
    desk.until("the send has failed", |desk| desk.operator(book).connection.failure.is_some());
    desk.pass(2 * SECOND);
    assert_eq!(desk.books[book].closed, None, "what the kernel holds waits for memory");
    desk.table.discharge(held);
    assert!(desk.until_closed(book) > 0, "an errno");
}

#[test]
fn a_write_timeout_can_be_set_while_output_waits() {
    let mut desk = desk(None, None);
    let (_peer, book) = narrow(&mut desk);
    desk.block(book);
    desk.pass(3600 * SECOND);
    assert_eq!((desk.books[book].closed, desk.seats[0].left.next_deadline), (None, None));
    // The time without progress counts from when it began.
    desk.put(book, TIMER, [WRITE, 3_600_001, 0]);
    desk.pass(Duration::ZERO);
    assert_eq!(desk.books[book].closed, None);
    desk.pass(MS);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
}

#[test]
fn the_idle_timeout_fires_once_and_then_rests() {
    let mut desk = desk(Some(SECOND), None);
    let (_peer, book) = narrow(&mut desk);
    desk.pass(SECOND - A_BIT);
    assert_eq!(desk.books[book].timeouts, []);
    desk.pass(A_BIT);
    assert_eq!(desk.books[book].timeouts, [(IDLE, 0)]);
    desk.pass(10 * SECOND);
    assert_eq!(desk.books[book].timeouts.len(), 1);
    desk.put(book, TIMER, [IDLE, 500, 8]);
    desk.turn();
    desk.pass(SECOND / 2);
    assert_eq!(desk.books[book].timeouts, [(IDLE, 0), (IDLE, 8)]);
    assert_eq!(desk.books[book].closed, None, "JavaScript decides what follows");
}

#[test]
fn traffic_in_either_direction_moves_the_idle_timeout() {
    let mut desk = desk(Some(SECOND), None);
    let (peer, book) = narrow(&mut desk);
    desk.pass(SECOND / 2);
    peer.write(b"in");
    desk.until_arrived(book, 2);
    desk.pass(SECOND * 3 / 4);
    desk.write(book, b"out");
    desk.peer_reads(&peer, 3);
    desk.pass(SECOND - A_BIT);
    assert_eq!(desk.books[book].timeouts, []);
    desk.pass(A_BIT);
    assert_eq!(desk.books[book].timeouts, [(IDLE, 0)]);
}

#[test]
fn the_read_deadline_fires_with_its_sequence_and_the_last_one_holds() {
    let mut desk = desk(None, None);
    let (peer, book) = narrow(&mut desk);
    desk.put(book, TIMER, [READ, 1000, 1]);
    desk.turn();
    desk.put(book, TIMER, [READ, 2000, 2]);
    desk.turn();
    peer.write(b"bytes do not move it");
    desk.until_arrived(book, 20);
    desk.pass(2 * SECOND - A_BIT);
    assert_eq!(desk.books[book].timeouts, []);
    desk.pass(A_BIT);
    assert_eq!(desk.books[book].timeouts, [(READ, 2)]);
    desk.pass(10 * SECOND);
    assert_eq!(desk.books[book].timeouts.len(), 1);
}

#[test]
fn an_earlier_deadline_is_not_late_because_of_one_that_was_set_before() {
    let mut desk = desk(Some(60 * SECOND), None);
    let (_peer, book) = narrow(&mut desk);
    desk.put(book, TIMER, [READ, 100, 1]);
    desk.turn();
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + 100 * MS));
    desk.pass(100 * MS);
    assert_eq!(desk.books[book].timeouts, [(READ, 1)]);
}

#[test]
fn a_deadline_of_zero_disarms() {
    let mut desk = desk(Some(SECOND), None);
    let (_peer, book) = narrow(&mut desk);
    desk.put(book, TIMER, [READ, 100, 1]);
    desk.put(book, TIMER, [READ, 0, 2]);
    desk.put(book, TIMER, [IDLE, 0, 3]);
    desk.turn();
    desk.pass(10 * SECOND);
    assert_eq!(desk.books[book].timeouts, []);
}

#[test]
fn the_deadline_of_a_former_connection_does_not_reach_the_new_one_in_its_slot() {
    let mut desk = desk(None, None);
    let address = desk.listen();
    let (_old_peer, old) = desk.connect(&address);
    desk.put(old, TIMER, [READ, 100, 1]);
    desk.put(old, RESET, [0; 3]);
    desk.until_closed(old);
    desk.turn();
    let (_new_peer, new) = desk.connect(&address);
    assert_eq!(desk.books[new].token.slot, desk.books[old].token.slot);
    desk.pass(SECOND);
    assert_eq!(desk.books[new].timeouts, []);
}

#[test]
fn a_connection_that_lives_long_collects_no_timers() {
    let mut desk = desk(Some(60 * SECOND), None);
    let (peer, book) = narrow(&mut desk);
    for request in 0..1000 {
        desk.put(book, TIMER, [READ, 500, request]);
        desk.turn();
        peer.write(b"?");
        desk.until_arrived(book, request as usize + 1);
        desk.put(book, TIMER, [READ, 0, request]);
        desk.pass(SECOND);
    }
    let end = desk.now + 3600 * SECOND;
    let entries = std::iter::from_fn(|| desk.seats[0].poll.timers.pop_due(end)).count();
    assert!(entries < 100, "{entries} entries for one connection");
}

#[test]
fn connections_that_are_no_more_leave_no_timers_behind_and_those_of_the_others_stay() {
    let mut desk = desk(None, None);
    let address = desk.listen();
    let (_stays, stays) = desk.connect(&address);
    desk.put(stays, TIMER, [READ, 3_600_000, 1]);
    for _ in 0..TIMER_SLACK + 100 {
        let (_peer, book) = desk.connect(&address);
        desk.put(book, TIMER, [READ, 3_600_000, 1]);
        desk.put(book, RESET, [0; 3]);
        desk.until_closed(book);
    }
    let entries = desk.seats[0].poll.timers.len();
    assert!(entries < TIMER_SLACK + 100, "{entries} entries for one connection");
    desk.pass(3600 * SECOND);
    assert_eq!(desk.books[stays].timeouts, [(READ, 1)]);
}

#[test]
fn after_a_clock_that_has_jumped_each_deadline_fires_once_and_none_is_left() {
    let mut desk = desk(Some(10 * SECOND), None);
    let address = desk.listen();
    let ends = (0..20).map(|_| desk.connect(&address)).collect::<Vec<_>>();
    for (wait, (_, book)) in ends.iter().enumerate() {
        desk.put(*book, TIMER, [READ, 1 + wait as u32 * 100, 1]);
    }
    desk.turn();
    // As after a machine has slept.
    desk.pass(24 * 3600 * SECOND);
    desk.idle();
    for (_, book) in &ends {
        assert_eq!(desk.books[*book].timeouts, [(READ, 1), (IDLE, 0)]);
    }
    assert_eq!(desk.seats[0].left.next_deadline, None);
}
