import { checkInteger, checkOptions, MAX_SIZE } from './arguments.js'
import { needleOf, type Delimiter } from './delimiter.js'
import { NetpollError } from './errors.js'
import { Reader, WAIT_OPTIONS, type WaitOptions } from './reader.js'

/** A pending waitRead() (of `size` bytes) or waitUntil() (of `needle`). */
class Wait {
  constructor(
    readonly size: number,
    readonly needle: Buffer | null,
    readonly resolve: (size?: number) => void,
    readonly reject: (reason: unknown) => void,
    readonly signal: AbortSignal | undefined,
    readonly abort: () => void,
  ) {}
}

/** A Reader to which more bytes may come: one wait at a time, which ends when they are here or never can be. */
export abstract class WaitingReader extends Reader {
  /** @internal Nothing more comes. */
  finished = false
  /** @internal */
  wait: Wait | null = null
  /** @internal Nobody can wait. */
  isTaken = false

  override get ended(): boolean {
    return this.finished
  }

  override waitRead(n: number, options?: WaitOptions): Promise<void> {
    checkInteger(n, 'n', 0, this.longest)
    checkOptions(options, WAIT_OPTIONS)
    if (this.refusal === '' && n <= this.unread && !this.isTaken) return Promise.resolve()
    return this.begin(n, null, options?.signal) as Promise<void>
  }

  override waitUntil(delimiter: Delimiter, options?: WaitOptions): Promise<number> {
    checkOptions(options, WAIT_OPTIONS)
    // Of its own: what the delimiter is must not change while it is waited for.
    const needle = needleOf(delimiter)
    const end = this.refusal === '' ? this.findNeedle(needle) : -1
    if (end >= 0 && !this.isTaken) return Promise.resolve(end)
    return this.begin(0, needle, options?.signal) as Promise<number>
  }

  /** @internal After news: a wait that is satisfied, or never can be, ends. */
  progress(): void {
    const { wait } = this
    if (wait === null) return
    const { size, needle } = wait
    const end = needle === null ? (size <= this.unread ? size : -1) : this.findNeedle(needle)
    if (end >= 0) this.endWait().resolve(needle === null ? undefined : end)
    else if (this.finished) this.rejectWait(this.failure())
    else this.lacking(size)
  }

  /** @internal */
  rejectWait(reason: unknown): void {
    if (this.wait !== null) this.endWait().reject(reason)
  }

  /** @internal The most bytes that can be waited for. */
  protected get longest(): number {
    return MAX_SIZE
  }

  /** @internal Why a wait cannot be satisfied. */
  protected abstract failure(): unknown

  /** @internal A wait of `size` bytes (0 = unknown) has begun. */
  protected abstract began(size: number): void

  /** @internal News did not satisfy a wait of `size` bytes (0 = unknown). */
  protected abstract lacking(size: number): void

  private begin(
    size: number,
    needle: Buffer | null,
    signal: AbortSignal | undefined,
  ): Promise<number | void> {
    if (signal?.aborted) return Promise.reject(signal.reason as Error)
    if (this.wait !== null || this.isTaken) {
      return Promise.reject(
        new NetpollError('ERR_NETPOLL_INVALID_STATE', 'Another wait of this Reader is pending'),
      )
    }
    if (this.refusal !== '' || this.finished) return Promise.reject(this.failure() as Error)
    const promise = new Promise<number | void>((resolve, reject) => {
      const abort = () => this.rejectWait(signal!.reason)
      this.wait = new Wait(size, needle, resolve, reject, signal, abort)
      signal?.addEventListener('abort', abort)
    })
    this.began(size)
    return promise
  }

  private endWait(): Wait {
    const wait = this.wait!
    this.wait = null
    wait.signal?.removeEventListener('abort', wait.abort)
    return wait
  }
}
