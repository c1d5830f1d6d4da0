//! The other end of a connection.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

/// A socket that never blocks: its turns and the poll's are taken by the same thread.
#[derive(Debug)]
pub(super) struct Peer(Socket);

impl Peer {
    pub(super) fn connect(to: &SockAddr) -> Peer {
        Peer::connect_with(to, None)
    }

    /// A `receive_buffer` must be set before the connection is there to be believed.
    pub(super) fn connect_with(to: &SockAddr, receive_buffer: Option<usize>) -> Peer {
        let socket = Socket::new(Domain::from(i32::from(to.family())), Type::STREAM, None).unwrap();
        if let Some(size) = receive_buffer {
            socket.set_recv_buffer_size(size).unwrap();
        }
        // The kernel accepts for the listener: this does not wait for any turn.
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        Peer(socket)
    }

    /// Who has connected to a listener of the test's own.
    pub(super) fn accept(listener: &TcpListener) -> Peer {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        Peer(stream.into())
    }

    /// What can be read now: nothing is `None`, the end is empty.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; 256 * 1024];
        match (&self.0).read(&mut bytes) {
            Ok(length) => Ok(Some(bytes[..length].to_vec())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How much of it the kernel takes now.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        match (&self.0).write(bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("a peer could not write: {error}"),
        }
    }

    /// The same where it may be gone already: reading tells.
    #[cfg(feature = "fault")]
    pub(super) fn try_write(&self, bytes: &[u8]) -> usize {
        (&self.0).write(bytes).unwrap_or(0)
    }

    /// Over a unix socket, with a descriptor: a read of the other side ends behind it.
    pub(super) fn write_with_descriptor(&self, bytes: &[u8]) {
        const SOL_SOCKET: u32 = 1;
        const SCM_RIGHTS: u32 = 1;
        // A cmsghdr: its length as a size_t, level, kind, and the descriptor.
        let words = [20, 0, SOL_SOCKET, SCM_RIGHTS, self.0.as_raw_fd() as u32, 0];
        let control = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect::<Vec<_>>();
        let pieces = [IoSlice::new(bytes)];
        let message = MsgHdr::new().with_buffers(&pieces).with_control(&control);
        assert_eq!(self.0.sendmsg(&message, 0).unwrap(), bytes.len());
    }

    /// Who waits at a listener that does not block.
    #[cfg(feature = "fault")]
    pub(super) fn waiting_at(listener: &Socket) -> Option<Peer> {
        let (socket, _) = listener.accept().ok()?;
        socket.set_nonblocking(true).unwrap();
        Some(Peer(socket))
    }

    /// Urgent data: its last byte is none of the stream.
    pub(super) fn urge(&self, bytes: &[u8]) {
        assert_eq!(self.0.send_out_of_band(bytes).unwrap(), bytes.len());
    }

    pub(super) fn finish(&self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// Over a unix socket our sends fail from now on, and no event tells of it.
    pub(super) fn stop_reading(&self) {
        self.0.shutdown(Shutdown::Read).unwrap();
    }

    /// Reads so much on a thread of its own, as fast as it comes.
    pub(super) fn drain(mut self, length: usize) -> JoinHandle<Vec<u8>> {
        self.0.set_nonblocking(false).unwrap();
        self.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        thread::spawn(move || {
            let mut bytes = vec![0; length];
            self.0.read_exact(&mut bytes).unwrap();
            bytes
        })
    }

    pub(super) fn reset(self) {
        self.0.set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub(super) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().as_socket().unwrap().port()
    }
}

/// Bytes of which no two stretches are alike, so that none can be lost, doubled or exchanged unseen.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
