import { invalidValue } from './arguments.js'
import { environment } from './environment.js'
import { NetpollError } from './errors.js'
import { Estate } from './estate.js'
import type { Memory } from './memory.js'
import type { Reader } from './reader.js'
import type { Chain } from './segment.js'
import { WaitingReader } from './wait.js'
import { BlockWriter, type WriteMethods, type Writer } from './writer.js'

/** What waits for flush() in a LinkBuffer, or on its way into the Reader of a stream. */
export class Pending extends BlockWriter {
  constructor(memory: Memory) {
    super(memory, Infinity)
  }

  override flush(): boolean {
    return true
  }

  protected override overflow(): void {}

  protected override exhausted(): never {
    throw new NetpollError('ERR_NETPOLL_OUTPUT_LIMIT', 'There is no memory left within maxMemory')
  }
}

// The loop at the end adds what this tells.
// oxlint-disable-next-line typescript/no-unsafe-declaration-merging
export interface LinkBuffer extends WriteMethods {}

/**
 * A Reader and a Writer in one, without a connection: what is written becomes readable with flush(), which answers
 * true. A message can be built or collected here, and then moved by append(), which copies nothing.
 *
 * A wait resolves when enough has been flushed, and rejects with ERR_NETPOLL_EOF after end(). A write for which
 * maxMemory leaves no room throws ERR_NETPOLL_OUTPUT_LIMIT, and changes nothing. It keeps no process alive. What
 * writeBinary() does not copy has to stay as it is until it has been read here, or sent.
 *
 * close() gives its blocks back at once; `using` does so by itself. One that is merely forgotten gives them back some
 * time after it and the views of it have been collected.
 */
export class LinkBuffer extends WaitingReader implements Writer {
  private readonly pending: Pending

  constructor() {
    const { memory } = environment()
    super(memory)
    this.pending = new Pending(memory)
    this.leaveTo(new Estate(memory, this.pending))
  }

  /** As Writer.append(); of a LinkBuffer, its unflushed bytes too. Its own bytes are ERR_INVALID_ARG_VALUE. */
  append(source: Writer | Reader): number {
    if ((source as unknown) === this) throw invalidValue('source', 'another LinkBuffer', source)
    // Views of what is in the output block of another poll may soon be out.
    if (source instanceof BlockWriter) source.memory.seal()
    return this.pending.append(source)
  }

  /** Makes all that was written readable; true. */
  flush(): boolean {
    if (this.pending.refusal !== '') throw new NetpollError(this.pending.refusal)
    this.memory.seal()
    this.pending.moveAllTo(this)
    this.progress()
    return true
  }

  /** Ends the views that next(), peek() and until() have given. */
  override release(): void {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    this.endViews()
  }

  /**
   * Nothing more will be written: write methods throw ERR_NETPOLL_CONN_CLOSED from now on, and a wait that cannot be
   * satisfied rejects with ERR_NETPOLL_EOF. Unflushed bytes are dropped; what is unread stays readable.
   */
  end(): void {
    if (this.finished) return
    this.finished = true
    this.pending.refuse('ERR_NETPOLL_CONN_CLOSED')
    this.progress()
  }

  /** Drops all bytes, ends the views, and rejects a pending wait: every method throws ERR_NETPOLL_CONN_CLOSED then. */
  close(): void {
    this.finished = true
    this.pending.refuse('ERR_NETPOLL_CONN_CLOSED')
    this.refuse('ERR_NETPOLL_CONN_CLOSED')
    this.endViews()
    this.rejectWait(this.failure())
  }

  /** close() */
  [Symbol.dispose](): void {
    this.close()
  }

  /** @internal */
  override clear(): void {
    super.clear()
    this.pending.clear()
  }

  /** @internal */
  override get supply(): number {
    return this.unread + this.pending.unflushed
  }

  /** @internal */
  override get hasRoom(): boolean {
    return this.pending.hasRoom
  }

  /** @internal */
  override moveAllTo(target: Chain): void {
    super.moveAllTo(target)
    this.pending.moveAllTo(target)
  }

  /** @internal */
  override abandon(): void {
    this.close()
  }

  /** @internal */
  protected override failure(): NetpollError {
    return new NetpollError(this.refusal === '' ? 'ERR_NETPOLL_EOF' : this.refusal)
  }

  /** @internal */
  protected override began(): void {}

  /** @internal */
  protected override lacking(): void {}
}

for (const [name, method] of Object.entries(Object.getOwnPropertyDescriptors(BlockWriter.prototype))) {
  if (/^(?:malloc|write)/.test(name)) Object.defineProperty(LinkBuffer.prototype, name, delegated(method))
}

/** `method` of a LinkBuffer's Pending, as one of the LinkBuffer. */
function delegated({ get, value }: PropertyDescriptor): PropertyDescriptor {
  if (get === undefined) {
    const method = value as (this: Pending, a: unknown, b: unknown) => unknown
    return {
      configurable: true,
      writable: true,
      value(this: { pending: Pending }, a: unknown, b: unknown) {
        return method.call(this.pending, a, b)
      },
    }
  }
  return {
    configurable: true,
    get(this: { pending: Pending }) {
      return get.call(this.pending) as unknown
    },
  }
}
