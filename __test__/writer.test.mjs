// Writer over a connection: every method, against the bytes that the peer receives.

import test from 'ava'
import { randomBytes } from 'node:crypto'
import { stats } from '../index.js'
import { outcome, pair, send, serve, connect, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const BY_REFERENCE = 16 * KIB

const NUMBERS = {
  UInt8: [1, 0, 0x7f, 0xff],
  UInt16BE: [2, 0, 0x1234, 0xffff],
  UInt16LE: [2, 0, 0x1234, 0xffff],
  UInt32BE: [4, 0, 0x12345678, 0xffffffff],
  UInt32LE: [4, 0, 0x12345678, 0xffffffff],
  BigUInt64BE: [8, 0n, 0x123456789abcdef0n, 2n ** 64n - 1n],
  BigUInt64LE: [8, 0n, 0x123456789abcdef0n, 2n ** 64n - 1n],
  Int8: [1, 0, -128, 127, -1],
  Int16BE: [2, -0x8000, 0x7fff, -2],
  Int16LE: [2, -0x8000, 0x7fff, -2],
  Int32BE: [4, -0x80000000, 0x7fffffff, -2],
  Int32LE: [4, -0x80000000, 0x7fffffff, -2],
  BigInt64BE: [8, -(2n ** 63n), 2n ** 63n - 1n, -2n],
  BigInt64LE: [8, -(2n ** 63n), 2n ** 63n - 1n, -2n],
  FloatBE: [4, 0.5, 1 / 3, -Infinity, NaN],
  FloatLE: [4, 0.5, 1 / 3, -Infinity, NaN],
  DoubleBE: [8, Math.PI, -Number.MAX_VALUE, NaN],
  DoubleLE: [8, Math.PI, -Number.MAX_VALUE, NaN],
}

/** What the peer receives after a flush, when nothing else was sent before. */
async function flushed({ connection, writer, peer }) {
  writer.flush()
  connection.end()
  return (await outcome(peer)).bytes
}

/** A pair whose peer reads nothing, with so much pending that nothing more reaches the kernel. */
async function stalled(t) {
  const both = await pair(t, { maxPendingBytes: 256 * MIB })
  const filling = randomBytes(16 * MIB)
  both.writer.writeBinary(filling)
  both.writer.flush()
  await stands(() => both.connection.bytesWritten)
  return { ...both, filling }
}

/** Writes into native blocks that nobody fills with anything else. */
function fill({ writer }) {
  for (let i = 0; i < 64; i++) writer.malloc(64 * KIB)
  writer.writeBinary(new Uint8Array(new SharedArrayBuffer(4 * MIB)))
}

/** Waits until the kernel has taken something, and takes no more. */
async function stands(count) {
  let last = 0
  let times = 0
  await until(() => {
    const now = count()
    times = now === last && now > 0 ? times + 1 : 0
    last = now
    return times === 20
  })
}

for (const [kind, [size, ...values]] of Object.entries(NUMBERS)) {
  test(`write${kind} writes what Buffer writes`, async (t) => {
    const both = await pair(t)
    const expected = Buffer.alloc(size * values.length)
    values.forEach((value, i) => {
      expected[`write${kind}`](value, i * size)
      both.writer[`write${kind}`](value)
    })
    t.is(both.writer.mallocLength, expected.length)
    t.deepEqual(await flushed(both), expected)
  })
}

test('writeByte is writeUInt8', async (t) => {
  const both = await pair(t)
  both.writer.writeByte(200)
  t.is(both.writer.mallocLength, 1)
  t.deepEqual(await flushed(both), Buffer.of(200))
})

// The last text is longer than a block, the one before it than the room that a block has left.
const TEXTS = ['', 'plain', 'aé€😀z', '\ud800 lonely \udc00', 'é'.repeat(50_000), '€x'.repeat(MIB)]

for (const encoding of [
  'utf8',
  'latin1',
  'hex',
  'base64',
  'base64url',
  'ascii',
  'utf16le',
  'ucs2',
  'binary',
]) {
  test(`writeString encodes ${encoding} as Buffer does, and returns the count of bytes`, async (t) => {
    const both = await pair(t)
    const texts = encoding === 'hex' ? ['', '00ff', '0', 'xy'] : TEXTS
    const expected = texts.map((text) => Buffer.from(text, encoding))
    t.deepEqual(
      texts.map((text) => both.writer.writeString(text, encoding)),
      expected.map((bytes) => bytes.length),
    )
    t.true((await flushed(both)).equals(Buffer.concat(expected)))
  })
}

test('writeString encodes UTF-8 without being told to', async (t) => {
  const both = await pair(t)
  t.is(both.writer.writeString('é€'), 5)
  t.is((await flushed(both)).toString(), 'é€')
})

for (const size of [0, 1, BY_REFERENCE - 1, BY_REFERENCE, 64 * KIB, MIB, 9 * MIB]) {
  const sources = {
    Buffer: (bytes) => bytes,
    Uint8Array: (bytes) => new Uint8Array(bytes),
    'part of a larger ArrayBuffer': (bytes) => {
      const larger = new Uint8Array(size + 20)
      larger.set(bytes, 13)
      return larger.subarray(13, 13 + size)
    },
    SharedArrayBuffer: (bytes) => {
      const shared = new Uint8Array(new SharedArrayBuffer(size))
      shared.set(bytes)
      return shared
    },
    'resizable ArrayBuffer': (bytes) => {
      const resizable = new Uint8Array(new ArrayBuffer(size, { maxByteLength: size + 1 }))
      resizable.set(bytes)
      return resizable
    },
  }
  for (const [kind, sourceOf] of Object.entries(sources)) {
    test(`writeBinary sends ${size} bytes of a ${kind}`, async (t) => {
      const both = await pair(t)
      const bytes = randomBytes(size)
      t.is(both.writer.writeBinary(sourceOf(bytes)), size)
      t.is(both.writer.mallocLength, size)
      t.true((await flushed(both)).equals(bytes))
    })
  }
}

test('what is written in many ways is sent in the order in which it was written', async (t) => {
  const both = await pair(t)
  const { writer } = both
  const large = randomBytes(20 * KIB)
  writer.writeString('a')
  writer.malloc(2).write('bc')
  writer.writeBinary(large)
  writer.writeByte(0x64)
  writer.writeBinary(Buffer.from('e'))
  writer.writeUInt16BE(0x6667)
  t.is(writer.mallocLength, 7 + large.length)
  t.true((await flushed(both)).equals(Buffer.concat([Buffer.from('abc'), large, Buffer.from('defg')])))
})

test('what was not flushed is not sent, and goes with the next flush', async (t) => {
  const { writer, peer, connection } = await pair(t)
  writer.writeString('one ')
  await connection.flushed()
  t.is(connection.bytesWritten, 0)
  writer.flush()
  writer.writeString('two ')
  await connection.flushed()
  t.is(connection.bytesWritten, 4)
  t.is(writer.mallocLength, 4)
  writer.writeString('three')
  t.true(writer.flush())
  t.is(writer.mallocLength, 0)
  t.is((await take(peer, 13)).toString(), 'one two three')
})

test('flush without anything written is true and sends nothing', async (t) => {
  const { writer, connection } = await pair(t)
  t.true(writer.flush())
  await connection.flushed()
  t.is(connection.bytesWritten, 0)
})

test('flush is false above writeHighWaterMark, and all is sent', async (t) => {
  const { writer, peer, connection } = await pair(t, { writeHighWaterMark: MIB })
  const bytes = randomBytes(32 * MIB)
  writer.writeBinary(bytes)
  t.false(writer.flush())
  const received = outcome(peer)
  await connection.flushed()
  t.is(connection.bytesWritten, bytes.length)
  t.true(writer.flush())
  connection.end()
  t.true((await received).bytes.equals(bytes))
})

// ---- malloc, mallocAck, writeDirect

test('room of malloc can be filled until the flush, in any order', async (t) => {
  const both = await pair(t)
  const { writer } = both
  const head = writer.malloc(4)
  const first = writer.malloc(3)
  writer.writeString('def')
  first.write('abc')
  head.writeUInt32BE(writer.mallocLength - 4)
  t.deepEqual(await flushed(both), Buffer.from('\0\0\0\x06abcdef'))
})

for (const size of [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 5 * MIB]) {
  test(`malloc gives ${size} bytes that are sent`, async (t) => {
    const both = await pair(t)
    const bytes = randomBytes(size)
    both.writer.writeByte(1)
    const room = both.writer.malloc(size)
    t.is(room.length, size)
    both.writer.writeByte(2)
    t.is(both.writer.mallocLength, size + 2)
    bytes.copy(room)
    t.true((await flushed(both)).equals(Buffer.concat([Buffer.of(1), bytes, Buffer.of(2)])))
  })
}

test('mallocAck keeps the first bytes in stream order, and what follows is sent behind them', async (t) => {
  const both = await pair(t)
  const { writer } = both
  writer.writeString('abc')
  writer.malloc(1000).write('def')
  writer.mallocAck(5)
  t.is(writer.mallocLength, 5)
  writer.mallocAck(5)
  writer.writeString('xyz')
  t.is(writer.mallocLength, 8)
  t.is((await flushed(both)).toString(), 'abcdexyz')
})

test('mallocAck(0) drops all', async (t) => {
  const both = await pair(t)
  both.writer.writeString('never sent')
  both.writer.writeBinary(Buffer.alloc(BY_REFERENCE))
  both.writer.mallocAck(0)
  t.is(both.writer.mallocLength, 0)
  both.writer.writeString('sent')
  t.is((await flushed(both)).toString(), 'sent')
})

test('mallocAck cuts anywhere among bytes that were copied, referred to and moved here', async (t) => {
  const large = randomBytes(20 * KIB)
  const other = await pair(t)
  const all = Buffer.concat([
    Buffer.from('abc'),
    large,
    Buffer.from('def'),
    Buffer.from('other'),
    Buffer.from('g'),
  ])
  for (const n of [
    0,
    1,
    3,
    4,
    3 + large.length,
    5 + large.length,
    8 + large.length,
    all.length - 1,
    all.length,
  ]) {
    const both = await pair(t)
    const { writer } = both
    writer.writeString('abc')
    writer.writeBinary(large)
    writer.writeString('def')
    other.writer.writeString('other')
    writer.append(other.writer)
    writer.writeString('g')
    writer.mallocAck(n)
    writer.writeString('!')
    t.true((await flushed(both)).equals(Buffer.concat([all.subarray(0, n), Buffer.from('!')])), `${n}`)
  }
})

test('what mallocAck drops of one Writer does not touch what others wrote behind it', async (t) => {
  const one = await pair(t)
  const two = await pair(t)
  one.writer.malloc(10).write('0123456789')
  two.writer.writeString('two')
  one.writer.mallocAck(3)
  one.writer.writeString('one')
  two.writer.writeString('TWO')
  t.is((await flushed(one)).toString(), '012one')
  t.is((await flushed(two)).toString(), 'twoTWO')
})

test("room of one Writer's malloc that another one has written stays what it was, also when it is not kept", async (t) => {
  const one = await pair(t)
  const two = await pair(t)
  const room = one.writer.malloc(20 * KIB).fill('x')
  two.writer.writeBinary(room)
  one.writer.mallocAck(0)
  one.writer.writeString('y'.repeat(20 * KIB))
  t.is((await flushed(two)).toString(), 'x'.repeat(20 * KIB))
  t.is((await flushed(one)).toString(), 'y'.repeat(20 * KIB))
})

test('writeDirect puts bytes before the last of those that wait', async (t) => {
  for (const size of [1, BY_REFERENCE]) {
    const bytes = randomBytes(size)
    for (const remain of [0, 1, 3, 4, 6]) {
      const both = await pair(t)
      const { writer } = both
      writer.writeString('abc')
      writer.writeString('def')
      writer.writeDirect(bytes, remain)
      t.is(writer.mallocLength, 6 + size)
      writer.writeString('g')
      const expected = [
        Buffer.from('abcdef').subarray(0, 6 - remain),
        bytes,
        Buffer.from('abcdef').subarray(6 - remain),
      ]
      t.true(
        (await flushed(both)).equals(Buffer.concat([...expected, Buffer.from('g')])),
        `${size} ${remain}`,
      )
    }
  }
})

test("writeDirect into room of malloc, as netpoll's users do: the room behind it can still be filled", async (t) => {
  const both = await pair(t)
  const { writer } = both
  const room = writer.malloc(8)
  room.write('head')
  writer.writeDirect(Buffer.from('[inserted]'), 4)
  writer.writeDirect(Buffer.alloc(BY_REFERENCE, '+'), 2)
  room.write('tail', 4)
  writer.mallocAck(writer.mallocLength - 1)
  t.is((await flushed(both)).toString(), `head[inserted]ta${'+'.repeat(BY_REFERENCE)}i`)
})

test('writeDirect of nothing changes nothing', async (t) => {
  const both = await pair(t)
  both.writer.writeString('abc')
  both.writer.writeDirect(Buffer.alloc(0), 2)
  both.writer.writeDirect(Buffer.alloc(0), 0)
  t.is((await flushed(both)).toString(), 'abc')
})

test('mallocAck and writeDirect of more than what waits are out of range and change nothing', async (t) => {
  const both = await pair(t)
  const { writer } = both
  writer.writeString('abc')
  t.throws(() => writer.mallocAck(4), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => writer.writeDirect(Buffer.from('x'), 4), { code: 'ERR_OUT_OF_RANGE' })
  t.is(writer.mallocLength, 3)
  t.is((await flushed(both)).toString(), 'abc')
})

// ---- append

test('append of a Writer moves what waits there, and leaves it empty', async (t) => {
  const source = await pair(t)
  const target = await pair(t)
  const large = randomBytes(20 * KIB)
  target.writer.writeString('first ')
  source.writer.writeString('second ')
  source.writer.writeBinary(large)
  t.is(target.writer.append(source.writer), 7 + large.length)
  t.is(source.writer.mallocLength, 0)
  t.is(target.writer.append(source.writer), 0, 'it is empty now')
  target.writer.writeString('third')
  source.writer.writeString('of the source')
  const expected = Buffer.concat([Buffer.from('first second '), large, Buffer.from('third')])
  t.is(target.writer.mallocLength, expected.length)
  t.true((await flushed(target)).equals(expected))
  t.is((await flushed(source)).toString(), 'of the source')
})

test('append of a Reader moves what is unread there, and leaves it empty', async (t) => {
  const source = await pair(t)
  const target = await pair(t)
  const bytes = randomBytes(3 * MIB)
  const sending = send(source.peer, bytes)
  await source.reader.waitRead(bytes.length)
  await sending
  source.reader.skip(10)
  target.writer.writeString('0123456789')
  t.is(target.writer.append(source.reader), bytes.length - 10)
  t.is(source.reader.length, 0)
  t.is(target.writer.append(source.reader), 0)
  bytes.write('0123456789')
  t.true((await flushed(target)).equals(bytes))
  await send(source.peer, 'more')
  await source.reader.waitRead(4)
  t.is(source.reader.readString(4), 'more')
})

test('append of a slice takes it over: its own release() takes nothing back', async (t) => {
  const source = await pair(t)
  const target = await pair(t)
  await send(source.peer, 'abcdef')
  await source.reader.waitRead(6)
  const slice = source.reader.slice(4)
  slice.skip(1)
  t.is(target.writer.append(slice), 3)
  t.is(slice.length, 0)
  slice.release()
  source.reader.release()
  t.is((await flushed(target)).toString(), 'bcd')
  t.is(source.reader.readString(2), 'ef')
})

test('a Writer cannot be appended to itself, which changes nothing', async (t) => {
  const both = await pair(t)
  both.writer.writeString('abc')
  t.throws(() => both.writer.append(both.writer), { code: 'ERR_INVALID_ARG_VALUE' })
  t.is((await flushed(both)).toString(), 'abc')
})

// ---- by copy and by reference, with the sums of the whole process

test.serial(
  'below 16 KiB writeBinary copies, from there on it refers to the memory until it is sent',
  async (t) => {
    const both = await stalled(t)
    const { writer, filling } = both
    const pinned = stats().pinnedSends
    t.is(pinned, 1)
    const below = randomBytes(BY_REFERENCE - 1)
    const above = randomBytes(BY_REFERENCE)
    const expected = Buffer.concat([filling, below, above])
    writer.writeBinary(below)
    below.fill(0)
    writer.flush()
    t.is(stats().pinnedSends, pinned)
    writer.writeBinary(above)
    writer.flush()
    t.is(stats().pinnedSends, pinned + 1)
    t.true((await flushed(both)).equals(expected))
    await until(() => stats().pinnedSends === 0)
  },
)

test.serial(
  'what one connection has read is sent by another from where it lies, without a copy',
  async (t) => {
    const both = await stalled(t)
    const { writer, filling } = both
    const source = await pair(t)
    await send(source.peer, Buffer.alloc(KIB, 'before'))
    await source.reader.waitRead(KIB)
    const view = source.reader.peek(KIB)
    writer.append(source.reader.slice(KIB))
    writer.flush()
    // Nobody should; but it shows that these very bytes are sent.
    view.fill('after')
    t.true((await flushed(both)).equals(Buffer.concat([filling, Buffer.alloc(KIB, 'after')])))
  },
)

test.serial('shared and resizable memory is copied, whatever its size', async (t) => {
  const both = await stalled(t)
  const { writer, filling } = both
  const bytes = randomBytes(3 * MIB)
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length))
  const resizable = new Uint8Array(new ArrayBuffer(bytes.length, { maxByteLength: 2 * bytes.length }))
  const pinned = stats().pinnedSends
  for (const source of [shared, resizable]) {
    source.set(bytes)
    t.is(writer.writeBinary(source), bytes.length)
    source.fill(0)
    writer.flush()
  }
  resizable.buffer.resize(0)
  t.is(stats().pinnedSends, pinned)
  t.true((await flushed(both)).equals(Buffer.concat([filling, bytes, bytes])))
  await until(() => stats().pinnedSends === 0)
})

