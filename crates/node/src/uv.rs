//! The few functions of libuv that Node-API does not wrap, looked up in the running program: a runtime
//! that is not Node may have none of them.

use std::ffi::{c_int, c_void, CStr};
use std::mem::transmute_copy;
use std::ptr::NonNull;
use std::sync::OnceLock;

use netpoll::symbol;

/// A handle of whatever kind: libuv alone knows what it looks like.
type Handle = c_void;

/// `uv_handle_type`, whose numbers are part of libuv's ABI.
const UV_ASYNC: c_int = 1;

type Callback = unsafe extern "C" fn(*mut Handle);

/// Their signatures are those of libuv 1, which Node has had since its first version.
#[derive(Debug)]
struct Uv {
    async_init: unsafe extern "C" fn(*mut c_void, *mut Handle, Callback) -> c_int,
    async_send: unsafe extern "C" fn(*mut Handle) -> c_int,
    close: unsafe extern "C" fn(*mut Handle, Callback),
    refer: unsafe extern "C" fn(*const Handle),
    unrefer: unsafe extern "C" fn(*const Handle),
    handle_size: unsafe extern "C" fn(c_int) -> usize,
    get_data: unsafe extern "C" fn(*const Handle) -> *mut c_void,
    set_data: unsafe extern "C" fn(*mut Handle, *mut c_void),
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
                close: function(c"uv_close")?,
                refer: function(c"uv_ref")?,
                unrefer: function(c"uv_unref")?,
                handle_size: function(c"uv_handle_size")?,
                get_data: function(c"uv_handle_get_data")?,
                set_data: function(c"uv_handle_set_data")?,
            })
        }
    }
}

/// A handle that makes its loop's thread call a function, asked to by any thread.
#[derive(Debug)]
pub(crate) struct Async {
    uv: &'static Uv,
    handle: NonNull<Handle>,
}

// SAFETY: uv_async_send may be called from any thread; the other methods are unsafe for who is on another
// thread than the loop's.
unsafe impl Send for Async {}
// SAFETY: as above.
unsafe impl Sync for Async {}

impl Async {
    /// Calls `woken` with `data` some time after each `send`. It does not keep the loop alive unless `refer`red.
    /// None where there is no libuv, or the loop refuses.
    ///
    /// # Safety
    /// On the thread of `uv_loop`, which is one. `data` is valid until `close`.
    pub(crate) unsafe fn open(
        uv_loop: *mut c_void,
        woken: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Option<Async> {
        let uv = Uv::get()?;
        // SAFETY: the memory is as large as libuv asks for, and aligned for anything it may hold; it is freed
        // by `freed`, when libuv has let go of it. For the rest the caller promises.
        unsafe {
            let size = (uv.handle_size)(UV_ASYNC);
            let handle = NonNull::new(allocate(size))?;
            if (uv.async_init)(uv_loop, handle.as_ptr(), woken) != 0 {
                free(handle.as_ptr(), size);
                return None;
            }
            (uv.set_data)(handle.as_ptr(), data);
            (uv.unrefer)(handle.as_ptr());
            Some(Async { uv, handle })
        }
    }

    pub(crate) fn send(&self) {
        // SAFETY: the handle is open: see `close`. The call can not fail for a handle that is.
        unsafe { (self.uv.async_send)(self.handle.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread.
    pub(crate) unsafe fn refer(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.refer)(self.handle.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread.
    pub(crate) unsafe fn unrefer(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.unrefer)(self.handle.as_ptr()) };
    }

    /// # Safety
    /// On the loop's thread, once; nobody uses the handle afterwards.
    pub(crate) unsafe fn close(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.uv.close)(self.handle.as_ptr(), freed) };
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

unsafe extern "C" fn freed(handle: *mut Handle) {
    if let Some(uv) = Uv::get() {
        // SAFETY: libuv calls this once, last of all, with what `open` has allocated.
        unsafe { free(handle, (uv.handle_size)(UV_ASYNC)) };
    }
}

fn allocate(size: usize) -> *mut Handle {
    Box::into_raw(vec![0_u64; size.div_ceil(size_of::<u64>())].into_boxed_slice()).cast()
}

/// # Safety
/// `handle` is from `allocate(size)`, and nobody uses it any more.
unsafe fn free(handle: *mut Handle, size: usize) {
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
