import { boolean, callback, milliseconds } from './arguments.js'
import { notify } from './callbacks.js'
import { Detachment, type Detached } from './detachment.js'
import { duplexOf, streamed, type ConnectionDuplex } from './duplex.js'
import { NetpollError } from './errors.js'
import type { OnClose, OnConnect, OnDisconnect, OnRequest } from './handlers.js'
import { Inquiries, type ConnectionStatistics } from './inquiry.js'
import { Lifecycle } from './lifecycle.js'
import type { Endpoint } from './native.js'
import type { Reader } from './reader.js'
import { Flag, Option, Status, Submission, Timer } from './record.js'
import { State } from './state.js'
import type { Writer } from './writer.js'

/**
 * A connection that a listener has accepted or that was dialed. Its own close(), reset(), detach() and passed limits
 * end it: from then on every method throws ERR_NETPOLL_CONN_CLOSED or the limit's code. When the peer ends it, what has
 * come can still be read, writes are dropped, and waits reject with the cause.
 */
export class Connection<Ctx = unknown> extends Lifecycle<Ctx> {
  get reader(): Reader {
    return this.input ?? this.makeInput()
  }

  get writer(): Writer {
    return this.output ?? this.makeOutput()
  }

  /** Bytes are here, or may still come. */
  get readable(): boolean {
    if ((this.state & State.CLOSING) !== 0) return false
    if (this.input !== null && this.input.unread !== 0) return true
    return !this.hasEnded() && (this.poll.freshFlags(this.slot) & Flag.READ_ENDED) === 0
  }

  /** What is written can still reach the peer, who may have half-closed its side. */
  get writable(): boolean {
    if ((this.state & (State.CLOSING | State.ENDED)) !== 0) return false
    return !this.hasLostOutput() && (this.poll.freshFlags(this.slot) & Flag.WRITE_ENDED) === 0
  }

  /** As in net.Socket: undefined for a unix socket, and after the end unless it was asked for before. */
  get remoteAddress(): string | undefined {
    return address(this.addresses()?.remote)
  }
  get remotePort(): number | undefined {
    return port(this.addresses()?.remote)
  }
  get remoteFamily(): string | undefined {
    return family(this.addresses()?.remote)
  }
  get localAddress(): string | undefined {
    return address(this.addresses()?.local)
  }
  get localPort(): number | undefined {
    return port(this.addresses()?.local)
  }
  get localFamily(): string | undefined {
    return family(this.addresses()?.local)
  }

  /** Bytes taken from the kernel. */
  get bytesRead(): number {
    return (this.state & State.CLOSED) !== 0 ? this.finalRead : this.poll.count(this.slot, Status.READ)
  }

  /** Bytes that the kernel has taken; of those sent without a copy, the ones whose memory it needs no more. */
  get bytesWritten(): number {
    return (this.state & State.CLOSED) !== 0 ? this.finalSent : this.poll.count(this.slot, Status.SENT)
  }

  /** Bounds each wait of the Reader, and the time in which bytes that a handler has left see no progress. 0 = none. */
  setReadTimeout(ms: number): void {
    milliseconds(ms, 'ms')
    this.refuse()
    ;(this.input ?? this.makeInput()).readTimeout = ms
  }

  /** Bounds the time in which pending output makes no progress; then the connection is reset. 0 = none. */
  setWriteTimeout(ms: number): void {
    milliseconds(ms, 'ms')
    this.refuse()
    this.put(Submission.TIMER, Timer.WRITE, ms, 0)
  }

  /** Closes the connection after `ms` without traffic, a pending handler or pending output. 0 = never. */
  setIdleTimeout(ms: number): void {
    milliseconds(ms, 'ms')
    this.refuse()
    this.idleTimeout = ms
    this.armIdle()
  }

  setNoDelay(noDelay = true): void {
    boolean(noDelay, 'noDelay')
    this.refuse()
    this.put(Submission.OPTION, Option.NO_DELAY, noDelay ? 1 : 0, 0)
  }

  /** Probes a silent peer after `initialDelay` milliseconds (0 = the system's default), in whole seconds. */
  setKeepAlive(enable = false, initialDelay = 0): void {
    boolean(enable, 'enable')
    milliseconds(initialDelay, 'initialDelay')
    this.refuse()
    this.put(Submission.OPTION, Option.KEEP_ALIVE, enable ? 1 : 0, Math.floor(initialDelay / 1000))
  }

