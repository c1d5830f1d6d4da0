// Random operations on the Reader and the Writer of a connection, against models that are plain arrays of bytes.
// NETPOLL_MODEL_SEED=<the seed of a failure> repeats it, NETPOLL_MODEL_SEEDS=<n> tries more.

import test from 'ava'
import { inspect } from 'node:util'
import { stats } from '../index.js'
import { connect, deferred, outcome, pair, serve, settled, until } from './fixtures/peer.mjs'
import { DELIMITERS, ENCODINGS, NUMBERS } from './fixtures/values.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const SEEDS = Number(process.env.NETPOLL_MODEL_SEEDS ?? 3)
const STREAM = 16 * MIB
const WRITES = 4000
/** Blocks that the environment and the poll keep for what comes next. */
const KEPT = 8

const firstSeed = Number(process.env.NETPOLL_MODEL_SEED ?? Date.now() % 2 ** 31)

/** Marsaglia's xorshift32: the same numbers for the same seed. */
class Random {
  constructor(seed) {
    this.state = seed ^ 0x9e3779b9 || 1
  }

  /** 0 <= it < n */
  below(n) {
    this.state ^= this.state << 13
    this.state ^= this.state >>> 17
    this.state ^= this.state << 5
    return (this.state >>> 0) % n
  }

  oneIn(n) {
    return this.below(n) === 0
  }

  of(values) {
    return values[this.below(values.length)]
  }

  /** 0 to `max`, of all orders of magnitude. */
  size(max) {
    return Math.min(this.below(2 ** this.below(Math.ceil(Math.log2(max + 1)) + 1)), max)
  }

  /** Of an alphabet in which delimiters are frequent, or of all bytes. */
  bytes(n) {
    const letters = Buffer.from(
      this.of(['ab\r\n', '\0\0a', 'é€😀', Array.from({ length: 256 }, (_, i) => i)]),
    )
    const bytes = Buffer.allocUnsafe(n)
    for (let i = 0; i < n; i++) bytes[i] = letters[this.below(letters.length)]
    return bytes
  }

  /** Pieces of all sizes that make `total` bytes. */
  *pieces(total) {
    for (let left = total; left > 0;) {
      const piece = this.bytes(Math.min(left, 1 + this.size(this.oneIn(30) ? 3 * MIB : 20 * KIB)))
      left -= piece.length
      yield piece
    }
  }
}

/** Remembers the last steps, and throws when something differs. */
class Trace {
  steps = []

  constructor(seed) {
    this.seed = seed
  }

  step(...what) {
    this.steps.push(what)
    if (this.steps.length > 12) this.steps.shift()
  }

  check(condition, ...what) {
    if (condition) return
    throw new Error(`NETPOLL_MODEL_SEED=${this.seed}: ${inspect(what)} after ${inspect(this.steps)}`)
  }

  same(got, expected, ...what) {
    this.check(expected.equals(got), ...what, got.length, expected.length)
  }
}

/** A Reader beside the bytes that it has to give. */
class ReadModel {
  /** Bytes of `sent` that were consumed. */
  at = 0
  views = []
  slices = []

  constructor(reader, sent, random, trace) {
    Object.assign(this, { reader, sent, random, trace })
  }

  /** One random operation on what is here. */
  step() {
    const { length } = this.reader
    const name = this.random.of(ReadModel.names)
    const n = this.random.size(length)
    this.trace.step(name, n, length)
    ReadModel.operations[name].call(this, n)
  }

  expected(n) {
    return this.sent.subarray(this.at, this.at + n)
  }

  took(got, n, what) {
    this.trace.same(got, this.expected(n), what)
    this.at += n
  }

  showed(view, n) {
    this.trace.same(view, this.expected(n), 'a new view')
    this.views.push({ view, shows: this.expected(n) })
  }

  /** All views that are out show what they have to, for the last time. */
  endViews() {
    for (const { view, shows } of this.views) this.trace.same(view, shows, 'a view before its release')
    this.views = []
  }

  endSlice(index) {
    const [{ slice, rest }] = this.slices.splice(index, 1)
    this.trace.same(slice.next(slice.length), rest, 'the rest of a slice')
    slice.release()
  }

