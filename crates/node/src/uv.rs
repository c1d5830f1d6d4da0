//! The few functions of libuv that Node-API does not wrap, looked up in the running program: a runtime
//! that is not Node may have none of them.

use std::ffi::{c_int, c_void, CStr};
use std::mem::transmute_copy;
use std::ptr::NonNull;
use std::sync::OnceLock;

use netpoll::symbol;

/// A handle of whatever kind: libuv alone knows what it looks like.
type Raw = c_void;

/// `uv_handle_type`, whose numbers are part of libuv's ABI.
#[derive(Clone, Copy)]
enum Kind {
    Async = 1,
    Idle = 6,
    Poll = 8,
    Timer = 13,
}

const UV_READABLE: c_int = 1;

pub(crate) type Callback = unsafe extern "C" fn(*mut Raw);
pub(crate) type PollCallback = unsafe extern "C" fn(*mut Raw, c_int, c_int);

/// Their signatures are those of libuv 1, which Node has had since its first version.
#[derive(Debug)]
struct Uv {
    async_init: unsafe extern "C" fn(*mut c_void, *mut Raw, Callback) -> c_int,
    async_send: unsafe extern "C" fn(*mut Raw) -> c_int,
    idle_init: unsafe extern "C" fn(*mut c_void, *mut Raw) -> c_int,
    idle_start: unsafe extern "C" fn(*mut Raw, Callback) -> c_int,
    idle_stop: unsafe extern "C" fn(*mut Raw) -> c_int,
    poll_init: unsafe extern "C" fn(*mut c_void, *mut Raw, c_int) -> c_int,
    poll_start: unsafe extern "C" fn(*mut Raw, c_int, PollCallback) -> c_int,
    timer_init: unsafe extern "C" fn(*mut c_void, *mut Raw) -> c_int,
    timer_start: unsafe extern "C" fn(*mut Raw, Callback, u64, u64) -> c_int,
    close: unsafe extern "C" fn(*mut Raw, Callback),
    refer: unsafe extern "C" fn(*const Raw),
    unrefer: unsafe extern "C" fn(*const Raw),
    handle_size: unsafe extern "C" fn(c_int) -> usize,
    get_type: unsafe extern "C" fn(*const Raw) -> c_int,
    get_data: unsafe extern "C" fn(*const Raw) -> *mut c_void,
    set_data: unsafe extern "C" fn(*mut Raw, *mut c_void),
}

impl Uv {
    /// None where the running program has no libuv to share.
    fn get() -> Option<&'static Uv> {
        static UV: OnceLock<Option<Uv>> = OnceLock::new();
        UV.get_or_init(Uv::look_up).as_ref()
    }

    fn look_up() -> Option<Uv> {
        // SAFETY: the names are those of libuv's functions, whose types the fields have.
        unsafe {
            Some(Uv {
                async_init: function(c"uv_async_init")?,
                async_send: function(c"uv_async_send")?,
                idle_init: function(c"uv_idle_init")?,
                idle_start: function(c"uv_idle_start")?,
                idle_stop: function(c"uv_idle_stop")?,
                poll_init: function(c"uv_poll_init")?,
                poll_start: function(c"uv_poll_start")?,
                timer_init: function(c"uv_timer_init")?,
                timer_start: function(c"uv_timer_start")?,
                close: function(c"uv_close")?,
                refer: function(c"uv_ref")?,
                unrefer: function(c"uv_unref")?,
                handle_size: function(c"uv_handle_size")?,
                get_type: function(c"uv_handle_get_type")?,
                get_data: function(c"uv_handle_get_data")?,
                set_data: function(c"uv_handle_set_data")?,
            })
        }
    }
}

/// Whether the running program has a libuv to share.
pub(crate) fn is_there() -> bool {
    Uv::get().is_some()
}

/// An open handle. It does not keep its loop alive unless `refer`red.
#[derive(Debug)]
pub(crate) struct Handle {
    uv: &'static Uv,
    raw: NonNull<Raw>,
}

impl Handle {
    /// None where there is no libuv, or the loop refuses.
    ///
    /// # Safety
    /// On the loop's thread. `init` makes the memory it is given a handle of this kind, or returns what is not 0;
    /// `data` is valid until `close`.
    unsafe fn open(
        kind: Kind,
        data: *mut c_void,
        init: impl FnOnce(&Uv, *mut Raw) -> c_int,
    ) -> Option<Handle> {
        let uv = Uv::get()?;
        // SAFETY: the memory is as large as libuv asks for, and aligned for anything it may hold; it is freed
        // by `freed`, when libuv has let go of it. For the rest the caller promises.
        unsafe {
            let size = (uv.handle_size)(kind as c_int);
            let raw = NonNull::new(allocate(size))?;
            if init(uv, raw.as_ptr()) != 0 {
                free(raw.as_ptr(), size);
                return None;
            }
            (uv.set_data)(raw.as_ptr(), data);
            (uv.unrefer)(raw.as_ptr());
            Some(Handle { uv, raw })
        }
    }

    fn as_ptr(&self) -> *mut Raw {
        self.raw.as_ptr()
    }

    /// # Safety
    /// On the loop's thread.
    pub(crate) unsafe fn refer(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.refer)(self.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread.
    pub(crate) unsafe fn unrefer(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.unrefer)(self.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread, once; nobody uses the handle afterwards.
    pub(crate) unsafe fn close(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.close)(self.as_ptr(), freed) };
    }
}

