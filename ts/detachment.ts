import type { NetpollError } from './errors.js'
import type { Input } from './input.js'

/** What detach() gives away: the open descriptor, and the bytes that came and that nobody has consumed. */
export interface Detached {
  fd: number
  unread: Buffer
}

/** A pending detach(): gathers what was delivered until the descriptor comes. */
export class Detachment {
  readonly promise: Promise<Detached>
  private resolve!: (detached: Detached) => void
  private reject!: (reason: unknown) => void
  private readonly parts: Buffer[] = []

  constructor(input: Input | null) {
    if (input !== null) this.parts.push(copyOf(input))
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve
      this.reject = reject
    })
  }

  /** A DATA record that was still on its way: its block goes back, so its bytes are copied. */
  push(bytes: Buffer): void {
    this.parts.push(Buffer.from(bytes))
  }

  complete(fd: number): void {
    this.resolve({ fd, unread: Buffer.concat(this.parts) })
  }

  fail(error: NetpollError): void {
    this.reject(error)
  }
}

function copyOf(input: Input): Buffer {
  const copy = Buffer.allocUnsafeSlow(input.length)
  input.copyTo(copy, 0, copy.length)
  return copy
}
