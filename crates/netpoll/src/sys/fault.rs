//! Faults by script, for tests: the cargo feature `fault`. The nth call of a name fails with an errno and is not made,
//! or moves only so many bytes. A test gives a thread a script; NETPOLL_FAULT is one for the whole process:
//! `recv:3:ECONNRESET,sendmsg:1:1b`. Without the feature nothing of this is there.
//!
//! The kernel is never made to break a promise: where it says EAGAIN, or gives less than there is, epoll tells of the
//! rest. So after such a fault the descriptor's registration is armed anew. For glibc, whose types these are.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::{io, ptr};

use libc::{c_int, c_void, iovec, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};
use mio::{Interest, Registry, Token};

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It fails, and is not made.
    Errno(c_int),
    /// It moves at most so many bytes, if it is one that moves any.
    Bytes(usize),
}

/// The name of a call, which of them it is (from 1 on), and what becomes of it.
pub type Fault = (String, u32, Outcome);

/// What is to happen, and what has.
#[derive(Debug, Default)]
pub struct Script(Mutex<Course>);

#[derive(Debug, Default)]
struct Course {
    faults: Vec<Fault>,
    made: BTreeMap<&'static str, u32>,
    struck: usize,
}

impl Script {
    pub fn new(faults: Vec<Fault>) -> Script {
        Script(Mutex::new(Course { faults, ..Course::default() }))
    }

    /// How often each call was made, those that failed among them.
    #[cfg(test)]
    pub fn made(&self) -> BTreeMap<&'static str, u32> {
        lock(&self.0).made.clone()
    }

    /// How many of the faults have happened.
    #[cfg(test)]
    pub fn struck(&self) -> usize {
        lock(&self.0).struck
    }

    fn next(&self, call: &'static str) -> Option<Outcome> {
        let mut course = lock(&self.0);
        let number = course.made.entry(call).or_default();
        *number += 1;
        let number = *number;
        let is_meant = |(name, nth, _): &&Fault| name == call && *nth == number;
        let outcome = course.faults.iter().find(is_meant).map(|(.., outcome)| *outcome);
        course.struck += usize::from(outcome.is_some());
        outcome
    }
}

/// Names of the errors that a script may ask for.
const ERRORS: [(&str, c_int); 8] = [
    ("EINTR", libc::EINTR),
    ("EAGAIN", libc::EAGAIN),
    ("ENOBUFS", libc::ENOBUFS),
    ("ENOMEM", libc::ENOMEM),
    ("EMFILE", libc::EMFILE),
    ("ECONNRESET", libc::ECONNRESET),
    ("EPIPE", libc::EPIPE),
    ("EINVAL", libc::EINVAL),
];

/// A script as text: `call:number:outcome`, several of them with commas between. `None` when it is none.
pub fn parse(text: &str) -> Option<Vec<Fault>> {
    text.split(',').map(parse_fault).collect()
}

fn parse_fault(text: &str) -> Option<Fault> {
    let [call, number, outcome] = text.trim().split(':').collect::<Vec<_>>().try_into().ok()?;
    let outcome = match outcome.strip_suffix('b') {
        Some(bytes) => Outcome::Bytes(bytes.parse().ok()?),
        None => Outcome::Errno(ERRORS.iter().find(|(name, _)| *name == outcome)?.1),
    };
    Some((call.to_owned(), number.parse().ok()?, outcome))
}

/// By threads.
static SCRIPTS: Mutex<BTreeMap<String, Arc<Script>>> = Mutex::new(BTreeMap::new());

/// Of the whole process. What cannot be read is a test's mistake, which must not pass for a test without faults.
#[allow(clippy::panic)]
static EVERYWHERE: LazyLock<Option<Script>> = LazyLock::new(|| {
    let text = std::env::var("NETPOLL_FAULT").ok()?;
    let faults = parse(&text).unwrap_or_else(|| panic!("NETPOLL_FAULT is no script: {text}"));
    Some(Script::new(faults))
});

