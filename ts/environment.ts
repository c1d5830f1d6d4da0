import type { Connection } from './connection.js'
import { checkInteger, invalidValue } from './arguments.js'
import { configuration, driver, numLoops, zeroCopy, type Driver, type ZeroCopy } from './configuration.js'
import { NetpollError, systemError } from './errors.js'
import { Chunks, Memory } from './memory.js'
import { binding, hasLoopDriver, type EnvironmentOptions, type NativeEnvironment } from './native.js'
import { Poll } from './poll.js'
import { Control } from './record.js'
import { Straggler, Transit } from './transit.js'
import type { BlockWriter } from './writer.js'

/** Records taken from one poll in a drain, so that timers and promises get their turn in between. */
const DRAIN_BUDGET = 1024

/** A sleeping poll is rung when this many SENDs, or handlers of this many milliseconds, have gathered. */
const SENDS_PER_RING = 16
const MILLISECONDS_PER_RING = 0.05

const RING_ENTRIES = 4096

/** Who takes the connections that a listener accepts. */
export interface Server {
  accept(poll: Poll, slot: number, generation: number): void
}

/** Who is told when a listener's descriptor is closed: `cause` is 0 or an errno. */
export interface ListenerOwner {
  /** The number of the poll that accepts. */
  readonly poll: number
  closedWith(error: NetpollError | null): void
}

/** Who waits for a dial: exactly one of the last three is called, once. */
export interface PendingDial {
  readonly poll: Poll | null
  /** Another poll goes on with it, after so many moves. */
  moved(poll: Poll, moves: number): void
  dialed(poll: Poll, slot: number, generation: number): void
  /** `cause` and `address` are those of the DIALED record. */
  failed(cause: number, address: number): void
  /** The poll is gone. */
  lost(): void
}

/** This Node environment (the main thread or a worker): its polls, its memory, and dispatch. */
export class Environment {
  readonly native: NativeEnvironment
  /** Of what belongs to no connection. */
  readonly memory: Memory
  /** By number; those that setNumLoops() has ended are not here. */
  readonly polls: Poll[] = []
  /** Connections on their way from one poll to another, by key. */
  readonly moving = new Map<number, Connection>()
  /** By the number given to native serve(). */
  readonly servers = new Map<number, Server>()
  /** Served ones, by id. */
  readonly listeners = new Map<number, ListenerOwner>()
  /** By the number given to native dial(). */
  readonly dials = new Map<number, PendingDial>()
  /** A drain or a tick runs and will publish what is put. */
  draining = false
  /** SENDs after which a sleeping poll is rung in the midst of a drain: fewer when handlers are slow. */
  sendsPerRing = SENDS_PER_RING
  private readonly control = new Int32Array(new SharedArrayBuffer(Control.BYTES))
  private ready: Connection[] = []
  /** Of connections that are over, what somebody still writes to. */
  private stale: BlockWriter[] = []
  private ids = 0
  private holds = 0
  private scheduled = false
  private readonly tick = () => this.runTick()
  private readonly drain = () => this.runDrain()

  private readonly chunks: Chunks
  /** All polls that ever were, by number: one that is ended can be started again. */
  private readonly berths: Poll[] = []
  private readonly ringEntries = ringEntriesOf(process.env.NETPOLL_RING_ENTRIES)
  private readonly slots = binding.slotLimit()
  private keys = 0
  /** Calls of resize() wait for each other. */
  private resizing: Promise<unknown> = Promise.resolve()
  private resized: (() => void) | null = null

  constructor() {
    if (!binding.sharesMemory()) {
      throw new NetpollError(
        'ERR_NETPOLL_UNSUPPORTED',
        'This runtime does not allow ArrayBuffers over native memory',
      )
    }
    const lends = configuration.zeroCopy ?? zeroCopyOf(process.env.NETPOLL_ZERO_COPY)
    const count = configuration.numLoops || numLoopsOf(process.env.NETPOLL_NUM_LOOPS)
    for (let index = 0; index < count; index++) this.polls.push(this.newPoll(index))
    const options: EnvironmentOptions = {
      control: this.control,
      polls: this.polls.map((poll) => poll.words),
      ringEntries: this.ringEntries,
      slots: this.slots,
      maxMemory: configuration.maxMemory,
      libuv: hasLoopDriver(),
      driver: (configuration.driver ??= driverOf(process.env.NETPOLL_DRIVER)),
      busyPoll: configuration.busyPoll,
    }
    this.native = openNative(options, this.drain)
    this.native.setLoadBalance(configuration.loadBalance)
    this.native.setZeroCopy(lends)
    this.chunks = new Chunks(this.native)
    for (const poll of this.berths) this.giveMemory(poll)
    this.memory = this.polls[0]!.memory
    configuration.inUse = true
    // process.exit() and an uncaught throw run no cleanup hook on the main thread.
    process.on('exit', () => this.exit())
  }

  nextId(): number {
    return ++this.ids
  }

  /** One more thing that keeps the process alive. */
  hold(): void {
    if (this.holds++ === 0) this.native.ref()
  }

