use super::desk::submission::{END, INPUT, OPTION, RESET, SEND, SEND_PIN, WATCH_DRAIN};
use super::desk::{done, Desk, Lent, Plan, MS};
use super::peer::{pattern, Peer};

/// A desk whose sockets take little, and a peer that takes as little.
fn narrow() -> (Desk, Peer, usize) {
    let mut desk = Desk::new(Plan { send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.adopt(Peer::connect_with(&address, Some(4096)));
    (desk, peer, book)
}

#[test]
fn a_send_is_read_by_the_peer_and_done_gives_the_block_back() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let lent = desk.lend(0, b"hello");
    desk.send(book, lent);
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    assert_eq!((desk.table.blocks_out(), desk.status(book).sent), (1, 5));
    desk.put_record(0, done(lent));
    desk.turn();
    assert_eq!(desk.table.blocks_out(), 0);
}

#[test]
fn what_has_arrived_can_be_sent_from_where_it_lies() {
    let mut desk = Desk::default();
    desk.manners.gives_back = false;
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"echo");
    desk.until_arrived(book, 4);
    let lent = desk.books[book].kept[0];
    desk.send(book, lent);
    desk.give_back(book);
    assert_eq!(desk.peer_reads(&peer, 4), b"echo");
}

#[test]
fn more_ranges_than_one_call_takes_arrive_in_order() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(100 * 77);
    bytes.chunks(77).for_each(|part| desk.write(book, part));
    desk.turn();
    assert_eq!(desk.stats(0).sends, 4, "32 ranges each");
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
}

#[test]
fn behind_a_peer_that_does_not_read_output_waits_and_then_goes_out_in_order() {
    let (mut desk, peer, book) = narrow();
    let mut bytes = desk.block(book);
    let more = pattern(300_000);
    desk.write(book, &more);
    bytes.extend(more);
    desk.idle();
    let sends = desk.stats(0).sends;
    desk.idle();
    assert_eq!(desk.stats(0).sends, sends, "a blocked socket is not tried again");
    assert!(desk.status(book).sent < bytes.len() as u64);
    assert!(desk.table.blocks_out() > 0, "what waits keeps its blocks although DONE was said");
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
    assert_eq!((desk.status(book).sent, desk.table.blocks_out()), (bytes.len() as u64, 0));
}

/// Sends 8 MiB to a peer that reads all the time, and returns the most that a turn has sent.
fn most_in_one_turn(beside_small_requests: bool) -> u64 {
    let mut desk = Desk::new(Plan { ring_entries: 4096, ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let (modest, other) = desk.connect(&address);
    if beside_small_requests {
        modest.write(b"?");
        desk.until_arrived(other, 1);
        desk.write(other, b"!");
        desk.peer_reads(&modest, 1);
    }
    let bytes = pattern(8 << 20);
    for part in bytes.chunks(4 * 1024) {
        let lent = desk.lend(0, part);
        desk.send(book, lent);
        desk.put_record(0, done(lent));
    }
    let drained = peer.drain(bytes.len());
    let (mut before, mut most) = (0, 0);
    desk.until("all is sent", |desk| {
        let sent = desk.status(book).sent;
        most = most.max(sent - before);
        before = sent;
        let output = &desk.operator(book).connection.output;
        let is_unfinished = !output.queue.is_empty() && !output.is_blocked;
        assert!(!is_unfinished || desk.seats[0].left.more || sent == 0);
        sent == bytes.len() as u64
    });
    assert!(drained.join().unwrap() == bytes);
    most
}

#[test]
fn a_fast_reader_leaves_the_others_their_turn_and_gets_everything() {
    let most = most_in_one_turn(false);
    assert!(most <= 2 << 20, "{most} bytes in one turn");
}

#[test]
fn beside_small_requests_a_fast_reader_gets_small_parts() {
    let most = most_in_one_turn(true);
    assert!(most <= 64 * 1024, "{most} bytes in one turn");
}

#[test]
fn drained_comes_when_the_watched_count_is_reached_and_not_before() {
    let (mut desk, peer, book) = narrow();
    let total = desk.block(book).len();
    let target = desk.status(book).sent + 1;
    desk.put(book, WATCH_DRAIN, [target as u32, 0, 0]);
    desk.idle();
    let mut read = 0;
    desk.until("it is drained", |desk| {
        let reached = desk.status(book).sent >= target;
        assert_eq!(desk.books[book].drained, usize::from(reached));
        read += peer.read().unwrap().map_or(0, |bytes| bytes.len());
        reached
    });
    desk.peer_reads(&peer, total - read);
    assert_eq!(desk.books[book].drained, 1, "a watch is answered once");
}

#[test]
fn of_two_watches_the_last_holds() {
    let (mut desk, peer, book) = narrow();
    let total = desk.block(book).len();
    desk.put(book, WATCH_DRAIN, [total as u32, 0, 0]);
    desk.put(book, WATCH_DRAIN, [total as u32 + 1, 0, 0]);
    desk.peer_reads(&peer, total);
    desk.idle();
    assert_eq!(desk.books[book].drained, 0);
    desk.write(book, b"!");
    desk.until("it is drained", |desk| desk.books[book].drained == 1);
}

#[test]
fn a_watch_of_a_count_that_is_reached_is_answered_at_once() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    desk.put(book, WATCH_DRAIN, [0; 3]);
    desk.turn();
    assert_eq!(desk.books[book].drained, 1);
}

#[test]
fn a_watch_is_answered_when_the_write_side_has_ended() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    desk.put(book, END, [0; 3]);
    desk.put(book, WATCH_DRAIN, [1000, 0, 0]);
    desk.turn();
    assert_eq!(desk.books[book].drained, 1);
}

