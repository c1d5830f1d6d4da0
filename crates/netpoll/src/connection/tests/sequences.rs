//! Whatever happens to a connection, against a model of counts: a kernel that takes less than it is offered, lends, and
//! reports in any order; closes of each kind at any time; and a clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use crate::pin::PinTable;
use crate::sys::Report;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(usize),
    /// The kernel takes so many percent of what is pending, or has no room.
    Take {
        percent: u64,
        lends: bool,
    },
    Report {
        first: u32,
        more: u32,
    },
    Finish(Finish),
    Drop,
    Fail,
    /// So many bytes before or behind what is settled.
    Watch(i64),
    Receive(u32),
    Credit {
        bytes: u32,
        mark: u32,
    },
    Pause(bool),
    PeerEnds,
    Timer(u32),
    Pass(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2000usize).prop_map(Step::Push),
        8 => (0..=100u64, any::<bool>()).prop_map(|(percent, lends)| Step::Take { percent, lends }),
        6 => (0..12u32, 0..4u32).prop_map(|(first, more)| Step::Report { first, more }),
        1 => prop_oneof![Just(Finish::End), Just(Finish::Close)].prop_map(Step::Finish),
        1 => Just(Step::Drop),
        1 => Just(Step::Fail),
        3 => (-2000..4000i64).prop_map(Step::Watch),
        3 => (0..2000u32).prop_map(Step::Receive),
        3 => (0..2000u32, 0..4000u32).prop_map(|(bytes, mark)| Step::Credit { bytes, mark }),
        2 => any::<bool>().prop_map(Step::Pause),
        1 => Just(Step::PeerEnds),
        2 => (0..50u32).prop_map(Step::Timer),
        4 => (0..60u32).prop_map(Step::Pass),
    ]
}

/// What must be true of the connection.
#[derive(Debug, Default)]
struct Model {
    pushed: u64,
    sent: u64,
    /// Neither sent nor to be sent.
    dropped: u64,
    /// Start and length of what the kernel was lent, by its number.
    lent: BTreeMap<u32, (u64, u64)>,
    lent_ever: u32,
    finish: Option<Finish>,
    drops: bool,
    has_failed: bool,
    /// The kernel has no room, or had none when it was last asked.
    is_blocked: bool,
    /// Since when the kernel has neither taken nor given back, although there is something.
    stalled: Option<Instant>,
    /// The count that has been asked for, and was not answered.
    watch: Option<i64>,
    answers: usize,
    received: u64,
    credited: u64,
    /// When it is due.
    timer: Option<(Instant, u32)>,
}

impl Model {
    fn pending(&self) -> u64 {
        self.pushed - self.sent - self.dropped
    }

    fn settled(&self) -> u64 {
        self.lent.values().next().map_or(self.sent, |(start, _)| *start)
    }

    fn has_ended(&self) -> bool {
        self.has_failed || self.finish.is_some() && self.pending() == 0
    }
}

struct Scene {
    connection: Connection,
    model: Model,
    pins: Arc<PinTable>,
    now: Instant,
    sequence: u32,
}

impl Scene {
    fn new() -> Scene {
        let limits = Limits { read_high_water_mark: 1000, idle_timeout: None, write_timeout: Some(40 * MS) };
        let now = Instant::now();
        let connection = Connection::new(&limits, now);
        Scene { connection, model: Model::default(), pins: PinTable::new(), now, sequence: 0 }
    }

    fn run(&mut self, step: Step) {
        let Scene { connection, model, .. } = self;
        match step {
            Step::Push(len) => self.push(len),
            Step::Take { percent, lends } => self.take(percent, lends),
            Step::Report { first, more } => self.report(first, more),
            Step::Finish(finish) => {
                connection.output.finish(finish);
                model.finish = if model.finish == Some(Finish::Close) { model.finish } else { Some(finish) };
            }
            Step::Drop => {
                connection.output.finish(Finish::Close);
                (connection.output.drops, model.drops, model.finish) = (true, true, Some(Finish::Close));
            }
            Step::Fail => {
                connection.fail(Cause::ORDERLY);
                (model.has_failed, model.dropped) = (true, model.pushed - model.sent);
                (model.is_blocked, model.stalled) = (false, None);
            }
            Step::Watch(more) => {
                let target = (model.settled() as i64 + more).max(0);
                connection.output.watch(target as u32);
                model.watch = Some(target);
            }
            Step::Receive(bytes) if connection.may_read() => {
                connection.input.delivered += u64::from(bytes);
                model.received += u64::from(bytes);
            }
            Step::Credit { bytes, mark } => {
                connection.input.credit(bytes, mark, false);
                model.credited = model.received.min(model.credited + u64::from(bytes));
            }
            Step::Pause(paused) => connection.input.paused = paused,
            Step::PeerEnds if connection.may_read() => connection.input.ended = true,
            Step::Timer(milliseconds) => self.set_timer(milliseconds),
            Step::Pass(milliseconds) => self.now += milliseconds * MS,
            Step::Receive(_) | Step::PeerEnds => {}
        }
    }

