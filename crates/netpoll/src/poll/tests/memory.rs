use std::sync::atomic::Ordering;

use socket2::SockAddr;

use super::desk::submission::{INPUT, RESET, SEND_PIN};
use super::desk::{number, Desk, Plan, MS};
use super::peer::{pattern, Peer};
use crate::poll::scarcity::{BLOCKED_PATIENCE, FAVOR, FULL_PATIENCE, LAST_RESERVE, SCARCITY_DELAY};
use crate::poll::Budget;
use crate::record::Cause;
use crate::tests::keep;

const MIB: u64 = 1 << 20;

fn scarce() -> Desk {
    Desk::new(Plan { max_memory: 16 * MIB, send_buffer: Some(4096), ..Plan::default() })
}

/// A connection whose message of `unread` bytes is not finished.
fn unfinished(desk: &mut Desk, address: &SockAddr, unread: usize, wanted: bool) -> (Peer, usize) {
    desk.manners.credits = false;
    let (peer, book) = desk.connect(address);
    peer.write(&pattern(unread));
    desk.until_arrived(book, unread);
    desk.put(book, INPUT, [0, 1 << 20, u32::from(wanted)]);
    (peer, book)
}

/// Bytes that have arrived on each connection since `before`, after both peers have written `more`.
fn arrived_after(desk: &mut Desk, connections: &[(Peer, usize)], more: &[u8]) -> Vec<usize> {
    let before = connections.iter().map(|(_, book)| desk.books[*book].arrived.len()).collect::<Vec<_>>();
    for (peer, book) in connections.iter().filter(|_| !more.is_empty()) {
        peer.write(more);
        desk.until_waiting_without_turns(*book, more.len());
    }
    desk.idle();
    connections
        .iter()
        .zip(before)
        .map(|((_, book), before)| desk.books[*book].arrived.len() - before)
        .collect()
}

#[test]
fn at_three_quarters_who_has_something_unread_waits_and_who_has_nothing_reads_on() {
    let mut desk = scarce();
    let address = desk.listen();
    let connections = [unfinished(&mut desk, &address, 10, false), desk.connect(&address)];
    let held = 12 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 5]);
    assert_eq!(desk.seats[0].poll.ready.len(), 1, "it waits for its turn once");
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + SCARCITY_DELAY), "it looks again soon");
    assert!(!desk.seats[0].left.more, "and does not spin meanwhile");
    desk.table.discharge(held);
    desk.pass(SCARCITY_DELAY);
    assert_eq!(desk.books[0].arrived.len(), 15);
}

#[test]
fn the_longest_of_the_messages_that_more_is_wanted_of_goes_on_alone() {
    for part in [12, 14] {
        let mut desk = scarce();
        let address = desk.listen();
        let plans = [(10, true), (30, true), (50, false), (20, true)];
        let connections = plans.map(|(unread, wanted)| unfinished(&mut desk, &address, unread, wanted));
        let held = part * MIB - desk.table.bytes_out();
        assert!(desk.table.charge(held));
        assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 5, 0, 0], "at {part} MiB");
        // When nothing comes of it any more, it is the next one's turn.
        desk.pass(FAVOR);
        desk.idle();
        assert_eq!(desk.books.iter().map(|book| book.arrived.len()).collect::<Vec<_>>(), [10, 35, 50, 25]);
        desk.table.discharge(held);
    }
}

#[test]
fn a_favorite_whose_message_is_used_makes_room_for_the_next_one_at_once() {
    let mut desk = scarce();
    let address = desk.listen();
    let connections = [10, 30].map(|unread| unfinished(&mut desk, &address, unread, true));
    let held = 14 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 5]);
    desk.put(1, INPUT, [35, 1 << 20, 0]);
    desk.idle();
    assert_eq!(desk.books[0].arrived.len(), 15);
    desk.table.discharge(held);
}

#[test]
fn at_seven_eighths_those_who_have_nothing_unread_read_one_after_the_other() {
    let mut desk = scarce();
    let address = desk.listen();
    desk.manners.credits = false;
    let connections = [(); 2].map(|()| desk.connect(&address));
    let held = 14 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [5, 0]);
    desk.put(0, INPUT, [5, 1 << 20, 0]);
    desk.idle();
    assert_eq!(desk.books[1].arrived, b"hello");
    desk.table.discharge(held);
}

