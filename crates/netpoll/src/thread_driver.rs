//! Runs the turns of a poll on a thread of its own.

use std::io::Result;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::{park, Builder, JoinHandle};
use std::time::Instant;

use crate::driver::{Drive, Driven};
use crate::helm::Side;
use crate::poll::{Budget, Turn};
use crate::sys;

/// Starts the thread of a poll. It runs the poll's turns whenever it has the helm, and ends when the poll is stopped or
/// cannot go on.
pub(crate) fn spawn(drive: Arc<Drive>) -> Result<JoinHandle<()>> {
    let builder = Builder::new().name(format!("netpoll-{}", drive.index));
    sys::through("pthread_create", || builder.spawn(move || attend(&drive)))
}

fn attend(drive: &Drive) {
    sys::block_signals();
    // AssertUnwindSafe: after a panic the poll is only dropped, which closes its descriptors.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(drive)));
    drive.conclude(matches!(outcome, Ok(Ok(()))), Instant::now());
}

fn run(drive: &Drive) -> Result<()> {
    while !drive.is_stopped() {
        match drive.helm.steer(Side::Thread, |driven| take_turn(drive, driven)) {
            Some(outcome) => {
                if outcome? == Side::Loop {
                    drive.pass(Side::Loop);
                    drive.summon();
                }
            }
            // Whoever passes the helm, or stops the poll, unparks.
            None => park(),
        }
    }
    Ok(())
}

/// Returns which side has the next turn.
fn take_turn(drive: &Drive, driven: &mut Driven) -> Result<Side> {
    let now = Instant::now();
    let turn = driven.poll.turn(now, Budget::default())?;
    // A turn may take the wake-up that came with the stop: no further one would end the wait.
    if drive.is_stopped() {
        return Ok(Side::Thread);
    }
    let next = driven.next_side(drive, turn.load, Side::Thread, now);
    if next == Side::Thread {
        if let Some(now) = look_again(drive, driven, turn, now)? {
            driven.poll.wait(turn, now)?;
        }
    }
    Ok(next)
}

