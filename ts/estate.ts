import type { Memory } from './memory.js'
import type { Segment } from './segment.js'

/** Who has a chain. */
interface Holder {
  head: Segment | null
}

/**
 * What a slice or a LinkBuffer leaves behind when it is collected without release() or close(): its owner keeps
 * `head` and `held` up to date, and must not be reachable from here.
 */
export class Estate {
  head: Segment | null = null
  held: Segment | null = null

  constructor(
    private readonly memory: Memory,
    private readonly writer: Holder | null,
  ) {}

  register(owner: object): void {
    estates.register(owner, this)
  }

  /** Views may still be in use, of what was unread or unflushed too. */
  settle(): void {
    for (const first of [this.head, this.held, this.writer === null ? null : this.writer.head]) {
      for (let segment = first; segment !== null; segment = segment.next) this.memory.abandon(segment.block!)
    }
  }
}

const estates = new FinalizationRegistry<Estate>((estate) => estate.settle())
