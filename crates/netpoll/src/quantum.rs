//! How much of one connection's bytes a visit moves: a small request should not have to wait for a long copy.

use std::time::{Duration, Instant};

/// Bytes that a visit moves while only large messages are under way: no more than a core's own cache holds.
const LARGE: usize = 2 << 20;

/// Bytes that a visit moves while there are small requests too (docs/performance.md).
const SMALL: usize = 64 * 1024;

/// What is shorter than that is a small request, or a small answer.
const SHORT: usize = 16 * 1024;

/// So long after the last small request the next one is still expected.
const MEMORY: Duration = Duration::from_millis(10);

/// Small requests are under way while both they and small answers come: a download begins with a small request too, and
/// an upload ends with a small answer.
#[derive(Debug, Default)]
pub(crate) struct Quantum {
    request: Option<Instant>,
    answer: Option<Instant>,
}

impl Quantum {
    /// All that a connection had was read, and it usually has little.
    pub(crate) fn read(&mut self, bytes: usize, now: Instant) {
        if bytes < SHORT {
            self.request = Some(now);
        }
    }

    /// All that a connection had to send was sent in one visit.
    pub(crate) fn sent(&mut self, bytes: usize, now: Instant) {
        if (1..SHORT).contains(&bytes) {
            self.answer = Some(now);
        }
    }

    /// How much a visit moves.
    pub(crate) fn bytes(&self, now: Instant) -> usize {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < MEMORY);
        if is_recent(self.request) && is_recent(self.answer) {
            SMALL
        } else {
            LARGE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(request: usize, answer: usize) -> (Quantum, Instant) {
        let (mut quantum, now) = (Quantum::default(), Instant::now());
        quantum.read(request, now);
        quantum.sent(answer, now);
        (quantum, now)
    }

    #[test]
    fn beside_small_requests_and_answers_it_is_small() {
        let (quantum, now) = after(1, 1);
        assert_eq!(quantum.bytes(now), SMALL);
    }

    #[test]
    fn for_large_messages_alone_downloads_and_uploads_it_is_large() {
        for (request, answer) in [(1 << 20, 1 << 20), (1, 1 << 20), (1 << 20, 1), (1, 0)] {
            let (quantum, now) = after(request, answer);
            assert_eq!(quantum.bytes(now), LARGE, "{request} bytes are answered by {answer}");
        }
    }

    #[test]
    fn it_is_large_again_when_no_small_request_has_come_for_a_while() {
        let (mut quantum, now) = after(1, 1);
        assert_eq!(quantum.bytes(now + MEMORY - Duration::from_nanos(1)), SMALL);
        assert_eq!(quantum.bytes(now + MEMORY), LARGE);
        quantum.sent(1, now + MEMORY);
        assert_eq!(quantum.bytes(now + MEMORY), LARGE, "answers alone");
    }
}
