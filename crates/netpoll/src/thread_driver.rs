//! Runs the turns of a poll on a thread of its own.

use std::io::Result;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::border::{Border, Doorbell};
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
    // Closing must not panic past this thread either; there is nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(poll)));
    if !matches!(outcome, Ok(Ok(()))) {
        post.border.set_died();
        post.doorbell.ring();
    }
    // Nobody listens any more when the environment has given up waiting.
    let _ = post.done.send(());
}

fn run(poll: &mut Poll, stop: &AtomicBool) -> Result<()> {
    // Acquire: pairs with the Release of whoever stops us; what it did before is visible to our drops.
    while !stop.load(Ordering::Acquire) {
        let now = Instant::now();
        let turn = poll.turn(now, Budget::default())?;
        poll.wait(turn, now)?;
    }
    Ok(())
}
