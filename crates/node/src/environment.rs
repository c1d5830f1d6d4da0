//! What native code keeps for one Node environment: the main thread or a worker.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use napi::bindgen_prelude::{Array, FromNapiValue, Function, Object, Unknown};
use napi::{sys, Env, Error, JsValue, Result, Status};
use napi_derive::napi;
use netpoll::{
    Block, BlockTable, Border, Doorbell, Driver, Driving, LoadBalance, PinTable, PollManager, Server,
    ZeroCopy,
};

use crate::doorbell::Bell;
use crate::loop_driver::LoopDriver;
use crate::shapes::{
    dial_outcome, host_outcome, listen_outcome, Addresses, DialOutcome, DialSettings, EndpointShape,
    EnvironmentStats, HostOutcome, ListenOutcome, ListenSettings, ServeOptions,
};
use crate::shared_memory::{bytes_of, hold, let_go, map, words_of, Holds};

/// Of what could not be: a poll too many, or one that never was.
const EINVAL: i32 = 22;

const SCHEDULED: usize = 0;
const STOP: usize = 1;

/// How long process 'exit' waits for the polls. They need microseconds; a poll that cannot stop must not
/// keep a process from ending.
const EXIT_PATIENCE: Duration = Duration::from_millis(50);

/// A quarter of the memory there is, when JavaScript sets no limit.
const SHARE_OF_MEMORY: u64 = 4;

/// The polls, blocks and pins of one Node environment. It is stopped by whichever comes first: `exit` (of
/// process 'exit'), or the environment's cleanup hook, which joins the threads, and then lets go of the shared memory and
/// of what JavaScript was lent. Only then Node drops the threadsafe function.
#[napi]
pub struct Environment {
    manager: Arc<PollManager>,
    table: Arc<BlockTable>,
    pins: Arc<PinTable>,
    borders: Mutex<Vec<Border>>,
    /// Of each poll.
    ring_entries: u32,
    slots: u32,
    bell: &'static Bell,
    /// None where threads drive all polls.
    loop_driver: Option<&'static LoopDriver>,
    servers: Mutex<HashMap<u32, Arc<Server>>>,
    pinned: Arc<Mutex<HashMap<u32, Pinned>>>,
    holds: Arc<Holds>,
}

/// A Buffer that is being sent.
#[derive(Clone, Copy)]
struct Pinned {
    reference: sys::napi_ref,
    bytes: u64,
}

// SAFETY: napi-rs asks for it; references are made and deleted on the environment's own thread only,
// for every method that touches them is called by JavaScript.
unsafe impl Send for Pinned {}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("manager", &self.manager).finish_non_exhaustive()
    }
}

#[napi]
impl Environment {
    /// Starts a poll for each of `options.polls`. `doorbell` is called when there are records to drain.
    #[napi(constructor, catch_unwind)]
    pub fn new(env: Env, options: Object<'_>, doorbell: Function<'_, (), ()>) -> Result<Environment> {
        let holds = Arc::<Holds>::default();
        // Nobody uses any of it then: what has been started has ended. It may be tried again.
        Environment::open(env, &options, doorbell, &holds).inspect_err(|_| holds.let_go(env.raw()))
    }