test.serial('pinned memory is let go when the peer resets the connection', async (t) => {
  const { peer, connection } = await stalled(t)
  t.is(stats().pinnedSends, 1)
  peer.resetAndDestroy()
  await connection.closed
  await until(() => stats().pinnedSends === 0)
  t.pass()
})

test.serial('pinned memory is let go when our own reset drops it', async (t) => {
  const { connection } = await stalled(t)
  connection.reset()
  await connection.closed
  await until(() => stats().pinnedSends === 0)
  t.pass()
})

test.serial('room that mallocAck has not kept is used again', async (t) => {
  const both = await pair(t)
  const { writer } = both
  writer.writeByte(1)
  const { blocksOut } = stats()
  for (let kept = 2; kept <= 1000; kept++) {
    writer.malloc(30 * KIB).fill(kept)
    writer.mallocAck(kept)
  }
  t.true(stats().blocksOut <= blocksOut + 1)
  t.deepEqual(await flushed(both), Buffer.from(Array.from({ length: 1000 }, (_, i) => i + 1)))
})

test.serial(
  'the memory of what was written comes back when it is sent, dropped, or the connection ends',
  async (t) => {
    const warm = await pair(t)
    warm.writer.writeString('warm')
    await flushed(warm)
    warm.peer.destroy()
    await warm.connection.closed
    const before = stats().bytesOut
    const ends = {
      sent: async (both) => void (await flushed(both)),
      dropped: ({ writer }) => writer.mallocAck(0),
      closed: ({ connection }) => connection.close(),
      reset: ({ peer, writer }) => {
        peer.resetAndDestroy()
        writer.flush()
      },
    }
    for (const [kind, end] of Object.entries(ends)) {
      const both = await pair(t)
      fill(both)
      t.true(stats().bytesOut >= before + 7 * MIB, kind)
      await end(both)
      both.peer.destroy()
      await both.connection.closed
      // One output block, in part unused, stays with the environment.
      await until(() => stats().bytesOut <= before + MIB, `${kind}: ${stats().bytesOut} of ${before}`)
    }
  },
)

