// waitRead and waitUntil: when they resolve, and with what they reject.

import test from 'ava'
import { randomBytes } from 'node:crypto'
import { getEventListeners } from 'node:events'
import { setImmediate } from 'node:timers/promises'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20

/** Whether a promise is still pending when everything that was under way has arrived. */
async function isPending(promise) {
  const pending = Symbol('pending')
  await settled()
  return (await Promise.race([promise, setImmediate(pending)])) === pending
}

test('waitRead resolves when the bytes are here, not before, and consumes nothing', async (t) => {
  const { reader, peer } = await pair(t)
  const waiting = reader.waitRead(4)
  for (const byte of 'abc') {
    await send(peer, byte)
    t.true(await isPending(waiting))
  }
  await send(peer, 'd')
  t.is(await waiting, undefined)
  t.is(reader.length, 4)
  await reader.waitRead(4)
  await reader.waitRead(0)
  t.is(reader.readString(4), 'abcd')
})

test('waitRead(0) resolves on a connection without bytes', async (t) => {
  const { reader } = await pair(t)
  await reader.waitRead(0)
  t.is(reader.length, 0)
})

test('waitUntil resolves to the count of bytes up to and including the delimiter, which next() takes', async (t) => {
  const { reader, peer } = await pair(t)
  const waiting = reader.waitUntil('\r\n')
  for (const piece of ['li', 'ne\r', '?\r']) {
    await send(peer, piece)
    t.true(await isPending(waiting))
  }
  await send(peer, '\nmore')
  t.is(await waiting, 8)
  t.is(reader.length, 12)
  t.is(reader.next(8).toString(), 'line\r?\r\n')
  t.is(reader.readString(4), 'more')
})

test('waitUntil takes a number, a string or bytes', async (t) => {
  const { reader, peer } = await pair(t)
  const sent = Buffer.from('a\nb€c\0\0')
  for (const [delimiter, length] of [
    [10, 2],
    ['€', 6],
    [Buffer.of(0, 0), 9],
  ]) {
    const waiting = reader.waitUntil(delimiter)
    for (const byte of sent.subarray(0, length)) await send(peer, Buffer.of(byte))
    t.is(await waiting, length)
    reader.skip(length)
    await send(peer, 'x')
    await reader.waitRead(1)
    reader.skip(1)
  }
})

test('waitUntil goes on for the bytes that it was given, whatever becomes of their array', async (t) => {
  const { reader, peer } = await pair(t)
  const delimiter = new Uint8Array([13, 10])
  const waiting = reader.waitUntil(delimiter)
  await send(peer, 'one')
  structuredClone(delimiter, { transfer: [delimiter.buffer] })
  await send(peer, ' line\r\n')
  t.is(await waiting, 10)
  const other = new Uint8Array([33])
  reader.skip(10)
  const next = reader.waitUntil(other)
  other[0] = 63
  await send(peer, '?!')
  t.is(await next, 2)
})

test('waits one after the other take a message apart whose bytes come one at a time', async (t) => {
  const got = deferred()
  const { port, stop } = serve(async ({ reader }) => {
    await reader.waitRead(4)
    const size = reader.readUInt32BE()
    await reader.waitRead(size)
    const text = reader.readString(size)
    await reader.waitUntil('\r\n')
    const line = reader.until('\r\n').toString()
    await reader.waitRead(8)
    got.resolve([text, line, reader.readDoubleLE(), reader.length])
  })
  t.teardown(stop)
  const peer = await connect(port)
  t.teardown(() => void peer.destroy())
  peer.setNoDelay(true)
  const text = Buffer.from('aé€😀')
  const number = Buffer.alloc(8)
  number.writeDoubleLE(Math.E)
  for (const byte of [0, 0, 0, text.length, ...text, ...Buffer.from('li\rne\r\n'), ...number])
    await send(peer, Buffer.of(byte))
  t.deepEqual(await got.promise, ['aé€😀', 'li\rne\r\n', Math.E, 0])
})

for (const [kind, wait] of Object.entries({
  waitRead: (reader, size) => reader.waitRead(size),
  waitUntil: (reader) => reader.waitUntil('\n'),
})) {
  test(`${kind} waits for messages far beyond readHighWaterMark, up to maxReadBytes`, async (t) => {
    const { reader, peer } = await pair(t, { readHighWaterMark: 1000, maxReadBytes: MIB })
    for (const size of [999, 1000, 1001, 64 * KIB, MIB, 10, MIB]) {
      const sent = randomBytes(size).fill('.', 0, size - 1)
      sent[size - 1] = 10
      const sending = send(peer, sent)
      await wait(reader, size)
      t.true(reader.readBinary(size).equals(sent))
      await sending
    }
    t.is(reader.length, 0)
  })
}

