//! The polls of an environment and the listeners they serve.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::address::{AddressError, Endpoint};
use crate::block::BlockTable;
use crate::border::{Border, Doorbell};
use crate::counters::{Counters, PollStats};
use crate::dialer::{DialOptions, Request};
use crate::driver::{Drive, Driven, Driver, Driving, Outside};
use crate::handover::Handover;
use crate::helm::Side;
use crate::inbox::{Command, Inboxes, LoadBalance, MAX_POLLS};
use crate::lending::ZeroCopy;
use crate::listener::{ListenError, ListenOptions, Listener};
use crate::loop_driver::LoopDriver;
use crate::pin::PinTable;
use crate::poll::{Poll, Shared};
use crate::server::Server;
use crate::thread_driver::spawn;
use crate::token::Subject;

/// Starts the polls, hands them listeners, and stops them. Dropping it stops them and joins their threads. Whatever
/// may end polls is for the thread of the environment's loop, which is the one that drives some of them.
#[derive(Debug)]
pub struct PollManager {
    shared: Shared,
    listeners: Mutex<HashMap<u32, Entry>>,
    next_listener: AtomicU32,
    threads: Mutex<Threads>,
    driving: Driving,
}

/// A listener and the poll that serves it.
#[derive(Debug)]
struct Entry {
    listener: Arc<Listener>,
    poll: Option<usize>,
}

#[derive(Debug)]
struct Threads {
    /// By the polls' numbers.
    berths: Vec<Berth>,
    sender: Sender<()>,
    done: Receiver<()>,
    /// Polls that have not said that they are done.
    running: usize,
}

/// Where a poll has its memory, its driver and its thread: one after the other, if it is ended and started again.
#[derive(Debug)]
struct Berth {
    border: Border,
    counters: Arc<Counters>,
    drive: Option<Arc<Drive>>,
    /// Not before it is needed.
    thread: Option<JoinHandle<()>>,
}

/// A listener as it is told to JavaScript.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Its number in this environment.
    pub id: u32,
    /// Its descriptor, which stays its own.
    pub descriptor: i32,
    /// The address it is bound to.
    pub endpoint: Endpoint,
}

/// A dial that a poll works at.
#[derive(Clone, Debug)]
pub struct Dialing {
    /// The number of that poll.
    pub poll: usize,
    /// The addresses, as DIALED numbers them.
    pub endpoints: Vec<Endpoint>,
}

impl PollManager {
    /// Starts one poll for each border.
    pub fn start(
        borders: &[Border],
        doorbell: &Doorbell,
        table: &Arc<BlockTable>,
        pins: &Arc<PinTable>,
        driving: Driving,
    ) -> io::Result<PollManager> {
        let (sender, done) = channel();
        let inboxes = Arc::new(Inboxes::new(borders.first().map_or(0, Border::slots)));
        let (table, pins, doorbell) = (table.clone(), pins.clone(), doorbell.clone());
        let manager = PollManager {
            shared: Shared {
                table,
                pins,
                inboxes,
                handover: Arc::<Handover>::default(),
                doorbell,
                zero_copy: Arc::default(),
            },
            listeners: Mutex::default(),
            next_listener: AtomicU32::new(0),
            threads: Mutex::new(Threads { berths: Vec::new(), sender, done, running: 0 }),
            driving,
        };
        borders.iter().try_for_each(|border| manager.add(*border))?;
        Ok(manager)
    }