  /** TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged. 0 = the system's default. */
  setUserTimeout(ms: number): void {
    milliseconds(ms, 'ms')
    this.refuse()
    this.put(Submission.OPTION, Option.USER_TIMEOUT, ms, 0)
  }

  /**
   * Replaces the handler from the next call on, also from within it; bytes that are here count as new for it, except
   * for a handler that sets itself. Of handlers that set one another while none consumes anything, the 17th waits until
   * more comes.
   */
  setOnRequest(onRequest: OnRequest<Ctx>): void {
    callback(onRequest, 'onRequest')
    this.refuse()
    if ((this.state & State.STREAMED) !== 0) throw streamed()
    // Otherwise a handler that leaves bytes and sets itself would be called for them forever.
    if (onRequest === this.onRequest && (this.state & State.BUSY) !== 0) return
    this.onRequest = onRequest
    if ((this.state & State.BUSY) !== 0 && this.input?.hop() === false) return
    this.state |= State.NEWS
    this.enqueue()
  }

  /** Of use in onPrepare: once onConnect has been called, no other is, and this changes nothing. */
  setOnConnect(onConnect: OnConnect<Ctx>): void {
    callback(onConnect, 'onConnect')
    this.refuse()
    this.extra().onConnect = onConnect as OnConnect<unknown>
  }

  /** Replaces it until it has been called, also from within a handler or after the peer's end. */
  setOnDisconnect(onDisconnect: OnDisconnect<Ctx>): void {
    callback(onDisconnect, 'onDisconnect')
    this.refuse()
    this.extra().onDisconnect = onDisconnect as OnDisconnect<unknown>
  }

  /** Called once, on every kind of end, also one that was before; the last one added is the first called. */
  addCloseCallback(onClose: (connection: Connection<Ctx>) => void): void {
    callback(onClose, 'onClose')
    this.refuse()
    if ((this.state & State.FINISHED) !== 0) {
      process.nextTick(() => notify(this as unknown as Connection, () => onClose(this)))
      return
    }
    const extras = this.extra()
    ;(extras.closeCallbacks ??= []).push(onClose as OnClose)
  }

  /**
   * Resolves when the kernel has taken all that was flushed so far, and needs no more the memory of what it sends without
   * a copy (`configure({ zeroCopy })`): from then on a Buffer of writeBinary() may be changed. Rejects with the cause
   * when the connection ends first.
   */
  flushed(): Promise<void> {
    if ((this.state & (State.CLOSING | State.CLOSED)) !== 0) return Promise.reject(this.failure())
    return this.output === null ? Promise.resolve() : this.output.flushed()
  }

  /**
   * Nothing is read from the socket, and onRequest is not called, until resume(). When the peer ends the connection
   * meanwhile, bytes that came before and are new for onRequest wait for it too, and with them onDisconnect, the close
   * callbacks and `closed`; close(), reset() and the loop's shutdown() drop them.
   */
  pause(): void {
    this.refuse()
    if ((this.state & State.PAUSED) !== 0) return
    this.state |= State.PAUSED
    this.put(Submission.PAUSE, 0, 0, 0)
  }

  resume(): void {
    this.refuse()
    if ((this.state & State.PAUSED) === 0) return
    this.state &= ~State.PAUSED
    this.put(Submission.RESUME, 0, 0, 0)
    this.letGo()
  }

  /** Sends a FIN behind the pending output. Bytes that were not flushed are dropped; reading goes on. */
  end(): void {
    if ((this.state & (State.ENDED | State.CLOSING | State.CLOSED)) !== 0) return
    if ((this.state & State.ANSWERED) === 0) this.put(Submission.END, 0, 0, 0)
    this.state |= State.ENDED
    if (this.output !== null) this.output.refuse('ERR_NETPOLL_CONN_CLOSED')
  }

  /** Stops reading, sends the pending output and a FIN, and frees the descriptor. Unflushed bytes are dropped. */
  close(): void {
    if ((this.state & State.CLOSING) === 0) this.leave(Submission.CLOSE)
  }

  /** Drops the pending output too, and sends a RST. */
  reset(): void {
    if ((this.state & State.RESET) !== 0) return
    if ((this.state & State.CLOSING) === 0) this.leave(Submission.RESET)
    else this.put(Submission.RESET, 0, 0, 0)
    this.state |= State.RESET
  }

