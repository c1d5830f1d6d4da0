//! Sending without a copy, and the error queue in which the kernel tells that it needs the memory no more.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::{message, IoVec};
use super::syscall;

/// What one message of the error queue tells: the sends with these numbers, both included, are done with. The
/// kernel numbers those calls of a socket that sent at least one byte without a copy, from 0 on, modulo 2^32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The number of the first send.
    pub first: u32,
    /// The number of the last one.
    pub last: u32,
    /// The kernel had to copy after all, as it does for each receiver on the same machine.
    pub copied: bool,
}

/// Lets the socket be sent from without a copy. Not every kind of socket can be.
pub fn enable_zero_copy(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let (start, len) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `on`.
    unsafe { syscall!(setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, start, len)) }.map(drop)
}

/// `send_vectored`, but the kernel sends from the memory itself, and tells in the error queue when it has no more
/// use for it. Until then nobody may write there. ENOBUFS when it can hold no more memory; then nothing was sent.
pub fn send_zero_copy(fd: BorrowedFd<'_>, from: &[IoVec]) -> io::Result<usize> {
    let (message, flags) = (message(from), libc::MSG_NOSIGNAL | libc::MSG_ZEROCOPY);
    // SAFETY: IoVec has the layout of iovec, sendmsg only reads them, and their makers keep the memory, also
    // after the call: the kernel holds the pages, whatever becomes of our mapping.
    let sent = unsafe { syscall!(sendmsg(fd.as_raw_fd(), &message, flags)) }?;
    Ok(sent as usize)
}

/// Takes one message out of the error queue; EAGAIN when there is none. `None`: it tells of something else. It
/// leaves the error of the socket itself where it is.
pub fn receive_report(fd: BorrowedFd<'_>) -> io::Result<Option<Report>> {
    // Room for a report and the address that comes with it, several times over; aligned as control data is.
    let mut control = [0u64; 32];
    let mut message = message(&[]);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message has no room for data, and `msg_controllen` bytes for control data.
    unsafe { syscall!(recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE)) }?;
    let bytes = control.map(u64::to_ne_bytes);
    let bytes = bytes.as_flattened();
    #[allow(clippy::unnecessary_cast)] // musl has 32 bits for it
    let received = message.msg_controllen as usize;
    Ok(parse(bytes.get(..received).unwrap_or(bytes)))
}

/// Ends the connection of a socket with an RST and drops what it holds. The descriptor stays open, so that the
/// error queue can still tell of what a network card is sending at this moment.
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: zeros are a valid address, of the family AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of the address.
    unsafe { syscall!(connect(fd.as_raw_fd(), &nobody, len)) }.map(drop)
}

/// Lets the error queue tell of the time of each send too: then reports of sends do not touch, and are not joined.
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) fn report_times(fd: BorrowedFd<'_>) -> io::Result<()> {
    let what = libc::SOF_TIMESTAMPING_TX_SOFTWARE
        | libc::SOF_TIMESTAMPING_SOFTWARE
        | libc::SOF_TIMESTAMPING_OPT_TSONLY;
    let (start, len) = ((&raw const what).cast(), size_of_val(&what) as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `what`.
    unsafe { syscall!(setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPING, start, len)) }
        .map(drop)
}

/// The first report in control data, in which each entry is a header (length with the header, level, type), its
/// data, and room up to the next multiple of a word. All of it may be anything.
pub(crate) fn parse(mut control: &[u8]) -> Option<Report> {
    loop {
        let length = usize::from_ne_bytes(take(control, 0)?);
        let data = control.get(HEADER..length)?;
        if is_error(control)? {
            if let Some(report) = report(data) {
                return Some(report);
            }
        }
        control = control.get(length.next_multiple_of(WORD)..)?;
    }
}

const WORD: usize = size_of::<usize>();

/// Bytes of a header, which is as long as whole words.
const HEADER: usize = (WORD + 8).next_multiple_of(WORD);

fn is_error(entry: &[u8]) -> Option<bool> {
    let kind = (i32::from_ne_bytes(take(entry, WORD)?), i32::from_ne_bytes(take(entry, WORD + 4)?));
    Some(kind == (libc::SOL_IP, libc::IP_RECVERR) || kind == (libc::SOL_IPV6, libc::IPV6_RECVERR))
}

/// Of a sock_extended_err: errno (4 bytes), origin, type, code and padding (1 each), info and data (4 each).
fn report(data: &[u8]) -> Option<Report> {
    let errno = u32::from_ne_bytes(take(data, 0)?);
    let [origin, _, code, _] = take(data, 4)?;
    let (first, last) = (u32::from_ne_bytes(take(data, 8)?), u32::from_ne_bytes(take(data, 12)?));
    let is_report = errno == 0 && origin == ORIGIN;
    is_report.then_some(Report { first, last, copied: code & COPIED != 0 })
}

