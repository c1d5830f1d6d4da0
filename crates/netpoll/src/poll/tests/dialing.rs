use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::desk::submission::RESET;
use super::desk::{error_kind, held_clients, number, Desk, Dialed, Plan, MS, SECOND};
use super::peer::{pattern, Peer};
use crate::address;
use crate::dialer::DialOptions;
use crate::inbox::{Command, LoadBalance};
use crate::poll::moves::MOVES_PER_TURN;
use crate::record::Cause;

const PLAIN: DialOptions = DialOptions { no_delay: true, timeout: None, local: None };

fn within(timeout: Duration) -> DialOptions {
    DialOptions { timeout: Some(timeout), ..PLAIN }
}

fn from(local: String) -> DialOptions {
    DialOptions { local: Some(local), ..PLAIN }
}

fn listen(at: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port at which nobody listens. It stays ours, so that nobody will.
fn closed_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// A listener that lets nobody in any more: the kernel leaves them waiting.
fn full(host: [u8; 4], port: u16) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::from(SocketAddr::from((host, port)))).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let guest = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    guest.connect(&address).unwrap();
    (listener, vec![guest])
}

/// One of them at 127.0.0.2, and at the same port of 127.0.0.1 one that lets everybody in.
fn silent_beside_another() -> (u16, (Socket, Vec<Socket>), TcpListener) {
    loop {
        let silent = full([127, 0, 0, 2], 0);
        let port = port_of(&silent.0);
        // Somebody else may have the port there.
        if let Ok(listener) = TcpListener::bind(at(port)) {
            return (port, silent, listener);
        }
    }
}

fn port_of(socket: &Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn won(dial: u32) -> Dialed {
    Dialed { dial, cause: 0, place: 0 }
}

#[test]
fn a_dialed_connection_is_an_ordinary_one_and_both_sides_agree_on_its_addresses() {
    let mut desk = Desk::default();
    let (listener, port) = listen("127.0.0.1:0");
    desk.dial(5, ("tcp", &at(port)), &[], PLAIN);
    assert_eq!(desk.until_dialed(5), won(5));
    let peer = Peer::accept(&listener);
    let endpoints = desk.seats[0].border.addresses(desk.books[0].token.slot).unwrap();
    let ports = endpoints.map(|endpoint| address::decode(endpoint).unwrap().port);
    let theirs = desk.operator(0);
    assert!(SockRef::from(&theirs.descriptor()).tcp_nodelay().unwrap());
    assert_eq!(ports[0], port);
    assert_eq!(
        SockRef::from(&theirs.descriptor()).local_addr().unwrap().as_socket().unwrap().port(),
        ports[1]
    );
    let bytes = pattern(100_000);
    desk.write(0, &bytes);
    assert_eq!(desk.peer_reads(&peer, bytes.len()), bytes);
    desk.peer_writes(&peer, &bytes);
    desk.until_arrived(0, bytes.len());
    assert_eq!(desk.books[0].arrived, bytes);
    peer.finish();
    desk.until("the end is told", |desk| desk.books[0].is_ended);
}

#[test]
fn no_delay_is_an_option() {
    let mut desk = Desk::default();
    let (_listener, port) = listen("127.0.0.1:0");
    desk.dial(1, ("tcp", &at(port)), &[], DialOptions { no_delay: false, ..PLAIN });
    desk.until_dialed(1);
    let descriptor = desk.operator(0).descriptor();
    assert!(!SockRef::from(&descriptor).tcp_nodelay().unwrap());
}

#[test]
fn what_the_peer_sent_before_anybody_looked_is_delivered() {
    let mut desk = Desk::default();
    let (listener, port) = listen("127.0.0.1:0");
    desk.dial(1, ("tcp", &at(port)), &[], PLAIN);
    // The poll begins to connect, and sees nothing of what follows before its next turn.
    desk.turn();
    let peer = Peer::accept(&listener);
    assert_eq!(peer.write(b"hello"), 5);
    drop(peer);
    desk.until_arrived(0, 5);
    desk.until("the end is told", |desk| desk.books[0].is_ended);
}

#[test]
fn a_port_without_listener_refuses_with_the_number_of_its_address() {
    let mut desk = Desk::default();
    let (_held, port) = closed_port();
    desk.dial(9, ("tcp", &at(port)), &[], PLAIN);
    let Dialed { cause, place, .. } = desk.until_dialed(9);
    assert_eq!((error_kind(cause), place), (ErrorKind::ConnectionRefused, 0));
    assert_eq!(held_clients(port), 0);
}

#[test]
fn an_address_that_refuses_makes_room_for_the_next_one_at_once() {
    let mut desk = Desk::default();
    let (_listener, port) = listen("127.0.0.3:0");
    let name = format!("name:{port}");
    desk.dial(1, ("tcp", &name), &["127.0.0.1", "127.0.0.2", "127.0.0.3"], PLAIN);
    assert_eq!(desk.until_dialed(1), won(1));
    assert_eq!(held_clients(port), 1);
}

#[test]
fn a_dead_ipv6_address_does_not_keep_a_dial_from_ipv4() {
    let mut desk = Desk::default();
    let (_listener, port) = listen("127.0.0.1:0");
    let name = format!("name:{port}");
    desk.dial(1, ("tcp6", &name), &["::1"], within(SECOND));
    let Dialed { cause, .. } = desk.until_dialed(1);
    assert!(cause > 0, "nobody listens there: {cause}");
    desk.dial(2, ("tcp", &name), &["::1", "127.0.0.1"], PLAIN);
    assert_eq!(desk.until_dialed(2), won(2));
}

#[test]
fn an_address_that_is_silent_has_250_ms_before_the_next_one_is_tried_and_then_loses() {
    let mut desk = Desk::default();
    let (port, _silent, _listener) = silent_beside_another();
    desk.dial(1, ("tcp", &format!("name:{port}")), &["127.0.0.2", "127.0.0.1"], within(SECOND));
    desk.idle();
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + 250 * MS));
    desk.pass(250 * MS - Duration::from_nanos(1));
    desk.idle();
    assert_eq!((desk.dialed.len(), held_clients(port)), (0, 2), "the guest, and the first attempt");
    desk.pass(Duration::from_nanos(1));
    assert_eq!(desk.until_dialed(1), won(1));
    assert_eq!(held_clients(port), 2, "the guest, and the winner");
}

