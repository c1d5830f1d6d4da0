import { abortSignal, checkEncoding, checkInteger, checkOptions, MAX_SIZE } from './arguments.js'
import { matches, needleOf, type Delimiter } from './delimiter.js'
import { NetpollError, type ErrorCode } from './errors.js'
import type { Estate } from './estate.js'
import { foreignBlock, MAX_BLOCK, type Bytes, type Memory } from './memory.js'
import { Segment, type Chain } from './segment.js'

export interface WaitOptions {
  /** Its abort rejects the wait with the signal's reason. */
  signal?: AbortSignal
}

/**
 * A cursor over bytes that are here: of a connection, a LinkBuffer, a slice, or a stream (readerFrom()). Its methods are
 * synchronous and throw ERR_NETPOLL_SHORT_READ, consuming nothing, when there are fewer bytes than they need;
 * ERR_OUT_OF_RANGE or ERR_INVALID_ARG_TYPE for a bad size; ERR_NETPOLL_CONN_CLOSED after our own close() or reset().
 *
 * ```
 * head                          tail
 * [start..end) -> [start..end) -> [start..end)        unread, each a range of a block
 * held -> ...                                         read, but views of them are out until release()
 * ```
 */
export class Reader {
  /** Bytes that can be read now. */
  get length(): number {
    return this.unread
  }

  /** Whether the peer has finished sending, and all it has sent has been delivered here (and may be unread). */
  get ended(): boolean {
    return true
  }

  /** @internal */
  unread = 0
  /** @internal Bytes ever consumed, modulo 2^32. */
  consumed = 0
  /** @internal Why every method throws; '' = it does not. */
  refusal: ErrorCode | '' = ''
  /** @internal */
  head: Segment | null = null
  /** @internal */
  tail: Segment | null = null
  /** @internal A view has been given out since the last release(). */
  viewed = false
  private held: Segment | null = null
  /** Where near() has found its bytes. */
  private at = 0
  private needle: Buffer = EMPTY
  /** Unread bytes in which the needle does not begin, as long as `consumed` is `scannedAt`. */
  private scanned = 0
  private scannedAt = 0
  private copies: ArrayBuffer[] | null = null
  /** Knows `head` and `held`, for the case that this is collected without a release. */
  private estate: Estate | null = null

  /** @internal */
  constructor(
    /** @internal Of the poll that the connection is at. */
    public memory: Memory,
  ) {}

  /** Takes the next `n` bytes: a view, valid until release(). */
  next(n: number): Buffer {
    this.need(n)
    const view = this.view(n)
    this.advance(n)
    return view
  }

  /** The next `n` bytes as next() gives them, but they stay unread. */
  peek(n: number): Buffer {
    this.need(n)
    return this.view(n)
  }

  /** Takes all up to and including `delimiter` as next() does; undefined when it is not here yet. */
  until(delimiter: Delimiter): Buffer | undefined {
    const end = this.find(delimiter)
    return end < 0 ? undefined : this.next(end)
  }

  /** Consumes `n` bytes. */
  skip(n: number): void {
    this.need(n)
    this.advance(n)
  }

  /** Takes `n` bytes as a string. */
  readString(n: number, encoding: BufferEncoding = 'utf8'): string {
    this.need(n)
    if (encoding !== 'utf8' && encoding !== 'latin1') checkEncoding(encoding)
    if (n === 0) return ''
    const bytes = this.near(n)
    const { at } = this
    const text =
      encoding === 'utf8'
        ? bytes.utf8Slice(at, at + n)
        : encoding === 'latin1'
          ? bytes.latin1Slice(at, at + n)
          : bytes.toString(encoding, at, at + n)
    this.advance(n)
    return text
  }

  /** Takes a copy of the next `n` bytes, which is yours. */
  readBinary(n: number): Buffer {
    this.need(n)
    const copy = Buffer.allocUnsafe(n)
    this.copyTo(copy, 0, n)
    this.advance(n)
    return copy
  }