test('waitUntil beyond maxReadBytes rejects with INPUT_LIMIT and closes the connection', async (t) => {
  const { reader, writer, peer, connection } = await pair(t, {
    readHighWaterMark: KIB,
    maxReadBytes: 64 * KIB,
  })
  const ended = outcome(peer)
  peer.write(Buffer.alloc(MIB, '.'))
  await t.throwsAsync(reader.waitUntil('\n'), { code: 'ERR_NETPOLL_INPUT_LIMIT' })
  t.throws(() => reader.readByte(), { code: 'ERR_NETPOLL_INPUT_LIMIT' })
  t.throws(() => writer.flush(), { code: 'ERR_NETPOLL_INPUT_LIMIT' })
  await ended
  await connection.closed
})

for (const [kind, wait] of Object.entries({
  waitRead: (reader) => reader.waitRead(900),
  waitUntil: (reader) => reader.waitUntil('\n'),
})) {
  test(`a pending ${kind} is not stalled by bytes that were consumed before it or meanwhile`, async (t) => {
    const { reader, peer } = await pair(t, { readHighWaterMark: 1000 })
    await send(peer, Buffer.alloc(600))
    await reader.waitRead(600)
    reader.skip(600)
    const waiting = wait(reader)
    await send(peer, Buffer.alloc(500))
    await until(() => reader.length === 500)
    await settled()
    reader.skip(400)
    for (let length = 200; length < 900; length += 100) {
      await send(peer, Buffer.alloc(100))
      await until(() => reader.length === length)
      t.true(await isPending(waiting))
    }
    await send(peer, Buffer.alloc(100, '\n'))
    await waiting
    t.is(reader.length, 900)
  })
}

test('a wait goes on while others of its bytes are read, and does not count them', async (t) => {
  const { reader, peer } = await pair(t)
  await send(peer, 'abc')
  await reader.waitRead(3)
  const waiting = reader.waitRead(4)
  t.is(reader.readString(2), 'ab')
  await send(peer, 'de')
  t.true(await isPending(waiting))
  await send(peer, 'f')
  await waiting
  t.is(reader.readString(4), 'cdef')
})

test('views that are out while a wait takes in more stay what they are', async (t) => {
  const { reader, peer } = await pair(t)
  await send(peer, 'abcdef')
  await reader.waitRead(6)
  const views = [reader.next(2), reader.peek(4)]
  const waiting = reader.waitRead(10)
  await send(peer, 'ghijkl')
  await waiting
  t.deepEqual(views.map(String), ['ab', 'cdef'])
  t.is(reader.next(10).toString(), 'cdefghijkl')
})

// ---- timeouts

