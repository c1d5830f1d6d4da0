//! What other threads ask of a poll: rare things, so a lock and a wake-up for each.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU8, AtomicUsize};
use std::sync::{Arc, OnceLock, PoisonError};

use crate::acceptor::Accepted;
use crate::dialer::{Dial, Request};
use crate::listener::Listener;
use crate::poll::Arrival;
use crate::server::Server;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// Polls of an environment: more than a machine has cores for are of no use.
pub(crate) const MAX_POLLS: usize = 64;

#[derive(Debug)]
pub(crate) enum Command {
    Serve(Arc<Listener>, Arc<Server>),
    CloseListener(u32),
    Adopt(Accepted),
    Dial(Box<Request>),
    CancelDial(u32),
    /// A dial that was another poll's until now.
    CarryOn(Box<Dial>),
    /// A connection that was another poll's until now.
    Arrive(Box<Arrival>),
    /// To move all connections to other polls.
    Retire,
    Crash,
}

impl Command {
    /// Nobody will ever take it.
    pub(crate) fn discard(self) {
        if let Command::Arrive(arrival) = self {
            arrival.discard();
        }
    }

    /// Whether it brings a new connection, which only a poll that goes on is given.
    fn is_new_connection(&self) -> bool {
        matches!(self, Command::Adopt(_))
    }
}

/// How the poll of a new connection is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LoadBalance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, each as likely as the others.
    Random,
    /// The one that has, and expects, fewest connections.
    LeastConnections,
}

/// The inboxes of all polls of an environment, and whose turn it is to get a connection.
#[derive(Debug)]
pub(crate) struct Inboxes {
    /// By the polls' numbers, filled from the front.
    inboxes: [OnceLock<Inbox>; MAX_POLLS],
    /// Connections that a poll has room for.
    slots: u32,
    /// A `LoadBalance`. Relaxed, as all that follows: any order of the choices will do.
    balance: AtomicU8,
    turn: AtomicUsize,
    seed: u64,
}

/// Of one poll. It stays when the poll ends, for the next one with its number.
#[derive(Debug, Default)]
struct Inbox {
    letters: Mutex<Letters>,
    /// Spares the lock when there is nothing. Written and read with the wake-up between: Release and
    /// Acquire pair with each other, the lock does the rest.
    has_commands: AtomicBool,
    /// Whether new connections may come. Changes under the lock; outside of it it is a hint.
    is_accepting: AtomicBool,
    /// Slots that the poll has given away, and connections on their way to it. Relaxed: both are hints.
    taken: AtomicU32,
    expected: AtomicU32,
}

#[derive(Debug, Default)]
struct Letters {
    commands: Vec<Command>,
    /// Nobody takes commands out of an inbox that is not open, so nobody puts any in.
    is_open: bool,
    waker: Option<mio::Waker>,
}

impl Inboxes {
    /// For polls with so many slots.
    pub(crate) fn new(slots: u32) -> Inboxes {
        Inboxes {
            inboxes: std::array::from_fn(|_| OnceLock::new()),
            slots,
            balance: AtomicU8::new(LoadBalance::RoundRobin as u8),
            turn: AtomicUsize::new(0),
            seed: RandomState::new().hash_one(0),
        }
    }

    /// Lets a poll take commands and connections, the first with its number or another one.
    pub(crate) fn open(&self, poll: usize, waker: mio::Waker) {
        let Some(inbox) = self.inboxes.get(poll).map(|place| place.get_or_init(Inbox::default)) else {
            return;
        };
        let mut letters = inbox.letters();
        *letters = Letters { commands: Vec::new(), is_open: true, waker: Some(waker) };
        inbox.taken.store(0, Ordering::Relaxed);
        inbox.is_accepting.store(true, Ordering::Relaxed);
    }

    /// From now on the poll is given no new connections, and moves those that it has.
    pub(crate) fn retire(&self, poll: usize) {
        let Some(inbox) = self.get(poll) else { return };
        {
            let _letters = inbox.letters();
            inbox.is_accepting.store(false, Ordering::Relaxed);
        }
        self.send(poll, Command::Retire);
    }

    /// Takes no more commands, if none are left. The poll can still be woken.
    pub(crate) fn shut(&self, poll: usize) -> bool {
        let Some(inbox) = self.get(poll) else { return true };
        let mut letters = inbox.letters();
        letters.is_open &= !letters.commands.is_empty();
        !letters.is_open
    }

    /// The poll is gone: what it has not taken.
    pub(crate) fn close(&self, poll: usize) -> Vec<Command> {
        let Some(inbox) = self.get(poll) else { return Vec::new() };
        let mut letters = inbox.letters();
        inbox.is_accepting.store(false, Ordering::Relaxed);
        std::mem::take(&mut *letters).commands
    }