    fn open(
        env: Env,
        options: &Object<'_>,
        doorbell: Function<'_, (), ()>,
        holds: &Arc<Holds>,
    ) -> Result<Environment> {
        let control = words_of(env.raw(), field::<Unknown<'_>>(options, "control")?.raw(), holds)?;
        let (scheduled, stop) = (word(control, SCHEDULED)?, word(control, STOP)?);
        let (ring_entries, slots) = (field(options, "ringEntries")?, field(options, "slots")?);
        let borders = borders(&env, options, ring_entries, slots, holds)?;
        let table = BlockTable::new(memory_limit(field::<f64>(options, "maxMemory")?));
        let pins = PinTable::new();
        let bell = Bell::new(env.raw(), doorbell.raw(), stop, field::<bool>(options, "libuv")?)?;
        let ring = Doorbell::new(scheduled, Arc::new(move || bell.ring()));
        let (manager, loop_driver) = start(&env, options, &borders, (&table, &pins), bell, &ring)
            // The loop of a worker that ends now must have no handle left.
            .inspect_err(|_| bell.discard())?;
        // After the bell was made: hooks run last in, first out, so the threads that ring it are gone before it is.
        let pinned = Arc::<Mutex<HashMap<u32, Pinned>>>::default();
        let (raw, rest) = (env.raw(), (table.clone(), pinned.clone(), holds.clone()));
        env.add_env_cleanup_hook(manager.clone(), move |manager| {
            let (table, pinned, holds) = rest;
            // Release: pairs with the Acquire of a ring that is still under way.
            stop.store(1, Ordering::Release);
            loop_driver.inspect(|driver| driver.close());
            manager.join();
            bell.close();
            table.take_back_all();
            // It fails only for what is gone with the environment anyway.
            lock(&pinned).drain().for_each(|(_, pinned)| drop(let_go(raw, pinned.reference)));
            holds.let_go(raw);
        })
        .inspect_err(|_| {
            loop_driver.inspect(|driver| driver.close());
            manager.join();
            bell.discard();
        })?;
        loop_driver.inspect(|driver| (0..borders.len()).for_each(|poll| driver.seat(poll)));
        let (servers, borders) = (Mutex::default(), Mutex::new(borders));
        Ok(Environment {
            manager,
            table,
            pins,
            borders,
            ring_entries,
            slots,
            bell,
            loop_driver,
            servers,
            pinned,
            holds: holds.clone(),
        })
    }

    /// Starts one more poll, with the next number, on memory of its own. An errno, or 0.
    #[napi(catch_unwind)]
    pub fn add_poll(&self, env: Env, words: Unknown<'_>) -> Result<i32> {
        let holds = Holds::default();
        let border = border(&env, words, self.ring_entries, self.slots, &holds)
            .inspect_err(|_| holds.let_go(env.raw()))?;
        let added = self.manager.add(border);
        if added.is_err() {
            holds.let_go(env.raw());
        } else {
            self.holds.take_over(&holds);
            let mut borders = lock(&self.borders);
            borders.push(border);
            self.loop_driver.inspect(|driver| driver.seat(borders.len() - 1));
        }
        Ok(errno(added))
    }

    /// Starts a poll anew whose thread has ended; the header of its memory is 0 again. An errno, or 0.
    #[napi(catch_unwind)]
    pub fn restart_poll(&self, poll: u32) -> i32 {
        let restarted = self.manager.restart(poll as usize);
        if restarted.is_ok() {
            self.loop_driver.inspect(|driver| driver.seat(poll as usize));
        }
        errno(restarted)
    }

    /// Lets a poll move all its connections to the others, and tell when none is left.
    #[napi(catch_unwind)]
    pub fn retire_poll(&self, poll: u32) {
        self.manager.retire(poll as usize);
    }

    /// Ends a poll that has told that it is empty. What has been put is still taken.
    #[napi(catch_unwind)]
    pub fn end_poll(&self, poll: u32) {
        self.loop_driver.inspect(|driver| driver.leave(poll as usize));
        self.manager.end(poll as usize);
    }

    /// 'round-robin', 'random' or 'least-connections'.
    #[napi(catch_unwind)]
    pub fn set_load_balance(&self, kind: String) {
        self.manager.set_load_balance(match kind.as_str() {
            "random" => LoadBalance::Random,
            "least-connections" => LoadBalance::LeastConnections,
            _ => LoadBalance::RoundRobin,
        });
    }

    /// 'off', 'auto' or 'always'.
    #[napi(catch_unwind)]
    pub fn set_zero_copy(&self, kind: String) {
        self.manager.set_zero_copy(match kind.as_str() {
            "auto" => ZeroCopy::Auto,
            "always" => ZeroCopy::Always,
            _ => ZeroCopy::Off,
        });
    }

    /// A new ArrayBuffer over the memory of a chunk.
    #[napi(catch_unwind)]
    pub fn map_chunk<'env>(&self, env: &'env Env, chunk: u32) -> Result<Unknown<'env>> {
        let buffer = map(env.raw(), self.table.chunk(chunk).ok_or_else(|| unknown("chunk", chunk))?)?;
        // SAFETY: `map` has just made this value in this environment.
        unsafe { Unknown::from_napi_value(env.raw(), buffer) }
    }

    /// The logarithm of the size of the chunk's blocks.
    #[napi(catch_unwind)]
    pub fn chunk_shift(&self, chunk: u32) -> Result<u32> {
        Ok(self.table.chunk(chunk).ok_or_else(|| unknown("chunk", chunk))?.shift())
    }

    /// chunk * 2**32 + offset of a block of at least `size` bytes, lent to JavaScript; -1 without memory.
    #[napi(catch_unwind)]
    pub fn alloc(&self, size: u32) -> f64 {
        let lend = |block: Block| {
            let place = f64::from(block.chunk()) * 4_294_967_296.0 + f64::from(block.offset());
            block.lend();
            place
        };
        self.table.alloc(size).map_or(-1.0, lend)
    }

    /// One more lent reference of a block, for one SEND_LENT. False when JavaScript has none.
    #[napi(catch_unwind)]
    pub fn share(&self, chunk: u32, offset: u32) -> bool {
        self.table.share(chunk, offset)
    }

    /// Wakes a poll that sleeps. What the loop drives itself is sent before this returns.
    #[napi(catch_unwind)]
    pub fn wake(&self, poll: u32) {
        let poll = poll as usize;
        if !self.loop_driver.is_some_and(|driver| driver.take_records(poll)) {
            self.manager.wake(poll);
        }
    }

    /// Lets a poll that the loop drives notice ends that have come.
    #[napi(catch_unwind)]
    pub fn look(&self, poll: u32) {
        self.loop_driver.inspect(|driver| driver.look(poll as usize));
    }

    /// Keeps the process alive from now on.
    #[napi(js_name = "ref", catch_unwind)]
    pub fn refer(&self) -> Result<()> {
        self.bell.refer()
    }

    /// Lets the process end from now on.
    #[napi(js_name = "unref", catch_unwind)]
    pub fn unrefer(&self) -> Result<()> {
        self.bell.unrefer()
    }

    /// Holds the bytes for one SEND_PIN; -1 without memory.
    #[napi(catch_unwind)]
    pub fn pin(&self, env: Env, bytes: Unknown<'_>) -> Result<f64> {
        let (start, length) = bytes_of(env.raw(), bytes.raw())?;
        if !self.table.charge(length as u64) {
            return Ok(-1.0);
        }
        let reference = hold(env.raw(), bytes.raw()).inspect_err(|_| self.table.discharge(length as u64))?;
        // SAFETY: the reference keeps the bytes until `unpin`, which JavaScript calls only in answer to UNPIN, when no
        // poll uses them any more. But it does not keep a user from transferring or shrinking their ArrayBuffer; the
        // documentation of `Writer.writeBinary` forbids that until they are sent. Nothing here reads them: it is the
        // kernel that would send what lies there by then, if anything does, or fail with EFAULT.
        let pin = unsafe { self.pins.insert(start, length) };
        lock(&self.pinned).insert(pin, Pinned { reference, bytes: length as u64 });
        Ok(f64::from(pin))
    }

    /// Drops what `pin` holds.
    #[napi(catch_unwind)]
    pub fn unpin(&self, env: Env, pin: u32) -> Result<()> {
        // Refused while a poll still sends from it: the reference stays.
        if !self.pins.remove(pin) {
            return Err(unknown("released pin", pin));
        }
        let pinned = lock(&self.pinned).remove(&pin).ok_or_else(|| unknown("pin", pin))?;
        self.table.discharge(pinned.bytes);
        let_go(env.raw(), pinned.reference)
    }

    /// The host name in an address that a resolver has to turn into a literal first.
    #[napi(catch_unwind)]
    pub fn host_to_resolve(&self, network: String, address: String) -> HostOutcome {
        host_outcome(netpoll::host_to_resolve(&network, &address))
    }

    /// The same for an address to dial, and a local one to dial from.
    #[napi(catch_unwind)]
    pub fn host_to_dial(&self, network: String, address: String, local: Option<String>) -> HostOutcome {
        host_outcome(netpoll::host_to_dial(&network, &address, local.as_deref()))
    }

    /// Binds and listens.
    #[napi(catch_unwind)]
    pub fn listen(&self, network: String, address: String, settings: ListenSettings) -> ListenOutcome {
        listen_outcome(self.manager.listen(&network, &address, &settings.options()))
    }

    /// Listens at a socket that this process has inherited.
    #[napi(catch_unwind)]
    pub fn inherit(&self, descriptor: i32) -> ListenOutcome {
        listen_outcome(self.manager.inherit(descriptor))
    }

    /// Gives away the open descriptor that a DETACHED of a poll has named. False when that is gone, and it with that.
    #[napi(catch_unwind)]
    pub fn take_detached(&self, poll: u32, descriptor: i32) -> bool {
        self.manager.take_detached(poll as usize, descriptor).map(IntoRawFd::into_raw_fd).is_some()
    }

    /// Accepts from a listener on behalf of an event loop, all of whose listeners count together. Returns the
    /// poll that does.
    #[napi(catch_unwind)]
    pub fn serve(&self, listener: u32, options: ServeOptions) -> Result<u32> {
        let server =
            lock(&self.servers).entry(options.server).or_insert_with(|| Arc::new(options.server())).clone();
        let poll = self.manager.serve(listener, &server);
        poll.map(|poll| poll as u32).ok_or_else(|| unknown("listener", listener))
    }

    /// The event loop of that number serves no more.
    #[napi(catch_unwind)]
    pub fn forget_server(&self, server: u32) {
        lock(&self.servers).remove(&server);
    }

    /// Refuses new connections at once.
    #[napi(catch_unwind)]
    pub fn close_listener(&self, listener: u32) {
        self.manager.close_listener(listener);
    }

    /// Lets a poll connect; DIALED tells what came of it.
    #[napi(catch_unwind)]
    pub fn dial(&self, dial: u32, settings: DialSettings) -> DialOutcome {
        let address = (settings.network.as_str(), settings.address.as_str());
        let (options, server) = (settings.options(), settings.server());
        dial_outcome(self.manager.dial(dial, address, &settings.resolved, options, server))
    }

    /// Makes an end of a dial that is under way.
    #[napi(catch_unwind)]
    pub fn cancel_dial(&self, poll: u32, dial: u32) {
        self.manager.cancel_dial(poll as usize, dial);
    }

    /// Both ends of the connection in a slot.
    #[napi(catch_unwind)]
    pub fn addresses(&self, poll: u32, slot: u32) -> Result<Addresses> {
        let border = lock(&self.borders).get(poll as usize).copied().ok_or_else(|| unknown("poll", poll))?;
        let [remote, local] = border.addresses(slot).ok_or_else(|| unknown("slot", slot))?;
        Ok(Addresses { remote: EndpointShape::decode(remote), local: EndpointShape::decode(local) })
    }

    /// Counters of the polls, the blocks and the pins.
    #[napi(catch_unwind)]
    pub fn stats(&self) -> EnvironmentStats {
        EnvironmentStats {
            polls: self.manager.stats().into_iter().map(Into::into).collect(),
            blocks_out: self.table.blocks_out() as f64,
            bytes_out: self.table.bytes_out() as f64,
            chunk_bytes: self.table.chunk_bytes() as f64,
            max_memory: self.table.max_memory() as f64,
            pins: lock(&self.pinned).len() as f64,
        }
    }

    /// Of process 'exit': no hook runs then, so the polls are stopped here.
    #[napi(catch_unwind)]
    pub fn exit(&self) {
        self.loop_driver.inspect(|driver| driver.leave_all());
        self.manager.stop(EXIT_PATIENCE);
    }

    /// For tests: makes the thread of a poll panic.
    #[napi(catch_unwind)]
    pub fn crash(&self, poll: u32) {
        self.manager.crash(poll as usize);
    }

    /// For tests: the poll's other driver runs it after the next turn.
    #[napi(catch_unwind)]
    pub fn flip(&self, poll: u32) {
        self.manager.flip(poll as usize);
    }
}

