//! Memory of JavaScript's own that is sent from where it lies.
//!
//! ```text
//!            insert              take                 last byte sent             remove
//!  vacant ───────────▶ waiting ───────▶ taken (Pin) ───────────────▶ released ───────────▶ vacant
//!            JavaScript          poll                 or dropped: UNPIN          JavaScript
//! ```
//!
//! A pin is one large Buffer that must neither move nor be collected until the kernel has taken all of it.
//! JavaScript keeps it referenced from `insert` until UNPIN has told it that the `Pin` is gone.

use std::mem;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All pins of an environment, known by their ids. Pinning pays off from 16 KiB on, so a lock is cheap.
#[derive(Debug, Default)]
pub struct PinTable {
    slots: Mutex<Slots>,
    /// Ids of the pins that have been dropped and not yet drained.
    released: Mutex<Vec<u32>>,
    /// Whether `released` holds any; written under its lock only.
    any_released: AtomicBool,
}

impl PinTable {
    /// A table without pins.
    pub fn new() -> Arc<PinTable> {
        Arc::default()
    }

    /// Gives `len` bytes from `start` an id.
    ///
    /// # Safety
    /// The caller keeps the memory allocated and in place until `drain_released` has given the id, or until
    /// `remove` has answered true for it.
    pub unsafe fn insert(&self, start: *const u8, len: usize) -> u32 {
        self.slots().fill(Slot::Waiting(Memory { start, len }))
    }

    /// The pin with this id, once: None when it was taken before or never inserted.
    pub fn take(self: &Arc<Self>, id: u32) -> Option<Pin> {
        let memory = self.slots().take(id)?;
        Some(Pin { table: self.clone(), id, memory })
    }

    /// The ids of all pins that have been dropped since the last call. Costs next to nothing when there are
    /// none.
    pub fn drain_released(&self) -> Vec<u32> {
        // Relaxed: only a hint, the list is read under its lock. Whoever dropped a pin sees its own hint.
        if !self.any_released.load(Relaxed) {
            return Vec::new();
        }
        let mut released = self.released();
        self.any_released.store(false, Relaxed);
        mem::take(&mut *released)
    }

    /// Forgets a pin that was released, or never taken, so that its id can be used again. False, and nothing
    /// has changed, when there is no such pin or it is still in use.
    pub fn remove(&self, id: u32) -> bool {
        self.slots().remove(id)
    }

    /// How many pins are not vacant.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        let slots = self.slots();
        slots.all.len() - slots.vacant.len()
    }

    /// Whether there are none.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets `drain_released` give the id, once more if it has and nobody was told.
    pub(crate) fn release(&self, id: u32) {
        self.slots().set(id, Slot::Released);
        let mut released = self.released();
        released.push(id);
        self.any_released.store(true, Relaxed);
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing panics while the lock is held, save for want of memory.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn released(&self) -> MutexGuard<'_, Vec<u32>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to send from pinned memory. When it is dropped its id is released.
#[derive(Debug)]
pub struct Pin {
    table: Arc<PinTable>,
    id: u32,
    memory: Memory,
}

impl Pin {
    /// The first byte. Nobody may write there.
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.start
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether there is nothing to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.table.release(self.id);
    }
}

#[derive(Clone, Copy, Debug)]
struct Memory {
    start: *const u8,
    len: usize,
}

// SAFETY: this is an address that native code only sends from; `insert`'s caller keeps what lies there,
// whichever thread does it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

#[derive(Debug)]
enum Slot {
    Vacant,
    Waiting(Memory),
    Taken,
    Released,
}

#[derive(Debug, Default)]
struct Slots {
    /// By id.
    all: Vec<Slot>,
    /// Ids of those that are vacant.
    vacant: Vec<u32>,
}

impl Slots {
    fn fill(&mut self, slot: Slot) -> u32 {
        let Some(id) = self.vacant.pop() else {
            self.all.push(slot);
            return (self.all.len() - 1) as u32;
        };
        self.set(id, slot);
        id
    }

    fn take(&mut self, id: u32) -> Option<Memory> {
        let slot = self.all.get_mut(id as usize)?;
        let Slot::Waiting(memory) = *slot else { return None };
        *slot = Slot::Taken;
        Some(memory)
    }

    fn remove(&mut self, id: u32) -> bool {
        if !matches!(self.all.get(id as usize), Some(Slot::Waiting(_) | Slot::Released)) {
            return false;
        }
        self.set(id, Slot::Vacant);
        self.vacant.push(id);
        true
    }

    /// Changes the slot of an id that came from here.
    fn set(&mut self, id: u32, slot: Slot) {
        if let Some(place) = self.all.get_mut(id as usize) {
            *place = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn insert(table: &PinTable, bytes: &'static [u8]) -> u32 {
        // SAFETY: static memory stays.
        unsafe { table.insert(bytes.as_ptr(), bytes.len()) }
    }

    #[test]
    fn a_pin_is_taken_once() {
        let table = PinTable::new();
        let bytes = b"hello";
        let id = insert(&table, bytes);
        let pin = table.take(id).unwrap();
        assert_eq!((pin.as_ptr(), pin.len()), (bytes.as_ptr(), 5));
        assert!(table.take(id).is_none());
        assert!(table.take(id + 1).is_none());
        drop(pin);
        assert!(table.take(id).is_none());
    }

    #[test]
    fn a_dropped_pin_is_released_exactly_once() {
        let table = PinTable::new();
        let ids = [insert(&table, b"a"), insert(&table, b"b")];
        let pins = ids.map(|id| table.take(id).unwrap());
        assert_eq!(table.drain_released(), []);
        drop(pins);
        assert_eq!(table.drain_released(), ids);
        assert_eq!(table.drain_released(), []);
    }

    #[test]
    fn a_pin_in_use_is_not_removed() {
        let table = PinTable::new();
        let id = insert(&table, b"a");
        let pin = table.take(id).unwrap();
        assert!(!table.remove(id));
        drop(pin);
        assert!(table.remove(id));
        assert!(!table.remove(id));
        assert!(!table.remove(u32::MAX));
    }

    #[test]
    fn a_pin_that_was_never_sent_can_be_removed_and_not_taken_any_more() {
        let table = PinTable::new();
        let id = insert(&table, b"a");
        assert!(table.remove(id));
        assert!(table.take(id).is_none());
        assert!(table.is_empty());
    }

    #[test]
    fn an_id_is_used_again_only_after_it_was_removed() {
        let table = PinTable::new();
        let id = insert(&table, b"a");
        drop(table.take(id));
        assert_ne!(insert(&table, b"b"), id);
        assert_eq!(table.len(), 2);
        assert!(table.remove(id));
        assert_eq!(table.len(), 1);
        assert_eq!(insert(&table, b"c"), id);
    }

    #[test]
    fn every_pin_that_other_threads_send_comes_back() {
        let table = PinTable::new();
        let (send, receive) = std::sync::mpsc::sync_channel(64);
        let sender = table.clone();
        let thread = thread::spawn(move || receive.into_iter().for_each(|id| drop(sender.take(id).unwrap())));
        let mut removed = 0;
        for _ in 0..10_000 {
            send.send(insert(&table, b"x")).unwrap();
            removed += table.drain_released().into_iter().filter(|id| table.remove(*id)).count();
        }
        drop(send);
        thread.join().unwrap();
        removed += table.drain_released().into_iter().filter(|id| table.remove(*id)).count();
        assert_eq!((removed, table.len()), (10_000, 0));
    }
}
