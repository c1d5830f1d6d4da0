use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

use super::desk::submission::{CLOSE, END, RESET, SEND, SEND_LENT, TIMER, WATCH_DRAIN};
use super::desk::{done, number, Desk, Plan, MS, SECOND};
use super::peer::{pattern, Peer};
use crate::acceptor::Accepted;
use crate::connection::Limits;
use crate::inbox::{Command, LoadBalance};
use crate::poll::moves::MOVES_PER_TURN;
use crate::poll::Budget;
use crate::record::{Cause, Deadline};

/// A desk with so many polls, and a connection of the last one.
fn desk(plan: Plan) -> (Desk, Peer, usize) {
    let mut desk = Desk::new(plan);
    let address = desk.listen();
    let last = desk.seats.len() - 1;
    loop {
        let (peer, book) = desk.connect(&address);
        if desk.books[book].poll == last {
            return (desk, peer, book);
        }
        desk.put(book, RESET, [0; 3]);
        desk.until_closed(book);
    }
}

fn two_polls() -> (Desk, Peer, usize) {
    desk(Plan { polls: 2, ..Plan::default() })
}

/// Lets its poll retire, and waits until the connection has come to another one.
fn move_away(desk: &mut Desk, book: usize) {
    let old = desk.books[book].poll;
    desk.inboxes.retire(old);
    desk.until("it has arrived", |desk| desk.books[book].poll != old);
}

fn until_told(desk: &mut Desk, book: usize) {
    desk.until("MOVED is told", |desk| desk.books[book].moving_to.is_some());
}

#[test]
fn bytes_before_during_and_after_a_move_arrive_once_and_in_order() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    let bytes = pattern(300_000);
    let mut parts = bytes.chunks(10_000);
    let mut say = |desk: &mut Desk, times| {
        for part in parts.by_ref().take(times) {
            desk.peer_writes(&peer, part);
        }
    };
    say(&mut desk, 10);
    desk.inboxes.retire(1);
    say(&mut desk, 5);
    until_told(&mut desk, book);
    say(&mut desk, 5);
    let before = desk.books[book].arrived.len();
    desk.idle();
    assert_eq!(desk.books[book].arrived.len(), before, "nothing is read between MOVED and ARRIVED");
    desk.let_go(book);
    say(&mut desk, 10);
    desk.until_arrived(book, bytes.len());
    assert_eq!(desk.books[book].poll, 0);
    assert!(desk.books[book].arrived == bytes);
    assert_eq!(desk.status(book).read, bytes.len() as u64);
}

#[test]
fn bytes_that_wait_in_the_kernel_are_read_without_another_event() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    peer.write(b"hello");
    desk.until_waiting(book, 5);
    desk.let_go(book);
    desk.until_arrived(book, 5);
}

#[test]
fn pending_output_goes_along_and_what_was_said_meanwhile_follows_it() {
    let (mut desk, peer, book) = desk(Plan { polls: 2, send_buffer: Some(4096), ..Plan::default() });
    desk.manners.lets_go = false;
    let mut sent = desk.block(book);
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    // Still in the old ring, and before MOVE_ACK.
    desk.write(book, &pattern(50_000));
    sent.extend(pattern(50_000));
    desk.let_go(book);
    for part in pattern(100_000).chunks(30_000) {
        desk.write(book, part);
        sent.extend(part);
        desk.turn();
    }
    desk.until("it has arrived", |desk| desk.books[book].poll == 0);
    desk.write(book, b"the end");
    sent.extend(b"the end");
    assert!(desk.peer_reads(&peer, sent.len()) == sent);
    assert_eq!(desk.status(book).sent, sent.len() as u64);
}

#[test]
fn a_unix_connection_moves_with_output_that_waits_for_room() {
    let mut desk = Desk::new(Plan { polls: 2, ..Plan::default() });
    let address = desk.listen_unix();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    assert_eq!(desk.books[book].poll, 1);
    let sent = desk.block(book);
    move_away(&mut desk, book);
    desk.until("it is blocked there too", |desk| desk.operator(book).connection.output.is_blocked);
    assert!(desk.peer_reads(&peer, sent.len()) == sent);
    peer.write(b"and back");
    desk.until_arrived(book, 8);
}

#[test]
fn a_unix_connection_whose_socket_becomes_full_on_its_way_moves_with_what_is_left() {
    let mut desk = Desk::new(Plan { polls: 2, ..Plan::default() });
    let address = desk.listen_unix();
    let (_first, _) = desk.connect(&address);
    let (peer, book) = desk.connect(&address);
    assert_eq!(desk.books[book].poll, 1);
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    // The old poll, which hears no more of it, finds that there is no room.
    let mut sent = desk.block(book);
    assert_eq!(desk.books[book].poll, 1);
    desk.let_go(book);
    desk.until("it has arrived", |desk| desk.books[book].poll == 0);
    desk.until("it is blocked there too", |desk| desk.operator(book).connection.output.is_blocked);
    desk.write(book, b"the end");
    sent.extend(b"the end");
    assert!(desk.peer_reads(&peer, sent.len()) == sent);
    assert_eq!(desk.status(book).sent, sent.len() as u64);
}

