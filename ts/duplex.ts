import { Duplex } from 'node:stream'
import { callback as checkCallback, invalidType, MAX_SIZE, outOfRange } from './arguments.js'
import type { Connection } from './connection.js'
import { NetpollError, uncaught } from './errors.js'
import type { Input } from './input.js'
import type { Output } from './output.js'
import { Submission } from './record.js'
import { State } from './state.js'
import { COPY, type Callback } from './streams.js'

/** What a Duplex is given to write. */
interface Chunk {
  chunk: Buffer | string
  encoding: BufferEncoding
}

const NONE: readonly Chunk[] = []

/** Bytes from which on memory is sent where it lies: to hear that it has been costs more than to copy less. */
const COPY_LIMIT = 32 << 10

/** Units of a string that is written into a block as it is; a longer one becomes a Buffer first. */
const SHORT_STRING = 4 << 10

/**
 * A net.Socket look-alike over a connection: see connection.toDuplex(). What is read are copies. The callback of a
 * write comes when its bytes are no longer needed, or when the kernel has taken all as long as flush() is false;
 * 'finish' when the kernel has taken all, and the FIN is on its way. There is no `_handle`, on which Node would rely.
 *
 * What is private is in # fields, for the users of a socket hang properties of their own on it.
 */
export class ConnectionDuplex extends Duplex {
  readonly connecting = false
  readonly pending = false
  /** What setTimeout() was given last. */
  timeout: number | undefined = undefined
  readonly #connection: Connection
  readonly #input: Input
  readonly #output: Output
  /** The stream wants what comes. */
  #wanted = false
  #ended = false
  #stopping = false
  /** Memory of a caller is being sent. */
  #lent = false
  /** When something was last read or written, and when the poll's timer fires (Infinity: it does not). */
  #active = 0
  #due = Infinity
  /** As of the last look at the time. */
  #sent = 0
  /** 'timeout' has come, and nothing was read or written since. */
  #quiet = false
  /** What to do when the descriptor is closed. */
  #onClosed: (() => void) | null = null
  /** Listeners run in the connection's asynchronous context. */
  readonly #pullInScope = () => this.#pull()
  readonly #timeoutInScope = () => void this.emit('timeout')

  /** @internal */
  constructor(connection: Connection, input: Input) {
    // Without emitClose 'close' comes from here: when the descriptor is closed, and with an argument.
    super({ allowHalfOpen: connection.loop.limits.allowHalfOpen, decodeStrings: false, emitClose: false })
    duplexes.set(connection, this)
    this.#connection = connection
    this.#input = input
    this.#output = connection.output ?? connection.makeOutput()
    input.giveTo(
      () => this.#news(),
      (reason) => this.#failed(reason as NetpollError),
      () => this.#timerFired(),
    )
    // As in net: it sees the peer's end even if nobody reads.
    this.read(0)
  }

  // ---- what net.Socket has besides a Duplex

  get remoteAddress(): string | undefined {
    return this.#connection.remoteAddress
  }
  get remotePort(): number | undefined {
    return this.#connection.remotePort
  }
  get remoteFamily(): string | undefined {
    return this.#connection.remoteFamily
  }
  get localAddress(): string | undefined {
    return this.#connection.localAddress
  }
  get localPort(): number | undefined {
    return this.#connection.localPort
  }
  get localFamily(): string | undefined {
    return this.#connection.localFamily
  }

  /** Bytes taken from the kernel. */
  get bytesRead(): number {
    return this.#connection.bytesRead
  }

  /** Bytes that the kernel has taken. */
  get bytesWritten(): number {
    return this.#connection.bytesWritten
  }

  get readyState(): 'open' | 'readOnly' | 'writeOnly' | 'closed' {
    if (this.readable) return this.writable ? 'open' : 'readOnly'
    return this.writable ? 'writeOnly' : 'closed'
  }

  /** The local end; empty for a unix socket. */
  address(): { address?: string; family?: string; port?: number } {
    const { localAddress: address, localFamily: family, localPort: port } = this
    return address === undefined ? {} : { address, family: family!, port: port! }
  }

