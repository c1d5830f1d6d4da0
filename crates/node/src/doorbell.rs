//! The bell on JavaScript's side: rung once a batch, it makes the environment's thread drain the rings.
//!
//! It is a handle of libuv's own. A threadsafe function does the same, but it rings under a lock that the
//! environment's thread takes too, so that where both share a core each batch switches threads twice more
//! (docs/performance.md). It is what is left where libuv's functions are not to be found.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use napi::{sys, Result};

use crate::status::check;
use crate::uv::{data_of, Async};

/// Drains in answer to one turn: what they come to again is for the next callback.
const DRAINS: u32 = 4;

/// How long the loop's other work waits while one poll finds more each time that it looks: a round of the loop costs
/// as much as a small request.
const PATIENCE: Duration = Duration::from_micros(50);

/// The bell of an environment. It does not keep the process alive unless `refer`red. It is never freed: a ring
/// may be under way until the process has ended.
pub(crate) struct Bell {
    env: sys::napi_env,
    drain: sys::napi_ref,
    context: sys::napi_async_context,
    /// The STOP word of the environment: once set, a ring that is still under way does nothing.
    stop: &'static AtomicU32,
    handle: OnceLock<Handle>,
    /// The environment's thread.
    home: ThreadId,
    /// A callback of ours runs at home, which answers a ring of its own thread before it returns. Relaxed, as the next
    /// one: both are for one thread.
    attends: AtomicBool,
    is_rung: AtomicBool,
    /// Looks after polls that their threads have given to the loop.
    summoned: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// All that there ever were, and with them the seats that they summon: what is in no list looks lost.
static BELLS: Mutex<Vec<&Bell>> = Mutex::new(Vec::new());

enum Handle {
    Async(Async),
    Function(sys::napi_threadsafe_function),
}

// SAFETY: `ring` alone is called from other threads. It reads `home`, which never changes, and `attends`, which is
// atomic, and uses `handle`: uv_async_send and napi_call_threadsafe_function may be called from any thread. The handle
// is there before any poll is, and until the environment's cleanup, or it could not be made: `Environment` has joined
// every thread that rings before that.
unsafe impl Send for Bell {}
// SAFETY: as above.
unsafe impl Sync for Bell {}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Bell {
    /// Calls the function `drain` when it is rung; through libuv where that is wanted and possible.
    pub(crate) fn new(
        env: sys::napi_env,
        drain: sys::napi_value,
        stop: &'static AtomicU32,
        libuv: bool,
    ) -> Result<&'static Bell> {
        let mut bell = Bell {
            env,
            drain: ptr::null_mut(),
            context: ptr::null_mut(),
            stop,
            handle: OnceLock::new(),
            home: thread::current().id(),
            attends: AtomicBool::new(false),
            is_rung: AtomicBool::new(false),
            summoned: OnceLock::new(),
        };
        let name = name(env)?;
        // SAFETY: env, drain and name are those of the running call.
        unsafe {
            let none = ptr::null_mut();
            check(sys::napi_create_reference(env, drain, 1, &mut bell.drain), "napi_create_reference")?;
            check(sys::napi_async_init(env, none, name, &mut bell.context), "napi_async_init")?;
        }
        let bell: &'static Bell = Box::leak(Box::new(bell));
        BELLS.lock().unwrap_or_else(PoisonError::into_inner).push(bell);
        let handle = match if libuv { bell.open_async()? } else { None } {
            Some(handle) => Handle::Async(handle),
            None => Handle::Function(bell.create_function(name)?),
        };
        bell.handle.get_or_init(|| handle);
        Ok(bell)
    }

    /// From any thread. A turn that the loop runs itself rings at home, and is answered when it has returned.
    pub(crate) fn ring(&self) {
        if self.attends.load(Ordering::Relaxed) && thread::current().id() == self.home {
            return self.is_rung.store(true, Ordering::Relaxed);
        }
        self.send();
    }

    /// Whether the loop can drive polls.
    pub(crate) fn is_of_libuv(&self) -> bool {
        matches!(self.handle.get(), Some(Handle::Async(_)))
    }

    /// What is to be done before each drain that another thread has rung for.
    pub(crate) fn on_summons(&self, summoned: impl Fn() + Send + Sync + 'static) {
        self.summoned.get_or_init(|| Box::new(summoned));
    }

