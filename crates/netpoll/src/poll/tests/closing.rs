use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::Interest;

use super::desk::submission::{CLOSE, END, PAUSE, RESET, RESUME, SEND_PIN, WATCH_DRAIN};
use super::desk::{error_kind, often, Desk, Plan};
use super::peer::{pattern, Peer};
use crate::token::Subject;

/// A connection whose output is blocked, and what was written to it.
fn blocked() -> (Desk, Peer, usize, Vec<u8>) {
    let mut desk = Desk::new(Plan { send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.adopt(Peer::connect_with(&address, Some(4096)));
    let bytes = desk.block(book);
    (desk, peer, book, bytes)
}

#[test]
fn after_the_peers_fin_we_still_send_and_our_end_closes_the_connection() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"question");
    peer.finish();
    desk.until("its end is told", |desk| desk.books[book].is_ended);
    assert_eq!((&desk.books[book].arrived[..], desk.status(book).flags), (&b"question"[..], 1));
    desk.write(book, b"answer");
    assert_eq!(desk.peer_reads(&peer, 6), b"answer");
    assert_eq!(desk.books[book].closed, None);
    desk.put(book, END, [0; 3]);
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
    assert_eq!(desk.until_closed(book), 0);
}

#[test]
fn a_fin_that_has_come_with_the_bytes_is_read_without_a_further_event() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let bytes = pattern(20_000);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    assert_eq!(peer.write(&bytes), bytes.len());
    peer.finish();
    desk.until("FIN has come", |desk| desk.operator(book).connection.input.hang_up);
    desk.put(book, RESUME, [0; 3]);
    desk.turn();
    assert!(desk.books[book].arrived == bytes);
    assert!(desk.books[book].is_ended);
}

#[test]
fn our_end_first_and_then_the_peers_fin_closes_the_connection() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, END, [0; 3]);
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
    assert_eq!((desk.books[book].closed, desk.status(book).flags), (None, 2));
    peer.write(b"last words");
    peer.finish();
    assert_eq!(desk.until_closed(book), 0);
    assert_eq!((&desk.books[book].arrived[..], desk.books[book].is_ended), (&b"last words"[..], true));
}

#[test]
fn end_waits_for_pending_output() {
    let (mut desk, peer, book, bytes) = blocked();
    desk.put(book, END, [0; 3]);
    desk.idle();
    assert_eq!(desk.status(book).flags, 0);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read == bytes && end.is_ok());
}

#[test]
fn a_close_that_drops_sends_what_the_kernel_takes_and_waits_for_no_room() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.write(book, b"last words");
    desk.put(book, CLOSE, [1, 0, 0]);
    assert_eq!(desk.until_closed(book), 0, "before the peer has read anything");
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert_eq!(read, b"last words");
    end.unwrap();
}

#[test]
fn a_close_that_drops_ends_a_blocked_output_and_one_that_another_close_waits_for() {
    for first in [None, Some(CLOSE), Some(END)] {
        let (mut desk, peer, book, bytes) = blocked();
        if let Some(kind) = first {
            desk.put(book, kind, [0; 3]);
            desk.idle();
            assert_eq!(desk.books[book].closed, None);
        }
        desk.put(book, CLOSE, [1, 0, 0]);
        assert_eq!(desk.until_closed(book), 0, "although the peer reads nothing");
        let (read, end) = desk.peer_reads_to_end(&peer);
        assert!(read.len() < bytes.len() && bytes.starts_with(&read));
        end.unwrap();
    }
}

#[test]
fn close_sends_what_is_pending_and_the_peer_sees_no_rst_although_we_never_read_it() {
    let (mut desk, peer, book, bytes) = blocked();
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    peer.write(b"nobody will read this");
    desk.until("it is there", |desk| desk.waiting_bytes(book) > 0);
    desk.put(book, CLOSE, [0; 3]);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read == bytes);
    end.unwrap();
    assert_eq!(desk.until_closed(book), 0);
    assert_eq!((desk.books[book].arrived.len(), desk.books[book].is_ended), (0, false));
}

#[test]
fn close_of_a_unix_socket_ends_without_a_reset_too() {
    let mut desk = Desk::default();
    let address = desk.listen_unix();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    assert_eq!(peer.write(&pattern(20_000)), 20_000);
    desk.until_waiting(book, 20_000);
    desk.write(book, b"goodbye");
    desk.put(book, CLOSE, [0; 3]);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert_eq!(read, b"goodbye");
    end.unwrap();
}

#[test]
fn close_stops_reading() {
    let (mut desk, peer, book, bytes) = blocked();
    desk.put(book, CLOSE, [0; 3]);
    desk.turn();
    peer.write(b"too late");
    desk.until("it is there", |desk| desk.waiting_bytes(book) > 0);
    desk.idle();
    assert_eq!((desk.books[book].arrived.len(), desk.stats(0).reads), (0, 0));
    desk.peer_reads(&peer, bytes.len());
}

