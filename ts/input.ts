import { NetpollError } from './errors.js'
import { Estate } from './estate.js'
import type { Lifecycle } from './lifecycle.js'
import { foreignBlock } from './memory.js'
import { Submission, Timer } from './record.js'
import { Segment } from './segment.js'
import { WaitingReader } from './wait.js'

/** Unread bytes up to this many move to a block of the connection, so that the poll's shared one can go back. */
const OWN_BLOCK = 4096

/** Handlers that may hand the same bytes on to one another, before it is taken for a spin. */
const MAX_HOPS = 16

/** The Reader of a connection: what the poll delivers, the waits, and the credit that lets the poll read on. */
export class Input extends WaitingReader {
  readTimeout: number
  /** The poll stops reading while delivered - credited >= mark. */
  private mark: number
  /** `consumed` as the poll knows it. */
  private credited = 0
  /** `consumed` at the end of the last handler. */
  private consumedBefore = 0
  /** Of the last read timer; a timer that comes with another one is stale. */
  private sequence = 0
  /** The read timer runs for the bytes that a handler has left, and was armed when `consumed` was `stalledAt`. */
  private stalled = false
  private stalledAt = 0
  /** What the poll was last told of wantsMore(). */
  private wanted = false
  /** Handlers that others have set since `consumed` + `received` is `hopsAt`. */
  private hops = 0
  private hopsAt = 0

  constructor(private readonly connection: Lifecycle) {
    super(connection.poll.memory)
    this.finished = connection.hasEnded()
    this.readTimeout = connection.loop.limits.readTimeout
    this.mark = connection.loop.limits.readHighWaterMark
  }

  override release(): void {
    this.endViews()
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    this.credit()
    if (this.connection.poll.scarce) this.settle()
    this.connection.inputConsumed()
  }

  protected override emptied(): void {
    if (this.finished) this.connection.inputConsumed()
  }

  /**
   * A Duplex takes what comes, in the place of waits and of the read timeout: it is told of news, of our own end or that
   * of a limit, and of its timer. No other Input is ever asked whether there is one.
   */
  giveTo(news: () => void, failed: (reason: unknown) => void, timerFired: () => false): void {
    this.isTaken = true
    this.progress = news
    this.rejectWait = failed
    this.timedOut = timerFired
  }

  /** Bytes ever delivered, modulo 2^32. */
  get received(): number {
    return (this.consumed + this.unread) | 0
  }

  /** A DATA record: the range is lent. */
  push(chunk: number, offset: number, length: number): void {
    const { memory, tail } = this
    const block = memory.lend(chunk, offset)
    if (tail === null) {
      block.refs++
      this.head = this.tail = Segment.take(block, offset, offset + length)
    } else if (tail.end === offset && tail.block === block) {
      tail.end += length
    } else if (length <= tail.limit - tail.end) {
      block.bytes.copy(tail.block!.bytes, tail.end, offset, offset + length)
      tail.end += length
      if (block.refs === 0) memory.giveBack(block)
    } else {
      block.refs++
      this.tail = tail.next = Segment.take(block, offset, offset + length)
    }
    this.unread += length
  }

  /** The end of a handler; true when something has been consumed since the last one. */
  handlerEnded(): boolean {
    const consumed = this.consumed !== this.consumedBefore
    this.consumedBefore = this.consumed
    this.endViews()
    if (this.unread !== 0) this.compact()
    const { readHighWaterMark } = this.connection.loop.limits
    if (this.unread >= this.mark && !consumed) this.widen()
    else if (this.mark > readHighWaterMark && this.unread < readHighWaterMark) this.grant(readHighWaterMark)
    else this.credit()
    this.watchRest()
    return consumed
  }

  /** A handler has set another one; false when too many did since something was consumed or came. */
  hop(): boolean {
    const progress = (this.consumed + this.received) | 0
    if (progress !== this.hopsAt) this.hops = 0
    this.hopsAt = progress
    return ++this.hops <= MAX_HOPS
  }

  /** Gives the bytes that a handler has left, or that pause() has held back, the read timeout to see progress. */
  watchRest(): void {
    if (this.unread === 0 || this.readTimeout === 0 || this.isTaken) this.stalled = false
    else if (!this.stalled || this.stalledAt !== this.consumed) {
      this.stalled = true
      this.stalledAt = this.consumed
      this.armTimer(this.readTimeout)
    }
  }

