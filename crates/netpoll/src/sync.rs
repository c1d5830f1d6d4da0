//! The atomics and locks of what two sides share: the standard library's or, in models of the two, loom's.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{
    atomic::{fence, AtomicBool, AtomicU32, Ordering},
    Mutex, MutexGuard,
};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{
    atomic::{fence, AtomicBool, AtomicU32, Ordering},
    Mutex, MutexGuard,
};

/// What models have in common.
#[cfg(test)]
#[cfg(loom)]
pub(crate) mod models {
    use loom::sync::Condvar;

    use super::*;

    /// Explores all that can happen when the threads take turns against their will so often.
    pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(preemptions);
        builder.check(model);
    }

    loom::lazy_static! {
        static ref CALLS: AtomicU32 = AtomicU32::new(0);
        /// The kernel may have something to tell to whoever sleeps.
        pub(crate) static ref HAPPENED: Event = Event::default();
    }

    /// A system call: others may act before it. AcqRel, for what one call tells of has come before, as with the locks
    /// that the kernel takes.
    pub(crate) fn enter_kernel() {
        CALLS.fetch_add(1, Ordering::AcqRel);
    }

    /// Words of which each model makes its own. Loom has no borrowed threads, so nobody frees them.
    pub(crate) fn leak(words: usize) -> &'static [AtomicU32] {
        Box::leak((0..words).map(|_| AtomicU32::new(0)).collect())
    }

    /// An event that stays until it has been waited for, as an eventfd and a handle of libuv do.
    #[derive(Debug, Default)]
    pub(crate) struct Event {
        is_set: Mutex<bool>,
        changed: Condvar,
    }

    impl Event {
        pub(crate) fn set(&self) {
            *self.is_set.lock().unwrap() = true;
            self.changed.notify_one();
        }

        /// Loom tells of a deadlock when nobody can set it any more.
        pub(crate) fn wait(&self) {
            let mut is_set = self.is_set.lock().unwrap();
            while !std::mem::take(&mut *is_set) {
                is_set = self.changed.wait(is_set).unwrap();
            }
        }
    }
}
