import { Estate } from './estate.js'
import type { NativeEnvironment } from './native.js'
import type { Poll } from './poll.js'
import type { Reader } from './reader.js'
import { Submission } from './record.js'

/** Buffer with the methods that do not go through its argument checks. */
export interface Bytes extends Buffer {
  latin1Slice(start: number, end: number): string
  utf8Slice(start: number, end: number): string
  latin1Write(text: string, at: number, length: number): number
  utf8Write(text: string, at: number, length: number): number
}

/** The class of Buffers, whose constructor makes a view without Buffer's argument checks: half the time. */
const View = (Buffer as unknown as Record<symbol, unknown>)[Symbol.species] as new (
  memory: ArrayBufferLike,
  offset: number,
  length: number,
) => Buffer

/** The largest block that native code gives out; what has to be longer is a Buffer of our own. */
export const MAX_BLOCK = 1 << 20

const OUTPUT_BLOCK = 64 << 10

/** Slices that are looked at together, whether somebody still holds them. */
const SLICES = 4096

/** A mapping that users have views of, and the blocks that cannot go back before the last of them is collected. */
class OldMapping {
  collected = false

  constructor(
    readonly chunk: Chunk,
    readonly blocks: Block[],
  ) {}
}

const mappings = new FinalizationRegistry<OldMapping>((retired) => retired.chunk.collected(retired))

/** 4 MiB of native memory, mapped twice: users get views of the one mapping and may detach it, never the other. */
class Chunk {
  readonly bytes: Bytes
  readonly blocks: (Block | null)[]
  readonly shift: number
  private shared: ArrayBuffer
  /** In the order in which they were given up: older views may be of blocks that were abandoned later. */
  private readonly retired: OldMapping[] = []

  constructor(
    private readonly chunks: Chunks,
    readonly id: number,
  ) {
    this.shift = chunks.native.chunkShift(id)
    this.bytes = Buffer.from(chunks.native.mapChunk(id)) as Bytes
    this.shared = chunks.mapPublic(this)
    this.blocks = new Array<Block | null>(this.bytes.length >>> this.shift).fill(null)
  }

  newBlock(index: number): Block {
    const start = index << this.shift
    return new Block(this, this.bytes, start, start + (1 << this.shift))
  }

  view(start: number, end: number): Buffer {
    if (this.shared.byteLength === 0) this.shared = this.chunks.mapPublic(this)
    return new View(this.shared, start, end - start)
  }

  /** Drops `blocks` when no view can show them any more; views that are cut from now on do not count. */
  abandon(blocks: Block[]): void {
    const retired = new OldMapping(this, blocks)
    this.retired.push(retired)
    mappings.register(this.shared, retired)
    this.shared = this.chunks.mapPublic(this)
  }

  collected(retired: OldMapping): void {
    retired.collected = true
    while (this.retired.length !== 0 && this.retired[0]!.collected) {
      for (const block of this.retired.shift()!.blocks) block.home!.memory.drop(block)
    }
  }
}

/** The chunks of an environment, which the memories of all its polls share. */
export class Chunks {
  private readonly all: Chunk[] = []
  private readonly publics = new WeakMap<ArrayBufferLike, Chunk>()

  constructor(readonly native: NativeEnvironment) {}

  block(chunkId: number, offset: number): Block {
    const chunk = this.all[chunkId] ?? (this.all[chunkId] = new Chunk(this, chunkId))
    const index = offset >>> chunk.shift
    return chunk.blocks[index] ?? (chunk.blocks[index] = chunk.newBlock(index))
  }

  /** The chunk that a user's view lies in. */
  ofView(bytes: Uint8Array): Chunk | undefined {
    return this.publics.get(bytes.buffer)
  }

  mapPublic(chunk: Chunk): ArrayBuffer {
    const shared = this.native.mapChunk(chunk.id)
    this.publics.set(shared, chunk)
    return shared
  }

  /** Blocks of a poll that takes no records any more are at home with another one. */
  rehome(from: Poll, to: Poll): void {
    for (const chunk of this.all) {
      if (chunk === undefined) continue
      for (const block of chunk.blocks) if (block?.home === from) block.home = to
    }
  }
}

/**
 * JavaScript's side of a native block, or (without a chunk) a Buffer that native code knows nothing of.
 * `refs` counts the segments on it; when the last is gone, all that was `lent` goes back with one record.
 */
export class Block {
  refs = 0
  lent = 0
  /** It is the block that the Writers of a poll fill. */
  isOutput = false
  /**
   * While it is lent: the poll into whose ring its DONE goes, behind each SEND of it there. A SEND to another poll takes
   * a lent reference of its own along, for DONE could overtake it.
   */
  home: Poll | null = null

  constructor(
    readonly chunk: Chunk | null,
    readonly bytes: Bytes,
    /** Where it begins and ends in `bytes`. */
    readonly start: number,
    readonly end: number,
  ) {}

  /** A view for users. */
  view(start: number, end: number): Buffer {
    return this.chunk === null ? this.bytes.subarray(start, end) : this.chunk.view(start, end)
  }
}

/** The blocks that native code lends to this environment for the connections of one poll, and their output block. */
export class Memory {
  /** The block that the Writers of this poll's connections fill, from `at` on. */
  output: Block
  at = 0
  readonly native: NativeEnvironment
  private end = 0
  /** What lies before it in the output block is readable, and stays what it is. */
  private sealed = 0
  private readonly slices: Reader[] = []
  private abandoned: Block[] = []

  constructor(
    private readonly chunks: Chunks,
    /** The poll that is told of what comes back. */
    private home: Poll,
    /** Views are copies that release() detaches. */
    readonly debug: boolean,
  ) {
    this.native = chunks.native
    this.output = foreignBlock(Buffer.alloc(0))
    this.output.refs = 1
  }