#[test]
fn the_first_of_two_failures_is_told() {
    let mut desk = Desk::default();
    let (_held, port) = closed_port();
    // The kernel itself refuses to connect to the second one.
    desk.dial(1, ("tcp", &format!("name:{port}")), &["127.0.0.1", "255.255.255.255"], PLAIN);
    let Dialed { cause, place, .. } = desk.until_dialed(1);
    assert_eq!((error_kind(cause), place), (ErrorKind::ConnectionRefused, 0));
}

#[test]
fn a_dial_times_out_exactly_then_and_holds_nothing_any_more() {
    let mut desk = Desk::default();
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let port = port_of(&silent);
    desk.dial(1, ("tcp", &at(port)), &[], within(SECOND));
    desk.idle();
    assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + SECOND));
    desk.pass(SECOND - Duration::from_nanos(1));
    assert_eq!((desk.dialed.len(), held_clients(port)), (0, 2));
    desk.pass(Duration::from_nanos(1));
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::DIAL_TIMEOUT), place: 0 }]);
    assert_eq!((held_clients(port), desk.seats[0].left.next_deadline), (1, None));
}

/// A unix socket whose backlog is full, and who has filled it.
fn full_unix(name: &str) -> (Socket, Vec<Socket>) {
    let address = SockAddr::unix(format!("\0{name}")).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut guests = Vec::new();
    loop {
        let guest = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        match guest.connect(&address) {
            Ok(()) => guests.push(guest),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return (listener, guests);
            }
        }
    }
}

