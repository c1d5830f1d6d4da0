// Random operations on LinkBuffers, their slices and views, against a model of plain bytes. A failure tells the shortest
// sequence that fails, and a seed: NETPOLL_PROPERTY_SEED=<seed> repeats it, NETPOLL_PROPERTY_RUNS=<n> runs more.

import * as fc from 'fast-check'
import test from 'ava'
import { LinkBuffer, stats } from '../index.js'
import { settled, until } from './fixtures/peer.mjs'
import { DELIMITERS, ENCODINGS, NUMBERS } from './fixtures/values.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const RUNS = Number(process.env.NETPOLL_PROPERTY_RUNS ?? 150)
const SEED = process.env.NETPOLL_PROPERTY_SEED
const BUFFERS = 3
const KINDS = Object.keys(NUMBERS)
const ALPHABETS = ['ab\r\n', '\0\0a', 'é€😀', 'a', '0123456789'].map((text) => Buffer.from(text))
const SMALL = [0, 1, 8, 8, 64, 64, 64]
/** Small ones, those that cross blocks, those that are not copied, and one that no block holds. */
const SIZES = [...SMALL, 5000, 5000, 20 * KIB, 70 * KIB, MIB + 100]
/** Large ones take most of the time: where millions of operations are asked for, fewer of them are large. */
const LARGEST = process.env.NETPOLL_HARD
  ? [...Array.from({ length: 15 }, () => SMALL).flat(), ...SIZES]
  : SIZES

/** A LinkBuffer beside what it has to hold. */
class Both {
  buffer = new LinkBuffer()
  unread = Buffer.alloc(0)
  /** { bytes, room } in stream order; `room` is where malloc's bytes are put only at flush. */
  waiting = []
  /** { view, shows } */
  views = []

  get waitingLength() {
    return this.waiting.reduce((sum, { bytes }) => sum + bytes.length, 0)
  }

  wrote(bytes, room = null) {
    if (bytes.length !== 0) this.waiting.push({ bytes, room })
  }

  /** The index in `waiting` where the first `n` bytes end. */
  cut(n) {
    let index = 0
    for (let left = n; left > 0; index++) {
      const { bytes, room } = this.waiting[index]
      if (left < bytes.length) {
        const part = (from, to) => ({
          bytes: bytes.subarray(from, to),
          room: room && room.subarray(from, to),
        })
        this.waiting.splice(index, 1, part(0, left), part(left, bytes.length))
      }
      left -= this.waiting[index].bytes.length
    }
    return index
  }

  /** All that waits is filled in, and taken out. */
  takeWaiting() {
    for (const { bytes, room } of this.waiting) if (room !== null) bytes.copy(room)
    const bytes = Buffer.concat(this.waiting.map((one) => one.bytes))
    this.waiting = []
    return bytes
  }

  took(n) {
    const bytes = this.unread.subarray(0, n)
    this.unread = this.unread.subarray(n)
    return bytes
  }
}

/** Some LinkBuffers and slices, on which each operation is done as the three numbers say. */
class World {
  all = Array.from({ length: BUFFERS }, () => new Both())
  /** { slice, rest, views } */
  slices = []

  run(name, which, x, y) {
    const both = this.all[which % BUFFERS]
    this.x = x
    this.y = y
    World.operations[name].call(this, both)
    for (const { buffer, unread, waitingLength } of this.all) {
      same(buffer.length, unread.length, `length after ${name}`)
      same(buffer.mallocLength, waitingLength, `mallocLength after ${name}`)
    }
  }

  /** 0 to `max`, by the first number. */
  size(max) {
    return this.x % (Math.min(max, LARGEST[this.y % LARGEST.length]) + 1)
  }

  /** By the second number. */
  of(values) {
    return values[this.y % values.length]
  }

  bytes(n = this.size(Infinity)) {
    const alphabet = ALPHABETS[(this.x ^ this.y) % ALPHABETS.length]
    const bytes = Buffer.allocUnsafe(n)
    let state = this.x | 1
    for (let i = 0; i < n; i++) {
      state = Math.imul(state, 1664525) + 1013904223
      bytes[i] = alphabet[(state >>> 16) % alphabet.length]
    }
    return bytes
  }

  showed(owner, view, shows) {
    equal(view, shows, 'a new view')
    owner.views.push({ view, shows: Buffer.from(shows) })
  }

  endViews(owner) {
    for (const { view, shows } of owner.views) equal(view, shows, 'a view before its release')
    owner.views = []
  }

  end() {
    for (const one of this.slices) {
      this.endViews(one)
      equal(one.slice.next(one.slice.length), one.rest, 'the rest of a slice')
      one.slice.release()
    }
    for (const both of this.all) {
      this.endViews(both)
      equal(both.buffer.peek(both.unread.length), both.unread, 'the rest')
    }
  }