  release(): void {
    if (--this.holds === 0) this.native.unref()
  }

  /** Drops what is written to it until the end of this drain or tick. */
  clearLater(writer: BlockWriter): void {
    this.stale.push(writer)
    if (!this.draining) this.schedule()
  }

  /** The connection runs in this drain's second half, or in the next tick. */
  enqueue(connection: Connection): void {
    this.ready.push(connection)
    if (!this.draining) this.schedule()
  }

  /** What is put or enqueued outside of a drain goes out once per tick. */
  schedule(): void {
    if (this.scheduled) return
    this.scheduled = true
    process.nextTick(this.tick)
  }

  accept(poll: Poll, slot: number, generation: number, server: number): void {
    const loop = this.servers.get(server)
    // Another poll may tell of what was accepted after the one that accepts has told that it does not any more.
    if (loop === undefined) new Straggler(poll, slot, generation).reset()
    else loop.accept(poll, slot, generation)
  }

  /** That one is shut down. */
  forgetServer(number: number): void {
    if (this.servers.delete(number)) this.native.forgetServer(number)
  }

  listenerClosed(id: number, cause: number): void {
    this.endListener(id, cause === 0 ? null : systemError(cause, 'accept'))
  }

  dialed(poll: Poll, slot: number, generation: number, number: number, cause: number, address: number): void {
    const dial = this.dials.get(number)
    this.dials.delete(number)
    if (cause !== 0) dial?.failed(cause, address)
    else if (dial === undefined) new Straggler(poll, slot, generation).reset()
    else dial.dialed(poll, slot, generation)
  }

  /** Another poll goes on with a dial; it may have answered already, in its own ring. */
  dialMoved(number: number, target: number, moves: number): void {
    const dial = this.dials.get(number)
    dial?.moved(this.berths[target]!, moves)
    if (dial?.poll?.dead === true && this.dials.delete(number)) dial.lost()
  }

  /** MOVED: the connection is on its way to the poll `target` from now on. */
  depart(connection: Connection, target: number): Transit {
    const key = (this.keys = (this.keys + 1) | 0)
    this.moving.set(key, connection)
    return new Transit(key, target)
  }

  /** Without a slot there, `cause` says why the connection has ended. */
  arrived(poll: Poll, slot: number, generation: number, key: number, cause: number): void {
    const connection = this.moving.get(key)
    if (cause !== 0) connection?.closedWith(cause)
    else if (connection === undefined) new Straggler(poll, slot, generation).reset()
    else connection.arrived(poll, slot, generation)
  }

  pollDied(poll: Poll): void {
    poll.dead = true
    for (const [number, dial] of this.dials) {
      if (dial.poll === poll && this.dials.delete(number)) dial.lost()
    }
    const heir = this.bequeath(poll)
    for (const connection of poll.connections) connection?.lost('ERR_NETPOLL_POLL_DIED')
    // Those that were on their way to it, or perhaps had not left yet.
    for (const connection of [...this.moving.values()])
      if (connection.extra().transit!.target === poll.index) connection.lost('ERR_NETPOLL_POLL_DIED')
    for (const [id, listener] of [...this.listeners])
      if (listener.poll === poll.index) this.endListener(id, new NetpollError('ERR_NETPOLL_POLL_DIED'))
    if (heir !== undefined) poll.salvage(heir.memory)
    this.checkResized()
    this.schedule()
  }

  /** That poll takes no records any more: another one takes those of the blocks that are lent. */
  bequeath(poll: Poll): Poll | undefined {
    const heir = this.polls.find((other) => other !== poll && !other.dead && !other.leaving)
    if (heir === undefined) return undefined
    this.chunks.rehome(poll, heir)
    for (const { memory } of this.berths) memory.bequeath(poll, heir)
    // What the thread that has ended let go of, it may have told nobody.
    this.native.wake(heir.index)
    return heir
  }

  // ---- how many polls there are

  /** Adds polls, or ends some when their connections have moved to the others. */
  resize(count: number): Promise<void> {
    const done = this.resizing.then(() => this.resizeNow(count))
    this.resizing = done.catch(() => undefined)
    return done
  }

  /** Ends a resize when the polls that are to leave have ended, or never will. */
  checkResized(): void {
    this.resized?.()
  }

  private async resizeNow(count: number): Promise<void> {
    this.hold()
    try {
      if (this.polls[0]!.dead) throw new NetpollError('ERR_NETPOLL_POLL_DIED')
      for (let index = 0; index < count; index++) this.startPoll(index)
      await this.endPolls(count)
    } finally {
      this.release()
    }
  }

  private startPoll(index: number): void {
    const known = this.berths[index]
    if (known !== undefined && !known.dead) return
    const poll = known ?? this.newPoll(index)
    let errno: number
    if (known === undefined) {
      errno = this.native.addPoll(poll.words)
      if (errno === 0) this.giveMemory(poll)
      else this.berths.pop()
    } else {
      poll.reset()
      errno = this.native.restartPoll(index)
      poll.dead = errno !== 0
    }
    if (errno !== 0) throw pollError(errno)
    this.polls[index] = poll
  }

