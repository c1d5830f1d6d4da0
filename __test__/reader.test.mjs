// Reader over a connection: every method, with bytes that come in pieces at every kind of boundary.

import test from 'ava'
import { randomBytes } from 'node:crypto'
import { stats } from '../index.js'
import { connect, deferred, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
/** A poll keeps a block and a spare one of each size for what comes next. */
const KEPT_BY_POLL = 3 * MIB

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
  FloatBE: [4, 0.5, -1.5 * 2 ** 34, Infinity],
  FloatLE: [4, 0.5, -1.5 * 2 ** 34, Infinity],
  DoubleBE: [8, Math.PI, -Number.MAX_VALUE, -Infinity],
  DoubleLE: [8, Math.PI, -Number.MAX_VALUE, -Infinity],
}

/** A pair whose bytes can be brought to the Reader in pieces that lie apart in memory. */
async function inPieces(t, options) {
  const { port, stop } = serve(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  t.teardown(stop)
  const other = await connect(port)
  const both = await pair(t, options)
  const { peer, reader } = both
  /** Sends each piece by itself, with a byte of another connection behind it in the memory they share. */
  const bring = async (...pieces) => {
    for (const piece of pieces) {
      const length = reader.length + piece.length
      await send(peer, piece)
      await until(() => reader.length === length)
      await send(other, '|')
      await take(other, 1)
    }
  }
  return { ...both, bring }
}

/** All ways to cut `bytes` in two, with neither part empty. */
function cuts(bytes) {
  return Array.from(bytes.subarray(1), (_, i) => [bytes.subarray(0, i + 1), bytes.subarray(i + 1)])
}

for (const [kind, [size, ...values]] of Object.entries(NUMBERS)) {
  test(`read${kind} reads what Buffer has written, also across pieces`, async (t) => {
    const { reader, bring } = await inPieces(t)
    for (const value of values) {
      const bytes = Buffer.alloc(size)
      bytes[`write${kind}`](value)
      for (const pieces of [[bytes], ...cuts(bytes)]) {
        await bring(...pieces)
        t.is(reader[`read${kind}`](), value)
        t.is(reader.length, 0)
      }
    }
  })

  test(`read${kind} of less than ${size} bytes is a short read that consumes nothing`, async (t) => {
    const { reader, bring } = await inPieces(t)
    t.throws(() => reader[`read${kind}`](), { code: 'ERR_NETPOLL_SHORT_READ' })
    if (size === 1) return
    await bring(Buffer.alloc(size - 1, 7))
    t.throws(() => reader[`read${kind}`](), { code: 'ERR_NETPOLL_SHORT_READ' })
    t.deepEqual(reader.readBinary(reader.length), Buffer.alloc(size - 1, 7))
  })
}

test('readByte is readUInt8', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.of(200))
  t.is(reader.readByte(), 200)
  t.throws(() => reader.readByte(), { code: 'ERR_NETPOLL_SHORT_READ' })
})

test('next takes the bytes in order, whatever pieces they have come in', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('de'), Buffer.from('fghij'))
  t.is(reader.length, 10)
  const views = [reader.next(2), reader.next(4), reader.next(0), reader.next(4)]
  t.deepEqual(views.map(String), ['ab', 'cdef', '', 'ghij'])
  t.is(reader.length, 0)
})

test('peek leaves the bytes unread', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('def'))
  t.is(reader.peek(2).toString(), 'ab')
  t.is(reader.peek(5).toString(), 'abcde')
  t.is(reader.peek(0).length, 0)
  t.is(reader.length, 6)
  t.is(reader.next(6).toString(), 'abcdef')
})

test('skip consumes across pieces', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('def'))
  reader.skip(0)
  reader.skip(4)
  t.is(reader.readString(2), 'ef')
})

test('readBinary gives a copy that later input does not change', async (t) => {
  const { reader, peer, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('def'))
  const copy = reader.readBinary(5)
  copy[0] = 0x41
  reader.skip(1)
  reader.release()
  await send(peer, Buffer.alloc(MIB, 'x'))
  await reader.waitRead(MIB)
  t.is(copy.toString(), 'Abcde')
})