#[test]
fn addresses_and_counts_go_along() {
    let (mut desk, peer, book) = two_polls();
    peer.write(b"four");
    desk.until_arrived(book, 4);
    desk.write(book, b"seven..");
    desk.peer_reads(&peer, 7);
    let addresses = |desk: &Desk| {
        let book = &desk.books[book];
        desk.seats[book.poll].border.addresses(book.token.slot)
    };
    let before = addresses(&desk);
    move_away(&mut desk, book);
    assert_eq!(addresses(&desk), before);
    let status = desk.status(book);
    assert_eq!((status.read, status.sent, status.flags), (4, 7, 0));
    assert_eq!([0, 1].map(|poll| desk.stats(poll).connections), [1, 0]);
    assert_eq!(desk.stats(0).accepts + desk.stats(1).accepts, 2, "a move is no accept");
}

#[test]
fn deadlines_go_along_and_keep_their_time() {
    let limits = Limits { write_timeout: Some(SECOND), ..Plan::default().limits };
    let (mut desk, _peer, book) = desk(Plan { polls: 2, limits, send_buffer: Some(4096), ..Plan::default() });
    let [read, idle] = [Deadline::Read, Deadline::Idle].map(|which| which as u32 + 1);
    desk.put(book, TIMER, [read, 600, 7]);
    desk.put(book, TIMER, [idle, 2000, 8]);
    desk.block(book);
    desk.pass(500 * MS);
    move_away(&mut desk, book);
    desk.pass(99 * MS);
    assert_eq!(desk.books[book].timeouts, []);
    desk.pass(MS);
    assert_eq!(desk.books[book].timeouts, [(read, 7)]);
    desk.pass(399 * MS);
    assert_eq!(desk.books[book].closed, None);
    desk.pass(MS);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
}

#[test]
fn the_idle_timeout_counts_from_the_last_traffic_not_from_the_move() {
    let limits = Limits { idle_timeout: Some(SECOND), ..Plan::default().limits };
    let (mut desk, _peer, book) = desk(Plan { polls: 2, limits, ..Plan::default() });
    desk.pass(900 * MS);
    move_away(&mut desk, book);
    desk.pass(99 * MS);
    assert_eq!(desk.books[book].timeouts, []);
    desk.pass(MS);
    assert_eq!(desk.books[book].timeouts.len(), 1);
}

#[test]
fn a_fin_that_comes_on_the_way_is_told_once_and_the_answer_still_reaches_the_peer() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    peer.write(b"question");
    peer.finish();
    desk.idle();
    assert!(!desk.books[book].is_ended);
    desk.let_go(book);
    desk.until("EOF is told", |desk| desk.books[book].is_ended);
    assert_eq!(desk.books[book].arrived, b"question");
    desk.write(book, b"answer");
    desk.put(book, END, [0; 3]);
    assert_eq!(desk.peer_reads_to_end(&peer).0, b"answer");
    assert_eq!(desk.until_closed(book), 0);
}

#[test]
fn a_half_closed_connection_moves_and_its_flags_go_along() {
    let (mut desk, peer, book) = two_polls();
    peer.finish();
    desk.until("EOF is told", |desk| desk.books[book].is_ended);
    move_away(&mut desk, book);
    assert_eq!(desk.status(book).flags, 1);
    desk.write(book, b"answer");
    desk.put(book, CLOSE, [0; 3]);
    assert_eq!(desk.peer_reads_to_end(&peer).0, b"answer");
    desk.until_closed(book);
}

#[test]
fn a_watch_is_answered_by_the_poll_that_sends_the_last_byte() {
    let (mut desk, peer, book) = desk(Plan { polls: 2, send_buffer: Some(4096), ..Plan::default() });
    let sent = desk.block(book);
    desk.put(book, WATCH_DRAIN, [sent.len() as u32, 0, 0]);
    move_away(&mut desk, book);
    assert_eq!(desk.books[book].drained, 0);
    desk.peer_reads(&peer, sent.len());
    desk.until("it is drained", |desk| desk.books[book].drained == 1);
}

#[test]
fn a_connection_that_ends_before_move_ack_ends_at_its_old_poll() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    desk.put(book, RESET, [0; 3]);
    desk.let_go(book);
    assert_eq!(desk.until_closed(book), 0);
    desk.idle();
    assert_eq!((desk.books[book].poll, desk.stats(1).stale_records), (1, 1), "MOVE_ACK names nobody");
    assert!(desk.peer_reads_to_end(&peer).1.is_err());
}

