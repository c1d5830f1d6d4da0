//! The records of the two rings: `docs/border.md` is their contract, `ts/record.ts` their other copy.

use crate::token::Token;

/// Words of a record.
pub const RECORD_WORDS: usize = 8;

/// A record as it lies in a ring.
pub type Record = [u32; RECORD_WORDS];

/// Why a connection ended, as CLOSED tells it: 0 for an orderly end, an errno, or one of the library's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cause(i32);

impl Cause {
    /// Both directions ended as they should, or JavaScript asked for the end.
    pub const ORDERLY: Cause = Cause(0);
    /// Pending output made no progress for the write timeout.
    pub const WRITE_TIMEOUT: Cause = Cause(-1);
    /// Memory had run out, and this connection had most output pending.
    pub const OUTPUT_LIMIT: Cause = Cause(-2);
    /// Memory had run out, and this connection had the longest unfinished message.
    pub const INPUT_LIMIT: Cause = Cause(-3);
    /// No address of a dial has answered in time.
    pub const DIAL_TIMEOUT: Cause = Cause(-4);
    /// The peer has cut the connection.
    pub(crate) const PEER_RESET: Cause = Cause(crate::sys::ECONNRESET);
    /// Nobody listens there.
    pub(crate) const REFUSED: Cause = Cause(crate::sys::ECONNREFUSED);
    /// There is no slot, or no descriptor, left.
    pub(crate) const EXHAUSTED: Cause = Cause(crate::sys::EMFILE);
    /// JavaScript does not want it any more.
    pub(crate) const CANCELED: Cause = Cause(crate::sys::ECANCELED);

    /// The errno of a failed system call.
    pub(crate) fn of(error: &std::io::Error) -> Cause {
        Cause(error.raw_os_error().unwrap_or(libc_eio()))
    }
}

/// What a failure without an errno counts as; the standard library makes such errors only for broken input.
fn libc_eio() -> i32 {
    crate::sys::EIO
}

/// Which of a connection's deadlines a TIMER sets and a TIMEOUT tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deadline {
    Read,
    Idle,
    Write,
}

/// A record from the poll to JavaScript.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Completion {
    Accept {
        token: Token,
        server: u32,
    },
    Data {
        token: Token,
        chunk: u32,
        offset: u32,
        length: u32,
    },
    Eof {
        token: Token,
    },
    Closed {
        token: Token,
        cause: Cause,
    },
    Drained {
        token: Token,
    },
    Unpin {
        pin: u32,
    },
    Timeout {
        token: Token,
        which: Deadline,
        sequence: u32,
    },
    Listener {
        id: u32,
        cause: Cause,
    },
    Dialed {
        token: Token,
        dial: u32,
        cause: Cause,
        place: u32,
    },
    Detached {
        token: Token,
        descriptor: u32,
    },
    Info {
        token: Token,
        rtt: u32,
        variance: u32,
        retransmits: u32,
        window: u32,
        unacked: u32,
    },
    /// `poll` is where the connection goes.
    Moved {
        token: Token,
        poll: u32,
    },
    /// `token` is `Token::NONE` when the connection has ended of `cause` instead.
    Arrived {
        token: Token,
        key: u32,
        cause: Cause,
    },
    /// `poll` is where the dial goes on, after so many moves.
    DialMoved {
        dial: u32,
        poll: u32,
        moves: u32,
    },
}

/// A record from JavaScript to the poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Submission {
    Done {
        chunk: u32,
        offset: u32,
        count: u32,
    },
    Send {
        token: Token,
        chunk: u32,
        offset: u32,
        length: u32,
    },
    SendPin {
        token: Token,
        pin: u32,
    },
    Input {
        token: Token,
        credit: u32,
        mark: u32,
        wanted: bool,
    },
    WatchDrain {
        token: Token,
        target: u32,
    },
    Pause {
        token: Token,
    },
    Resume {
        token: Token,
    },
    Timer {
        token: Token,
        which: Deadline,
        milliseconds: u32,
        sequence: u32,
    },
    Option {
        token: Token,
        option: SocketOption,
    },
    End {
        token: Token,
    },
    /// `drop`: what the kernel does not take at once is dropped.
    Close {
        token: Token,
        drop: bool,
    },
    Reset {
        token: Token,
    },
    Ack {
        token: Token,
    },
    Detach {
        token: Token,
    },
    Info {
        token: Token,
    },
    MoveAck {
        token: Token,
        key: u32,
    },
    /// A range, and with it one lent reference of its block, which ends here.
    SendLent {
        token: Token,
        chunk: u32,
        offset: u32,
        length: u32,
    },
}

/// An option of an open connection's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SocketOption {
    NoDelay(bool),
    KeepAlive { on: bool, idle_seconds: u32 },
    UserTimeout { milliseconds: u32 },
}

/// What a completion gives to JavaScript to keep until it gives it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lent {
    Block { chunk: u32, offset: u32 },
    Pin(u32),
}

