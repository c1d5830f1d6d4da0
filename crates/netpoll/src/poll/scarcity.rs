//! Who may still read when memory is scarce, and who has to go when there is none.
//!
//! ```text
//!   0            3/4                7/8            all of max_memory
//!   ├─────────────┼──────────────────┼──────────────┤
//!   │ all read    │ who has nothing  │ the favorite │ the last MiB is JavaScript's: nobody, and the
//!   │ and accept  │ unread, and the  │ alone; no    │ most pending output goes where that is to blame;
//!   │             │ favorite         │ accepting    │ after a moment the favorite; and if that does not
//!   │             │                  │              │ help, the longest unfinished message goes
//! ```
//!
//! If all were to stop at one mark, the unfinished messages of many connections could reach it together, and
//! none would ever be finished. So one of those that JavaScript wants more of, the longest, reads on into
//! what is left, until it is used and its memory is back.

use std::time::{Duration, Instant};

use super::Poll;
use crate::block::Pressure;
use crate::operators::Operator;
use crate::record::Cause;
use crate::token::Token;

/// How long reading rests when memory is scarce, if nothing else wakes the poll before.
pub(super) const SCARCITY_DELAY: Duration = Duration::from_millis(10);

/// How long a favorite may take to bring `PROGRESS` more bytes before it is another one's turn: a peer that
/// sends a byte now and then must not keep all others waiting.
pub(super) const FAVOR: Duration = Duration::from_millis(250);
const PROGRESS: u64 = 64 * 1024;

/// How long a peer may take nothing before what is pending for it has to go when memory is scarce.
pub(super) const BLOCKED_PATIENCE: Duration = Duration::from_secs(1);

/// How long memory may be full before the favorite reads into what is kept for JavaScript: handlers and peers
/// may bring some back.
pub(super) const LAST_RESERVE: Duration = Duration::from_millis(100);

/// How long memory may be full before the longest unfinished message has to go.
pub(super) const FULL_PATIENCE: Duration = Duration::from_secs(2);

