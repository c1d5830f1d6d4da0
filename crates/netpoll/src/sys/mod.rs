//! The only door to libc: no other module of the crate calls it.
//!
//! What is called here is repeated when a signal has interrupted it, once for all (`syscall!`). What other crates call
//! for us (`through`) is not: a signal hardly interrupts what does not block, and `EINTR` is one more error of those,
//! except of `wait`, which the poll takes for one that has found nothing.

mod epoll;
#[cfg(feature = "fault")]
pub mod fault;
mod inherited;
mod memory;
mod socket;
mod zero_copy;

pub use epoll::{deregister, register, reregister, wait};
pub use inherited::inherited_listener;
pub use memory::{memory_limit, Mapping};
pub use socket::{
    abort_on_close, accept, discard_input, is_disconnected, new_socket, read_vectored, receive_cut,
    send_vectored, set_user_timeout, shutdown_write, tcp_info, unacknowledged, IoVec, TcpInfo,
};
pub use zero_copy::{disconnect, enable_zero_copy, receive_report, send_zero_copy, Report};

#[cfg(all(test, feature = "fault"))]
pub use libc::EEXIST;
/// Error numbers that mean something to the modules above.
pub use libc::{
    EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EBADF, ECANCELED, ECONNABORTED, ECONNREFUSED, ECONNRESET,
    EHOSTUNREACH, EINPROGRESS, EINVAL, EIO, EMFILE, ENETDOWN, ENETUNREACH, ENOBUFS, ENOTCONN, ENOTSOCK,
    EOPNOTSUPP, EPROTO,
};
#[cfg(test)]
pub use libc::{ENFILE, ENOMEM};
#[cfg(any(all(test, not(loom)), fuzzing))]
pub(crate) use zero_copy::parse as parse_report;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use zero_copy::report_times;

use std::ffi::{c_void, CStr};
#[cfg(not(feature = "fault"))]
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// Where calls that can fail go: with the feature `fault` a script may stand in for libc. A call that it does not know
/// is not there, so none can be forgotten.
#[cfg(feature = "fault")]
use fault as raw;
#[cfg(not(feature = "fault"))]
use libc as raw;

/// The same for a call that another crate makes for us.
#[cfg(feature = "fault")]
pub use fault::through;
/// A system call that another crate makes for us, by its name.
#[cfg(not(feature = "fault"))]
#[inline(always)]
pub fn through<T>(_name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    call()
}

/// A libc call whose negative result means failure, as an `io::Result`. It is repeated while a signal
/// interrupts it. The caller writes the `unsafe` and says why the arguments are right.
macro_rules! syscall {
    ($call:ident ( $($argument:expr),* $(,)? )) => {
        loop {
            #[cfg(all(test, loom))]
            crate::sync::models::enter_kernel();
            let result = $crate::sys::raw::$call($($argument),*);
            if result >= 0 {
                break Ok(result);
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                break Err(error);
            }
        }
    };
}
use syscall;

/// The most descriptors this process may ever have open: the hard limit, to which Node raises the soft
/// one when it starts.
pub fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the one struct that the call writes.
    match unsafe { syscall!(getrlimit(libc::RLIMIT_NOFILE, &mut limit)) } {
        Ok(_) => limit.rlim_max,
        Err(_) => u64::MAX,
    }
}

/// The function or variable of this name in the running program or one of its libraries.
pub fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the name ends with a zero; looking it up in what is loaded already runs no code of it.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Blocks all signals on the calling thread. A native thread does this first, so that Node's own
/// threads get every signal of the process.
pub fn block_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set before pthread_sigmask reads it; a null old set is allowed.
    // Neither can fail with these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
    }
}

/// Gives this thread a network of its own, with a loopback interface, and so many bytes for the control data of each
/// socket. False where that is not allowed. It ends with the thread.
#[cfg(all(test, not(loom)))]
pub fn in_own_network(control_bytes: u32) -> bool {
    // SAFETY: the call takes no pointer, and concerns this thread alone.
    let is_own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let up = || std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    let limit = || std::fs::write("/proc/sys/net/core/optmem_max", control_bytes.to_string());
    is_own && up().is_ok_and(|status| status.success()) && limit().is_ok()
}

/// Whether this thread, which blocks the signal, was sent it.
#[cfg(all(test, not(loom)))]
pub fn is_pending(signal: libc::c_int) -> bool {
    let mut pending = std::mem::MaybeUninit::uninit();
    // SAFETY: sigpending writes the set that sigismember reads.
    unsafe {
        libc::sigpending(pending.as_mut_ptr());
        libc::sigismember(pending.as_ptr(), signal) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_found_where_there_is_one() {
        assert!(symbol(c"getpid").is_some() && symbol(c"there is no such function").is_none());
    }

    #[test]
    fn the_descriptor_limit_is_one_that_a_process_can_live_with() {
        assert!(descriptor_limit() >= 64);
    }

    #[test]
    fn a_thread_that_blocked_signals_has_them_all_blocked() {
        let blocked = std::thread::spawn(|| {
            block_signals();
            let mut mask = MaybeUninit::uninit();
            // SAFETY: with a null new set the call only writes the old one to `mask`.
            unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
                libc::sigismember(mask.as_ptr(), libc::SIGTERM)
                    + libc::sigismember(mask.as_ptr(), libc::SIGUSR1)
            }
        });
        assert_eq!(blocked.join().unwrap(), 2);
    }
}