  close() {
    for (const { slice } of this.slices) slice.release()
    for (const { buffer } of this.all) buffer.close()
  }

  static operations = {
    malloc(both) {
      const bytes = this.bytes()
      const room = both.buffer.malloc(bytes.length)
      same(room.length, bytes.length, 'malloc')
      const later = this.y % 2 === 0
      if (!later) bytes.copy(room)
      both.wrote(bytes, later ? room : null)
    },
    mallocAck(both) {
      const n = this.y % 3 === 0 ? 0 : both.waitingLength - this.size(both.waitingLength)
      both.buffer.mallocAck(n)
      both.waiting.length = both.cut(n)
    },
    writeString(both) {
      const encoding = this.of(ENCODINGS)
      const text = this.bytes().toString(encoding)
      const bytes = Buffer.from(text, encoding)
      same(both.buffer.writeString(text, encoding), bytes.length, 'writeString')
      both.wrote(bytes)
    },
    writeBinary(both) {
      const bytes = this.bytes()
      same(both.buffer.writeBinary(bytes), bytes.length, 'writeBinary')
      both.wrote(bytes)
    },
    writeShared(both) {
      const bytes = this.bytes()
      const shared = new Uint8Array(new SharedArrayBuffer(bytes.length))
      shared.set(bytes)
      both.buffer.writeBinary(shared)
      shared.fill(0)
      both.wrote(bytes)
    },
    writeDirect(both) {
      const bytes = this.bytes()
      const remain = this.size(both.waitingLength)
      both.buffer.writeDirect(bytes, remain)
      const index = both.cut(both.waitingLength - remain)
      if (bytes.length !== 0) both.waiting.splice(index, 0, { bytes, room: null })
    },
    writeNumber(both) {
      const kind = this.of(KINDS)
      const bytes = this.bytes(NUMBERS[kind])
      both.buffer[`write${kind}`](bytes[`read${kind}`]())
      both.wrote(bytes)
    },
    writeView(both) {
      const from = this.of(this.all)
      const n = this.size(from.unread.length)
      const shows = from.took(n)
      const view = from.buffer.next(n)
      this.showed(from, view, shows)
      both.buffer.writeBinary(view)
      both.wrote(Buffer.from(shows))
    },
    flush(both) {
      both.unread = Buffer.concat([both.unread, both.takeWaiting()])
      same(both.buffer.flush(), true, 'flush')
    },
    append(both) {
      const from = this.of(this.all)
      if (from === both) {
        same(
          code(() => both.buffer.append(from.buffer)),
          'ERR_INVALID_ARG_VALUE',
          'append to itself',
        )
        return
      }
      const size = from.unread.length + from.waitingLength
      same(both.buffer.append(from.buffer), size, 'append')
      both.wrote(from.took(from.unread.length))
      both.waiting.push(...from.waiting)
      from.waiting = []
    },
    appendSlice(both) {
      const from = this.of(this.all)
      const n = this.size(from.unread.length)
      same(both.buffer.append(from.buffer.slice(n)), n, 'append of a new slice')
      both.wrote(from.took(n))
    },
    appendOldSlice(both) {
      if (this.slices.length === 0) return
      const one = this.of(this.slices)
      same(both.buffer.append(one.slice), one.rest.length, 'append of a slice')
      both.wrote(one.rest)
      one.rest = one.rest.subarray(one.rest.length)
    },
    next(both) {
      const n = this.size(both.unread.length)
      this.showed(both, both.buffer.next(n), both.took(n))
    },
    peek(both) {
      const n = this.size(both.unread.length)
      this.showed(both, both.buffer.peek(n), both.unread.subarray(0, n))
    },
    skip(both) {
      const n = this.size(both.unread.length)
      both.buffer.skip(n)
      both.took(n)
    },
    until(both) {
      const delimiter = this.of(DELIMITERS)
      const found = both.unread.indexOf(delimiter)
      const view = both.buffer.until(delimiter)
      same(view === undefined, found < 0, 'until')
      if (found < 0) return
      const size = typeof delimiter === 'number' ? 1 : Buffer.byteLength(delimiter)
      this.showed(both, view, both.took(found + size))
    },
    readString(both) {
      const encoding = this.of(ENCODINGS)
      const n = this.size(both.unread.length)
      const text = both.buffer.readString(n, encoding)
      same(text, both.took(n).toString(encoding), `readString ${encoding}`)
    },
    readBinary(both) {
      const n = this.size(both.unread.length)
      equal(both.buffer.readBinary(n), both.took(n), 'readBinary')
    },
    readNumber(both) {
      const kind = this.of(KINDS)
      const read = () => both.buffer[`read${kind}`]()
      if (both.unread.length < NUMBERS[kind]) return same(code(read), 'ERR_NETPOLL_SHORT_READ', kind)
      const expected = both.unread[`read${kind}`]()
      same(read(), expected, kind)
      both.took(NUMBERS[kind])
    },
    slice(both) {
      const n = this.size(both.unread.length)
      this.slices.push({ slice: both.buffer.slice(n), rest: both.took(n), views: [] })
    },
    sliceOfSlice() {
      if (this.slices.length === 0) return
      const one = this.of(this.slices)
      const n = this.size(one.rest.length)
      this.slices.push({ slice: one.slice.slice(n), rest: one.rest.subarray(0, n), views: [] })
      one.rest = one.rest.subarray(n)
    },
    readSlice() {
      if (this.slices.length === 0) return
      const one = this.of(this.slices)
      const n = this.size(one.rest.length)
      this.showed(one, one.slice.next(n), one.rest.subarray(0, n))
      one.rest = one.rest.subarray(n)
    },
    releaseSlice() {
      if (this.slices.length === 0) return
      const [one] = this.slices.splice(this.y % this.slices.length, 1)
      this.endViews(one)
      equal(one.slice.readBinary(one.rest.length), one.rest, 'the rest of a slice')
      one.slice.release()
      same(one.slice.length, 0, 'the length of a released slice')
    },
    release(both) {
      this.endViews(both)
      both.buffer.release()
    },
    // What goes wrong only in a row that chance makes seldom:
    writeAndFlush(both) {
      const { writeBinary, flush } = World.operations
      writeBinary.call(this, both)
      flush.call(this, both)
    },
    peekAndAppend(both) {
      const { peek, append } = World.operations
      peek.call(this, this.of(this.all))
      append.call(this, both)
    },
    dropAndWrite(both) {
      both.buffer.mallocAck(0)
      both.waiting = []
      World.operations.writeBinary.call(this, both)
    },
    tooMuch(both) {
      const method = this.of(['next', 'peek', 'skip', 'readString', 'readBinary', 'slice'])
      const read = () => both.buffer[method](both.unread.length + 1 + this.x)
      same(code(read), 'ERR_NETPOLL_SHORT_READ', method)
    },
    tooMuchWaiting(both) {
      const n = both.waitingLength + 1 + this.x
      same(
        code(() => both.buffer.mallocAck(n)),
        'ERR_OUT_OF_RANGE',
        'mallocAck',
      )
      same(
        code(() => both.buffer.writeDirect(Buffer.from('x'), n)),
        'ERR_OUT_OF_RANGE',
        'writeDirect',
      )
    },
  }