/// How long JavaScript goes on to tell what it consumes when memory is scarce no more.
const CALM: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Scarcity {
    favorite: Option<Favorite>,
    /// JavaScript has been asked to tell what it consumes, until this.
    told_until: Option<Instant>,
    full_since: Option<Instant>,
    /// It has been for long, so the favorite may use what there is.
    is_stuck: bool,
    /// Before this nobody else is reset for want of memory.
    relieved_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Favorite {
    token: Token,
    /// What had been delivered of it when it last was granted time.
    delivered: u64,
    until: Instant,
}

impl Scarcity {
    pub(super) fn admits(&self, operator: &Operator, pressure: Pressure) -> bool {
        match pressure {
            Pressure::Low => true,
            Pressure::High => operator.connection.input.unread() == 0 || self.favors(operator),
            Pressure::Scarce => self.favors(operator),
            Pressure::Full => self.is_stuck && operator.connection.input.wanted && self.favors(operator),
        }
    }

    fn favors(&self, operator: &Operator) -> bool {
        self.favorite.is_some_and(|favorite| favorite.token == operator.token)
    }
}

impl Poll {
    /// Looks how much memory is left, and who may read.
    pub(super) fn watch_memory(&mut self, now: Instant) -> Pressure {
        let pressure = self.shared.table.pressure();
        if pressure != Pressure::Low {
            if self.scarcity.told_until.is_none() {
                self.border.set_scarce(true);
                self.io.urge();
            }
            self.scarcity.told_until = Some(now + CALM);
            self.choose_favorite(now);
        } else if self.scarcity.told_until.is_some_and(|until| until <= now) {
            self.border.set_scarce(false);
            self.scarcity = Scarcity::default();
        }
        let full_since = *self.scarcity.full_since.get_or_insert(now);
        if pressure != Pressure::Full {
            self.scarcity.full_since = None;
        }
        self.scarcity.is_stuck = now >= full_since + LAST_RESERVE;
        pressure
    }

    /// The longest message that cannot be used before more has come; otherwise whoever comes next and has
    /// nothing unread.
    fn choose_favorite(&mut self, now: Instant) {
        let last = self.scarcity.favorite.take();
        if let Some(favorite) = last.and_then(|last| self.renew(last, now)) {
            self.scarcity.favorite = Some(favorite);
            return;
        }
        let mut best = None;
        for token in self.ready.iter().filter(|token| last.is_none_or(|last| last.token != *token)) {
            let Some(operator) = self.operators.get_mut(token) else { continue };
            let input = &operator.connection.input;
            let rank = (input.wanted, input.unread());
            // Not `>=`: the first of equals has waited longest.
            if (input.wanted || input.unread() == 0) && best.is_none_or(|(most, _)| rank > most) {
                let favorite = Favorite { token, delivered: input.delivered, until: now + FAVOR };
                best = Some((rank, favorite));
            }
        }
        self.scarcity.favorite = best.map(|(_, favorite)| favorite);
    }

    /// The favorite stays it while its message makes progress and is not used.
    fn renew(&mut self, favorite: Favorite, now: Instant) -> Option<Favorite> {
        let input = &self.operators.get_mut(favorite.token)?.connection.input;
        if input.unread() > 0 && input.delivered >= favorite.delivered + PROGRESS {
            return Some(Favorite { delivered: input.delivered, until: now + FAVOR, ..favorite });
        }
        (input.unread() > 0 && now < favorite.until).then_some(favorite)
    }

    /// Whoever holds memory and brings none of it back has to go. One at a time: what it held comes back
    /// only when JavaScript has taken notice.
    pub(super) fn relieve(&mut self, now: Instant) {
        if self.scarcity.relieved_at.is_some_and(|at| at > now) {
            return;
        }
        if self.shared.table.pressure() == Pressure::Full {
            self.io.intake.release();
        }
        let victim = match self.shared.table.pressure() {
            Pressure::Low | Pressure::High => None,
            Pressure::Scarce => self.most_stalled(now),
            Pressure::Full => self.most_pending().or_else(|| self.most_stalled(now)).or_else(|| {
                let is_over = self.scarcity.full_since.is_some_and(|since| now >= since + FULL_PATIENCE);
                is_over.then(|| self.most_wanted())?
            }),
        };
        if let Some((token, cause)) = victim {
            self.scarcity.relieved_at = Some(now + SCARCITY_DELAY);
            self.scarcity.full_since = None;
            self.reset(token, cause);
        }
    }

    /// Who has most output pending, when it is output that fills the memory.
    fn most_pending(&self) -> Option<(Token, Cause)> {
        let all = self.operators.iter().map(pending).sum::<u64>();
        let is_to_blame = all >= self.shared.table.max_memory() / 2;
        self.operators.iter().filter(|_| is_to_blame).max_by_key(|operator| pending(operator)).map(of_output)
    }

    /// Who has most output pending among those whose peers have long taken nothing.
    fn most_stalled(&self, now: Instant) -> Option<(Token, Cause)> {
        let is_stalled = |operator: &&Operator| {
            let since = operator.connection.output.blocked_since;
            since.is_some_and(|since| now >= since + BLOCKED_PATIENCE)
        };
        self.operators.iter().filter(is_stalled).max_by_key(|operator| pending(operator)).map(of_output)
    }

    fn most_wanted(&self) -> Option<(Token, Cause)> {
        let wanted = self.operators.iter().filter(|operator| operator.connection.input.wanted);
        let longest = wanted.max_by_key(|operator| operator.connection.input.unread());
        longest.map(|operator| (operator.token, Cause::INPUT_LIMIT))
    }
}

fn pending(operator: &Operator) -> u64 {
    operator.connection.output.queue.len()
}

fn of_output(operator: &Operator) -> (Token, Cause) {
    (operator.token, Cause::OUTPUT_LIMIT)
}
