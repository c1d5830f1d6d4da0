use std::sync::atomic::Ordering;
use std::time::Instant;

use super::desk::submission::{END, INPUT, PAUSE, RESUME};
use super::desk::{Desk, Plan, SECOND};
use super::peer::{pattern, Peer};
use crate::demand::Load;
use crate::inbox::Command;
use crate::poll::{Budget, Turn};

#[test]
fn the_bell_rings_once_for_a_batch() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let peers = (0..20).map(|_| desk.connect(&address)).collect::<Vec<_>>();
    desk.budget = Budget { visits: 0, ..Budget::default() };
    for (peer, book) in &peers {
        peer.write(b"hello");
        desk.until("it is listed", |desk| desk.operator(*book).is_listed);
    }
    let (bells, records) = (desk.bells(), desk.stats(0).records);
    desk.budget = Budget::default();
    desk.turn();
    assert_eq!((desk.bells() - bells, desk.stats(0).records - records), (1, 20));
    assert_eq!(desk.stats(0).doorbells, u64::from(desk.bells()));
}

#[test]
fn the_bell_does_not_ring_again_before_javascript_has_begun_to_drain() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.turn();
    let bells = desk.bells();
    for _ in 0..3 {
        peer.write(b"hello");
        desk.until_waiting_without_turns(book, 5);
        desk.wait();
        let now = desk.now;
        desk.seats[0].poll.turn(now, Budget::default()).unwrap();
    }
    assert_eq!((desk.bells(), desk.books[book].arrived.len()), (bells + 1, 0));
    desk.hear();
    assert_eq!(desk.books[book].arrived, b"hellohellohello");
}

#[test]
fn turns_without_news_ring_no_bell() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    let bells = desk.bells();
    desk.put(book, INPUT, [0, 1000, 0]);
    desk.write(book, b"hello");
    desk.idle();
    assert_eq!(desk.bells(), bells);
}

#[test]
fn rings_of_8_entries_lose_nothing_and_nothing_overtakes() {
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let address = desk.listen();
    let peers = (0..50).map(|_| Peer::connect(&address)).collect::<Vec<_>>();
    desk.until("all are accepted", |desk| desk.books.len() == 50);
    let bytes = pattern(3000);
    for part in bytes.chunks(1000) {
        for peer in &peers {
            peer.write(part);
        }
        desk.turn();
    }
    peers.iter().for_each(Peer::finish);
    desk.until("all have ended", |desk| desk.books.iter().all(|book| book.is_ended));
    assert!(desk.books.iter().all(|book| book.arrived == bytes));
    for book in 0..50 {
        let marked = [&[book as u8], &bytes[..100]].concat();
        marked.chunks(10).for_each(|part| desk.write(book, part));
        desk.put(book, END, [0; 3]);
    }
    let mut read = peers.iter().map(|peer| desk.peer_reads_to_end(peer).0).collect::<Vec<_>>();
    read.sort();
    for (book, bytes_read) in read.iter().enumerate() {
        assert_eq!(bytes_read[0] as usize, book);
        assert!(bytes_read[1..] == bytes[..100]);
    }
    desk.until("all are closed", |desk| desk.books.iter().all(|book| book.closed == Some(0)));
}

#[test]
fn a_backlogged_poll_neither_reads_nor_accepts_until_javascript_has_drained() {
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let address = desk.listen();
    let peers = (0..9).map(|_| desk.connect(&address)).collect::<Vec<_>>();
    desk.budget = Budget { visits: 0, ..Budget::default() };
    for (peer, book) in &peers {
        peer.write(b"hello");
        desk.until("it is listed", |desk| desk.operator(*book).is_listed);
    }
    let now = desk.now;
    let turn = |desk: &mut Desk| {
        desk.wait();
        desk.seats[0].poll.turn(now, Budget::default()).unwrap()
    };
    turn(&mut desk);
    assert!(desk.seats[0].is_backlogged(), "9 records do not fit");
    let (reads, accepts) = (desk.stats(0).reads, desk.stats(0).accepts);
    peers[0].0.write(b"again");
    desk.until_waiting_without_turns(peers[0].1, 5);
    let late = Peer::connect(&address);
    for _ in 0..5 {
        let left = turn(&mut desk);
        assert!(!left.more, "it does not spin either");
    }
    assert_eq!((desk.stats(0).reads, desk.stats(0).accepts), (reads, accepts));
    desk.hear();
    desk.budget = Budget::default();
    desk.until("the late one is accepted", |desk| desk.books.len() == 10);
    desk.until_arrived(peers[0].1, 10);
    peers[1..].iter().for_each(|(_, book)| desk.until_arrived(*book, 5));
    drop(late);
}

