//! What other threads ask of a poll: rare things, so a lock and a wake-up for each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::acceptor::Accepted;
use crate::dialer::Request;
use crate::listener::Listener;
use crate::server::Server;

#[derive(Debug)]
pub(crate) enum Command {
    Serve(Arc<Listener>, Arc<Server>),
    CloseListener(u32),
    Adopt(Accepted),
    Dial(Box<Request>),
    CancelDial(u32),
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
            Some(inbox)
                if inbox.has_commands.load(Ordering::Relaxed)
                    && inbox.has_commands.swap(false, Ordering::Acquire) =>
            {
                std::mem::take(&mut inbox.commands.lock().unwrap_or_else(PoisonError::into_inner))
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;
    use crate::token::Subject;

    fn inboxes(count: usize) -> (Vec<Poll>, Inboxes) {
        let polls = (0..count).map(|_| Poll::new().unwrap()).collect::<Vec<_>>();
        let waker = |poll: &Poll| mio::Waker::new(poll.registry(), Subject::Waker.mio()).unwrap();
        let inboxes = Inboxes::new(polls.iter().map(waker).collect());
        (polls, inboxes)
    }

    fn is_woken(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    fn ids(commands: Vec<Command>) -> Vec<u32> {
        let id = |command| if let Command::CloseListener(id) = command { id } else { panic!("{command:?}") };
        commands.into_iter().map(id).collect()
    }

    #[test]
    fn commands_arrive_in_order_at_their_poll_only_and_once() {
        let (_polls, inboxes) = inboxes(2);
        (0..3).for_each(|id| inboxes.send(1, Command::CloseListener(id)));
        assert_eq!([0, 1].map(|poll| inboxes.has_commands(poll)), [false, true]);
        assert_eq!(ids(inboxes.take(0)), []);
        assert_eq!(ids(inboxes.take(1)), [0, 1, 2]);
        assert!(!inboxes.has_commands(1));
        assert_eq!(ids(inboxes.take(1)), []);
    }

    #[test]
    fn a_command_wakes_its_poll_and_no_other() {
        let (mut polls, inboxes) = inboxes(2);
        inboxes.send(1, Command::CloseListener(0));
        assert_eq!([0, 1].map(|poll| is_woken(&mut polls[poll])), [false, true]);
    }

    #[test]
    fn a_poll_that_is_not_there_gets_nothing() {
        let (_polls, inboxes) = inboxes(1);
        inboxes.send(1, Command::CloseListener(0));
        inboxes.wake(1);
        assert!(!inboxes.has_commands(0) && !inboxes.has_commands(1) && inboxes.take(1).is_empty());
    }

    #[test]
    fn the_polls_take_turns() {
        let (_polls, inboxes) = inboxes(3);
        assert_eq!([(); 5].map(|()| inboxes.pick()), [0, 1, 2, 0, 1]);
    }
}
