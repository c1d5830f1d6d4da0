//! Polls on the loop of their environment: no thread to wake on the way of a request.
//!
//! A poll's epoll descriptor is readable when there is something to do. The loop attends to it as to any other
//! descriptor, and runs a turn. Two things do not make it readable: a deadline, for which there is a timer, and what a
//! turn has left for want of budget, for which the loop comes back in its next round, without sleeping.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use napi::{sys, Result};
use netpoll::{Look, LoopTurn, Occasion, PollManager};

use crate::doorbell::Bell;
use crate::status::check;
use crate::uv::{data_of, Attention};

/// The seats of an environment's polls on its loop. Never freed, as its bell: libuv knows where they are. But what they
/// refer to is, when the environment ends.
pub(crate) struct LoopDriver {
    uv_loop: *mut c_void,
    bell: &'static Bell,
    manager: RefCell<Option<Arc<PollManager>>>,
    /// By the polls' numbers.
    seats: RefCell<Vec<&'static Seat>>,
}

// SAFETY: the bell and napi-rs ask for it. Everything here is used on the environment's own thread only: JavaScript
// calls it, or its loop does, or its cleanup hook.
unsafe impl Send for LoopDriver {}
// SAFETY: as above.
unsafe impl Sync for LoopDriver {}

/// One poll on the loop.
struct Seat {
    poll: usize,
    owner: &'static LoopDriver,
    /// The poll is the loop's.
    attention: RefCell<Option<Attention>>,
    core: RefCell<Option<netpoll::LoopDriver>>,
    /// When the timer fires. It may be too early, but never too late.
    armed: Cell<Option<Instant>>,
    /// Why the loop does not sleep.
    awake: Cell<Awake>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Awake {
    No,
    /// A turn has left something.
    Unfinished,
    /// More will probably come before this.
    Expecting(Instant),
}

impl fmt::Debug for LoopDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopDriver").field("manager", &self.manager).finish_non_exhaustive()
    }
}

impl LoopDriver {
    /// For the polls of `manager` that may be driven by the loop of `env`.
    pub(crate) fn new(
        env: sys::napi_env,
        bell: &'static Bell,
        manager: Arc<PollManager>,
    ) -> Result<&'static LoopDriver> {
        let mut uv_loop = ptr::null_mut();
        // SAFETY: env is that of the running call.
        check(unsafe { sys::napi_get_uv_event_loop(env, &mut uv_loop) }, "napi_get_uv_event_loop")?;
        let driver: &'static LoopDriver = Box::leak(Box::new(LoopDriver {
            uv_loop: uv_loop.cast(),
            bell,
            manager: RefCell::new(Some(manager)),
            seats: RefCell::default(),
        }));
        bell.on_summons(|| driver.attend_all());
        Ok(driver)
    }

    /// A poll has been started.
    pub(crate) fn seat(&'static self, poll: usize) {
        let Some(core) = self.manager().and_then(|manager| manager.loop_driver(poll)) else { return };
        let known = self.seats.borrow().get(poll).copied();
        match known {
            Some(seat) => {
                seat.core.replace(Some(core));
            }
            None => self.seats.borrow_mut().push(Box::leak(Box::new(Seat {
                poll,
                owner: self,
                attention: RefCell::default(),
                core: RefCell::new(Some(core)),
                armed: Cell::default(),
                awake: Cell::new(Awake::No),
            }))),
        }
        self.attend_all();
    }

    /// Takes the polls that their threads have given to the loop.
    fn attend_all(&self) {
        for index in 0.. {
            let Some(seat) = self.get(index) else { break };
            seat.attend();
        }
    }

    /// Sends what JavaScript has put. False when the poll is not the loop's.
    pub(crate) fn take_records(&self, poll: usize) -> bool {
        self.get(poll).is_some_and(|seat| seat.attends() && seat.take_turn(Occasion::Records))
    }

    /// Notices ends that have come, if the poll is the loop's.
    pub(crate) fn look(&self, poll: usize) {
        if let Some(seat) = self.get(poll).filter(|seat| seat.attends()) {
            seat.take_turn(Occasion::Event);
        }
    }

    /// Before a poll is ended.
    pub(crate) fn leave(&self, poll: usize) {
        self.get(poll).inspect(|seat| seat.leave());
    }

    /// Before all are.
    pub(crate) fn leave_all(&self) {
        self.seats.borrow().iter().for_each(|seat| seat.leave());
    }

    /// The environment ends: what is left of it here keeps no memory.
    pub(crate) fn close(&self) {
        self.leave_all();
        for seat in self.seats.borrow().iter() {
            seat.core.take();
        }
        self.manager.take();
    }

    fn manager(&self) -> Option<Arc<PollManager>> {
        self.manager.borrow().clone()
    }

    fn hand_over(&self, poll: usize) -> bool {
        self.manager().is_some_and(|manager| manager.hand_over(poll))
    }

    fn get(&self, poll: usize) -> Option<&'static Seat> {
        self.seats.borrow().get(poll).copied()
    }
}