    pub(crate) fn set_balance(&self, balance: LoadBalance) {
        self.balance.store(balance as u8, Ordering::Relaxed);
    }

    /// The poll for a new connection. None when none takes any, or all are full.
    pub(crate) fn pick(&self) -> Option<usize> {
        let is_there = |poll: &usize| self.get(*poll).is_some_and(|inbox| self.has_room(inbox));
        let candidates = || (0..MAX_POLLS).filter(is_there);
        let balance = self.balance.load(Ordering::Relaxed);
        if balance == LoadBalance::LeastConnections as u8 {
            return candidates().min_by_key(|poll| self.get(*poll).map(Inbox::load));
        }
        let mut turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if balance == LoadBalance::Random as u8 {
            turn = scatter(self.seed.wrapping_add(turn as u64)) as usize;
        }
        let count = candidates().count();
        candidates().nth(turn.checked_rem(count)?)
    }

    /// Whether a new connection would find a poll.
    pub(crate) fn have_room(&self) -> bool {
        self.inboxes.iter().filter_map(OnceLock::get).any(|inbox| self.has_room(inbox))
    }

    /// The first poll that goes on.
    pub(crate) fn first(&self) -> Option<usize> {
        let goes_on = |inbox: &Inbox| inbox.is_accepting.load(Ordering::Relaxed);
        (0..MAX_POLLS).find(|poll| self.get(*poll).is_some_and(goes_on))
    }

    /// One more connection is on its way to the poll; `offer` itself says so of new ones.
    pub(crate) fn expect(&self, poll: usize) {
        self.get(poll).map(|inbox| inbox.expected.fetch_add(1, Ordering::Relaxed));
    }

    /// It has come, or never will.
    pub(crate) fn came(&self, poll: usize) {
        self.get(poll).map(|inbox| inbox.expected.fetch_sub(1, Ordering::Relaxed));
    }

    /// Of the poll itself: how many of its slots are taken.
    pub(crate) fn set_taken(&self, poll: usize, taken: u32) {
        self.get(poll).inspect(|inbox| inbox.taken.store(taken, Ordering::Relaxed));
    }

    pub(crate) fn send(&self, poll: usize, command: Command) {
        drop(self.offer(poll, command));
    }

    /// Gives the command back when the poll does not take it.
    pub(crate) fn offer(&self, poll: usize, command: Command) -> Option<Command> {
        let Some(inbox) = self.get(poll) else { return Some(command) };
        let mut letters = inbox.letters();
        let is_welcome = inbox.is_accepting.load(Ordering::Relaxed) || !command.is_new_connection();
        if !(letters.is_open && is_welcome) {
            return Some(command);
        }
        if command.is_new_connection() {
            inbox.expected.fetch_add(1, Ordering::Relaxed);
        }
        letters.commands.push(command);
        inbox.has_commands.store(true, Ordering::Release);
        letters.wake();
        None
    }

    pub(crate) fn wake(&self, poll: usize) {
        self.get(poll).inspect(|inbox| inbox.letters().wake());
    }

    pub(crate) fn wake_others(&self, poll: usize) {
        (0..MAX_POLLS).filter(|other| *other != poll).for_each(|other| self.wake(other));
    }

    pub(crate) fn has_commands(&self, poll: usize) -> bool {
        self.get(poll).is_some_and(|inbox| inbox.has_commands.load(Ordering::Acquire))
    }

    pub(crate) fn take(&self, poll: usize) -> Vec<Command> {
        match self.get(poll) {
            Some(inbox)
                if inbox.has_commands.load(Ordering::Relaxed)
                    && inbox.has_commands.swap(false, Ordering::Acquire) =>
            {
                std::mem::take(&mut inbox.letters().commands)
            }
            _ => Vec::new(),
        }
    }

    fn get(&self, poll: usize) -> Option<&Inbox> {
        self.inboxes.get(poll)?.get()
    }

    fn has_room(&self, inbox: &Inbox) -> bool {
        inbox.is_accepting.load(Ordering::Relaxed) && inbox.load() < self.slots
    }
}

impl Inbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> u32 {
        self.taken.load(Ordering::Relaxed).saturating_add(self.expected.load(Ordering::Relaxed))
    }
}

impl Letters {
    fn wake(&self) {
        #[cfg(all(test, loom))]
        crate::sync::models::enter_kernel();
        // An eventfd can be written as long as it exists, and it does as long as the waker.
        self.waker.as_ref().inspect(|waker| drop(waker.wake()));
    }
}

