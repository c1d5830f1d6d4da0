use std::io::Read;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::Interest;
use socket2::SockRef;

use super::desk::submission::{ACK, RESET};
use super::desk::{error_kind, held_sockets, Desk, Plan, MS};
use super::peer::{pattern, Peer};
use crate::acceptor::{Accepted, REST};
use crate::address;
use crate::inbox::Command;
use crate::poll::Budget;

#[test]
fn accept_comes_before_data_and_every_byte_arrives() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, bytes) = (Peer::connect(&address), pattern(100_000));
    assert_eq!(peer.write(&bytes), bytes.len());
    desk.until("all has arrived", |desk| {
        desk.books.first().is_some_and(|book| book.arrived.len() == bytes.len())
    });
    assert_eq!(desk.books[0].arrived, bytes);
}

#[test]
fn a_connection_that_is_accepted_has_its_addresses() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let endpoints = desk.seats[0].border.addresses(desk.books[book].token.slot).unwrap();
    let ports = endpoints.map(|endpoint| address::decode(endpoint).unwrap().port);
    assert_eq!(ports, [peer.port(), address.as_socket().unwrap().port()]);
}

#[test]
fn an_accept_that_may_wait_rings_after_5_ms_and_not_before() {
    let mut desk = Desk::new(Plan { announce_accept: false, ..Plan::default() });
    let address = desk.listen();
    let _peer = Peer::connect(&address);
    desk.until("it is accepted", |desk| desk.stats(0).accepts == 1);
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + 5 * MS));
    desk.pass(5 * MS - Duration::from_nanos(1));
    assert_eq!((desk.bells(), desk.books.len()), (0, 0));
    desk.pass(Duration::from_nanos(1));
    assert_eq!((desk.bells(), desk.books.len()), (1, 1));
    assert_eq!(desk.seats[0].left.next_deadline, None);
}

#[test]
fn a_second_accept_that_may_wait_does_not_put_off_the_bell_for_the_first() {
    let mut desk = Desk::new(Plan { announce_accept: false, ..Plan::default() });
    let address = desk.listen();
    let _first = Peer::connect(&address);
    desk.until("it is accepted", |desk| desk.stats(0).accepts == 1);
    desk.pass(3 * MS);
    let _second = Peer::connect(&address);
    desk.until("it is accepted", |desk| desk.stats(0).accepts == 2);
    desk.pass(2 * MS);
    assert_eq!((desk.bells(), desk.books.len()), (1, 2));
}

#[test]
fn the_first_bytes_announce_an_accept_that_may_wait() {
    let mut desk = Desk::new(Plan { announce_accept: false, ..Plan::default() });
    let address = desk.listen();
    let peer = Peer::connect(&address);
    desk.until("it is accepted", |desk| desk.stats(0).accepts == 1);
    peer.write(b"hello");
    desk.until("it is heard of", |desk| !desk.books.is_empty());
    assert_eq!((desk.bells(), desk.seats[0].left.next_deadline), (1, None));
    desk.until_arrived(0, 5);
}

#[test]
fn one_connection_too_many_is_turned_away_without_a_record() {
    let mut desk = Desk::new(Plan { max_connections: 2, ..Plan::default() });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (_second, second) = desk.connect(&address);
    let refused = Peer::connect(&address);
    assert!(desk.peer_reads_to_end(&refused).0.is_empty());
    desk.put(second, RESET, [0; 3]);
    desk.until_closed(second);
    assert_eq!((desk.books.len(), desk.stats(0).accepts), (2, 2));
    let (_third, _) = desk.connect(&address);
}

#[test]
fn a_listener_without_a_free_slot_rests_again_and_again_and_loses_nobody() {
    let mut desk = Desk::new(Plan { slots: 2, ..Plan::default() });
    let address = desk.listen();
    let peers = [(); 6].map(|()| Peer::connect(&address));
    for served in (0..6).step_by(2) {
        desk.until("both slots are taken", |desk| desk.books.len() == served + 2);
        for _ in 0..3 {
            desk.until("it rests", |desk| !desk.seats[0].poll.acceptors[0].is_ready);
            desk.idle();
            if served < 4 {
                assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + REST), "it rests for a while");
                assert!(!desk.seats[0].left.more, "and costs nothing meanwhile");
            }
            desk.pass(REST);
        }
        assert_eq!(desk.books.len(), served + 2);
        (served..served + 2).for_each(|book| desk.put(book, RESET, [0; 3]));
        desk.until("both are over", |desk| desk.books.iter().all(|book| book.closed.is_some()));
        desk.idle();
        desk.pass(REST);
    }
    for peer in peers {
        assert!(desk.peer_reads_to_end(&peer).1.is_err(), "everyone was served, and then reset");
    }
}

