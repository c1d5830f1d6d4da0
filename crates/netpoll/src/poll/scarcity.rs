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
//! what is left, until it is used and its memory is back. There is one of all polls' connections together, and
//! who has to go is the worst of them all: the polls agree on it by the [`rations`](crate::rations).

use std::time::{Duration, Instant};

use super::Poll;
use crate::block::Pressure;
use crate::operators::Operator;
use crate::rations::{Answer, Bid, Burden, Shortage, Victim};
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
    /// Memory has been full for long, so the favorite may use what there is.
    is_stuck: bool,
    /// The other polls have been woken: those that sleep may have what has to be read or to go.
    has_called: bool,
}

#[derive(Clone, Copy, Debug)]
struct Favorite {
    token: Token,
    /// What had been delivered of it when it last was granted time.
    delivered: u64,
    until: Instant,
    /// It was chosen when nobody was known to want more.
    is_blind: bool,
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

    /// When it is another one's turn, of this poll or of another, or memory may be scarce no more: the other polls
    /// should not go by what this one knew before it fell asleep.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.favorite.map(|favorite| favorite.until), self.told_until].into_iter().flatten().min()
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
            self.ration(pressure, now);
        } else {
            self.relax(now);
        }
        pressure
    }

    fn ration(&mut self, pressure: Pressure, now: Instant) {
        let since = self.shared.table.rations.full_since(pressure == Pressure::Full, now);
        self.scarcity.is_stuck = since.is_some_and(|since| now >= since + LAST_RESERVE);
        if pressure >= Pressure::Scarce {
            if self.scarcity.favorite.is_none() {
                // Those of all polls together may be what is missing.
                self.io.intake.release();
            }
            if !std::mem::replace(&mut self.scarcity.has_called, true) {
                self.shared.inboxes.wake_others(self.index);
            }
        }
    }

    fn relax(&mut self, now: Instant) {
        if self.scarcity.favorite.take().is_some() {
            self.shared.table.rations.leave(self.index);
        }
        if self.scarcity.told_until.is_some_and(|until| until <= now) {
            self.border.set_scarce(false);
            self.scarcity = Scarcity::default();
            self.shared.table.rations.leave(self.index);
        }
    }

    /// The longest message that cannot be used before more has come; otherwise whoever comes next and has
    /// nothing unread.
    fn choose_favorite(&mut self, now: Instant) {
        let last = self.scarcity.favorite.take();
        let renewed = last.and_then(|last| self.renew(last, now));
        if let Some(favorite) = renewed.filter(|favorite| !self.is_outdone(*favorite)) {
            self.scarcity.favorite = Some(favorite);
            return;
        }
        let (bid, favorite) = self.best_but(last, now);
        match self.shared.table.rations.ask(self.index, bid, last.is_some()) {
            Answer::Granted => self.scarcity.favorite = favorite,
            Answer::Passed(poll) => self.shared.inboxes.wake(poll),
            Answer::Denied => {}
        }
    }

    fn best_but(&mut self, last: Option<Favorite>, now: Instant) -> (Bid, Option<Favorite>) {
        let (mut bid, mut best) = (None, None);
        for token in self.ready.iter().filter(|token| last.is_none_or(|last| last.token != *token)) {
            let Some(operator) = self.operators.get_mut(token) else { continue };
            let input = &operator.connection.input;
            let rank =
                if input.wanted { Some(input.unread() + 1) } else { (input.unread() == 0).then_some(0) };
            // Not `>=`: the first of equals has waited longest.
            if rank > bid && operator.may_read() {
                let (delivered, until, is_blind) = (input.delivered, now + FAVOR, !input.wanted);
                best = Some(Favorite { token, delivered, until, is_blind });
                bid = rank;
            }
        }
        (bid, best)
    }

    /// The favorite stays it while its message makes progress and is not used.
    fn renew(&mut self, favorite: Favorite, now: Instant) -> Option<Favorite> {
        let operator =
            self.operators.get_mut(favorite.token).filter(|operator| operator.moving_to.is_none())?;
        let input = &operator.connection.input;
        if input.unread() > 0 && input.delivered >= favorite.delivered + PROGRESS {
            return Some(Favorite { delivered: input.delivered, until: now + FAVOR, ..favorite });
        }
        (input.unread() > 0 && now < favorite.until).then_some(favorite)
    }

    /// Whether a longer message has come to be wanted more of: it is the one for which there may be enough left.
    fn is_outdone(&mut self, favorite: Favorite) -> bool {
        let own = self.operators.get_mut(favorite.token).map_or(0, |own| own.connection.input.unread());
        favorite.is_blind
            && self.ready.iter().any(|token| {
                let operator = self.operators.get_mut(token).filter(|operator| operator.may_read());
                let input = operator.map(|operator| &operator.connection.input);
                input.is_some_and(|input| input.wanted && input.unread() > own)
            })
    }

    /// Whoever holds memory and brings none of it back has to go. One at a time: what it held comes back
    /// only when JavaScript has taken notice.
    pub(super) fn relieve(&mut self, now: Instant) {
        if self.shared.table.pressure() == Pressure::Full {
            self.io.intake.release();
        }
        let pressure = self.shared.table.pressure();
        if pressure < Pressure::Scarce {
            return;
        }
        let shortage = Shortage {
            is_full: pressure == Pressure::Full,
            max_memory: self.shared.table.max_memory(),
            patience: FULL_PATIENCE,
            pause: SCARCITY_DELAY,
        };
        let worst = Worst::of(self.operators.iter(), now);
        let victim = self.shared.table.rations.victim(self.index, worst.burden(), shortage, now);
        if let Some((token, cause)) = victim.and_then(|victim| worst.named(victim)) {
            self.reset(token, cause);
        }
    }
}

/// Bytes and whose they are.
type Heaviest = Option<(u64, Token)>;

/// Those connections of a poll that keep most of the memory.
#[derive(Debug, Default)]
struct Worst {
    output: u64,
    pending: Heaviest,
    stalled: Heaviest,
    wanted: Heaviest,
}

impl Worst {
    fn of<'a>(operators: impl Iterator<Item = &'a Operator>, now: Instant) -> Worst {
        let mut worst = Worst::default();
        for operator in operators {
            let (input, output) = (&operator.connection.input, &operator.connection.output);
            let pending = output.pending();
            worst.output += pending;
            note(&mut worst.pending, pending, operator);
            if output.blocked_since.is_some_and(|since| now >= since + BLOCKED_PATIENCE) {
                note(&mut worst.stalled, pending, operator);
            }
            if input.wanted {
                note(&mut worst.wanted, input.unread(), operator);
            }
        }
        worst
    }

    fn burden(&self) -> Burden {
        let size = |one: Heaviest| one.map_or(0, |(size, _)| size);
        Burden {
            output: self.output,
            most_pending: size(self.pending),
            most_stalled: size(self.stalled),
            most_wanted: size(self.wanted),
        }
    }

    fn named(&self, victim: Victim) -> Option<(Token, Cause)> {
        let (one, cause) = match victim {
            Victim::Pending => (self.pending, Cause::OUTPUT_LIMIT),
            Victim::Stalled => (self.stalled, Cause::OUTPUT_LIMIT),
            Victim::Wanted => (self.wanted, Cause::INPUT_LIMIT),
        };
        one.map(|(_, token)| (token, cause))
    }
}

fn note(heaviest: &mut Heaviest, bytes: u64, operator: &Operator) {
    if heaviest.is_none_or(|(most, _)| bytes >= most) {
        *heaviest = Some((bytes, operator.token));
    }
}
