//! Any error queue: what is a report in it, and what the ledger makes of that.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::bytes::Bytes;
use crate::ledger::Ledger;
use crate::sys::{parse_report, Report};

/// Hands a ledger the reports of error queues that are made of the bytes, well-formed and not. Of what is well-formed
/// exactly the first report is found; and each send's memory comes back once, when a report names it for the first
/// time.
pub fn error_queue(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut bench = Bench::new(bytes.word());
    while !bytes.is_empty() {
        match bytes.byte() % 8 {
            0..=2 => bench.record(bytes.half().into()),
            3 => bench.complete(bench.nearby(&mut bytes)),
            4..=5 => bench.receive_queue(&mut bytes),
            6 => bench.receive_anything(&mut bytes),
            _ => bench.release(),
        }
        bench.check();
    }
    bench.release();
    bench.check();
}

struct Bench {
    ledger: Ledger<Held>,
    /// In their order; those in front that are done are no more.
    sends: VecDeque<Send>,
    /// Of the next send.
    number: u32,
    position: u64,
}

struct Send {
    number: u32,
    start: u64,
    len: usize,
    is_done: bool,
    /// How often what it holds was dropped.
    drops: Rc<Cell<u32>>,
}

struct Held(Rc<Cell<u32>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Bench {
    fn new(number: u32) -> Bench {
        Bench { ledger: Ledger::starting_at(number), sends: VecDeque::new(), number, position: 0 }
    }

    fn record(&mut self, len: usize) {
        let drops = Rc::<Cell<u32>>::default();
        self.ledger.record(self.position, len, vec![Held(drops.clone())]);
        self.sends.push_back(Send { number: self.number, start: self.position, len, is_done: false, drops });
        self.number = self.number.wrapping_add(1);
        self.position += len as u64;
    }

    fn complete(&mut self, report: Report) {
        // The numbers from first to last, which are a circle; half of them are never under way.
        let span = report.last.wrapping_sub(report.first);
        let is_named =
            |send: &Send| span <= i32::MAX as u32 && send.number.wrapping_sub(report.first) <= span;
        let mut completed = 0;
        for send in self.sends.iter_mut().filter(|send| !send.is_done && is_named(send)) {
            send.is_done = true;
            completed += 1;
        }
        assert_eq!(self.ledger.complete(report), completed);
    }

    fn release(&mut self) {
        self.ledger.release();
        self.sends.iter_mut().for_each(|send| send.is_done = true);
    }

    /// A report of which some are under way.
    fn nearby(&self, bytes: &mut Bytes) -> Report {
        let oldest = self.sends.front().map_or(self.number, |send| send.number);
        let first = oldest.wrapping_add(u32::from(bytes.byte()) % 16).wrapping_sub(4);
        let last = first.wrapping_add(u32::from(bytes.byte()) % 8);
        Report { first, last, copied: bytes.bit() }
    }

    /// Some well-formed entries, some of them reports, which may be cut off.
    fn receive_queue(&mut self, bytes: &mut Bytes) {
        let (mut control, mut found) = (Vec::new(), Vec::new());
        for _ in 0..bytes.byte() % 5 {
            let (family, report) = (if bytes.bit() { IPV6 } else { IPV4 }, self.nearby(bytes));
            let (kind, data) = match bytes.byte() % 6 {
                0 => ((SOL_SOCKET, bytes.word()), bytes.counted().to_vec()),
                1 => ((SOL_SOCKET, family.1), extended_error(0, ORIGIN_ZEROCOPY, report)),
                2 => ((family.0, family.1 + 1), extended_error(0, ORIGIN_ZEROCOPY, report)),
                3 => (family, extended_error(111, ORIGIN_ZEROCOPY, report)),
                4 => (family, extended_error(0, bytes.byte() | 8, report)),
                _ => (family, extended_error(0, ORIGIN_ZEROCOPY, report)),
            };
            let is_report = data == extended_error(0, ORIGIN_ZEROCOPY, report) && kind == family;
            let end = push_entry(&mut control, kind, &data);
            if is_report {
                found.push((end, report));
            }
        }
        control.truncate(control.len() - bytes.up_to(control.len()).min(bytes.byte().into()));
        let expected = found.iter().find(|(end, _)| *end <= control.len()).map(|(_, report)| *report);
        let report = parse_report(&control);
        assert_eq!(report, expected);
        report.into_iter().for_each(|report| self.complete(report));
    }

    fn receive_anything(&mut self, bytes: &mut Bytes) {
        let control = bytes.counted();
        let Some(report) = parse_report(control) else { return };
        let [a, b] = [report.first, report.last].map(u32::to_ne_bytes);
        assert!(
            control.windows(8).any(|window| window == [a, b].concat()),
            "numbers that nobody has written"
        );
        self.complete(report);
    }

    fn check(&mut self) {
        let drops = |send: &Send| send.drops.get() == u32::from(send.is_done);
        assert!(self.sends.iter().all(drops), "each is let go of once, when it is done");
        while self.sends.front().is_some_and(|send| send.is_done) {
            self.sends.pop_front();
        }
        let left = self.sends.iter().filter(|send| !send.is_done);
        assert_eq!(self.ledger.bytes(), left.map(|send| send.len as u64).sum::<u64>());
        assert_eq!(self.ledger.start(), self.sends.front().map(|send| send.start));
        assert_eq!(self.ledger.is_empty(), self.sends.is_empty());
    }
}

// Levels, types and origins, as the kernel's headers have them.
const SOL_SOCKET: u32 = 1;
const IPV4: (u32, u32) = (0, 11);
const IPV6: (u32, u32) = (41, 25);
const ORIGIN_ZEROCOPY: u8 = 5;

/// An entry of control data, as the kernel writes it. Returns where its data end; behind them there is room up to the
/// next word.
fn push_entry(control: &mut Vec<u8>, (level, kind): (u32, u32), data: &[u8]) -> usize {
    const HEADER: usize = size_of::<usize>() + 8;
    control.extend((HEADER + data.len()).to_ne_bytes());
    control.extend(level.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(data);
    let end = control.len();
    control.resize(end.next_multiple_of(size_of::<usize>()), 0);
    end
}

/// A sock_extended_err, and the address that comes with it.
fn extended_error(errno: u32, origin: u8, report: Report) -> Vec<u8> {
    let mut bytes = errno.to_ne_bytes().to_vec();
    bytes.extend([origin, 0, report.copied.into(), 0]);
    bytes.extend([report.first, report.last].map(u32::to_ne_bytes).as_flattened());
    bytes.extend([0; 28]);
    bytes
}
