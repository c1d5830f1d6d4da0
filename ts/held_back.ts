import type { Connection } from './connection.js'
import type { Owner } from './handlers.js'

/** Those whose descriptor is closed, with bytes for which onRequest waits until resume(). No poll knows them. */
const heldBack = new Set<Connection>()

/** Until resume(), our own end or its loop's: meanwhile no block is out for it. */
export function holdBack(connection: Connection): void {
  if (heldBack.has(connection)) return
  heldBack.add(connection)
  connection.input!.bequeath()
}

/** It has finished. */
export function forgetHeldBack(connection: Connection): void {
  heldBack.delete(connection)
}

/** Their owner stops. */
export function stopHeldBack(owner: Owner): void {
  for (const connection of heldBack) if (connection.loop === owner) connection.stop()
}
