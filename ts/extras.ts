import type { Detachment } from './detachment.js'
import { NetpollError, systemError } from './errors.js'
import type { OnClose, OnConnect, OnDisconnect } from './handlers.js'
import type { Inquiries } from './inquiry.js'
import type { Addresses } from './native.js'
import type { Transit } from './transit.js'

/** What few connections have, or only near their end. */
export class Extras {
  addresses: Addresses | null = null
  closeCallbacks: OnClose[] | null = null
  onConnect: OnConnect<unknown> | undefined = undefined
  onDisconnect: OnDisconnect<unknown> | undefined = undefined
  closed: Promise<void> | null = null
  resolveClosed: (() => void) | null = null
  /** As `closed`, but of the descriptor alone. */
  freed: Promise<void> | null = null
  resolveFreed: (() => void) | null = null
  /** What becomes of a handler's promise. */
  fulfilled: ((value: unknown) => void) | null = null
  rejected: ((error: unknown) => void) | null = null
  detachment: Detachment | null = null
  inquiries: Inquiries | null = null
  transit: Transit | null = null

  /** CLOSED has come: what the poll was still asked for does not. `cut`: by our own reset(). */
  abandon(cause: number, cut: boolean, failure: NetpollError): void {
    this.inquiries?.fail(failure)
    // Since detach() the failure says CONN_CLOSED, which is the cause only of one that was cut.
    if (cause > 0) this.detachment?.fail(systemError(cause, 'write'))
    else this.detachment?.fail(cause === 0 && !cut ? new NetpollError('ERR_NETPOLL_EOF') : failure)
  }
}
