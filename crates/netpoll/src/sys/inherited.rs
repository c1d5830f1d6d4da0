//! Descriptors that another process has opened for this one.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, SockRef, Type};

use super::{syscall, through};

/// Takes over a listening stream socket of inet or unix, which from now on does not block and is closed on
/// exec. Anything else fails with EBADF, ENOTSOCK or EINVAL, and is left as it is.
pub fn inherited_listener(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no memory, and fails for a number that is no open descriptor.
    unsafe { syscall!(fcntl(fd, libc::F_GETFD)) }?;
    // SAFETY: it is open, and stays so in this function: whoever names it gives it away.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = SockRef::from(&borrowed);
    let is_stream = through("getsockopt", || socket.r#type())? == Type::STREAM;
    let is_known =
        matches!(through("getsockopt", || socket.domain())?, Domain::IPV4 | Domain::IPV6 | Domain::UNIX);
    if !(is_stream && is_known && through("getsockopt", || socket.is_listener())?) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    through("fcntl", || socket.set_nonblocking(true))?;
    through("fcntl", || socket.set_cloexec(true))?;
    // SAFETY: the caller gives the descriptor away, and has made sure that no listener has it already.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn errno(fd: RawFd) -> i32 {
        inherited_listener(fd).unwrap_err().raw_os_error().unwrap()
    }

    #[test]
    fn a_listening_socket_is_taken_and_no_longer_blocks() {
        let name = format!("/tmp/netpoll-inherited-{}", std::process::id());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        let unix = UnixListener::bind(&name).unwrap().into_raw_fd();
        std::fs::remove_file(&name).unwrap();
        for fd in [tcp, unix] {
            let listener = inherited_listener(fd).unwrap();
            assert_eq!(listener.as_raw_fd(), fd);
            assert!(SockRef::from(&listener).nonblocking().unwrap());
            // SAFETY: F_GETFD takes no memory.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn what_does_not_listen_is_refused_and_stays_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(errno(connected.as_raw_fd()), libc::EINVAL);
        assert_eq!(errno(datagrams.as_raw_fd()), libc::EINVAL);
        assert_eq!(errno(file.as_raw_fd()), libc::ENOTSOCK);
        assert_eq!([-1, i32::MAX].map(errno), [libc::EBADF; 2]);
        assert!(connected.peer_addr().is_ok() && datagrams.local_addr().is_ok() && file.metadata().is_ok());
    }
}
