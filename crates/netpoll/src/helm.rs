//! Who runs the turns of a poll: the loop of its environment, or a thread of its own.

use std::sync::PoisonError;

use crate::sync::{fence, AtomicU32, Mutex, MutexGuard, Ordering};

/// The two that may hold a helm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Loop = 0,
    Thread = 1,
}

/// What exactly one side may touch. One word names that side, and only that side changes it.
#[derive(Debug)]
pub(crate) struct Helm<T> {
    holder: AtomicU32,
    /// Never contended, for the word is obeyed: the lock is there so that no unsafe code has to rely on it. None when
    /// the end has come.
    held: Mutex<Option<T>>,
}

impl<T> Helm<T> {
    pub(crate) fn new(holder: Side, held: T) -> Helm<T> {
        Helm { holder: AtomicU32::new(holder as u32), held: Mutex::new(Some(held)) }
    }

    pub(crate) fn is_with(&self, side: Side) -> bool {
        // Acquire: pairs with the Release of `pass`; what the other side did at the helm comes before.
        self.holder.load(Ordering::Acquire) == side as u32
    }

    /// Lets `side` act. None when it is not its turn, or the end has come.
    pub(crate) fn steer<R>(&self, side: Side, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.is_with(side) {
            return None;
        }
        self.lock().as_mut().map(act)
    }

    /// Only by the side that holds it. Whoever has been told to stop must look for that afterwards.
    pub(crate) fn pass(&self, to: Side) {
        // Release: pairs with the Acquire of `is_with`.
        self.holder.store(to as u32, Ordering::Release);
        // Store-buffering with whoever stops: it stores its word, fences, and reads `holder`; we read that word next.
        fence(Ordering::SeqCst);
    }

    /// For the end: whoever is first gets what the helm was for.
    pub(crate) fn take(&self) -> Option<T> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn only_the_side_that_holds_the_helm_steers() {
        let helm = Helm::new(Side::Loop, 1);
        assert_eq!(helm.steer(Side::Thread, |value| *value), None);
        assert_eq!(helm.steer(Side::Loop, |value| std::mem::replace(value, 2)), Some(1));
        helm.pass(Side::Thread);
        assert_eq!(helm.steer(Side::Loop, |value| *value), None);
        assert_eq!(helm.steer(Side::Thread, |value| *value), Some(2));
    }

    #[test]
    fn what_has_been_taken_nobody_steers_and_nobody_takes_again() {
        let helm = Helm::new(Side::Loop, 1);
        assert_eq!(helm.take(), Some(1));
        assert_eq!(helm.steer(Side::Loop, |value| *value), None);
        assert_eq!(helm.take(), None);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicBool;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// A helm without its lock: loom reports two sides that touch the cell without an order between them.
    struct Bare {
        helm: Helm<()>,
        turns: UnsafeCell<u32>,
    }

    impl Bare {
        fn turn(&self, side: Side) -> bool {
            let is_mine = self.helm.is_with(side);
            if is_mine {
                // SAFETY: what the model is about.
                self.turns.with_mut(|turns| unsafe { *turns += 1 });
            }
            is_mine
        }
    }

    #[test]
    fn the_word_alone_keeps_the_sides_apart_and_no_turn_is_lost() {
        loom::model(|| {
            let bare = Arc::new(Bare { helm: Helm::new(Side::Loop, ()), turns: UnsafeCell::new(0) });
            let theirs = bare.clone();
            let thread = thread::spawn(move || {
                let mut turns = 0;
                while turns < 2 {
                    if theirs.turn(Side::Thread) {
                        turns += 1;
                        theirs.helm.pass(Side::Loop);
                    } else {
                        thread::yield_now();
                    }
                }
            });
            for _ in 0..2 {
                while !bare.turn(Side::Loop) {
                    thread::yield_now();
                }
                bare.helm.pass(Side::Thread);
            }
            thread.join().unwrap();
            assert!(bare.turn(Side::Loop));
            // SAFETY: the other thread has ended.
            assert_eq!(bare.turns.with(|turns| unsafe { *turns }), 5);
        });
    }

    /// The thread passes the helm while the loop stops it: somebody must come upon what is to be ended.
    fn ends(passes: impl Fn(&Helm<u32>) + Copy + Send + Sync + 'static) {
        loom::model(move || {
            let helm = Arc::new(Helm::new(Side::Thread, 1));
            let stop = Arc::new(AtomicBool::new(false));
            let (theirs, stopped) = (helm.clone(), stop.clone());
            let thread = thread::spawn(move || {
                passes(&theirs);
                if stopped.load(Ordering::Relaxed) {
                    theirs.take()
                } else {
                    None
                }
            });
            stop.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let ours = if helm.is_with(Side::Loop) { helm.take() } else { None };
            let taken = [ours, thread.join().unwrap()];
            assert_eq!(taken.iter().flatten().count(), 1);
        });
    }

    #[test]
    fn a_helm_that_is_passed_while_its_poll_is_stopped_is_found_by_one_of_them() {
        ends(|helm| helm.pass(Side::Loop));
    }

    #[test]
    #[should_panic(expected = "left: 0")]
    fn without_the_fence_both_could_miss_it() {
        ends(|helm| helm.holder.store(Side::Loop as u32, Ordering::Release));
    }
}
