//! The name of a connection: a slot of its poll, and how often that slot has been given away.

/// A slot and its generation. A token outlives its connection harmlessly: once the slot has a new
/// generation, whatever still carries the old one is stale and is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token {
    /// Index into the poll's operators and tables.
    pub slot: u32,
    /// `0 < generation <= Token::MAX_GENERATION`; 0 is the generation of a slot that was never used.
    pub generation: u32,
}

/// What an epoll event or a timer is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Connection(Token),
    /// The index of one of the poll's listeners, by the listener's id.
    Listener(u32),
    /// A dial and one of its attempts, by their numbers.
    Dial(u32, u16),
    Waker,
}

const LISTENER: u64 = 1 << 63;
const DIAL: u64 = 3 << 62;
const WAKER: u64 = u64::MAX;

impl Token {
    /// The highest generation; the next one is 1 again. The bit above it tells all others apart.
    pub const MAX_GENERATION: u32 = (1 << 31) - 1;

    /// Names no connection.
    pub(crate) const NONE: Token = Token { slot: 0, generation: 0 };

    /// The generation that follows this one in the same slot.
    pub(crate) fn next_generation(generation: u32) -> u32 {
        generation % Self::MAX_GENERATION + 1
    }
}

impl Subject {
    pub(crate) fn pack(self) -> u64 {
        match self {
            Subject::Connection(token) => u64::from(token.generation) << 32 | u64::from(token.slot),
            Subject::Listener(id) => LISTENER | u64::from(id),
            Subject::Dial(id, attempt) => DIAL | u64::from(attempt) << 32 | u64::from(id),
            Subject::Waker => WAKER,
        }
    }

    pub(crate) fn unpack(packed: u64) -> Subject {
        if packed == WAKER {
            Subject::Waker
        } else if packed & DIAL == DIAL {
            Subject::Dial(packed as u32, (packed >> 32) as u16)
        } else if packed & LISTENER != 0 {
            Subject::Listener(packed as u32)
        } else {
            Subject::Connection(Token { slot: packed as u32, generation: (packed >> 32) as u32 })
        }
    }

    pub(crate) fn mio(self) -> mio::Token {
        const _: () = assert!(usize::BITS == 64, "tokens need 64 bits");
        mio::Token(self.pack() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_survive_packing() {
        let token = Token { slot: u32::MAX, generation: Token::MAX_GENERATION };
        for subject in [
            Subject::Connection(token),
            Subject::Listener(u32::MAX),
            Subject::Dial(u32::MAX, u16::MAX),
            Subject::Dial(7, 0),
            Subject::Waker,
        ] {
            assert_eq!(Subject::unpack(subject.pack()), subject);
        }
    }

    #[test]
    fn generations_wrap_to_one_and_never_to_zero() {
        assert_eq!(Token::next_generation(0), 1);
        assert_eq!(Token::next_generation(Token::MAX_GENERATION), 1);
    }
}