  /** Takes `n` bytes without a copy: a Reader of its own that keeps their blocks until its own release(). */
  slice(n: number): Reader {
    this.need(n)
    const slice = new Slice(this.memory)
    this.moveTo(slice, n)
    this.memory.sliced(slice)
    return slice
  }

  readByte(): number {
    return this.readUInt8()
  }

  readUInt8(): number {
    return this.took(this.near(1)[this.at]!, 1)
  }
  readUInt16BE(): number {
    return this.took(this.near(2).readUInt16BE(this.at), 2)
  }
  readUInt16LE(): number {
    return this.took(this.near(2).readUInt16LE(this.at), 2)
  }
  readUInt32BE(): number {
    return this.took(this.near(4).readUInt32BE(this.at), 4)
  }
  readUInt32LE(): number {
    return this.took(this.near(4).readUInt32LE(this.at), 4)
  }
  readBigUInt64BE(): bigint {
    return this.took(this.near(8).readBigUInt64BE(this.at), 8)
  }
  readBigUInt64LE(): bigint {
    return this.took(this.near(8).readBigUInt64LE(this.at), 8)
  }
  readInt8(): number {
    return this.took(this.near(1).readInt8(this.at), 1)
  }
  readInt16BE(): number {
    return this.took(this.near(2).readInt16BE(this.at), 2)
  }
  readInt16LE(): number {
    return this.took(this.near(2).readInt16LE(this.at), 2)
  }
  readInt32BE(): number {
    return this.took(this.near(4).readInt32BE(this.at), 4)
  }
  readInt32LE(): number {
    return this.took(this.near(4).readInt32LE(this.at), 4)
  }
  readBigInt64BE(): bigint {
    return this.took(this.near(8).readBigInt64BE(this.at), 8)
  }
  readBigInt64LE(): bigint {
    return this.took(this.near(8).readBigInt64LE(this.at), 8)
  }
  readFloatBE(): number {
    return this.took(this.near(4).readFloatBE(this.at), 4)
  }
  readFloatLE(): number {
    return this.took(this.near(4).readFloatLE(this.at), 4)
  }
  readDoubleBE(): number {
    return this.took(this.near(8).readDoubleBE(this.at), 8)
  }
  readDoubleLE(): number {
    return this.took(this.near(8).readDoubleLE(this.at), 8)
  }

  /**
   * Resolves when `n` bytes are here. Rejects with ERR_NETPOLL_READ_TIMEOUT, ERR_NETPOLL_EOF,
   * ERR_NETPOLL_CONN_CLOSED, the system error that has ended the connection, the reason of `options.signal`,
   * or ERR_NETPOLL_INVALID_STATE while another wait is pending. A wait that rejects consumes nothing.
   */
  waitRead(n: number, options?: WaitOptions): Promise<void> {
    checkInteger(n, 'n', 0, MAX_SIZE)
    checkOptions(options, WAIT_OPTIONS)
    return n <= this.unread ? Promise.resolve() : Promise.reject(new NetpollError('ERR_NETPOLL_EOF'))
  }

  /** Resolves to the count of bytes up to and including `delimiter`, when it is here. Rejects as waitRead() does. */
  waitUntil(delimiter: Delimiter, options?: WaitOptions): Promise<number> {
    checkOptions(options, WAIT_OPTIONS)
    const end = this.find(delimiter)
    return end >= 0 ? Promise.resolve(end) : Promise.reject(new NetpollError('ERR_NETPOLL_EOF'))
  }

  /** Ends the views that next(), peek() and until() have given. It comes by itself when a handler has ended. */
  release(): void {
    this.endViews()
  }

  // ---- for those who own it, and for Writer.append()

  /** @internal Bytes that append() takes. */
  get supply(): number {
    return this.unread
  }

