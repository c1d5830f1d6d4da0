//! Every system call fails, at each of its first fifty calls and in every way: what peers and JavaScript get is right
//! to the byte, or there is one error, which names the errno. Nothing is left behind, and nothing spins.
//!
//! NETPOLL_FAULTS=all is the whole of it; without, some of the fifty calls stand for the others.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::IntoRawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, LazyLock};
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

use super::desk::submission::{CLOSE, DETACH, END, INFO, OPTION, RESET};
use super::desk::{Desk, Plan, MS, SECOND};
use super::peer::{pattern, Peer};
use crate::block::{BlockTable, CHUNK_SIZE, MAX_BLOCK};
use crate::connection::Limits;
use crate::dialer::DialOptions;
use crate::lending::ZeroCopy;
use crate::listener::{ListenError, Listener};
use crate::sys;
use crate::sys::fault::{direct, parse, Script};

const ERRORS: [&str; 7] = ["EINTR", "EAGAIN", "ENOBUFS", "ENOMEM", "EMFILE", "ECONNRESET", "EPIPE"];

/// The calls that move bytes, and so may move one alone.
const MOVERS: [&str; 5] = ["recv", "readv", "recvmsg", "send", "sendmsg"];

/// The calls that are made again, once for all, when a signal has interrupted them.
const REPEATED: [&str; 8] = ["recv", "readv", "recvmsg", "send", "sendmsg", "accept4", "ioctl", "epoll_wait"];

const CALLS: u32 = 50;
const SOME: [u32; 7] = [1, 2, 3, 7, 20, 49, 50];

/// Turns before something counts as hanging. The desk's clock goes on by 10 ms with each.
const STEPS: usize = 3000;

/// What a test looks at besides: a connection, a dial or a listener that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Every byte has arrived, and the end was orderly.
    Exact,
    Failed(i32),
}

impl End {
    fn of(cause: i32) -> End {
        if cause == 0 {
            End::Exact
        } else {
            End::Failed(cause)
        }
    }
}

/// Something to do, whatever fails meanwhile. It starts where the script does.
type Scene = fn(&mut Desk, Listener) -> Vec<End>;

#[derive(Clone, Debug)]
struct Setting {
    plan: Plan,
    network: &'static str,
    scene: Scene,
}

/// How a scene went.
struct Outcome {
    ends: Vec<End>,
    made: BTreeMap<&'static str, u32>,
    has_struck: bool,
}

impl Setting {
    fn new(network: &'static str, scene: Scene) -> Setting {
        let plan = Plan { ring_entries: 64, slots: 32, send_buffer: Some(65536), ..Plan::default() };
        Setting { plan, network, scene }
    }

    fn play(&self, faults: &str) -> Outcome {
        let script = Arc::new(Script::new(parse(faults).unwrap_or_default()));
        let mut desk = Desk::new(self.plan.clone());
        let listener = match self.network {
            "unix" => desk.bind("unix", &format!("@netpoll-faults-{:?}", thread::current().id())),
            network => desk.bind(network, "127.0.0.1:0"),
        };
        // Peers tell: each of their connections ends.
        desk.counts_sockets = self.network == "unix";
        direct(thread::current().id(), Some(script.clone()));
        let ends = catch_unwind(AssertUnwindSafe(|| {
            let ends = (self.scene)(&mut desk, listener);
            drop(desk);
            ends
        }));
        direct(thread::current().id(), None);
        let ends = ends.unwrap_or_else(|panic| {
            eprintln!("with {faults:?}");
            std::panic::resume_unwind(panic)
        });
        Outcome { ends, made: script.made(), has_struck: script.struck() > 0 }
    }

    /// Plays it without a fault, and then with each.
    fn matrix(&self, expected: &[&str]) {
        let plain = self.play("");
        assert!(plain.ends.iter().all(|end| *end == End::Exact), "{:?}", plain.ends);
        for call in expected {
            assert!(plain.made.contains_key(call), "{call} is none of {:?}", plain.made);
        }
        let mut wrong = Vec::new();
        let (mut played, mut struck) = (0, 0);
        for (call, made) in &plain.made {
            for number in numbers().filter(|number| number <= made) {
                for error in errors(call) {
                    let fault = format!("{call}:{number}:{error}");
                    let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| self.play(&fault))) else {
                        wrong.push(format!("{fault} panics"));
                        continue;
                    };
                    played += 1;
                    struck += u32::from(outcome.has_struck);
                    let objection = objection(call, error, &outcome, &plain);
                    wrong.extend(objection.map(|objection| format!("{fault}: {objection}")));
                }
            }
        }
        println!("{played} faults, of which {struck} have struck; without, there are {:?}", plain.made);
        assert!(wrong.is_empty(), "{} of {played}:\n{}", wrong.len(), wrong.join("\n"));
        // A few calls more or less are the kernel's choice.
        assert!(struck * 20 >= played * 19, "{struck} of {played} have struck");
    }
}