fn borders(env: &Env, options: &Object<'_>, entries: u32, slots: u32, holds: &Holds) -> Result<Vec<Border>> {
    let polls = field::<Array<'_>>(options, "polls")?;
    let words = |index| polls.get::<Unknown<'_>>(index)?.ok_or_else(|| unknown("poll", index));
    (0..polls.len()).map(|index| border(env, words(index)?, entries, slots, holds)).collect()
}

fn border(env: &Env, words: Unknown<'_>, entries: u32, slots: u32, holds: &Holds) -> Result<Border> {
    let invalid =
        || Error::new(Status::InvalidArg, "the memory of a poll does not have the size of its parts");
    Border::new(words_of(env.raw(), words.raw(), holds)?, entries, slots).ok_or_else(invalid)
}

/// The polls, and who runs those that are the loop's.
fn start(
    env: &Env,
    options: &Object<'_>,
    borders: &[Border],
    (table, pins): (&Arc<BlockTable>, &Arc<PinTable>),
    bell: &'static Bell,
    ring: &Doorbell,
) -> Result<(Arc<PollManager>, Option<&'static LoopDriver>)> {
    let driving = driving(options, bell.is_of_libuv())?;
    let manager =
        PollManager::start(borders, ring, table, pins, driving).map_err(|error| system_error(env, &error))?;
    let manager = Arc::new(manager);
    let loop_driver = match driving.driver {
        Driver::Thread => None,
        Driver::Loop | Driver::Adaptive => {
            let driver = LoopDriver::new(env.raw(), bell, manager.clone());
            Some(driver.inspect_err(|_| manager.join())?)
        }
    };
    Ok((manager, loop_driver))
}