  setNoDelay(noDelay = true): this {
    if (this.#isOpen) this.#connection.setNoDelay(Boolean(noDelay))
    return this
  }

  setKeepAlive(enable = false, initialDelay = 0): this {
    if (this.#isOpen)
      this.#connection.setKeepAlive(Boolean(enable), Math.max(0, Math.trunc(initialDelay) || 0))
    return this
  }

  /** Emits 'timeout', and does no more, after `ms` in which nothing was read, written, or taken by the kernel. 0 = never. */
  setTimeout(ms: number, callback?: () => void): this {
    if (typeof ms !== 'number') throw invalidType('msecs', 'a number', ms)
    if (!(ms >= 0 && ms < Infinity)) throw outOfRange('msecs', 'a non-negative finite number', ms)
    if (callback !== undefined) checkCallback(callback, 'callback')
    if (this.destroyed) return this
    this.timeout = ms
    this.#quiet = false
    if (ms === 0) {
      if (callback !== undefined) this.removeListener('timeout', callback)
      return this
    }
    if (callback !== undefined) this.once('timeout', callback)
    this.#active = performance.now()
    this.#sent = this.bytesWritten
    this.#arm(ms)
    return this
  }

  ref(): this {
    this.#connection.ref()
    return this
  }

  unref(): this {
    this.#connection.unref()
    return this
  }

  /** For clients that connect the socket they were given (pg): it is connected, and says so. */
  connect(...options: unknown[]): this {
    const listener = options.at(-1)
    if (typeof listener === 'function') this.once('connect', listener as () => void)
    process.nextTick(() => {
      if (!this.destroyed) this.emit('connect')
      if (!this.destroyed) this.emit('ready')
    })
    return this
  }

  /** end(), and destroy() when all was taken. */
  destroySoon(): void {
    if (this.writable) this.end()
    if (this.writableFinished) this.destroy()
    else this.once('finish', () => this.destroy())
  }

  /** Drops all output, and sends a RST. */
  resetAndDestroy(): this {
    this.#connection.reset()
    return this.destroy()
  }

  // ---- of the connection

  /** @internal The loop shuts down. */
  stop(): void {
    if (this.#stopping) return
    this.#stopping = true
    process.nextTick(() => this.destroySoon())
  }

  #news(): void {
    const { state } = this.#connection
    if ((state & State.CLOSED) !== 0 && this.#onClosed !== null) this.#onClosed()
    // One that is full is not told of the peer's end either, for destroy() would drop what it holds.
    else if (this.#wanted) this.#call(this.#pullInScope)
  }

  #failed(reason: NetpollError): void {
    // Our own end is no error, as it is none of a socket that is destroyed.
    this.destroy(reason.code === 'ERR_NETPOLL_CONN_CLOSED' ? undefined : reason)
  }

  #timerFired(): false {
    this.#due = Infinity
    if (this.timeout && !this.destroyed) this.#look(this.timeout)
    return false
  }

  /** Whether it is time for 'timeout'. */
  #look(timeout: number): void {
    const { bytesWritten } = this
    // As in net: what the kernel has taken meanwhile is told by nobody as long as more is pending.
    if (bytesWritten !== this.#sent && this.#output.pending !== 0) this.#active = performance.now()
    this.#sent = bytesWritten
    const left = this.#active + timeout - performance.now()
    if (left > 0) return this.#arm(left)
    this.#quiet = true
    this.#call(this.#timeoutInScope)
  }

  /** What a listener throws is uncaught, and nothing to the other connections of the batch. */
  #call(step: () => void): void {
    try {
      this.#connection.scope!.runInAsyncScope(step)
    } catch (error) {
      uncaught(error, false)
    }
  }

  get #isOpen(): boolean {
    return (this.#connection.state & (State.CLOSING | State.CLOSED)) === 0
  }

  #touch(): void {
    if (!this.timeout) return
    this.#active = performance.now()
    if (this.#quiet) this.#arm(this.timeout)
    this.#quiet = false
  }

  /** One timer of the poll for all that happens until it fires: then it is armed for what is left. */
  #arm(ms: number): void {
    const due = performance.now() + ms
    if (this.#due <= due) return
    this.#due = due
    this.#input.armTimer(Math.min(Math.ceil(ms), MAX_SIZE))
  }

  // ---- reading

  override _read(): void {
    this.#wanted = true
    this.#pull()
  }

  /** What is not wanted stays unread, so that the poll stops reading, and TCP the peer. */
  #pull(): void {
    const input = this.#input
    while (this.#wanted && input.unread !== 0) {
      const bytes = input.readBinary(Math.min(input.unread, COPY))
      input.release()
      this.#touch()
      // A listener may read in the midst of push(), which then asks for more by itself.
      this.#wanted = false
      if (this.push(bytes)) this.#wanted = true
    }
    if (input.unread === 0 && input.finished && !this.destroyed) this.#inputEnded()
  }