#[test]
fn the_small_rest_of_a_shared_block_does_not_keep_it_while_the_peer_is_slow() {
    let (mut desk, peer, book) = narrow();
    let mut bytes = Vec::new();
    desk.until("the output is blocked", |desk| {
        let is_blocked = desk.operator(book).connection.output.is_blocked;
        if !is_blocked {
            let lent = desk.lend(64 * 1024, &pattern(1000));
            desk.send(book, lent);
            desk.put_record(0, done(lent));
            bytes.extend(pattern(1000));
        }
        is_blocked
    });
    assert_eq!(desk.table.bytes_out(), 4096, "the rest has a block of its own size");
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
}

#[test]
fn a_pin_is_given_back_when_it_is_sent_and_not_before() {
    let (mut desk, peer, book) = narrow();
    let blocked = desk.block(book);
    let pin = desk.pin(b"pinned");
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.idle();
    assert_eq!(desk.unpinned, []);
    let bytes = desk.peer_reads(&peer, blocked.len() + 6);
    assert_eq!(&bytes[blocked.len()..], b"pinned");
    desk.idle();
    assert_eq!(desk.unpinned, [pin]);
}

#[test]
fn a_pin_that_waits_is_given_back_after_a_reset() {
    let (mut desk, _peer, book) = narrow();
    desk.block(book);
    let pin = desk.pin(b"pinned");
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.turn();
    desk.put(book, RESET, [0; 3]);
    desk.until_closed(book);
    assert_eq!(desk.unpinned, [pin]);
}

#[test]
fn a_pin_for_a_connection_that_is_no_more_is_given_back() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    desk.put(book, RESET, [0; 3]);
    desk.until_closed(book);
    let (pin, stale) = (desk.pin(b"pinned"), desk.stats(0).stale_records);
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.turn();
    assert_eq!((&desk.unpinned[..], desk.stats(0).stale_records), (&[pin][..], stale + 1));
}

#[test]
fn what_is_sent_after_end_is_dropped_and_given_back() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.write(book, b"before");
    desk.put(book, END, [0; 3]);
    desk.write(book, b"after");
    let pin = desk.pin(b"pinned");
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    let (bytes, end) = desk.peer_reads_to_end(&peer);
    assert_eq!((&bytes[..], end.is_ok()), (&b"before"[..], true));
    assert_eq!((&desk.unpinned[..], desk.table.blocks_out()), (&[pin][..], 0));
}

