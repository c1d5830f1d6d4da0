import { AsyncResource } from 'node:async_hooks'
import type { Connection } from './connection.js'
import { hasOutput, shutDown } from './duplex.js'
import { callAtEnd, reportOf } from './callbacks.js'
import { causeCode, endError, NetpollError, type ErrorCode } from './errors.js'
import { Extras } from './extras.js'
import { callConnect, callPrepare, callRequest, isThenable } from './handlers.js'
import type { OnRequest, Owner, Step } from './handlers.js'
import { forgetHeldBack, holdBack } from './held_back.js'
import { Input } from './input.js'
import type { Addresses } from './native.js'
import { Output } from './output.js'
import type { Poll } from './poll.js'
import { Flag, Status, Submission, Timer } from './record.js'
import { State } from './state.js'

/**
 * What a connection goes through between the poll's records and the handlers:
 *
 * ```
 * ACCEPT: onPrepare -> [ready list] -> onConnect -> onRequest ... -> CLOSED: onDisconnect -> close callbacks
 * ```
 *
 * The records only mark what is new; run() calls the handlers, when all records of a batch have been applied.
 */
export class Lifecycle<Ctx = unknown> {
  /** Unique in this Node environment. */
  readonly id: number
  /** What onPrepare or onConnect has returned. */
  context: Ctx
  /** @internal */
  state = 0
  /** @internal */
  onRequest: OnRequest<Ctx> | undefined
  /** @internal Made at first use, as all that is null at first. */
  input: Input | null = null
  /** @internal */
  output: Output | null = null
  /** @internal The asynchronous context of its handlers. */
  scope: AsyncResource | null = null
  private extras: Extras | null = null
  /** @internal */
  idleTimeout: number
  private idleSequence = 0
  /** Why it has ended: a code of the library, or an errno. */
  private ending: ErrorCode | '' = ''
  private errno = 0
  /** @internal Of a closed connection; before that the status table knows. */
  finalRead = 0
  /** @internal */
  finalSent = 0

  /** @internal */
  constructor(
    /** @internal */
    readonly loop: Owner,
    /** @internal */
    public poll: Poll,
    /** @internal */
    public slot: number,
    /** @internal */
    public generation: number,
    onRequest: OnRequest<Ctx> | undefined,
  ) {
    this.id = poll.environment.nextId()
    this.context = undefined as Ctx
    this.onRequest = onRequest
    this.idleTimeout = loop.limits.idleTimeout
  }

  // ---- records of the poll

  /** @internal ACCEPT, DIALED */
  prepare(): void {
    this.poll.environment.hold()
    this.poll.connections[this.slot] = this.self
    this.enqueue()
    if (this.loop.onPrepare === undefined) return
    try {
      this.inScope(callPrepare)
    } catch (error) {
      this.handlerFailed(error, false)
    }
    if ((this.state & State.CLOSING) !== 0) this.state |= State.REJECTED
  }

  /** @internal DATA */
  delivered(chunk: number, offset: number, length: number): void {
    if ((this.state & State.CLOSING) !== 0) return this.deliveredLate(chunk, offset, length)
    ;(this.input ?? this.makeInput()).push(chunk, offset, length)
    this.state |= State.NEWS
    this.enqueue()
  }

  private deliveredLate(chunk: number, offset: number, length: number): void {
    const { memory } = this.poll
    this.extras?.detachment?.push(memory.bytesAt(chunk, offset, length))
    memory.refuse(chunk, offset)
  }

  /** @internal EOF */
  peerEnded(): void {
    // A FIN counts as news once: for bytes that a handler has left.
    if ((this.state & State.PEER_ENDED) === 0) this.state |= State.PEER_ENDED | State.NEWS
    if (this.input !== null) this.input.finished = true
    this.enqueue()
  }