    /// Starts one more poll, with the next number.
    pub fn add(&self, border: Border) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        let index = threads.berths.len();
        if index >= MAX_POLLS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        threads.berths.push(Berth { border, counters: Arc::default(), drive: None, thread: None });
        self.launch(&mut threads, index).inspect_err(|_| drop(threads.berths.pop()))
    }

    /// Starts a poll that has ended anew, in the same memory, whose header JavaScript has set to 0.
    pub fn restart(&self, poll: usize) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        let berth = threads.berths.get_mut(poll).ok_or(io::ErrorKind::NotFound)?;
        // It has told that it ends.
        berth.join();
        self.launch(&mut threads, poll)
    }

    fn launch(&self, threads: &mut Threads, index: usize) -> io::Result<()> {
        let Threads { berths, sender, running, .. } = threads;
        let berth = berths.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        let mio = mio::Poll::new()?;
        let waker = mio::Waker::new(mio.registry(), Subject::Waker.mio())?;
        let descriptor = mio.as_raw_fd();
        let poll = Poll::new(index, mio, berth.border, self.shared.clone(), berth.counters.clone())?;
        let Driving { driver, busy_poll } = self.driving;
        let outside = Outside {
            border: berth.border,
            doorbell: self.shared.doorbell.clone(),
            counters: berth.counters.clone(),
            done: sender.clone(),
        };
        let drive =
            Drive::new(index, descriptor, Driven::new(poll, busy_poll, Instant::now()), driver, outside);
        let drive = Arc::new(drive);
        // Before anybody runs it: who dies in its first turn closes it again.
        self.shared.inboxes.open(index, waker);
        if driver == Driver::Thread {
            berth.thread = Some(spawn(drive.clone()).inspect_err(|_| drive.abandon())?);
        }
        berth.drive = Some(drive);
        *running += 1;
        threads.share_cores();
        Ok(())
    }

    /// The loop's side of a poll. None of one that has a thread for good.
    pub fn loop_driver(&self, poll: usize) -> Option<LoopDriver> {
        let drive = lock(&self.threads).berths.get(poll)?.drive.clone()?;
        (self.driving.driver != Driver::Thread).then(|| LoopDriver::new(drive))
    }

    /// Hands a poll from the loop, which has let go of its descriptor, to its thread. False when there is none to be
    /// had, and the loop goes on then; and of a poll that has ended.
    pub fn hand_over(&self, poll: usize) -> bool {
        let mut threads = lock(&self.threads);
        let Some(berth) = threads.berths.get_mut(poll) else { return false };
        let Some(drive) = berth.drive.as_ref().filter(|drive| !drive.is_stopped()) else { return false };
        if berth.thread.is_none() {
            berth.thread = spawn(drive.clone()).ok();
        }
        let Some(thread) = &berth.thread else { return false };
        drive.pass(Side::Thread);
        thread.thread().unpark();
        true
    }

    /// For tests: lets the other side run the poll after its next turn.
    pub fn flip(&self, poll: usize) {
        if let Some(drive) = lock(&self.threads).berths.get(poll).and_then(|berth| berth.drive.as_ref()) {
            drive.flip();
        }
        self.shared.inboxes.wake(poll);
    }

    /// Lets a poll move its connections to the others. It is given no new ones.
    pub fn retire(&self, poll: usize) {
        self.shared.inboxes.retire(poll);
    }

    /// Ends a poll that has told that it has no connections any more. The loop has let go of its descriptor.
    pub fn end(&self, poll: usize) {
        let threads = lock(&self.threads);
        if let Some(berth) = threads.berths.get(poll) {
            berth.stop();
            self.shared.inboxes.wake(poll);
        }
        threads.share_cores();
    }

    /// How the polls of new connections are chosen from now on.
    pub fn set_load_balance(&self, balance: LoadBalance) {
        self.shared.inboxes.set_balance(balance);
    }

    /// Whether large output is sent without a copy from now on.
    pub fn set_zero_copy(&self, zero_copy: ZeroCopy) {
        self.shared.zero_copy.set(zero_copy);
    }

    /// Wakes a poll that sleeps.
    pub fn wake(&self, poll: usize) {
        self.shared.inboxes.wake(poll);
    }

    /// Binds and listens. Nothing is accepted before `serve`.
    pub fn listen(
        &self,
        network: &str,
        address: &str,
        options: &ListenOptions,
    ) -> Result<Listening, ListenError> {
        self.keep(|id| Listener::bind(id, network, address, options))
    }

    /// Accepts at a listening socket that another process has opened. It is this one's from then on.
    pub fn inherit(&self, descriptor: RawFd) -> Result<Listening, ListenError> {
        self.keep(|id| Listener::inherit(id, descriptor))
    }

    /// The descriptor that a DETACHED record of this poll has named, open. `None` when the poll is gone.
    pub fn take_detached(&self, poll: usize, descriptor: RawFd) -> Option<OwnedFd> {
        self.shared.handover.take(poll, descriptor)
    }

    fn keep(
        &self,
        listener: impl FnOnce(u32) -> Result<Listener, ListenError>,
    ) -> Result<Listening, ListenError> {
        // Relaxed: only the number's uniqueness matters.
        let id = self.next_listener.fetch_add(1, Ordering::Relaxed);
        let listener = Arc::new(listener(id)?);
        let (descriptor, endpoint) = (listener.descriptor().as_raw_fd(), listener.endpoint.clone());
        lock(&self.listeners).insert(id, Entry { listener, poll: None });
        Ok(Listening { id, descriptor, endpoint })
    }

    /// Lets a poll accept from the listener, and tells which. None when there is none, or it is served already.
    /// It is the first one that goes on, for that one is never asked to retire; the connections are spread.
    pub fn serve(&self, listener: u32, server: &Arc<Server>) -> Option<usize> {
        let mut listeners = lock(&self.listeners);
        let entry = listeners.get_mut(&listener).filter(|entry| entry.poll.is_none())?;
        let poll = self.shared.inboxes.first().unwrap_or(0);
        entry.poll = Some(poll);
        self.shared.inboxes.send(poll, Command::Serve(entry.listener.clone(), server.clone()));
        Some(poll)
    }

    /// Refuses new connections at once; a LISTENER record follows when a poll served it.
    pub fn close_listener(&self, listener: u32) {
        let Some(entry) = lock(&self.listeners).remove(&listener) else { return };
        entry.listener.close();
        if let Some(poll) = entry.poll {
            self.shared.inboxes.send(poll, Command::CloseListener(listener));
        }
    }

    /// Lets a poll connect; a DIALED record with this `id` tells what came of it. `address` is a network and a text,
    /// `resolved` the IP addresses of its host if that is a name.
    pub fn dial(
        &self,
        id: u32,
        address: (&str, &str),
        resolved: &[String],
        options: DialOptions,
        server: Server,
    ) -> Result<Dialing, AddressError> {
        let request = Request::new(id, address, resolved, options, server)?;
        let inboxes = &self.shared.inboxes;
        // Where every poll is full it is the first one that says so.
        let (poll, endpoints) = (inboxes.pick().or(inboxes.first()).unwrap_or(0), request.endpoints());
        inboxes.send(poll, Command::Dial(Box::new(request)));
        Ok(Dialing { poll, endpoints })
    }

    /// Makes an end of a dial, if there still is none.
    pub fn cancel_dial(&self, poll: usize, id: u32) {
        self.shared.inboxes.send(poll, Command::CancelDial(id));
    }

    /// Counters of each poll, also of those that have ended.
    pub fn stats(&self) -> Vec<PollStats> {
        lock(&self.threads).berths.iter().map(|berth| berth.counters.snapshot()).collect()
    }

    /// Makes a poll's thread panic, for tests of what follows.
    pub fn crash(&self, poll: usize) {
        self.shared.inboxes.send(poll, Command::Crash);
    }

    /// Stops all polls; their descriptors are closed. True when all have ended within `patience`. The loop has let go
    /// of the descriptors.
    pub fn stop(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut threads = lock(&self.threads);
        self.ask_to_stop(&threads);
        while threads.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if threads.done.recv_timeout(left).is_err() {
                return false;
            }
            threads.running -= 1;
        }
        true
    }

    /// Stops all polls and waits for their threads, however long it takes: a turn never blocks. The loop has let go
    /// of the descriptors.
    pub fn join(&self) {
        let mut threads = lock(&self.threads);
        self.ask_to_stop(&threads);
        threads.berths.iter_mut().for_each(Berth::join);
        // What was on its way to a poll has a descriptor too.
        (0..MAX_POLLS).flat_map(|poll| self.shared.inboxes.close(poll)).for_each(Command::discard);
        lock(&self.listeners).drain().for_each(|(_, entry)| entry.listener.close());
    }

    fn ask_to_stop(&self, threads: &Threads) {
        for (poll, berth) in threads.berths.iter().enumerate() {
            berth.stop();
            self.shared.inboxes.wake(poll);
        }
    }
}