#[test]
fn a_unix_socket_with_a_full_backlog_is_tried_again_until_there_is_room() {
    let mut desk = Desk::default();
    let name = format!("netpoll-busy-{}", std::process::id());
    let (listener, _guests) = full_unix(&name);
    desk.dial(1, ("unix", &format!("@{name}")), &[], PLAIN);
    for _ in 0..3 {
        desk.idle();
        assert!(desk.dialed.is_empty());
        assert_eq!(desk.seats[0].left.next_deadline, Some(desk.now + 5 * MS));
        desk.pass(5 * MS);
    }
    drop(listener.accept().unwrap());
    desk.pass(5 * MS);
    assert_eq!(desk.dialed, [won(1)]);
}

#[test]
fn a_unix_socket_with_a_full_backlog_is_given_up_at_the_timeout() {
    let mut desk = Desk::default();
    let name = format!("netpoll-full-{}", std::process::id());
    let _full = full_unix(&name);
    desk.dial(1, ("unix", &format!("@{name}")), &[], within(12 * MS));
    desk.turn();
    for _ in 0..2 {
        desk.pass(5 * MS);
    }
    // The last time, the turn is due at the deadline and not one delay later.
    assert_eq!((desk.dialed.len(), desk.seats[0].left.next_deadline), (0, Some(desk.now + 2 * MS)));
    desk.pass(2 * MS);
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::DIAL_TIMEOUT), place: 0 }]);
}

#[test]
fn a_unix_socket_that_is_not_there_fails_at_once() {
    let mut desk = Desk::default();
    desk.dial(1, ("unix", "/nowhere/at/all"), &[], PLAIN);
    desk.turn();
    assert_eq!(error_kind(desk.dialed[0].cause), ErrorKind::NotFound);
}

#[test]
fn a_dial_that_is_canceled_is_answered_so_and_closes_its_socket() {
    let mut desk = Desk::default();
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let port = port_of(&silent);
    desk.dial(1, ("tcp", &at(port)), &[], within(SECOND));
    desk.turn();
    assert_eq!(held_clients(port), 2);
    desk.inboxes.send(0, Command::CancelDial(1));
    desk.turn();
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::CANCELED), place: -1 }]);
    assert_eq!(held_clients(port), 1);
}

#[test]
fn canceling_a_dial_that_was_answered_changes_nothing() {
    let mut desk = Desk::default();
    let (_listener, port) = listen("127.0.0.1:0");
    desk.dial(1, ("tcp", &at(port)), &[], PLAIN);
    desk.until_dialed(1);
    desk.inboxes.send(0, Command::CancelDial(1));
    desk.idle();
    assert_eq!((desk.dialed.len(), desk.books[0].closed), (1, None));
}

#[test]
fn a_dial_that_finds_every_slot_taken_fails_for_want_of_descriptors() {
    let mut desk = Desk::new(Plan { slots: 1, ..Plan::default() });
    let (listener, port) = listen("127.0.0.1:0");
    desk.dial(1, ("tcp", &at(port)), &[], PLAIN);
    desk.until_dialed(1);
    let _first = Peer::accept(&listener);
    desk.dial(2, ("tcp", &at(port)), &[], PLAIN);
    assert_eq!(desk.until_dialed(2).cause, number(Cause::EXHAUSTED));
    let second = Peer::accept(&listener);
    assert!(desk.peer_reads_to_end(&second).0.is_empty());
    assert_eq!(held_clients(port), 1);
    desk.put(0, RESET, [0; 3]);
    desk.until_closed(0);
    desk.turn();
    desk.dial(3, ("tcp", &at(port)), &[], PLAIN);
    assert_eq!(desk.until_dialed(3), won(3));
}

#[test]
fn a_port_that_would_connect_to_itself_refuses() {
    let mut desk = Desk::default();
    let (held, port) = closed_port();
    drop(held);
    desk.dial(1, ("tcp", &at(port)), &[], from(at(port)));
    let Dialed { cause, place, .. } = desk.until_dialed(1);
    assert_eq!((error_kind(cause), place), (ErrorKind::ConnectionRefused, 0));
    assert_eq!((held_clients(port), desk.books.len()), (0, 0));
}