#[test]
fn close_after_end_closes_without_waiting_for_the_peer() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, END, [0; 3]);
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
    desk.idle();
    assert_eq!(desk.books[book].closed, None);
    desk.put(book, CLOSE, [0; 3]);
    assert_eq!(desk.until_closed(book), 0);
}

#[test]
fn end_after_close_does_not_make_it_wait_for_the_peer() {
    let (mut desk, peer, book, bytes) = blocked();
    desk.put(book, CLOSE, [0; 3]);
    desk.put(book, END, [0; 3]);
    desk.peer_reads(&peer, bytes.len());
    assert_eq!(desk.until_closed(book), 0);
}

#[test]
fn close_of_a_blocked_connection_ends_when_the_peer_resets_it() {
    let (mut desk, peer, book, _) = blocked();
    desk.put(book, CLOSE, [0; 3]);
    desk.idle();
    peer.reset();
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::ConnectionReset);
    assert_eq!(desk.table.blocks_out(), 0);
}

#[test]
fn reset_reaches_the_peer_as_a_reset_and_drops_what_was_pending() {
    let (mut desk, peer, book, _) = blocked();
    desk.put(book, RESET, [0; 3]);
    desk.turn();
    assert_eq!((desk.books[book].closed, desk.table.blocks_out()), (Some(0), 0));
    let end = desk.peer_reads_to_end(&peer).1;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn reset_after_close_cuts() {
    let (mut desk, peer, book, bytes) = blocked();
    desk.put(book, CLOSE, [0; 3]);
    desk.put(book, RESET, [0; 3]);
    let (read, end) = desk.peer_reads_to_end(&peer);
    assert!(read.len() < bytes.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(desk.until_closed(book), 0);
}

#[test]
fn reset_of_a_unix_socket_reaches_the_peer_as_a_reset_even_after_close() {
    let mut desk = Desk::new(Plan { send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen_unix();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.block(book);
    peer.write(b"unread");
    desk.put(book, CLOSE, [0; 3]);
    desk.put(book, RESET, [0; 3]);
    let end = desk.peer_reads_to_end(&peer).1;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_the_peer_sent_before_its_reset_is_delivered() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    peer.write(b"last words");
    desk.until_waiting(book, 10);
    peer.reset();
    desk.until("the reset has come", |desk| desk.operator(book).connection.input.hang_up);
    desk.put(book, RESUME, [0; 3]);
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::ConnectionReset);
    assert_eq!(desk.books[book].arrived, b"last words");
    assert!(!desk.books[book].is_ended, "a reset is no orderly end");
}

#[test]
fn a_reset_behind_a_fin_closes_the_connection_with_its_cause() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.finish();
    desk.until("the end has been read", |desk| desk.books[book].is_ended);
    desk.idle();
    assert_eq!(desk.books[book].closed, None, "our own end is open");
    peer.reset();
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_that_is_told_of_together_with_a_fin_closes_the_connection_too() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    peer.write(b"last words");
    peer.finish();
    peer.reset();
    desk.until("both have come", |desk| desk.operator(book).connection.input.suspect);
    desk.put(book, RESUME, [0; 3]);
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::ConnectionReset);
    assert_eq!((&desk.books[book].arrived[..], desk.books[book].is_ended), (&b"last words"[..], true));
}

#[test]
fn a_failed_send_delivers_what_the_kernel_holds_even_to_a_paused_connection() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    let bytes = pattern(20_000);
    assert_eq!(peer.write(&bytes), bytes.len());
    desk.until_waiting(book, bytes.len());
    peer.reset();
    desk.until("the reset has come", |desk| desk.operator(book).connection.input.hang_up);
    assert_eq!((desk.books[book].arrived.len(), desk.books[book].closed), (0, None));
    desk.write(book, b"hello?");
    let pin = desk.pin(b"pinned");
    desk.put(book, SEND_PIN, [pin, 0, 0]);
    desk.put(book, WATCH_DRAIN, [1000, 0, 0]);
    assert!(desk.until_closed(book) > 0, "an errno");
    assert!(desk.books[book].arrived == bytes);
    assert!(!desk.books[book].is_ended, "a reset is no orderly end");
    assert_eq!((&desk.unpinned[..], desk.books[book].drained), (&[pin][..], 1));
}

#[test]
fn a_failed_send_ends_the_connection_although_no_event_told_and_nothing_is_to_be_read() {
    let mut desk = Desk::default();
    let address = desk.listen_unix();
    let (peer, book) = desk.connect(&address);
    peer.write(b"last words");
    desk.until_arrived(book, 10);
    peer.stop_reading();
    desk.idle();
    assert_eq!(desk.books[book].closed, None);
    desk.write(book, b"hello?");
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::BrokenPipe);
}