for (const [kind, wait] of Object.entries({
  waitRead: (reader) => reader.waitRead(4),
  waitUntil: (reader) => reader.waitUntil('d'),
})) {
  test(`a ${kind} that times out keeps the bytes and the connection`, async (t) => {
    const { reader, writer, peer, connection } = await pair(t, { readTimeout: 50 })
    await send(peer, 'abc')
    await until(() => reader.length === 3)
    await t.throwsAsync(wait(reader), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
    await t.throwsAsync(wait(reader), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
    t.is(reader.length, 3)
    t.true(connection.isActive())
    connection.setReadTimeout(0)
    const waiting = wait(reader)
    await send(peer, 'd')
    await waiting
    t.is(reader.readString(4), 'abcd')
    writer.writeString('answer')
    writer.flush()
    t.is((await take(peer, 6)).toString(), 'answer')
  })
}

test('a wait that is satisfied in time leaves no timer behind that ends the next one', async (t) => {
  const { reader, peer, connection } = await pair(t, { readTimeout: 1000 })
  const first = reader.waitRead(1)
  await send(peer, 'a')
  await first
  connection.setReadTimeout(60_000)
  const second = reader.waitRead(2)
  const other = await pair(t, { readTimeout: 2000 })
  await t.throwsAsync(other.reader.waitRead(1), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.true(await isPending(second), 'twice the first timeout has passed')
  await send(peer, 'b')
  await second
  t.is(reader.readString(2), 'ab')
})

test('the timer of a wait that was satisfied does not end a later one that has no timeout', async (t) => {
  const { reader, peer, connection } = await pair(t, { readTimeout: 1000 })
  const first = reader.waitRead(1)
  await send(peer, 'a')
  await first
  connection.setReadTimeout(0)
  const second = reader.waitRead(2)
  const other = await pair(t, { readTimeout: 2000 })
  await t.throwsAsync(other.reader.waitRead(1), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.true(await isPending(second), 'twice the first timeout has passed')
  await send(peer, 'b')
  await second
  t.is(reader.readString(2), 'ab')
})

// ---- the end

for (const [kind, wait] of Object.entries({
  waitRead: (reader) => reader.waitRead(4),
  waitUntil: (reader) => reader.waitUntil('d'),
})) {
  test(`a FIN rejects a ${kind} with EOF, and its bytes stay`, async (t) => {
    const { reader, peer } = await pair(t)
    const waiting = wait(reader)
    peer.end('abc')
    await t.throwsAsync(waiting, { code: 'ERR_NETPOLL_EOF' })
    await t.throwsAsync(wait(reader), { code: 'ERR_NETPOLL_EOF' }, 'again')
    await reader.waitRead(3)
    t.is(await reader.waitUntil('c'), 3)
    t.is(reader.readString(3), 'abc')
  })

  test(`a ${kind} for the last bytes before a FIN resolves`, async (t) => {
    const { reader, peer } = await pair(t)
    const waiting = wait(reader)
    peer.end('abcd')
    await waiting
    t.is(reader.readString(4), 'abcd')
  })

  test(`a RST rejects a ${kind} with ECONNRESET, as it does all that follow`, async (t) => {
    const { reader, peer, connection } = await pair(t)
    await send(peer, 'abc')
    await until(() => reader.length === 3)
    const waiting = wait(reader)
    peer.resetAndDestroy()
    await t.throwsAsync(waiting, { code: 'ECONNRESET' })
    await connection.closed
    await t.throwsAsync(wait(reader), { code: 'ECONNRESET' })
    t.is(reader.readString(3), 'abc')
  })

  for (const end of ['close', 'reset']) {
    test(`our own ${end}() rejects a pending ${kind} with CONN_CLOSED`, async (t) => {
      const { reader, peer, connection } = await pair(t)
      await send(peer, 'abc')
      await until(() => reader.length === 3)
      const waiting = wait(reader)
      connection[end]()
      await t.throwsAsync(waiting, { code: 'ERR_NETPOLL_CONN_CLOSED' })
    })
  }
}

test('end() leaves a pending wait alone', async (t) => {
  const { reader, peer, connection } = await pair(t)
  const waiting = reader.waitRead(3)
  connection.end()
  await send(peer, 'abc')
  await waiting
  t.is(reader.readString(3), 'abc')
})

// ---- abort

test("an abort rejects a pending wait with the signal's reason, and the next one works", async (t) => {
  const { reader, peer } = await pair(t)
  for (const reason of [new Error('enough'), undefined, 'text']) {
    const controller = new AbortController()
    const { signal } = controller
    const waiting = reader.waitRead(1, { signal })
    t.true(await isPending(waiting))
    controller.abort(reason)
    const rejected = await waiting.catch((error) => error)
    t.is(rejected, signal.reason)
    t.is(getEventListeners(signal, 'abort').length, 0)
  }
  const waiting = reader.waitRead(1)
  await send(peer, 'a')
  await waiting
  t.is(reader.readString(1), 'a')
})

test('a signal that was aborted before rejects at once', async (t) => {
  const { reader, peer } = await pair(t)
  const reason = new Error('before')
  const signal = AbortSignal.abort(reason)
  for (const waiting of [reader.waitRead(1, { signal }), reader.waitUntil('\n', { signal })])
    t.is(await waiting.catch((error) => error), reason)
  const waiting = reader.waitRead(1)
  await send(peer, 'a')
  await waiting
  t.pass()
})

test('a wait that resolves takes its listener off the signal, and an abort after that does nothing', async (t) => {
  const { reader, peer } = await pair(t)
  const controller = new AbortController()
  const { signal } = controller
  for (const wait of [
    () => reader.waitRead(1, { signal }),
    () => reader.waitUntil('a', { signal }),
    () => reader.waitRead(0, { signal }),
  ]) {
    const waiting = wait()
    await send(peer, 'a')
    await waiting
    t.is(getEventListeners(signal, 'abort').length, 0)
    await reader.waitRead(1)
    reader.skip(1)
  }
  const waiting = reader.waitRead(1)
  controller.abort()
  t.true(await isPending(waiting))
  await send(peer, 'b')
  await waiting
})

// ---- two at a time

test('a second wait rejects with INVALID_STATE while one is pending, which goes on', async (t) => {
  const { reader, peer } = await pair(t)
  const first = reader.waitRead(2)
  await t.throwsAsync(reader.waitRead(3), { code: 'ERR_NETPOLL_INVALID_STATE' })
  await t.throwsAsync(reader.waitUntil('\n'), { code: 'ERR_NETPOLL_INVALID_STATE' })
  await send(peer, 'ab')
  await first
  await reader.waitRead(2)
  t.is(reader.readString(2), 'ab')
})

test('a wait of a paused connection is satisfied after resume()', async (t) => {
  const { reader, peer, connection } = await pair(t)
  connection.pause()
  await settled()
  const waiting = reader.waitRead(3)
  await send(peer, 'abc')
  t.true(await isPending(waiting))
  connection.resume()
  await waiting
  t.is(reader.readString(3), 'abc')
})
