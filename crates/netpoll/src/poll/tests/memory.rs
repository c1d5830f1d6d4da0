use super::desk::submission::{INPUT, RESET};
use super::desk::{done, number, Desk, Plan, MS};
use super::peer::{pattern, Peer};
use crate::poll::{Budget, SCARCITY_DELAY};
use crate::record::Cause;

const MIB: u64 = 1 << 20;

fn scarce() -> Desk {
    Desk::new(Plan { max_memory: 16 * MIB, send_buffer: Some(4096), ..Plan::default() })
}

#[test]
fn reading_stops_when_three_quarters_are_out_and_goes_on_after_done() {
    let mut desk = scarce();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let (most, rest) = ([(); 11].map(|()| desk.lend(MIB as u32, b"")), desk.lend(MIB as u32, b""));
    peer.write(b"hello");
    desk.until("an event has told", |desk| desk.operator(book).connection.input.ready);
    desk.idle();
    (0..3).for_each(|_| desk.put(book, INPUT, [0, 1000, 0]));
    desk.turn();
    assert_eq!(desk.seats[0].poll.ready.len(), 1, "it waits for its turn once");
    assert_eq!((desk.books[book].arrived.len(), desk.stats(0).reads), (0, 0));
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + SCARCITY_DELAY), "it looks again soon");
    assert!(!desk.seats[0].left.more, "and does not spin meanwhile");
    desk.put_record(0, done(rest));
    desk.turn();
    assert_eq!(desk.books[book].arrived, b"hello");
    most.into_iter().for_each(|lent| desk.put_record(0, done(lent)));
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
    desk.write(heavy, &pattern(2 << 20));
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
    peers.iter().for_each(|(_, book)| drop(desk.block(*book)));
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
