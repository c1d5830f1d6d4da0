//! Calls on stream sockets. None of them waits when the socket does not block.

use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;
use std::{io, mem, ptr};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{disconnect, syscall, through};

/// A piece of memory that the kernel is to fill or to send.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: an IoVec is an address and a length, and whoever made it promised that the memory is there
// wherever it is used.
unsafe impl Send for IoVec {}

impl IoVec {
    /// No memory at all.
    pub const EMPTY: IoVec = IoVec(libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 });

    /// The `len` bytes from `start`.
    ///
    /// # Safety
    /// Whoever makes an IoVec keeps the memory allocated until the last system call with it or a copy of
    /// it has returned: by the reference of a block, or by a pin. What is received into must be writable.
    #[inline]
    pub unsafe fn new(start: *mut u8, len: usize) -> IoVec {
        IoVec(libc::iovec { iov_base: start.cast(), iov_len: len })
    }
}

/// A stream socket, which does not block and is closed on exec.
pub fn new_socket(domain: Domain) -> io::Result<Socket> {
    through("socket", || Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None))
}

/// Takes one connection from the queue of a listener, with the address of its peer. The new descriptor
/// does not block and is closed on exec.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let accept = |address: *mut _, len: *mut _| {
        // SAFETY: try_init gives a place for any address and, in `len`, its size.
        let fd = unsafe { syscall!(accept4(listener.as_raw_fd(), address as *mut _, len, flags)) }?;
        // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: after a success accept4 has written an address and its length.
    unsafe { SockAddr::try_init(accept) }
}

/// Receives into one piece of memory after the other. 0 means that the peer has finished sending.
#[inline]
pub fn read_vectored(fd: BorrowedFd<'_>, into: &[IoVec]) -> io::Result<usize> {
    if let [one] = into {
        return recv(fd, *one);
    }
    // SAFETY: IoVec has the layout of iovec, and the makers of the IoVecs keep their memory.
    let received = unsafe { syscall!(readv(fd.as_raw_fd(), into.as_ptr().cast(), into.len() as i32)) }?;
    Ok(received as usize)
}

/// Receives from a unix socket, and tells whether descriptors came along. The kernel closes those, for nobody
/// asks for them, and ends the read behind them although more may be there.
#[inline]
pub fn receive_cut(fd: BorrowedFd<'_>, into: &[IoVec]) -> io::Result<(usize, bool)> {
    let mut message = message(into);
    // SAFETY: IoVec has the layout of iovec, the makers of the IoVecs keep their memory, and the message has no
    // room for anything else.
    let received = unsafe { syscall!(recvmsg(fd.as_raw_fd(), &mut message, 0)) }?;
    Ok((received as usize, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Sends one piece of memory after the other; how much of it may be less than asked for. A peer that is
/// gone is an error, never a SIGPIPE.
#[inline]
pub fn send_vectored(fd: BorrowedFd<'_>, from: &[IoVec]) -> io::Result<usize> {
    if let [IoVec(one)] = from {
        // SAFETY: the maker of the IoVec keeps its memory.
        let sent = unsafe { syscall!(send(fd.as_raw_fd(), one.iov_base, one.iov_len, libc::MSG_NOSIGNAL)) }?;
        return Ok(sent as usize);
    }
    let message = message(from);
    // SAFETY: IoVec has the layout of iovec, sendmsg only reads them, and their makers keep the memory.
    let sent = unsafe { syscall!(sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL)) }?;
    Ok(sent as usize)
}

/// Sends a FIN behind what the kernel still has to send.
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    through("shutdown", || SockRef::from(&fd).shutdown(Shutdown::Write))
}

/// Makes closing the descriptor send an RST and drop what has not been sent. Where it cannot, the RST is sent now: the
/// peer shall not take the end of what was sent for the end of it all.
pub fn abort_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = || SockRef::from(&fd).set_linger(Some(Duration::ZERO));
    through("setsockopt", linger).or_else(|_| disconnect(fd))
}

/// Receives at most `max` bytes and drops them; how many may be less. TCP does it without a copy
/// (MSG_TRUNC), other sockets through the stack. 0 means that the peer has finished sending.
pub fn discard_input(fd: BorrowedFd<'_>, max: usize) -> io::Result<usize> {
    let mut scratch = [0u8; 4096];
    let (start, len, flags) = match is_tcp(fd)? {
        true => (ptr::null_mut(), max, libc::MSG_TRUNC),
        false => (scratch.as_mut_ptr(), max.min(scratch.len()), 0),
    };
    // SAFETY: TCP writes nothing with MSG_TRUNC; elsewhere `len` is at most the size of `scratch`.
    let received = unsafe { syscall!(recv(fd.as_raw_fd(), start.cast(), len, flags)) }?;
    Ok(received as usize)
}

