//! The polls of an environment and the listeners they serve.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::address::Endpoint;
use crate::block::BlockTable;
use crate::border::{Border, Doorbell};
use crate::counters::{Counters, PollStats};
use crate::inbox::{Command, Inboxes};
use crate::listener::{ListenError, ListenOptions, Listener};
use crate::pin::PinTable;
use crate::poll::{Poll, Shared};
use crate::server::Server;
use crate::thread_driver::{spawn, Post};
use crate::token::Subject;

/// Starts the polls, hands them listeners, and stops them. Dropping it stops and joins their threads.
#[derive(Debug)]
pub struct PollManager {
    inboxes: Arc<Inboxes>,
    counters: Vec<Arc<Counters>>,
    listeners: Mutex<HashMap<u32, Entry>>,
    next_listener: AtomicU32,
    threads: Mutex<Threads>,
}

/// A listener and the poll that serves it.
#[derive(Debug)]
struct Entry {
    listener: Arc<Listener>,
    poll: Option<usize>,
}

#[derive(Debug)]
struct Threads {
    stop: Arc<AtomicBool>,
    done: Receiver<()>,
    /// Threads that have not said that they are done.
    running: usize,
    handles: Vec<JoinHandle<()>>,
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

impl PollManager {
    /// Starts one poll, on a thread of its own, for each border.
    pub fn start(
        borders: &[Border],
        doorbell: &Doorbell,
        table: &Arc<BlockTable>,
        pins: &Arc<PinTable>,
    ) -> io::Result<PollManager> {
        let polls = borders.iter().map(|_| mio::Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let waker = |poll: &mio::Poll| mio::Waker::new(poll.registry(), Subject::Waker.mio());
        let inboxes = Arc::new(Inboxes::new(polls.iter().map(waker).collect::<io::Result<Vec<_>>>()?));
        let (sender, done) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let manager = PollManager {
            inboxes: inboxes.clone(),
            counters: borders.iter().map(|_| Arc::default()).collect(),
            listeners: Mutex::default(),
            next_listener: AtomicU32::new(0),
            threads: Mutex::new(Threads { stop: stop.clone(), done, running: 0, handles: Vec::new() }),
        };
        let shared = Shared { table: table.clone(), pins: pins.clone(), inboxes, doorbell: doorbell.clone() };
        for (index, ((mio, border), counters)) in
            polls.into_iter().zip(borders).zip(&manager.counters).enumerate()
        {
            let poll = Poll::new(index, mio, *border, shared.clone(), counters.clone())?;
            let (stop, done, doorbell) = (stop.clone(), sender.clone(), doorbell.clone());
            let handle = spawn(index, poll, Post { stop, done, border: *border, doorbell })?;
            let mut threads = lock(&manager.threads);
            threads.handles.push(handle);
            threads.running += 1;
        }
        Ok(manager)
    }

    /// Wakes a poll that sleeps.
    pub fn wake(&self, poll: usize) {
        self.inboxes.wake(poll);
    }

    /// Binds and listens. Nothing is accepted before `serve`.
    pub fn listen(
        &self,
        network: &str,
        address: &str,
        options: &ListenOptions,
    ) -> Result<Listening, ListenError> {
        // Relaxed: only the number's uniqueness matters.
        let id = self.next_listener.fetch_add(1, Ordering::Relaxed);
        let listener = Arc::new(Listener::bind(id, network, address, options)?);
        let (descriptor, endpoint) = (listener.descriptor().as_raw_fd(), listener.endpoint.clone());
        lock(&self.listeners).insert(id, Entry { listener, poll: None });
        Ok(Listening { id, descriptor, endpoint })
    }

    /// Lets a poll accept from the listener. False when there is none, or it is served already.
    pub fn serve(&self, listener: u32, server: &Arc<Server>) -> bool {
        let mut listeners = lock(&self.listeners);
        let Some(entry) = listeners.get_mut(&listener).filter(|entry| entry.poll.is_none()) else {
            return false;
        };
        let poll = listener as usize % self.inboxes.len().max(1);
        entry.poll = Some(poll);
        self.inboxes.send(poll, Command::Serve(entry.listener.clone(), server.clone()));
        true
    }

    /// Refuses new connections at once; a LISTENER record follows when a poll served it.
    pub fn close_listener(&self, listener: u32) {
        let Some(entry) = lock(&self.listeners).remove(&listener) else { return };
        entry.listener.close();
        if let Some(poll) = entry.poll {
            self.inboxes.send(poll, Command::CloseListener(listener));
        }
    }

    /// Counters of each poll.
    pub fn stats(&self) -> Vec<PollStats> {
        self.counters.iter().map(|counters| counters.snapshot()).collect()
    }

    /// Makes a poll's thread panic, for tests of what follows.
    pub fn crash(&self, poll: usize) {
        self.inboxes.send(poll, Command::Crash);
    }

    /// Stops all polls; their descriptors are closed. True when all have ended within `patience`.
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

    /// Stops all polls and waits for their threads, however long it takes: a turn never blocks.
    pub fn join(&self) {
        let mut threads = lock(&self.threads);
        self.ask_to_stop(&threads);
        for handle in threads.handles.drain(..) {
            // A thread catches its panics itself.
            let _ = handle.join();
        }
        lock(&self.listeners).drain().for_each(|(_, entry)| entry.listener.close());
    }

    fn ask_to_stop(&self, threads: &Threads) {
        // Release: pairs with the Acquire of the thread driver.
        threads.stop.store(true, Ordering::Release);
        (0..self.inboxes.len()).for_each(|poll| self.inboxes.wake(poll));
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
