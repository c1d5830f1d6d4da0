import { checkOptions, integer, invalidType, MAX_SIZE } from './arguments.js'
import { Connection } from './connection.js'
import { NetpollError, type ErrorCode } from './errors.js'
import { LinkBuffer } from './link_buffer.js'
import type { Output } from './output.js'
import { Reader } from './reader.js'
import { BlockWriter, type Writer } from './writer.js'

type Contents = Writer | Reader | Uint8Array | string

/**
 * What can be added: bytes, or a function that makes them when the queue is drained (undefined: it has none). A
 * LinkBuffer, a Writer or a Reader is emptied without a copy, at once.
 */
export type ShardItem = Contents | (() => Contents | undefined)

export interface ShardQueueOptions {
  /**
   * From 1 on. In netpoll: the lists over which items are spread, so that threads do not wait for each other. Here all
   * producers run on one thread and share one list, whatever the number, and that keeps the order of their add()s.
   */
  shards?: number
}

const OPTIONS = { shards: integer(1, MAX_SIZE) }

/** What a function counts as before it is called, so that those that wait are bounded too. */
const GETTER_SIZE = 64

/**
 * Many producers, one connection: what they add in the same tick is sent together with one flush. While more than
 * writeHighWaterMark is pending, items wait, and then go together as well. What waits and what is pending are
 * bounded by the connection's maxPendingBytes.
 *
 * It sends on a connection that others write to as well, if they flush before they await anything.
 */
export class ShardQueue {
  /** What was added behind the last function. */
  private waiting: Batch
  /** All that comes before it; each function counts as GETTER_SIZE in `aheadSize`. */
  private ahead: (Batch | Getter)[] = []
  private aheadSize = 0
  /** A drain will come: in the next tick, or when the kernel has taken what is pending. */
  private due = false
  /** Why items were dropped. */
  private failure: unknown = null
  private outcome: Promise<void> | null = null
  private settle: (() => void) | null = null

  /** Throws Node's argument errors for what is no connection, or no option. */
  constructor(
    private readonly connection: Connection,
    options?: ShardQueueOptions,
  ) {
    if (!(connection instanceof Connection)) {
      throw invalidType('connection', 'a Connection', connection)
    }
    checkOptions(options, OPTIONS)
    this.waiting = new Batch(this)
  }

  /**
   * Sends each item whole, behind all that were added before. A Buffer of 16 KiB or more is not copied: do not change
   * it until it was sent. Throws ERR_NETPOLL_CONN_CLOSED after close() of the queue or of the connection, and
   * ERR_NETPOLL_OUTPUT_LIMIT, which resets the connection, when too much waits. After the peer has ended the
   * connection, items are dropped. A function that throws is told to the connection's onError, or is uncaught without
   * one; what others have added goes on.
   */
  add(...items: ShardItem[]): void {
    if (this.outcome !== null) throw new NetpollError('ERR_NETPOLL_CONN_CLOSED', 'The queue is closed')
    this.refuse()
    for (const item of items) if (typeof item !== 'function') checkBytes(item, 'item')
    this.schedule()
    for (const item of items) {
      if (typeof item === 'function') this.addGetter(item)
      else this.waiting.take(item)
    }
  }

  /**
   * Takes no more items. Resolves when the kernel has taken all that was added; rejects with the cause when the
   * connection has ended first. The connection stays open. A second call shares the first one's outcome.
   */
  close(): Promise<void> {
    this.outcome ??= new Promise((resolve, reject) => {
      this.settle = () => (this.failure === null ? resolve() : reject(this.failure))
      if (this.failure !== null) this.settle()
      else this.schedule()
    })
    return this.outcome
  }

  /** @internal Bytes that may be added to what `waiting` holds. */
  get room(): number {
    // What an ended connection has not sent is pending for ever, but not kept.
    const pending = this.failure === null ? this.output.pending : 0
    return this.connection.loop.limits.maxPendingBytes - pending - this.aheadSize
  }

  /** @internal */
  get memory(): BlockWriter['memory'] {
    return this.connection.poll.environment.memory
  }

  /** @internal */
  exhausted(): never {
    const code: ErrorCode = 'ERR_NETPOLL_OUTPUT_LIMIT'
    this.connection.failed(code)
    throw new NetpollError(code)
  }