test.serial(
  'the write that would pass maxPendingBytes throws OUTPUT_LIMIT and resets the connection',
  async (t) => {
    const writes = {
      malloc: (writer, n) => writer.malloc(n),
      writeString: (writer, n) => writer.writeString('x'.repeat(n)),
      latin1: (writer, n) => writer.writeString('x'.repeat(n), 'latin1'),
      'small writeBinary': (writer, n) => {
        for (let left = n; left > 0; left -= 1000) writer.writeBinary(Buffer.alloc(1000))
      },
      writeBinary: (writer, n) => writer.writeBinary(Buffer.alloc(n)),
      writeDirect: (writer, n) => writer.writeDirect(Buffer.alloc(n), 0),
      writeDoubleBE: (writer, n) => {
        for (let left = n; left > 0; left -= 8) writer.writeDoubleBE(1)
      },
    }
    for (const [kind, write] of Object.entries(writes)) {
      const { writer, peer, connection } = await pair(t, { maxPendingBytes: MIB, writeHighWaterMark: KIB })
      const received = outcome(peer)
      t.notThrows(() => write(writer, MIB - 1000), `${kind}: up to the limit`)
      t.throws(() => write(writer, 2000), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' }, kind)
      t.throws(() => writer.writeByte(1), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' }, kind)
      t.throws(() => writer.flush(), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' }, kind)
      t.is((await received).code, 'ECONNRESET', kind)
      await connection.closed
    }
  },
)

test.serial(
  'a text that fits in UTF-8 is written, though three bytes a unit would pass the limit',
  async (t) => {
    const both = await pair(t, { maxPendingBytes: 1000 })
    t.is(both.writer.writeString('x'.repeat(1000)), 1000)
    t.is((await flushed(both)).length, 1000)
  },
)

test.serial('a handler that echoes by append leaves no block out', async (t) => {
  const server = serve(({ reader, writer }) => {
    writer.append(reader.slice(reader.length))
    writer.flush()
  })
  t.teardown(server.stop)
  const before = stats().bytesOut
  const peer = await connect(server.port)
  const sent = randomBytes(8 * MIB)
  const received = outcome(peer)
  peer.end(sent)
  t.true((await received).bytes.equals(sent))
  await until(() => server.loop.connections === 0)
  await until(() => stats().bytesOut <= before + 3 * MIB, `${stats().bytesOut} of ${before}`)
})
