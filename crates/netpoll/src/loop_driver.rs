//! Runs the turns of a poll on the loop of its environment, as far as that is no matter of the loop's own functions.

use std::os::fd::RawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver::{Drive, Driven};
use crate::helm::Side;
use crate::poll::Budget;

/// The loop's side of a poll. All its methods are for the thread of the loop.
#[derive(Clone, Debug)]
pub struct LoopDriver {
    drive: Arc<Drive>,
}

/// What the loop does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoopTurn {
    /// It waits for the poll's descriptor.
    Wait {
        /// When the next turn is due even if nothing happens.
        next_deadline: Option<Instant>,
        /// Until when the loop should not sleep.
        busy_until: Option<Instant>,
    },
    /// The next turn is due as soon as the loop has looked at its other work.
    Again,
    /// It lets go of the descriptor, and hands the poll to its thread.
    Leave,
    /// It lets go of the descriptor, and ends the poll, which can not go on.
    Fail,
}

/// What came of looking for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// A turn is due.
    Found,
    /// The loop should look at its other work, and come back.
    Again,
    /// The time is over; it sleeps.
    Over,
}

/// A round of the loop costs more than a look, and leaves garbage behind. But its other work must not wait for long.
const LOOKING: Duration = Duration::from_micros(10);

/// What brings a turn about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// The descriptor may be readable, or a deadline has come, or a turn was not finished.
    Event,
    /// JavaScript has put records.
    Records,
}

impl LoopDriver {
    pub(crate) fn new(drive: Arc<Drive>) -> LoopDriver {
        LoopDriver { drive }
    }

    /// Whether it is the loop that runs this poll.
    pub fn is_at_helm(&self) -> bool {
        self.drive.helm.is_with(Side::Loop) && !self.drive.is_stopped()
    }

    /// The descriptor that is readable when there is work. It stays open while the loop is at the helm.
    pub fn descriptor(&self) -> RawFd {
        self.drive.descriptor
    }

    /// Runs a turn, which never blocks. None when it is not the loop's.
    pub fn turn(&self, occasion: Occasion) -> Option<LoopTurn> {
        let budget = match occasion {
            Occasion::Event => Budget::default(),
            Occasion::Records => Budget::records(),
        };
        self.drive.helm.steer(Side::Loop, |driven| {
            // AssertUnwindSafe: after a panic the poll is only dropped.
            catch_unwind(AssertUnwindSafe(|| take_turn(&self.drive, driven, budget)))
                .unwrap_or(LoopTurn::Fail)
        })
    }

    /// Looks for work, instead of sleeping, for a part of the time until `busy_until`.
    pub fn look(&self, busy_until: Instant) -> Look {
        self.drive.helm.steer(Side::Loop, |driven| look(driven, busy_until)).unwrap_or(Look::Found)
    }

    /// The loop can not look after the poll: its thread does from now on, for good.
    pub fn give_up(&self) {
        // Relaxed: a hint, see `Drive::choose`.
        self.drive.is_adaptive.store(false, Ordering::Relaxed);
    }

    /// Ends a poll that can not go on.
    pub fn fail(&self) {
        self.drive.conclude(false, Instant::now());
    }
}

fn take_turn(drive: &Drive, driven: &mut Driven, budget: Budget) -> LoopTurn {
    let now = Instant::now();
    driven.poll.wake_up();
    let Ok(turn) = driven.poll.turn(now, budget) else { return LoopTurn::Fail };
    let busy_until = driven.busy.rest(turn.load.arrivals > 0, now);
    if driven.next_side(drive, turn.load, Side::Loop, now) == Side::Thread {
        return LoopTurn::Leave;
    }
    // Asleep in between: JavaScript rings for what it puts, and that is sent then and there.
    if driven.poll.is_awaited() || turn.more {
        return LoopTurn::Again;
    }
    LoopTurn::Wait { next_deadline: turn.next_deadline, busy_until }
}