#[test]
fn a_connection_that_javascript_forgets_on_its_way_is_closed_and_frees_its_slot() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    // Both are taken in the same turn.
    desk.let_go(book);
    desk.forget(book);
    assert!(desk.peer_reads_to_end(&peer).0.is_empty());
    desk.until("it is empty", |desk| desk.seats[1].retired() == 1);
    assert_eq!((desk.stats(0).connections, desk.stats(1).stale_records), (0, 0));
}

#[test]
fn a_move_ack_without_a_move_is_stale() {
    let (mut desk, peer, book) = two_polls();
    desk.put(book, super::desk::submission::MOVE_ACK, [77, 0, 0]);
    desk.idle();
    assert_eq!(desk.stats(1).stale_records, 1);
    peer.write(b"still here");
    desk.until_arrived(book, 10);
}

#[test]
fn a_connection_whose_new_poll_has_gone_comes_back() {
    let (mut desk, peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    let slot = desk.books[book].token;
    let listener = desk.listeners.remove(0);
    listener.close();
    desk.inboxes.send(0, Command::CloseListener(listener.id));
    desk.turn();
    drop(desk.inboxes.close(0));
    desk.let_go(book);
    peer.write(b"still here");
    desk.until_arrived(book, 10);
    assert_eq!(desk.books[book].poll, 1);
    assert_ne!(desk.books[book].token, slot);
    desk.idle();
    assert_eq!(desk.books[book].moving_to, None, "and is served where it is, for there is no other poll");
}

#[test]
fn a_connection_that_finds_no_slot_ends_with_a_cause() {
    let (mut desk, peer, book) = desk(Plan { polls: 2, slots: 1, max_connections: 5, ..Plan::default() });
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(desk.server.admit());
    let (remote, local, server) = ([0; 6], [0; 6], desk.server.clone());
    let accepted = Accepted { descriptor: ours.into(), remote, local, is_unix: true, server };
    desk.inboxes.send(0, Command::Adopt(accepted));
    desk.turn();
    desk.let_go(book);
    desk.until("it is told", |desk| desk.books[book].missed.is_some());
    assert_eq!(desk.books[book].missed, Some(number(Cause::EXHAUSTED)));
    desk.peer_reads_to_end(&peer).1.ok();
}

#[test]
fn a_poll_that_retires_says_that_it_is_empty_when_every_slot_has_been_acknowledged() {
    let (mut desk, _peer, book) = two_polls();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    until_told(&mut desk, book);
    desk.idle();
    assert_eq!(desk.seats[1].retired(), 0);
    desk.let_go(book);
    desk.until("it is empty", |desk| desk.seats[1].retired() == 1);
    assert_eq!((desk.books[book].poll, desk.stats(1).connections), (0, 0));
    let address = desk.listen();
    for _ in 0..4 {
        let (_peer, book) = desk.connect(&address);
        assert_eq!(desk.books[book].poll, 0, "it is given no new connections");
    }
}

#[test]
fn a_connection_that_comes_to_a_poll_which_has_begun_to_retire_goes_on() {
    let (mut desk, peer, book) = desk(Plan { polls: 3, ..Plan::default() });
    desk.manners.lets_go = false;
    desk.inboxes.set_balance(LoadBalance::LeastConnections);
    (0..2).for_each(|_| desk.inboxes.expect(0));
    desk.inboxes.retire(2);
    until_told(&mut desk, book);
    assert_eq!(desk.books[book].moving_to, Some(1));
    desk.inboxes.retire(1);
    desk.manners.lets_go = true;
    desk.let_go(book);
    peer.write(b"hello");
    desk.until("both are empty", |desk| [1, 2].iter().all(|poll| desk.seats[*poll].retired() == 1));
    desk.until_arrived(book, 5);
    assert_eq!(desk.books[book].poll, 0);
}

#[test]
fn a_poll_that_retires_begins_so_many_moves_in_a_turn_and_loses_none() {
    let crowd = MOVES_PER_TURN + 50;
    let mut desk = Desk::new(Plan { polls: 2, slots: 1024, ring_entries: 64, ..Plan::default() });
    let address = desk.listen();
    let peers = (0..2 * crowd).map(|_| desk.connect(&address).0).collect::<Vec<_>>();
    desk.manners.lets_go = false;
    desk.inboxes.retire(1);
    desk.turn();
    assert!(desk.seats[1].left.more);
    desk.until("all are told to move", |desk| {
        desk.books.iter().filter(|book| book.moving_to.is_some()).count() == crowd
    });
    (0..desk.books.len())
        .filter(|book| desk.books[*book].poll == 1)
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|book| desk.let_go(book));
    desk.until("all have arrived", |desk| desk.books.iter().all(|book| book.poll == 0));
    peers.iter().for_each(|peer| assert_eq!(peer.write(b"hello"), 5));
    desk.until("all are heard", |desk| desk.books.iter().all(|book| book.arrived == b"hello"));
    desk.until("it is empty", |desk| desk.seats[1].retired() == 1);
}