  /**
   * Gives the socket away: reading stops, the pending output is sent (what was not flushed is dropped), and then the
   * open descriptor is the caller's, who has to close it, with the bytes that came and were not consumed. What the
   * kernel holds stays in the socket. For this connection it is the end: every method throws
   * ERR_NETPOLL_CONN_CLOSED, and onDisconnect and the close callbacks are called. Rejects with the cause when the
   * connection ends before, by a peer that resets it or does not read within the write timeout, or by reset().
   */
  detach(): Promise<Detached> {
    if ((this.state & (State.CLOSING | State.CLOSED)) !== 0) return Promise.reject(this.failure())
    if ((this.state & State.STREAMED) !== 0) return Promise.reject(streamed())
    const detachment = new Detachment(this.input)
    this.extra().detachment = detachment
    this.leave(Submission.DETACH)
    return detachment.promise
  }

  /**
   * A Duplex that looks like a net.Socket, for whatever runs on one: http, tls, WebSockets, clients of databases. It
   * reads the connection from now on: first what is unread, views of which end, and onRequest is called no more. The
   * other handlers and the close callbacks are. A second call gives the same one. Throws ERR_NETPOLL_INVALID_STATE
   * while a wait or an iteration is pending.
   */
  toDuplex(): ConnectionDuplex {
    return duplexOf(this as unknown as Connection)
  }

  /** What the kernel tells of the connection now. Rejects with the cause when it has ended. */
  stats(): Promise<ConnectionStatistics> {
    if ((this.state & (State.CLOSING | State.CLOSED)) !== 0) return Promise.reject(this.failure())
    const answer = (this.extra().inquiries ??= new Inquiries()).add()
    this.put(Submission.INFO, 0, 0, 0)
    return answer
  }

  /**
   * Resolves when the connection has ended and its callbacks have been called, which a pending handler holds up: one
   * that awaits this of its own connection never ends. It never rejects.
   */
  get closed(): Promise<void> {
    if ((this.state & State.FINISHED) !== 0) return Promise.resolve()
    const extras = this.extra()
    return (extras.closed ??= new Promise((resolve) => (extras.resolveClosed = resolve)))
  }

  /** Keeps the process alive while it is open, as it does at first. */
  ref(): this {
    if ((this.state & State.UNREFED) !== 0 && (this.state & State.CLOSED) === 0) this.poll.environment.hold()
    this.state &= ~State.UNREFED
    return this
  }

  unref(): this {
    if ((this.state & (State.UNREFED | State.CLOSED)) === 0) this.poll.environment.release()
    this.state |= State.UNREFED
    return this
  }

  /** close(), then `closed`; while a handler runs, which may be the one that calls it, the end of the descriptor. */
  [Symbol.asyncDispose](): Promise<void> {
    this.close()
    if ((this.state & State.BUSY) === 0) return this.closed
    if ((this.state & State.CLOSED) !== 0) return Promise.resolve()
    const extras = this.extra()
    return (extras.freed ??= new Promise((resolve) => (extras.resolveFreed = resolve)))
  }

  /** What comes, as copies, until the peer's FIN or our own close(). Rejects with INVALID_STATE beside an onRequest. */
  async *[Symbol.asyncIterator](): AsyncIterableIterator<Buffer> {
    if (this.onRequest !== undefined) {
      throw new NetpollError('ERR_NETPOLL_INVALID_STATE', 'A connection with onRequest cannot be iterated')
    }
    const { reader } = this
    this.state |= State.ITERATING
    try {
      for (;;) {
        await reader.waitRead(1)
        const bytes = reader.readBinary(reader.length)
        reader.release()
        yield bytes
      }
    } catch (error) {
      const { code } = error as NetpollError
      if (code !== 'ERR_NETPOLL_EOF' && code !== 'ERR_NETPOLL_CONN_CLOSED') throw error
    } finally {
      this.state &= ~State.ITERATING
      this.inputConsumed()
    }
  }
}

function address(endpoint: Endpoint | undefined): string | undefined {
  return endpoint === undefined || endpoint.family === 1 ? undefined : endpoint.address
}

function port(endpoint: Endpoint | undefined): number | undefined {
  return endpoint === undefined || endpoint.family === 1 ? undefined : endpoint.port
}

function family(endpoint: Endpoint | undefined): string | undefined {
  return endpoint === undefined || endpoint.family === 1 ? undefined : `IPv${endpoint.family}`
}