fn look(driven: &mut Driven, busy_until: Instant) -> Look {
    let mut now = Instant::now();
    let end = busy_until.min(now + LOOKING);
    while now < end {
        // An error is for the turn to meet.
        if driven.poll.look().unwrap_or(true) {
            return Look::Found;
        }
        now = Instant::now();
    }
    if now < busy_until {
        return Look::Again;
    }
    driven.busy.expire();
    Look::Over
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicU32, AtomicUsize};

    use super::*;
    use crate::block::BlockTable;
    use crate::border::{Border, Doorbell};
    use crate::connection::Limits;
    use crate::driver::{Driver, Driving};
    use crate::listener::ListenOptions;
    use crate::pin::PinTable;
    use crate::poll_manager::PollManager;
    use crate::server::Server;
    use crate::tests::words;

    const DIED: usize = 2;
    const ON_LOOP: usize = 5;
    const WORDS: usize = 64 + 2 * 8 * 8 + 8 * 24;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A poll for the loop, which is the test's own thread.
    struct Driven {
        words: &'static [AtomicU32],
        rings: Arc<AtomicUsize>,
        manager: PollManager,
        driver: LoopDriver,
        port: u16,
    }

    impl Driven {
        fn start(driver: Driver) -> Driven {
            let (words, scheduled) = words(WORDS + 1).split_at(WORDS);
            let rings = Arc::new(AtomicUsize::new(0));
            let rung = rings.clone();
            let ring = move || {
                rung.fetch_add(1, Ordering::SeqCst);
            };
            let doorbell = Doorbell::new(&scheduled[0], Arc::new(ring));
            let driving = Driving { driver, busy_poll: Duration::ZERO };
            let borders = [Border::new(words, 8, 8).unwrap()];
            let manager =
                PollManager::start(&borders, &doorbell, &BlockTable::new(8 << 20), &PinTable::new(), driving)
                    .unwrap();
            let listening = manager.listen("tcp", "127.0.0.1:0", &ListenOptions::PLAIN).unwrap();
            let limits = Limits { read_high_water_mark: 1, idle_timeout: None, write_timeout: None };
            manager.serve(listening.id, &Arc::new(Server::new(0, limits, 0, true))).unwrap();
            let driver = manager.loop_driver(0).unwrap();
            Driven { words, rings, manager, driver, port: listening.endpoint.port }
        }

        fn connect(&self) -> TcpStream {
            let client = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client
        }

        fn connections(&self) -> u64 {
            self.manager.stats()[0].connections
        }

        fn word(&self, word: usize) -> u32 {
            self.words[word].load(Ordering::Acquire)
        }

        fn until(&self, what: &str, condition: impl Fn(&Driven) -> bool) {
            let start = Instant::now();
            while !condition(self) {
                assert!(start.elapsed() < PATIENCE, "it did not happen that {what}");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn nothing_happens_before_the_loop_takes_a_turn_and_then_all_that_has_come() {
        let driven = Driven::start(Driver::Loop);
        let _client = driven.connect();
        assert!(driven.driver.is_at_helm());
        assert_eq!((driven.connections(), driven.word(ON_LOOP)), (0, 1));
        driven.until("it is accepted", |driven| {
            assert!(!matches!(
                driven.driver.turn(Occasion::Event),
                None | Some(LoopTurn::Leave | LoopTurn::Fail)
            ));
            driven.connections() == 1
        });
    }

    #[test]
    fn a_turn_for_records_does_not_look_at_what_has_come() {
        let driven = Driven::start(Driver::Loop);
        // The command to serve.
        driven.driver.turn(Occasion::Event);
        let _client = driven.connect();
        for _ in 0..100 {
            driven.driver.turn(Occasion::Records);
        }
        assert_eq!(driven.connections(), 0);
    }

    #[test]
    fn when_the_loop_stops_its_poll_the_connections_are_closed_and_no_thread_is_needed() {
        let driven = Driven::start(Driver::Loop);
        let mut client = driven.connect();
        driven.until("it is accepted", |driven| {
            driven.driver.turn(Occasion::Event);
            driven.connections() == 1
        });
        assert!(driven.manager.stop(Duration::ZERO));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert_eq!(driven.driver.turn(Occasion::Event), None);
        assert!(!driven.driver.is_at_helm());
        assert_eq!(driven.word(DIED), 0);
    }

    #[test]
    fn a_poll_goes_to_its_thread_and_back_and_is_stopped_wherever_it_is() {
        for flips in 0..4 {
            let driven = Driven::start(Driver::Adaptive);
            let mut client = driven.connect();
            driven.until("it is accepted", |driven| {
                driven.driver.turn(Occasion::Event);
                driven.connections() == 1
            });
            for flip in 0..flips {
                driven.manager.flip(0);
                if flip % 2 == 0 {
                    assert_eq!(driven.driver.turn(Occasion::Event), Some(LoopTurn::Leave));
                    assert!(driven.manager.hand_over(0));
                    assert_eq!(driven.driver.turn(Occasion::Event), None);
                    assert_eq!(driven.word(ON_LOOP), 0);
                } else {
                    let rings = driven.rings.load(Ordering::SeqCst);
                    driven.until("the loop has it", |driven| driven.driver.is_at_helm());
                    driven.until("it is told", |driven| driven.rings.load(Ordering::SeqCst) > rings);
                }
            }
            assert_eq!(driven.manager.stats()[0].flips, flips);
            driven.manager.join();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn a_poll_that_panics_on_the_loop_is_ended_and_told_of_like_one_that_panics_on_its_thread() {
        let driven = Driven::start(Driver::Loop);
        let mut client = driven.connect();
        driven.until("it is accepted", |driven| {
            driven.driver.turn(Occasion::Event);
            driven.connections() == 1
        });
        driven.manager.crash(0);
        assert_eq!(driven.driver.turn(Occasion::Event), Some(LoopTurn::Fail));
        driven.driver.fail();
        assert!(!driven.driver.is_at_helm(), "nobody attends to its descriptor, which is closed");
        assert!(!driven.manager.hand_over(0), "and no thread is started for it");
        assert_eq!(driven.word(DIED), 1);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert_eq!(driven.driver.turn(Occasion::Event), None);
    }

    #[test]
    fn the_turn_after_a_look_that_has_found_nothing_sees_what_has_come_since() {
        let driven = Driven::start(Driver::Loop);
        let _first = driven.connect();
        driven.until("it is accepted", |driven| {
            driven.driver.turn(Occasion::Event);
            driven.connections() == 1
        });
        while driven.driver.look(Instant::now() + LOOKING) == Look::Found {
            driven.driver.turn(Occasion::Event);
        }
        let _second = driven.connect();
        driven.driver.turn(Occasion::Event);
        assert_eq!(driven.connections(), 2);
    }

    #[test]
    fn what_javascript_has_put_since_the_turn_began_makes_the_next_one_due() {
        const SUBMISSION_TAIL: usize = 32;
        let driven = Driven::start(Driver::Loop);
        assert!(matches!(driven.driver.turn(Occasion::Event), Some(LoopTurn::Wait { .. })));
        let end = driven.driver.drive.helm.steer(Side::Loop, |held| {
            driven.words[SUBMISSION_TAIL].store(1, Ordering::Release);
            held.poll.is_awaited()
        });
        assert_eq!(end, Some(true));
    }
}
