import type { Block } from './memory.js'

/** Nodes kept for reuse; more than a burst needs would only hold memory. */
const POOL_SIZE = 4096

/**
 * A range of a block, and a node of a Reader's or Writer's chain. It holds one of the block's JavaScript
 * references; whoever gives the segment back drops that too.
 */
export class Segment {
  block: Block | null
  /** start <= end; positions in `block.bytes` */
  start: number
  end: number
  /** Bytes from `end` up to here are free and belong to this segment alone; 0 = none are. */
  limit: number
  next: Segment | null

  private constructor() {
    this.block = null
    this.start = 0
    this.end = 0
    this.limit = 0
    this.next = null
  }

  static take(block: Block, start: number, end: number): Segment {
    let segment = pool
    if (segment === null) segment = new Segment()
    else {
      pool = segment.next
      pooled--
      segment.next = null
    }
    segment.block = block
    segment.start = start
    segment.end = end
    return segment
  }

  static give(segment: Segment): void {
    if (pooled === POOL_SIZE) return
    segment.block = null
    segment.limit = 0
    segment.next = pool
    pool = segment
    pooled++
  }
}

/** The chain of a Reader or a Writer, as those see it who move segments there. */
export interface Chain {
  link(segment: Segment): void
  /** All from `first` to `last`, which hold `size` bytes. */
  linkAll(first: Segment, last: Segment, size: number): void
}

let pool: Segment | null = null
let pooled = 0
