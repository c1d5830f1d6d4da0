use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::desk::submission::{CLOSE, DETACH, END, INFO, PAUSE};
use super::desk::{number, Desk, Plan, SECOND};
use super::peer::{pattern, Peer};
use crate::connection::Limits;
use crate::record::Cause;

/// The descriptor of a connection that was given away.
fn taken(desk: &Desk, book: usize) -> TcpStream {
    let stream = TcpStream::from(desk.take_detached(book).unwrap());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn is_blocked(write_timeout: Option<Duration>) -> (Desk, Peer, usize, Vec<u8>) {
    let limits = Limits { write_timeout, ..Plan::default().limits };
    let mut desk = Desk::new(Plan { limits, send_buffer: Some(4096), ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.adopt(Peer::connect_with(&address, Some(4096)));
    let bytes = desk.block(book);
    (desk, peer, book, bytes)
}

#[test]
fn a_detached_descriptor_goes_on_in_both_directions_where_the_poll_has_left_off() {
    let mut desk = Desk::new(Plan { max_connections: 1, ..Plan::default() });
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"first");
    desk.until("it has come", |desk| desk.books[book].arrived == b"first");
    desk.put(book, DETACH, [0; 3]);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    let mut stream = taken(&desk, book);
    peer.write(b"second");
    desk.idle();
    assert_eq!(desk.books[book].arrived, b"first", "the poll reads no more");
    let mut second = [0; 6];
    stream.read_exact(&mut second).unwrap();
    assert_eq!(&second, b"second");
    stream.write_all(b"answer").unwrap();
    assert_eq!(desk.peer_reads(&peer, 6), b"answer");
}

#[test]
fn what_the_kernel_holds_when_it_is_detached_stays_there() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, PAUSE, [0; 3]);
    desk.turn();
    peer.write(b"here");
    desk.idle();
    desk.put(book, DETACH, [0; 3]);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    assert_eq!(desk.books[book].arrived, b"");
    let mut here = [0; 4];
    taken(&desk, book).read_exact(&mut here).unwrap();
    assert_eq!(&here, b"here");
}

#[test]
fn pending_output_goes_out_first_and_an_end_with_it() {
    let (mut desk, peer, book, bytes) = is_blocked(None);
    desk.put(book, END, [0; 3]);
    desk.put(book, DETACH, [0; 3]);
    desk.idle();
    assert_eq!(desk.books[book].detached, None);
    assert!(desk.peer_reads(&peer, bytes.len()) == bytes);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    let mut stream = taken(&desk, book);
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
    peer.write(b"still");
    let mut still = [0; 5];
    stream.read_exact(&mut still).unwrap();
    assert_eq!(&still, b"still");
}

#[test]
fn a_peer_that_never_reads_ends_it_by_the_write_timeout() {
    let (mut desk, _peer, book, _) = is_blocked(Some(SECOND));
    desk.put(book, DETACH, [0; 3]);
    desk.idle();
    desk.pass(SECOND);
    assert_eq!(desk.books[book].closed, Some(number(Cause::WRITE_TIMEOUT)));
    assert_eq!(desk.books[book].detached, None);
}

#[test]
fn a_peer_that_resets_ends_it_with_the_cause() {
    let (mut desk, peer, book, _) = is_blocked(None);
    desk.put(book, DETACH, [0; 3]);
    desk.idle();
    peer.reset();
    assert!(desk.until_closed(book) > 0);
    assert_eq!(desk.books[book].detached, None);
}

#[test]
fn a_peer_that_has_finished_leaves_its_end_in_the_socket() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    peer.write(b"last");
    peer.finish();
    desk.until("its end is told", |desk| desk.books[book].is_ended);
    desk.put(book, DETACH, [0; 3]);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    assert_eq!(taken(&desk, book).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_connection_that_closes_or_is_no_more_is_not_detached() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, CLOSE, [0; 3]);
    desk.turn();
    desk.put(book, DETACH, [0; 3]);
    desk.idle();
    assert_eq!((desk.books[book].closed, desk.books[book].detached), (Some(0), None));
    assert!(desk.peer_reads_to_end(&peer).1.is_ok());
}

#[test]
fn a_descriptor_that_nobody_has_taken_is_closed_with_its_poll() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, DETACH, [0; 3]);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    desk.seats.clear();
    assert!(desk.take_detached(book).is_none());
    assert_eq!(peer.read().unwrap(), Some(Vec::new()));
}

#[test]
fn the_descriptor_is_no_longer_registered() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    desk.put(book, DETACH, [0; 3]);
    desk.until("it is detached", |desk| desk.books[book].detached.is_some());
    let stream = taken(&desk, book);
    assert!(stream.as_raw_fd() >= 0);
    let stale = desk.stats(0).stale_records;
    peer.write(&pattern(100));
    desk.idle();
    assert_eq!(desk.stats(0).stale_records, stale, "no event tells of it");
}

#[test]
fn info_is_answered_for_tcp_and_says_so_where_there_is_none() {
    let mut desk = Desk::default();
    for (address, known) in [(desk.listen(), true), (desk.listen_unix(), false)] {
        let (_peer, book) = desk.connect(&address);
        desk.put(book, INFO, [0; 3]);
        desk.until("it is told", |desk| desk.books[book].infos.len() == 1);
        assert_eq!(desk.books[book].infos[0][0] != u32::MAX, known);
    }
}