#[test]
fn when_memory_is_full_nobody_is_read() {
    let mut desk = scarce();
    let address = desk.listen();
    let connections = [unfinished(&mut desk, &address, 10, true), desk.connect(&address)];
    assert!(desk.table.charge(15 * MIB + 1 - desk.table.bytes_out()));
    // The intake's own block is given up, so there is some room again.
    let given_up = desk.table.bytes_out();
    desk.turn();
    assert!(desk.table.charge(given_up - desk.table.bytes_out()));
    let before = desk.stats(0).reads;
    for (peer, _) in &connections {
        peer.write(b"hello");
    }
    desk.until("both have news", |desk| (0..2).all(|book| desk.operator(book).connection.input.ready));
    desk.idle();
    assert_eq!(desk.stats(0).reads, before);
    desk.table.discharge(15 * MIB + 1 - desk.table.bytes_out());
}

#[test]
fn when_memory_is_full_for_a_moment_the_favorite_reads_into_the_last_of_it() {
    let mut desk = scarce();
    let address = desk.listen();
    let connections = [10, 30].map(|unread| unfinished(&mut desk, &address, unread, true));
    let held = 15 * MIB + MIB / 2 - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 0]);
    desk.pass(LAST_RESERVE);
    desk.idle();
    assert_eq!(desk.books.iter().map(|book| book.arrived.len()).collect::<Vec<_>>(), [10, 35]);
    desk.table.discharge(held);
}

#[test]
fn when_memory_stays_full_the_longest_message_that_more_is_wanted_of_fails() {
    let mut desk = scarce();
    let address = desk.listen();
    let plans = [(10, true), (30, true), (50, false)];
    let _peers = plans.map(|(unread, wanted)| unfinished(&mut desk, &address, unread, wanted).0);
    desk.turn();
    assert!(desk.table.charge(15 * MIB + 1));
    let closed = |desk: &Desk| desk.books.iter().map(|book| book.closed).collect::<Vec<_>>();
    desk.idle();
    desk.pass(FULL_PATIENCE - MS);
    assert_eq!(closed(&desk), [None; 3], "handlers that run may bring some back");
    desk.pass(SCARCITY_DELAY);
    assert_eq!(closed(&desk), [None, Some(number(Cause::INPUT_LIMIT)), None]);
    desk.pass(FULL_PATIENCE - MS);
    assert_eq!(closed(&desk)[0], None, "and so may that");
    desk.table.discharge(15 * MIB + 1);
}

#[test]
fn at_seven_eighths_output_whose_peer_takes_nothing_fails_after_a_second() {
    let mut desk = scarce();
    let address = desk.listen();
    let peers = [(); 2].map(|()| desk.adopt(Peer::connect_with(&address, Some(4096))));
    let [(_stalled, first), (_moving, second)] = &peers;
    desk.block(*first);
    desk.write(*first, &pattern(1 << 20));
    desk.now += BLOCKED_PATIENCE / 2;
    desk.block(*second);
    let held = 14 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    desk.turn();
    let closed = |desk: &Desk| [*first, *second].map(|book| desk.books[book].closed);
    assert_eq!(closed(&desk), [None; 2]);
    desk.pass(BLOCKED_PATIENCE / 2);
    assert_eq!(closed(&desk), [Some(number(Cause::OUTPUT_LIMIT)), None]);
    desk.table.discharge(held);
}

#[test]
fn javascript_is_told_that_memory_is_scarce_and_some_time_after_that_it_is_not() {
    let mut desk = scarce();
    let scarce = |desk: &Desk| desk.seats[0].scarce().load(Ordering::Relaxed);
    desk.turn();
    let bells = desk.bells();
    assert!(desk.table.charge(12 * MIB));
    desk.turn();
    desk.turn();
    assert_eq!((scarce(&desk), desk.bells()), (1, bells + 1), "once, with the bell");
    desk.table.discharge(12 * MIB);
    desk.turn();
    assert_eq!(scarce(&desk), 1, "it may be scarce again at once");
    desk.pass(100 * MS);
    assert_eq!(scarce(&desk), 0);
}

#[test]
fn nobody_is_reset_when_the_blocks_of_the_next_reads_are_enough() {
    let mut desk = scarce();
    let address = desk.listen();
    let (peer, idle) = desk.connect(&address);
    let (_narrow, blocked) = desk.adopt(Peer::connect_with(&address, Some(4096)));
    desk.block(blocked);
    peer.write(b"hello");
    desk.until_arrived(idle, 5);
    desk.turn();
    let held = 15 * MIB + 1 - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    desk.turn();
    assert_eq!([idle, blocked].map(|book| desk.books[book].closed), [None; 2]);
    desk.table.discharge(held);
}

#[test]
fn output_goes_out_while_reading_rests() {
    let mut desk = scarce();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    assert!(desk.table.charge(13 * MIB));
    desk.write(book, b"hello");
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    desk.table.discharge(13 * MIB);
}