  /** A read timer has fired; true when it ends the connection. */
  timedOut(sequence: number, busy: boolean): boolean {
    if (sequence !== this.sequence) return false
    if (this.wait !== null) {
      this.rejectWait(new NetpollError('ERR_NETPOLL_READ_TIMEOUT'))
      return false
    }
    const { stalled } = this
    // A handler that runs may still consume; its end arms the timer again.
    this.stalled = false
    return stalled && !busy && this.stalledAt === this.consumed
  }

  /** Tells the poll exactly how much is unread, and whether more must come; it asks for that while memory is scarce. */
  settle(): void {
    if (this.wanted !== this.isWanted() || this.consumed !== this.credited) this.grant(this.mark)
  }

  /** Nobody will want what is unread; views of it may be out. */
  drop(): void {
    if (this.unread !== 0) this.skip(this.unread)
  }

  /**
   * The connection is gone: what is unread stays readable, but no block stays out for it, and none for views that are
   * forgotten.
   */
  bequeath(): void {
    if (this.unread !== 0) this.rescue()
    if (this.viewed) this.leaveTo(new Estate(this.memory, null))
  }

  private rescue(): void {
    const size = this.unread
    const block = foreignBlock(Buffer.allocUnsafeSlow(size))
    this.copyTo(block.bytes, 0, size)
    block.refs++
    this.replace(Segment.take(block, 0, size), size)
  }

  /** Also the consumer's: it fires once, and the last one armed holds. */
  armTimer(ms: number): void {
    this.sequence = (this.sequence + 1) | 0
    this.connection.put(Submission.TIMER, Timer.READ, ms, this.sequence)
  }

  protected override get longest(): number {
    return this.connection.loop.limits.maxReadBytes
  }

  protected override failure(): NetpollError {
    this.connection.inputConsumed()
    return this.connection.failure()
  }

  protected override began(size: number): void {
    if (this.unread !== 0 && !this.viewed) this.compact()
    this.lacking(size)
    if (this.connection.poll.scarce) this.settle()
    if (this.wait === null) return
    this.stalled = false
    if (this.readTimeout !== 0) this.armTimer(this.readTimeout)
    // A former wait's timer may still run.
    else this.sequence = (this.sequence + 1) | 0
  }

  /** Sees to it that the poll reads on until a wait of `size` bytes (0 = unknown) can be satisfied. */
  protected override lacking(size: number): void {
    const mark = Math.max(size, this.connection.loop.limits.readHighWaterMark)
    const uncredited = (this.consumed - this.credited) | 0
    if (size !== 0) {
      if (mark !== this.mark || uncredited + size > mark) this.grant(mark)
    } else if (this.unread >= this.mark) this.widen()
    else if (uncredited + this.unread >= this.mark) this.grant(this.mark)
  }

  /** Lets the poll read on, twice as far, for a message that is longer than the mark. */
  private widen(): void {
    const { maxReadBytes } = this.connection.loop.limits
    if (this.unread >= maxReadBytes) this.connection.failed('ERR_NETPOLL_INPUT_LIMIT')
    else this.grant(Math.min(this.unread * 2, maxReadBytes))
  }

  private credit(): void {
    const uncredited = (this.consumed - this.credited) | 0
    if (uncredited >= this.mark >>> 2 || (uncredited > 0 && uncredited + this.unread >= this.mark))
      this.grant(this.mark)
  }

  private grant(mark: number): void {
    this.wanted = this.isWanted()
    const uncredited = (this.consumed - this.credited) | 0
    this.connection.put(Submission.INPUT, uncredited, mark, this.wanted ? 1 : 0)
    this.credited = this.consumed
    this.mark = mark
  }

  private isWanted(): boolean {
    return this.connection.poll.scarce && this.connection.wantsMore()
  }

  /** Moves a few unread bytes to a block of the connection. */
  private compact(): void {
    const size = this.unread
    if (size > OWN_BLOCK || (this.head === this.tail && this.head!.limit !== 0)) return
    const block = this.memory.alloc(OWN_BLOCK)
    if (block === null) return
    const own = Segment.take(block, block.start, block.start + size)
    own.limit = block.start + OWN_BLOCK
    block.refs++
    this.copyTo(block.bytes, block.start, size)
    this.replace(own, size)
  }
}