test('a view shares its memory with what is unread, a copy does not', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abc'))
  reader.peek(3)[0] = 0x41
  t.is(reader.peek(3).toString(), 'Abc')
  reader.readBinary(1)[0] = 0x42
  t.is(reader.readString(2), 'bc')
})

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
  test(`readString decodes ${encoding} as Buffer does, also when a character comes in pieces`, async (t) => {
    const { reader, bring } = await inPieces(t)
    const bytes = Buffer.from('aé€😀z!')
    for (const pieces of [[bytes], ...cuts(bytes)]) {
      await bring(...pieces)
      t.is(reader.readString(bytes.length, encoding), bytes.toString(encoding))
    }
    t.is(reader.readString(0, encoding), '')
    t.is(reader.length, 0)
  })
}

test('readString decodes UTF-8 without being told to', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('aé€😀'))
  t.is(reader.readString(10), 'aé€😀')
})

const SIZED = ['next', 'peek', 'skip', 'readString', 'readBinary', 'slice']

for (const method of SIZED) {
  test(`${method} of more than there is is a short read that consumes nothing`, async (t) => {
    const { reader, peer, bring } = await inPieces(t)
    t.throws(() => reader[method](1), { code: 'ERR_NETPOLL_SHORT_READ' })
    await bring(Buffer.from('ab'), Buffer.from('c'))
    t.throws(() => reader[method](4), { code: 'ERR_NETPOLL_SHORT_READ' })
    t.is(reader.length, 3)
    peer.end()
    await until(() => reader.ended)
    t.throws(() => reader[method](4), { code: 'ERR_NETPOLL_SHORT_READ' }, 'also after EOF')
    t.is(reader.readString(3), 'abc')
  })
}

test('ended becomes true when the peer has finished and all has been delivered', async (t) => {
  const { reader, peer } = await pair(t)
  t.false(reader.ended)
  peer.end('last words')
  await until(() => reader.ended)
  t.is(reader.readString(reader.length), 'last words')
})

// ---- until

test('until takes all up to and including the delimiter: a number, a string or bytes', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('one\ntwo\r\nthree\0\0rest'))
  t.is(reader.until(10).toString(), 'one\n')
  t.is(reader.until('\r\n').toString(), 'two\r\n')
  t.is(reader.until(Buffer.of(0, 0)).toString(), 'three\0\0')
  t.is(reader.until('\n'), undefined)
  t.is(reader.readString(reader.length), 'rest')
})

test('until finds a delimiter of several bytes that is cut at any place, also into single bytes', async (t) => {
  const { reader, bring } = await inPieces(t)
  const bytes = Buffer.from('x€€y')
  const singles = Array.from(bytes, (byte) => Buffer.of(byte))
  for (const pieces of [...cuts(bytes), singles]) {
    await bring(...pieces)
    t.is(reader.until('€€').toString(), 'x€€')
    t.is(reader.readString(1), 'y')
  }
})

test('a scan that found nothing resumes, and finds a delimiter whose start was there before', async (t) => {
  const { reader, bring } = await inPieces(t)
  for (const piece of ['ab-', '-', 'cd-', '--', '>e']) {
    await bring(Buffer.from(piece))
    if (piece !== '>e') t.is(reader.until('--->'), undefined)
  }
  t.is(reader.until('--->').toString(), 'ab--cd--->')
  t.is(reader.readString(1), 'e')
})

test('a scan begins anew for another delimiter, for changed bytes of it, and after bytes were consumed', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('a;b,c;'))
  const delimiter = Buffer.from('!')
  t.is(reader.until(delimiter), undefined)
  delimiter[0] = ';'.charCodeAt(0)
  t.is(reader.until(delimiter).toString(), 'a;')
  t.is(reader.until('?'), undefined)
  reader.skip(1)
  t.is(reader.until(',').toString(), ',')
  t.is(reader.until(';').toString(), 'c;')
})

test('a scan that has begun on bytes that were consumed since does not miss what came behind', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abcdef'))
  t.is(reader.until('\n'), undefined)
  reader.skip(5)
  await bring(Buffer.from('\n12345\n'))
  t.is(reader.until('\n').toString(), 'f\n')
  t.is(reader.until('\n').toString(), '12345\n')
})

test('until finds the first of two delimiters, also when it is found twice', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('a\nb\n'))
  t.is(await reader.waitUntil('\n'), 2)
  t.is(await reader.waitUntil('\n'), 2)
  t.is(reader.until('\n').toString(), 'a\n')
  t.is(reader.until('\n').toString(), 'b\n')
})