    /// Runs what may ring, in a callback of the loop, and drains then if it has; again and again while `act` says so, for
    /// as long as the loop's other work may wait.
    ///
    /// # Safety
    /// On the environment's thread, called by its loop.
    pub(crate) unsafe fn attend(&self, mut act: impl FnMut() -> bool) {
        if self.is_stopped() {
            return;
        }
        let end = Instant::now() + PATIENCE;
        self.attends.store(true, Ordering::Relaxed);
        while act() {
            // SAFETY: the caller's promise.
            unsafe { self.answer() };
            if self.is_stopped() || Instant::now() >= end {
                break;
            }
        }
        // SAFETY: as above.
        unsafe { self.answer() };
        self.attends.store(false, Ordering::Relaxed);
        if self.is_rung.swap(false, Ordering::Relaxed) {
            self.send();
        }
    }

    /// Drains what has been rung for.
    ///
    /// # Safety
    /// As `attend`.
    unsafe fn answer(&self) {
        for _ in 0..DRAINS {
            if !self.is_rung.swap(false, Ordering::Relaxed) {
                break;
            }
            // SAFETY: the caller's promise.
            unsafe { self.drain() };
        }
    }

    fn is_stopped(&self) -> bool {
        // Acquire: pairs with JavaScript's Atomics.store of STOP, and with the cleanup hook's.
        self.stop.load(Ordering::Acquire) != 0
    }

    fn send(&self) {
        match self.handle.get() {
            Some(Handle::Async(handle)) => handle.send(),
            Some(Handle::Function(function)) => call(*function),
            None => {}
        }
    }

    /// On the environment's thread.
    pub(crate) fn refer(&self) -> Result<()> {
        match self.handle.get() {
            // SAFETY: JavaScript calls this, so it is the thread of the environment and of its loop.
            Some(Handle::Async(handle)) => unsafe { handle.0.refer() },
            Some(Handle::Function(function)) => {
                // SAFETY: as above.
                let status = unsafe { sys::napi_ref_threadsafe_function(self.env, *function) };
                check(status, "napi_ref_threadsafe_function")?;
            }
            None => {}
        }
        Ok(())
    }

    /// On the environment's thread.
    pub(crate) fn unrefer(&self) -> Result<()> {
        match self.handle.get() {
            // SAFETY: as in `refer`.
            Some(Handle::Async(handle)) => unsafe { handle.0.unrefer() },
            Some(Handle::Function(function)) => {
                // SAFETY: as in `refer`.
                let status = unsafe { sys::napi_unref_threadsafe_function(self.env, *function) };
                check(status, "napi_unref_threadsafe_function")?;
            }
            None => {}
        }
        Ok(())
    }

    /// Lets go of an environment that could not be made, and of the words that it would have had. Once, on its thread; no
    /// thread rings any more.
    pub(crate) fn discard(&self) {
        if let Some(Handle::Function(function)) = self.handle.get() {
            let mode = sys::ThreadsafeFunctionReleaseMode::abort;
            // SAFETY: the caller is on the environment's thread, and nobody uses the function any more. A call that is
            // still queued comes without an env, and does nothing.
            unsafe { sys::napi_release_threadsafe_function(*function, mode) };
        }
        self.close();
    }

    /// Lets go of the loop: an open handle would abort a worker. Once, on the environment's thread: from its cleanup hook,
    /// or by `discard`. No thread rings any more. A threadsafe function is closed by Node itself.
    pub(crate) fn close(&self) {
        // SAFETY: the callers are on the environment's thread, and have joined its polls, or started none.
        unsafe {
            if let Some(Handle::Async(handle)) = self.handle.get() {
                handle.0.close();
            }
            // They fail only for what is gone with the environment anyway.
            sys::napi_async_destroy(self.env, self.context);
            sys::napi_delete_reference(self.env, self.drain);
        }
    }

    fn open_async(&'static self) -> Result<Option<Async>> {
        let mut uv_loop = ptr::null_mut();
        // SAFETY: on the environment's thread; the bell is never freed, and `woken` takes it for what it is.
        unsafe {
            check(sys::napi_get_uv_event_loop(self.env, &mut uv_loop), "napi_get_uv_event_loop")?;
            Ok(Async::open(uv_loop.cast(), woken, ptr::from_ref(self).cast_mut().cast()))
        }
    }

