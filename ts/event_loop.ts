import {
  abortSignal,
  callback,
  checkOptions,
  integer,
  invalidType,
  MAX_SIZE,
  milliseconds,
} from './arguments.js'
import { chooseDriver, driver, type Driver } from './configuration.js'
import { Connection } from './connection.js'
import { environment, openEnvironment } from './environment.js'
import { NetpollError } from './errors.js'
import {
  CONNECTION_OPTIONS,
  limitsOf,
  type ConnectionOptions,
  type Limits,
  type OnConnect,
  type OnDisconnect,
  type OnRequest,
} from './handlers.js'
import { stopHeldBack } from './held_back.js'
import { Listener } from './listener.js'
import type { ServeOptions } from './native.js'
import type { Poll } from './poll.js'

export interface EventLoopOptions<Ctx> extends ConnectionOptions {
  /**
   * Called before anything is delivered; what it returns is the connection's context. It may set timeouts and add
   * close callbacks; close() rejects the connection.
   */
  onPrepare?: (connection: Connection<Ctx>) => Ctx
  /** May read and write; requests wait for it. */
  onConnect?: OnConnect<Ctx>
  onDisconnect?: OnDisconnect<Ctx>
  /** A handler threw or rejected; its connection is closed. Without it the error is uncaught. */
  onError?: (error: unknown, connection: Connection<Ctx>) => void
  /** One too many is accepted and closed at once. Default: no limit. */
  maxConnections?: number
  /**
   * As in configure(), for those who have no other use of it: who runs the polls, which all event loops share. Throws
   * ERR_NETPOLL_INVALID_STATE when another driver was chosen, or runs, already.
   */
  driver?: Driver
  /** Its abort is shutdown({ timeout: 0 }). */
  signal?: AbortSignal
}

export interface ShutdownOptions {
  /** Milliseconds after which the rest is cut. Default: never. */
  timeout?: number
}

const OPTIONS = {
  onPrepare: callback,
  onConnect: callback,
  onDisconnect: callback,
  onError: callback,
  ...CONNECTION_OPTIONS,
  maxConnections: integer(1, MAX_SIZE),
  driver,
  signal: abortSignal,
}

const SHUTDOWN_OPTIONS = { timeout: milliseconds }

/** Serves listeners: calls the handlers of their connections. */
export class EventLoop {
  /** @internal */
  readonly limits: Limits
  /** @internal */
  readonly onPrepare: ((connection: Connection) => unknown) | undefined
  /** @internal */
  readonly onConnect: OnConnect<unknown> | undefined
  /** @internal */
  readonly onDisconnect: OnDisconnect<unknown> | undefined
  /** @internal */
  readonly onError: ((error: unknown, connection: Connection) => void) | undefined
  /** @internal */
  stopping = false
  private readonly number = ++loops
  private readonly maxConnections: number
  private readonly signal: AbortSignal | undefined
  private readonly abort = () => void this.shutdown({ timeout: 0 }).catch(() => undefined)
  private readonly listeners = new Set<Listener>()
  /** Connections with an open descriptor, and those whose callbacks have not all been called. */
  private open = 0
  private unfinished = 0
  private refed = true
  private outcome: Promise<void> | null = null
  private settle: ((error: NetpollError | null) => void) | null = null
  /** The timeout has passed, with this result. */
  private late: NetpollError | null | undefined

  /** @internal */
  constructor(
    private readonly onRequest: OnRequest<unknown> | undefined,
    options: EventLoopOptions<unknown>,
  ) {
    this.limits = limitsOf(options)
    this.maxConnections = options.maxConnections ?? 0
    this.onPrepare = options.onPrepare
    this.onConnect = options.onConnect
    this.onDisconnect = options.onDisconnect
    this.onError = options.onError
    this.signal = options.signal
    if (this.signal?.aborted) this.abort()
    else this.signal?.addEventListener('abort', this.abort)
  }

  /** Connections that are open. */
  get connections(): number {
    return this.open
  }

  /**
   * Accepts what connects to `listener`, of which there may be several. Resolves when it was closed or the loop was
   * shut down; rejects when it has failed, or with ERR_NETPOLL_INVALID_STATE when it is served or closed already, or
   * the loop is shut down.
   */
  serve(listener: Listener): Promise<void> {
    if (!(listener instanceof Listener)) throw invalidType('listener', 'a Listener', listener)
    if (!listener.isWaiting) return Promise.reject(invalidState('The listener is served or closed already'))
    if (this.signal?.aborted) {
      listener.close()
      return Promise.resolve()
    }
    if (this.stopping) return Promise.reject(invalidState('The event loop is shut down'))
    if (environment().polls.every((poll) => poll.dead))
      return Promise.reject(new NetpollError('ERR_NETPOLL_POLL_DIED'))
    return new Promise((resolve, reject) => {
      listener.serve(this.serveOptions(), (error) => {
        this.listenerEnded(listener)
        if (error === null) resolve()
        else reject(error)
      })
      environment().servers.set(this.number, this)
      if (this.listeners.size === 0 && this.refed) environment().hold()
      this.listeners.add(listener)
    })
  }