impl Seat {
    fn attends(&self) -> bool {
        self.attention.borrow().is_some()
    }

    fn attend(&'static self) {
        let Some(core) = self.core.borrow().clone().filter(netpoll::LoopDriver::is_at_helm) else { return };
        if self.attends() {
            return;
        }
        let data = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: on the environment's thread; a seat is never freed; the descriptor is open while the loop is at the
        // helm, and `leave` comes before that ends. Of a poll that has ended it is not at the helm.
        let opened = unsafe { Attention::open(self.owner.uv_loop, core.descriptor(), readable, data) };
        if opened.is_none() {
            core.give_up();
            self.owner.hand_over(self.poll);
            return;
        }
        self.attention.replace(opened);
        self.armed.set(None);
        self.awake.set(Awake::No);
        // What came before may already have been told to epoll.
        self.stay_awake(Awake::Unfinished);
    }

    /// False when the poll is not the loop's any more.
    fn take_turn(&'static self, occasion: Occasion) -> bool {
        let Some(core) = self.core.borrow().clone() else { return false };
        match core.turn(occasion) {
            Some(LoopTurn::Wait { next_deadline, busy_until }) => {
                self.stay_awake(busy_until.map_or(Awake::No, Awake::Expecting));
                next_deadline.inspect(|at| self.arm(*at));
            }
            Some(LoopTurn::Again) => self.stay_awake(Awake::Unfinished),
            Some(LoopTurn::Leave) => {
                self.leave();
                if !self.owner.hand_over(self.poll) {
                    self.attend();
                }
            }
            Some(LoopTurn::Fail) => {
                self.leave();
                core.fail();
                self.core.take();
            }
            None => return false,
        }
        true
    }

    fn leave(&self) {
        if let Some(attention) = self.attention.take() {
            // SAFETY: on the environment's thread, and nobody has it any more.
            unsafe { attention.close() };
        }
    }

    fn stay_awake(&self, why: Awake) {
        let was = self.awake.replace(why);
        let attention = self.attention.borrow();
        let Some(attention) = attention.as_ref() else { return };
        // SAFETY: on the environment's thread; it is open.
        unsafe {
            match (was == Awake::No, why == Awake::No) {
                (true, false) => attention.stay_awake(round),
                (false, true) => attention.let_sleep(),
                _ => {}
            }
        }
    }

    fn arm(&self, at: Instant) {
        if self.armed.get().is_some_and(|armed| armed <= at) {
            return;
        }
        let attention = self.attention.borrow();
        let Some(attention) = attention.as_ref() else { return };
        let now = Instant::now();
        let left = at.saturating_duration_since(now);
        // The loop counts in whole milliseconds, from a time that may be a little ago.
        let milliseconds = left.as_millis() as u64 + 1;
        // SAFETY: on the environment's thread; it is open.
        unsafe { attention.arm(milliseconds, due) };
        self.armed.set(Some(now + Duration::from_millis(milliseconds)));
    }

    /// What there is to do without being told to. False when there is nothing now.
    fn go_on(&'static self) -> bool {
        match self.awake.get() {
            Awake::Unfinished => self.take_turn(Occasion::Event),
            Awake::Expecting(until) => {
                let Some(core) = self.core.borrow().clone() else { return false };
                match core.look(until) {
                    Look::Found => self.take_turn(Occasion::Event),
                    Look::Again => false,
                    Look::Over => {
                        self.stay_awake(Awake::No);
                        false
                    }
                }
            }
            Awake::No => false,
        }
    }
}

unsafe extern "C" fn readable(handle: *mut c_void, _status: c_int, _events: c_int) {
    // SAFETY: libuv calls this on the environment's thread.
    unsafe { attend(handle, |seat| seat.take_turn(Occasion::Event)) };
}

unsafe extern "C" fn due(handle: *mut c_void) {
    // SAFETY: libuv calls this on the environment's thread.
    unsafe {
        attend(handle, |seat| {
            seat.armed.set(None);
            seat.take_turn(Occasion::Event)
        })
    };
}

unsafe extern "C" fn round(handle: *mut c_void) {
    // SAFETY: libuv calls this on the environment's thread.
    unsafe { attend(handle, Seat::go_on) };
}

/// Lets the seat go on after it has begun with `act`, until there is nothing to do.
///
/// # Safety
/// On the environment's thread, called by its loop, with a handle of a seat's attention.
unsafe fn attend(handle: *mut c_void, act: impl FnOnce(&'static Seat) -> bool) {
    // SAFETY: a seat is never freed; the rest the caller promises.
    unsafe {
        let seat = &*data_of(handle).cast::<Seat>();
        let mut first = Some(act);
        seat.owner.bell.attend(|| first.take().map_or_else(|| seat.go_on(), |act| act(seat)));
    }
}