#[test]
fn a_connection_comes_from_the_local_address_and_port_that_was_asked_for() {
    let mut desk = Desk::default();
    let (listener, port) = listen("127.0.0.1:0");
    let (held, own) = closed_port();
    drop(held);
    for (dial, local) in [(1, format!("127.0.0.7:{own}")), (2, "127.0.0.8".into())] {
        desk.dial(dial, ("tcp", &at(port)), &[], from(local));
        assert_eq!(desk.until_dialed(dial), won(dial));
    }
    let peers = [(); 2].map(|()| listener.accept().unwrap().1);
    assert_eq!(peers[0], SocketAddr::from(([127, 0, 0, 7], own)));
    assert_eq!(peers[1].ip().to_string(), "127.0.0.8");
}

#[test]
fn a_local_address_that_cannot_be_bound_is_told_as_the_place() {
    let mut desk = Desk::default();
    let (_listener, port) = listen("127.0.0.1:0");
    // TEST-NET-1 is nobody's.
    desk.dial(1, ("tcp", &at(port)), &[], from("192.0.2.1".into()));
    desk.dial(2, ("tcp", &at(port)), &[], from(at(port)));
    desk.turn();
    let told = desk.dialed.iter().map(|dialed| (error_kind(dialed.cause), dialed.place));
    let expected = [(ErrorKind::AddrNotAvailable, -1), (ErrorKind::AddrInUse, -1)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn an_event_of_a_former_socket_is_no_connection() {
    let mut desk = Desk::default();
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    desk.dial(1, ("tcp", &at(port_of(&silent))), &[], within(SECOND));
    desk.turn();
    for told in [(1, 0), (1, 1), (2, 0)] {
        desk.seats[0].poll.dials.told.push(told);
    }
    desk.idle();
    assert!(desk.dialed.is_empty());
    desk.pass(SECOND);
}

#[test]
fn dials_that_are_over_leave_no_timers_behind() {
    let mut desk = Desk::default();
    let (_held, port) = closed_port();
    for dial in 0..3000 {
        desk.dial(dial, ("tcp", &at(port)), &[], within(1000 * SECOND));
        desk.inboxes.send(0, Command::CancelDial(dial));
        desk.turn();
    }
    let entries = desk.seats[0].poll.timers.len();
    assert!(entries < 1100, "{entries}");
}

#[test]
fn many_dials_at_once_are_each_answered_and_the_connections_come_out_even() {
    const DIALS: u32 = 50;
    let mut desk = Desk::new(Plan { ring_entries: 8, ..Plan::default() });
    let (listener, port) = listen("127.0.0.1:0");
    (0..DIALS).for_each(|dial| desk.dial(dial, ("tcp", &at(port)), &[], PLAIN));
    desk.until("all are answered", |desk| desk.dialed.len() == DIALS as usize);
    assert!(desk.dialed.iter().all(|dialed| dialed.cause == 0));
    let peers = (0..DIALS).map(|_| Peer::accept(&listener)).collect::<Vec<_>>();
    (0..DIALS as usize).for_each(|book| desk.put(book, RESET, [0; 3]));
    desk.until("all are closed", |desk| desk.books.iter().all(|book| book.closed.is_some()));
    assert_eq!((peers.len(), held_clients(port)), (DIALS as usize, 0));
}

/// A desk whose last poll dials.
fn dialing(polls: usize, to: &str, resolved: &[&str], options: DialOptions) -> Desk {
    let mut desk = Desk::new(Plan { polls, ..Plan::default() });
    desk.dial_at(polls - 1, 1, ("tcp", to), resolved, options);
    desk.turn();
    desk
}

fn until_moved(desk: &mut Desk, from: usize) {
    desk.inboxes.retire(from);
    desk.until("its poll is empty", |desk| desk.seats[from].retired() == 1);
}

#[test]
fn a_dial_whose_poll_retires_goes_on_at_another_one_and_its_time_with_it() {
    let (port, _silent, _listener) = silent_beside_another();
    let resolved = ["127.0.0.2", "127.0.0.1"];
    let mut desk = dialing(3, &format!("name:{port}"), &resolved, within(SECOND));
    desk.pass(100 * MS);
    until_moved(&mut desk, 2);
    assert_eq!((desk.dials_moved[0], held_clients(port)), ([1, 0, 1], 2), "the guest, and the first attempt");
    desk.pass(150 * MS - Duration::from_nanos(1));
    assert!(desk.dialed.is_empty());
    desk.pass(Duration::from_nanos(1));
    assert_eq!(desk.until_dialed(1), won(1));
    assert_eq!((desk.books[0].poll, held_clients(port)), (0, 2), "the guest, and the winner");
}

#[test]
fn an_attempt_that_is_answered_after_the_move_wins_at_the_new_poll() {
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let port = port_of(&silent);
    let mut desk = dialing(2, &at(port), &[], PLAIN);
    until_moved(&mut desk, 1);
    drop(silent.accept().unwrap());
    // The kernel knocks again after a second.
    assert_eq!(desk.until_dialed(1), won(1));
    assert_eq!(desk.books[0].poll, 0);
}

#[test]
fn a_dial_that_moves_twice_tells_how_often_and_times_out_exactly_then() {
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let mut desk = dialing(3, &at(port_of(&silent)), &[], within(SECOND));
    // The second poll's turn comes before the third one's.
    desk.inboxes.set_balance(LoadBalance::LeastConnections);
    desk.inboxes.expect(0);
    until_moved(&mut desk, 2);
    until_moved(&mut desk, 1);
    assert_eq!(desk.dials_moved, [[1, 1, 1], [1, 0, 2]]);
    desk.pass(SECOND - Duration::from_nanos(1));
    assert!(desk.dialed.is_empty());
    desk.pass(Duration::from_nanos(1));
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::DIAL_TIMEOUT), place: 0 }]);
    assert_eq!(held_clients(port_of(&silent)), 1);
}

