import { AsyncResource } from 'node:async_hooks'
import { lookup } from 'node:dns/promises'
import { abortSignal, boolean, callback, checkOptions, invalidType, milliseconds } from './arguments.js'
import { Connection } from './connection.js'
import { environment, type PendingDial } from './environment.js'
import { NetpollError, systemError } from './errors.js'
import {
  CONNECTION_OPTIONS,
  limitsOf,
  type ConnectionOptions,
  type Limits,
  type OnDisconnect,
  type OnRequest,
  type Owner,
} from './handlers.js'
import { addressError, checkNetwork, type Network } from './listener.js'
import type { Endpoint } from './native.js'
import type { Poll } from './poll.js'
import { Cause } from './record.js'
import { State } from './state.js'

export interface DialOptions<Ctx = unknown> extends ConnectionOptions {
  /** Milliseconds after which it rejects, resolving the name included. 0 = none, the default. */
  timeout?: number
  /** Its abort rejects with its reason and leaves nothing open; once the connection is there it has no effect. */
  signal?: AbortSignal
  /** TCP_NODELAY. Default: true. */
  noDelay?: boolean
  /** Where the connection comes from: an IP address or 'localhost', alone or with a port ('[::1]:4000'). */
  localAddress?: string
  /** Called with what the peer has sent. Without it the connection is read by waits or by iteration. */
  onRequest?: OnRequest<Ctx>
  onDisconnect?: OnDisconnect<Ctx>
  /** A handler threw or rejected; the connection is closed. Without it the error is uncaught. */
  onError?: (error: unknown, connection: Connection<Ctx>) => void
}

const string = (value: unknown, name: string) => {
  if (typeof value !== 'string') throw invalidType(name, 'a string', value)
}

const OPTIONS = {
  timeout: milliseconds,
  signal: abortSignal,
  noDelay: boolean,
  localAddress: string,
  onRequest: callback,
  onDisconnect: callback,
  onError: callback,
  ...CONNECTION_OPTIONS,
}

/** Numbers of the dials of this environment. */
let dials = 0

/** A dial from its call to its end, and then the owner of its connection. */
class Dial implements PendingDial, Owner {
  readonly limits: Limits
  readonly onPrepare = undefined
  readonly onConnect = undefined
  readonly onDisconnect: OnDisconnect<unknown> | undefined
  readonly onError: ((error: unknown, connection: Connection) => void) | undefined
  readonly stopping = false
  readonly promise: Promise<Connection>
  poll: Poll | null = null
  private readonly number = (dials = (dials + 1) >>> 0)
  private readonly start = performance.now()
  private readonly scope = new AsyncResource('NETPOLL')
  private endpoints: Endpoint[] = []
  private settled = false
  /** Of what is known: what an earlier poll says later is no news. */
  private moves = 0
  private resolve!: (connection: Connection) => void
  private reject!: (reason: unknown) => void
  private readonly abort = () => this.cancel(this.options.signal!.reason)
  private readonly expire = () => this.cancel(new NetpollError('ERR_NETPOLL_DIAL_TIMEOUT'))