fn numbers() -> Box<dyn Iterator<Item = u32>> {
    match std::env::var("NETPOLL_FAULTS").as_deref() {
        Ok("all") => Box::new(1..=CALLS),
        _ => Box::new(SOME.into_iter()),
    }
}

fn errors(call: &str) -> Vec<&'static str> {
    match call {
        // Whatever else it said would be the end of its poll: that is the drivers' test.
        "epoll_wait" => vec!["EINTR"],
        _ if MOVERS.contains(&call) => ERRORS.into_iter().chain(["1b"]).collect(),
        _ => ERRORS.to_vec(),
    }
}

fn errno(error: &str) -> Option<i32> {
    let fault = parse(&format!("any:1:{error}"))?.remove(0);
    if let sys::fault::Outcome::Errno(errno) = fault.2 {
        Some(errno)
    } else {
        None
    }
}

/// Whether nobody may notice.
fn is_harmless(call: &str, error: &str) -> bool {
    match error {
        "EINTR" => REPEATED.contains(&call),
        "EAGAIN" => MOVERS.contains(&call) || call == "accept4",
        _ => false,
    }
}

/// What is wrong with an outcome.
fn objection(call: &str, error: &str, outcome: &Outcome, plain: &Outcome) -> Option<String> {
    let failed = outcome.ends.iter().filter(|end| **end != End::Exact).collect::<Vec<_>>();
    // What could not be taken out of epoll is refused when it comes there again.
    let is_kept = |end: &End| call == "epoll_ctl" && *end == End::Failed(sys::EEXIST);
    let is_typed = failed
        .iter()
        .all(|end| errno(error).is_some_and(|errno| **end == End::Failed(errno)) || is_kept(end));
    let total = |outcome: &Outcome| {
        outcome.made.iter().filter(|(call, _)| **call != "epoll_wait").map(|(_, made)| made).sum::<u32>()
    };
    let (calls, usual) = (total(outcome), total(plain));
    let may_fail = usize::from(!is_harmless(call, error));
    if failed.len() > may_fail || !is_typed {
        Some(format!("{failed:?}"))
    } else if calls > usual + 100 {
        Some(format!("{calls} calls instead of {usual}"))
    } else {
        None
    }
}

// ---- what scenes are made of

/// The first bytes of a pattern that all use.
fn bytes(length: usize) -> &'static [u8] {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(8 << 20));
    &ALL[..length]
}

/// Turns, while time goes on, until the condition holds.
#[track_caller]
fn until(desk: &mut Desk, what: &str, mut condition: impl FnMut(&mut Desk) -> bool) {
    let mut busy = 0;
    for _ in 0..STEPS {
        if condition(desk) {
            return;
        }
        let before = signs(desk);
        desk.turn();
        if signs(desk) == before {
            busy += usize::from(desk.seats.iter().any(|seat| seat.left.more));
            assert!(busy < 50, "it spins until {what}");
            desk.wait();
            desk.now += 10 * MS;
        }
    }
    panic!("it did not happen that {what}: {:?}", desk.books);
}

/// What changes whenever something has been done.
fn signs(desk: &Desk) -> u64 {
    let polls = (0..desk.seats.len()).map(|poll| desk.stats(poll));
    polls.map(|stats| stats.reads + stats.sends + stats.accepts + stats.records + stats.wakeups).sum()
}

/// Whether the listener is no more, and why.
fn fallen(desk: &Desk) -> Option<End> {
    desk.fallen.first().map(|(_, cause)| End::of(*cause))
}

/// Bytes for the peer, as far as there is memory for them.
fn try_write(desk: &mut Desk, book: usize, bytes: &[u8]) -> Option<usize> {
    drop(desk.table.alloc(bytes.len() as u32)?);
    desk.write(book, bytes);
    Some(bytes.len())
}

fn closed(desk: &Desk, book: usize) -> Option<i32> {
    desk.books.get(book)?.closed
}