#[test]
fn records_of_what_is_not_there_are_counted_and_change_nothing() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let lent = desk.lend(0, b"hello");
    let token = desk.books[book].token;
    let to =
        |slot: u32, generation: u32, kind: u32, [a, b, c]: [u32; 3]| [kind, slot, generation, a, b, c, 0, 0];
    let hello = [lent.chunk, lent.offset, 5];
    let dropped = [
        to(token.slot, token.generation + 1, SEND, hello),
        to(token.slot, token.generation - 1, SEND, hello),
        to(token.slot + 1, token.generation, SEND, hello),
        to(u32::MAX, u32::MAX, SEND, hello),
        to(token.slot, token.generation + 1, RESET, [0; 3]),
        to(token.slot, token.generation + 1, END, [0; 3]),
        to(token.slot, token.generation + 1, INPUT, [0, 0, 0]),
        to(token.slot, token.generation + 1, WATCH_DRAIN, [0; 3]),
        to(token.slot, token.generation, SEND, [lent.chunk, lent.offset, 0]),
        to(token.slot, token.generation, SEND, [lent.chunk, lent.offset, 4097]),
        to(token.slot, token.generation, SEND, [lent.chunk, lent.offset + 4096, 5]),
        to(token.slot, token.generation, SEND, [lent.chunk + 1, lent.offset, 5]),
        to(token.slot, token.generation, SEND, [u32::MAX; 3]),
        to(token.slot, token.generation, SEND_PIN, [5, 0, 0]),
        to(token.slot, token.generation, OPTION, [77, 0, 0]),
        done(Lent { offset: lent.offset + 4096, ..lent }),
        [1, lent.chunk, lent.offset, 0, 0, 0, 0, 0],
        [1, lent.chunk, lent.offset, 2, 0, 0, 0, 0],
        [0; 8],
        [14, token.slot, token.generation, 0, 0, 0, 0, 0],
        [u32::MAX; 8],
    ];
    dropped.into_iter().for_each(|record| desk.put_record(0, record));
    desk.idle();
    assert_eq!(desk.stats(0).stale_records, dropped.len() as u64);
    assert_eq!((desk.books[book].closed, desk.books[book].drained, desk.status(book).sent), (None, 0, 0));
    desk.send(book, lent);
    desk.put_record(0, done(lent));
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    peer.write(b"world");
    desk.until_arrived(book, 5);
}

#[test]
fn a_range_that_was_given_back_cannot_be_sent() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    let lent = desk.lend(0, b"hello");
    desk.put_record(0, done(lent));
    desk.send(book, lent);
    desk.idle();
    assert_eq!((desk.stats(0).stale_records, desk.status(book).sent), (1, 0));
}

#[test]
fn no_delay_is_on_from_the_start_and_can_be_cleared() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    for (value, expected) in [(None, true), (Some(0), false), (Some(1), true)] {
        if let Some(value) = value {
            desk.put(book, OPTION, [1, value, 0]);
            desk.turn();
        }
        let descriptor = desk.operator(book).descriptor();
        assert_eq!(socket2::SockRef::from(&descriptor).tcp_nodelay().unwrap(), expected);
    }
}

#[test]
fn options_reach_the_socket() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    desk.put(book, OPTION, [1, 0, 0]);
    desk.put(book, OPTION, [2, 1, 33]);
    desk.put(book, OPTION, [3, 1234, 0]);
    desk.turn();
    let descriptor = desk.operator(book).descriptor();
    let socket = socket2::SockRef::from(&descriptor);
    assert!(!socket.tcp_nodelay().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 33);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(1234 * MS));
}

#[test]
fn a_unix_socket_is_asked_for_room_only_while_output_waits() {
    let mut desk = Desk::new(Plan { send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen_unix();
    let (peer, book) = desk.connect(&address);
    desk.write(book, b"hello");
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    assert_eq!(desk.events(), 0, "a peer that reads is no news");

    let bytes = desk.block(book);
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes, "while output waits it is");
    desk.idle();
    desk.write(book, b"hello");
    assert_eq!(desk.peer_reads(&peer, 5), b"hello");
    assert_eq!(desk.events(), 0, "and then no more");
}
