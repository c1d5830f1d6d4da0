import { checkEncoding, checkInteger, invalidType, invalidValue, MAX_SIZE, outOfRange } from './arguments.js'
import { NetpollError, type ErrorCode } from './errors.js'
import { foreignBlock, MAX_BLOCK, type Block, type Bytes, type Memory } from './memory.js'
import { Reader } from './reader.js'
import { Segment, type Chain } from './segment.js'

/** @internal Bytes from which on writeBinary() refers to its argument instead of copying it. */
export const BY_REFERENCE = 16 << 10

/** A long copy is made in pieces of this many bytes. */
const PIECE = 64 << 10

/** The methods that fill a Writer; where flush() takes the bytes is the matter of each kind. */
export type WriteMethods = Pick<
  BlockWriter,
  Extract<keyof BlockWriter, `write${string}` | `malloc${string}` | 'append'>
>

/**
 * A cursor behind the bytes that wait for flush(): of a connection, a LinkBuffer, or a stream (writerFrom()).
 *
 * Of a connection: after our own end(), close() or reset() its methods throw ERR_NETPOLL_CONN_CLOSED. After the peer has
 * ended the connection they work, and flush() drops the bytes; so does the end of a tick when no handler runs any more.
 * The write that would pass maxPendingBytes (or maxMemory) throws ERR_NETPOLL_OUTPUT_LIMIT and resets the connection.
 */
export interface Writer extends WriteMethods {
  /**
   * Hands all that was written to the poll. False: more than writeHighWaterMark is pending, or the peer has ended
   * the connection; await `connection.flushed()` before writing more.
   */
  flush(): boolean
}

/** What all Writers are: a chain of segments, and the methods that fill it. */
export abstract class BlockWriter {
  /** @internal Bytes that wait for flush(). */
  unflushed = 0
  /** @internal Why every method throws; '' = it does not. */
  refusal: ErrorCode | '' = ''
  /** @internal */
  head: Segment | null = null
  /** @internal */
  tail: Segment | null = null
  /** @internal Of what waits for flush(), malloc() has given room that may still be filled. */
  hasRoom = false

  /** @internal */
  constructor(
    /** @internal Of the poll that the connection is at. */
    public memory: Memory,
    /** @internal overflow() is asked before `unflushed` passes this. */
    protected limit: number,
  ) {}

  /** All bytes that wait for flush(). */
  get mallocLength(): number {
    return this.unflushed
  }

  /** Adds `n` bytes, to be filled in place until flush(), or mallocAck() drops them. What they hold at first is undefined. */
  malloc(n: number): Buffer {
    checkInteger(n, 'n', 0, MAX_SIZE)
    if (n > MAX_BLOCK) return this.foreignRoom(n)
    this.open(n)
    const { at, output } = this.memory
    this.filled(at + n)
    this.hasRoom = true
    return output.view(at, at + n)
  }

  /** Keeps the first `n` of the bytes that wait for flush() and drops the rest. */
  mallocAck(n: number): void {
    this.checkUnflushed(n, 'n')
    if (n >= this.unflushed) return
    const { memory } = this
    const last = this.boundary(n)
    const dropped = last === null ? this.head! : last.next!
    if (dropped.next === null && dropped.block === memory.output && dropped.end === memory.at) {
      memory.takeBack(dropped.start)
    }
    if (last === null) this.head = null
    else last.next = null
    this.tail = last
    this.unflushed = n
    this.dropAll(dropped)
  }

  /** Returns the count of bytes that `text` takes in `encoding`. */
  writeString(text: string, encoding: BufferEncoding = 'utf8'): number {
    if (typeof text !== 'string') throw invalidType('text', 'a string', text)
    const { memory } = this
    if (encoding === 'latin1') {
      const bytes = this.open(text.length)
      return this.filled(memory.at + bytes.latin1Write(text, memory.at, text.length))
    }
    if (encoding !== 'utf8') {
      checkEncoding(encoding)
      return this.writeBinary(Buffer.from(text, encoding))
    }
    // A UTF-16 unit is 3 bytes at most; only where those have no room is it worth the time to count them.
    let size = text.length * 3
    if (size > memory.room || this.unflushed + size > this.limit) size = Buffer.byteLength(text)
    const bytes = this.open(size)
    return this.filled(memory.at + bytes.utf8Write(text, memory.at, size))
  }