/// What a peer reads, until it reads the end.
#[derive(Debug, Default)]
struct Ear {
    heard: Vec<u8>,
    end: Option<Result<(), ErrorKind>>,
}

impl Ear {
    fn listen(&mut self, peer: &Peer) {
        while self.end.is_none() {
            match peer.read() {
                Ok(None) => return,
                Ok(Some(bytes)) if bytes.is_empty() => self.end = Some(Ok(())),
                Ok(Some(bytes)) => self.heard.extend(bytes),
                Err(error) => self.end = Some(Err(error.kind())),
            }
        }
    }
}

/// A peer's messages, each as soon as the one before it has come back, and then the peer's end.
fn converse(desk: &mut Desk, peer: &Peer, book: usize, lengths: &[usize], ends: bool) -> End {
    let bytes = bytes(lengths.iter().sum());
    let (mut ear, mut said, mut echoed, mut next, mut message) = (Ear::default(), 0, 0, 0, 0);
    let (mut has_finished, mut has_ended) = (false, false);
    until(desk, "the conversation is over", |desk| {
        // What comes back meanwhile has to wait, as with many peers.
        if said == next || closed(desk, book).is_some() {
            ear.listen(peer);
        }
        if said == next && ear.heard.len() == next && message < lengths.len() {
            next += lengths[message];
            message += 1;
            // Beside small messages large ones would go in small parts, for which there is always room.
            desk.now += SECOND;
        }
        said += peer.try_write(&bytes[said..next]);
        if let Some(page) = desk.books.get(book).filter(|page| page.closed.is_none()) {
            let (answer, is_ended) = (page.arrived[echoed..].to_vec(), page.is_ended);
            if !answer.is_empty() {
                echoed +=
                    answer.chunks(16 << 10).map_while(|part| try_write(desk, book, part)).sum::<usize>();
            } else if is_ended && !std::mem::replace(&mut has_ended, true) {
                desk.put(book, END, [0; 3]);
            }
        }
        if ear.heard.len() == bytes.len() {
            if !ends {
                return true;
            }
            if !std::mem::replace(&mut has_finished, true) {
                peer.finish();
            }
        }
        let is_over = closed(desk, book).is_some() || fallen(desk).is_some();
        is_over && (ear.end.is_some() || desk.books.len() <= book)
    });
    if let Some(page) = desk.books.get(book) {
        assert!(bytes.starts_with(&page.arrived), "what has arrived is what was said");
    }
    assert!(bytes.starts_with(&ear.heard), "what was heard is what was said");
    let cause = closed(desk, book);
    if cause == Some(0) || ear.heard.len() == bytes.len() && !ends {
        assert_eq!(ear.heard.len(), bytes.len(), "an orderly end is that of everything");
        if ends {
            assert_eq!(ear.end, Some(Ok(())));
        }
        return End::Exact;
    }
    cause.map_or_else(|| fallen(desk).unwrap(), End::of)
}

/// The desk resets the connection; the peer, of a TCP connection, cannot take that for an end.
fn reset(desk: &mut Desk, peer: &Peer, book: usize, is_tcp: bool) -> End {
    let mut ear = Ear::default();
    let is_open = closed(desk, book).is_none();
    if is_open {
        desk.put(book, RESET, [0; 3]);
        desk.turn();
    }
    until(desk, "it is reset", |desk| {
        ear.listen(peer);
        closed(desk, book).is_some() && ear.end.is_some()
    });
    if is_tcp && is_open {
        assert_eq!(ear.end, Some(Err(ErrorKind::ConnectionReset)), "no end of what was said");
    }
    End::of(closed(desk, book).unwrap())
}

// ---- scenes

/// Small messages and a large one, which the kernel does not take at once.
fn echo(desk: &mut Desk, listener: Listener) -> Vec<End> {
    let address = desk.serve(listener);
    let peer = Peer::connect(&address);
    let mut lengths = (1..=55).map(|n| n * 40).collect::<Vec<_>>();
    lengths.push(1_000_000);
    vec![converse(desk, &peer, 0, &lengths, true)]
}

fn accepting(desk: &mut Desk, listener: Listener) -> Vec<End> {
    let address = desk.serve(listener);
    let mut ends = Vec::new();
    for _ in 0..CALLS {
        let (peer, book) = (Peer::connect(&address), desk.books.len());
        let end = converse(desk, &peer, book, &[3], false);
        if end != End::Exact || closed(desk, book).is_some() {
            ends.push(end);
            if fallen(desk).is_some() {
                break;
            }
            continue;
        }
        ends.push(reset(desk, &peer, book, true));
    }
    ends
}

