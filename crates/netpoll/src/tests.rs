//! What the tests of several modules need: memory that stays, and a count of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::sync::atomic::AtomicU32;
use std::sync::Mutex;

/// Words that stay for ever, as those do that JavaScript shares.
pub(crate) fn words(count: usize) -> &'static [AtomicU32] {
    keep((0..count).map(|_| AtomicU32::new(0)).collect())
}

/// Keeps them for ever, where a search for leaks finds them.
pub(crate) fn keep<T: Send + Sync>(things: Vec<T>) -> &'static [T] {
    static KEPT: Mutex<Vec<&(dyn Any + Send + Sync)>> = Mutex::new(Vec::new());
    let kept: &'static Vec<T> = Box::leak(Box::new(things));
    KEPT.lock().unwrap().push(kept);
    kept
}

/// Bytes that this thread has allocated and not freed.
pub(crate) fn allocated() -> isize {
    ALLOCATED.get()
}

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

/// The system's, and counts.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: it hands every call on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size() as isize);
        // SAFETY: our caller keeps what the system's allocator asks of its own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        ALLOCATED.set(ALLOCATED.get() - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[test]
fn what_is_freed_is_not_counted_any_more() {
    let before = allocated();
    let bytes = vec![0u8; 1000];
    assert_eq!(allocated() - before, 1000);
    drop(bytes);
    assert_eq!(allocated(), before);
}