  /** Each as often as it stands here. */
  static names = [
    ...Object.keys(World.operations),
    ...[
      'writeAndFlush',
      'peekAndAppend',
      'dropAndWrite',
      'malloc',
      'writeString',
      'writeBinary',
      'writeNumber',
      'flush',
      'release',
      'next',
    ],
  ]
}

function same(got, expected, what) {
  if (!Object.is(got, expected)) throw new Error(`${what}: ${got}, expected ${expected}`)
}

function equal(got, expected, what) {
  if (!got.equals(expected)) throw new Error(`${what}: ${got.length} bytes, expected ${expected.length}`)
}

function code(what) {
  try {
    what()
  } catch (error) {
    return error.code
  }
}

test('LinkBuffers hold what was written, whatever is done in whatever order', async (t) => {
  const number = fc.nat(2 ** 30)
  // Not all operations in each sequence: what happens rarely among many happens often among few.
  const names = fc.subarray(World.names, { minLength: 3 })
  const operation = fc.tuple(number, fc.nat(BUFFERS - 1), number, number)
  const operations = fc.array(operation, { minLength: 1, maxLength: 150, size: 'max' })
  let done = 0
  const property = fc.property(names, operations, (some, sequence) => {
    const world = new World()
    try {
      for (const [name, ...numbers] of sequence) world.run(some[name % some.length], ...numbers)
      done += sequence.length
      world.end()
    } finally {
      world.close()
    }
  })
  const { buffer } = new Both()
  buffer.writeByte(1)
  buffer.close()
  await settled()
  const { blocksOut } = stats()
  const settings = SEED === undefined ? {} : { seed: Number(SEED) }
  t.notThrows(() => fc.assert(property, { numRuns: RUNS, includeErrorInReport: true, ...settings }))
  t.log(`${done} operations`)
  await settled()
  await until(() => stats().blocksOut <= blocksOut, `${stats().blocksOut} blocks out, ${blocksOut} before`)
})
