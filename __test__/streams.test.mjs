// readerFrom, writerFrom, toReadable and toWritable: against streams of Node, files and connections.

import test from 'ava'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable, Transform, Writable } from 'node:stream'
import { buffer as all } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { createGunzip, createGzip } from 'node:zlib'
import { LinkBuffer, readerFrom, toReadable, toWritable, writerFrom } from '../index.js'
import {
  connect,
  deferred,
  leaksNothing,
  outcome,
  pair,
  send,
  serve,
  settled,
  until,
} from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const EOF = { code: 'ERR_NETPOLL_EOF' }
const TYPE = { code: 'ERR_INVALID_ARG_TYPE' }

/** All that a Reader gives until its end. */
async function rest(reader) {
  const chunks = []
  for (;;) {
    try {
      await reader.waitRead(1)
    } catch (error) {
      if (error.code !== 'ERR_NETPOLL_EOF') throw error
      return Buffer.concat(chunks)
    }
    chunks.push(reader.readBinary(reader.length))
    reader.release()
  }
}

/** Pieces of all sizes that make `bytes`. */
function pieces(bytes) {
  const cut = []
  for (let at = 0, size = 1; at < bytes.length; at += size, size = ((size * 7) % 100_003) + 1) {
    cut.push(bytes.subarray(at, at + size))
  }
  return cut
}

