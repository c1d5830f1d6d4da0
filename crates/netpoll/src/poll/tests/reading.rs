use std::collections::HashSet;
use std::time::Duration;

use super::desk::submission::{INPUT, PAUSE, RESUME};
use super::desk::{Desk, Plan, Status, MS, SECOND};
use super::peer::pattern;
use crate::connection::Limits;
use crate::poll::Budget;

fn marked(read_high_water_mark: u32) -> Desk {
    let mut desk = Desk::new(Plan {
        limits: Limits { read_high_water_mark, ..Plan::default().limits },
        ..Plan::default()
    });
    desk.manners.credits = false;
    desk
}

#[test]
fn megabytes_arrive_unchanged() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(8 << 20);
    desk.peer_writes(&peer, &bytes);
    desk.until_arrived(book, bytes.len());
    assert!(desk.books[book].arrived == bytes);
    assert_eq!(desk.status(book), Status { generation: 1, flags: 0, read: 8 << 20, sent: 0 });
}

#[test]
fn many_connections_share_one_block() {
    let mut desk = Desk::default();
    desk.manners.gives_back = false;
    let address = desk.listen();
    let peers = (0..50).map(|_| desk.connect(&address)).collect::<Vec<_>>();
    for (peer, _) in &peers {
        peer.write(b"0123456789");
    }
    for (_, book) in &peers {
        desk.until_arrived(*book, 10);
        assert_eq!(desk.books[*book].arrived, b"0123456789");
    }
    assert_eq!(desk.table.blocks_out(), 1);
    let places = desk.books.iter().flat_map(|book| book.kept.clone()).collect::<HashSet<_>>();
    assert_eq!(places.len(), 50, "each has a place of its own in it");
}

#[test]
fn reading_stops_at_the_mark_and_goes_on_when_enough_is_consumed() {
    let mut desk = marked(1000);
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(&pattern(1500));
    desk.until_arrived(book, 1500);
    peer.write(b"more");
    desk.until_waiting(book, 4);
    desk.put(book, INPUT, [500, 1000, 0]);
    desk.idle();
    assert_eq!(desk.books[book].arrived.len(), 1500, "1000 are unread");
    desk.put(book, INPUT, [1, 1000, 0]);
    desk.until_arrived(book, 1504);
}

#[test]
fn a_raised_mark_alone_lets_reading_go_on() {
    let mut desk = marked(10);
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"0123456789");
    desk.until_arrived(book, 10);
    peer.write(b"more");
    desk.until_waiting(book, 4);
    desk.idle();
    desk.put(book, INPUT, [0, 11, 0]);
    desk.until_arrived(book, 14);
}

#[test]
fn a_paused_connection_is_not_read_and_a_resumed_one_is_without_a_further_event() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    peer.write(b"hello");
    desk.until_waiting(book, 5);
    desk.until("an event has told", |desk| desk.operator(book).connection.input.ready);
    desk.idle();
    assert_eq!((desk.books[book].arrived.len(), desk.stats(0).reads), (0, 0));
    desk.put(book, RESUME, [0; 3]);
    desk.turn();
    assert_eq!(desk.books[book].arrived, b"hello");
}

#[test]
fn what_a_visit_leaves_is_read_in_the_next_turns_although_nobody_tells_of_it_again() {
    let mut desk = marked(1 << 20);
    let address = desk.listen_unix();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    // Each ends a read, and a visit has four.
    (0..20).for_each(|_| peer.write_with_descriptor(b"piece"));
    desk.idle();
    desk.put(book, RESUME, [0; 3]);
    desk.turn();
    assert_eq!(desk.books[book].arrived.len(), 4 * 5);
    desk.until_arrived(book, 20 * 5);
}

#[test]
fn a_connection_that_is_paused_while_it_waits_for_its_turn_is_not_read() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.budget = Budget { visits: 0, ..Budget::default() };
    peer.write(b"hello");
    desk.until("it waits for its turn", |desk| desk.operator(book).is_listed);
    desk.put(book, PAUSE, [0; 3]);
    desk.budget = Budget::default();
    desk.idle();
    assert_eq!(desk.stats(0).reads, 0);
    desk.put(book, RESUME, [0; 3]);
    desk.until_arrived(book, 5);
}

#[test]
fn a_flood_on_one_connection_leaves_the_others_their_turn() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (flood, flooded) = desk.connect(&address);
    let (modest, other) = desk.connect(&address);
    let bytes = pattern(1 << 20);
    desk.budget = Budget { visits: 0, ..Budget::default() };
    let written = flood.write(&bytes);
    assert!(written > 512 * 1024, "{written} bytes are several visits' worth");
    desk.until("the flood is listed", |desk| desk.operator(flooded).is_listed);
    modest.write(b"me too");
    desk.until("both are listed", |desk| desk.operator(other).is_listed);
    desk.budget = Budget { visits: 1, ..Budget::default() };
    desk.turn();
    assert!(desk.seats[0].left.more);
    assert!((1..written).contains(&desk.books[flooded].arrived.len()), "one visit does not read it all");
    desk.turn();
    assert_eq!(desk.books[other].arrived, b"me too");
    desk.until_arrived(flooded, written);
    assert!(desk.books[flooded].arrived == bytes[..written]);
}