  private get output(): Output {
    return this.connection.output ?? this.connection.makeOutput()
  }

  private addGetter(getter: Getter): void {
    const { waiting } = this
    if (waiting.unflushed + GETTER_SIZE > this.room) this.exhausted()
    if (waiting.unflushed !== 0) {
      this.ahead.push(waiting)
      this.aheadSize += waiting.unflushed
      this.waiting = new Batch(this)
    }
    this.ahead.push(getter)
    this.aheadSize += GETTER_SIZE
  }

  private schedule(): void {
    if (this.due) return
    this.due = true
    process.nextTick(this.drain)
  }

  private readonly drain = (): void => {
    const { ahead, waiting } = this
    // What is added from now on, by the functions for instance, is for the next drain.
    this.renew()
    const all = ahead.length === 0 ? waiting : new Batch(this)
    try {
      if (this.failure !== null) throw this.failure
      this.collect(ahead, all)
      if (all !== waiting) all.append(waiting)
      this.proceed(this.send(all))
    } catch (error) {
      dropAll(ahead)
      all.clear()
      waiting.clear()
      this.fail(error)
    }
  }

  private collect(entries: (Batch | Getter)[], all: Batch): void {
    for (const entry of entries) {
      this.refuse()
      if (typeof entry === 'function') this.call(entry, all)
      else all.append(entry)
    }
  }

  private call(getter: Getter, all: Batch): void {
    let bytes: Contents | undefined
    try {
      bytes = getter()
      if (bytes === undefined) return
      checkBytes(bytes, 'item()')
      all.take(bytes)
    } catch (error) {
      if (bytes instanceof BlockWriter || bytes instanceof LinkBuffer) bytes.clear()
      this.connection.report(error, false, !this.connection.isActive())
    }
  }

  /** Whether more may follow at once. */
  private send(all: Batch): boolean {
    if (all.unflushed === 0) return true
    const { output } = this
    output.append(all)
    return output.flush()
  }

  private proceed(atOnce: boolean): void {
    this.due = false
    if (!atOnce || this.outcome !== null) {
      this.due = true
      this.connection.flushed().then(this.taken, this.fail)
    } else if (!this.isEmpty()) this.schedule()
  }

  /** The kernel has taken all that was flushed. */
  private readonly taken = (): void => {
    if (!this.isEmpty()) return this.drain()
    this.due = false
    if (this.settle !== null) this.settle()
  }

  private readonly fail = (error: unknown): void => {
    this.due = false
    this.failure = error
    dropAll(this.ahead)
    this.waiting.clear()
    this.renew()
    if (this.settle !== null) this.settle()
  }

  private renew(): void {
    this.ahead = []
    this.aheadSize = 0
    this.waiting = new Batch(this)
  }

  private refuse(): void {
    const { refusal } = this.output
    if (refusal !== '') throw new NetpollError(refusal)
  }

  private isEmpty(): boolean {
    return this.waiting.unflushed === 0 && this.ahead.length === 0
  }
}

type Getter = () => Contents | undefined

/** Items that wait, already as they will be sent. */
class Batch extends BlockWriter {
  constructor(private readonly queue: ShardQueue) {
    super(queue.memory, 0)
  }

  take(bytes: Contents): void {
    if (typeof bytes === 'string') this.writeString(bytes)
    else if (bytes instanceof Uint8Array) this.writeBinary(bytes)
    else this.append(bytes)
  }

  override flush(): boolean {
    return true
  }

  protected override overflow(size: number): void {
    this.limit = this.queue.room
    if (this.unflushed + size > this.limit) this.exhausted()
  }

  protected override exhausted(): never {
    this.queue.exhausted()
  }
}

function dropAll(entries: (Batch | Getter)[]): void {
  for (const entry of entries) if (typeof entry !== 'function') entry.clear()
}

function checkBytes(value: unknown, name: string): void {
  if (typeof value === 'string' || value instanceof Uint8Array) return
  if (value instanceof BlockWriter || value instanceof Reader) return
  throw invalidType(name, 'a LinkBuffer, a Uint8Array, a string or a function', value)
}