for (const delimiter of ['', Buffer.alloc(0), new Uint8Array(0)]) {
  test(`an empty delimiter is out of range: ${delimiter.constructor.name}`, async (t) => {
    const { reader, bring } = await inPieces(t)
    await bring(Buffer.from('abc'))
    t.throws(() => reader.until(delimiter), { code: 'ERR_OUT_OF_RANGE' })
    t.throws(() => reader.waitUntil(delimiter), { code: 'ERR_OUT_OF_RANGE' })
    t.is(reader.length, 3)
  })
}

// ---- handlers, block ends, large messages

for (const size of [1, 2, 3, 7]) {
  test(`a handler that returns until enough is here gets messages whose bytes come ${size} at a time`, async (t) => {
    const messages = ['', 'a', 'é€😀', 'x'.repeat(40)].map((text) => Buffer.from(text))
    const got = []
    const { port, stop } = serve(({ reader }) => {
      while (reader.length >= 4) {
        const length = reader.peek(4).readUInt32BE(0)
        if (reader.length < 4 + length) return
        reader.skip(4)
        got.push(reader.readString(length))
      }
    })
    t.teardown(stop)
    const peer = await connect(port)
    t.teardown(() => void peer.destroy())
    peer.setNoDelay(true)
    const bytes = Buffer.concat(messages.flatMap((message) => [header(message.length), message]))
    for (let at = 0; at < bytes.length; at += size) await send(peer, bytes.subarray(at, at + size))
    await until(() => got.length === messages.length)
    t.deepEqual(got, messages.map(String))
  })
}

test('numbers, strings and views are right at every block end of a long input', async (t) => {
  const { reader, peer } = await pair(t, { readHighWaterMark: 4 * MIB })
  const text = 'aé€😀z'
  const record = Buffer.concat([Buffer.alloc(13), Buffer.from(text), Buffer.from('\r\n')])
  const count = 100_000
  const bytes = Buffer.concat(
    Array.from({ length: count }, (_, i) => {
      record.writeUInt32BE(i, 0)
      record.writeDoubleLE(i / 3, 4)
      record.writeUInt8(i & 255, 12)
      return Buffer.from(record)
    }),
  )
  send(peer, bytes)
  for (let i = 0; i < count; i++) {
    if (reader.length < record.length) await reader.waitRead(record.length)
    const read = [
      reader.readUInt32BE(),
      reader.readDoubleLE(),
      reader.readByte(),
      reader.until('\r\n').toString(),
    ]
    if (read.join() !== [i, i / 3, i & 255, `${text}\r\n`].join()) t.fail(`record ${i}: ${read}`)
    if (i % 1000 === 0) reader.release()
  }
  t.is(reader.length, 0)
})

for (const size of [64 * KIB, MIB, MIB + 1, 8 * MIB]) {
  test(`a message of ${size} bytes is the same by next, peek, readBinary, readString and slice`, async (t) => {
    const { reader, peer } = await pair(t)
    const sent = randomBytes(size)
    for (const readAll of [
      () => reader.next(size),
      () => {
        const seen = Buffer.from(reader.peek(size))
        reader.skip(size)
        return seen
      },
      () => reader.readBinary(size),
      () => Buffer.from(reader.readString(size, 'latin1'), 'latin1'),
      () => reader.slice(size).readBinary(size),
    ]) {
      const sending = send(peer, sent)
      await reader.waitRead(size)
      t.true(readAll().equals(sent))
      t.is(reader.length, 0)
      reader.release()
      await sending
    }
  })
}

test('a peek across pieces consumes nothing: its handler is called for what comes, and not for what is here', async (t) => {
  const lengths = []
  const { port, stop } = serve(({ reader }) => void lengths.push(reader.peek(reader.length).length))
  t.teardown(stop)
  const peer = await connect(port)
  t.teardown(() => void peer.destroy())
  await send(peer, Buffer.alloc(5000))
  await until(() => lengths.includes(5000))
  await settled()
  await send(peer, Buffer.alloc(5000))
  await until(() => lengths.includes(10_000))
  await settled()
  t.deepEqual(lengths, [5000, 10_000])
})

// ---- slice

test('a slice takes its bytes from the Reader, and has all of its methods', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('\x01ab\nc'), Buffer.from('d\ne'), Buffer.from('rest'))
  const slice = reader.slice(8)
  t.is(reader.readString(4), 'rest')
  t.is(slice.length, 8)
  t.true(slice.ended)
  t.is(slice.readByte(), 1)
  t.is(slice.until('\n').toString(), 'ab\n')
  t.is(slice.peek(2).toString(), 'cd')
  const inner = slice.slice(3)
  t.is(inner.readString(3), 'cd\n')
  t.is(slice.next(1).toString(), 'e')
  t.throws(() => slice.next(1), { code: 'ERR_NETPOLL_SHORT_READ' })
  slice.release()
})