  /**
   * Returns the length of `bytes`. From 16 KiB on they are not copied: do not change, transfer or resize them until
   * flushed(). A view that a Reader has given keeps its block until it is sent.
   */
  writeBinary(bytes: Uint8Array): number {
    if (!(bytes instanceof Uint8Array)) throw invalidType('bytes', 'a Uint8Array', bytes)
    const { memory } = this
    const size = bytes.length
    if (size < BY_REFERENCE) {
      this.open(size).set(bytes, memory.at)
      return this.filled(memory.at + size)
    }
    this.check(size)
    const block = memory.blockOf(bytes)
    if (block === null) this.copyIn(bytes)
    else this.refer(block, bytes)
    return size
  }

  /** Puts `bytes` before the last `remain` of the bytes that wait for flush(). */
  writeDirect(bytes: Uint8Array, remain: number): void {
    this.checkUnflushed(remain, 'remain')
    const before = this.unflushed
    const added = this.writeBinary(bytes)
    if (remain === 0 || added === 0 || before === 0) return
    // From [kept][moved][new] to [kept][new][moved].
    const kept = this.boundary(before - remain)
    const moved = this.boundary(before)!
    const first = kept === null ? this.head : kept.next
    if (kept === null) this.head = moved.next
    else kept.next = moved.next
    this.tail!.next = first
    this.tail = moved
    moved.next = null
  }

  /**
   * Moves what waits in `source` (a Writer), is unread there (a Reader), or both (a LinkBuffer) behind what was
   * written so far, without a copy, and returns the count of bytes. They go with this Writer's flush().
   */
  append(source: Writer | Reader): number {
    if (!(source instanceof Reader || source instanceof BlockWriter)) {
      throw invalidType('source', 'a Writer or a Reader', source)
    }
    if (source === this) throw invalidValue('source', 'another Writer', source)
    const { supply } = source
    this.check(supply)
    if (source.hasRoom) this.hasRoom = true
    source.moveAllTo(this)
    return supply
  }

  writeByte(value: number): void {
    this.writeUInt8(value)
  }

  writeUInt8(value: number): void {
    this.filled(this.openInteger(value, 1).writeUInt8(value, this.memory.at))
  }
  writeUInt16BE(value: number): void {
    this.filled(this.openInteger(value, 2).writeUInt16BE(value, this.memory.at))
  }
  writeUInt16LE(value: number): void {
    this.filled(this.openInteger(value, 2).writeUInt16LE(value, this.memory.at))
  }
  writeUInt32BE(value: number): void {
    this.filled(this.openInteger(value, 4).writeUInt32BE(value, this.memory.at))
  }
  writeUInt32LE(value: number): void {
    this.filled(this.openInteger(value, 4).writeUInt32LE(value, this.memory.at))
  }
  writeBigUInt64BE(value: bigint): void {
    this.filled(this.openBigint(value).writeBigUInt64BE(value, this.memory.at))
  }
  writeBigUInt64LE(value: bigint): void {
    this.filled(this.openBigint(value).writeBigUInt64LE(value, this.memory.at))
  }
  writeInt8(value: number): void {
    this.filled(this.openInteger(value, 1).writeInt8(value, this.memory.at))
  }
  writeInt16BE(value: number): void {
    this.filled(this.openInteger(value, 2).writeInt16BE(value, this.memory.at))
  }
  writeInt16LE(value: number): void {
    this.filled(this.openInteger(value, 2).writeInt16LE(value, this.memory.at))
  }
  writeInt32BE(value: number): void {
    this.filled(this.openInteger(value, 4).writeInt32BE(value, this.memory.at))
  }
  writeInt32LE(value: number): void {
    this.filled(this.openInteger(value, 4).writeInt32LE(value, this.memory.at))
  }
  writeBigInt64BE(value: bigint): void {
    this.filled(this.openBigint(value).writeBigInt64BE(value, this.memory.at))
  }
  writeBigInt64LE(value: bigint): void {
    this.filled(this.openBigint(value).writeBigInt64LE(value, this.memory.at))
  }
  writeFloatBE(value: number): void {
    this.filled(this.openNumber(value, 4).writeFloatBE(value, this.memory.at))
  }
  writeFloatLE(value: number): void {
    this.filled(this.openNumber(value, 4).writeFloatLE(value, this.memory.at))
  }
  writeDoubleBE(value: number): void {
    this.filled(this.openNumber(value, 8).writeDoubleBE(value, this.memory.at))
  }
  writeDoubleLE(value: number): void {
    this.filled(this.openNumber(value, 8).writeDoubleLE(value, this.memory.at))
  }

  abstract flush(): boolean

  // ---- for those who own it, and for append()

  /** @internal Bytes that another's append() takes. */
  get supply(): number {
    return this.unflushed
  }

  /** @internal */
  moveAllTo(target: Chain): void {
    const { head, tail, unflushed } = this
    if (head === null) return
    this.empty()
    target.linkAll(head, tail!, unflushed)
  }