    fn create_function(&'static self, name: sys::napi_value) -> Result<sys::napi_threadsafe_function> {
        let mut function = ptr::null_mut();
        let none = ptr::null_mut();
        // SAFETY: on the environment's thread; the context is never freed, and `called` takes it for what it is.
        unsafe {
            let status = sys::napi_create_threadsafe_function(
                self.env,
                none,
                none,
                name,
                0,
                1,
                none.cast(),
                None,
                ptr::from_ref(self).cast_mut().cast(),
                Some(called),
                &mut function,
            );
            check(status, "napi_create_threadsafe_function")?;
            check(sys::napi_unref_threadsafe_function(self.env, function), "napi_unref_threadsafe_function")?;
        }
        Ok(function)
    }

    /// # Safety
    /// On the environment's thread.
    unsafe fn drain(&self) {
        if self.is_stopped() {
            return;
        }
        let (mut scope, mut global, mut drain) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: the environment has not stopped; the scope is closed before the frame ends.
        unsafe {
            if sys::napi_open_handle_scope(self.env, &mut scope) != sys::Status::napi_ok {
                return;
            }
            let is_here = sys::napi_get_global(self.env, &mut global) == sys::Status::napi_ok
                && sys::napi_get_reference_value(self.env, self.drain, &mut drain) == sys::Status::napi_ok;
            if is_here {
                let none = ptr::null();
                let status =
                    sys::napi_make_callback(self.env, self.context, global, drain, 0, none, ptr::null_mut());
                if status != sys::Status::napi_ok {
                    report_exception(self.env);
                }
            }
            sys::napi_close_handle_scope(self.env, scope);
        }
    }
}

unsafe extern "C" fn woken(handle: *mut c_void) {
    // SAFETY: libuv calls this on the environment's thread, with the handle that `open_async` has made.
    unsafe {
        let bell = &*data_of(handle).cast::<Bell>();
        bell.attend(|| {
            bell.summoned.get().inspect(|summoned| summoned());
            bell.ring();
            false
        });
    }
}

unsafe extern "C" fn called(
    env: sys::napi_env,
    _function: sys::napi_value,
    bell: *mut c_void,
    _data: *mut c_void,
) {
    // Without env the function is being torn down.
    if !env.is_null() {
        // SAFETY: Node calls this on the environment's thread, with the context that `create_function` gave.
        unsafe { (*bell.cast::<Bell>()).drain() }
    }
}

fn name(env: sys::napi_env) -> Result<sys::napi_value> {
    let (mut name, text) = (ptr::null_mut(), c"netpoll");
    let length = text.count_bytes() as isize;
    // SAFETY: env is that of the running call, and `text` as long as it says.
    let status = unsafe { sys::napi_create_string_utf8(env, text.as_ptr(), length, &mut name) };
    check(status, "napi_create_string_utf8")?;
    Ok(name)
}

fn call(function: sys::napi_threadsafe_function) {
    // SAFETY: see the Send impl. The queue is unbounded and holds at most one ring, for the core rings
    // only when SCHEDULED goes from 0 to 1.
    let status = unsafe {
        let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
        sys::napi_call_threadsafe_function(function, ptr::null_mut(), mode)
    };
    // Closing is what the end of the environment looks like from here. Anything else would leave
    // every connection silent, so it is not swallowed: the poll's panic tells JavaScript.
    let is_sound = status == sys::Status::napi_ok || status == sys::Status::napi_closing;
    assert!(is_sound, "napi_call_threadsafe_function failed: {status}");
}

/// An exception that left `drain` would be lost with this frame: it becomes an uncaught one.
///
/// # Safety
/// On the environment's thread, inside a handle scope.
unsafe fn report_exception(env: sys::napi_env) {
    let mut is_pending = false;
    let mut exception = ptr::null_mut();
    // SAFETY: the caller's promise; the out-pointers are valid.
    unsafe {
        let asked = sys::napi_is_exception_pending(env, &mut is_pending);
        if asked != sys::Status::napi_ok || !is_pending {
            return;
        }
        if sys::napi_get_and_clear_last_exception(env, &mut exception) == sys::Status::napi_ok {
            sys::napi_fatal_exception(env, exception);
        }
    }
}
