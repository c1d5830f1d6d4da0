import { NetpollError } from './errors.js'
import type { Lifecycle } from './lifecycle.js'
import { Submission } from './record.js'
import { Segment } from './segment.js'
import { State } from './state.js'
import { BlockWriter } from './writer.js'

/** A pending flushed(): resolves when the sent count has reached `target` (modulo 2^32). */
class Drain {
  constructor(
    readonly target: number,
    readonly resolve: () => void,
    readonly reject: (reason: unknown) => void,
  ) {}
}

/** The Writer of a connection: hands segments to the poll, and knows how many bytes the kernel has not taken yet. */
export class Output extends BlockWriter {
  /** flush() was false, and the kernel has not yet taken enough. */
  blocked = false
  /** Bytes ever submitted and, as last looked at, ever taken by the kernel; modulo 2^32. */
  private submitted = 0
  private sent = 0
  /** A flush() has dropped its bytes: flushed() waits for the cause. */
  private dropped = false
  private drains: Drain[] | null = null
  /** A WATCH_DRAIN for `watched` is pending. */
  private watching = false
  private watched = 0

  constructor(private readonly connection: Lifecycle) {
    super(connection.poll.memory, connection.loop.limits.maxPendingBytes)
  }

  /** Bytes submitted that the kernel has not taken. */
  get pending(): number {
    this.sent = this.connection.sent()
    return (this.submitted - this.sent) | 0
  }

  override flush(): boolean {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    const { connection } = this
    if (connection.dropsOutput()) {
      super.clear()
      this.dropped = true
      return false
    }
    this.submit()
    const { writeHighWaterMark, maxPendingBytes } = connection.loop.limits
    let pending = (this.submitted - this.sent) | 0
    if (pending > writeHighWaterMark) pending = this.pending
    this.limit = maxPendingBytes - pending
    if (pending <= writeHighWaterMark) return true
    this.blocked = true
    this.watch(this.submitted)
    return false
  }

  flushed(): Promise<void> {
    if (this.pending === 0 && !this.dropped) return Promise.resolve()
    if ((this.connection.state & State.CLOSED) !== 0) return Promise.reject(this.connection.failure())
    const target = this.dropped ? (this.submitted + 1) | 0 : this.submitted
    return new Promise((resolve, reject) => {
      ;(this.drains ??= []).push(new Drain(target, resolve, reject))
      // An earlier target is watched already; the later ones have their turn after it.
      this.watch(this.drains[0]!.target)
    })
  }

  /** A DRAINED record, which also comes when the write side has ended; true when requests may go on. */
  drained(writeEnded: boolean): boolean {
    this.watching = false
    const pending = this.pending
    this.settle()
    const wasBlocked = this.blocked
    if (pending <= this.connection.loop.limits.writeHighWaterMark) this.blocked = false
    if (this.drains !== null) this.rewatch(this.drains[0]!.target, writeEnded)
    else if (this.blocked) this.rewatch(this.submitted, writeEnded)
    return wasBlocked && !this.blocked
  }

  /** The connection is gone, of whose output the kernel took what `connection.sent()` says. */
  end(): void {
    this.sent = this.connection.sent()
    this.settle()
    this.blocked = false
    if (this.drains === null) return
    for (const drain of this.drains) drain.reject(this.connection.failure())
    this.drains = null
  }

  /** Its handlers are over: what is written from now on, flushed or not, is gone with the tick. */
  retire(): void {
    this.clear()
    this.limit = -1
  }

  /** Of room that malloc() has given, whoever fills it may not know of the end: the block goes back when nobody can. */
  override clear(): void {
    if (!this.hasRoom) return super.clear()
    for (let segment = this.head; segment !== null;) {
      const { next } = segment
      this.memory.abandon(segment.block!)
      Segment.give(segment)
      segment = next
    }
    this.empty()
  }

  protected override overflow(size: number): void {
    if (this.limit < 0) return this.connection.poll.environment.clearLater(this)
    this.limit = this.connection.loop.limits.maxPendingBytes - this.pending
    if (this.unflushed + size > this.limit) this.exhausted()
  }

  protected override exhausted(): never {
    this.connection.failed('ERR_NETPOLL_OUTPUT_LIMIT')
    throw new NetpollError('ERR_NETPOLL_OUTPUT_LIMIT')
  }

  private submit(): void {
    const { memory } = this
    let segment = this.head
    if (segment === null) return
    this.submitted = (this.submitted + this.unflushed) | 0
    this.empty()
    let submitted = true
    while (segment !== null) {
      const { next } = segment as Segment
      submitted &&= this.submitSegment(segment)
      // After its SEND in the ring, which has taken a reference of its own.
      memory.drop(segment.block!)
      Segment.give(segment)
      segment = next
    }
    if (!submitted) this.exhausted()
    this.connection.poll.sendPut()
  }

  private submitSegment({ block, start, end }: Segment): boolean {
    const { chunk, bytes, home } = block!
    if (chunk !== null) {
      const { connection } = this
      if (connection.isAt(home)) connection.put(Submission.SEND, chunk.id, start, end - start)
      // A reference for the way: the DONE that follows goes into another ring.
      else if (this.memory.native.share(chunk.id, start))
        connection.put(Submission.SEND_LENT, chunk.id, start, end - start)
      return true
    }
    const pin = this.memory.native.pin(bytes.subarray(start, end))
    if (pin >= 0) this.connection.put(Submission.SEND_PIN, pin, 0, 0)
    return pin >= 0
  }

  private watch(target: number): void {
    if (this.watching && ((this.watched - target) | 0) <= 0) return
    this.watching = true
    this.watched = target
    this.connection.put(Submission.WATCH_DRAIN, target, 0, 0)
  }

  private rewatch(target: number, writeEnded: boolean): void {
    // Then nothing more is sent, and CLOSED settles what is pending.
    if (!writeEnded) this.watch(target)
  }

  private settle(): void {
    const { drains, sent } = this
    if (drains === null) return
    let reached = 0
    while (reached < drains.length && ((drains[reached]!.target - sent) | 0) <= 0)
      drains[reached++]!.resolve()
    this.drains = reached === drains.length ? null : drains.slice(reached)
  }
}