  #inputEnded(): void {
    const failure = this.#connection.failure()
    if (failure.code !== 'ERR_NETPOLL_EOF') {
      this.destroy(failure)
      return
    }
    if (!this.#ended) {
      this.#ended = true
      this.push(null)
      this.read(0)
    }
    // It was ended beside the stream, or both sides have ended.
    if ((this.#connection.state & State.CLOSED) !== 0) this.end()
  }

  // ---- writing

  override _write(chunk: Buffer | string, encoding: BufferEncoding, taken: Callback): void {
    this.#send([{ chunk, encoding }], taken, false)
  }

  override _writev(chunks: Chunk[], taken: Callback): void {
    this.#send(chunks, taken, false)
  }

  override _final(taken: Callback): void {
    this.#connection.end()
    this.#output.flushed().then(() => taken(), taken)
  }

  /** `isOutside`: `taken` may be called in a promise. */
  #send(chunks: readonly Chunk[], taken: Callback, isOutside: boolean): void {
    this.#touch()
    let rest: readonly Chunk[]
    let isTaken: boolean
    try {
      this.#lent = false
      rest = this.#fill(chunks)
      isTaken = this.#output.flush() && !this.#lent && rest.length === 0
    } catch (error) {
      return taken(error as Error)
    }
    if (isTaken) return taken()
    const later = isOutside ? taken : outside(taken)
    this.#output.flushed().then(() => this.#goOn(rest, later), later)
  }

  #goOn(rest: readonly Chunk[], taken: Callback): void {
    this.#touch()
    if (rest.length !== 0) this.#send(rest, taken, true)
    else taken()
  }

  /** Writes as much as the limits have room for, and returns the rest. */
  #fill(chunks: readonly Chunk[]): readonly Chunk[] {
    const output = this.#output
    const { writeHighWaterMark, maxPendingBytes } = this.#connection.loop.limits
    let room = Math.min(writeHighWaterMark, maxPendingBytes - output.pending - output.unflushed)
    for (let at = 0; at < chunks.length; at++) {
      const { chunk, encoding } = chunks[at]!
      const isText = typeof chunk === 'string'
      if (isText && chunk.length <= SHORT_STRING && chunk.length * 3 <= room) {
        room -= output.writeString(chunk, encoding)
        continue
      }
      const bytes = isText ? Buffer.from(chunk, encoding) : chunk
      const size = Math.min(bytes.length, Math.max(room, 0))
      if (size < COPY_LIMIT) output.copyIn(bytes.subarray(0, size))
      else {
        this.#lent = true
        output.writeBinary(bytes.subarray(0, size))
      }
      room -= size
      if (size < bytes.length) return [{ chunk: bytes.subarray(size), encoding }, ...chunks.slice(at + 1)]
    }
    return NONE
  }

  // ---- the end

  override _destroy(error: Error | null, callback: Callback): void {
    this.#wanted = false
    const connection = this.#connection
    // Sent is what the kernel takes at once, as net's socket has tried to send it before.
    if (this.#isOpen) connection.leave(Submission.CLOSE, 1)
    callback(error)
    this.#onClosed = () => {
      this.#onClosed = null
      process.nextTick(() => this.emit('close', error !== null))
    }
    if ((connection.state & State.CLOSED) !== 0) this.#onClosed()
  }
}

/** @internal The Duplex of a connection, made at the first call. */
export function duplexOf(connection: Connection): ConnectionDuplex {
  connection.refuse()
  const known = duplexes.get(connection)
  if (known !== undefined) return known
  const input = connection.input ?? connection.makeInput()
  if (input.wait !== null || (connection.state & State.ITERATING) !== 0)
    throw new NetpollError('ERR_NETPOLL_INVALID_STATE', 'A wait or an iteration is pending')
  connection.state |= State.STREAMED
  connection.onRequest = undefined
  return new ConnectionDuplex(connection, input)
}

/** For a promise: what the callback throws is uncaught, and no rejection. */
function outside(taken: Callback): Callback {
  return (error) => process.nextTick(taken, error)
}

/** Those whose state is STREAMED. */
const duplexes = new WeakMap<Connection, ConnectionDuplex>()

/** @internal The loop shuts down and nothing is due: the connection closes, a Duplex when it has sent what it was given. */
export function shutDown(connection: Connection): void {
  if ((connection.state & State.STREAMED) !== 0) duplexes.get(connection)!.stop()
  else connection.shut(Submission.CLOSE, 'ERR_NETPOLL_CONN_CLOSED')
}

/** @internal Bytes that the kernel has not taken, or that a Duplex has not given us yet. */
export function hasOutput(connection: Connection): boolean {
  if (connection.output !== null && connection.output.pending !== 0) return true
  return (connection.state & State.STREAMED) !== 0 && duplexes.get(connection)!.writableLength !== 0
}

/** @internal */
export function streamed(): NetpollError {
  return new NetpollError('ERR_NETPOLL_INVALID_STATE', 'The connection is read by its Duplex')
}
