import type { Connection } from './connection.js'
import { checkInteger, invalidValue } from './arguments.js'
import { configuration } from './configuration.js'
import { NetpollError, systemError } from './errors.js'
import { Memory } from './memory.js'
import { loadBinding, type NativeEnvironment } from './native.js'
import { Poll } from './poll.js'
import { Control } from './record.js'

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
  closedWith(error: NetpollError | null): void
}

/** Who waits for a dial: exactly one of these is called, once. */
export interface PendingDial {
  readonly poll: Poll | null
  dialed(poll: Poll, slot: number, generation: number): void
  /** `cause` and `address` are those of the DIALED record. */
  failed(cause: number, address: number): void
  /** The poll is gone. */
  lost(): void
}

/** This Node environment (the main thread or a worker): its polls, its memory, and dispatch. */
export class Environment {
  readonly native: NativeEnvironment
  readonly memory: Memory
  readonly polls: Poll[]
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
  private ids = 0
  private holds = 0
  private scheduled = false
  private readonly tick = () => this.runTick()
  private readonly drain = () => this.runDrain()

  constructor() {
    configuration.inUse = true
    const ringEntries = ringEntriesOf(process.env.NETPOLL_RING_ENTRIES)
    const slots = binding.slotLimit()
    this.polls = [new Poll(this, 0, ringEntries, slots)]
    const options = {
      control: this.control,
      polls: this.polls.map((poll) => poll.words),
      ringEntries,
      slots,
      maxMemory: configuration.maxMemory,
      // What a runtime without libuv gets, for tests of that.
      libuv: process.env.NETPOLL_WITHOUT_LIBUV !== '1',
    }
    this.native = new binding.Environment(options, this.drain)
    this.memory = new Memory(this.native, this.polls[0]!, configuration.debug)
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
    this.servers.get(server)!.accept(poll, slot, generation)
  }

  listenerClosed(id: number, cause: number): void {
    this.endListener(id, cause === 0 ? null : systemError(cause, 'accept'))
  }

  dialed(poll: Poll, slot: number, generation: number, number: number, cause: number, address: number): void {
    const dial = this.dials.get(number)!
    this.dials.delete(number)
    if (cause === 0) dial.dialed(poll, slot, generation)
    else dial.failed(cause, address)
  }

  pollDied(poll: Poll): void {
    poll.dead = true
    for (const [number, dial] of this.dials) {
      if (dial.poll === poll && this.dials.delete(number)) dial.lost()
    }
    for (const connection of poll.connections) connection?.lost('ERR_NETPOLL_POLL_DIED')
    for (const id of [...this.listeners.keys()])
      this.endListener(id, new NetpollError('ERR_NETPOLL_POLL_DIED'))
    this.schedule()
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
      this.memory.endTick()
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
      this.memory.endTick()
      for (const poll of this.polls) poll.publish()
      if (this.ready.length !== 0) this.schedule()
    }
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

function ringEntriesOf(text: string | undefined): number {
  if (text === undefined) return RING_ENTRIES
  const entries = Number(text)
  checkInteger(entries, 'NETPOLL_RING_ENTRIES', 8, 1 << 20)
  if ((entries & (entries - 1)) !== 0) throw invalidValue('NETPOLL_RING_ENTRIES', 'a power of two', entries)
  return entries
}

const binding = loadBinding()

let current: Environment | null = null

/** The environment, opened at the first call. */
export function environment(): Environment {
  return (current ??= new Environment())
}

/** The environment if it has been opened. */
export function openEnvironment(): Environment | null {
  return current
}
