//! The bell on JavaScript's side: one threadsafe function, rung once a batch.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use napi::{sys, Result};

use crate::status::check;

/// The threadsafe function of an environment. It does not keep the process alive unless `refer`red.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bell(sys::napi_threadsafe_function);

// SAFETY: napi_call_threadsafe_function may be called from any thread. The function itself lives until
// the environment's cleanup, and `Environment` joins every thread that rings before that.
unsafe impl Send for Bell {}
// SAFETY: as above; the handle is never changed.
unsafe impl Sync for Bell {}

impl Bell {
    /// `stop` is the STOP word of the environment: once set, a ring that is still under way does nothing.
    pub(crate) fn new(env: sys::napi_env, drain: sys::napi_value, stop: &'static AtomicU32) -> Result<Bell> {
        let mut name = ptr::null_mut();
        let text = c"netpoll";
        let mut function = ptr::null_mut();
        // SAFETY: env and drain are those of the running call; `text` is static; `stop` is static and
        // comes back as the context of `drain_now`, which reads it as what it is.
        unsafe {
            check(sys::napi_create_string_utf8(env, text.as_ptr(), 7, &mut name), "napi_create_string_utf8")?;
            let context = ptr::from_ref(stop).cast_mut().cast();
            let none = ptr::null_mut();
            let status = sys::napi_create_threadsafe_function(
                env,
                drain,
                none,
                name,
                0,
                1,
                none.cast(),
                None,
                context,
                Some(drain_now),
                &mut function,
            );
            check(status, "napi_create_threadsafe_function")?;
            check(sys::napi_unref_threadsafe_function(env, function), "napi_unref_threadsafe_function")?;
        }
        Ok(Bell(function))
    }

    pub(crate) fn ring(self) {
        // SAFETY: see the Send impl. The queue is unbounded and holds at most one ring, for the core rings
        // only when SCHEDULED goes from 0 to 1.
        let status = unsafe {
            let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
            sys::napi_call_threadsafe_function(self.0, ptr::null_mut(), mode)
        };
        // Closing is what the end of the environment looks like from here. Anything else would leave
        // every connection silent, so it is not swallowed: the poll's panic tells JavaScript.
        let is_sound = status == sys::Status::napi_ok || status == sys::Status::napi_closing;
        assert!(is_sound, "napi_call_threadsafe_function failed: {status}");
    }

    pub(crate) fn refer(self, env: sys::napi_env) -> Result<()> {
        // SAFETY: called on the thread of the environment that the function belongs to.
        check(unsafe { sys::napi_ref_threadsafe_function(env, self.0) }, "napi_ref_threadsafe_function")
    }

    pub(crate) fn unrefer(self, env: sys::napi_env) -> Result<()> {
        // SAFETY: called on the thread of the environment that the function belongs to.
        check(unsafe { sys::napi_unref_threadsafe_function(env, self.0) }, "napi_unref_threadsafe_function")
    }
}

unsafe extern "C" fn drain_now(
    env: sys::napi_env,
    drain: sys::napi_value,
    stop: *mut c_void,
    _data: *mut c_void,
) {
    // SAFETY: the context is the static word that `Bell::new` was given.
    let stop = unsafe { &*stop.cast::<AtomicU32>() };
    // Acquire: pairs with JavaScript's Atomics.store of STOP. Without env the function is being torn down.
    if env.is_null() || drain.is_null() || stop.load(Ordering::Acquire) != 0 {
        return;
    }
    // SAFETY: Node calls this on the environment's thread, inside a handle and a callback scope.
    unsafe {
        let mut undefined = ptr::null_mut();
        let mut result = ptr::null_mut();
        if sys::napi_get_undefined(env, &mut undefined) != sys::Status::napi_ok {
            return;
        }
        let status = sys::napi_call_function(env, undefined, drain, 0, ptr::null(), &mut result);
        if status != sys::Status::napi_ok {
            report_exception(env);
        }
    }
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