/// Without libuv only threads can drive.
fn driving(options: &Object<'_>, has_loop: bool) -> Result<Driving> {
    let driver = match field::<String>(options, "driver")?.as_str() {
        "loop" if has_loop => Driver::Loop,
        "adaptive" if has_loop => Driver::Adaptive,
        _ => Driver::Thread,
    };
    let busy_poll = Duration::from_micros(u64::from(field::<u32>(options, "busyPoll")?));
    Ok(Driving { driver, busy_poll })
}

fn field<'a, T: FromNapiValue>(options: &Object<'a>, name: &str) -> Result<T> {
    let missing = || Error::new(Status::InvalidArg, format!("options.{name} is missing"));
    options.get::<T>(name)?.ok_or_else(missing)
}

fn word(words: &'static [AtomicU32], index: usize) -> Result<&'static AtomicU32> {
    words.get(index).ok_or_else(|| Error::new(Status::InvalidArg, "options.control is too short"))
}

fn memory_limit(asked: f64) -> u64 {
    if asked > 0.0 {
        asked as u64
    } else {
        netpoll::memory_limit() / SHARE_OF_MEMORY
    }
}

/// It has the field `errno`.
fn system_error(env: &Env, error: &std::io::Error) -> Error {
    let thrown = env
        .create_error(Error::new(Status::GenericFailure, error.to_string()))
        .and_then(|mut thrown| thrown.set("errno", number(error)).map(|()| thrown.to_unknown().into()));
    thrown.unwrap_or_else(|failed| failed)
}

fn errno(outcome: std::io::Result<()>) -> i32 {
    outcome.map_or_else(|error| number(&error), |()| 0)
}

fn number(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(EINVAL)
}

fn unknown(what: &str, number: u32) -> Error {
    Error::new(Status::InvalidArg, format!("there is no {what} {number}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