/// SO_EE_ORIGIN_ZEROCOPY and SO_EE_CODE_ZEROCOPY_COPIED of linux/errqueue.h.
const ORIGIN: u8 = 5;
const COPIED: u8 = 1;

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    const IPV4: (i32, i32) = (libc::SOL_IP, libc::IP_RECVERR);
    const IPV6: (i32, i32) = (libc::SOL_IPV6, libc::IPV6_RECVERR);

    /// An entry of control data, as the kernel writes them on a machine of our word size.
    fn entry((level, kind): (i32, i32), data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((HEADER + data.len()).to_ne_bytes());
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn error(errno: u32, origin: u8, code: u8, first: u32, last: u32) -> Vec<u8> {
        let mut bytes = errno.to_ne_bytes().to_vec();
        bytes.extend([origin, 0, code, 0]);
        bytes.extend(first.to_ne_bytes());
        bytes.extend(last.to_ne_bytes());
        // The address of whoever the error comes from.
        bytes.extend([0; 28]);
        bytes
    }

    #[test]
    fn a_report_is_read_for_both_families() {
        for kind in [IPV4, IPV6] {
            let control = entry(kind, &error(0, 5, 1, 7, u32::MAX));
            assert_eq!(parse(&control), Some(Report { first: 7, last: u32::MAX, copied: true }));
            let control = entry(kind, &error(0, 5, 0, 7, 7));
            assert_eq!(parse(&control), Some(Report { first: 7, last: 7, copied: false }));
        }
    }

    #[test]
    fn a_report_behind_other_entries_is_found() {
        let timestamp = entry((libc::SOL_SOCKET, libc::SO_TIMESTAMP), &[1; 13]);
        let unreachable = entry(IPV4, &error(111, 2, 3, 0, 0));
        let control = [timestamp, unreachable, entry(IPV4, &error(0, 5, 0, 1, 2))].concat();
        assert_eq!(parse(&control), Some(Report { first: 1, last: 2, copied: false }));
    }

    #[test]
    fn what_is_no_report_is_none() {
        let report = error(0, 5, 0, 1, 2);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&entry(IPV4, &error(0, 2, 0, 1, 2))), None, "another origin");
        assert_eq!(parse(&entry(IPV4, &error(111, 5, 0, 1, 2))), None, "an error");
        assert_eq!(parse(&entry((libc::SOL_SOCKET, libc::IP_RECVERR), &report)), None, "another level");
        assert_eq!(parse(&entry(IPV4, &report[..15])), None, "cut off");
        let whole = entry(IPV4, &report);
        assert!((0..whole.len() - 28).all(|length| parse(&whole[..length]).is_none()));
        for length in [0, 1, HEADER - 1, whole.len() + 1, usize::MAX, usize::MAX - WORD] {
            let mut wrong = whole.clone();
            wrong[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(parse(&wrong), None, "an entry of {length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_control_data_can_be_parsed(
            entries in proptest::collection::vec((0..80usize, 0..50i32, 0..30i32, any::<[u8; 44]>()), 0..6),
            cut in 0..300usize,
        ) {
            let mut control = Vec::new();
            for (length, level, kind, data) in entries {
                let mut bytes = entry((level, kind), &data);
                bytes[..WORD].copy_from_slice(&length.to_ne_bytes());
                control.extend(bytes);
            }
            parse(&control[..cut.min(control.len())]);
        }
    }

    fn tcp_pair(address: &str) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(address).ok()?;
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        Some((client, listener.accept().unwrap().0))
    }

    fn next_report(socket: &TcpStream) -> Report {
        loop {
            match receive_report(socket.as_fd()) {
                Ok(report) => return report.unwrap(),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN)),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_numbers_sends_and_reports_them_for_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Some((a, _b)) = tcp_pair(address) else {
                eprintln!("skipped: there is no {address} here");
                continue;
            };
            enable_zero_copy(a.as_fd()).unwrap();
            let mut bytes = [7u8; 4096];
            // SAFETY: the bytes live until both reports have come.
            let piece = unsafe { IoVec::new(bytes.as_mut_ptr(), bytes.len()) };
            for number in 0..2 {
                assert_eq!(send_zero_copy(a.as_fd(), &[piece]).unwrap(), bytes.len());
                let report = next_report(&a);
                assert_eq!((report.first, report.last, report.copied), (number, number, true), "{address}");
            }
            assert_eq!(receive_report(a.as_fd()).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        }
    }

    #[test]
    fn sending_without_a_copy_to_a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = tcp_pair("127.0.0.1:0").unwrap();
        enable_zero_copy(a.as_fd()).unwrap();
        crate::sys::shutdown_write(a.as_fd()).unwrap();
        let mut byte = [1];
        // SAFETY: the byte lives until after the call, which sends nothing.
        let piece = unsafe { IoVec::new(byte.as_mut_ptr(), byte.len()) };
        // A signal that is blocked stays pending, even where the process ignores it.
        crate::sys::block_signals();
        assert_eq!(send_zero_copy(a.as_fd(), &[piece]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!crate::sys::is_pending(libc::SIGPIPE));
        drop(b);
    }

    #[test]
    fn a_unix_socket_cannot_be_sent_from_without_a_copy() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(enable_zero_copy(a.as_fd()).is_err());
    }

    #[test]
    fn a_disconnected_socket_resets_its_peer_and_still_has_its_error_queue() {
        let (a, b) = tcp_pair("127.0.0.1:0").unwrap();
        enable_zero_copy(a.as_fd()).unwrap();
        let mut bytes = vec![7u8; 16 << 20];
        // SAFETY: the bytes live until their report has come.
        let piece = unsafe { IoVec::new(bytes.as_mut_ptr(), bytes.len()) };
        assert!(send_zero_copy(a.as_fd(), &[piece]).unwrap() < bytes.len());
        assert_eq!(receive_report(a.as_fd()).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        disconnect(a.as_fd()).unwrap();
        assert_eq!(
            (next_report(&a).first, b.take_error().unwrap().map(|error| error.kind())),
            (0, Some(io::ErrorKind::ConnectionReset))
        );
    }
}
