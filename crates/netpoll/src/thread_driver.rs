//! Runs the turns of a poll on a thread of its own.

use std::io::Result;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::border::{Border, Doorbell, Retired};
use crate::poll::{Budget, Poll};
use crate::sys;

/// What the thread needs besides its poll.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) stop: Arc<AtomicBool>,
    /// Told when the poll's descriptors are closed and the thread is about to end.
    pub(crate) done: Sender<()>,
    pub(crate) border: Border,
    pub(crate) doorbell: Doorbell,
}

/// Starts the thread. It ends when it is stopped, or when its poll cannot go on; then JavaScript is told.
pub(crate) fn spawn(index: usize, poll: Poll, post: Post) -> Result<JoinHandle<()>> {
    Builder::new().name(format!("netpoll-{index}")).spawn(move || attend(poll, post))
}

fn attend(mut poll: Poll, post: Post) {
    sys::block_signals();
    // AssertUnwindSafe: after a panic the poll is only dropped, which closes its descriptors.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut poll, &post.stop)));
    let is_sound = matches!(outcome, Ok(Ok(())));
    let has_retired = is_sound && poll.is_empty();
    // Neither closing nor ringing may panic past this thread; there is nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| poll.leave()));
    let _ = catch_unwind(AssertUnwindSafe(|| drop(poll)));
    if has_retired {
        post.border.set_retired(Retired::Ended);
    } else if !is_sound {
        post.border.set_died();
    }
    if has_retired || !is_sound {
        let _ = catch_unwind(AssertUnwindSafe(|| post.doorbell.ring()));
    }
    // Nobody listens any more when the environment has given up waiting.
    let _ = post.done.send(());
}

fn run(poll: &mut Poll, stop: &AtomicBool) -> Result<()> {
    // Acquire: pairs with the Release of whoever stops us; what it did before is visible to our drops.
    let is_stopped = || stop.load(Ordering::Acquire);
    while !is_stopped() {
        let now = Instant::now();
        let turn = poll.turn(now, Budget::default())?;
        // A turn may take the wake-up that came with the stop: no further one would end the wait.
        if !is_stopped() {
            poll.wait(turn, now)?;
        }
    }
    if poll.is_empty() {
        // Whoever stops such a poll has put its last records before.
        poll.take_last_records(Instant::now());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc::{channel, Receiver};
    use std::time::Duration;

    use super::*;
    use crate::block::BlockTable;
    use crate::connection::Limits;
    use crate::inbox::{Command, Inboxes};
    use crate::listener::{ListenOptions, Listener};
    use crate::pin::PinTable;
    use crate::poll::Shared;
    use crate::server::Server;
    use crate::token::Subject;

    const DIED: usize = 2;
    const SUBMISSION_BACKLOGGED: usize = 33;
    const WORDS: usize = 64 + 2 * 8 * 8 + 24;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A poll on its thread, and what is left of it to look at.
    struct Driven {
        words: &'static [AtomicU32],
        scheduled: &'static AtomicU32,
        inboxes: Arc<Inboxes>,
        stop: Arc<AtomicBool>,
        bell: Receiver<()>,
        done: Receiver<()>,
        thread: JoinHandle<()>,
    }

    impl Driven {
        fn start() -> Driven {
            Driven::start_with(leak(WORDS), |_, _| ())
        }

        /// `rung` runs where the bell rings: on the poll's own thread.
        fn start_with(
            words: &'static [AtomicU32],
            rung: impl Fn(&AtomicBool, &Inboxes) + Send + Sync + 'static,
        ) -> Driven {
            let border = Border::new(words, 8, 1).unwrap();
            let mio = mio::Poll::new().unwrap();
            let waker = mio::Waker::new(mio.registry(), Subject::Waker.mio()).unwrap();
            let inboxes = Arc::new(Inboxes::new(border.slots()));
            inboxes.open(0, waker);
            let scheduled = &leak(1)[0];
            let (stop, (ringing, bell)) = (Arc::new(AtomicBool::new(false)), channel());
            let (stopping, woken) = (stop.clone(), inboxes.clone());
            let ring = move || {
                rung(&stopping, &woken);
                ringing.send(()).unwrap();
            };
            let doorbell = Doorbell::new(scheduled, Arc::new(ring));
            let (table, pins) = (BlockTable::new(8 << 20), PinTable::new());
            let shared = Shared {
                table,
                pins,
                inboxes: inboxes.clone(),
                handover: Arc::default(),
                doorbell: doorbell.clone(),
            };
            let poll = Poll::new(0, mio, border, shared, Arc::default()).unwrap();
            let (sender, done) = channel();
            let thread = spawn(0, poll, Post { stop: stop.clone(), done: sender, border, doorbell }).unwrap();
            Driven { words, scheduled, inboxes, stop, bell, done, thread }
        }

        /// A client that has been accepted.
        fn connect(&self) -> TcpStream {
            let options = ListenOptions {
                backlog: 8,
                reuse_port: false,
                ipv6_only: false,
                no_delay: true,
                keep_alive: false,
                recv_buffer: None,
                send_buffer: None,
                unlink: false,
            };
            let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
            let listener = Arc::new(Listener::bind(0, "tcp", "127.0.0.1:0", &options).unwrap());
            let address = SocketAddr::from(([127, 0, 0, 1], listener.endpoint.port));
            self.inboxes.send(0, Command::Serve(listener, Arc::new(Server::new(0, limits, 0, true))));
            let client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            self.bell.recv_timeout(PATIENCE).unwrap();
            self.scheduled.store(0, Ordering::SeqCst);
            client
        }

        fn has_died(&self) -> bool {
            self.words[DIED].load(Ordering::Acquire) == 1
        }
    }

    fn leak(words: usize) -> &'static [AtomicU32] {
        Box::leak((0..words).map(|_| AtomicU32::new(0)).collect())
    }

    #[test]
    fn a_crash_is_told_and_peers_see_their_connections_closed() {
        let driven = Driven::start();
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
        let driven = Driven::start();
        let mut client = driven.connect();
        driven.stop.store(true, Ordering::Release);
        driven.inboxes.wake(0);
        driven.done.recv_timeout(PATIENCE).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(!driven.has_died());
        driven.thread.join().unwrap();
    }

    #[test]
    fn a_stop_in_the_middle_of_a_turn_ends_the_poll_although_the_turn_takes_its_wake_up() {
        let words = leak(WORDS);
        // The first turn rings for this word before it looks at its events.
        words[SUBMISSION_BACKLOGGED].store(1, Ordering::Relaxed);
        let driven = Driven::start_with(words, |stop, inboxes| {
            stop.store(true, Ordering::Release);
            inboxes.wake(0);
        });
        driven.done.recv_timeout(PATIENCE).unwrap();
        driven.thread.join().unwrap();
    }
}