  /** @internal CLOSED */
  closedWith(cause: number): void {
    if (cause < 0) {
      const code = causeCode(cause)
      if ((this.state & State.CLOSING) === 0) this.shut(Submission.RESET, code)
      // Also of output that was to go out before the end of a close().
      else this.ending = code
    }
    if ((this.state & State.MOVING) !== 0) this.extras!.transit!.drop(this.self)
    this.errno = Math.max(cause, 0)
    this.extras?.abandon(cause, (this.state & State.RESET) !== 0, this.failure())
    this.finalRead = this.poll.count(this.slot, Status.READ)
    this.finalSent = this.poll.count(this.slot, Status.SENT)
    this.peerEnded()
    this.state |= State.CLOSED
    this.poll.connections[this.slot] = null
    if (this.output !== null) this.output.end()
    this.extras?.resolveFreed?.()
    if ((this.state & State.UNREFED) === 0) this.poll.environment.release()
    this.loop.connectionClosed()
  }

  /** @internal DETACHED: in the place of CLOSED. */
  detached(fd: number): void {
    // A poll that has died since has taken it along.
    if (this.poll.environment.native.takeDetached(this.poll.index, fd)) this.extras!.detachment!.complete(fd)
    this.closedWith(0)
  }

  /** @internal INFO */
  informed(info: Int32Array): void {
    this.extras?.inquiries?.answer(this.poll, this.slot, info)
  }

  /** @internal The poll itself is gone. */
  lost(code: ErrorCode): void {
    this.extras?.detachment?.fail(new NetpollError(code))
    if ((this.state & State.CLOSING) === 0) this.shut(Submission.RESET, code)
    this.closedWith(0)
  }

  /** @internal MOVED: this poll reads and watches it no more, another one is to. */
  moved(target: number): void {
    const transit = (this.extra().transit = this.poll.environment.depart(this.self, target))
    this.put(Submission.MOVE_ACK, transit.key, 0, 0)
    this.state |= State.MOVING
  }

  /** @internal ARRIVED */
  arrived(poll: Poll, slot: number, generation: number): void {
    this.extras!.transit!.arrive(this.self, poll, slot, generation)
  }

  /** @internal DRAINED */
  drained(): void {
    if (this.output!.drained((this.poll.flags(this.slot) & Flag.WRITE_ENDED) !== 0)) this.letGo()
  }

  /** @internal Requests may run again, which pause() or pending output has held. */
  letGo(): void {
    if (this.input !== null && (this.state & State.BUSY) === 0) this.input.watchRest()
    this.enqueue()
  }

  /** @internal TIMEOUT */
  timedOut(which: number, sequence: number): void {
    if ((this.state & State.CLOSING) !== 0) return
    if (which === Timer.READ) {
      const held = this.isHeld() || (this.state & State.BUSY) !== 0
      if (this.input!.timedOut(sequence, held)) this.failed('ERR_NETPOLL_READ_TIMEOUT')
    } else if (sequence === this.idleSequence) this.idledOut()
  }

  // ---- handlers

  /** @internal Calls what is due. */
  run(): void {
    this.state &= ~State.QUEUED
    if (this.input !== null) this.input.progress()
    this.proceed()
  }

  /** @internal Of the owner, which stops: closes the connection now, or after what it has to do. */
  stop(): void {
    if ((this.state & (State.BUSY | State.QUEUED)) === 0) this.rest()
  }

  /** @internal What the Reader has let go may have been all that the peer's FIN was waiting for. */
  inputConsumed(): void {
    if ((this.state & State.PEER_ENDED) !== 0) this.enqueue()
  }

  /** @internal */
  enqueue(): void {
    if ((this.state & (State.QUEUED | State.FINISHED)) !== 0) return
    this.state |= State.QUEUED
    this.poll.environment.enqueue(this.self)
  }