#[test]
fn clients_that_wait_while_memory_is_scarce_are_accepted_soon_after() {
    let mut desk = Desk::new(Plan { max_memory: 16 << 20, ..Plan::default() });
    let address = desk.listen();
    assert!(desk.table.charge(14 << 20));
    let _peer = Peer::connect(&address);
    desk.until("an event has told", |desk| desk.seats[0].poll.acceptors[0].is_ready);
    assert_eq!(desk.stats(0).accepts, 0);
    // Edge-triggered: no further event tells of this client, so the poll has to come back by itself.
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + 10 * MS));
    desk.table.discharge(2 << 20);
    desk.pass(10 * MS);
    assert_eq!(desk.books.len(), 1);
    desk.table.discharge(12 << 20);
}

#[test]
fn a_turn_accepts_no_more_than_its_budget_and_says_that_there_are_more() {
    let mut desk = Desk::default();
    desk.budget = Budget { accepts: 1, ..Budget::default() };
    let address = desk.listen();
    let _peers = [(); 3].map(|()| Peer::connect(&address));
    desk.until("the first is accepted", |desk| !desk.books.is_empty());
    for accepted in 2..=3 {
        assert!(desk.seats[0].left.more);
        desk.turn();
        assert_eq!(desk.books.len(), accepted);
    }
    desk.turn();
    assert!(!desk.seats[0].left.more);
}

#[test]
fn a_slot_is_given_away_again_after_ack_and_with_another_generation() {
    let mut desk = Desk::new(Plan { slots: 1, ..Plan::default() });
    desk.manners.acknowledges = false;
    let address = desk.listen();
    let (_old, old) = desk.connect(&address);
    desk.put(old, RESET, [0; 3]);
    desk.until_closed(old);
    let _new = Peer::connect(&address);
    desk.idle();
    desk.pass(REST);
    desk.idle();
    assert_eq!(desk.books.len(), 1, "the slot is not free before ACK");
    desk.acknowledge(old);
    desk.idle();
    desk.pass(REST);
    desk.until("the next one is accepted", |desk| desk.books.len() == 2);
    let [old, new] = [0, 1].map(|book| desk.books[book].token);
    assert_eq!((new.slot, new.generation), (old.slot, old.generation + 1));
}

#[test]
fn an_ack_of_an_open_or_of_an_acknowledged_slot_is_stale() {
    let mut desk = Desk::new(Plan { slots: 2, ..Plan::default() });
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    desk.put(book, ACK, [0; 3]);
    desk.idle();
    assert_eq!(desk.stats(0).stale_records, 1);
    desk.put(book, RESET, [0; 3]);
    desk.until_closed(book);
    desk.put(book, ACK, [0; 3]);
    desk.idle();
    assert_eq!(desk.stats(0).stale_records, 2);
    // Had the slot been freed twice it would be given to both of these.
    let (_first, _) = desk.connect(&address);
    let (_second, _) = desk.connect(&address);
}

#[test]
fn a_closed_listener_is_told_of_once_and_its_port_is_free_at_once() {
    let mut desk = Desk::default();
    let address = desk.listen().as_socket().unwrap();
    let listener = desk.listeners.remove(0);
    listener.close();
    TcpListener::bind(address).unwrap();
    desk.until("the poll notices by itself", |desk| !desk.fallen.is_empty());
    desk.inboxes.send(0, Command::CloseListener(listener.id));
    desk.idle();
    assert_eq!(desk.fallen, [(listener.id, 0)]);
    assert_eq!(Arc::strong_count(&listener), 1, "the poll has let go of it");
}

#[test]
fn a_listener_is_closed_by_command_and_connections_stay() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (peer, book) = desk.connect(&address);
    let listener = desk.listeners.remove(0);
    desk.inboxes.send(0, Command::CloseListener(listener.id));
    desk.turn();
    assert_eq!(desk.fallen, [(listener.id, 0)]);
    peer.write(b"still here");
    desk.until_arrived(book, 10);
    desk.turn();
    let _late = Peer::connect(&address);
    assert_eq!(desk.events(), 0, "epoll does not watch it any more");
}