    fn push(&mut self, len: usize) {
        static BYTES: [u8; 2000] = [0; 2000];
        // SAFETY: static memory stays.
        let id = unsafe { self.pins.insert(BYTES.as_ptr(), len) };
        let pin = self.pins.take(id).unwrap();
        assert_eq!(self.connection.output.is_open(), self.model.finish.is_none() && !self.model.has_failed);
        if self.connection.output.is_open() {
            self.connection.output.queue.push_pin(pin);
            self.model.pushed += len as u64;
        }
    }

    /// An answer of the kernel to one call, as a poll takes it.
    fn take(&mut self, percent: u64, lends: bool) {
        let Scene { connection: Connection { output, .. }, model, now, .. } = self;
        let taken = model.pending() * percent / 100;
        model.is_blocked = taken == 0 && model.pending() > 0;
        output.is_blocked = model.is_blocked;
        if model.is_blocked {
            output.wait(*now, 1);
            model.stalled.get_or_insert(*now);
        }
        if taken == 0 {
            return;
        }
        model.stalled = None;
        if lends {
            output.lend(taken as usize);
            model.lent.insert(model.lent_ever, (model.sent, taken));
            model.lent_ever += 1;
        } else {
            output.advance(taken as usize);
        }
        model.sent += taken;
    }

    fn report(&mut self, first: u32, more: u32) {
        let oldest = self.model.lent.keys().next().copied().unwrap_or(self.model.lent_ever);
        let (first, last) = (oldest + first, oldest + first + more);
        let report = Report { first, last, copied: false };
        let before = self.model.lent.len();
        self.model.lent.retain(|number, _| !(first..=last).contains(number));
        let completed = before - self.model.lent.len();
        assert_eq!(self.connection.output.lending.ledger.complete(report), completed);
        if completed > 0 {
            self.connection.output.returned(self.now);
            let waits = self.model.is_blocked || !self.model.lent.is_empty();
            self.model.stalled = waits.then_some(self.now);
        }
    }

    fn set_timer(&mut self, milliseconds: u32) {
        self.sequence += 1;
        self.connection.deadlines.set(Deadline::Read, milliseconds, self.sequence, self.now);
        self.model.timer = (milliseconds > 0).then(|| (self.now + milliseconds * MS, self.sequence));
    }

    /// The end of a visit, as a poll does it.
    fn settle(&mut self) {
        let Scene { connection: Connection { output, .. }, model, now, .. } = self;
        if model.drops && model.is_blocked {
            model.dropped += model.pending();
            model.stalled = None;
        }
        output.drop_blocked();
        if output.wants_fin() {
            assert!(!output.ended && model.finish.is_some(), "FIN is sent once and when it was asked for");
            output.ended = true;
        }
        if !output.is_settled() && output.blocked_since.is_none() {
            output.wait(*now, 1);
            model.stalled = Some(*now);
        }
        let (settled, is_settled) = (model.settled() as i64, model.lent.is_empty());
        let is_due = |target: &mut i64| if output.ended { is_settled } else { settled >= *target };
        let is_answered = model.watch.take_if(is_due).is_some();
        assert_eq!(output.take_drained(), is_answered);
        model.answers += usize::from(is_answered);
        self.expire();
    }

    fn expire(&mut self) {
        while let Some(expired) = self.connection.expired(self.now) {
            match expired {
                Expired::Told(which, sequence) => {
                    let (at, expected) = self.model.timer.take().expect("a timer fires once");
                    assert!(which == Deadline::Read && sequence == expected && at <= self.now);
                }
                Expired::Write => {
                    assert!(
                        self.model.pending() > 0 || !self.model.lent.is_empty(),
                        "there is nothing to wait for"
                    );
                    // The peer has taken something: it begins anew.
                    self.connection.output.blocked_since = Some(self.now);
                    self.model.stalled = Some(self.now);
                }
            }
        }
        assert!(self.model.timer.is_none_or(|(at, _)| at > self.now), "a timer fires in time");
        assert!(self.connection.deadline().is_none_or(|at| at > self.now));
    }

    fn check(&self) {
        let Scene { connection, model, .. } = self;
        let Connection { input, output, .. } = connection;
        assert_eq!((output.sent, output.queue.len()), (model.sent, model.pending()));
        assert_eq!((output.settled(), output.is_settled()), (model.settled(), model.lent.is_empty()));
        let lent = model.lent.values().map(|(_, len)| len).sum::<u64>();
        assert_eq!(output.pending(), model.pending() + lent);
        assert_eq!((output.ended, output.blocked_since), (model.has_ended(), model.stalled));
        assert_eq!(input.unread(), model.received - model.credited);
        let is_closed = model.finish == Some(Finish::Close);
        let is_over = output.ended && (input.ended || is_closed);
        assert_eq!(connection.is_finished(), is_over && (model.lent.is_empty() || model.has_failed));
        assert!(!connection.may_read() || !input.ended && !is_closed);
    }
}

proptest! {
    #[test]
    fn a_connection_counts_and_ends_as_it_must_whatever_happens(steps in vec(any_step(), 0..120)) {
        let mut scene = Scene::new();
        for step in steps {
            scene.run(step);
            scene.settle();
            scene.check();
        }
        // The kernel is done with everything.
        scene.connection.output.lending.ledger.release();
        scene.connection.output.queue.clear();
        prop_assert!(scene.pins.drain_released().into_iter().all(|id| scene.pins.remove(id)));
        prop_assert_eq!(scene.pins.len(), 0, "every byte's memory comes back");
    }
}