  private endPolls(count: number): Promise<void> {
    const leaving = this.polls.slice(count).filter((poll) => !poll.dead)
    for (const poll of leaving) this.native.retirePoll(poll.index)
    return new Promise((resolve, reject) => {
      this.resized = () => {
        // Without the first poll the others have nowhere to go.
        const stuck = this.polls[0]!.dead
        // One that has died is gone only when its connections have been told.
        if (!stuck && !leaving.every((poll) => poll.hasEnded || (poll.hasDied && poll.dead))) return
        this.resized = null
        if (!stuck) this.polls.length = count
        if (stuck || leaving.some((poll) => poll.hasDied)) reject(new NetpollError('ERR_NETPOLL_POLL_DIED'))
        else resolve()
      }
      this.resized()
    })
  }

  private newPoll(index: number): Poll {
    return (this.berths[index] = new Poll(this, index, this.ringEntries, this.slots))
  }

  private giveMemory(poll: Poll): void {
    poll.memory = new Memory(this.chunks, poll, configuration.debug)
  }

  private endListener(id: number, error: NetpollError | null): void {
    const listener = this.listeners.get(id)
    this.listeners.delete(id)
    listener?.closedWith(error)
  }

  private runDrain(): void {
    this.draining = true
    const start = performance.now()
    // Partner: a poll puts its records, fences, and rings only if it can swap this word from 0 to 1.
    Atomics.store(this.control, Control.SCHEDULED, 0)
    let more = false
    let ran = 0
    try {
      for (const poll of this.polls) {
        poll.publish()
        if (poll.take(DRAIN_BUDGET)) more = true
      }
      ran = this.runReady()
    } catch (error) {
      // A fault of ours; the other connections go on all the same.
      more = true
      throw error
    } finally {
      this.draining = false
      this.endTick()
      for (const poll of this.polls) poll.finish()
      if (more) setImmediate(this.drain)
    }
    if (ran !== 0) this.learn((performance.now() - start) / ran)
  }

  private runTick(): void {
    this.scheduled = false
    this.draining = true
    try {
      this.runReady()
    } finally {
      this.draining = false
      this.endTick()
      for (const poll of this.polls) poll.publish()
      if (this.ready.length !== 0) this.schedule()
    }
  }

  private endTick(): void {
    if (this.stale.length !== 0) {
      for (const writer of this.stale) writer.clear()
      this.stale = []
    }
    // What the collector has found may be a block of a poll that setNumLoops() has ended.
    for (const { memory } of this.berths) memory.endTick()
  }

  private runReady(): number {
    const { ready } = this
    let ran = 0
    try {
      // Handlers may enqueue more while this runs.
      while (ran < ready.length) ready[ran++]!.run()
    } finally {
      if (ran === ready.length) ready.length = 0
      else ready.splice(0, ran)
    }
    return ran
  }

  private learn(millisecondsPerHandler: number): void {
    const sends = MILLISECONDS_PER_RING / millisecondsPerHandler
    this.sendsPerRing = sends >= SENDS_PER_RING ? SENDS_PER_RING : Math.max(1, Math.floor(sends))
  }

  private exit(): void {
    Atomics.store(this.control, Control.STOP, 1)
    for (const poll of this.polls) {
      poll.dead = true
      for (const connection of poll.connections) connection?.lost('ERR_NETPOLL_CONN_CLOSED')
    }
    this.native.exit()
  }
}

/** Why a poll could not be started. */
function pollError(errno: number): NetpollError {
  return systemError(errno, 'epoll_create1')
}

function openNative(options: EnvironmentOptions, drain: () => void): NativeEnvironment {
  try {
    return new binding.Environment(options, drain)
  } catch (error) {
    const { errno } = error as { errno?: number }
    throw errno === undefined ? error : pollError(errno)
  }
}

function ringEntriesOf(text: string | undefined): number {
  if (text === undefined) return RING_ENTRIES
  const entries = Number(text)
  checkInteger(entries, 'NETPOLL_RING_ENTRIES', 8, 1 << 20)
  if ((entries & (entries - 1)) !== 0) throw invalidValue('NETPOLL_RING_ENTRIES', 'a power of two', entries)
  return entries
}

function numLoopsOf(text: string | undefined): number {
  if (text === undefined) return 1
  const count = Number(text)
  numLoops(count, 'NETPOLL_NUM_LOOPS')
  return count
}

function zeroCopyOf(text: string | undefined): ZeroCopy {
  if (text === undefined) return 'off'
  zeroCopy(text, 'NETPOLL_ZERO_COPY')
  return text as ZeroCopy
}

function driverOf(text: string | undefined): Driver {
  if (text === undefined) return 'adaptive'
  driver(text, 'NETPOLL_DRIVER')
  return text as Driver
}

let current: Environment | null = null

/** The environment, opened at the first call. */
export function environment(): Environment {
  return (current ??= new Environment())
}

/** The environment if it has been opened. */
export function openEnvironment(): Environment | null {
  return current
}