  constructor(
    private readonly network: Network,
    private readonly address: string,
    private readonly options: DialOptions,
  ) {
    this.limits = limitsOf(options)
    this.onDisconnect = options.onDisconnect
    this.onError = options.onError
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve
      this.reject = reject
    })
    options.signal?.addEventListener('abort', this.abort)
  }

  async lookUp(host: string): Promise<void> {
    const { timeout } = this.options
    const expiry = timeout ? AbortSignal.timeout(timeout) : null
    expiry?.addEventListener('abort', this.expire)
    const family = this.network === 'tcp4' ? 4 : this.network === 'tcp6' ? 6 : 0
    try {
      const found = await lookup(host, { all: true, family })
      this.race(found.map((entry) => entry.address))
    } catch (error) {
      this.fail(error)
    } finally {
      expiry?.removeEventListener('abort', this.expire)
    }
  }

  /** Lets a poll connect to the first of the addresses that answers. */
  race(resolved: string[]): void {
    if (this.settled) return
    const { network, address, limits, options } = this
    const { native, polls, dials: pending } = environment()
    const { writeTimeout, idleTimeout, readHighWaterMark } = limits
    const answer = native.dial(this.number, {
      network,
      address,
      resolved,
      localAddress: options.localAddress,
      noDelay: options.noDelay ?? true,
      timeout: this.timeLeft(),
      writeTimeout,
      idleTimeout,
      readHighWaterMark,
    })
    if ('reason' in answer) return this.fail(addressError(answer))
    environment().hold()
    this.endpoints = answer.endpoints
    this.poll = polls[answer.poll]!
    if (this.poll.dead) this.lost()
    else pending.set(this.number, this)
  }

  moved(poll: Poll, moves: number): void {
    if (moves > this.moves) [this.moves, this.poll] = [moves, poll]
    // Its former poll may not have heard of that in time.
    if (this.settled) environment().native.cancelDial(this.poll!.index, this.number)
  }

  dialed(poll: Poll, slot: number, generation: number): void {
    const connection = new Connection(this, poll, slot, generation, this.options.onRequest)
    connection.scope = this.scope
    // Its first run waits until whoever has dialed has it in hand.
    connection.state |= State.QUEUED | (this.settled ? State.REJECTED : 0)
    setImmediate(() => environment().enqueue(connection))
    connection.prepare()
    if (this.settle()) this.resolve(connection)
    else connection.close()
  }

  failed(cause: number, address: number): void {
    this.fail(
      cause === Cause.DIAL_TIMEOUT
        ? new NetpollError('ERR_NETPOLL_DIAL_TIMEOUT')
        : this.error(cause, address),
    )
  }

  lost(): void {
    this.fail(new NetpollError('ERR_NETPOLL_POLL_DIED'))
  }

  connectionClosed(): void {}
  connectionFinished(): void {}

  /** The poll still answers: with a failure, or with a connection that nobody wants. */
  private cancel(reason: unknown): void {
    if (this.poll !== null) environment().native.cancelDial(this.poll.index, this.number)
    this.fail(reason)
  }

  private fail(reason: unknown): void {
    if (this.settle()) this.reject(reason)
  }

  private settle(): boolean {
    if (this.settled) return false
    this.settled = true
    this.options.signal?.removeEventListener('abort', this.abort)
    if (this.poll !== null) environment().release()
    return true
  }

  private timeLeft(): number {
    const { timeout } = this.options
    return timeout ? Math.max(1, Math.ceil(timeout - (performance.now() - this.start))) : 0
  }

  private error(errno: number, address: number): NetpollError {
    if (address < 0) return systemError(errno, 'bind', this.options.localAddress)
    const { family, address: text, port } = this.endpoints[address]!
    return systemError(errno, 'connect', text, family === 1 ? undefined : port)
  }
}

/**
 * Connects. `address` is `host:port`, `[ipv6]:port`, or for unix a path or `@name`; no host is this machine. A name is
 * resolved by Node's resolver, whose errors reject as they are, and all of its addresses are tried as happy eyeballs
 * do: IPv6 and IPv4 in turns, the next after 250 ms or as soon as one has failed. Rejects with the error of the first
 * attempt that failed, as net has it (ECONNREFUSED ...), ERR_NETPOLL_DIAL_TIMEOUT, or the signal's reason; throws
 * ERR_NETPOLL_ADDRESS for a malformed address.
 *
 * The connection is the same as a server's. Without onRequest it closes by itself when the peer has ended it and
 * nothing is left unread.
 */
export function dialConnection<Ctx = unknown>(
  network: Network,
  address: string,
  options?: DialOptions<Ctx>,
): Promise<Connection<Ctx>> {
  checkNetwork(network, 'network')
  string(address, 'address')
  checkOptions(options, OPTIONS)
  const given = (options ?? {}) as DialOptions
  const host = environment().native.hostToDial(network, address, given.localAddress)
  if (host !== null && typeof host !== 'string') throw addressError(host)
  if (given.signal?.aborted) return Promise.reject(given.signal.reason)
  const dial = new Dial(network, address, given)
  if (host === null) dial.race([])
  else void dial.lookUp(host)
  return dial.promise as Promise<Connection<Ctx>>
}

/** dialConnection() with options for all of its connections. */
export class Dialer<Ctx = unknown> {
  private readonly defaults: DialOptions<Ctx>

  constructor(defaults?: DialOptions<Ctx>) {
    checkOptions(defaults, OPTIONS)
    this.defaults = { ...defaults }
  }

  /** `overrides` hold for this one; those that are undefined leave the default. */
  dialConnection(network: Network, address: string, overrides?: DialOptions<Ctx>): Promise<Connection<Ctx>> {
    checkOptions(overrides, OPTIONS)
    const given = Object.entries(overrides ?? {}).filter(([, value]) => value !== undefined)
    return dialConnection(network, address, { ...this.defaults, ...Object.fromEntries(given) })
  }
}