#[test]
fn done_in_the_ring_of_another_poll_overtakes_send_but_not_send_lent() {
    let (mut desk, peer, book) = two_polls();
    // Both are there before either poll looks, and the first poll looks first.
    let lent = desk.lend(0, b"lost");
    desk.put(book, SEND, [lent.chunk, lent.offset, lent.length]);
    desk.put_record(0, done(lent));
    desk.idle();
    assert_eq!(desk.stats(1).stale_records, 1, "its block was free already");

    let lent = desk.lend(0, b"kept");
    assert!(desk.table.share(lent.chunk, lent.offset));
    desk.put(book, SEND_LENT, [lent.chunk, lent.offset, lent.length]);
    desk.put_record(0, done(lent));
    assert_eq!(desk.peer_reads(&peer, 4), b"kept");
    assert_eq!(desk.table.blocks_out(), 0);
}

#[test]
fn send_lent_gives_its_reference_back_when_nobody_is_there_to_send_it_to() {
    let (mut desk, _peer, book) = two_polls();
    for end in [END, RESET] {
        desk.put(book, end, [0; 3]);
        let lent = desk.lend(0, b"late");
        assert!(desk.table.share(lent.chunk, lent.offset));
        desk.put(book, SEND_LENT, [lent.chunk, lent.offset, lent.length]);
        desk.put_record(0, done(lent));
        desk.idle();
        assert_eq!(desk.table.blocks_out(), 0);
    }
    let lent = desk.lend(0, b"gone");
    desk.put_record(0, done(lent));
    desk.idle();
    assert!(!desk.table.share(lent.chunk, lent.offset), "what is not lent cannot be shared");
}

#[test]
fn with_least_connections_moves_are_spread_although_none_has_arrived_yet() {
    let mut desk = Desk::new(Plan { polls: 3, ..Plan::default() });
    let address = desk.listen();
    let _peers = (0..30).map(|_| desk.connect(&address).0).collect::<Vec<_>>();
    desk.inboxes.set_balance(LoadBalance::LeastConnections);
    desk.inboxes.retire(2);
    desk.until("it is empty", |desk| desk.seats[2].retired() == 1);
    assert_eq!([0, 1].map(|poll| desk.stats(poll).connections), [15, 15]);
}

#[test]
fn a_poll_that_panics_over_a_command_passes_on_what_it_took_with_it() {
    let (mut desk, _peer, _) = desk(Plan { polls: 2, max_connections: 2, ..Plan::default() });
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(desk.server.admit());
    let (remote, local, server) = ([0; 6], [0; 6], desk.server.clone());
    let accepted = Accepted { descriptor: ours.into(), remote, local, is_unix: true, server };
    desk.inboxes.send(1, Command::Crash);
    desk.inboxes.send(1, Command::Adopt(accepted));
    let (now, poll) = (desk.now, &mut desk.seats[1].poll);
    catch_unwind(AssertUnwindSafe(|| poll.turn(now, Budget::default()))).unwrap_err();
    desk.lose_poll();
    let last = desk.books.len();
    desk.until("the other poll has it", |desk| desk.books.len() > last);
    assert!(desk.server.admit() && !desk.server.admit(), "it is counted once, and no other");
    desk.server.dismiss();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    desk.write(last, b"welcome");
    desk.idle();
    let mut bytes = [0; 7];
    std::io::Read::read_exact(&mut &theirs, &mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
}

#[test]
fn a_poll_that_dies_passes_on_what_was_on_its_way_to_it_and_counts_out_what_it_had() {
    let (mut desk, peer, _) = desk(Plan { polls: 2, max_connections: 2, ..Plan::default() });
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(desk.server.admit() && !desk.server.admit());
    let (remote, local, server) = ([0; 6], [0; 6], desk.server.clone());
    let accepted = Accepted { descriptor: ours.into(), remote, local, is_unix: true, server };
    desk.inboxes.send(1, Command::Adopt(accepted));
    desk.lose_poll();
    assert!(peer.read().is_ok_and(|end| end.is_some_and(|end| end.is_empty())));
    assert!(desk.server.admit(), "it is not counted any more");
    desk.server.dismiss();
    let last = desk.books.len();
    desk.until("the other poll has it", |desk| desk.books.len() > last);
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    desk.write(last, b"welcome");
    desk.idle();
    let mut bytes = [0; 7];
    std::io::Read::read_exact(&mut &theirs, &mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
}