  /** The block of a range that has been lent just now. */
  lend(chunkId: number, offset: number): Block {
    const block = this.chunks.block(chunkId, offset)
    // Whose it was before, when it is new here.
    if (block.lent++ === 0) block.home = this.home
    return block
  }

  /** Of a range that is lent. */
  bytesAt(chunkId: number, offset: number, length: number): Buffer {
    return this.chunks.block(chunkId, offset).bytes.subarray(offset, offset + length)
  }

  drop(block: Block): void {
    if (--block.refs === 0) this.giveBack(block)
  }

  /** Gives back what a DATA record has lent and nobody wants. */
  refuse(chunkId: number, offset: number): void {
    const block = this.lend(chunkId, offset)
    if (block.refs === 0) this.giveBack(block)
  }

  /** Of a block without references. */
  giveBack(block: Block): void {
    if (block.chunk === null) return
    block.home!.put(Submission.DONE, block.chunk.id, block.start, block.lent, 0, 0)
    block.lent = 0
  }

  /** Gives back lent references that no Block counts any more. */
  unshare(chunkId: number, offset: number, count: number): void {
    this.home.put(Submission.DONE, chunkId, offset, count, 0, 0)
  }

  /** A block of at least `size` bytes without references yet; null at maxMemory. */
  alloc(size: number): Block | null {
    if (size > MAX_BLOCK) return foreignBlock(Buffer.allocUnsafeSlow(size))
    let place = this.native.alloc(size)
    if (place < 0) {
      // What was given back since the last tick the polls have not heard of.
      for (const poll of this.home.environment.polls) poll.settle()
      place = this.native.alloc(size)
    }
    if (place < 0) return null
    return this.lend(Math.floor(place / 2 ** 32), place % 2 ** 32)
  }

  /** alloc() for what can do without: the last blocks are for what is to be sent. */
  allocSpare(size: number): Block | null {
    return size > MAX_BLOCK || this.home.scarce ? null : this.alloc(size)
  }

  /** Makes `size` bytes free from `at` on in the output block; false at maxMemory. */
  reserve(size: number): boolean {
    return size <= this.end - this.at || this.renew(size)
  }

  /** Of what a Writer has not kept, at the end of the output block. */
  takeBack(start: number): void {
    this.at = Math.max(start, this.sealed)
  }

  /** What was written up to now has become readable, so views of it may be out. */
  seal(): void {
    this.sealed = this.at
  }

  /** A new slice. To register each would cost more than all that is done with most: only those that last are. */
  sliced(slice: Reader): void {
    const count = this.slices.push(slice)
    if (count === 1) setImmediate(this.registerSlices)
    else if (count === SLICES) this.registerSlices()
  }

  /** Drops a block whose holder was collected, when the views are too that it may have given. */
  abandon(block: Block): void {
    if (block.chunk === null) return
    if (this.abandoned.length === 0) this.wantEndOfTick()
    this.abandoned.push(block)
  }

  /** At the end of each drain and tick. */
  endTick(): void {
    if (this.abandoned.length === 0) return
    // All that one collection has found needs one new mapping of its chunk.
    const byChunk = new Map<Chunk, Block[]>()
    for (const block of this.abandoned) {
      const others = byChunk.get(block.chunk!)
      if (others === undefined) byChunk.set(block.chunk!, [block])
      else others.push(block)
    }
    this.abandoned = []
    for (const [chunk, blocks] of byChunk) chunk.abandon(blocks)
  }

  /** Bytes left in the output block. */
  get room(): number {
    return this.end - this.at
  }

  /** The block from which `bytes` can be sent without a copy, so that a segment may refer to it; or null. */
  blockOf(bytes: Uint8Array): Block | null {
    const { buffer, byteOffset, byteLength } = bytes
    const chunk = this.chunks.ofView(bytes)
    if (chunk === undefined) {
      const fixed = buffer instanceof ArrayBuffer && !(buffer as { resizable?: boolean }).resizable
      // In debug mode release() detaches what a user may have taken from a Reader.
      return fixed && !this.debug ? foreignBlock(Buffer.from(buffer, byteOffset, byteLength)) : null
    }
    const block = chunk.blocks[byteOffset >>> chunk.shift]
    // A stale view's block has no references any more; a user can make a view across blocks; and an output
    // block may take back what a Writer has not kept.
    if (!block || block.refs === 0 || block.isOutput) return null
    return byteOffset + byteLength <= block.end ? block : null
  }

  /** Where that poll, which takes no records any more, was told of what comes back, `heir` is. */
  bequeath(poll: Poll, heir: Poll): void {
    if (this.home !== poll) return
    this.home = heir
    this.setOutput(foreignBlock(Buffer.alloc(0)))
  }

  /** Its poll has been started anew. */
  restore(home: Poll): void {
    this.home = home
  }

  private wantEndOfTick(): void {
    const { environment } = this.home
    if (!environment.draining) environment.schedule()
  }

  private readonly registerSlices = (): void => {
    for (const slice of this.slices) if (!slice.holdsNothing) slice.leaveTo(new Estate(this, null))
    this.slices.length = 0
  }

  private renew(size: number): boolean {
    const block = this.alloc(Math.max(OUTPUT_BLOCK, size))
    if (block === null) return false
    this.setOutput(block)
    return true
  }

  private setOutput(block: Block): void {
    block.refs++
    block.isOutput = true
    this.output.isOutput = false
    this.drop(this.output)
    this.output = block
    this.at = this.sealed = block.start
    this.end = block.end
  }
}

/** The block of a Buffer; it needs no giving back. */
export function foreignBlock(bytes: Buffer): Block {
  return new Block(null, bytes as Bytes, 0, bytes.length)
}