  /**
   * Stops accepting, closes idle connections, and the others when their handler has ended and their output is sent.
   * Past the timeout the rest is cut, and it rejects with ERR_NETPOLL_SHUTDOWN_TIMEOUT. A second call shares the
   * first one's outcome.
   */
  shutdown(options?: ShutdownOptions): Promise<void> {
    checkOptions(options, SHUTDOWN_OPTIONS)
    if (this.outcome !== null) return this.outcome
    this.stopping = true
    this.signal?.removeEventListener('abort', this.abort)
    this.outcome = new Promise((resolve, reject) => {
      this.settle = (error) => (error === null ? resolve() : reject(error))
    })
    for (const listener of this.listeners) listener.close()
    this.forEach((connection) => connection.stop())
    stopHeldBack(this)
    if (options?.timeout !== undefined) this.cutAfter(options.timeout)
    this.checkStopped()
    return this.outcome
  }

  /** Keeps the process alive while it serves a listener, as it does at first. */
  ref(): this {
    if (!this.refed && this.listeners.size !== 0) environment().hold()
    this.refed = true
    return this
  }

  unref(): this {
    if (this.refed && this.listeners.size !== 0) environment().release()
    this.refed = false
    return this
  }

  /** shutdown() without a timeout. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown()
  }

  // ---- of the environment and the connections

  /** @internal */
  accept(poll: Poll, slot: number, generation: number): void {
    this.open++
    this.unfinished++
    new Connection(this, poll, slot, generation, this.onRequest).prepare()
  }

  /** @internal */
  connectionClosed(): void {
    this.open--
    if (this.stopping) this.checkStopped()
  }

  /** @internal */
  connectionFinished(): void {
    this.unfinished--
    if (this.stopping) this.checkStopped()
  }

  private listenerEnded(listener: Listener): void {
    this.listeners.delete(listener)
    if (this.listeners.size !== 0) return
    if (this.refed) environment().release()
    if (this.stopping) this.checkStopped()
  }

  private cutAfter(ms: number): void {
    AbortSignal.timeout(ms).addEventListener('abort', () => this.cut())
    // The timer of a signal keeps no process alive, and a handler that is waited for may not either.
    const held = openEnvironment()
    held?.hold()
    const release = (): void => held?.release()
    this.outcome!.then(release, release)
  }

  private cut(): void {
    if (this.listeners.size === 0 && this.unfinished === 0) return
    // A handler whose connection has ended can only be waited for.
    let cut = this.unfinished > this.open
    this.forEach((connection) => {
      if (connection.cut()) cut = true
    })
    this.late = cut ? new NetpollError('ERR_NETPOLL_SHUTDOWN_TIMEOUT') : null
    this.checkStopped()
  }

  private checkStopped(): void {
    const left = this.late === undefined ? this.unfinished : this.open
    if (this.listeners.size !== 0 || left !== 0) return
    openEnvironment()?.forgetServer(this.number)
    this.settle!(this.late ?? null)
  }

  private forEach(call: (connection: Connection) => void): void {
    if (this.open === 0) return
    for (const poll of environment().polls) {
      for (const connection of poll.connections) if (connection?.loop === this) call(connection)
    }
  }

  private serveOptions(): ServeOptions {
    const { writeTimeout, idleTimeout, readHighWaterMark } = this.limits
    return {
      server: this.number,
      writeTimeout,
      idleTimeout,
      readHighWaterMark,
      maxConnections: this.maxConnections,
      announceAccept: this.onPrepare !== undefined || this.onConnect !== undefined,
    }
  }
}

/** Numbers of the loops of this environment, from 1 on. */
let loops = 0

/**
 * A loop that calls `onRequest` with each connection that has news; undefined where onConnect does all. Throws Node's
 * argument errors for what the options may not be.
 */
export function createEventLoop<Ctx = undefined>(
  onRequest: OnRequest<Ctx> | undefined,
  options?: EventLoopOptions<Ctx>,
): EventLoop {
  checkOptions(options, OPTIONS)
  if (onRequest !== undefined || options?.onConnect === undefined) callback(onRequest, 'onRequest')
  if (options?.driver !== undefined) chooseDriver(options.driver)
  return new EventLoop(onRequest as OnRequest<unknown>, (options ?? {}) as EventLoopOptions<unknown>)
}

function invalidState(message: string): NetpollError {
  return new NetpollError('ERR_NETPOLL_INVALID_STATE', message)
}