/// Instead of sleeping, where a core is to spare. The time by then, which may be that of a deadline; None when it has
/// found something.
fn look_again(drive: &Drive, driven: &mut Driven, turn: Turn, now: Instant) -> Result<Option<Instant>> {
    let busy_until = driven.busy.rest(turn.load.arrivals > 0, now);
    // Relaxed: a hint.
    let Some(until) = busy_until.filter(|_| drive.may_spin.load(Ordering::Relaxed) && !turn.more) else {
        return Ok(Some(now));
    };
    let until = turn.next_deadline.map_or(until, |at| at.min(until));
    loop {
        let now = Instant::now();
        if now >= until {
            driven.busy.expire();
            return Ok(Some(now));
        }
        if driven.poll.look()? {
            return Ok(None);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::AsRawFd;
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc::{channel, Receiver};
    use std::sync::{OnceLock, Weak};
    use std::time::Duration;

    use super::*;
    use crate::block::BlockTable;
    use crate::border::{Border, Doorbell};
    use crate::connection::Limits;
    use crate::driver::{Driver, Outside};
    use crate::inbox::{Command, Inboxes};
    use crate::listener::{ListenOptions, Listener};
    use crate::pin::PinTable;
    use crate::poll::{Poll, Shared};
    use crate::server::Server;
    use crate::tests::words;
    use crate::token::Subject;

    const DIED: usize = 2;
    const SUBMISSION_BACKLOGGED: usize = 33;
    const WORDS: usize = 64 + 2 * 8 * 8 + 24;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A poll on its thread, and what is left of it to look at.
    struct Running {
        words: &'static [AtomicU32],
        scheduled: &'static AtomicU32,
        inboxes: Arc<Inboxes>,
        drive: Arc<Drive>,
        bell: Receiver<()>,
        done: Receiver<()>,
        thread: JoinHandle<()>,
    }

    impl Running {
        fn start() -> Running {
            Running::start_with(words(WORDS), |_, _| ())
        }

        /// `rung` runs where the bell rings: on the poll's own thread.
        fn start_with(
            words: &'static [AtomicU32],
            rung: impl Fn(&Drive, &Inboxes) + Send + Sync + 'static,
        ) -> Running {
            let inboxes = Arc::new(Inboxes::new(1));
            let scheduled = &crate::tests::words(1)[0];
            let (ringing, bell) = channel();
            let (stopping, woken) = (Arc::new(OnceLock::<Weak<Drive>>::new()), inboxes.clone());
            let stopped = stopping.clone();
            let ring = move || {
                rung(&stopped.get().unwrap().upgrade().unwrap(), &woken);
                ringing.send(()).unwrap();
            };
            let doorbell = Doorbell::new(scheduled, Arc::new(ring));
            let (drive, done) = drive(words, inboxes.clone(), doorbell, Duration::ZERO);
            stopping.set(Arc::downgrade(&drive)).unwrap();
            let thread = spawn(drive.clone()).unwrap();
            Running { words, scheduled, inboxes, drive, bell, done, thread }
        }

        /// A client that has been accepted.
        fn connect(&self) -> TcpStream {
            let (_, client) = client(&self.inboxes);
            self.bell.recv_timeout(PATIENCE).unwrap();
            self.scheduled.store(0, Ordering::SeqCst);
            client
        }

        fn has_died(&self) -> bool {
            self.words[DIED].load(Ordering::Acquire) == 1
        }
    }

    /// A poll that its thread is to run, and what tells when it has ended.
    fn drive(
        words: &'static [AtomicU32],
        inboxes: Arc<Inboxes>,
        doorbell: Doorbell,
        busy_poll: Duration,
    ) -> (Arc<Drive>, Receiver<()>) {
        let border = Border::new(words, 8, 1).unwrap();
        let mio = mio::Poll::new().unwrap();
        inboxes.open(0, mio::Waker::new(mio.registry(), Subject::Waker.mio()).unwrap());
        let shared = Shared {
            table: BlockTable::new(8 << 20),
            pins: PinTable::new(),
            inboxes,
            handover: Arc::default(),
            doorbell: doorbell.clone(),
            zero_copy: Arc::default(),
        };
        let (sender, done) = channel();
        let outside = Outside { border, doorbell, counters: Arc::default(), done: sender };
        let descriptor = mio.as_raw_fd();
        let poll = Poll::new(0, mio, border, shared, Arc::default()).unwrap();
        let driven = Driven::new(poll, busy_poll, Instant::now());
        (Arc::new(Drive::new(0, descriptor, driven, Driver::Thread, outside)), done)
    }

    /// A client that the poll is to accept, and where.
    fn client(inboxes: &Inboxes) -> (SocketAddr, TcpStream) {
        let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
        let listener = Arc::new(Listener::bind(0, "tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], listener.endpoint.port));
        inboxes.send(0, Command::Serve(listener, Arc::new(Server::new(0, limits, 0, true))));
        let client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        (address, client)
    }

    #[test]
    fn a_deadline_that_has_come_while_the_poll_looked_for_work_is_not_waited_for_again() {
        let inboxes = Arc::new(Inboxes::new(1));
        let doorbell = Doorbell::new(&words(1)[0], Arc::new(|| ()));
        let (drive, _done) = drive(words(WORDS), inboxes.clone(), doorbell, PATIENCE);
        drive.may_spin.store(true, Ordering::Relaxed);
        let (address, _client) = client(&inboxes);
        // There is no slot for it, so the listener rests, again and again.
        let _waiting = TcpStream::connect(address).unwrap();
        let late = drive.helm.steer(Side::Thread, |driven| loop {
            let now = Instant::now();
            let turn = driven.poll.turn(now, Budget::default()).unwrap();
            let Some(deadline) = turn.next_deadline.filter(|deadline| *deadline > now && !turn.more) else {
                continue;
            };
            // Much has come of late, so that it looks for more.
            for _ in 0..30 {
                driven.busy.rest(true, now);
            }
            if let Some(waits_from) = look_again(&drive, driven, turn, now).unwrap() {
                break waits_from.checked_duration_since(deadline);
            }
        });
        assert!(late.flatten().is_some(), "it would wait for what has come");
    }

    #[test]
    fn a_crash_is_told_and_peers_see_their_connections_closed() {
        let driven = Running::start();
        let mut client = driven.connect();
        driven.inboxes.send(0, Command::Crash);
        driven.done.recv_timeout(PATIENCE).unwrap();
        assert!(driven.has_died());
        driven.bell.recv_timeout(PATIENCE).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        driven.thread.join().unwrap();
    }

    #[test]
    fn a_poll_that_is_stopped_closes_its_connections_and_has_not_died() {
        let driven = Running::start();
        let mut client = driven.connect();
        driven.drive.ask_to_stop();
        driven.inboxes.wake(0);
        driven.done.recv_timeout(PATIENCE).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(!driven.has_died());
        driven.thread.join().unwrap();
    }

    #[cfg(feature = "fault")]
    #[test]
    fn a_fault_of_the_wait_is_the_end_of_the_poll_unless_it_was_a_signal() {
        use std::io::Write;

        use crate::sys::fault::{direct, parse, Script};

        let faults = (1..=8).flat_map(|number| {
            let errors = ["EINTR", "EAGAIN", "ENOBUFS", "ENOMEM", "EMFILE", "ECONNRESET", "EPIPE"];
            errors.map(|error| (error == "EINTR", format!("epoll_wait:{number}:{error}")))
        });
        for (goes_on, fault) in faults {
            let driven = Running::start();
            let mut client = driven.connect();
            let script = Arc::new(Script::new(parse(&fault).unwrap()));
            direct(driven.thread.thread().id(), Some(script.clone()));
            let begun = Instant::now();
            while script.struck() == 0 {
                driven.inboxes.wake(0);
                assert!(begun.elapsed() < PATIENCE, "{fault} does not strike");
            }
            if goes_on {
                client.write_all(b"!").unwrap();
                driven.bell.recv_timeout(PATIENCE).unwrap();
                driven.drive.ask_to_stop();
                driven.inboxes.wake(0);
            }
            driven.done.recv_timeout(PATIENCE).unwrap();
            assert_eq!(driven.has_died(), !goes_on, "{fault}");
            // What it had sent and nobody has read makes the end a reset.
            let _ = client.read(&mut [0]).map(|read| assert_eq!(read, 0));
            direct(driven.thread.thread().id(), None);
            driven.thread.join().unwrap();
        }
    }

    #[test]
    fn a_stop_in_the_middle_of_a_turn_ends_the_poll_although_the_turn_takes_its_wake_up() {
        let words = words(WORDS);
        // The first turn rings for this word before it looks at its events.
        words[SUBMISSION_BACKLOGGED].store(1, Ordering::Relaxed);
        let driven = Running::start_with(words, |drive, inboxes| {
            drive.ask_to_stop();
            inboxes.wake(0);
        });
        driven.done.recv_timeout(PATIENCE).unwrap();
        driven.thread.join().unwrap();
    }
}