/// Lets a thread go by a script from now on, or by none.
#[cfg(test)]
pub fn direct(thread: ThreadId, script: Option<Arc<Script>>) {
    let mut scripts = lock(&SCRIPTS);
    match script {
        Some(script) => scripts.insert(key(thread), script),
        None => scripts.remove(&key(thread)),
    };
}

fn key(thread: ThreadId) -> String {
    format!("{thread:?}")
}

fn next(call: &'static str) -> Option<Outcome> {
    let own = lock(&SCRIPTS).get(&key(thread::current().id())).cloned();
    if let Some(own) = own {
        return own.next(call);
    }
    let outcome = EVERYWHERE.as_ref()?.next(call);
    // For whoever started this process: its script has come this far.
    outcome.inspect(|outcome| eprintln!("netpoll: {call}: {outcome:?}"))
}

/// A call that another crate makes for us.
pub fn through<T>(name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match next(name) {
        Some(Outcome::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => call(),
    }
}

/// The calls that move no bytes, as libc has them.
macro_rules! calls {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(
            pub unsafe fn $name($($argument: $kind),*) -> c_int {
                match next(stringify!($name)) {
                    Some(Outcome::Errno(errno)) => fail(errno) as c_int,
                    // SAFETY: what the caller answers for, as it does for libc's.
                    _ => unsafe { libc::$name($($argument),*) },
                }
            }
        )*
    };
}

calls! {
    connect(fd: c_int, address: *const sockaddr, len: socklen_t);
    fcntl(fd: c_int, command: c_int);
    getrlimit(resource: libc::__rlimit_resource_t, limit: *mut libc::rlimit);
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t);
    ioctl(fd: c_int, request: libc::Ioctl, value: *mut c_int);
    madvise(start: *mut c_void, len: size_t, advice: c_int);
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t);
}

pub unsafe fn accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    match next("accept4") {
        Some(Outcome::Errno(errno)) => refuse(fd, errno) as c_int,
        // SAFETY: what the caller answers for, here and below.
        _ => unsafe { libc::accept4(fd, address, len, flags) },
    }
}

pub unsafe fn mmap(
    start: *mut c_void,
    len: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    match next("mmap") {
        Some(Outcome::Errno(errno)) => {
            fail(errno);
            libc::MAP_FAILED
        }
        // SAFETY: as above.
        _ => unsafe { libc::mmap(start, len, protection, flags, fd, offset) },
    }
}

pub unsafe fn recv(fd: c_int, into: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: as above; less room is room too.
    receive("recv", fd, |limit| unsafe { libc::recv(fd, into, len.min(limit), flags) })
}

pub unsafe fn readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: as above, and `cut` leaves no more than there is.
    receive("readv", fd, |limit| unsafe {
        match cut(pieces, count as usize, limit) {
            Some(piece) => libc::readv(fd, &piece, 1),
            None => libc::readv(fd, pieces, count),
        }
    })
}

pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: as above.
    receive("recvmsg", fd, |limit| unsafe {
        let (pieces, count) = ((*message).msg_iov, (*message).msg_iovlen);
        let mut piece = cut(pieces, count, limit);
        if let Some(piece) = &mut piece {
            ((*message).msg_iov, (*message).msg_iovlen) = (ptr::from_mut(piece), 1);
        }
        let received = libc::recvmsg(fd, message, flags);
        ((*message).msg_iov, (*message).msg_iovlen) = (pieces, count);
        received
    })
}

pub unsafe fn send(fd: c_int, from: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    match next("send") {
        Some(Outcome::Errno(errno)) => refuse(fd, errno),
        outcome => {
            let limit = if let Some(Outcome::Bytes(bytes)) = outcome { bytes } else { len };
            // SAFETY: as above.
            unsafe { libc::send(fd, from, len.min(limit), flags) }
        }
    }
}

pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    let limit = match next("sendmsg") {
        Some(Outcome::Errno(errno)) => return refuse(fd, errno),
        Some(Outcome::Bytes(bytes)) => bytes,
        None => usize::MAX,
    };
    // SAFETY: as above, and `cut` leaves no more than there is.
    unsafe {
        let mut less = *message;
        let mut piece = cut(less.msg_iov, less.msg_iovlen, limit);
        if let Some(piece) = &mut piece {
            (less.msg_iov, less.msg_iovlen) = (ptr::from_mut(piece), 1);
        }
        libc::sendmsg(fd, &less, flags)
    }
}

