import type { Connection } from './connection.js'
import { isConnectionEnd, uncaught } from './errors.js'
import type { Extras } from './extras.js'
import { isThenable } from './handlers.js'
import { State } from './state.js'

/** onDisconnect, and the close callbacks, each once. */
export function callAtEnd(connection: Connection, extras: Extras | null): void {
  const onDisconnect = extras?.onDisconnect ?? connection.loop.onDisconnect
  if (onDisconnect !== undefined && (connection.state & State.REJECTED) === 0) {
    notify(connection, () => onDisconnect(connection, connection.context))
  }
  const callbacks = extras?.closeCallbacks
  if (callbacks) while (callbacks.length !== 0) notify(connection, () => callbacks.pop()!(connection))
}

/** Of onDisconnect and close callbacks: what they throw goes to onError. */
export function notify(connection: Connection, callback: () => unknown): void {
  try {
    const result = connection.inScope(callback)
    if (isThenable(result)) void result.then(undefined, (error) => reportOf(connection, error, true, true))
  } catch (error) {
    reportOf(connection, error, false, true)
  }
}

/** An error of a handler or callback: to onError, or else where the process sees it, unless a peer could bring it about. */
export function reportOf(connection: Connection, error: unknown, rejected: boolean, ended: boolean): void {
  const { onError } = connection.loop
  if (onError !== undefined) {
    try {
      connection.asyncScope().runInAsyncScope(onError, undefined, error, connection)
    } catch (thrown) {
      uncaught(thrown, false)
    }
  } else if (!isConnectionEnd(error, ended)) uncaught(error, rejected)
}