#[test]
fn at_the_limit_the_connection_with_most_pending_output_is_reset() {
    let mut desk = scarce();
    let address = desk.listen();
    let narrow = |desk: &mut Desk| desk.adopt(Peer::connect_with(&address, Some(4096)));
    let ((_light_peer, light), (_heavy_peer, heavy)) = (narrow(&mut desk), narrow(&mut desk));
    let (_idle_peer, idle) = desk.connect(&address);
    desk.block(light);
    desk.block(heavy);
    desk.write(heavy, &pattern(9 << 20));
    desk.turn();
    let used = desk.table.bytes_out();
    assert!(desk.table.charge(15 * MIB + 1 - used));
    desk.turn();
    let closed = |book: usize| desk.books[book].closed;
    assert_eq!(closed(heavy), Some(number(Cause::OUTPUT_LIMIT)));
    assert_eq!((closed(light), closed(idle)), (None, None));
    desk.table.discharge(15 * MIB + 1 - used);
    desk.pass(10 * MS);
    assert_eq!(desk.books[light].closed, None, "one was enough");
}

#[test]
fn at_the_limit_connections_are_reset_one_at_a_time() {
    let mut desk = scarce();
    let address = desk.listen();
    let peers = [(); 2].map(|()| desk.adopt(Peer::connect_with(&address, Some(4096))));
    // Each of them alone is to blame.
    let much = keep(pattern(9 << 20));
    for (_, book) in &peers {
        let pin = desk.pin(much);
        desk.put(*book, SEND_PIN, [pin, 0, 0]);
        desk.turn();
    }
    let closed = |desk: &Desk| desk.books.iter().filter(|book| book.closed.is_some()).count();
    // Memory stays short, whoever goes.
    let (charged, out) = (16 * MIB - desk.table.bytes_out(), desk.table.bytes_out());
    assert!(desk.table.charge(charged));
    desk.turn();
    let freed = out - desk.table.bytes_out();
    assert!(desk.table.charge(freed));
    desk.idle();
    assert_eq!(closed(&desk), 1, "what it held may be on its way back");
    desk.pass(SCARCITY_DELAY);
    assert_eq!(closed(&desk), 2);
    desk.table.discharge(charged + freed);
}

#[test]
fn at_the_limit_nobody_is_reset_for_having_nothing_pending() {
    let mut desk = scarce();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    assert!(desk.table.charge(16 * MIB));
    desk.idle();
    assert_eq!(desk.books[book].closed, None);
    desk.table.discharge(16 * MIB);
    peer.write(b"hello");
    desk.until_arrived(book, 5);
}

#[test]
fn blocks_that_only_wait_for_the_next_read_are_given_up_at_the_limit() {
    let mut desk = scarce();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"hello");
    desk.until_arrived(book, 5);
    desk.turn();
    assert!(desk.table.blocks_out() > 0);
    assert!(desk.table.charge(15 * MIB + 1 - desk.table.bytes_out()));
    desk.turn();
    assert_eq!(desk.table.blocks_out(), 0);
    desk.table.discharge(15 * MIB + 1 - 64 * 1024);
}

#[test]
fn a_connection_that_finds_no_memory_is_read_when_there_is_some_without_a_further_event() {
    let mut desk = Desk::new(Plan { max_memory: 4 * MIB, ..Plan::default() });
    let address = desk.listen();
    let peers = [(); 2].map(|()| desk.connect(&address));
    desk.budget = Budget { visits: 0, ..Budget::default() };
    for (peer, book) in &peers {
        peer.write(b"hello");
        desk.until("it is listed", |desk| desk.operator(*book).is_listed);
    }
    // The first one's block leaves too little for the large one that the second has learnt to ask for.
    (0..2).for_each(|_| desk.operator(1).connection.input.size.learn(1 << 20));
    let held = 3 * MIB - 1 - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    desk.budget = Budget::default();
    desk.turn();
    assert_eq!([0, 1].map(|book| desk.books[book].arrived.len()), [5, 0]);
    assert!(!desk.seats[0].left.more, "it does not spin");
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + SCARCITY_DELAY), "and looks again soon");
    desk.table.discharge(held);
    desk.pass(SCARCITY_DELAY);
    assert_eq!(desk.books[1].arrived, b"hello");
}

#[test]
fn without_connections_no_block_is_out() {
    let mut desk = scarce();
    let address = desk.listen();
    for _ in 0..2 {
        let (peer, book) = desk.connect(&address);
        peer.write(b"hello");
        desk.until_arrived(book, 5);
        assert!(desk.table.blocks_out() > 0);
        desk.put(book, RESET, [0; 3]);
        desk.until_closed(book);
        desk.turn();
        assert_eq!(desk.table.blocks_out(), 0);
    }
}

