//! What other threads ask of a poll: rare things, so a lock and a wake-up for each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::acceptor::Accepted;
use crate::listener::Listener;
use crate::server::Server;

#[derive(Debug)]
pub(crate) enum Command {
    Serve(Arc<Listener>, Arc<Server>),
    CloseListener(u32),
    Adopt(Accepted),
    Crash,
}

/// The inboxes of all polls of an environment, and whose turn it is to get a connection.
#[derive(Debug)]
pub(crate) struct Inboxes {
    inboxes: Vec<Inbox>,
    /// Relaxed: any order of the turns will do.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Inbox {
    commands: Mutex<Vec<Command>>,
    /// Spares the lock when there is nothing. Written and read with the wake-up between: Release and
    /// Acquire pair with each other, the lock does the rest.
    has_commands: AtomicBool,
    waker: mio::Waker,
}

impl Inboxes {
    pub(crate) fn new(wakers: Vec<mio::Waker>) -> Inboxes {
        let inbox = |waker| Inbox { commands: Mutex::default(), has_commands: AtomicBool::new(false), waker };
        Inboxes { inboxes: wakers.into_iter().map(inbox).collect(), turn: AtomicUsize::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.inboxes.len()
    }

    /// The next poll, round robin.
    pub(crate) fn pick(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.inboxes.len().max(1)
    }

    pub(crate) fn send(&self, poll: usize, command: Command) {
        let Some(inbox) = self.inboxes.get(poll) else { return };
        inbox.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        inbox.has_commands.store(true, Ordering::Release);
        self.wake(poll);
    }

    pub(crate) fn wake(&self, poll: usize) {
        if let Some(inbox) = self.inboxes.get(poll) {
            // An eventfd can be written as long as it exists, and it does as long as the inbox.
            let _ = inbox.waker.wake();
        }
    }

    pub(crate) fn has_commands(&self, poll: usize) -> bool {
        self.inboxes.get(poll).is_some_and(|inbox| inbox.has_commands.load(Ordering::Acquire))
    }

    pub(crate) fn take(&self, poll: usize) -> Vec<Command> {
        match self.inboxes.get(poll) {
            Some(inbox) if inbox.has_commands.swap(false, Ordering::Acquire) => {
                std::mem::take(&mut inbox.commands.lock().unwrap_or_else(PoisonError::into_inner))
            }
            _ => Vec::new(),
        }
    }
}