  private proceed(): void {
    while ((this.state & (State.BUSY | State.FINISHED)) === 0) {
      if ((this.state & State.CONNECTED) === 0) this.connect()
      else if (this.requestIsDue()) {
        this.state &= ~State.NEWS
        this.start(callRequest)
      } else {
        this.rest()
        break
      }
    }
    if (this.poll.scarce && this.input !== null) this.input.settle()
    // A handler may be pending for long; the slot is not kept for it.
    if ((this.state & (State.CLOSED | State.ACKNOWLEDGED)) === State.CLOSED) {
      this.addresses()
      this.acknowledge()
    }
  }

  private connect(): void {
    this.state |= State.CONNECTED
    const onConnect = this.extras?.onConnect ?? this.loop.onConnect
    if (onConnect === undefined || (this.state & State.REJECTED) !== 0) return
    this.extra().onConnect = onConnect
    this.state |= State.CONNECTING
    this.start(callConnect)
  }

  private requestIsDue(): boolean {
    return (
      (this.state & (State.NEWS | State.CLOSING)) === State.NEWS &&
      this.input !== null &&
      this.input.unread !== 0 &&
      this.onRequest !== undefined &&
      !this.isHeld()
    )
  }

  /** @internal What is unread cannot be used before more has come. */
  wantsMore(): boolean {
    const { state, input } = this
    if (input === null || input.unread === 0 || (state & (State.CLOSING | State.PEER_ENDED)) !== 0)
      return false
    return input.wait !== null || ((state & (State.BUSY | State.NEWS)) === 0 && !this.isHeld())
  }

  /** No request may run: paused, or the last flush() was false and has not drained. */
  private isHeld(): boolean {
    return (this.state & State.PAUSED) !== 0 || (this.output !== null && this.output.blocked)
  }

  /** Nothing is due and no handler runs. */
  private rest(): void {
    if ((this.state & State.CLOSED) !== 0) return this.waitsForResume() ? holdBack(this.self) : this.finish()
    if ((this.state & State.CLOSING) !== 0) return
    if (this.loop.stopping) return shutDown(this.self)
    if ((this.state & State.PEER_ENDED) === 0 || !this.inputIsSpent()) return
    if (this.onRequest !== undefined && this.input !== null) this.input.drop()
    if (this.loop.limits.allowHalfOpen || (this.state & (State.ENDED | State.ANSWERED)) !== 0) return
    this.put(Submission.END, 0, 0, 0)
    this.state |= State.ANSWERED
  }

  /** Bytes have come before the end that onRequest has not seen. */
  private waitsForResume(): boolean {
    const { state, input, loop } = this
    if ((state & (State.PAUSED | State.NEWS | State.CLOSING)) !== (State.PAUSED | State.NEWS)) return false
    return this.onRequest !== undefined && input !== null && input.unread !== 0 && !loop.stopping
  }

  /** After the peer's FIN: nobody will want what is unread. */
  private inputIsSpent(): boolean {
    const { input, state } = this
    if (input === null) return true
    if (this.onRequest !== undefined) return (state & State.NEWS) === 0 || input.unread === 0
    return input.unread === 0 && input.wait === null && (state & (State.ITERATING | State.STREAMED)) === 0
  }

  /** Calls onConnect or onRequest. */
  private start(step: Step): void {
    this.state |= State.BUSY
    let result: unknown
    let pending = false
    try {
      result = this.inScope(step)
      pending = result !== undefined && isThenable(result)
    } catch (error) {
      return this.handlerFailed(error, false)
    }
    if (!pending) return this.handlerEnded(result)
    const extras = this.extra()
    extras.fulfilled ??= (value) => {
      this.handlerEnded(value)
      this.proceed()
    }
    extras.rejected ??= (error) => {
      this.handlerFailed(error, true)
      this.proceed()
    }
    void Promise.resolve(result).then(extras.fulfilled, extras.rejected)
  }