  end() {
    while (this.slices.length !== 0) this.endSlice(0)
    this.endViews()
  }

  static operations = {
    next(n) {
      this.showed(this.reader.next(n), n)
      this.at += n
    },
    peek(n) {
      this.showed(this.reader.peek(n), n)
    },
    skip(n) {
      this.reader.skip(n)
      this.at += n
    },
    readBinary(n) {
      this.took(this.reader.readBinary(n), n, 'readBinary')
    },
    readString(n) {
      const encoding = this.random.of(ENCODINGS)
      const text = this.reader.readString(n, encoding)
      this.trace.check(text === this.expected(n).toString(encoding), 'readString', n, encoding)
      this.at += n
    },
    until() {
      const delimiter = this.random.of(DELIMITERS)
      const found = this.expected(this.reader.length).indexOf(delimiter)
      const view = this.reader.until(delimiter)
      this.trace.check((view === undefined) === found < 0, 'until', delimiter, found)
      if (found < 0) return
      const end = found + (typeof delimiter === 'number' ? 1 : Buffer.byteLength(delimiter))
      this.showed(view, end)
      this.at += end
    },
    number() {
      const kind = this.random.of(Object.keys(NUMBERS))
      if (this.reader.length < NUMBERS[kind]) return
      const expected = this.sent[`read${kind}`](this.at)
      this.trace.check(Object.is(this.reader[`read${kind}`](), expected), kind, expected)
      this.at += NUMBERS[kind]
    },
    slice(n) {
      this.slices.push({ slice: this.reader.slice(n), rest: this.expected(n) })
      this.at += n
    },
    ofSlice() {
      if (this.slices.length === 0) return
      const one = this.random.of(this.slices)
      const n = this.random.size(one.rest.length)
      this.trace.check(one.slice.length === one.rest.length, 'the length of a slice')
      this.trace.same(one.slice.peek(n), one.rest.subarray(0, n), 'peek of a slice')
      this.trace.same(one.slice.readBinary(n), one.rest.subarray(0, n), 'readBinary of a slice')
      one.rest = one.rest.subarray(n)
    },
    releaseSlice() {
      if (this.slices.length !== 0) this.endSlice(this.random.below(this.slices.length))
    },
    release() {
      this.endViews()
      this.reader.release()
    },
    tooMuch() {
      const { length } = this.reader
      const method = this.random.of(['next', 'peek', 'skip', 'readString', 'readBinary', 'slice'])
      let code
      try {
        this.reader[method](length + 1 + this.random.size(MIB))
      } catch (error) {
        code = error.code
      }
      this.trace.check(
        code === 'ERR_NETPOLL_SHORT_READ' && this.reader.length === length,
        'a short read',
        code,
      )
    },
  }

  /** Each as often as it stands here. */
  static names = [
    ...Object.keys(ReadModel.operations),
    ...['next', 'peek', 'skip', 'readBinary', 'readString', 'until', 'number', 'slice', 'ofSlice', 'number'],
  ]
}

/** A Writer beside the bytes that wait in it. */
class WriteModel {
  /** { bytes, room } in stream order: what waits, and (of malloc, when not filled yet) where it is to be put. */
  waiting = []
  flushed = []

  constructor(writer, random, trace, source, feed) {
    Object.assign(this, { writer, random, trace, source, feed })
  }

  step() {
    const name = this.random.of(WriteModel.names)
    const n = this.random.size(this.random.oneIn(100) ? 3 * MIB : 64 * KIB)
    this.trace.step(name, n, this.length)
    WriteModel.operations[name].call(this, n)
    this.trace.check(
      this.writer.mallocLength === this.length,
      name,
      'mallocLength',
      this.writer.mallocLength,
      this.length,
    )
  }

  get length() {
    return this.waiting.reduce((sum, { bytes }) => sum + bytes.length, 0)
  }

  wrote(bytes, returned = bytes.length) {
    this.trace.check(returned === bytes.length, 'returned', returned, bytes.length)
    this.waiting.push({ bytes, room: null })
  }

