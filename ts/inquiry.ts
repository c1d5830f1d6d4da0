import type { NetpollError } from './errors.js'
import type { Poll } from './poll.js'
import { Status } from './record.js'

/**
 * What a connection and the kernel have counted. All but the bytes is undefined for a unix socket. Times are
 * milliseconds, with the microseconds as fraction.
 */
export interface ConnectionStatistics {
  /** Bytes taken from the kernel. */
  bytesRead: number
  /** Bytes that the kernel has taken. */
  bytesWritten: number
  /** Smoothed round trip time. */
  rtt: number | undefined
  /** Mean deviation of the round trip time. */
  rttVariance: number | undefined
  /** Segments that were ever sent again. */
  retransmits: number | undefined
  /** In segments. */
  congestionWindow: number | undefined
  /** Segments that were sent and not acknowledged yet. */
  unacknowledged: number | undefined
}

/** The pending stats() of a connection, which the poll answers in their order. */
export class Inquiries {
  private waiting: { resolve: (answer: ConnectionStatistics) => void; reject: (reason: unknown) => void }[] =
    []

  add(): Promise<ConnectionStatistics> {
    return new Promise((resolve, reject) => void this.waiting.push({ resolve, reject }))
  }

  /** The arguments of an INFO record; nobody waits for it any more when our own end came first. */
  answer(poll: Poll, slot: number, info: Int32Array): void {
    const [rtt, variance, retransmits, window, unacked] = info
    const known = rtt! >= 0
    this.waiting.shift()?.resolve({
      bytesRead: poll.count(slot, Status.READ),
      bytesWritten: poll.count(slot, Status.SENT),
      rtt: known ? rtt! / 1000 : undefined,
      rttVariance: known ? variance! / 1000 : undefined,
      retransmits: known ? retransmits : undefined,
      congestionWindow: known ? window : undefined,
      unacknowledged: known ? unacked : undefined,
    })
  }

  fail(error: NetpollError): void {
    for (const { reject } of this.waiting) reject(error)
    this.waiting = []
  }
}