/// A listener of the test's own, with its address as dials name it.
fn own_listener(network: &str) -> (Socket, String) {
    let (domain, address) = match network {
        "unix" => {
            let name = format!("netpoll-dials-{:?}", thread::current().id());
            (Domain::UNIX, SockAddr::unix(format!("\0{name}")).unwrap())
        }
        _ => (Domain::IPV4, SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))),
    };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    socket.bind(&address).unwrap();
    socket.listen(511).unwrap();
    socket.set_nonblocking(true).unwrap();
    let name = match socket.local_addr().unwrap().as_socket() {
        Some(address) => address.to_string(),
        None => format!("@netpoll-dials-{:?}", thread::current().id()),
    };
    (socket, name)
}

fn dialing(desk: &mut Desk, _: Listener) -> Vec<End> {
    let mut ends = Vec::new();
    for network in ["tcp", "unix"] {
        let (listener, address) = own_listener(network);
        for _ in 0..CALLS / 2 {
            ends.push(dial(desk, network, &listener, &address));
        }
    }
    ends
}

fn dial(desk: &mut Desk, network: &str, listener: &Socket, address: &str) -> End {
    let (id, book) = (desk.dialed.len() as u32, desk.books.len());
    let local = (network == "tcp").then(|| "127.0.0.1".to_owned());
    desk.dial(id, (network, address), &[], DialOptions { no_delay: true, timeout: None, local });
    until(desk, "the dial is answered", |desk| desk.dialed.len() > id as usize);
    let mut peers = std::iter::from_fn(|| Peer::waiting_at(listener)).collect::<Vec<_>>();
    let cause = desk.dialed[id as usize].cause;
    if cause != 0 {
        return End::of(cause);
    }
    let peer = peers.pop().unwrap();
    let end = converse(desk, &peer, book, &[3], false);
    if closed(desk, book).is_some() {
        return end;
    }
    reset(desk, &peer, book, network == "tcp")
}

/// Each of them is two calls to look for reports.
const ROUNDS: usize = 25;

/// Large output, of which the kernel holds a part at the end.
fn lending(desk: &mut Desk, listener: Listener) -> Vec<End> {
    let address = desk.serve(listener);
    let peer = Peer::connect(&address);
    until(desk, "it is accepted", |desk| !desk.books.is_empty() || fallen(desk).is_some());
    if desk.books.is_empty() {
        return vec![fallen(desk).unwrap()];
    }
    let (part, mut ear, mut said) = (bytes(100_000), Ear::default(), 0);
    until(desk, "it has been heard", |desk| {
        ear.listen(&peer);
        let is_open = closed(desk, 0).is_none();
        if is_open && ear.heard.len() == said && said < ROUNDS * part.len() {
            said += try_write(desk, 0, part).unwrap_or(0);
        }
        let is_settled = || desk.status(0).sent == (ROUNDS * part.len()) as u64;
        if is_open {
            is_settled() && ear.heard.len() == said
        } else {
            ear.end.is_some()
        }
    });
    assert!(ear.heard.chunks(part.len()).all(|heard| part.starts_with(heard)));
    let last = closed(desk, 0);
    if last.is_none() {
        for _ in 0..8 {
            try_write(desk, 0, bytes(MAX_BLOCK as usize));
            desk.turn();
        }
        let end = reset(desk, &peer, 0, true);
        until(desk, "the kernel is done", |desk| desk.seats[0].poll.limbo.is_empty());
        return vec![end];
    }
    vec![End::of(last.unwrap())]
}

/// Ends of all kinds, while the peer's bytes are not all read.
fn endings(desk: &mut Desk, listener: Listener) -> Vec<End> {
    desk.manners.credits = false;
    let address = desk.serve(listener);
    let bytes = bytes(20_000);
    let mut ends = Vec::new();
    for round in 0..CALLS {
        let (peer, book) = (Peer::connect(&address), desk.books.len());
        let mut said = 0;
        until(desk, "it is read in part", |desk| {
            said += peer.try_write(&bytes[said..]);
            let page = desk.books.get(book);
            fallen(desk).is_some()
                || closed(desk, book).is_some()
                || page.is_some_and(|page| said == bytes.len() && !page.arrived.is_empty())
        });
        if let Some(end) = fallen(desk) {
            ends.push(end);
            break;
        }
        if closed(desk, book).is_none() {
            desk.put(book, INFO, [0; 3]);
            desk.put(book, OPTION, [1, 1, 0]);
            desk.put(book, OPTION, [3, 1000, 0]);
            desk.put(book, [CLOSE, DETACH][round as usize % 2], [0; 3]);
        }
        until(desk, "it has ended", |desk| closed(desk, book).is_some());
        // Else the kernel would remember them all for a minute.
        peer.reset();
        let page = &desk.books[book];
        assert!(bytes.starts_with(&page.arrived));
        ends.push(End::of(page.closed.unwrap()));
        if page.detached.is_some() {
            drop(desk.take_detached(book).unwrap());
        }
    }
    ends
}