impl Threads {
    /// Only where JavaScript and every poll have a core of their own may threads use up theirs.
    fn share_cores(&self) {
        let drives = || self.berths.iter().filter_map(|berth| berth.drive.as_ref());
        let running = drives().filter(|drive| !drive.is_stopped()).count();
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        // Relaxed: a hint.
        drives().for_each(|drive| drive.may_spin.store(cores > running + 1, Ordering::Relaxed));
    }
}

impl Berth {
    /// Whoever runs the poll ends it: its thread, or this one, which is the loop's.
    fn stop(&self) {
        let Some(drive) = &self.drive else { return };
        if drive.ask_to_stop() {
            drive.conclude(true, Instant::now());
        }
        self.thread.as_ref().inspect(|handle| handle.thread().unpark());
    }

    fn join(&mut self) {
        self.stop();
        if let Some(handle) = self.thread.take() {
            // It catches its panics itself.
            let _ = handle.join();
        }
    }
}

impl Drop for PollManager {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use super::*;
    use crate::acceptor::Accepted;
    use crate::connection::Limits;
    use crate::tests::words;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn start(polls: usize) -> PollManager {
        let borders = (0..polls).map(|_| Border::new(words(64 + 2 * 8 * 8 + 8 * 24), 8, 8).unwrap());
        let doorbell = Doorbell::new(&words(1)[0], Arc::new(|| ()));
        let (table, pins) = (BlockTable::new(8 << 20), PinTable::new());
        let driving = Driving { driver: Driver::Thread, busy_poll: Duration::ZERO };
        PollManager::start(&borders.collect::<Vec<_>>(), &doorbell, &table, &pins, driving).unwrap()
    }

