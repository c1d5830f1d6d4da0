//! When a connection sends without a copy: memory is lent to the kernel until it reports that it is done.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::ledger::Ledger;
use crate::sys::Report;

/// The fewest bytes of one call that are worth it. To copy 64 KiB costs more than to pin their pages and to take
/// the report; of fewer the report costs more (docs/zero_copy.md has the figures).
pub(crate) const LEND_MIN: usize = 64 << 10;

/// The fewest bytes of an average piece: the kernel pins whole pages, and takes few pieces at once.
const PIECE_MIN: usize = 4 << 10;

/// Whether connections send large output without copying it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ZeroCopy {
    /// Never.
    #[default]
    Off,
    /// Each connection until the kernel reports that it had to copy all the same, or has no room for more.
    Auto,
    /// Whatever the kernel reports.
    Always,
}

/// The `ZeroCopy` of an environment. Relaxed: it is set before there are connections, and guards nothing.
#[derive(Debug, Default)]
pub(crate) struct Setting(AtomicU8);

impl Setting {
    pub(crate) fn set(&self, zero_copy: ZeroCopy) {
        self.0.store(zero_copy as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> ZeroCopy {
        let set = self.0.load(Ordering::Relaxed);
        let kinds = [ZeroCopy::Off, ZeroCopy::Auto, ZeroCopy::Always];
        kinds.into_iter().find(|kind| *kind as u8 == set).unwrap_or_default()
    }
}

/// What one connection knows of it, without its descriptor.
#[derive(Debug, Default)]
pub(crate) struct Lending {
    pub(crate) ledger: Ledger,
    /// The error queue may hold reports. Edge-triggered: an event will tell of others.
    pub(crate) is_reported: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// The socket has not been asked.
    #[default]
    Untried,
    Enabled,
    /// The kernel had no room for more: the next report makes some.
    Short,
    /// It is of no use here.
    Stopped,
}

impl Lending {
    /// Whether a call with these pieces should lend them.
    pub(crate) fn is_worth_it(&self, zero_copy: ZeroCopy, bytes: usize, pieces: usize) -> bool {
        let is_large = bytes >= LEND_MIN && bytes / PIECE_MIN >= pieces;
        is_large && zero_copy != ZeroCopy::Off && matches!(self.state, State::Untried | State::Enabled)
    }

    /// The socket has not been asked whether it can.
    pub(crate) fn is_untried(&self) -> bool {
        self.state == State::Untried
    }

    /// The socket's answer.
    pub(crate) fn tried(&mut self, can: bool) {
        self.state = if can { State::Enabled } else { State::Stopped };
    }

    /// The kernel had no room for one more send.
    pub(crate) fn ran_short(&mut self, zero_copy: ZeroCopy) {
        // Without a send under way no report will tell that there is room again; others use it all, or there is none.
        match (self.ledger.is_empty(), zero_copy) {
            (false, _) => self.state = State::Short,
            (true, ZeroCopy::Always) => {}
            (true, _) => self.state = State::Stopped,
        }
    }

    /// Lets go of what the kernel is done with, and returns how many sends that were.
    pub(crate) fn complete(&mut self, report: Report, zero_copy: ZeroCopy) -> usize {
        let completed = self.ledger.complete(report);
        if completed > 0 && self.state == State::Short {
            self.state = State::Enabled;
        }
        if completed > 0 && report.copied && zero_copy != ZeroCopy::Always {
            self.state = State::Stopped;
        }
        completed
    }

    /// An event has told of an error, which may be no more than a report.
    pub(crate) fn notice(&mut self) -> bool {
        self.is_reported = self.state != State::Untried;
        self.is_reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: Report = Report { first: 0, last: 0, copied: false };
    const COPIED: Report = Report { copied: true, ..REPORT };

    /// One whose socket can, with a send under way.
    fn lending() -> Lending {
        let mut lending = Lending::default();
        lending.tried(true);
        lending.ledger.record(0, LEND_MIN, Vec::new());
        lending
    }

    fn lends(lending: &Lending, zero_copy: ZeroCopy) -> bool {
        lending.is_worth_it(zero_copy, LEND_MIN, 1)
    }

    #[test]
    fn few_bytes_and_small_pieces_are_copied() {
        let lending = Lending::default();
        let is_worth_it = |bytes, pieces| lending.is_worth_it(ZeroCopy::Always, bytes, pieces);
        assert!(is_worth_it(LEND_MIN, 1) && is_worth_it(LEND_MIN, LEND_MIN / PIECE_MIN));
        assert!(!is_worth_it(LEND_MIN - 1, 1) && !is_worth_it(LEND_MIN, LEND_MIN / PIECE_MIN + 1));
        assert!(!lends(&lending, ZeroCopy::Off));
    }

    #[test]
    fn a_socket_that_cannot_is_not_asked_again() {
        let mut lending = Lending::default();
        assert!(lending.is_untried() && lends(&lending, ZeroCopy::Always));
        lending.tried(false);
        assert!(!lending.is_untried() && !lends(&lending, ZeroCopy::Always));
    }

    #[test]
    fn auto_stops_when_the_kernel_has_copied_and_always_does_not() {
        for (zero_copy, goes_on) in [(ZeroCopy::Auto, false), (ZeroCopy::Always, true)] {
            let mut lending = lending();
            assert_eq!(lending.complete(COPIED, zero_copy), 1);
            assert_eq!(lends(&lending, zero_copy), goes_on, "{zero_copy:?}");
        }
        let mut lending = lending();
        lending.complete(REPORT, ZeroCopy::Auto);
        assert!(lends(&lending, ZeroCopy::Auto), "it did not copy");
    }

    #[test]
    fn without_room_the_next_report_is_waited_for() {
        let mut lending = lending();
        lending.ran_short(ZeroCopy::Auto);
        assert!(!lends(&lending, ZeroCopy::Auto));
        lending.complete(Report { first: 7, last: 7, ..REPORT }, ZeroCopy::Auto);
        assert!(!lends(&lending, ZeroCopy::Auto), "that was of nobody");
        lending.complete(REPORT, ZeroCopy::Auto);
        assert!(lends(&lending, ZeroCopy::Auto));
    }

    #[test]
    fn without_room_for_a_single_send_auto_stops() {
        for (zero_copy, goes_on) in [(ZeroCopy::Auto, false), (ZeroCopy::Always, true)] {
            let mut lending = lending();
            lending.complete(REPORT, zero_copy);
            lending.ran_short(zero_copy);
            assert_eq!(lends(&lending, zero_copy), goes_on, "{zero_copy:?}");
        }
    }

    #[test]
    fn the_error_queue_is_looked_at_only_of_a_socket_that_was_asked() {
        assert!(!Lending::default().notice());
        assert!(lending().notice());
    }

    #[test]
    fn a_setting_holds_each_kind() {
        let setting = Setting::default();
        for zero_copy in [ZeroCopy::Off, ZeroCopy::Auto, ZeroCopy::Always] {
            setting.set(zero_copy);
            assert_eq!(setting.get(), zero_copy);
        }
    }
}
