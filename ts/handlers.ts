import { boolean, integer, MAX_SIZE, milliseconds } from './arguments.js'
import type { Connection } from './connection.js'

/** Called with what the peer has sent; a promise keeps the connection busy until it settles. */
export type OnRequest<Ctx> = (connection: Connection<Ctx>, context: Ctx) => void | PromiseLike<void>
/** Called once before the first request; what it returns, other than undefined, is the context from then on. */
export type OnConnect<Ctx> = (
  connection: Connection<Ctx>,
  context: Ctx,
) => void | Ctx | PromiseLike<void | Ctx>
/** Called once when the connection has ended, in whatever way, and no handler of it runs. */
export type OnDisconnect<Ctx> = (connection: Connection<Ctx>, context: Ctx) => void
/** Called once on every kind of end. */
export type OnClose = (connection: Connection) => void

/** What a connection starts with. Sizes in bytes (up to 2^31-1), times in milliseconds (0 = none, the default). */
export interface ConnectionOptions {
  /** Bounds each wait of a Reader, and the time in which bytes that a handler has left see no progress. */
  readTimeout?: number
  /** Bounds the time in which pending output makes no progress; then the connection is reset. */
  writeTimeout?: number
  /** Closes a connection that has neither traffic, a pending handler nor pending output. */
  idleTimeout?: number
  /** The peer's FIN does not end the connection; end() or close() does. Default: false. */
  allowHalfOpen?: boolean
  /** Unread bytes at which reading stops. A wait or a handler that needs more raises it. Default: 1 MiB. */
  readHighWaterMark?: number
  /** The longest message that can be waited for. Default: 64 MiB. */
  maxReadBytes?: number
  /** Pending output above which flush() is false and no request runs. Default: 1 MiB. */
  writeHighWaterMark?: number
  /** Pending output above which the connection fails. Default: 64 MiB. */
  maxPendingBytes?: number
}

/** @internal */
export type Limits = Readonly<Required<ConnectionOptions>>

const size = integer(1, MAX_SIZE)

/** @internal How ConnectionOptions are checked. */
export const CONNECTION_OPTIONS = {
  readTimeout: milliseconds,
  writeTimeout: milliseconds,
  idleTimeout: milliseconds,
  allowHalfOpen: boolean,
  readHighWaterMark: size,
  maxReadBytes: size,
  writeHighWaterMark: size,
  maxPendingBytes: size,
}

const MIB = 1 << 20

/** @internal What is missing has its default. */
export function limitsOf(options: ConnectionOptions): Limits {
  const maxReadBytes = options.maxReadBytes ?? 64 * MIB
  return {
    readTimeout: options.readTimeout ?? 0,
    writeTimeout: options.writeTimeout ?? 0,
    idleTimeout: options.idleTimeout ?? 0,
    allowHalfOpen: options.allowHalfOpen ?? false,
    readHighWaterMark: Math.min(options.readHighWaterMark ?? MIB, maxReadBytes),
    maxReadBytes,
    writeHighWaterMark: options.writeHighWaterMark ?? MIB,
    maxPendingBytes: options.maxPendingBytes ?? 64 * MIB,
  }
}

/** @internal Whose connection it is: an event loop's, or its dialer's. */
export interface Owner {
  readonly limits: Limits
  readonly onPrepare: ((connection: Connection) => unknown) | undefined
  readonly onConnect: OnConnect<unknown> | undefined
  readonly onDisconnect: OnDisconnect<unknown> | undefined
  readonly onError: ((error: unknown, connection: Connection) => void) | undefined
  /** A connection that has nothing to do closes. */
  readonly stopping: boolean
  /** The descriptor is closed. */
  connectionClosed(): void
  /** All callbacks have been called. */
  connectionFinished(): void
}

/** @internal Whether a handler goes on after it has returned. */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}

/** @internal A call of a handler, in the asynchronous context of its connection. */
export type Step = (connection: Connection) => unknown

/** @internal */
export function callPrepare(connection: Connection): void {
  connection.context = connection.loop.onPrepare!(connection)
}

/** @internal */
export function callConnect(connection: Connection): unknown {
  return connection.extra().onConnect!(connection, connection.context)
}

/** @internal */
export function callRequest(connection: Connection): unknown {
  return connection.onRequest!(connection, connection.context)
}