#[test]
fn a_dial_that_has_moved_is_canceled_at_its_new_poll() {
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let mut desk = dialing(2, &at(port_of(&silent)), &[], PLAIN);
    desk.inboxes.retire(1);
    desk.until("it has moved", |desk| !desk.dials_moved.is_empty());
    desk.inboxes.send(1, Command::CancelDial(1));
    desk.idle();
    assert!(desk.dialed.is_empty(), "the old poll does not know it any more");
    desk.inboxes.send(0, Command::CancelDial(1));
    desk.turn();
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::CANCELED), place: -1 }]);
    assert_eq!(held_clients(port_of(&silent)), 1);
}

#[test]
fn a_dial_goes_on_at_a_poll_that_retires_while_there_is_no_other() {
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let mut desk = dialing(1, &at(port_of(&silent)), &[], within(SECOND));
    desk.inboxes.retire(0);
    desk.idle();
    assert_eq!((desk.dials_moved.len(), desk.seats[0].retired(), desk.seats[0].left.more), (0, 0, false));
    desk.pass(SECOND);
    assert_eq!(desk.dialed, [Dialed { dial: 1, cause: number(Cause::DIAL_TIMEOUT), place: 0 }]);
    assert_eq!(desk.seats[0].retired(), 1);
}

#[test]
fn a_poll_that_retires_hands_over_so_many_dials_in_a_turn_and_loses_none() {
    const DIALS: u32 = MOVES_PER_TURN as u32 + 10;
    let (silent, _guests) = full([127, 0, 0, 1], 0);
    let mut desk = dialing(2, &at(port_of(&silent)), &[], within(SECOND));
    for dial in 2..=DIALS {
        desk.dial_at(1, dial, ("tcp", &at(port_of(&silent))), &[], within(SECOND));
    }
    desk.turn();
    desk.inboxes.retire(1);
    desk.turn();
    assert_eq!((desk.seats[1].poll.dials.len(), desk.seats[1].left.more), (10, true));
    desk.until("its poll is empty", |desk| desk.seats[1].retired() == 1);
    desk.turn();
    desk.pass(SECOND);
    desk.until("all are answered", |desk| desk.dialed.len() == DIALS as usize);
    assert_eq!(held_clients(port_of(&silent)), 1);
}