impl Completion {
    /// Of a record that nobody will take.
    pub(crate) fn lends(record: &Record) -> Option<Lent> {
        match *record {
            [2, _, _, chunk, offset, ..] => Some(Lent::Block { chunk, offset }),
            [6, pin, ..] => Some(Lent::Pin(pin)),
            _ => None,
        }
    }

    pub(crate) fn encode(self) -> Record {
        match self {
            Completion::Accept { token, server } => record(1, token, [server, 0, 0]),
            Completion::Data { token, chunk, offset, length } => record(2, token, [chunk, offset, length]),
            Completion::Eof { token } => record(3, token, [0; 3]),
            Completion::Closed { token, cause } => record(4, token, [cause.0 as u32, 0, 0]),
            Completion::Drained { token } => record(5, token, [0; 3]),
            Completion::Unpin { pin } => [6, pin, 0, 0, 0, 0, 0, 0],
            Completion::Timeout { token, which, sequence } => record(7, token, [which.encode(), sequence, 0]),
            Completion::Listener { id, cause } => [8, id, 0, cause.0 as u32, 0, 0, 0, 0],
            Completion::Dialed { token, dial, cause, place } => {
                record(9, token, [dial, cause.0 as u32, place])
            }
            Completion::Detached { token, descriptor } => record(11, token, [descriptor, 0, 0]),
            Completion::Info { token, rtt, variance, retransmits, window, unacked } => {
                record(12, token, [rtt, variance, retransmits, window, unacked])
            }
            Completion::Moved { token, poll } => record(10, token, [poll, 0, 0]),
            Completion::Arrived { token, key, cause } => record(13, token, [key, cause.0 as u32, 0]),
            Completion::DialMoved { dial, poll, moves } => [14, 0, 0, dial, poll, moves, 0, 0],
        }
    }
}

fn record<const N: usize>(kind: u32, token: Token, arguments: [u32; N]) -> Record {
    const { assert!(N <= RECORD_WORDS - 3) };
    let mut record = [kind, token.slot, token.generation, 0, 0, 0, 0, 0];
    for (word, argument) in record.iter_mut().skip(3).zip(arguments) {
        *word = argument;
    }
    record
}

impl Submission {
    /// `None` for what is no record: it was put there by a bug or by somebody who should not, and is dropped.
    pub(crate) fn decode(record: &Record) -> Option<Submission> {
        let [kind, slot, generation, first, second, third, ..] = *record;
        let token = Token { slot, generation };
        Some(match kind {
            1 => Submission::Done { chunk: slot, offset: generation, count: first },
            2 => Submission::Send { token, chunk: first, offset: second, length: third },
            3 => Submission::SendPin { token, pin: first },
            4 => Submission::Input { token, credit: first, mark: second, wanted: third != 0 },
            5 => Submission::WatchDrain { token, target: first },
            6 => Submission::Pause { token },
            7 => Submission::Resume { token },
            8 => {
                let which = Deadline::decode(first)?;
                Submission::Timer { token, which, milliseconds: second, sequence: third }
            }
            9 => Submission::Option { token, option: SocketOption::decode(first, second, third)? },
            10 => Submission::End { token },
            11 => Submission::Close { token, drop: first != 0 },
            12 => Submission::Reset { token },
            13 => Submission::Ack { token },
            15 => Submission::Detach { token },
            16 => Submission::Info { token },
            14 => Submission::MoveAck { token, key: first },
            17 => Submission::SendLent { token, chunk: first, offset: second, length: third },
            _ => return None,
        })
    }
}

impl Deadline {
    fn encode(self) -> u32 {
        match self {
            Deadline::Read => 1,
            Deadline::Idle => 2,
            Deadline::Write => 3,
        }
    }

    fn decode(word: u32) -> Option<Deadline> {
        [Deadline::Read, Deadline::Idle, Deadline::Write].into_iter().find(|which| which.encode() == word)
    }
}

impl SocketOption {
    fn decode(option: u32, first: u32, second: u32) -> Option<SocketOption> {
        match option {
            1 => Some(SocketOption::NoDelay(first != 0)),
            2 => Some(SocketOption::KeepAlive { on: first != 0, idle_seconds: second }),
            3 => Some(SocketOption::UserTimeout { milliseconds: first }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token { slot: 3, generation: 9 };

    #[test]
    fn a_completion_carries_kind_token_and_arguments() {
        let data = Completion::Data { token: TOKEN, chunk: 1, offset: 2, length: 4 };
        assert_eq!(data.encode(), [2, 3, 9, 1, 2, 4, 0, 0]);
    }

    #[test]
    fn a_cause_below_zero_survives_the_ring() {
        let closed = Completion::Closed { token: TOKEN, cause: Cause::WRITE_TIMEOUT }.encode();
        assert_eq!(closed[3] as i32, -1);
    }

    #[test]
    fn unknown_kinds_deadlines_and_options_are_no_records() {
        for record in [[0; 8], [99, 0, 0, 0, 0, 0, 0, 0], [8, 0, 0, 4, 0, 0, 0, 0], [9, 0, 0, 9, 0, 0, 0, 0]]
        {
            assert_eq!(Submission::decode(&record), None);
        }
    }
}