/// How many milliseconds sent data may stay unacknowledged before TCP gives the connection up; 0 leaves
/// it to the system.
pub fn set_user_timeout(fd: BorrowedFd<'_>, ms: u32) -> io::Result<()> {
    let timeout = Duration::from_millis(ms.into());
    through("setsockopt", || SockRef::from(&fd).set_tcp_user_timeout(Some(timeout)))
}

/// What the kernel tells of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpInfo {
    /// Smoothed round trip time, in microseconds.
    pub rtt: u32,
    /// Its mean deviation, in microseconds.
    pub variance: u32,
    /// Segments ever sent again.
    pub retransmits: u32,
    /// Congestion window, in segments.
    pub window: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
}

/// An error for what is no TCP socket.
pub fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let info = whole_tcp_info(fd)?;
    Ok(TcpInfo {
        rtt: info.tcpi_rtt,
        variance: info.tcpi_rttvar,
        retransmits: info.tcpi_total_retrans,
        window: info.tcpi_snd_cwnd,
        unacked: info.tcpi_unacked,
    })
}

/// Whether a connection over TCP is no more: the peer has reset it, or it has timed out. The error stays to be read.
pub fn is_disconnected(fd: BorrowedFd<'_>) -> bool {
    /// TCP_CLOSE of <netinet/tcp.h>, which libc has not.
    const CLOSE: u8 = 7;
    whole_tcp_info(fd).is_ok_and(|info| info.tcpi_state == CLOSE)
}

fn whole_tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: zeros are a valid tcp_info; a kernel that knows fewer fields leaves the others as they are.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    let (start, level, name) = (ptr::from_mut(&mut info).cast(), libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `info` has `len` bytes, and the kernel writes no more than that.
    unsafe { syscall!(getsockopt(fd.as_raw_fd(), level, name, start, &mut len)) }?;
    Ok(info)
}

/// Bytes that the kernel holds because the peer has not acknowledged them (TCP) or read them (unix).
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which sockets call SIOCOUTQ, writes one int.
    unsafe { syscall!(ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &mut bytes)) }?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Of the pieces alone, without an address and control data.
pub(super) fn message(pieces: &[IoVec]) -> libc::msghdr {
    // SAFETY: a msghdr of zeros is a valid message without address, control data and pieces.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    message
}

#[inline]
fn recv(fd: BorrowedFd<'_>, into: IoVec) -> io::Result<usize> {
    // SAFETY: the maker of the IoVec keeps its memory.
    let received = unsafe { syscall!(recv(fd.as_raw_fd(), into.0.iov_base, into.0.iov_len, 0)) }?;
    Ok(received as usize)
}

fn is_tcp(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(through("getsockopt", || SockRef::from(&fd).protocol())? == Some(socket2::Protocol::TCP))
}

#[cfg(any(all(test, not(loom)), fuzzing))]
impl IoVec {
    /// What a test of those who fill a barrier looks at.
    pub(crate) fn parts(&self) -> (*const u8, usize) {
        (self.0.iov_base.cast(), self.0.iov_len)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Sends the bytes together with a descriptor of its own, as SCM_RIGHTS.
    fn send_with_descriptor(over: &UnixStream, bytes: &[u8]) {
        let mut control = [0u64; 3];
        let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the pieces of the message outlive the call, and `control` holds one header and one int, as
        // CMSG_SPACE counts them.
        unsafe {
            let mut message: libc::msghdr = mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&mut piece, 1);
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(over.as_raw_fd());
            assert_eq!(libc::sendmsg(over.as_raw_fd(), &message, 0), bytes.len() as isize);
        }
    }