fn receive(name: &'static str, fd: RawFd, call: impl FnOnce(usize) -> ssize_t) -> ssize_t {
    match next(name) {
        Some(Outcome::Errno(errno)) => refuse(fd, errno),
        Some(Outcome::Bytes(bytes)) => {
            let received = call(bytes);
            arm_anew(fd);
            received
        }
        None => call(usize::MAX),
    }
}

/// The first piece that has bytes, cut to the limit. `None` where there is none, and without a limit.
///
/// # Safety
/// There are `count` pieces.
unsafe fn cut(pieces: *const iovec, count: usize, limit: usize) -> Option<iovec> {
    if limit == usize::MAX || count == 0 {
        return None;
    }
    // SAFETY: the caller's promise.
    let pieces = unsafe { std::slice::from_raw_parts(pieces, count) };
    let first = pieces.iter().find(|piece| piece.iov_len > 0)?;
    Some(iovec { iov_base: first.iov_base, iov_len: first.iov_len.min(limit) })
}

fn refuse(fd: RawFd, errno: c_int) -> ssize_t {
    if errno == libc::EAGAIN {
        arm_anew(fd);
    }
    fail(errno)
}

fn fail(errno: c_int) -> ssize_t {
    // SAFETY: the place of this thread's errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// The epoll descriptor at which a descriptor is registered, and how.
static WATCHED: Mutex<BTreeMap<RawFd, (RawFd, libc::epoll_event)>> = Mutex::new(BTreeMap::new());

/// Notes a registration.
pub fn note(registry: &Registry, fd: RawFd, Token(token): Token, interest: Interest) {
    let flags = [
        (true, libc::EPOLLET),
        (interest.is_readable(), libc::EPOLLIN | libc::EPOLLRDHUP),
        (interest.is_writable(), libc::EPOLLOUT),
        (interest.is_priority(), libc::EPOLLPRI),
    ];
    let events = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |events, (_, flag)| events | flag);
    let event = libc::epoll_event { events: events as u32, u64: token as u64 };
    lock(&WATCHED).insert(fd, (registry.as_raw_fd(), event));
}

/// Forgets a registration.
pub fn forget(fd: RawFd) {
    lock(&WATCHED).remove(&fd);
}

fn arm_anew(fd: RawFd) {
    if let Some((epoll, mut event)) = lock(&WATCHED).get(&fd).copied() {
        // SAFETY: the kernel reads the event. It fails where one of the two was closed since.
        unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, &mut event) };
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let faults = parse("recv:3:ECONNRESET, sendmsg:1:1b").unwrap();
        let [first, second] =
            [("recv", 3, Outcome::Errno(libc::ECONNRESET)), ("sendmsg", 1, Outcome::Bytes(1))];
        assert_eq!(faults, [first, second].map(|(call, number, outcome)| (call.to_owned(), number, outcome)));
        for text in ["", "recv", "recv:1", "recv:1:ENOTHING", "recv:one:EPIPE", "recv:1:b", "recv:1:EPIPE,"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_nth_call_of_a_thread_fails_and_no_other() {
        let script = Arc::new(Script::new(parse("ioctl:2:ENOMEM").unwrap()));
        direct(thread::current().id(), Some(script.clone()));
        let errno = || through("ioctl", || Ok(())).err().and_then(|error| error.raw_os_error());
        let others = thread::scope(|scope| scope.spawn(errno).join().unwrap());
        assert_eq!([(); 3].map(|()| errno()), [None, Some(libc::ENOMEM), None]);
        assert_eq!((others, script.struck(), script.made()["ioctl"]), (None, 1, 3));
        direct(thread::current().id(), None);
        assert_eq!(errno(), None);
        assert_eq!(script.made()["ioctl"], 3);
    }
}
