import { finished, Readable, Writable } from 'node:stream'
import { checkOptions, integer, invalidType, MAX_SIZE } from './arguments.js'
import { environment } from './environment.js'
import { NetpollError } from './errors.js'
import { Estate } from './estate.js'
import { LinkBuffer, Pending } from './link_buffer.js'
import { foreignBlock } from './memory.js'
import { Output } from './output.js'
import { Reader } from './reader.js'
import { Segment } from './segment.js'
import { WaitingReader } from './wait.js'
import { BlockWriter, BY_REFERENCE, type Writer } from './writer.js'

/** What readerFrom() reads: web streams are iterables too. Chunks are bytes, or strings (in UTF-8). */
export type ReadableSource =
  NodeJS.ReadableStream | AsyncIterable<Uint8Array | string> | Iterable<Uint8Array | string>

export interface ReaderFromOptions {
  /** The most bytes that a wait can make unread. Default: 64 MiB. */
  maxReadBytes?: number
}

/** What writerFrom() gives. */
export interface StreamWriter extends Writer {
  /**
   * Hands all that was written to the stream, as Buffers of its own. False: the stream wants no more for now, or has
   * ended or failed (then the bytes are dropped); await flushed() before writing more.
   */
  flush(): boolean
  /** Resolves when the stream has taken all that was flushed; rejects with the error that has ended the stream. */
  flushed(): Promise<void>
}

const OPTIONS = { maxReadBytes: integer(1, MAX_SIZE) }

const MAX_READ = 64 << 20

/** @internal Bytes that a stream copies out of a Reader at a time. */
export const COPY = 64 << 10

/**
 * A Reader over a stream, a web ReadableStream, or an iterable. Waits take from the stream what they need, so that no
 * more than one chunk (or what the stream has buffered) is unread beyond a wait; the other methods see what is here.
 * A wait rejects with ERR_NETPOLL_EOF when the stream has ended, with the stream's error when it has failed, and with
 * ERR_NETPOLL_INPUT_LIMIT when a delimiter is not within `maxReadBytes`; it consumes nothing then.
 *
 * The stream is the Reader's: do not read it otherwise. Its errors come with the waits alone.
 */
export function readerFrom(source: ReadableSource, options?: ReaderFromOptions): Reader {
  const stream = readableOf(source)
  checkOptions(options, OPTIONS)
  return new StreamReader(stream, options?.maxReadBytes ?? MAX_READ)
}

/**
 * A Writer whose flush() writes to a stream. It does not end the stream, whose errors come with flushed() alone.
 * Bytes written by reference are not copied here either: do not change them until flushed().
 */
export function writerFrom(writable: NodeJS.WritableStream): StreamWriter {
  const given = writable as Partial<Writable> | null | undefined
  if (typeof given?.write !== 'function' || typeof given.on !== 'function') {
    throw invalidType('writable', 'a Writable', writable)
  }
  return new WriterOfStream(writable as Writable)
}

/**
 * A Readable of all that comes to `reader`, as copies, until its end; it fails with what a wait rejects with. The
 * Reader is the stream's: destroy() gives its blocks back. It does not close the connection of a Reader.
 */
export function toReadable(reader: Reader): Readable {
  if (!(reader instanceof Reader)) throw invalidType('reader', 'a Reader', reader)
  return new ReadableOfReader(reader)
}

/**
 * A Writable that writes to `writer`, and flushes. It asks for no more while the writer's flush() is false; 'finish'
 * comes when all has been taken: by the kernel of a connection, by the stream of writerFrom(). It ends neither: that
 * remains yours. `writer` is a connection's, a LinkBuffer, or of writerFrom().
 */
export function toWritable(writer: Writer): Writable {
  if (!isWriter(writer)) throw invalidType('writer', 'a Writer', writer)
  return new WritableOfWriter(writer)
}

class StreamReader extends WaitingReader {
  private readonly pending: Pending
  /** Why nothing more comes. */
  private cause: unknown

  constructor(
    private readonly stream: Readable,
    private readonly maxReadBytes: number,
  ) {
    const { memory } = environment()
    super(memory)
    this.pending = new Pending(memory)
    this.leaveTo(new Estate(memory, this.pending))
    finished(stream, { writable: false }, (error) => this.finish(error))
    stream.on('readable', () => this.news())
  }

  override abandon(): void {
    this.stream.destroy()
    this.clear()
  }

  protected override get longest(): number {
    return this.maxReadBytes
  }

  protected override failure(): unknown {
    return this.cause ?? new NetpollError('ERR_NETPOLL_EOF', 'The stream has ended')
  }

  protected override began(): void {
    this.pull()
  }

  protected override lacking(): void {
    if (this.unread >= this.maxReadBytes) this.rejectWait(new NetpollError('ERR_NETPOLL_INPUT_LIMIT'))
  }

  private finish(error: unknown): void {
    this.finished = true
    this.cause = error
    this.progress()
  }

  private news(): void {
    this.pull()
    // Then all was read, and the stream says so only when it is asked once more.
    if (this.stream.readableLength === 0) this.stream.read(0)
  }

  /** Takes from the stream what the pending wait needs. */
  private pull(): void {
    while (this.wait !== null) {
      const chunk = this.stream.read() as unknown
      if (chunk === null) return
      const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
      if (!(bytes instanceof Uint8Array)) {
        this.stream.destroy(invalidType('chunk', 'a string or a Uint8Array', chunk))
        return
      }
      this.take(bytes)
      this.progress()
    }
  }

