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

/** @internal Sizes in bytes, times in milliseconds; 0 = no timeout. */
export interface Limits {
  readonly readTimeout: number
  readonly writeTimeout: number
  readonly idleTimeout: number
  readonly allowHalfOpen: boolean
  readonly readHighWaterMark: number
  readonly maxReadBytes: number
  readonly writeHighWaterMark: number
  readonly maxPendingBytes: number
}

/** @internal Whose connection it is: an event loop. */
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