  /** The index in `waiting` where the first `n` bytes end. */
  cut(n) {
    let index = 0
    for (let left = n; left > 0; index++) {
      const { bytes, room } = this.waiting[index]
      if (left < bytes.length) {
        const parts = [
          [0, left],
          [left, bytes.length],
        ].map((part) => ({ bytes: bytes.subarray(...part), room: room && room.subarray(...part) }))
        this.waiting.splice(index, 1, ...parts)
      }
      left -= this.waiting[index].bytes.length
    }
    return index
  }

  flush() {
    for (const { bytes, room } of this.waiting) if (room !== null) bytes.copy(room)
    this.flushed.push(...this.waiting.map(({ bytes }) => bytes))
    this.waiting = []
    return this.writer.flush()
  }

  static operations = {
    malloc(n) {
      const bytes = this.random.bytes(n)
      const room = this.writer.malloc(n)
      this.trace.check(room.length === n, 'malloc', n)
      const later = this.random.oneIn(2)
      if (!later) bytes.copy(room)
      this.waiting.push({ bytes, room: later ? room : null })
    },
    mallocAck() {
      const n = this.length - this.random.size(this.length)
      this.writer.mallocAck(n)
      this.waiting.length = this.cut(n)
    },
    writeString(n) {
      const encoding = this.random.of(ENCODINGS)
      const text = this.random.bytes(n).toString(this.random.of(['latin1', 'utf8']))
      if (encoding === 'hex' || encoding === 'base64') return
      this.wrote(Buffer.from(text, encoding), this.writer.writeString(text, encoding))
    },
    writeEncoded(n) {
      const bytes = this.random.bytes(n)
      const encoding = this.random.of(['hex', 'base64', 'base64url'])
      this.wrote(bytes, this.writer.writeString(bytes.toString(encoding), encoding))
    },
    writeBinary(n) {
      const bytes = this.random.bytes(n)
      this.wrote(bytes, this.writer.writeBinary(bytes))
    },
    writeShared(n) {
      const bytes = this.random.bytes(n)
      const shared = new Uint8Array(new SharedArrayBuffer(n))
      shared.set(bytes)
      this.wrote(bytes, this.writer.writeBinary(shared))
      shared.fill(0)
    },
    writeView(n) {
      const { reader } = this.feed
      const size = Math.min(n, reader.length)
      const expected = this.feed.expected(size)
      this.wrote(expected, this.writer.writeBinary(reader.next(size)))
      this.feed.at += size
      if (this.random.oneIn(3)) reader.release()
    },
    writeDirect(n) {
      const bytes = this.random.bytes(n)
      const remain = this.random.size(this.length)
      this.writer.writeDirect(bytes, remain)
      this.waiting.splice(this.cut(this.length - remain), 0, { bytes, room: null })
    },
    appendSlice(n) {
      const { reader } = this.feed
      const size = Math.min(n, reader.length)
      this.wrote(this.feed.expected(size), this.writer.append(reader.slice(size)))
      this.feed.at += size
    },
    appendReader() {
      const { reader } = this.feed
      const size = reader.length
      this.wrote(this.feed.expected(size), this.writer.append(reader))
      this.feed.at += size
      this.trace.check(reader.length === 0, 'an appended Reader is empty')
    },
    appendWriter() {
      const { source } = this
      if (source === null) return
      for (let i = this.random.below(5); i > 0; i--) source.step()
      const { length } = source
      const appended = this.writer.append(source.writer)
      this.trace.check(appended === length && source.writer.mallocLength === 0, 'append', appended, length)
      this.waiting.push(...source.waiting)
      source.waiting = []
    },
    number() {
      const kind = this.random.of(Object.keys(NUMBERS))
      const bytes = this.random.bytes(NUMBERS[kind])
      const value = bytes[`read${kind}`]()
      // Not every pattern of a NaN survives.
      bytes[`write${kind}`](value)
      this.writer[`write${kind}`](value)
      this.wrote(bytes)
    },
  }

  static names = [
    ...Object.keys(WriteModel.operations),
    'number',
    'number',
    'malloc',
    'writeString',
    'writeBinary',
  ]
}