  /** @internal */
  moveAllTo(target: Chain): void {
    const { head, tail, unread } = this
    if (head === null) return
    // The bytes of a segment stay here too while views of them may be out.
    if (this.viewed) return this.moveTo(target, unread)
    this.head = this.tail = null
    this.unread = 0
    this.consumed = (this.consumed + unread) | 0
    this.keepEstate()
    target.linkAll(head, tail!, unread)
    this.emptied()
  }

  /** @internal Only of what is written room may still be filled. */
  get hasRoom(): boolean {
    return false
  }

  /** @internal Lets go of what was consumed. */
  letGo(): void {
    this.release()
  }

  /** @internal Whoever took it over has no more use for it. */
  abandon(): void {
    this.release()
  }

  /** @internal What it holds, and what the estate has besides, is given back even if nobody releases it. */
  leaveTo(estate: Estate): void {
    this.estate = estate
    this.keepEstate()
    estate.register(this)
  }

  /** @internal Neither bytes nor views. */
  get holdsNothing(): boolean {
    return this.head === null && this.held === null
  }

  /** @internal */
  endViews(): void {
    this.viewed = false
    for (let segment = this.held; segment !== null;) {
      const { next } = segment
      this.memory.drop(segment.block!)
      Segment.give(segment)
      segment = next
    }
    this.held = null
    this.keepEstate()
    if (this.copies !== null) {
      // One that a user has detached has no length.
      for (const copy of this.copies) if (copy.byteLength !== 0) structuredClone(copy, { transfer: [copy] })
      this.copies = null
    }
  }

  /** @internal Drops all that is unread, and the views. */
  clear(): void {
    if (this.unread !== 0) this.advance(this.unread)
    this.endViews()
  }

  /** @internal From now on every method throws. */
  refuse(code: ErrorCode): void {
    this.refusal = code
    if (this.unread !== 0) this.advance(this.unread)
  }

  /** @internal Moves the next `n` bytes to the end of another chain. */
  moveTo(target: Chain, n: number): void {
    for (let left = n; left > 0;) {
      const { block, start, end } = this.head!
      const part = Math.min(left, end - start)
      block!.refs++
      target.link(Segment.take(block!, start, start + part))
      this.advance(part)
      left -= part
    }
  }

  /** @internal */
  link(segment: Segment): void {
    this.linkAll(segment, segment, segment.end - segment.start)
  }

  /** @internal */
  linkAll(first: Segment, last: Segment, size: number): void {
    const { tail } = this
    this.unread += size
    this.tail = last
    if (tail === null) {
      this.head = first
      this.keepEstate()
    } else if (tail.block === first.block && tail.end === first.start) {
      // What was written piece by piece lies together again.
      tail.end = first.end
      tail.next = first.next
      if (first === last) this.tail = tail
      this.memory.drop(first.block!)
      Segment.give(first)
    } else tail.next = first
  }

  /** @internal Puts the first `n` bytes into `target`, from `at` on. */
  copyTo(target: Uint8Array, at: number, n: number): void {
    let left = n
    for (let segment = this.head; left > 0; segment = segment!.next) {
      const { block, start, end } = segment!
      left -= block!.bytes.copy(target, at + n - left, start, Math.min(end, start + left))
    }
  }

  /** @internal Bytes up to and including the delimiter, or -1. */
  find(delimiter: Delimiter): number {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    return this.findNeedle(needleOf(delimiter))
  }

  /** @internal find() of what needleOf() has made of a delimiter. */
  findNeedle(needle: Buffer): number {
    if (this.consumed !== this.scannedAt || (needle !== this.needle && !needle.equals(this.needle)))
      this.scanned = 0
    this.scannedAt = this.consumed
    this.needle = needle
    let before = 0
    for (let segment = this.head; segment !== null; segment = segment.next) {
      const { block, start, end } = segment
      const from = start + Math.max(0, this.scanned - before)
      if (from < end) {
        const found = block!.bytes.subarray(from, end).indexOf(needle)
        let at =
          found >= 0 ? from + found : segment.next === null ? end : Math.max(from, end - needle.length + 1)
        while (found < 0 && at < end && !matches(segment, at, needle)) at++
        if (at < end) {
          this.scanned = before + at - start
          return this.scanned + needle.length
        }
      }
      before += end - start
    }
    this.scanned = Math.max(this.scanned, this.unread - needle.length + 1)
    return -1
  }

