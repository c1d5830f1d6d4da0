// Semantics 8: what is held back, and until when: by pause(), by the marks, and by the limits.

import { randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1024
const MIB = 1024 * KIB

/** More than all that the kernel takes for a peer that reads nothing. */
const MUCH = 30_000_000

// ---- pause

test('a paused connection reads nothing from the socket and calls no onRequest until resume()', async (t) => {
  const requests = []
  const prepared = deferred()
  const { port, stop } = serve(({ reader }) => void requests.push(reader.readString(reader.length)), {
    onPrepare(connection) {
      connection.pause()
      connection.pause()
      prepared.resolve(connection)
    },
  })
  t.teardown(stop)
  const socket = await connect(port)
  const connection = await prepared.promise
  await settled()
  await send(socket, 'x')
  await settled()
  t.is(connection.bytesRead, 0)
  t.deepEqual(requests, [])
  connection.resume()
  connection.resume()
  await until(() => requests.length === 1)
  t.deepEqual(requests, ['x'])
  socket.destroy()
})

test('bytes that are here already wait for resume(), too', async (t) => {
  const requests = []
  let connection
  const { port, stop } = serve((request) => {
    connection = request
    requests.push(request.reader.readString(1))
    request.pause()
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'ab')
  await until(() => requests.length === 1)
  await settled()
  t.deepEqual(requests, ['a'])
  connection.resume()
  await until(() => requests.length === 2)
  t.deepEqual(requests, ['a', 'b'])
  socket.destroy()
})

test('a FIN behind paused bytes waits for them', async (t) => {
  const calls = []
  let connection
  const { port, loop, stop } = serve(({ reader }) => void calls.push(reader.readString(reader.length)), {
    onPrepare(prepared) {
      connection = prepared
      connection.pause()
    },
    onDisconnect: () => void calls.push('disconnect'),
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('x')
  await settled()
  t.deepEqual(calls, [])
  t.is(loop.connections, 1)
  connection.resume()
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['x', 'disconnect'])
})

/**
 * A connection whose descriptor is closed while it was paused, and before onRequest has seen what has come: when a send
 * fails, that is delivered in any case.
 */
async function endedWhilePaused(t) {
  const calls = []
  let connection
  const server = serve(({ reader }) => void calls.push(reader.readString(reader.length)), {
    onPrepare(prepared) {
      connection = prepared
      connection.pause()
    },
    onDisconnect: () => void calls.push('disconnect'),
  })
  t.teardown(server.stop)
  const socket = await connect(server.port)
  await settled()
  socket.write('last words')
  socket.resetAndDestroy()
  connection.writer.writeString('hello?')
  connection.writer.flush()
  await until(() => server.loop.connections === 0, 'it is closed')
  await settled()
  t.deepEqual(calls, [])
  return { connection, calls, server }
}

test('bytes that came before the end of a paused connection wait for resume(), and the callbacks for them', async (t) => {
  const { connection, calls, server } = await endedWhilePaused(t)
  connection.resume()
  await connection.closed
  await server.loop.shutdown()
  t.deepEqual(calls, ['last words', 'disconnect'])
})

const WAITS_NO_MORE = {
  'close()': ({ connection }) => connection.close(),
  'reset()': ({ connection }) => connection.reset(),
  'the shutdown of its loop': ({ server }) => server.loop.shutdown(),
  'reading it outside of the handler': ({ connection: { reader } }) => reader.skip(reader.length),
}

for (const [what, end] of Object.entries(WAITS_NO_MORE)) {
  test(`a paused connection that the peer has ended waits no more after ${what}`, async (t) => {
    const ended = await endedWhilePaused(t)
    await end(ended)
    await ended.connection.closed
    t.deepEqual(ended.calls, ['disconnect'])
  })
}

test('a connection that ends while a loop that shuts down waits for its handler does not wait for resume()', async (t) => {
  const [entered, leave, disconnected] = [deferred(), deferred(), deferred()]
  const server = serve(
    (connection) => {
      connection.pause()
      entered.resolve(connection)
      return leave.promise
    },
    { onDisconnect: disconnected.resolve },
  )
  t.teardown(server.stop)
  const socket = await connect(server.port)
  await send(socket, 'request')
  const { writer } = await entered.promise
  await settled()
  socket.write('last words')
  socket.resetAndDestroy()
  writer.writeString('hello?')
  writer.flush()
  await until(() => server.loop.connections === 0, 'it is closed')
  const stopped = server.loop.shutdown()
  leave.resolve()
  await Promise.all([stopped, disconnected.promise])
  t.pass()
})

test('what a handler that pauses has left waits for resume() also when both sides have ended', async (t) => {
  const calls = []
  let connection
  const { port, stop } = serve(
    (request) => {
      connection = request
      calls.push(request.reader.readString(1))
      request.pause()
    },
    { onConnect: (connected) => connected.end(), onDisconnect: () => void calls.push('disconnect') },
  )
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('ab')
  await until(() => calls.length === 1)
  await settled()
  t.deepEqual(calls, ['a'])
  connection.resume()
  await connection.closed
  t.deepEqual(calls, ['a', 'b', 'disconnect'])
})

test('a paused connection can be written to, and closed', async (t) => {
  const { connection, writer, peer } = await pair(t)
  connection.pause()
  writer.writeString('out')
  writer.flush()
  t.is(String(await take(peer, 3)), 'out')
  connection.close()
  await connection.closed
  t.pass()
})

// ---- readHighWaterMark and maxReadBytes

test('while a handler is pending no more is read than readHighWaterMark asks for; then all comes', async (t) => {
  const pending = deferred()
  let connection
  let bytes = 0
  const { port, stop } = serve(
    async (request) => {
      connection = request
      await pending.promise
      bytes += request.reader.length
      request.reader.skip(request.reader.length)
    },
    { readHighWaterMark: 64 * KIB },
  )
  t.teardown(stop)
  const socket = await connect(port)
  socket.write(Buffer.alloc(MUCH))
  await until(() => connection?.bytesRead >= 64 * KIB)
  await settled()
  // One read may pass the mark.
  t.true(connection.bytesRead < 64 * KIB + MIB)
  pending.resolve()
  await until(() => bytes === MUCH)
  t.is(connection.bytesRead, MUCH)
  socket.destroy()
})

const MARK = 64 * KIB
const MOST = 300 * KIB
const SIZES = [1, MARK - 1, MARK, MARK + 1, 2 * MARK, 2 * MARK + 1, MOST - 1, MOST]
/** Consumed before: nothing, a little less than what the poll is told of at once, a little more, a mark. */
const BEFORE = [0, MARK / 4 - 1, MARK / 4 + 1, MARK]

/** By name: a handler that takes a message of `size` bytes, the last of which is 0xff, as soon as it is here. */
const TAKERS = {
  waitRead: async ({ reader }, size) => {
    await reader.waitRead(size)
    return reader.readBinary(size)
  },
  waitUntil: async ({ reader }) => reader.readBinary(await reader.waitUntil(0xff)),
  'a handler that returns until enough is here': ({ reader }, size) =>
    reader.length < size ? undefined : reader.readBinary(size),
  'a handler that returns until the delimiter is here': ({ reader }) => reader.until(0xff),
}

function message(size) {
  const bytes = Buffer.alloc(size, 'abcdefg')
  bytes[size - 1] = 0xff
  return bytes
}

for (const [name, takeMessage] of Object.entries(TAKERS)) {
  test(`no message up to maxReadBytes stalls, whatever was consumed before: ${name}`, async (t) => {
    for (const size of SIZES) {
      for (const before of BEFORE) {
        const taken = deferred()
        let left = before
        const { port, stop } = serve(
          async (connection) => {
            const { reader } = connection
            const skipped = Math.min(left, reader.length)
            reader.skip(skipped)
            left -= skipped
            if (left > 0) return
            const bytes = await takeMessage(connection, size)
            if (bytes) taken.resolve(Buffer.from(bytes))
          },
          { readHighWaterMark: MARK, maxReadBytes: MOST, onError: taken.reject },
        )
        const socket = await connect(port)
        socket.write(Buffer.alloc(before))
        socket.write(message(size))
        t.true((await taken.promise).equals(message(size)), `${size} bytes after ${before}`)
        socket.destroy()
        await stop()
      }
    }
  })
}

for (const name of ['waitRead', 'waitUntil']) {
  test(`nor one that is waited for in the background, while handlers end: ${name}`, async (t) => {
    for (const size of SIZES) {
      const taken = deferred()
      const { port, stop } = serve(undefined, {
        onConnect: (connection) => void TAKERS[name](connection, size).then(taken.resolve, taken.reject),
        readHighWaterMark: MARK,
        maxReadBytes: MOST,
      })
      const socket = await connect(port)
      socket.write(message(size))
      t.true((await taken.promise).equals(message(size)), `${size} bytes`)
      socket.destroy()
      await stop()
    }
  })
}

test('many messages of every size follow each other on one connection', async (t) => {
  const received = []
  const { port, stop } = serve(
    async ({ reader }) => {
      while (received.length < sizes.length) {
        const size = await reader.waitUntil(0xff)
        received.push(size)
        reader.skip(size)
      }
    },
    { readHighWaterMark: MARK, maxReadBytes: MOST },
  )
  t.teardown(stop)
  const sizes = Array.from({ length: 10 }, () => SIZES).flat()
  const socket = await connect(port)
  for (const size of sizes) socket.write(message(size))
  await until(() => received.length === sizes.length)
  t.deepEqual(received, sizes)
  socket.destroy()
})

test('a wait for more than maxReadBytes is out of range', async (t) => {
  const { reader } = await pair(t, { maxReadBytes: MOST })
  t.throws(() => reader.waitRead(MOST + 1), { code: 'ERR_OUT_OF_RANGE' })
})

for (const [name, takeMessage] of Object.entries(TAKERS)) {
  if (name === 'waitRead') continue
  test(`a message of which maxReadBytes are no end fails with INPUT_LIMIT: ${name}`, async (t) => {
    const prepared = deferred()
    const told = []
    const { port, stop } = serve(
      (connection) => void takeMessage(connection, Infinity)?.catch?.(() => undefined),
      {
        readHighWaterMark: MARK,
        maxReadBytes: MOST,
        onPrepare: prepared.resolve,
        onError: (error) => void told.push(error),
      },
    )
    t.teardown(stop)
    const socket = await connect(port)
    const sending = send(socket, Buffer.alloc(MUCH)).catch(() => undefined)
    const connection = await prepared.promise
    await connection.closed
    t.throws(() => connection.reader.next(1), { code: 'ERR_NETPOLL_INPUT_LIMIT' })
    t.true(connection.bytesRead < MOST + 2 * MIB)
    t.deepEqual(told, [])
    socket.destroy()
    await sending
  })
}

// ---- writeHighWaterMark

test('after flush() === false no request comes until the output is drained', async (t) => {
  const requests = []
  const flushes = []
  const { port, stop } = serve(
    ({ reader, writer }) => {
      requests.push(reader.readString(1))
      writer.writeBinary(Buffer.alloc(MUCH))
      flushes.push(writer.flush())
    },
    { writeHighWaterMark: 100 * KIB },
  )
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'ab')
  await until(() => requests.length === 1)
  await send(socket, 'c')
  await settled()
  t.deepEqual(requests, ['a'])
  t.deepEqual(flushes, [false])
  t.is((await take(socket, MUCH)).length, MUCH)
  await until(() => requests.length === 2)
  t.is((await take(socket, MUCH)).length, MUCH)
  await until(() => requests.length === 3)
  t.deepEqual(requests, ['a', 'b', 'c'])
  socket.destroy()
})

test('flush() is true up to writeHighWaterMark, and false above it', async (t) => {
  const { connection, writer } = await pair(t, { writeHighWaterMark: MUCH })
  writer.writeBinary(Buffer.alloc(MUCH))
  t.true(writer.flush())
  // Until the kernel takes no more.
  let taken
  do {
    taken = connection.bytesWritten
    await settled()
  } while (connection.bytesWritten !== taken)
  writer.writeBinary(Buffer.alloc(taken))
  t.true(writer.flush())
  writer.writeByte(1)
  t.false(writer.flush())
})

test('a firehose that does not read its echo is held back, and gets every byte when it does', async (t) => {
  let connection
  const { port, stop } = serve((request) => {
    connection = request
    request.writer.append(request.reader)
    request.writer.flush()
  })
  t.teardown(stop)
  const sent = randomBytes(MUCH)
  const socket = await connect(port)
  socket.end(sent)
  let taken
  do {
    taken = connection?.bytesRead ?? -1
    await settled()
  } while (taken <= 0 || connection.bytesRead !== taken)
  // Both marks, and what may pass each of them at once.
  t.true(connection.bytesRead - connection.bytesWritten <= 4 * MIB)
  t.true(connection.bytesRead < MUCH)
  t.true((await outcome(socket)).bytes.equals(sent))
})

test('two tasks that write and flush one connection keep the order of their calls', async (t) => {
  const { connection, writer, peer } = await pair(t, { writeHighWaterMark: 64 * KIB })
  const expected = []
  const write = async (task) => {
    for (let i = 0; i < 200; i++) {
      // Copied and referred to in turn, and of all kinds of sizes.
      const bytes = Buffer.alloc(1 + ((i * 977) % 40_000), `${task}${i}`)
      expected.push(bytes)
      writer.writeBinary(bytes)
      if (!writer.flush()) await connection.flushed()
      else if (i % 3 === 0) await setImmediate()
    }
  }
  const received = outcome(peer)
  await Promise.all([write('a'), write('b')])
  connection.end()
  t.true((await received).bytes.equals(Buffer.concat(expected)))
})

// ---- maxPendingBytes

const WRITES = {
  writeBinary: (writer, size) => writer.writeBinary(Buffer.alloc(size)),
  'writeBinary of a small piece': (writer, size) => {
    writer.writeBinary(Buffer.alloc(size - 1))
    writer.writeBinary(Buffer.alloc(1))
  },
  writeString: (writer, size) => writer.writeString('x'.repeat(size)),
  malloc: (writer, size) => writer.malloc(size),
  writeDirect: (writer, size) => writer.writeDirect(Buffer.alloc(size), 0),
  writeByte: (writer, size) => {
    writer.malloc(size - 1)
    writer.writeByte(1)
  },
}

for (const [name, write] of Object.entries(WRITES)) {
  test(`${name} may fill maxPendingBytes, and the byte that passes it resets the connection`, async (t) => {
    const limit = 100 * KIB
    const fits = await pair(t, { maxPendingBytes: limit })
    write(fits.writer, limit)
    t.true(fits.writer.flush())
    t.is((await take(fits.peer, limit)).length, limit)

    const passes = await pair(t, { maxPendingBytes: limit })
    t.throws(() => write(passes.writer, limit + 1), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
    t.throws(() => passes.writer.flush(), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
    t.is((await outcome(passes.peer)).code, 'ECONNRESET')
    await passes.connection.closed
  })
}

test('append() that would pass maxPendingBytes throws, too', async (t) => {
  const { reader, writer, peer } = await pair(t, { maxPendingBytes: 10 })
  await send(peer, Buffer.alloc(11))
  await reader.waitRead(11)
  t.throws(() => writer.append(reader), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
})

test('a handler that ignores flush() === false ends with OUTPUT_LIMIT', async (t) => {
  const told = []
  let flushed = 0
  const { port, loop, stop } = serve(
    ({ writer }) => {
      for (;;) {
        writer.writeBinary(Buffer.alloc(MIB))
        writer.flush()
        flushed += MIB
      }
    },
    { maxPendingBytes: 8 * MIB, onError: (error) => void told.push(error.code) },
  )
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => told.length === 1 && loop.connections === 0)
  t.deepEqual(told, ['ERR_NETPOLL_OUTPUT_LIMIT'])
  t.true(flushed >= 8 * MIB)
  socket.destroy()
})

test('what the kernel has taken counts no longer against maxPendingBytes', async (t) => {
  const { connection, writer, peer } = await pair(t, { maxPendingBytes: MIB, writeHighWaterMark: MIB })
  const received = outcome(peer)
  for (let i = 0; i < 20; i++) {
    writer.writeBinary(Buffer.alloc(MIB))
    writer.flush()
    await connection.flushed()
  }
  connection.end()
  t.is((await received).bytes.length, 20 * MIB)
})