/// Splitmix64's last step: numbers that follow each other become any.
fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;
    use crate::token::Subject;

    const SLOTS: u32 = 2;

    fn inboxes(count: usize) -> (Vec<Poll>, Inboxes) {
        let polls = (0..count).map(|_| Poll::new().unwrap()).collect::<Vec<_>>();
        let inboxes = Inboxes::new(SLOTS);
        for (index, poll) in polls.iter().enumerate() {
            inboxes.open(index, mio::Waker::new(poll.registry(), Subject::Waker.mio()).unwrap());
        }
        (polls, inboxes)
    }

    fn picks<const N: usize>(inboxes: &Inboxes) -> [usize; N] {
        [(); N].map(|()| inboxes.pick().unwrap())
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
        assert_eq!(picks(&inboxes), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn polls_that_retire_are_closed_or_full_are_passed_over() {
        let (_polls, inboxes) = inboxes(4);
        inboxes.retire(0);
        drop(inboxes.close(1));
        inboxes.set_taken(2, 1);
        inboxes.expect(2);
        assert_eq!(picks(&inboxes), [3; 3]);
        inboxes.came(2);
        let mut both = picks(&inboxes);
        both.sort_unstable();
        assert_eq!(both, [2, 3]);
        assert_eq!(inboxes.first(), Some(2));
        [2, 3].into_iter().for_each(|poll| inboxes.set_taken(poll, SLOTS));
        assert_eq!((inboxes.pick(), inboxes.have_room()), (None, false));
    }

    #[test]
    fn with_least_connections_those_that_are_expected_count_too() {
        let (_polls, inboxes) = inboxes(3);
        inboxes.set_balance(LoadBalance::LeastConnections);
        assert_eq!(picks(&inboxes), [0, 0]);
        inboxes.set_taken(0, 1);
        inboxes.expect(1);
        assert_eq!(picks(&inboxes), [2, 2]);
        inboxes.came(1);
        assert_eq!(picks(&inboxes), [1]);
    }

    #[test]
    fn at_random_each_poll_has_its_share_and_the_order_is_no_order() {
        let (_polls, inboxes) = inboxes(4);
        inboxes.set_balance(LoadBalance::Random);
        let picks = picks::<4000>(&inboxes);
        for poll in 0..4 {
            let share = picks.iter().filter(|pick| **pick == poll).count();
            assert!((800..1200).contains(&share), "{share} of 4000");
        }
        assert!(picks.windows(2).any(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn an_inbox_shuts_only_when_it_is_empty_and_gives_back_what_comes_after() {
        let (mut polls, inboxes) = inboxes(1);
        inboxes.send(0, Command::CloseListener(7));
        assert!(!inboxes.shut(0));
        assert_eq!(ids(inboxes.take(0)), [7]);
        assert!(inboxes.shut(0));
        assert!(inboxes.offer(0, Command::CloseListener(8)).is_some());
        assert!(is_woken(&mut polls[0]), "by the first one");
        inboxes.wake(0);
        assert!(is_woken(&mut polls[0]), "it can still be woken");
        assert_eq!(ids(inboxes.close(0)), []);
        inboxes.wake(0);
        assert!(!is_woken(&mut polls[0]), "and no more");
    }
}

#[cfg(test)]
#[cfg(loom)]
mod models {
    use std::mem;

    use loom::thread;

    use super::*;
    use crate::sync::models::{explore, Event};
    use crate::token::Subject;

    /// Two commands come while their poll takes some and goes to sleep.
    fn takes(take: impl Fn(&Inboxes) -> Vec<Command> + Copy + Send + Sync + 'static) {
        explore(3, move || {
            let poll = mio::Poll::new().unwrap();
            let inboxes = Arc::new(Inboxes::new(1));
            inboxes.open(0, mio::Waker::new(poll.registry(), Subject::Waker.mio()).unwrap());
            let woken = Arc::new(Event::default());
            let (theirs, wakes) = (inboxes.clone(), woken.clone());
            let thread = thread::spawn(move || {
                for id in 0..2 {
                    theirs.send(0, Command::CloseListener(id));
                    wakes.set();
                }
            });
            let mut taken = Vec::new();
            while taken.len() < 2 {
                if !inboxes.has_commands(0) {
                    woken.wait();
                }
                taken.extend(take(&inboxes));
            }
            thread.join().unwrap();
            assert!(matches!(taken[..], [Command::CloseListener(0), Command::CloseListener(1)]));
        });
    }

    #[test]
    fn every_command_is_taken_although_its_poll_sleeps_when_there_are_none() {
        takes(|inboxes| inboxes.take(0));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_flag_that_is_cleared_after_the_commands_are_taken_could_hide_one() {
        takes(|inboxes| {
            let Some(inbox) = inboxes.get(0).filter(|inbox| inbox.has_commands.load(Ordering::Acquire))
            else {
                return Vec::new();
            };
            let commands = mem::take(&mut inbox.letters().commands);
            inbox.has_commands.store(false, Ordering::Release);
            commands
        });
    }
}