  private handlerEnded(value: unknown): void {
    const { state, input } = this
    this.state &= ~(State.BUSY | State.CONNECTING | State.IDLE_DUE)
    if ((state & State.CONNECTING) !== 0 && value !== undefined) this.context = value as Ctx
    if ((state & State.IDLE_DUE) !== 0) this.armIdle()
    if (input === null) return
    if ((state & State.CLOSING) !== 0) input.endViews()
    else if (input.handlerEnded() && input.unread !== 0) this.state |= State.NEWS
  }

  private handlerFailed(error: unknown, rejected: boolean): void {
    this.state &= ~(State.BUSY | State.CONNECTING)
    const ended = !this.isActive()
    if ((this.state & State.CLOSING) === 0) this.shut(Submission.CLOSE, 'ERR_NETPOLL_CONN_CLOSED')
    if (this.input !== null) this.input.endViews()
    this.report(error, rejected, ended)
  }

  /** @internal To onError, or else where the process sees it, unless a peer could bring that about. */
  report(error: unknown, rejected: boolean, ended: boolean): void {
    reportOf(this.self, error, rejected, ended)
  }

  private finish(): void {
    this.state |= State.FINISHED
    forgetHeldBack(this.self)
    const { extras, input } = this
    callAtEnd(this.self, extras)
    if (input !== null) {
      if (this.onRequest !== undefined) input.drop()
      input.bequeath()
    }
    if (this.output !== null) this.output.retire()
    if ((this.state & State.ACKNOWLEDGED) === 0) this.acknowledge()
    extras?.resolveClosed?.()
    this.loop.connectionFinished()
  }

  /** @internal */
  inScope(step: Step): unknown {
    return this.asyncScope().runInAsyncScope(step, undefined, this.self)
  }

  /** @internal */
  asyncScope(): AsyncResource {
    return (this.scope ??= new AsyncResource('NETPOLL'))
  }

  // ---- the end

  /** @internal The program's own end: that of its views too, which may be in use when others end it. */
  leave(kind: Submission.CLOSE | Submission.RESET | Submission.DETACH, drop = 0): void {
    this.shut(kind, 'ERR_NETPOLL_CONN_CLOSED', drop)
    // The views of a handler that still runs stay until its end.
    if (this.input !== null && (this.state & State.BUSY) === 0) this.input.endViews()
  }

  /** @internal Of whoever ends it. What the kernel has not taken yet still goes out, except for RESET; views stay. */
  shut(kind: Submission.CLOSE | Submission.RESET | Submission.DETACH, code: ErrorCode, drop = 0): void {
    this.put(kind, drop, 0, 0)
    this.state |= State.CLOSING | (kind === Submission.RESET ? State.RESET : 0)
    this.ending = code
    // One that was held back does not wait for resume() any more.
    if ((this.state & State.CLOSED) !== 0) this.enqueue()
    if (this.output !== null) this.output.refuse(code)
    this.extras?.inquiries?.fail(this.failure())
    const { input } = this
    if (input === null) return
    input.refuse(code)
    input.rejectWait(this.failure())
  }

  /** @internal A limit was passed. */
  failed(code: ErrorCode): void {
    if ((this.state & (State.CLOSING | State.CLOSED)) !== 0) return
    this.shut(code === 'ERR_NETPOLL_OUTPUT_LIMIT' ? Submission.RESET : Submission.CLOSE, code)
  }

  /** @internal Past the shutdown's timeout; true when that cuts something. */
  cut(): boolean {
    if ((this.state & State.BUSY) === 0 && !hasOutput(this.self)) return false
    if ((this.state & State.CLOSING) === 0) this.shut(Submission.RESET, 'ERR_NETPOLL_CONN_CLOSED')
    else this.put(Submission.RESET, 0, 0, 0)
    this.state |= State.RESET
    return true
  }

  /** @internal Why waits, flushed() and methods fail. */
  failure(): NetpollError {
    if (this.ending !== '') return new NetpollError(this.ending)
    if (this.errno !== 0) return endError(this.errno)
    return new NetpollError('ERR_NETPOLL_EOF')
  }