    fn server() -> Arc<Server> {
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        Arc::new(Server::new(0, limits, 0, true))
    }

    fn connect(listening: &Listening) -> TcpStream {
        let client = TcpStream::connect(("127.0.0.1", listening.endpoint.port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "it did not happen that {what}");
            std::thread::yield_now();
        }
    }

    fn open_connections(manager: &PollManager) -> Vec<u64> {
        manager.stats().iter().map(|stats| stats.connections).collect()
    }

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("netpoll-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    fn errno(outcome: Result<Listening, ListenError>) -> io::ErrorKind {
        match outcome {
            Err(ListenError::System { syscall: "listen", error }) => error.kind(),
            other => panic!("{other:?}"),
        }
    }

    fn dial(manager: &PollManager, id: u32, address: &str) -> Dialing {
        let options = DialOptions { no_delay: true, timeout: None, local: None };
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        manager.dial(id, ("tcp", address), &[], options, Server::new(0, limits, 0, true)).unwrap()
    }

    #[test]
    fn dials_are_spread_over_the_polls_and_join_closes_what_came_of_them() {
        let manager = start(2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let polls = [0, 1, 2, 3].map(|id| dial(&manager, id, &address).poll);
        assert_eq!(polls, [0, 1, 0, 1]);
        let mut peers = [(); 4].map(|()| listener.accept().unwrap().0);
        until("all are connected", || open_connections(&manager) == [2, 2]);
        manager.join();
        for peer in &mut peers {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn the_inbox_of_a_poll_that_dies_in_its_first_turn_is_closed() {
        const DIED: usize = 2;
        const SUBMISSION_BACKLOGGED: usize = 33;
        let driving = Driving { driver: Driver::Thread, busy_poll: Duration::ZERO };
        for _ in 0..20 {
            let words = words(64 + 2 * 8 * 8 + 8 * 24);
            // The first turn rings for this word.
            words[SUBMISSION_BACKLOGGED].store(1, Ordering::Relaxed);
            let border = Border::new(words, 8, 8).unwrap();
            let doorbell = Doorbell::new(&crate::tests::words(1)[0], Arc::new(|| panic!("on purpose")));
            let (table, pins) = (BlockTable::new(8 << 20), PinTable::new());
            let manager = PollManager::start(&[border], &doorbell, &table, &pins, driving).unwrap();
            until("it has died", || words[DIED].load(Ordering::Acquire) == 1);
            assert!(manager.stop(PATIENCE));
            assert!(manager.shared.inboxes.offer(0, Command::CloseListener(0)).is_some());
        }
    }

    #[cfg(feature = "fault")]
    #[test]
    fn a_fault_of_its_thread_closes_the_inbox_of_a_poll_that_may_be_added_later() {
        use crate::sys::fault::{direct, parse, Script};

        let manager = start(1);
        let border = Border::new(words(64 + 2 * 8 * 8 + 8 * 24), 8, 8).unwrap();
        let script = Script::new(parse("pthread_create:1:EAGAIN").unwrap());
        direct(std::thread::current().id(), Some(Arc::new(script)));
        assert_eq!(manager.add(border).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        direct(std::thread::current().id(), None);
        assert!(manager.shared.inboxes.offer(1, Command::CloseListener(0)).is_some());
        assert!(manager.shared.inboxes.offer(0, Command::CloseListener(0)).is_none());
        manager.add(border).unwrap();
        assert!(manager.shared.inboxes.offer(1, Command::CloseListener(0)).is_none());
    }

    #[test]
    fn connections_are_spread_over_the_polls() {
        let manager = start(2);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        assert!(manager.serve(listening.id, &server()).is_some());
        let _clients = [(); 6].map(|()| connect(&listening));
        until("all are accepted", || open_connections(&manager) == [3, 3]);
    }

    #[test]
    fn join_closes_every_connection_and_every_listener() {
        let manager = start(2);
        let listening =
            [(); 3].map(|()| manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap());
        // The last one is never served.
        listening[..2].iter().for_each(|listening| assert!(manager.serve(listening.id, &server()).is_some()));
        let mut clients = [0, 0, 0, 1].map(|which| connect(&listening[which]));
        until("all are accepted", || open_connections(&manager) == [2, 2]);
        manager.join();
        for client in &mut clients {
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        for listening in &listening {
            TcpListener::bind(("127.0.0.1", listening.endpoint.port)).unwrap();
        }
    }

    #[test]
    fn join_closes_a_connection_that_was_on_its_way_to_a_poll() {
        let manager = start(1);
        assert!(manager.stop(PATIENCE));
        let (mut client, descriptor) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (remote, local) = ([0; 6], [0; 6]);
        let accepted =
            Accepted { descriptor: descriptor.into(), remote, local, is_unix: true, server: server() };
        manager.shared.inboxes.send(0, Command::Adopt(accepted));
        manager.join();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn stop_waits_for_the_polls_and_can_be_asked_again() {
        let manager = start(2);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        assert!(manager.serve(listening.id, &server()).is_some());
        let mut client = connect(&listening);
        until("it is accepted", || open_connections(&manager).iter().sum::<u64>() == 1);
        assert!(manager.stop(PATIENCE) && manager.stop(Duration::ZERO));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_client_that_came_before_serve_is_served() {
        let manager = start(1);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        let _client = connect(&listening);
        assert!(manager.serve(listening.id, &server()).is_some());
        until("it is accepted", || open_connections(&manager) == [1]);
    }

    #[test]
    fn a_listener_is_served_once_and_an_unknown_one_never() {
        let manager = start(1);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        let outcomes = [listening.id, listening.id, 77].map(|id| manager.serve(id, &server()));
        assert_eq!(outcomes, [Some(0), None, None]);
        manager.close_listener(listening.id);
        manager.close_listener(listening.id);
        assert!(manager.serve(listening.id, &server()).is_none(), "nor a closed one");
    }

    #[test]
    fn the_port_of_a_closed_listener_is_free_at_once() {
        let manager = start(1);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        assert!(manager.serve(listening.id, &server()).is_some());
        manager.close_listener(listening.id);
        let again = format!("127.0.0.1:{}", listening.endpoint.port);
        manager.listen("tcp", &again, &ListenOptions::PLAIN).unwrap();
    }

    #[test]
    fn a_port_in_use_is_told_as_such() {
        let manager = start(1);
        let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
        let again = format!("127.0.0.1:{}", listening.endpoint.port);
        assert_eq!(errno(manager.listen("tcp", &again, &ListenOptions::PLAIN)), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_path_that_exists_is_in_use_and_stays_unless_it_is_a_stale_socket() {
        let manager = start(1);
        let unlinking = ListenOptions { unlink: true, ..ListenOptions::PLAIN };
        let path = path("path");
        let listen = |options| manager.listen("unix", path.to_str().unwrap(), options);

        std::fs::write(&path, "precious").unwrap();
        for options in [&ListenOptions::PLAIN, &unlinking] {
            assert_eq!(errno(listen(options)), io::ErrorKind::AddrInUse, "a file is no stale socket");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let alive = UnixListener::bind(&path).unwrap();
        for options in [&ListenOptions::PLAIN, &unlinking] {
            assert_eq!(errno(listen(options)), io::ErrorKind::AddrInUse, "somebody answers there");
        }
        drop(alive);
        assert_eq!(
            errno(listen(&ListenOptions::PLAIN)),
            io::ErrorKind::AddrInUse,
            "nobody asked to remove it"
        );
        let listening = listen(&unlinking).unwrap();

        manager.close_listener(listening.id);
        assert!(!path.exists(), "a listener takes its path with it");
    }
}