#[test]
fn a_failed_send_shows_in_the_status_while_what_the_kernel_holds_cannot_be_read() {
    let mut desk = Desk::new(Plan { max_memory: 16 << 20, ..Plan::default() });
    let address = desk.listen_unix();
    desk.manners.credits = false;
    let (peer, book) = desk.connect(&address);
    peer.write(b"my ");
    desk.until_arrived(book, 3);
    // Who has something unread is not read while memory is scarce.
    assert!(desk.table.charge(12 << 20));
    peer.write(b"last words");
    peer.stop_reading();
    desk.write(book, b"hello?");
    desk.turn();
    assert_eq!((desk.status(book).flags, desk.books[book].closed), (3, None));
    let sends = desk.stats(0).sends;
    desk.write(book, b"hello?");
    desk.turn();
    assert_eq!(desk.stats(0).sends, sends, "nothing is tried again");
    desk.table.discharge(12 << 20);
    assert_eq!(error_kind(desk.until_closed(book)), ErrorKind::BrokenPipe);
    assert_eq!(desk.books[book].arrived, b"my last words");
}

#[test]
fn an_event_of_a_connection_that_was_closed_in_the_same_batch_is_dropped() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (first, other) = desk.connect(&address);
    let (second, doomed) = desk.connect(&address);
    desk.turn();
    first.write(b"stays");
    second.write(b"goes");
    desk.until_waiting_without_turns(other, 5);
    desk.until_waiting_without_turns(doomed, 4);
    desk.wait();
    desk.put(doomed, RESET, [0; 3]);
    desk.turn();
    assert_eq!((desk.books[doomed].closed, desk.books[doomed].arrived.len()), (Some(0), 0));
    assert_eq!(desk.books[other].arrived, b"stays");
    assert_eq!(desk.stats(0).stale_records, 1);
}

#[test]
fn a_late_event_of_a_slots_former_connection_does_not_reach_its_new_one() {
    let mut desk = Desk::new(Plan { slots: 1, ..Plan::default() });
    let address = desk.listen();
    let (old_peer, old) = desk.connect(&address);
    // A descriptor that epoll goes on to watch under the old name, as a child that inherited it would.
    let duplicate = desk.operator(old).descriptor().try_clone_to_owned().unwrap();
    let name = Subject::Connection(desk.books[old].token).mio();
    let registry = desk.seats[0].poll.mio.registry();
    registry.register(&mut SourceFd(&duplicate.as_raw_fd()), name, Interest::READABLE).unwrap();
    desk.put(old, CLOSE, [0; 3]);
    desk.until_closed(old);
    desk.idle();
    desk.pass(crate::acceptor::REST);
    let (_new_peer, new) = desk.connect(&address);
    assert_eq!(desk.books[new].token.slot, desk.books[old].token.slot);
    let stale = desk.stats(0).stale_records;
    old_peer.write(b"for nobody");
    desk.until("the event is dropped", |desk| desk.stats(0).stale_records > stale);
    assert!(!desk.operator(new).connection.input.ready);
    assert_eq!((desk.books[new].arrived.len(), desk.stats(0).reads), (0, 0));
}

#[test]
fn whoever_gets_the_descriptor_of_one_that_was_closed_in_the_same_batch_hears_only_its_own() {
    const LENGTH: usize = 64;
    // Slots take turns: one is free only when JavaScript has heard of the end.
    let mut desk = Desk::new(Plan { slots: 3, ..Plan::default() });
    let address = desk.listen();
    let (mut peer, mut book) = desk.connect(&address);
    let mut descriptors = 0;
    let rounds = often(1000, 100_000);
    for round in 0..rounds {
        desk.turn();
        // One event batch tells of bytes for who is to be closed, and of who comes in its place.
        peer.write(&[round as u8; LENGTH]);
        desk.until_waiting_without_turns(book, LENGTH);
        let newcomer = Peer::connect(&address);
        desk.wait();
        let descriptor = desk.operator(book).descriptor().as_raw_fd();
        let arrived = desk.books[book].arrived.len();
        desk.put(book, RESET, [0; 3]);
        let (next_peer, next) = desk.adopt(newcomer);
        descriptors += usize::from(desk.operator(next).descriptor().as_raw_fd() == descriptor);
        assert_eq!((desk.books[book].closed, desk.books[book].arrived.len()), (Some(0), arrived));
        next_peer.write(&[!(round as u8); LENGTH]);
        desk.until_arrived(next, LENGTH);
        assert_eq!(desk.books[next].arrived, [!(round as u8); LENGTH]);
        (peer, book) = (next_peer, next);
    }
    assert_eq!(desk.stats(0).stale_records, rounds as u64, "an event of each came too late");
    assert!(descriptors > rounds / 2, "{descriptors} descriptors came again");
}

#[test]
fn a_closed_descriptor_of_which_there_is_a_duplicate_fires_no_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let _duplicate = desk.operator(book).descriptor().try_clone_to_owned().unwrap();
    desk.put(book, CLOSE, [0; 3]);
    desk.until_closed(book);
    desk.idle();
    assert_eq!(desk.peer_reads_to_end(&peer).0, b"");
    peer.write(b"for nobody");
    peer.finish();
    assert_eq!(desk.events(), 0);
}