  /** Copied into blocks, so that they can be viewed and sent; where there is no memory for that, as they are. */
  private take(bytes: Uint8Array): void {
    try {
      this.pending.copyIn(bytes)
      this.memory.seal()
      this.pending.moveAllTo(this)
    } catch {
      const block = foreignBlock(Buffer.from(bytes))
      block.refs++
      this.link(Segment.take(block, 0, bytes.length))
    }
  }
}

class WriterOfStream extends BlockWriter implements StreamWriter {
  private error: unknown
  /** Writes whose callback has not come. */
  private writing = 0
  private drains: { resolve: () => void; reject: (error: unknown) => void }[] = []

  constructor(private readonly stream: Writable) {
    super(environment().memory, Infinity)
    finished(stream, { readable: false }, (error) => {
      if (error) this.fail(error)
    })
  }

  override flush(): boolean {
    const { stream } = this
    if (!this.takesMore) {
      this.clear()
      return false
    }
    const chunks = this.copies()
    this.clear()
    stream.cork()
    for (const chunk of chunks) stream.write(chunk, this.written)
    this.writing += chunks.length
    stream.uncork()
    return !stream.writableNeedDrain
  }

  flushed(): Promise<void> {
    if (this.error !== undefined) return Promise.reject(this.error as Error)
    if (this.writing === 0) return this.takesMore ? Promise.resolve() : Promise.reject(streamEnded())
    return new Promise((resolve, reject) => this.drains.push({ resolve, reject }))
  }

  protected override overflow(): void {}

  protected override exhausted(): never {
    throw new NetpollError('ERR_NETPOLL_OUTPUT_LIMIT', 'There is no memory left within maxMemory')
  }

  private get takesMore(): boolean {
    return this.error === undefined && this.stream.writable
  }

  private readonly written = (error?: Error | null): void => {
    this.writing--
    if (error) this.fail(error)
    else if (this.writing === 0) for (const drain of this.drains.splice(0)) drain.resolve()
  }

  private fail(error: unknown): void {
    this.error ??= error
    this.clear()
    for (const drain of this.drains.splice(0)) drain.reject(this.error)
  }

  /** What waits, in Buffers that the stream may keep: blocks are filled again. */
  private copies(): Buffer[] {
    const chunks: Buffer[] = []
    let run: Buffer[] = []
    for (let segment = this.head; segment !== null; segment = segment.next) {
      const { block, start, end } = segment
      const bytes = block!.bytes.subarray(start, end)
      if (block!.chunk !== null) run.push(bytes)
      else {
        if (run.length !== 0) chunks.push(Buffer.concat(run))
        run = []
        chunks.push(bytes)
      }
    }
    if (run.length !== 0) chunks.push(Buffer.concat(run))
    return chunks
  }
}

class ReadableOfReader extends Readable {
  private readonly gone = new AbortController()

  constructor(private readonly reader: Reader) {
    super()
  }

  override _read(): void {
    if (this.reader.unread !== 0) this.give()
    else this.reader.waitRead(1, { signal: this.gone.signal }).then(this.give, this.stop)
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.gone.abort()
    try {
      this.reader.abandon()
    } catch {
      // The connection is closed: nothing is left to give back.
    }
    callback(error)
  }

  private readonly give = (): void => {
    const { reader } = this
    // Its bytes are whoever has the Reader now.
    if (this.destroyed) return
    try {
      const bytes = reader.readBinary(Math.min(reader.unread, COPY))
      reader.letGo()
      this.push(bytes)
    } catch (error) {
      this.destroy(error as Error)
    }
  }

  private readonly stop = (error: unknown): void => {
    if ((error as Partial<NetpollError>).code === 'ERR_NETPOLL_EOF') this.push(null)
    else this.destroy(error as Error)
  }
}

class WritableOfWriter extends Writable {
  constructor(private readonly writer: KnownWriter) {
    super()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, taken: Callback): void {
    this.pass([{ chunk }], taken)
  }

  override _writev(chunks: { chunk: Buffer }[], taken: Callback): void {
    this.pass(chunks, taken)
  }

  override _final(taken: Callback): void {
    this.flushed().then(() => taken(), taken)
  }

  private pass(chunks: { chunk: Buffer }[], taken: Callback): void {
    let done = true
    try {
      for (const { chunk } of chunks) done = this.add(chunk) && done
      done = this.writer.flush() && done
    } catch (error) {
      taken(error as Error)
      return
    }
    if (done) taken()
    else this.flushed().then(() => taken(), taken)
  }

  /** True: `chunk` was copied, so it may be changed as soon as the taken has been called. */
  private add(chunk: Buffer): boolean {
    const { writer } = this
    if (writer instanceof LinkBuffer) writer.malloc(chunk.length).set(chunk)
    else writer.writeBinary(chunk)
    return chunk.length < BY_REFERENCE || writer instanceof LinkBuffer
  }

  private flushed(): Promise<void> {
    return this.writer instanceof LinkBuffer ? Promise.resolve() : this.writer.flushed()
  }
}

/** Of what a stream has been asked for. */
export type Callback = (error?: Error | null) => void

type KnownWriter = LinkBuffer | Output | WriterOfStream

function isWriter(writer: unknown): writer is KnownWriter {
  return writer instanceof LinkBuffer || writer instanceof Output || writer instanceof WriterOfStream
}

function streamEnded(): NetpollError {
  return new NetpollError('ERR_NETPOLL_CONN_CLOSED', 'The stream has ended')
}

function readableOf(source: unknown): Readable {
  if (typeof source === 'object' && source !== null) {
    const { read, on } = source as Partial<Readable>
    if (typeof read === 'function' && typeof on === 'function') return source as Readable
    if (Symbol.asyncIterator in source || Symbol.iterator in source)
      return Readable.from(source as Iterable<unknown>)
  }
  throw invalidType('source', 'a Readable, a ReadableStream or an iterable', source)
}