/// How much of a flood a turn reads `later` than another connection had a small request and a small answer.
fn read_of_flood_in_one_turn(later: Duration) -> usize {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (flood, flooded) = desk.connect(&address);
    let (modest, other) = desk.connect(&address);
    modest.write(b"?");
    desk.until_arrived(other, 1);
    desk.write(other, b"!");
    desk.peer_reads(&modest, 1);
    desk.pass(later);
    desk.budget = Budget { visits: 0, ..Budget::default() };
    let written = flood.write(&pattern(1 << 20));
    assert!(written > 512 * 1024, "{written} bytes are several visits' worth");
    desk.until("the flood is listed", |desk| desk.operator(flooded).is_listed);
    desk.until_waiting(flooded, 64 * 1024);
    desk.budget = Budget::default();
    desk.turn();
    desk.books[flooded].arrived.len()
}

#[test]
fn beside_small_requests_a_flood_is_read_in_small_parts_and_not_when_they_have_ceased() {
    let few = read_of_flood_in_one_turn(Duration::ZERO);
    // A read that has less than a block's worth is followed by one more.
    assert!((64 * 1024..144 * 1024).contains(&few), "{few} bytes");
    let many = read_of_flood_in_one_turn(SECOND);
    assert!(many >= 144 * 1024, "{many} bytes");
}

#[test]
fn a_turn_reads_no_more_bytes_than_its_budget_and_says_that_there_are_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let peers = [(); 3].map(|()| desk.connect(&address));
    desk.budget = Budget { visits: 0, ..Budget::default() };
    for (peer, book) in &peers {
        peer.write(b"0123456789");
        desk.until("it is listed", |desk| desk.operator(*book).is_listed);
    }
    // The read that reaches the budget is the last.
    desk.budget = Budget { bytes: 11, ..Budget::default() };
    desk.turn();
    let arrived = |desk: &Desk| desk.books.iter().map(|book| book.arrived.len()).collect::<Vec<_>>();
    assert_eq!((arrived(&desk), desk.seats[0].left.more), (vec![10, 10, 0], true));
    desk.turn();
    assert_eq!((arrived(&desk), desk.seats[0].left.more), (vec![10, 10, 10], false));
}

#[test]
fn a_turn_takes_no_more_records_than_its_budget_and_says_that_there_are_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.budget = Budget { records: 2, ..Budget::default() };
    for part in [b"one", b"two"] {
        desk.write(book, part);
    }
    desk.turn();
    assert_eq!((desk.seats[0].left.more, desk.status(book).sent), (true, 3));
    desk.turn();
    assert_eq!((desk.seats[0].left.more, desk.status(book).sent), (false, 6));
    assert_eq!(desk.peer_reads(&peer, 6), b"onetwo");
}

#[test]
fn a_slow_reader_holds_no_block_of_others_while_much_is_out() {
    let mut desk = Desk::new(Plan { max_memory: 16 << 20, ..Plan::default() });
    desk.manners.gives_back = false;
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let much = [(); 3].map(|()| desk.table.alloc(1 << 20).unwrap());
    peer.write(b"hello");
    desk.until_arrived(book, 5);
    assert_eq!(desk.books[book].arrived, b"hello");
    drop(much);
    desk.seats[0].poll.io.intake.release();
    assert_eq!(desk.table.bytes_out(), 4096, "the bytes have moved to a block of their own size");
}

#[test]
fn what_fills_much_of_its_block_stays_there_even_while_much_is_out() {
    let mut desk = Desk::new(Plan { max_memory: 16 << 20, ..Plan::default() });
    desk.manners.gives_back = false;
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let _much = [(); 3].map(|()| desk.table.alloc(1 << 20).unwrap());
    assert_eq!(peer.write(&pattern(20_000)), 20_000);
    desk.until_waiting_without_turns(book, 20_000);
    desk.until_arrived(book, 20_000);
    assert_eq!(desk.table.blocks_out(), 3 + 1, "a copy would take as large a block");
}

#[test]
fn nothing_to_do_means_no_deadline_and_no_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"hello");
    desk.until_arrived(book, 5);
    desk.idle();
    desk.pass(MS);
    assert_eq!((desk.seats[0].left.next_deadline, desk.seats[0].left.more), (None, false));
    assert_eq!(desk.stats(0).reads, 1, "a short read was the last, whatever is consumed then");
}

#[test]
fn what_is_behind_urgent_data_is_read_without_a_further_event() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    for _ in 0..3 {
        let before = desk.books[book].arrived.len();
        peer.write(b"before");
        peer.urge(b"!");
        peer.write(b"behind");
        desk.until("all of it has come", |desk| desk.books[book].arrived.len() >= before + 12);
        assert_eq!(&desk.books[book].arrived[before..], b"beforebehind");
    }
    desk.idle();
    assert!(!desk.operator(book).connection.input.urgent);
}