#[test]
fn records_that_have_waited_for_room_ring_the_bell_when_they_have_it() {
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let address = desk.listen();
    let _peers = (0..20).map(|_| Peer::connect(&address)).collect::<Vec<_>>();
    // The desk drains 8 when the bell rings and tells the poll; nothing but those that wait is new then.
    desk.until("all are told", |desk| desk.books.len() == 20);
}

#[test]
fn the_poll_rings_when_it_has_made_room_for_records_that_javascript_holds() {
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    // Nothing comes from the poll that would ring for another reason.
    (0..100).for_each(|_| desk.put(book, PAUSE, [0; 3]));
    desk.put(book, RESUME, [0; 3]);
    desk.write(book, b"hello");
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    peer.write(b"world");
    desk.until_arrived(book, 5);
    assert_eq!(desk.stats(0).stale_records, 0);
}

/// Waits as long as it takes, which the test's clock does not bound, and tells that it was not long.
fn ends_soon(desk: &mut Desk) -> bool {
    let (before, now) = (Instant::now(), desk.now);
    let patience = Turn { next_deadline: Some(now + 60 * SECOND), more: false, load: Load::default() };
    desk.seats[0].poll.wait(patience, now).unwrap();
    before.elapsed() < 30 * SECOND
}

#[test]
fn a_poll_that_is_about_to_sleep_looks_for_records_once_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.idle();
    desk.write(book, b"hello");
    desk.publish();
    assert!(ends_soon(&mut desk));
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
}

#[test]
fn a_poll_that_is_about_to_sleep_looks_for_commands_once_more() {
    let mut desk = Desk::default();
    desk.listen();
    desk.inboxes.send(0, Command::CloseListener(0));
    assert_eq!(desk.events(), 1, "the wake-up that came with it is taken");
    assert!(ends_soon(&mut desk));
    desk.turn();
    assert_eq!(desk.fallen, [(0, 0)]);
}

#[test]
fn a_poll_that_sleeps_says_so_and_can_be_woken() {
    let mut desk = Desk::default();
    desk.idle();
    desk.turn();
    let (sleeping, inboxes) = (desk.seats[0].sleeping(), desk.inboxes.clone());
    let javascript = std::thread::spawn(move || {
        let start = Instant::now();
        // As `publish` of JavaScript does it: whoever finds 1 there takes it and wakes the poll.
        while sleeping.compare_exchange(1, 0, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            assert!(start.elapsed() < 10 * SECOND, "the poll does not say that it sleeps");
            std::thread::yield_now();
        }
        inboxes.wake(0);
    });
    assert!(ends_soon(&mut desk));
    javascript.join().unwrap();
    desk.turn();
    assert_eq!(desk.stats(0).wakeups, 1);
}

#[test]
fn a_poll_that_is_awake_does_not_ask_to_be_woken() {
    let mut desk = Desk::default();
    desk.idle();
    assert_eq!(desk.seats[0].sleeping().load(Ordering::Relaxed), 0);
}

#[test]
fn a_backlogged_poll_reads_in_the_turn_that_finds_room_again() {
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let peers = (0..9).map(|_| Peer::connect(&address)).collect::<Vec<_>>();
    let now = desk.now;
    desk.until_backlogged();
    peer.write(b"hello");
    desk.until_waiting_without_turns(book, 5);
    desk.hear();
    desk.wait();
    desk.seats[0].poll.turn(now, Budget::default()).unwrap();
    assert_eq!(desk.status(book).read, 5);
    drop(peers);
}