#[test]
fn a_listener_that_epoll_refuses_is_told_of_with_its_errno() {
    let mut desk = Desk::default();
    desk.listen();
    // One that is watched already is refused.
    let listener = desk.listeners[0].clone();
    desk.inboxes.send(0, Command::Serve(listener, desk.server.clone()));
    desk.turn();
    let (id, cause) = desk.fallen[0];
    assert_eq!((id, error_kind(cause)), (0, std::io::ErrorKind::AlreadyExists));
}

#[test]
fn a_listener_that_breaks_is_told_of_with_its_errno() {
    let mut desk = Desk::default();
    desk.listen();
    let broken = &desk.listeners[0];
    SockRef::from(&broken.descriptor()).shutdown(std::net::Shutdown::Both).unwrap();
    desk.until("it is told", |desk| !desk.fallen.is_empty());
    let (id, cause) = desk.fallen[0];
    assert_eq!((id, error_kind(cause)), (0, std::io::ErrorKind::InvalidInput));
}

#[test]
fn two_polls_take_turns_with_the_connections() {
    let mut desk = Desk::new(Plan { polls: 2, ..Plan::default() });
    let address = desk.listen();
    let peers = [(); 6].map(|()| desk.connect(&address));
    let polls = desk.books.iter().map(|book| book.poll).collect::<Vec<_>>();
    assert_eq!(polls, [0, 1, 0, 1, 0, 1]);
    for (peer, book) in peers {
        peer.write(b"ping");
        desk.until_arrived(book, 4);
        desk.write(book, b"pong");
        assert_eq!(desk.peer_reads(&peer, 4), b"pong");
    }
    assert_eq!([0, 1].map(|poll| desk.stats(poll).accepts), [3, 3]);
}

#[test]
fn a_full_poll_is_passed_over_where_another_has_room() {
    let mut desk = Desk::new(Plan { polls: 3, slots: 1, ..Plan::default() });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (_second, second) = desk.connect(&address);
    let (_third, third) = desk.connect(&address);
    assert_eq!([second, third].map(|book| desk.books[book].poll).iter().sum::<usize>(), 1 + 2);
    for full in [third, second] {
        desk.put(full, RESET, [0; 3]);
        desk.until_closed(full);
        desk.idle();
        // Meanwhile there was no slot anywhere.
        desk.pass(REST);
        let (_peer, next) = desk.connect(&address);
        assert_eq!(desk.books[next].poll, desk.books[full].poll);
    }
}

#[test]
fn a_connection_that_meets_a_full_poll_all_the_same_is_closed_and_not_counted() {
    let mut desk = Desk::new(Plan { polls: 2, slots: 1, max_connections: 3, ..Plan::default() });
    let address = desk.listen();
    let (_first, _) = desk.connect(&address);
    let (_second, _) = desk.connect(&address);
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(desk.server.admit());
    let (remote, local, server) = ([0; 6], [0; 6], desk.server.clone());
    let accepted = Accepted { descriptor: ours.into(), remote, local, is_unix: true, server };
    desk.inboxes.send(1, Command::Adopt(accepted));
    desk.turn();
    assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
    assert!(desk.server.admit(), "it has left");
    desk.server.dismiss();
}

#[test]
fn a_closed_connection_has_no_descriptor_any_more() {
    let mut desk = Desk::default();
    let address = desk.listen();
    let (_peer, book) = desk.connect(&address);
    let endpoint = desk.listeners[0].endpoint.clone();
    assert_eq!(held_sockets(&endpoint), 2);
    desk.put(book, RESET, [0; 3]);
    desk.until_closed(book);
    assert_eq!(held_sockets(&endpoint), 1);
}

#[test]
fn a_connection_that_epoll_refuses_is_closed_with_its_errno() {
    let mut desk = Desk::default();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    // One that is watched already is refused.
    let registry = desk.seats[0].poll.mio.registry();
    registry.register(&mut SourceFd(&ours.as_raw_fd()), mio::Token(0), Interest::READABLE).unwrap();
    assert!(desk.server.admit());
    let (remote, local, server) = ([0; 6], [0; 6], desk.server.clone());
    let accepted = Accepted { descriptor: ours.into(), remote, local, is_unix: true, server };
    desk.inboxes.send(0, Command::Adopt(accepted));
    desk.turn();
    let cause = desk.books[0].closed.unwrap();
    assert_eq!(error_kind(cause), std::io::ErrorKind::AlreadyExists);
}