/// Connections of a poll that retires, each in the middle of something.
fn moving(desk: &mut Desk, listener: Listener) -> Vec<End> {
    let address = desk.serve(listener);
    let mut peers = Vec::new();
    while peers.len() < 20 && fallen(desk).is_none() {
        let (peer, book) = (Peer::connect(&address), desk.books.len());
        until(desk, "it is accepted", |desk| desk.books.len() > book || fallen(desk).is_some());
        peers.push((peer, book));
    }
    if let Some(end) = fallen(desk) {
        return vec![end];
    }
    for (peer, _) in &peers {
        peer.try_write(b"before ");
    }
    desk.inboxes.retire(1);
    until(desk, "all are at one poll", |desk| {
        desk.books.iter().all(|page| page.closed.is_some() || page.poll == 0)
    });
    let end = |desk: &mut Desk, (peer, book): &(Peer, usize)| {
        peer.try_write(b"after");
        until(desk, "it has come", |desk| {
            let page = &desk.books[*book];
            page.arrived == b"before after" || page.closed.is_some()
        });
        assert!(b"before after".starts_with(&desk.books[*book].arrived));
        reset(desk, peer, *book, false)
    };
    peers.iter().map(|peer| end(desk, peer)).collect()
}

/// The desk ends its side first, and the peer goes on until it has heard of that.
fn half_closes(desk: &mut Desk, listener: Listener) -> Vec<End> {
    let address = desk.serve(listener);
    let mut ends = Vec::new();
    for _ in 0..CALLS {
        let (peer, book) = (Peer::connect(&address), desk.books.len());
        let end = converse(desk, &peer, book, &[3], false);
        if end == End::Exact && closed(desk, book).is_none() {
            ends.push(half_close(desk, &peer, book));
            continue;
        }
        ends.push(end);
        if fallen(desk).is_some() {
            break;
        }
    }
    ends
}

fn half_close(desk: &mut Desk, peer: &Peer, book: usize) -> End {
    let mut ear = Ear::default();
    desk.put(book, END, [0; 3]);
    desk.turn();
    until(desk, "the peer hears the end", |_| {
        ear.listen(peer);
        ear.end.is_some()
    });
    peer.try_write(b"and the last of it");
    peer.finish();
    desk.turn();
    until(desk, "it is over", |desk| closed(desk, book).is_some());
    let page = &desk.books[book];
    let is_exact = page.arrived.ends_with(b"and the last of it") && ear.end == Some(Ok(()));
    assert!(is_exact || page.closed != Some(0), "{page:?}");
    End::of(page.closed.unwrap())
}

// ---- the matrix

#[test]
fn echoes_over_tcp_are_exact_or_fail_once_whatever_call_fails() {
    let calls = ["accept4", "epoll_ctl", "epoll_wait", "ioctl", "mmap", "recv", "readv", "send", "shutdown"];
    Setting::new("tcp", echo).matrix(&calls);
}

#[test]
fn echoes_over_unix_sockets_are_exact_or_fail_once_whatever_call_fails() {
    Setting::new("unix", echo).matrix(&["accept4", "epoll_ctl", "recvmsg", "send", "shutdown"]);
}

#[test]
fn clients_are_served_or_fail_alone_whatever_call_fails() {
    Setting::new("tcp", accepting).matrix(&["accept4", "epoll_ctl", "recv", "send", "setsockopt"]);
}

#[test]
fn dials_connect_or_fail_alone_whatever_call_fails() {
    let calls = ["socket", "bind", "connect", "getsockopt", "getsockname", "getpeername", "epoll_ctl"];
    Setting::new("tcp", dialing).matrix(&calls);
}