  /** @internal Throws after our own close or a limit. */
  refuse(): void {
    if ((this.state & State.CLOSING) !== 0) throw new NetpollError(this.ending as ErrorCode)
  }

  /** @internal The peer has finished sending, and all of it has been delivered. */
  hasEnded(): boolean {
    return (this.state & State.PEER_ENDED) !== 0
  }

  /** @internal What is flushed can no longer reach the peer. */
  dropsOutput(): boolean {
    return this.hasLostOutput() || (this.poll.flags(this.slot) & Flag.WRITE_ENDED) !== 0
  }

  /** @internal */
  hasLostOutput(): boolean {
    return (this.state & (State.CLOSED | State.ANSWERED)) !== 0
  }

  /** Neither FIN, RST nor a close has been seen. It is true also in the midst of a handler, and needs no read. */
  isActive(): boolean {
    const gone = State.PEER_ENDED | State.ENDED | State.CLOSING | State.CLOSED
    return (this.state & gone) === 0 && this.poll.freshFlags(this.slot) === 0
  }

  // ---- parts and records

  /** @internal */
  makeInput(): Input {
    const input = (this.input = new Input(this.self))
    if ((this.state & State.CLOSING) !== 0) input.refuse(this.ending as ErrorCode)
    return input
  }

  /** @internal */
  makeOutput(): Output {
    const output = (this.output = new Output(this.self))
    if ((this.state & State.CLOSING) !== 0) output.refuse(this.ending as ErrorCode)
    else if ((this.state & State.ENDED) !== 0) output.refuse('ERR_NETPOLL_CONN_CLOSED')
    if ((this.state & State.FINISHED) !== 0) output.retire()
    return output
  }

  /** @internal */
  extra(): Extras {
    return (this.extras ??= new Extras())
  }

  /** @internal null when they were not asked for in time. */
  addresses(): Addresses | null {
    const known = this.extras?.addresses
    if (known || (this.state & State.ACKNOWLEDGED) !== 0 || this.poll.dead) return known ?? null
    return (this.extra().addresses = this.poll.environment.native.addresses(this.poll.index, this.slot))
  }

  /** @internal Low 32 bits of the bytes that the kernel has taken. */
  sent(): number {
    return (this.state & State.CLOSED) !== 0 ? this.finalSent | 0 : this.poll.low(this.slot, Status.SENT)
  }

  /** @internal */
  put(kind: Submission, a: number, b: number, c: number): void {
    if ((this.state & (State.CLOSED | State.MOVING)) === 0)
      this.poll.put(kind, this.slot, this.generation, a, b, c)
    else if ((this.state & State.CLOSED) === 0) this.extras!.transit!.keep(kind, a, b, c)
  }

  /** @internal Whether a record for it goes into the ring of that poll now. */
  isAt(poll: Poll | null): boolean {
    return this.poll === poll && (this.state & State.MOVING) === 0
  }

  /** @internal */
  armIdle(): void {
    this.idleSequence = (this.idleSequence + 1) | 0
    this.put(Submission.TIMER, Timer.IDLE, this.idleTimeout, this.idleSequence)
  }

  private idledOut(): void {
    const undelivered =
      this.poll.low(this.slot, Status.READ) !== (this.input === null ? 0 : this.input.received)
    if ((this.state & State.BUSY) !== 0) this.state |= State.IDLE_DUE
    else if (undelivered || hasOutput(this.self)) this.armIdle()
    else this.failed('ERR_NETPOLL_IDLE_TIMEOUT')
  }

  private acknowledge(): void {
    this.state |= State.ACKNOWLEDGED
    this.poll.put(Submission.ACK, this.slot, this.generation, 0, 0, 0)
  }

  private get self(): Connection {
    return this as unknown as Connection
  }
}
