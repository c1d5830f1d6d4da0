// LinkBuffer: netpoll's tests of nocopy_linkbuffer_test.go and nocopy_readwriter_test.go by their names, as far as
// they are about behaviour, then what is ours. What netpoll asserts of its nodes is asserted of blocks here.

import test from 'ava'
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { PassThrough, Readable, Writable } from 'node:stream'
import { buffer as all } from 'node:stream/consumers'
import { setImmediate } from 'node:timers/promises'
import { LinkBuffer, readerFrom, stats, toReadable, toWritable, writerFrom } from '../index.js'
import { collected, gc } from './fixtures/garbage.mjs'
import { leaksNothing, pair, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const BLOCK = 64 * KIB
const SHORT = { code: 'ERR_NETPOLL_SHORT_READ' }
const CLOSED = { code: 'ERR_NETPOLL_CONN_CLOSED' }
const RANGE = { code: 'ERR_OUT_OF_RANGE' }

/** Closes it when the test has ended, as `using` would. */
function own(t, buffer) {
  t.teardown(() => buffer[Symbol.dispose]())
  return buffer
}

/** A LinkBuffer in which `bytes` are readable. */
function holding(...bytes) {
  const buffer = new LinkBuffer()
  for (const each of bytes) buffer.writeBinary(Buffer.from(each))
  buffer.flush()
  return buffer
}

/** A LinkBuffer with the bytes 0, 1, 2 ... in segments of these sizes, none of which lie together. */
function inPieces(...sizes) {
  const buffer = new LinkBuffer()
  const other = new LinkBuffer()
  let next = 0
  for (const size of sizes) {
    const room = buffer.malloc(size)
    for (let i = 0; i < size; i++) room[i] = next++
    // The output block is all Writers': this makes a gap.
    other.writeByte(0xff)
  }
  buffer.flush()
  other.close()
  return buffer
}

function numbers(from, to) {
  return Buffer.from(Array.from({ length: to - from }, (_, i) => from + i))
}

// ---- of netpoll

test('TestLinkBuffer: what malloc has made is readable after flush, and no sooner', (t) => {
  const buffer = own(t, new LinkBuffer())
  t.is(buffer.length, 0)
  t.throws(() => buffer.next(10), SHORT)
  t.is(buffer.malloc(128).length, 128)
  t.is(buffer.length, 0)
  t.throws(() => buffer.peek(10), SHORT)
  buffer.flush()
  t.is(buffer.length, 128)
  t.is(buffer.next(28).length, 28)
  t.is(buffer.length, 100)
  t.is(buffer.peek(90).length, 90)
  t.is(buffer.length, 100)
  buffer.release()
  t.is(buffer.length, 100)
  buffer.malloc(8 * KIB)
  t.is(buffer.length, 100)
  buffer.mallocAck(KIB)
  t.is(buffer.length, 100)
  t.is(buffer.mallocLength, KIB)
  buffer.flush()
  t.is(buffer.length, 100 + KIB)
  t.is(buffer.mallocLength, 0)
  buffer.skip(KIB)
  t.is(buffer.length, 100)
})

test('TestLinkBufferGetBytes: writes of all sizes are there as a whole', (t) => {
  const buffer = own(t, new LinkBuffer())
  const pieces = Array.from({ length: 8 }, (_, i) => randomBytes(10 ** i))
  for (const piece of pieces) t.is(buffer.writeBinary(piece), piece.length)
  buffer.flush()
  const expected = Buffer.concat(pieces)
  t.is(buffer.length, expected.length)
  t.true(buffer.readBinary(expected.length).equals(expected))
})

test('TestLinkBufferWithInvalid: nothing of length 0 changes anything, and what is negative throws', (t) => {
  const buffer = own(t, new LinkBuffer())
  const nothing = () => t.deepEqual([buffer.length, buffer.mallocLength], [0, 0])
  for (const write of [
    () => t.is(buffer.malloc(0).length, 0),
    () => t.is(buffer.writeString(''), 0),
    () => t.is(buffer.writeBinary(Buffer.alloc(0)), 0),
    () => buffer.writeDirect(Buffer.alloc(0), 0),
    () => t.is(buffer.append(new LinkBuffer()), 0),
    () => buffer.mallocAck(0),
    () => t.true(buffer.flush()),
    () => t.is(buffer.next(0).length, 0),
    () => t.is(buffer.peek(0).length, 0),
    () => buffer.skip(0),
    () => t.is(buffer.readString(0), ''),
    () => t.is(buffer.readBinary(0).length, 0),
    () => t.is(buffer.slice(0).length, 0),
    () => buffer.release(),
  ]) {
    write()
    nothing()
  }
  for (let n = -1; n > -5; n--) {
    for (const name of ['malloc', 'mallocAck', 'next', 'peek', 'skip', 'readString', 'readBinary', 'slice']) {
      t.throws(() => buffer[name](n), RANGE, `${name} ${n}`)
    }
    t.throws(() => buffer.writeDirect(Buffer.alloc(0), n), RANGE)
    nothing()
  }
})

test('TestLinkBufferMultiNode: reads are exact across segments, whatever was peeked before', (t) => {
  const buffer = own(t, inPieces(15, 7))
  t.is(buffer.length, 22)
  t.deepEqual(buffer.next(13), numbers(0, 13))
  for (const n of [4, 3, 5, 6]) t.deepEqual(buffer.peek(n), numbers(13, 13 + n))
  t.is(buffer.length, 9)
  const room = buffer.malloc(8 * KIB)
  numbers(22, 27).copy(room)
  buffer.mallocAck(5)
  buffer.flush()
  t.deepEqual(buffer.next(8), numbers(13, 21))
  buffer.skip(3)
  t.deepEqual(buffer.next(3), numbers(24, 27))
  t.is(buffer.length, 0)
})

for (const first of ['slice', 'parent']) {
  test.serial(
    `TestLinkBufferRefer: a slice shares blocks, and the ${first} may be released first`,
    async (t) => {
      await leaksNothing(async () => {
        const source = holding(randomBytes(8 * KIB), randomBytes(7))
        const expected = source.readBinary(8 * KIB)
        source.close()
        const buffer = new LinkBuffer()
        const other = holding(expected, numbers(0, 7))
        t.is(buffer.append(other), 8 * KIB + 7)
        t.is(other.length, 0)
        buffer.flush()
        t.is(buffer.length, 8 * KIB + 7)
        t.deepEqual(buffer.next(5), expected.subarray(0, 5))
        const slice = buffer.slice(4)
        t.is(slice.length, 4)
        t.is(buffer.length, 8 * KIB - 2)
        if (first === 'parent') {
          buffer.close()
          t.deepEqual(slice.next(4), expected.subarray(5, 9))
          slice.release()
        } else {
          slice.release()
          t.is(slice.length, 0)
          buffer.release()
          t.deepEqual(buffer.readBinary(8 * KIB - 9), expected.subarray(9))
          t.deepEqual(buffer.readBinary(7), numbers(0, 7))
          buffer.close()
        }
        other.close()
      })
    },
  )
}

test('TestLinkBufferResetTail: what is written later does not show in a slice', (t) => {
  const buffer = own(t, holding([1]))
  const slice = buffer.slice(1)
  buffer.release()
  buffer.writeByte(2)
  buffer.mallocAck(0)
  buffer.writeByte(3)
  t.is(slice.readByte(), 1)
  slice.release()
})

test('TestLinkBufferWriteBuffer: two appended buffers keep their order', (t) => {
  const buffer = own(t, new LinkBuffer())
  buffer.append(holding([2]))
  buffer.append(holding([3]))
  t.is(buffer.length, 0, 'flushed bytes too go with the flush of the target')
  buffer.flush()
  t.deepEqual(buffer.next(2), Buffer.of(2, 3))
})

test('TestLinkBufferCheckSingleNode: a read of more than is here throws, unflushed bytes do not count', (t) => {
  const buffer = own(t, new LinkBuffer())
  buffer.malloc(8 * KIB)
  buffer.flush()
  t.is(buffer.peek(8 * KIB).length, 8 * KIB)
  t.throws(() => buffer.peek(8 * KIB + 1), SHORT)
  const other = own(t, new LinkBuffer())
  other.malloc(8 * KIB)
  t.throws(() => other.peek(1), SHORT)
})

test('TestLinkBufferWriteMultiFlush: a flush without news changes nothing', (t) => {
  const buffer = own(t, new LinkBuffer())
  buffer.malloc(4).set([1, 0, 2, 0])
  buffer.flush()
  buffer.flush()
  t.deepEqual(buffer.peek(buffer.length), Buffer.of(1, 0, 2, 0))
  buffer.skip(2)
  t.deepEqual(buffer.peek(buffer.length), Buffer.of(2, 0))
  buffer.flush()
  t.deepEqual(buffer.peek(buffer.length), Buffer.of(2, 0))
  buffer.malloc(2).set([3, 4])
  buffer.flush()
  t.deepEqual(buffer.peek(buffer.length), Buffer.of(2, 0, 3, 4))
})

for (const size of [9, 32 * KIB]) {
  test(`TestLinkBufferWriteBinary: memory behind ${size} bytes that were written is never written to`, (t) => {
    const buffer = own(t, new LinkBuffer())
    const given = Buffer.alloc(2 * size)
    buffer.writeBinary(given.subarray(0, size))
    buffer.flush()
    buffer.writeBinary(Buffer.of(1))
    buffer.malloc(1).set([2])
    buffer.flush()
    t.true(given.equals(Buffer.alloc(2 * size)))
    buffer.skip(size)
    t.deepEqual(buffer.next(2), Buffer.of(1, 2))
  })
}

test('TestLinkBufferWriteDirect: nested writes go where they belong', (t) => {
  const buffer = own(t, new LinkBuffer())
  const room = buffer.malloc(32)
  const letters = 'abcdefghijklmnopqrstuvwxyz'
  room.write('ab')
  buffer.writeDirect(Buffer.from('cdef'), 30)
  room.write('g', 2)
  buffer.writeDirect(Buffer.from('hijkl'), 29)
  room.write('m', 3)
  buffer.writeDirect(Buffer.from('nopqrst'), 28)
  room.write('u', 4)
  buffer.writeDirect(Buffer.from('vwxyz'), 27)
  room.write(`${letters}a`, 5)
  buffer.writeDirect(Buffer.from(letters), 0)
  buffer.flush()
  t.is(buffer.readString(buffer.length), `${letters}${letters}a${letters}`)
})

test.serial('TestLinkBufferBufferMode: what is not copied is not taken for a block', async (t) => {
  await settled()
  const { blocksOut } = stats()
  const given = randomBytes(BLOCK)
  const buffer = own(t, holding(given))
  t.is(stats().blocksOut, blocksOut)
  t.true(buffer.next(BLOCK).equals(given))
})

test('TestLinkBufferReadCopy/SingleNode: readBinary of a part leaves the rest', (t) => {
  const buffer = own(t, inPieces(16))
  t.deepEqual(buffer.readBinary(10), numbers(0, 10))
  t.is(buffer.length, 6)
})

test('TestLinkBufferReadCopy/MultiNode: readBinary joins segments', (t) => {
  const buffer = own(t, inPieces(8, 8))
  t.deepEqual(buffer.readBinary(16), numbers(0, 16))
  t.is(buffer.length, 0)
})

test('TestLinkBufferReadCopy/PartialRead: readBinary of more than is here takes nothing', (t) => {
  const buffer = own(t, inPieces(4))
  t.throws(() => buffer.readBinary(16), SHORT)
  t.deepEqual(buffer.readBinary(buffer.length), numbers(0, 4))
})

test.serial(
  'TestLinkBufferReadCopy/ReleasesNonExposedNodes: without views readBinary gives blocks back',
  async (t) => {
    const buffer = new LinkBuffer()
    for (let i = 0; i < 8; i++) buffer.malloc(BLOCK)
    buffer.flush()
    const { blocksOut } = stats()
    buffer.readBinary(8 * BLOCK)
    await until(() => stats().blocksOut <= blocksOut - 7)
    t.is(buffer.length, 0)
    buffer.close()
  },
)

test.serial('TestLinkBufferReadCopy/SkipsExposedNodes: a viewed block stays until release()', async (t) => {
  const buffer = new LinkBuffer()
  for (let i = 0; i < 8; i++) buffer.malloc(BLOCK).fill(i)
  buffer.flush()
  const { blocksOut } = stats()
  const view = buffer.peek(4)
  buffer.readBinary(8 * BLOCK)
  await settled()
  t.deepEqual(view, Buffer.alloc(4))
  buffer.release()
  await until(() => stats().blocksOut <= blocksOut - 7)
  t.is(buffer.length, 0)
  buffer.close()
})

test('TestLinkBufferReadCopy/ExposedThenNonExposedThenPartial: a view, a copy, and what is left', (t) => {
  const buffer = own(t, inPieces(8, 8, 8))
  const view = buffer.peek(4)
  t.deepEqual(buffer.readBinary(20), numbers(0, 20))
  t.is(buffer.length, 4)
  t.deepEqual(view, numbers(0, 4))
  buffer.release()
  t.deepEqual(buffer.next(4), numbers(20, 24))
})

test('TestLinkBufferIndexByte: a delimiter is found while more is written behind it', (t) => {
  const buffer = own(t, new LinkBuffer())
  for (let i = 0; i < 1000; i++) {
    const room = buffer.malloc(1002).fill(0)
    room[500] = room[1001] = 10
    buffer.flush()
    t.is(buffer.until('\n').length, 501)
    buffer.malloc(3).fill(0)
    t.is(buffer.until('\n').length, 501)
    buffer.mallocAck(0)
    t.is(buffer.until('\n'), undefined)
    buffer.release()
  }
})

test.serial(
  'TestLinkBufferPeekOutOfMemory: peeking again across segments takes no more memory',
  async (t) => {
    const buffer = new LinkBuffer()
    for (let i = 0; i < 100; i++) {
      buffer.malloc(8 * KIB).writeBigUInt64BE(2024n)
      holding([1]).close()
    }
    buffer.flush()
    for (let i = 0; i < 10; i++) t.is(buffer.peek(8 * KIB).readBigUInt64BE(), 2024n)
    t.is(buffer.peek(8 * KIB + 1).length, 8 * KIB + 1)
    await settled()
    const { blocksOut } = stats()
    for (let i = 0; i < 1024; i++) t.is(buffer.peek(8 * KIB + 1).readBigUInt64BE(), 2024n)
    await settled()
    t.is(stats().blocksOut, blocksOut)
    buffer.close()
  },
)

test('TestMallocAck: mallocAck after writeDirect keeps its bytes', (t) => {
  const buffer = own(t, new LinkBuffer())
  const size = 7 * KIB
  const middle = randomBytes(size)
  buffer.malloc(4 + size).set([1, 2, 3, 4])
  buffer.writeDirect(middle, size)
  buffer.mallocAck(4 + size)
  buffer.flush()
  buffer.malloc(4).set([5, 6, 7, 8])
  buffer.flush()
  const expected = Buffer.concat([Buffer.of(1, 2, 3, 4), middle, Buffer.of(5, 6, 7, 8)])
  t.true(buffer.next(8 + size).equals(expected))
})

test('TestZCReader: a Reader of a stream takes what is waited for', async (t) => {
  const endless = new Readable({
    read(n) {
      this.push(Buffer.alloc(n, 'x'))
    },
  })
  const reader = readerFrom(endless)
  await reader.waitRead(8 * KIB)
  t.is(reader.next(8 * KIB).length, 8 * KIB)
  await reader.waitRead(4 * KIB)
  const { length } = reader
  t.is(reader.peek(4 * KIB).length, 4 * KIB)
  t.is(reader.length, length)
  reader.skip(4 * KIB)
  t.is(reader.length, length - 4 * KIB)
  reader.release()
  endless.destroy()
})

test('TestZCWriter: the stream has what was written after flush, and no sooner', async (t) => {
  const written = []
  const stream = new Writable({
    write(chunk, _encoding, callback) {
      written.push(chunk)
      callback()
    },
  })
  const writer = writerFrom(stream)
  t.is(writer.malloc(KIB).fill('a').length, KIB)
  t.is(written.length, 0)
  t.true(writer.flush())
  t.is(writer.mallocLength, 0)
  await writer.flushed()
  t.is(Buffer.concat(written).toString(), 'a'.repeat(KIB))
  writer.malloc(2 * KIB).fill('b')
  writer.flush()
  await writer.flushed()
  t.deepEqual(
    written.map(({ length }) => length),
    [KIB, 2 * KIB],
    'one write for each flush',
  )
})

test('TestZCEOF: a wait on a stream that has ended rejects with EOF', async (t) => {
  const reader = readerFrom(Readable.from([]))
  await t.throwsAsync(reader.waitRead(8 * KIB), { code: 'ERR_NETPOLL_EOF' })
  t.true(reader.ended)
})

test('TestIOReadWriter: what is written to a stream into a LinkBuffer is read from a stream out of it', async (t) => {
  const buffer = new LinkBuffer()
  const reader = toReadable(buffer)
  const writer = toWritable(buffer)
  writer.write('hello world')
  const [chunk] = await new Promise((resolve) => reader.once('data', (...args) => resolve(args)))
  t.is(chunk.toString(), 'hello world')
  reader.destroy()
})

test('TestIOReadWriter2: all of a LinkBuffer is read until its end', async (t) => {
  const buffer = new LinkBuffer()
  const writer = toWritable(buffer)
  writer.end('hello world', () => buffer.end())
  t.is((await all(toReadable(buffer))).toString(), 'hello world')
})

// ---- append

test('append takes the unread bytes of a LinkBuffer, then those that wait in it, and leaves it empty', (t) => {
  const source = own(t, holding('unread '))
  source.writeString('unflushed')
  const target = own(t, new LinkBuffer())
  target.writeString('first ')
  t.is(target.append(source), 16)
  t.deepEqual([source.length, source.mallocLength], [0, 0])
  t.deepEqual([target.length, target.mallocLength], [0, 22])
  target.flush()
  t.is(target.readString(22), 'first unread unflushed')
  source.writeString('again')
  source.flush()
  t.is(source.readString(5), 'again')
})

test('a LinkBuffer is appended to the Writer of a connection, and takes what its Reader has', async (t) => {
  const { reader, writer, peer } = await pair(t)
  peer.write('from the peer')
  await reader.waitRead(13)
  const buffer = own(t, holding('built '))
  buffer.append(reader)
  t.is(reader.length, 0)
  buffer.append(holding(randomBytes(0)))
  writer.append(buffer)
  writer.flush()
  t.is((await take(peer, 19)).toString(), 'built from the peer')
})

test('a LinkBuffer is not appended to itself', (t) => {
  const buffer = own(t, holding('abc'))
  t.throws(() => buffer.append(buffer), { code: 'ERR_INVALID_ARG_VALUE' })
  t.is(buffer.readString(3), 'abc')
})

test('append takes no other things', (t) => {
  const buffer = own(t, new LinkBuffer())
  for (const source of [undefined, null, 'text', Buffer.of(1), {}]) {
    t.throws(() => buffer.append(source), { code: 'ERR_INVALID_ARG_TYPE' })
  }
})

test('a LinkBuffer can be appended to its own slice, and the slice to it', (t) => {
  const buffer = own(t, holding('abcdef'))
  const slice = buffer.slice(3)
  buffer.append(slice)
  buffer.flush()
  t.is(buffer.readString(6), 'defabc')
})

test('a view of bytes that were appended elsewhere and dropped there stays what it is', (t) => {
  const source = own(t, holding('hello'))
  const view = source.peek(5)
  const target = own(t, new LinkBuffer())
  target.append(source)
  target.mallocAck(0)
  target.writeString('WORLD')
  t.is(view.toString(), 'hello')
})

// ---- waits

test('a wait resolves when enough was flushed', async (t) => {
  const buffer = own(t, new LinkBuffer())
  let done = false
  const wait = buffer.waitRead(6).then(() => (done = true))
  buffer.writeString('abc')
  buffer.flush()
  await settled()
  t.false(done)
  buffer.writeString('def')
  await settled()
  t.false(done)
  buffer.flush()
  await wait
  t.is(buffer.readString(6), 'abcdef')
})

test('waitUntil tells the count of bytes up to and including the delimiter', async (t) => {
  const buffer = own(t, holding('no line'))
  const wait = buffer.waitUntil('\r\n')
  buffer.writeString('\r')
  buffer.flush()
  buffer.writeString('\nrest')
  buffer.flush()
  t.is(await wait, 9)
})

test('one wait at a time, which its signal ends', async (t) => {
  const buffer = own(t, new LinkBuffer())
  const abort = new AbortController()
  const wait = buffer.waitRead(1, { signal: abort.signal })
  await t.throwsAsync(buffer.waitRead(1), { code: 'ERR_NETPOLL_INVALID_STATE' })
  abort.abort(new Error('enough'))
  await t.throwsAsync(wait, { message: 'enough' })
  const next = buffer.waitRead(1)
  buffer.writeByte(1)
  buffer.flush()
  await next
})

test('after end() waits reject with EOF, writes throw, and what is unread can be read', async (t) => {
  const buffer = own(t, holding('left'))
  buffer.writeString('dropped')
  const wait = buffer.waitRead(5)
  t.false(buffer.ended)
  buffer.end()
  buffer.end()
  t.true(buffer.ended)
  await t.throwsAsync(wait, { code: 'ERR_NETPOLL_EOF' })
  await t.throwsAsync(buffer.waitUntil('\n'), { code: 'ERR_NETPOLL_EOF' })
  t.is(buffer.mallocLength, 0)
  t.throws(() => buffer.writeByte(1), CLOSED)
  t.throws(() => buffer.flush(), CLOSED)
  await buffer.waitRead(4)
  t.is(buffer.readString(4), 'left')
})

test('after close() every method throws, and waits reject', async (t) => {
  const buffer = holding('left')
  const wait = buffer.waitRead(5)
  buffer.close()
  buffer.close()
  buffer.end()
  await t.throwsAsync(wait, CLOSED)
  for (const call of [
    () => buffer.next(0),
    () => buffer.until('\n'),
    () => buffer.readByte(),
    () => buffer.slice(0),
    () => buffer.release(),
    () => buffer.malloc(1),
    () => buffer.mallocAck(0),
    () => buffer.writeString('x'),
    () => buffer.append(new LinkBuffer()),
    () => buffer.flush(),
  ]) {
    t.throws(call, CLOSED, String(call))
  }
  await t.throwsAsync(buffer.waitRead(0), CLOSED)
  t.deepEqual([buffer.length, buffer.mallocLength, buffer.ended], [0, 0, true])
  const other = own(t, new LinkBuffer())
  t.is(other.append(buffer), 0)
})

// ---- memory

test.serial('close() gives back what is unread, unflushed and viewed', async (t) => {
  await leaksNothing(async () => {
    const buffer = new LinkBuffer()
    for (let i = 0; i < 30; i++) {
      buffer.malloc(BLOCK)
      if (i % 3 === 0) buffer.flush()
    }
    buffer.next(5 * BLOCK)
    buffer.close()
  })
  t.pass()
})

/** Puts another method in the place of the one that it returns, until the test has ended. */
function replace(t, object, name, method) {
  const before = object[name]
  object[name] = method
  t.teardown(() => void (object[name] = before))
  return before
}

/** In a function of its own, so that nothing refers to the LinkBuffer any more. */
function fill(forget) {
  const buffer = new LinkBuffer()
  for (let i = 0; i < 16; i++) buffer.malloc(BLOCK)
  forget(buffer)
}

const FORGOTTEN = {
  'a LinkBuffer with unread bytes': (buffer) => buffer.flush(),
  'a LinkBuffer with unflushed bytes': () => undefined,
  'a LinkBuffer whose views were not released': (buffer) => {
    buffer.flush()
    for (let i = 0; i < 16; i++) buffer.next(BLOCK)
  },
  'a Reader over a stream': (buffer) => {
    buffer.close()
    void readerFrom([Buffer.alloc(16 * BLOCK)]).waitRead(16 * BLOCK)
  },
  'a slice': (buffer) => {
    buffer.flush()
    buffer.slice(16 * BLOCK)
  },
  'a slice whose views were not released': (buffer) => {
    buffer.flush()
    const slice = buffer.slice(16 * BLOCK)
    for (let i = 0; i < 16; i++) slice.next(BLOCK)
  },
}

for (const [what, forget] of Object.entries(FORGOTTEN)) {
  test.serial(`the blocks of ${what} that was merely forgotten come back`, async (t) => {
    await settled()
    const { blocksOut } = stats()
    fill(forget)
    await until(() => stats().blocksOut >= blocksOut + 15)
    await collected(() => stats().blocksOut <= blocksOut + 1)
    t.pass()
  })
}

test.serial(
  'slices that are released in the tick after the one that made them are watched by nobody',
  async (t) => {
    let registered = 0
    const register = replace(t, FinalizationRegistry.prototype, 'register', function (...args) {
      registered++
      return register.apply(this, args)
    })
    const buffer = new LinkBuffer()
    buffer.malloc(1000).fill(1)
    buffer.flush()
    registered = 0
    const slices = Array.from({ length: 100 }, () => buffer.slice(10))
    await new Promise((resolve) => process.nextTick(resolve))
    for (const slice of slices.splice(50)) slice.release()
    t.is(registered, 0)
    await setImmediate()
    await setImmediate()
    t.is(registered, 50)
    for (const slice of slices) slice.release()
    buffer.close()
  },
)

for (const [what, add] of Object.entries({
  slices: (target, source) => {
    for (let i = 0; i < 100; i++) target.append(source.slice(10))
  },
  'slices of slices': (target, source) => {
    const half = source.slice(500)
    for (let i = 0; i < 50; i++) target.append(half.slice(10))
    for (let i = 0; i < 50; i++) target.append(source.slice(10))
  },
})) {
  test(`${what} that lie side by side are appended as one piece`, async (t) => {
    const { connection, peer } = await pair(t)
    const sent = randomBytes(1000)
    const source = new LinkBuffer()
    source.malloc(1000).set(sent)
    source.flush()
    const { writer } = connection
    add(writer, source)
    t.is(writer.head, writer.tail)
    t.is(writer.mallocLength, 1000)
    writer.flush()
    t.deepEqual(await take(peer, 1000), sent)
    source.close()
  })
}

test('what is appended while views of it are out leaves the views what they are', async (t) => {
  const { connection, peer } = await pair(t)
  const sent = randomBytes(BLOCK)
  const source = new LinkBuffer()
  source.malloc(BLOCK).set(sent)
  source.flush()
  const view = source.next(KIB)
  connection.writer.append(source)
  t.is(source.length, 0)
  connection.writer.flush()
  t.deepEqual(await take(peer, BLOCK - KIB), sent.subarray(KIB))
  const others = Array.from({ length: 200 }, () => new LinkBuffer())
  for (const other of others) {
    other.malloc(BLOCK).fill(0)
    await settled()
  }
  t.true(view.equals(sent.subarray(0, KIB)))
  for (const buffer of [source, ...others]) buffer.close()
})

test.serial(
  'a view of a LinkBuffer that was collected stays what it is, as long as it is held',
  async (t) => {
    await settled()
    const { blocksOut } = stats()
    const sent = randomBytes(BLOCK)
    const watched = []
    const make = () => {
      const buffer = new LinkBuffer()
      buffer.malloc(BLOCK).set(sent)
      buffer.flush()
      watched.push(new WeakRef(buffer))
      return buffer.next(BLOCK)
    }
    let view = make()
    await collected(() => watched[0].deref() === undefined)
    for (let round = 0; round < 20; round++) {
      const others = Array.from({ length: 20 }, () => new LinkBuffer())
      for (const other of others) other.malloc(BLOCK).fill(round)
      for (const other of others) other.close()
      gc()
      await settled()
      t.true(view.equals(sent))
    }
    view = null
    await collected(() => stats().blocksOut <= blocksOut + 1)
  },
)

/** What a program of its own prints. */
function run(program) {
  const args = ['--input-type=module', '--eval', program]
  const settings = { cwd: new URL('..', import.meta.url).pathname, timeout: 60_000 }
  return new Promise((resolve, reject) => {
    execFile(process.execPath, args, settings, (error, stdout) => (error ? reject(error) : resolve(stdout)))
  })
}

test('a LinkBuffer keeps no process alive', async (t) => {
  const output = await run(`
    import { LinkBuffer } from 'netpoll'
    const buffer = new LinkBuffer()
    buffer.writeString('hello')
    buffer.flush()
    void buffer.waitRead(6)
    console.log(buffer.readString(5))`)
  t.is(output, 'hello\n')
})

test('at maxMemory writes throw OUTPUT_LIMIT and nothing is lost, and go on when blocks came back', async (t) => {
  const output = await run(`
    import { configure, LinkBuffer, readerFrom } from 'netpoll'
    configure({ maxMemory: 16 << 20 })
    const buffer = new LinkBuffer()
    let sent = 0
    const attempt = (write) => {
      try {
        return write()
      } catch (error) {
        return error.code
      }
    }
    const piece = Buffer.alloc(10_000, 'x')
    while (sent < 8 << 20) sent += buffer.writeBinary(piece)
    console.log(attempt(() => buffer.writeBinary(new Uint8Array(new SharedArrayBuffer(12 << 20)))))
    console.log(buffer.mallocLength === sent)
    while (typeof attempt(() => buffer.writeBinary(piece)) === 'number') sent += piece.length
    const tooMuch = new Uint8Array(new SharedArrayBuffer(1 << 20))
    console.log(sent >= 8 << 20, attempt(() => buffer.writeBinary(tooMuch)), attempt(() => buffer.malloc(1 << 20)))
    console.log(buffer.mallocLength === sent)
    const reader = readerFrom([Buffer.alloc(3 << 20, 'y')])
    await reader.waitRead(3 << 20)
    console.log(reader.readBinary(3 << 20).equals(Buffer.alloc(3 << 20, 'y')))
    buffer.flush()
    console.log(buffer.readBinary(sent).equals(Buffer.alloc(sent, 'x')))
    const until = Date.now() + 50_000
    // Blocks come back by way of the poll.
    while (attempt(() => buffer.writeBinary(tooMuch)) !== 1 << 20 && Date.now() < until) {
      await new Promise(setImmediate)
    }
    console.log(buffer.mallocLength)`)
  t.is(
    output,
    'ERR_NETPOLL_OUTPUT_LIMIT\ntrue\ntrue ERR_NETPOLL_OUTPUT_LIMIT ERR_NETPOLL_OUTPUT_LIMIT\ntrue\ntrue\ntrue\n1048576\n',
  )
})

for (const driver of ['loop', 'thread', 'adaptive']) {
  test(`with the driver '${driver}' a program that never yields gets back what it has closed`, async (t) => {
    const output = await run(`
      import { configure, LinkBuffer } from 'netpoll'
      configure({ maxMemory: 16 << 20, driver: '${driver}' })
      let written = 0
      for (let i = 0; i < 500; i++) {
        const buffer = new LinkBuffer()
        buffer.malloc(1 << 20)[0] = 1
        buffer.flush()
        written += buffer.length
        buffer.close()
      }
      console.log(written)`)
    t.is(output, `${500 * MIB}\n`)
  })
}

test('what streams through a PassThrough by a LinkBuffer is what was written', async (t) => {
  const sent = randomBytes(3 * MIB + 17)
  const buffer = own(t, new LinkBuffer())
  const stream = new PassThrough()
  const writer = toWritable(buffer)
  stream.pipe(writer)
  stream.end(sent)
  await new Promise((resolve) => writer.once('finish', resolve))
  t.is(buffer.length, sent.length)
  t.true(buffer.readBinary(sent.length).equals(sent))
})