#[test]
fn what_the_kernel_was_lent_comes_back_whatever_call_fails() {
    let mut setting = Setting::new("tcp", lending);
    setting.plan.zero_copy = ZeroCopy::Always;
    setting.plan.send_buffer = None;
    setting.matrix(&["sendmsg", "recvmsg", "setsockopt", "connect"]);
}

#[test]
fn connections_end_once_whatever_call_fails() {
    for network in ["tcp", "unix"] {
        let mut setting = Setting::new(network, endings);
        setting.plan.limits = Limits { read_high_water_mark: 100, ..setting.plan.limits };
        setting.matrix(&["getsockopt", "setsockopt", "recv", "epoll_ctl", "shutdown"]);
    }
}

#[test]
fn each_direction_ends_apart_or_both_fail_whatever_call_fails() {
    Setting::new("unix", half_closes).matrix(&["shutdown", "send", "recvmsg"]);
}

#[test]
fn connections_move_or_fail_alone_whatever_call_fails() {
    let mut setting = Setting::new("tcp", moving);
    setting.plan.polls = 2;
    setting.matrix(&["epoll_ctl", "recv"]);
}

// ---- what needs no poll

/// Does something with each of its calls failing in each way.
fn each_fault(calls: &[&str], mut act: impl FnMut(&str, i32)) {
    for call in calls {
        for number in 1..=8 {
            for error in ERRORS {
                let script = Arc::new(Script::new(parse(&format!("{call}:{number}:{error}")).unwrap()));
                direct(thread::current().id(), Some(script));
                act(call, errno(error).unwrap());
                direct(thread::current().id(), None);
            }
        }
    }
}

#[test]
fn a_listener_is_there_or_has_left_nothing_whatever_call_fails() {
    let path = std::env::temp_dir().join(format!("netpoll-faults-{}", std::process::id()));
    let path = path.to_str().unwrap().to_owned();
    let desk = Desk::default();
    for (network, address) in [("tcp", "127.0.0.1:0"), ("tcp", "[::1]:0"), ("unix", &path)] {
        each_fault(&["socket", "setsockopt", "bind", "listen", "getsockname", "shutdown"], |call, errno| {
            match desk.try_bind(network, address) {
                Ok(listener) => listener.close(),
                Err(ListenError::System { error, .. }) => {
                    assert_eq!(error.raw_os_error(), Some(errno), "{call}")
                }
                Err(other) => panic!("{call}: {other}"),
            }
            assert!(!std::path::Path::new(&path).exists(), "{call} has left a file");
        });
    }
}

#[test]
fn a_descriptor_that_could_not_be_taken_over_is_left_open_and_can_be_taken_later() {
    let socket = own_listener("tcp").0;
    each_fault(&["fcntl", "getsockopt", "getsockname", "setsockopt"], |call, errno| {
        let descriptor = socket.try_clone().unwrap().into_raw_fd();
        if let Err(ListenError::System { error, .. }) = Listener::inherit(0, descriptor) {
            assert_eq!(error.raw_os_error(), Some(errno), "{call}");
            direct(thread::current().id(), None);
            Listener::inherit(0, descriptor).unwrap();
        }
    });
}

#[test]
fn memory_that_the_kernel_refuses_is_missed_once_and_every_block_comes_back() {
    let numbers = numbers().collect::<Vec<_>>();
    for fault in numbers.iter().flat_map(|number| ERRORS.map(|error| format!("mmap:{number}:{error}"))) {
        let table = BlockTable::new(64 * CHUNK_SIZE as u64);
        let script = Arc::new(Script::new(parse(&fault).unwrap()));
        direct(thread::current().id(), Some(script.clone()));
        let wanted = CALLS as usize * CHUNK_SIZE / MAX_BLOCK as usize;
        let blocks = (0..=wanted).filter_map(|_| table.alloc(MAX_BLOCK)).collect::<Vec<_>>();
        assert_eq!((blocks.len(), script.struck()), (wanted, 1), "{fault}");
        drop(blocks);
        direct(thread::current().id(), None);
        assert_eq!((table.blocks_out(), table.bytes_out()), (0, 0));
    }
}

#[test]
fn pages_that_the_kernel_does_not_take_back_stay_and_serve_again() {
    each_fault(&["madvise"], |_, _| {
        let table = BlockTable::new(64 << 20);
        for _ in 0..2 {
            let blocks = (0..48).map(|_| table.alloc(MAX_BLOCK).unwrap()).collect::<Vec<_>>();
            drop(blocks);
        }
        assert_eq!(table.blocks_out(), 0);
    });
}