/// A handle that makes its loop's thread call a function, asked to by any thread.
#[derive(Debug)]
pub(crate) struct Async(pub(crate) Handle);

// SAFETY: uv_async_send may be called from any thread; the methods of `Handle` are unsafe for who is on another
// thread than the loop's.
unsafe impl Send for Async {}
// SAFETY: as above.
unsafe impl Sync for Async {}

impl Async {
    /// Calls `woken` some time after each `send`.
    ///
    /// # Safety
    /// On the thread of `uv_loop`, which is one. `data` is valid until `close`.
    pub(crate) unsafe fn open(uv_loop: *mut c_void, woken: Callback, data: *mut c_void) -> Option<Async> {
        // SAFETY: the caller's promise.
        unsafe { Handle::open(Kind::Async, data, |uv, raw| (uv.async_init)(uv_loop, raw, woken)).map(Async) }
    }

    pub(crate) fn send(&self) {
        // SAFETY: the handle is open: see `close`. The call can not fail for a handle that is.
        unsafe { (self.0.uv.async_send)(self.0.as_ptr()) };
    }
}

/// The handles by which a loop attends to one descriptor: when it is readable, when a time has come, and in each of
/// the loop's rounds.
#[derive(Debug)]
pub(crate) struct Attention {
    poll: Handle,
    timer: Handle,
    idle: Handle,
}

impl Attention {
    /// Attends to the descriptor from now on; the timer and the rounds are off.
    ///
    /// # Safety
    /// On the thread of `uv_loop`, which is one. `data` is valid and the descriptor open until `close`.
    pub(crate) unsafe fn open(
        uv_loop: *mut c_void,
        descriptor: c_int,
        readable: PollCallback,
        data: *mut c_void,
    ) -> Option<Attention> {
        // SAFETY: the caller's promise; each handle that is open when a later one is refused is closed.
        unsafe {
            let timer = Handle::open(Kind::Timer, data, |uv, raw| (uv.timer_init)(uv_loop, raw))?;
            let Some(idle) = Handle::open(Kind::Idle, data, |uv, raw| (uv.idle_init)(uv_loop, raw)) else {
                timer.close();
                return None;
            };
            let opened = Handle::open(Kind::Poll, data, |uv, raw| (uv.poll_init)(uv_loop, raw, descriptor));
            let Some(poll) = opened else {
                [timer, idle].iter().for_each(|handle| handle.close());
                return None;
            };
            let is_started = (poll.uv.poll_start)(poll.as_ptr(), UV_READABLE, readable) == 0;
            let attention = Attention { poll, timer, idle };
            if !is_started {
                attention.close();
            }
            is_started.then_some(attention)
        }
    }

    /// # Safety
    /// On the loop's thread, before `close`.
    pub(crate) unsafe fn arm(&self, milliseconds: u64, due: Callback) {
        // SAFETY: the caller's promise. It fails only without a callback.
        unsafe { (self.timer.uv.timer_start)(self.timer.as_ptr(), due, milliseconds, 0) };
    }

    /// Calls `round` in each round of the loop, which does not sleep meanwhile.
    ///
    /// # Safety
    /// On the loop's thread, before `close`.
    pub(crate) unsafe fn stay_awake(&self, round: Callback) {
        // SAFETY: the caller's promise. It fails only without a callback.
        unsafe { (self.idle.uv.idle_start)(self.idle.as_ptr(), round) };
    }

    /// # Safety
    /// On the loop's thread, before `close`.
    pub(crate) unsafe fn let_sleep(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.idle.uv.idle_stop)(self.idle.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread, once.
    pub(crate) unsafe fn close(&self) {
        // SAFETY: the caller's promise.
        unsafe { [&self.poll, &self.timer, &self.idle].iter().for_each(|handle| handle.close()) };
    }
}

/// The data that a handle was opened with.
///
/// # Safety
/// Of a handle that is open.
pub(crate) unsafe fn data_of(handle: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise. Without libuv there would be no handle.
    Uv::get().map_or(std::ptr::null_mut(), |uv| unsafe { (uv.get_data)(handle) })
}

unsafe extern "C" fn freed(handle: *mut Raw) {
    if let Some(uv) = Uv::get() {
        // SAFETY: libuv calls this once, last of all, with what `open` has allocated.
        unsafe { free(handle, (uv.handle_size)((uv.get_type)(handle))) };
    }
}

fn allocate(size: usize) -> *mut Raw {
    Box::into_raw(vec![0_u64; size.div_ceil(size_of::<u64>())].into_boxed_slice()).cast()
}

/// # Safety
/// `handle` is from `allocate(size)`, and nobody uses it any more.
unsafe fn free(handle: *mut Raw, size: usize) {
    let words = std::ptr::slice_from_raw_parts_mut(handle.cast::<u64>(), size.div_ceil(size_of::<u64>()));
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(words) });
}

/// # Safety
/// `F` is the type of a pointer to the function of this name.
unsafe fn function<F>(name: &CStr) -> Option<F> {
    let found: NonNull<c_void> = symbol(name)?;
    // SAFETY: a pointer to a function is as large as one to data, and the caller vouches for its type.
    Some(unsafe { transmute_copy(&found.as_ptr()) })
}