  /** @internal */
  link(segment: Segment): void {
    this.linkAll(segment, segment, segment.end - segment.start)
  }

  /** @internal */
  linkAll(first: Segment, last: Segment, size: number): void {
    const { tail } = this
    this.unflushed += size
    this.tail = last
    if (tail === null) this.head = first
    else if (tail.block === first.block && tail.end === first.start) {
      // What was taken piece by piece goes out as one again.
      tail.end = first.end
      tail.next = first.next
      if (first === last) this.tail = tail
      this.memory.drop(first.block!)
      Segment.give(first)
    } else tail.next = first
  }

  /** @internal Copies `bytes`, or nothing when it throws. */
  copyIn(bytes: Uint8Array): void {
    const before = this.unflushed
    try {
      for (let from = 0; from < bytes.length; from += PIECE) {
        const piece = bytes.subarray(from, from + PIECE)
        this.open(piece.length).set(piece, this.memory.at)
        this.filled(this.memory.at + piece.length)
      }
    } catch (error) {
      if (this.unflushed > before) this.mallocAck(before)
      throw error
    }
  }

  /** @internal Drops all that waits for flush(). */
  clear(): void {
    this.dropAll(this.head)
    this.empty()
  }

  /** @internal From now on every method throws. */
  refuse(code: ErrorCode): void {
    this.refusal = code
    this.clear()
  }

  /** Somebody else has what waits. */
  protected empty(): void {
    this.head = this.tail = null
    this.unflushed = 0
    this.hasRoom = false
  }

  /** `size` more bytes would pass the limit: makes it larger, or throws. */
  protected abstract overflow(size: number): void

  /** There is no memory for what is written. */
  protected abstract exhausted(): never

  // ---- private

  /** Not in the output block, which all Writers share: there is no second mapping of a Buffer that a user detaches. */
  private foreignRoom(n: number): Buffer {
    this.check(n)
    const bytes = Buffer.allocUnsafeSlow(n)
    this.refer(foreignBlock(bytes), bytes)
    return bytes
  }

  private check(size: number): void {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    if (this.unflushed + size > this.limit) this.overflow(size)
  }

  private checkUnflushed(n: number, name: string): void {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    checkInteger(n, name, 0, MAX_SIZE)
    // With a limit below 0 what was written is dropped before long, and is no less right for that.
    if (n > this.unflushed && this.limit >= 0) throw outOfRange(name, `<= ${this.unflushed}`, n)
  }

  /** The memory whose next `size` bytes, from `memory.at` on, are free. */
  private open(size: number): Bytes {
    this.check(size)
    if (!this.memory.reserve(size)) this.exhausted()
    return this.memory.output.bytes
  }

  /** open() for an integer: Buffer checks its range, but takes anything for a number. */
  private openInteger(value: number, size: number): Bytes {
    if (!Number.isInteger(value))
      checkInteger(value, 'value', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)
    return this.open(size)
  }

  private openBigint(value: bigint): Bytes {
    if (typeof value !== 'bigint') throw invalidType('value', 'a bigint', value)
    return this.open(8)
  }

  private openNumber(value: number, size: number): Bytes {
    if (typeof value !== 'number') throw invalidType('value', 'a number', value)
    return this.open(size)
  }

  /** The output block is filled up to `end` now; returns how much that adds. */
  private filled(end: number): number {
    const { memory, tail } = this
    const { at, output } = memory
    if (end === at) return 0
    memory.at = end
    if (tail !== null && tail.end === at && tail.block === output) {
      tail.end = end
      this.unflushed += end - at
    } else {
      output.refs++
      this.link(Segment.take(output, at, end))
    }
    return end - at
  }

  private refer(block: Block, bytes: Uint8Array): void {
    const start = block.chunk === null ? 0 : bytes.byteOffset
    block.refs++
    this.link(Segment.take(block, start, start + bytes.length))
  }

  /** The last segment of the first `n` unflushed bytes (null: n is 0), after which a segment ends exactly. */
  private boundary(n: number): Segment | null {
    let last: Segment | null = null
    for (let left = n; left > 0;) {
      last = last === null ? this.head! : last.next!
      const size = last.end - last.start
      if (left < size) this.split(last, last.start + left)
      left -= size
    }
    return last
  }

  private split(segment: Segment, at: number): void {
    const rest = Segment.take(segment.block!, at, segment.end)
    segment.block!.refs++
    segment.end = at
    rest.next = segment.next
    segment.next = rest
    if (this.tail === segment) this.tail = rest
  }

  private dropAll(first: Segment | null): void {
    for (let segment = first; segment !== null;) {
      const { next } = segment
      this.memory.drop(segment.block!)
      Segment.give(segment)
      segment = next
    }
  }
}
