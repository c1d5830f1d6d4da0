//! Memory on both sides: typed arrays that native code writes, chunks that JavaScript reads, and Buffers
//! that the kernel is sent from.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::{sys, Error, Result, Status};
use netpoll::Chunk;

use crate::status::check;

/// The bytes of a typed array.
pub(crate) fn bytes_of(env: sys::napi_env, array: sys::napi_value) -> Result<(*mut u8, usize)> {
    parts_of(env, array).map(|(bytes, _)| bytes)
}

/// The bytes of a typed array, and its buffer.
fn parts_of(env: sys::napi_env, array: sys::napi_value) -> Result<((*mut u8, usize), sys::napi_value)> {
    let (mut kind, mut length) = (0, 0);
    let (mut data, mut buffer) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: env and array are those of the running call; the out-pointers are valid for it, and null
    // says that the offset is not wanted.
    let status = unsafe {
        let offset = ptr::null_mut();
        sys::napi_get_typedarray_info(env, array, &mut kind, &mut length, &mut data, &mut buffer, offset)
    };
    check(status, "napi_get_typedarray_info")?;
    let size = match kind {
        sys::TypedarrayType::int32_array => 4,
        sys::TypedarrayType::uint8_array => 1,
        _ => return Err(Error::new(Status::InvalidArg, "an Int32Array or a Uint8Array is needed")),
    };
    Ok(((data.cast(), length * size), buffer))
}

/// What an environment holds until its end. Node lets go of values then, but not of the references to them.
#[derive(Default)]
pub(crate) struct Holds(Mutex<Vec<sys::napi_ref>>);

// SAFETY: napi-rs asks for it; references are made and deleted on the environment's own thread only: JavaScript calls,
// or the cleanup hook runs.
unsafe impl Send for Holds {}
// SAFETY: as above.
unsafe impl Sync for Holds {}

impl Holds {
    fn add(&self, reference: sys::napi_ref) {
        self.lock().push(reference);
    }

    /// Holds what `others` have held.
    pub(crate) fn take_over(&self, others: &Holds) {
        others.lock().drain(..).for_each(|reference| self.add(reference));
    }

    /// When nobody uses any of it: of the environment's cleanup hook, and of what could not be made.
    pub(crate) fn let_go(&self, env: sys::napi_env) {
        for reference in self.lock().drain(..) {
            // It fails only for what is gone with the environment anyway.
            let _ = let_go(env, reference);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<sys::napi_ref>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The words of an Int32Array over a SharedArrayBuffer, held by `holds`.
pub(crate) fn words_of(
    env: sys::napi_env,
    array: sys::napi_value,
    holds: &Holds,
) -> Result<&'static [AtomicU32]> {
    let ((data, bytes), buffer) = parts_of(env, array)?;
    if data.is_null() || !data.cast::<AtomicU32>().is_aligned() || !is_shared(env, buffer)? {
        return Err(Error::new(Status::InvalidArg, "the words must be there, aligned and shared"));
    }
    holds.add(hold(env, array)?);
    // SAFETY: the strong reference keeps the memory until the polls have been joined, by the cleanup hook or because
    // they could not be started, and every user of the words is gone then (see `Environment`). It is that of a
    // SharedArrayBuffer, as has been looked at, which can neither be detached nor become shorter. JavaScript
    // uses them as 32-bit words too, so all accesses are atomic or ordered by atomic ones.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), bytes / 4) })
}

/// Whether the buffer of a typed array is a SharedArrayBuffer.
fn is_shared(env: sys::napi_env, buffer: sys::napi_value) -> Result<bool> {
    let mut is_own = true;
    // SAFETY: env and buffer are those of the running call; the out-pointer is valid for it.
    let status = unsafe { sys::napi_is_arraybuffer(env, buffer, &mut is_own) };
    check(status, "napi_is_arraybuffer")?;
    Ok(!is_own)
}

/// Keeps a value alive until `let_go`.
pub(crate) fn hold(env: sys::napi_env, value: sys::napi_value) -> Result<sys::napi_ref> {
    let mut reference = ptr::null_mut();
    // SAFETY: env and value are those of the running call.
    let status = unsafe { sys::napi_create_reference(env, value, 1, &mut reference) };
    check(status, "napi_create_reference")?;
    Ok(reference)
}

pub(crate) fn let_go(env: sys::napi_env, reference: sys::napi_ref) -> Result<()> {
    // SAFETY: the reference was made by `hold` in this environment and is deleted once: its owner has
    // taken it out of its table.
    check(unsafe { sys::napi_delete_reference(env, reference) }, "napi_delete_reference")
}

/// A new ArrayBuffer over the memory of the chunk. It holds a reference to the chunk until it is collected.
pub(crate) fn map(env: sys::napi_env, chunk: Arc<Chunk>) -> Result<sys::napi_value> {
    let (data, length) = (chunk.as_ptr().cast(), chunk.len());
    let hint = Arc::into_raw(chunk).cast_mut();
    let mut buffer = ptr::null_mut();
    // SAFETY: the memory stays mapped as long as the Arc in `hint` is held, and `unmap` drops it exactly
    // when nobody can reach the ArrayBuffer any more.
    let status = unsafe {
        sys::napi_create_external_arraybuffer(env, data, length, Some(unmap), hint.cast(), &mut buffer)
    };
    if status != sys::Status::napi_ok {
        // SAFETY: without an ArrayBuffer nobody will call `unmap`; the Arc is still ours.
        drop(unsafe { Arc::from_raw(hint) });
    }
    check(status, "napi_create_external_arraybuffer")?;
    Ok(buffer)
}

/// Whether this runtime lets JavaScript see memory of ours: those that keep all of it in a cage of V8's do not.
pub(crate) fn can_map(env: sys::napi_env) -> bool {
    let byte = Box::into_raw(Box::new(0u8)).cast();
    let mut buffer = ptr::null_mut();
    // SAFETY: `free` drops the byte when nobody can reach the ArrayBuffer any more.
    let status = unsafe {
        sys::napi_create_external_arraybuffer(env, byte, 1, Some(free), ptr::null_mut(), &mut buffer)
    };
    if status != sys::Status::napi_ok {
        // SAFETY: without an ArrayBuffer nobody will call `free`; the byte is still ours.
        drop(unsafe { Box::from_raw(byte.cast::<u8>()) });
    }
    status == sys::Status::napi_ok
}

unsafe extern "C" fn free(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: Node calls this once, with the byte that `can_map` left there.
    drop(unsafe { Box::from_raw(data.cast::<u8>()) });
}

unsafe extern "C" fn unmap(_env: sys::napi_env, _data: *mut c_void, hint: *mut c_void) {
    // SAFETY: Node calls this once for each ArrayBuffer, with the Arc that `map` left there.
    drop(unsafe { Arc::from_raw(hint.cast::<Chunk>()) });
}