/** Runs a test with several seeds; each starts and ends without anything out. */
function model(title, run) {
  for (let i = 0; i < SEEDS; i++) {
    const seed = (firstSeed + i) >>> 0
    test.serial(`${title}, ${i + 1} of ${SEEDS}`, async (t) => {
      t.log(`NETPOLL_MODEL_SEED=${seed}`)
      await settled()
      const { blocksOut } = stats()
      await run(t, new Random(seed), new Trace(seed))
      await until(() => stats().pinnedSends === 0, 'no Buffer is pinned')
      await settled()
      await until(
        () => stats().blocksOut <= blocksOut + KEPT,
        `${stats().blocksOut} blocks out, ${blocksOut} before`,
      )
    })
  }
}

model('a Reader beside handlers gives what was sent', async (t, random, trace) => {
  const { reader, peer, connection } = await pair(t, { readHighWaterMark: 1 + random.size(4 * MIB) })
  const pieces = [...random.pieces(STREAM)]
  const sent = Buffer.concat(pieces)
  const read = new ReadModel(reader, sent, random, trace)
  let given = 0
  while (read.at < sent.length) {
    while (pieces.length !== 0 && given - read.at < 6 * MIB && !random.oneIn(4)) {
      const piece = pieces.shift()
      peer.write(piece)
      given += piece.length
    }
    const missing = given - read.at - reader.length
    if (missing > 0 && (reader.length === 0 || random.oneIn(3))) {
      const more = reader.length + 1 + random.size(missing - 1)
      trace.step('waitRead', more)
      await reader.waitRead(more)
    }
    for (let i = random.below(20); i > 0; i--) read.step()
    if (random.oneIn(5)) await settled()
  }
  read.end()
  t.is(reader.length, 0)
  t.is(connection.bytesRead, sent.length)
  reader.release()
})

model('the Reader of handlers gives what was sent', async (t, random, trace) => {
  const pieces = [...random.pieces(STREAM)]
  const sent = Buffer.concat(pieces)
  const ended = deferred()
  let read
  const server = serve(
    async ({ reader }) => {
      try {
        read ??= new ReadModel(reader, sent, random, trace)
        const { at } = read
        for (let i = random.below(20); i > 0; i--) read.step()
        if (random.oneIn(4)) {
          await reader.waitRead(Math.min(random.size(2 * MIB), sent.length - read.at))
          for (let i = random.below(20); i > 0; i--) read.step()
        }
        // A handler that has consumed nothing is called again only for new bytes.
        if (read.at === at && reader.length !== 0) ReadModel.operations.skip.call(read, 1)
        read.endViews()
        if (read.at === sent.length) ended.resolve()
      } catch (error) {
        ended.reject(error)
      }
    },
    { readHighWaterMark: 1 + random.size(4 * MIB) },
  )
  t.teardown(server.stop)
  const peer = await connect(server.port)
  t.teardown(() => void peer.destroy())
  for (const piece of pieces) {
    peer.write(piece)
    if (random.oneIn(5)) await settled()
  }
  await ended.promise
  read.end()
  t.is(read.reader.length, 0)
})

model('a Writer sends what was written', async (t, random, trace) => {
  const both = await pair(t, { maxPendingBytes: 512 * MIB })
  const other = await pair(t, { maxPendingBytes: 512 * MIB })
  const fed = random.bytes(STREAM)
  other.peer.write(fed)
  const feed = new ReadModel(other.reader, fed, random, trace)
  const source = new WriteModel(other.writer, random, trace, null, feed)
  const written = new WriteModel(both.writer, random, trace, source, feed)
  const received = outcome(both.peer)
  for (let i = 0; i < WRITES; i++) {
    written.step()
    if (random.oneIn(10) && !written.flush()) await both.connection.flushed()
    if (random.oneIn(100)) await settled()
  }
  written.flush()
  source.writer.mallocAck(0)
  await both.connection.flushed()
  both.connection.end()
  const { bytes } = await received
  const expected = Buffer.concat(written.flushed)
  t.is(bytes.length, expected.length)
  t.is(both.connection.bytesWritten, expected.length)
  t.true(bytes.equals(expected))
  for (const { connection } of [both, other]) {
    connection.close()
    await connection.closed
  }
})