    fn iovec(bytes: &mut [u8]) -> IoVec {
        // SAFETY: every test keeps its arrays until after its calls.
        unsafe { IoVec::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn accept_gives_a_descriptor_that_neither_blocks_nor_goes_to_children_and_the_address_of_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (fd, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer.as_socket(), Some(client.local_addr().unwrap()));
        let error = recv(fd.as_fd(), iovec(&mut [0; 8])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    }

    #[test]
    fn what_is_sent_from_several_pieces_arrives_in_several_others() {
        let (a, b) = tcp_pair();
        let (mut hello, mut world) = (*b"hello ", *b"world");
        assert_eq!(send_vectored(a.as_fd(), &[iovec(&mut hello), iovec(&mut world)]).unwrap(), 11);
        let (mut first, mut second) = ([0; 3], [0; 8]);
        assert_eq!(read_vectored(b.as_fd(), &[iovec(&mut first), iovec(&mut second)]).unwrap(), 11);
        assert_eq!((&first, &second), (b"hel", b"lo world"));
    }

    #[test]
    fn empty_pieces_among_others_are_passed_over() {
        let (a, b) = tcp_pair();
        let (mut first, mut second, mut third) = (*b"first line", *b"second line", *b"third line");
        let pieces = [IoVec::EMPTY, iovec(&mut first), iovec(&mut second), iovec(&mut third)];
        assert_eq!(send_vectored(a.as_fd(), &pieces).unwrap(), 31);
        let (mut ten, mut eleven, mut rest) = ([0; 10], [0; 11], [0; 10]);
        let room = [IoVec::EMPTY, iovec(&mut ten), iovec(&mut eleven), iovec(&mut rest)];
        assert_eq!(read_vectored(b.as_fd(), &room).unwrap(), 31);
        assert_eq!((&ten, &eleven, &rest), (b"first line", b"second line", b"third line"));
    }

    #[test]
    fn one_piece_is_sent_and_received_alone() {
        let (a, b) = tcp_pair();
        let (mut hello, mut into) = (*b"hello", [0; 5]);
        assert_eq!(send_vectored(a.as_fd(), &[iovec(&mut hello)]).unwrap(), 5);
        assert_eq!(read_vectored(b.as_fd(), &[iovec(&mut into)]).unwrap(), 5);
        assert_eq!(into, hello);
    }

    #[test]
    fn sending_to_a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        // A signal that is blocked stays pending, even where the process ignores it.
        crate::sys::block_signals();
        let mut byte = [1];
        for pieces in [&[iovec(&mut byte)][..], &[IoVec::EMPTY, iovec(&mut byte)]] {
            let error = send_vectored(a.as_fd(), pieces).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        assert!(!crate::sys::is_pending(libc::SIGPIPE));
    }

    #[test]
    fn after_shutdown_write_the_peer_reads_the_end_and_can_still_answer() {
        let (a, b) = tcp_pair();
        shutdown_write(a.as_fd()).unwrap();
        assert_eq!(recv(b.as_fd(), iovec(&mut [0; 8])).unwrap(), 0);
        assert_eq!(send_vectored(b.as_fd(), &[iovec(&mut [7])]).unwrap(), 1);
        assert_eq!((&a).read(&mut [0; 8]).unwrap(), 1);
    }

    #[test]
    fn a_close_that_aborts_resets_the_peer() {
        let (a, b) = tcp_pair();
        abort_on_close(a.as_fd()).unwrap();
        drop(a);
        let error = recv(b.as_fd(), iovec(&mut [0; 8])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn discarded_input_is_gone_and_what_is_behind_it_is_not() {
        let (tcp, unix) = (tcp_pair(), UnixStream::pair().unwrap());
        (&tcp.0).write_all(b"123456").unwrap();
        (&unix.0).write_all(b"123456").unwrap();
        for fd in [tcp.1.as_fd(), unix.1.as_fd()] {
            assert_eq!(discard_input(fd, 4).unwrap(), 4);
            let mut rest = [0; 8];
            assert_eq!(recv(fd, iovec(&mut rest)).unwrap(), 2);
            assert_eq!(&rest[..2], b"56");
        }
    }

    #[test]
    fn a_read_that_ends_behind_descriptors_says_so() {
        let (a, b) = UnixStream::pair().unwrap();
        send_with_descriptor(&a, b"with");
        (&a).write_all(b"out").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(receive_cut(b.as_fd(), &[iovec(&mut bytes)]).unwrap(), (4, true));
        assert_eq!(receive_cut(b.as_fd(), &[iovec(&mut bytes)]).unwrap(), (3, false));
        drop(a);
        assert_eq!(receive_cut(b.as_fd(), &[iovec(&mut bytes)]).unwrap(), (0, false));
    }

    #[test]
    fn the_kernel_tells_of_a_tcp_connection_and_of_no_other() {
        let (mut a, b) = tcp_pair();
        a.write_all(&[1]).unwrap();
        (&b).read_exact(&mut [0]).unwrap();
        let info = tcp_info(a.as_fd()).unwrap();
        assert!(info.rtt > 0 && info.window > 0 && info.retransmits == 0, "{info:?}");
        assert!(tcp_info(UnixStream::pair().unwrap().0.as_fd()).is_err());
    }

    #[test]
    fn what_the_peer_has_not_read_is_unacknowledged() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&[1; 1000]).unwrap();
        assert!(unacknowledged(a.as_fd()).unwrap() >= 1000);
        (&b).read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(unacknowledged(a.as_fd()).unwrap(), 0);
    }

    #[test]
    fn the_user_timeout_is_set() {
        let (a, _b) = tcp_pair();
        set_user_timeout(a.as_fd(), 1234).unwrap();
        let timeout = SockRef::from(&a).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_millis(1234)));
    }
}