#[test]
fn a_favorite_that_trickles_gives_way_and_one_that_makes_progress_does_not() {
    for (piece, is_kept) in [(1, false), (64 * 1024, true)] {
        let mut desk = scarce();
        let address = desk.listen();
        let connections = [10, 30].map(|unread| unfinished(&mut desk, &address, unread, true));
        // The blocks of the reads come and go above it: below it everybody would be read.
        let held = 12 * MIB;
        assert!(desk.table.charge(held));
        assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 5]);
        for _ in 0..3 {
            desk.now += FAVOR / 4;
            let arrived = desk.books[1].arrived.len();
            desk.peer_writes(&connections[1].0, &pattern(piece));
            desk.until_arrived(1, arrived + piece);
        }
        desk.pass(FAVOR / 4);
        desk.idle();
        assert_eq!(desk.books[0].arrived.len(), if is_kept { 10 } else { 15 }, "{piece} bytes at a time");
        desk.table.discharge(held);
    }
}

/// The same with so many polls; connections are given to them in turns.
fn scarce_with(polls: usize) -> Desk {
    Desk::new(Plan { polls, max_memory: 16 * MIB, send_buffer: Some(4096), ..Plan::default() })
}

#[test]
fn of_all_polls_together_one_message_goes_on_alone_and_the_longest_of_the_others_is_next() {
    for part in [12, 14] {
        let mut desk = scarce_with(4);
        let address = desk.listen();
        let plans = [(10, true), (20, true), (50, false), (30, true)];
        let connections = plans.map(|(unread, wanted)| unfinished(&mut desk, &address, unread, wanted));
        assert_eq!([0, 1, 2, 3].map(|book| desk.books[book].poll), [0, 1, 2, 3]);
        let held = part * MIB - desk.table.bytes_out();
        assert!(desk.table.charge(held));
        // The first poll looks first, and knows of no others.
        for expected in [[5, 0, 0, 0], [0, 0, 0, 5], [0, 5, 0, 0], [0; 4]] {
            let more: &[u8] = if expected[0] == 5 { b"hello" } else { b"" };
            assert_eq!(arrived_after(&mut desk, &connections, more), expected, "at {part} MiB");
            desk.now += FAVOR;
        }
        desk.table.discharge(held);
    }
}

#[test]
fn when_memory_stays_full_the_longest_message_of_all_polls_fails_and_no_other() {
    let mut desk = scarce_with(4);
    let address = desk.listen();
    let plans = [(10, true), (20, true), (50, false), (30, true)];
    let _peers = plans.map(|(unread, wanted)| unfinished(&mut desk, &address, unread, wanted).0);
    desk.turn();
    assert!(desk.table.charge(15 * MIB + 1));
    desk.idle();
    desk.pass(FULL_PATIENCE);
    desk.idle();
    let closed = desk.books.iter().map(|book| book.closed).collect::<Vec<_>>();
    assert_eq!(closed, [None, None, None, Some(number(Cause::INPUT_LIMIT))]);
    desk.table.discharge(15 * MIB + 1);
}

#[test]
fn a_favorite_of_a_poll_that_dies_leaves_the_turn_to_the_others() {
    let mut desk = scarce_with(2);
    let address = desk.listen();
    let connections = [10, 30].map(|unread| unfinished(&mut desk, &address, unread, true));
    let held = 14 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    connections[1].0.write(b"hello");
    desk.until_arrived(1, 35);
    connections[0].0.write(b"hello");
    desk.until_waiting_without_turns(0, 5);
    desk.idle();
    assert_eq!(desk.books[0].arrived.len(), 10, "the other one has its time");
    desk.give_back(1);
    desk.lose_poll();
    desk.until_arrived(0, 15);
    desk.table.discharge(held);
}

#[test]
fn a_favorite_that_was_chosen_before_anybody_wanted_more_gives_way_to_a_longer_message() {
    let mut desk = scarce();
    let address = desk.listen();
    let connections = [unfinished(&mut desk, &address, 30, false), desk.connect(&address)];
    let held = 14 * MIB - desk.table.bytes_out();
    assert!(desk.table.charge(held));
    assert_eq!(arrived_after(&mut desk, &connections, b"hello"), [0, 5]);
    desk.put(0, INPUT, [0, 1 << 20, 1]);
    desk.put(1, INPUT, [0, 1 << 20, 1]);
    desk.idle();
    assert_eq!(desk.books[0].arrived.len(), 35);
    desk.table.discharge(held);
}