test('waits of a slice resolve when the bytes are in it, and reject with EOF when they are not', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('a\nb'))
  const slice = reader.slice(3)
  await slice.waitRead(3)
  t.is(await slice.waitUntil('\n'), 2)
  await t.throwsAsync(slice.waitRead(4), { code: 'ERR_NETPOLL_EOF' })
  await t.throwsAsync(slice.waitUntil('?'), { code: 'ERR_NETPOLL_EOF' })
  t.is(slice.readString(3), 'a\nb')
})

test('release() ends a slice, the Reader goes on', async (t) => {
  const { reader, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('def'))
  const slice = reader.slice(4)
  slice.release()
  t.is(slice.length, 0)
  t.throws(() => slice.readByte(), { code: 'ERR_NETPOLL_SHORT_READ' })
  t.is(reader.readString(2), 'ef')
})

// ---- memory, with the sums of the whole process

test.serial('a peek across pieces that is repeated takes memory once', async (t) => {
  const { reader, peer, bring } = await inPieces(t)
  await bring(Buffer.from('abc'), Buffer.from('def'))
  reader.peek(6)
  const { blocksOut } = stats()
  for (let i = 0; i < 10_000; i++) reader.peek(6)
  t.true(stats().blocksOut <= blocksOut)
  reader.skip(6)
  reader.release()
  await send(peer, Buffer.alloc(MIB - 1, 'x'))
  await reader.waitRead(MIB - 1)
  reader.peek(MIB - 1)
  const { bytesOut } = stats()
  for (let i = 0; i < 1000; i++) reader.peek(MIB - 1)
  t.true(stats().bytesOut <= bytesOut)
})

test.serial('a slice keeps its blocks until its own release(), and then they go back', async (t) => {
  const { reader, peer } = await pair(t)
  const before = stats().bytesOut
  const sent = randomBytes(8 * MIB)
  const sending = send(peer, sent)
  await reader.waitRead(sent.length)
  const slice = reader.slice(sent.length)
  await sending
  reader.release()
  t.true(stats().bytesOut >= sent.length)
  t.true(slice.readBinary(sent.length).equals(sent))
  slice.release()
  await wentBack(before)
  t.pass()
})

test.serial('views keep their blocks until release(), and then they go back', async (t) => {
  const { reader, peer } = await pair(t)
  const before = stats().bytesOut
  const sending = send(peer, Buffer.alloc(8 * MIB))
  for (let read = 0; read < 8 * MIB; read += 64 * KIB) {
    await reader.waitRead(64 * KIB)
    reader.next(64 * KIB)
  }
  await sending
  t.true(stats().bytesOut >= 7 * MIB)
  reader.release()
  await wentBack(before)
  t.pass()
})

test.serial(
  'bytes that were consumed without a view give their blocks back without a release()',
  async (t) => {
    const { reader, peer } = await pair(t)
    const before = stats().bytesOut
    const sending = send(peer, Buffer.alloc(8 * MIB))
    await reader.waitRead(8 * MIB)
    t.true(stats().bytesOut >= 7 * MIB)
    await sending
    reader.skip(2 * MIB)
    reader.readBinary(2 * MIB)
    reader.readString(2 * MIB)
    for (let i = 0; i < (2 * MIB) / 8; i++) reader.readDoubleBE()
    await wentBack(before)
    t.pass()
  },
)

test.serial('a handler that ends gives back the blocks of its views', async (t) => {
  const before = stats().bytesOut
  const handler = deferred()
  let taken = 0
  const { port, stop } = serve(async ({ reader }) => {
    taken += reader.next(reader.length).length
    await handler.promise
  })
  t.teardown(stop)
  const client = await connect(port)
  t.teardown(() => void client.destroy())
  client.write(Buffer.alloc(4 * MIB))
  await until(() => taken > 0)
  handler.resolve()
  await until(() => taken === 4 * MIB)
  await wentBack(before)
  t.pass()
})

/** Waits until what is out is again what it was before. */
function wentBack(before) {
  return until(
    () => stats().bytesOut <= before + KEPT_BY_POLL,
    `${stats().bytesOut} bytes out, ${before} before`,
  )
}

function header(length) {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(length)
  return bytes
}