  // ---- private

  /** @internal Throws unless `n` bytes are here. */
  protected need(n: number): void {
    if (this.refusal !== '') throw new NetpollError(this.refusal)
    if (Number.isInteger(n) && n >= 0 && n <= this.unread) return
    checkInteger(n, 'n', 0, MAX_SIZE)
    throw new NetpollError('ERR_NETPOLL_SHORT_READ', `${n} bytes were asked for, ${this.unread} are here`)
  }

  private view(n: number): Buffer {
    if (n === 0) return EMPTY
    if (n > MAX_BLOCK || this.memory.debug) return this.copy(n)
    this.near(n)
    const { at } = this
    const block = this.head!.block!
    // There is no second mapping of a Buffer, should a user detach it.
    if (block.chunk === null) return this.copy(n)
    this.viewed = true
    return block.view(at, at + n)
  }

  private copy(n: number): Buffer {
    const copy = Buffer.allocUnsafeSlow(n)
    this.copyTo(copy, 0, n)
    if (this.memory.debug) (this.copies ??= []).push(copy.buffer)
    return copy
  }

  /** The memory in which the next `n` > 0 bytes lie together, from `at` on. */
  private near(n: number): Bytes {
    const { head } = this
    if (head === null || head.end - head.start < n) return this.gather(n)
    this.at = head.start
    return head.block!.bytes
  }

  private took<T>(value: T, n: number): T {
    this.advance(n)
    return value
  }

  private advance(n: number): void {
    this.consumed = (this.consumed + n) | 0
    this.unread -= n
    while (n > 0) {
      const head = this.head!
      const here = head.end - head.start
      if (here > n) {
        head.start += n
        return
      }
      n -= here
      this.retireHead(head)
    }
  }

  /** Nothing is left to read now. */
  protected emptied(): void {}

  private retireHead(head: Segment): void {
    this.head = head.next
    if (head.next === null) {
      this.tail = null
      this.emptied()
    }
    if (this.viewed) {
      head.next = this.held
      this.held = head
    } else {
      this.memory.drop(head.block!)
      Segment.give(head)
    }
    this.keepEstate()
  }

  private keepEstate(): void {
    const { estate } = this
    if (estate === null) return
    estate.head = this.head
    estate.held = this.held
  }

  /** Replaces the segments of the next `n` bytes by one, so that the bytes are copied once however often asked for. */
  private gather(n: number): Bytes {
    this.need(n)
    const memory = this.memory
    const block = memory.allocSpare(n) ?? foreignBlock(Buffer.allocUnsafeSlow(n))
    const merged = Segment.take(block, block.start, block.start + n)
    block.refs++
    this.copyTo(block.bytes, block.start, n)
    this.replace(merged, n)
    this.at = merged.start
    return block.bytes
  }

  /** Puts `copy` in the place of the next `n` bytes. */
  protected replace(copy: Segment, n: number): void {
    const { consumed } = this
    this.advance(n)
    this.consumed = consumed
    this.unread += n
    copy.next = this.head
    this.head = copy
    this.tail ??= copy
    this.keepEstate()
  }
}

/** What slice() gives: its release() ends it. */
class Slice extends Reader {
  override release(): void {
    this.clear()
  }

  override letGo(): void {
    this.endViews()
  }
}

/** @internal */
export const WAIT_OPTIONS = { signal: abortSignal }

const EMPTY = Buffer.alloc(0)