async function file(t, bytes) {
  const folder = await mkdtemp(join(tmpdir(), 'netpoll-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const path = join(folder, 'file')
  writeFileSync(path, bytes)
  return path
}

// ---- readerFrom

const bytes = randomBytes(2 * MIB + 17)
const SOURCES = {
  'a Readable of chunks': () => Readable.from(pieces(bytes)),
  'a Readable of bytes': () => Readable.from(pieces(bytes), { objectMode: false }),
  'an array': () => pieces(bytes),
  'a generator': () => pieces(bytes).values(),
  'an asynchronous generator': async function* () {
    yield* pieces(bytes)
  },
  'a web ReadableStream': () => new Blob([bytes]).stream(),
  'a Transform': () => Readable.from(pieces(bytes)).pipe(new PassThrough()),
  'a Reader made a Readable': () => toReadable(readerFrom(pieces(bytes))),
}

for (const [what, make] of Object.entries(SOURCES)) {
  test(`readerFrom reads ${what} to its end`, async (t) => {
    const reader = readerFrom(make())
    t.true((await rest(reader)).equals(bytes))
    t.true(reader.ended)
    await t.throwsAsync(reader.waitUntil('\n'), EOF)
  })
}

test('readerFrom reads strings as UTF-8, and lines across chunks', async (t) => {
  const reader = readerFrom(['grü', 'ße\r', '\nan alle\r\nohne Ende'])
  t.is(reader.readString(await reader.waitUntil('\r\n')), 'grüße\r\n')
  t.is(reader.readString(await reader.waitUntil('\r\n')), 'an alle\r\n')
  await t.throwsAsync(reader.waitUntil('\r\n'), EOF)
  t.is(reader.readString(reader.length), 'ohne Ende', 'the wait has consumed nothing')
})

test('views of a Reader over a stream stay what they are until release()', async (t) => {
  const reader = readerFrom(pieces(bytes))
  await reader.waitRead(bytes.length)
  const views = [100, 70 * KIB, MIB].map((size) => reader.next(size))
  const other = new LinkBuffer()
  for (let i = 0; i < 100; i++) other.malloc(64 * KIB).fill(i)
  other.close()
  await settled()
  t.true(Buffer.concat(views).equals(bytes.subarray(0, 100 + 70 * KIB + MIB)))
  reader.release()
})

test('nothing is taken from the stream but for a wait, and then not much more', async (t) => {
  let pulled = 0
  const stream = new Readable({
    highWaterMark: 16 * KIB,
    read(n) {
      pulled += n
      this.push(Buffer.alloc(n))
    },
  })
  const reader = readerFrom(stream)
  for (const size of [1, 100 * KIB, MIB]) {
    await reader.waitRead(size)
    await settled()
    t.true(reader.length >= size && reader.length <= size + 64 * KIB, `${reader.length} of ${size}`)
    t.true(pulled <= reader.length + 64 * KIB, `${pulled} pulled`)
  }
  stream.destroy()
})

test('a wait for a delimiter that does not come ends at maxReadBytes, and keeps the bytes', async (t) => {
  const stream = new Readable({
    read(n) {
      this.push(Buffer.alloc(n, 'x'))
    },
  })
  const reader = readerFrom(stream, { maxReadBytes: 100_000 })
  await t.throwsAsync(reader.waitUntil('\n'), { code: 'ERR_NETPOLL_INPUT_LIMIT' })
  t.true(reader.length >= 100_000 && reader.length < 200_000)
  t.throws(() => reader.waitRead(100_001), { code: 'ERR_OUT_OF_RANGE' })
  reader.skip(reader.length)
  await reader.waitRead(100_000)
  stream.destroy()
})

test('the error of the stream rejects the pending wait and the later ones', async (t) => {
  const stream = new PassThrough()
  const reader = readerFrom(stream)
  const wait = reader.waitRead(10)
  stream.write('abc')
  await settled()
  stream.destroy(new Error('broken'))
  await t.throwsAsync(wait, { message: 'broken' })
  await t.throwsAsync(reader.waitRead(10), { message: 'broken' })
  t.is(reader.readString(3), 'abc')
})

test('a stream that is destroyed before its end is no orderly end', async (t) => {
  const stream = new PassThrough()
  const reader = readerFrom(stream)
  const wait = reader.waitRead(10)
  stream.destroy()
  await t.throwsAsync(wait, { code: 'ERR_STREAM_PREMATURE_CLOSE' })
})

test('a chunk that is neither bytes nor a string ends the stream', async (t) => {
  const stream = Readable.from(['abc', 5])
  const reader = readerFrom(stream)
  await t.throwsAsync(reader.waitRead(10), TYPE)
  t.true(stream.destroyed)
})

test('the signal of a wait ends it, and the stream goes on', async (t) => {
  const stream = new PassThrough()
  const reader = readerFrom(stream)
  const abort = new AbortController()
  const wait = reader.waitRead(1, { signal: abort.signal })
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_INVALID_STATE' })
  abort.abort(new Error('enough'))
  await t.throwsAsync(wait, { message: 'enough' })
  stream.end('later')
  t.is((await rest(reader)).toString(), 'later')
})

test('a Reader knows of the end of its stream without another wait', async (t) => {
  const stream = new PassThrough()
  const reader = readerFrom(stream)
  stream.end('x')
  await reader.waitRead(1)
  await until(() => reader.ended)
  t.is(reader.readString(1), 'x')
})

// ---- writerFrom

test('writerFrom gives the stream bytes of its own: blocks that are filled again do not show', async (t) => {
  const got = []
  const writer = writerFrom(
    new Writable({
      highWaterMark: 16 * MIB,
      write(chunk, _encoding, callback) {
        got.push(chunk)
        callback()
      },
    }),
  )
  const expected = []
  for (let i = 0; i < 200; i++) {
    const piece = randomBytes(1 + ((i * 997) % 10_000))
    expected.push(piece)
    writer.writeBinary(piece)
    if (i % 3 === 0) t.true(writer.flush())
  }
  const large = randomBytes(MIB)
  writer.writeBinary(large)
  writer.flush()
  await writer.flushed()
  t.true(Buffer.concat(got).equals(Buffer.concat([...expected, large])))
  t.is(got.at(-1).buffer, large.buffer, 'what was written by reference is not copied')
})

test('flush() is false when the stream wants no more, and flushed() resolves when it has taken all', async (t) => {
  const pending = []
  const stream = new Writable({
    highWaterMark: 10,
    write(_chunk, _encoding, callback) {
      pending.push(callback)
    },
  })
  const writer = writerFrom(stream)
  writer.writeString('1234')
  t.true(writer.flush())
  writer.writeString('567890')
  t.false(writer.flush())
  let done = false
  const flushed = writer.flushed().then(() => (done = true))
  pending.shift()()
  await settled()
  t.false(done)
  await until(() => pending.length === 1)
  pending.shift()()
  await flushed
  t.true(writer.flush())
})

test('the error of the stream rejects flushed(); after it bytes are dropped and flush() is false', async (t) => {
  const stream = new Writable({
    write(_chunk, _encoding, callback) {
      callback(new Error('full'))
    },
  })
  const writer = writerFrom(stream)
  writer.writeString('abc')
  writer.flush()
  await t.throwsAsync(writer.flushed(), { message: 'full' })
  writer.writeString('abc')
  t.false(writer.flush())
  t.is(writer.mallocLength, 0)
  await t.throwsAsync(writer.flushed(), { message: 'full' })
})

test('a stream that was ended takes nothing more', async (t) => {
  const stream = new PassThrough()
  const writer = writerFrom(stream)
  writer.writeString('all')
  writer.flush()
  stream.end()
  writer.writeString('too late')
  t.false(writer.flush())
  t.is((await all(stream)).toString(), 'all')
  await t.throwsAsync(writer.flushed(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
})

// ---- pipelines

test.serial('a pipeline from a file through gzip and back is exact, and leaks no blocks', async (t) => {
  const path = await file(t, bytes)
  await leaksNothing(async () => {
    const there = new PassThrough()
    const buffer = new LinkBuffer()
    const packed = pipeline(createReadStream(path), createGzip({ level: 1 }), toWritable(writerFrom(there)))
    const unpacked = pipeline(toReadable(readerFrom(there)), createGunzip(), toWritable(buffer))
    await packed
    there.end()
    await unpacked
    t.true(buffer.readBinary(buffer.length).equals(bytes))
    buffer.close()
  })
})

test('pipeline(file, toWritable(connection.writer)): at its end the kernel has all, and the connection is open', async (t) => {
  const size = 8 * MIB
  const sent = randomBytes(size)
  const path = await file(t, sent)
  const { connection, writer, peer } = await pair(t, { writeHighWaterMark: 64 * KIB })
  const received = outcome(peer)
  await pipeline(createReadStream(path), toWritable(writer))
  t.is(connection.bytesWritten, size)
  t.true(connection.writable)
  connection.end()
  t.true((await received).bytes.equals(sent))
})

test('toWritable asks for no more than the peer reads', async (t) => {
  const { connection, writer, peer } = await pair(t, { writeHighWaterMark: 64 * KIB })
  let asked = 0
  const endless = new Readable({
    highWaterMark: 16 * KIB,
    read(n) {
      asked += n
      this.push(Buffer.alloc(n))
    },
  })
  const ended = pipeline(endless, toWritable(writer))
  let before = -1
  let same = 0
  await until(() => {
    same = asked === before ? same + 1 : 0
    before = asked
    return same === 50
  })
  t.true(asked - connection.bytesWritten <= 256 * KIB, `${asked - connection.bytesWritten} wait`)
  peer.destroy()
  const error = await t.throwsAsync(ended)
  t.regex(error.code, /ERR_NETPOLL_EOF|ECONNRESET|EPIPE/)
  t.true(endless.destroyed)
})

test('chunks that a source fills again after their callback are sent as they were', async (t) => {
  const { connection, writer, peer } = await pair(t)
  const received = outcome(peer)
  const stream = toWritable(writer)
  const expected = createHash('sha256')
  const chunk = Buffer.alloc(64 * KIB)
  for (let i = 0; i < 100; i++) {
    chunk.fill(i)
    expected.update(chunk)
    await new Promise((resolve, reject) =>
      stream.write(chunk, (error) => (error ? reject(error) : resolve())),
    )
  }
  connection.end()
  const digest = createHash('sha256')
    .update((await received).bytes)
    .digest('hex')
  t.is(digest, expected.digest('hex'))
})

test('pipeline(toReadable(connection.reader), toWritable(connection.writer)) is an echo', async (t) => {
  const done = deferred()
  const server = serve(undefined, {
    onConnect: async (connection) => {
      await pipeline(toReadable(connection.reader), toWritable(connection.writer))
      connection.end()
      done.resolve()
    },
    onError: done.reject,
    allowHalfOpen: true,
  })
  t.teardown(server.stop)
  const peer = await connect(server.port)
  const received = outcome(peer)
  peer.end(bytes)
  await done.promise
  t.true((await received).bytes.equals(bytes))
})

test('a RST of the peer is the error of the Readable', async (t) => {
  const { reader, peer } = await pair(t)
  const stream = toReadable(reader)
  const ended = all(stream)
  peer.write('some')
  await until(() => stream.readableDidRead)
  peer.resetAndDestroy()
  await t.throwsAsync(ended, { code: 'ECONNRESET' })
})

test.serial('destroy() of a Readable ends its wait, and gives the bytes of a LinkBuffer back', async (t) => {
  await leaksNothing(async () => {
    const buffer = new LinkBuffer()
    const stream = toReadable(buffer)
    stream.resume()
    for (let i = 0; i < 20; i++) buffer.malloc(64 * KIB)
    stream.destroy()
    await until(() => stream.closed)
    t.throws(() => buffer.writeByte(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  })
})

test('a Readable that is destroyed as its wait ends leaves the bytes to the connection', async (t) => {
  const { reader, peer } = await pair(t)
  const stream = toReadable(reader)
  stream.on('error', () => undefined)
  stream.read()
  const settle = reader.wait.resolve
  reader.wait.resolve = (size) => {
    settle(size)
    stream.destroy()
  }
  await send(peer, 'kept')
  await until(() => stream.closed)
  t.is(reader.readString(4), 'kept')
})

test('destroy() of a Readable over a connection leaves the connection as it is', async (t) => {
  const { reader, writer, connection, peer } = await pair(t)
  const stream = toReadable(reader)
  stream.resume()
  stream.destroy()
  await until(() => stream.closed)
  t.true(connection.isActive())
  const received = outcome(peer)
  peer.write('still here')
  await reader.waitRead(10)
  writer.append(reader)
  writer.flush()
  connection.end()
  t.is((await received).bytes.toString(), 'still here')
})

test('toReadable of a slice gives its bytes, and ends', async (t) => {
  const buffer = new LinkBuffer()
  buffer.writeBinary(bytes)
  buffer.flush()
  const stream = toReadable(buffer.slice(bytes.length))
  buffer.close()
  t.true((await all(stream)).equals(bytes))
})

test.serial('the error of a pipeline destroys the source and rejects, and blocks come back', async (t) => {
  await leaksNothing(async () => {
    const source = new LinkBuffer()
    source.writeBinary(Buffer.alloc(10_000))
    source.flush()
    const failing = new Transform({ transform: (_chunk, _encoding, callback) => callback(new Error('no')) })
    const buffer = new LinkBuffer()
    await t.throwsAsync(pipeline(toReadable(source), failing, toWritable(buffer)), { message: 'no' })
    t.throws(() => source.peek(0), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    buffer.close()
  })
})

test('a write to a closed connection is the error of the Writable', async (t) => {
  const { writer, connection } = await pair(t)
  const stream = toWritable(writer)
  connection.close()
  await t.throwsAsync(pipeline(Readable.from(['abc']), stream), { code: 'ERR_NETPOLL_CONN_CLOSED' })
})

test('flushed() of a connection that is gone rejects at once', async (t) => {
  const { writer, connection, peer } = await pair(t)
  peer.resetAndDestroy()
  await connection.closed
  const stream = toWritable(writer)
  await t.throwsAsync(pipeline(Readable.from(['abc']), stream), { code: 'ECONNRESET' })
})

test('what are no streams, Readers or Writers is refused', (t) => {
  for (const value of [undefined, null, 1, 'text', {}, () => 1]) {
    t.throws(() => readerFrom(value), TYPE)
    t.throws(() => writerFrom(value), TYPE)
    t.throws(() => toReadable(value), TYPE)
    t.throws(() => toWritable(value), TYPE)
  }
  t.throws(() => readerFrom([], { maxReadBytes: 0 }), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => readerFrom([], { limit: 1 }), { code: 'ERR_INVALID_ARG_VALUE' })
})
