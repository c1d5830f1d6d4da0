// Semantics 6: what each timeout bounds, and what holds it. That something does not time out is shown beside
// another connection, with the same timeout and as old, that does.

import test from 'ava'
import { setTimeout } from 'node:timers/promises'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const bare = () => undefined

/** Serves with hooks that keep the connections, and the codes that their ends had. */
function keeping(t, onRequest, options) {
  const connections = []
  const server = serve(onRequest, {
    ...options,
    onPrepare: (connection) => void connections.push(connection),
  })
  t.teardown(server.stop)
  const open = async () => {
    const index = connections.length
    const socket = await connect(server.port)
    t.teardown(() => void socket.destroy())
    await until(() => connections.length > index)
    return { socket, connection: connections[index] }
  }
  return { ...server, open }
}

/** Of a connection that the library has closed: the code with which its methods fail. */
async function codeOf(connection) {
  await connection.closed
  const error = await connection.reader.waitRead(1).catch((reason) => reason)
  return error.code
}

/** Lets a byte come every few milliseconds until `done`. */
async function drip(socket, done) {
  let ended = false
  void done.then(() => (ended = true))
  while (!ended && socket.writable) {
    socket.write('x')
    await setTimeout(5)
  }
}

// ---- read

test('a wait that times out keeps the bytes and the connection', async (t) => {
  const { reader, connection, peer } = await pair(t)
  await send(peer, 'abc')
  await reader.waitRead(3)
  connection.setReadTimeout(30)
  const start = performance.now()
  await t.throwsAsync(reader.waitRead(4), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.true(performance.now() - start >= 29)
  await t.throwsAsync(reader.waitUntil('\n'), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.true(connection.isActive())
  t.is(reader.length, 3)
  connection.setReadTimeout(0)
  await send(peer, 'd')
  await reader.waitRead(4)
  t.is(reader.readString(4), 'abcd')
})

test('a wait has its own time, which setReadTimeout changes', async (t) => {
  const { reader, connection } = await pair(t, { readTimeout: 60_000 })
  connection.setReadTimeout(1)
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
})

test('bytes that come one by one do not prolong a wait for more', async (t) => {
  const { reader, peer } = await pair(t, { readTimeout: 100 })
  const wait = reader.waitRead(1_000_000)
  const dripping = drip(peer, wait.catch(bare))
  await t.throwsAsync(wait, { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  await dripping
})

test('bytes that a handler leaves unread end the connection, also when more drip in', async (t) => {
  let calls = 0
  // On a busy machine no second byte may come in time: then there is more time.
  for (let readTimeout = 100; calls < 2; readTimeout *= 2) {
    calls = 0
    const { open } = keeping(t, () => void calls++, { readTimeout })
    const { socket, connection } = await open()
    const dripping = drip(socket, connection.closed)
    t.is(await codeOf(connection), 'ERR_NETPOLL_READ_TIMEOUT')
    await dripping
  }
})

test('a connection without unread bytes may rest, and one that makes progress goes on', async (t) => {
  const { open } = keeping(
    t,
    ({ reader }) => {
      const first = reader.peek(1)[0]
      // Takes all but one byte of an 'x', and nothing of a '!'.
      if (first === 0x78 && reader.length > 1) reader.skip(reader.length - 1)
      else if (first === 0x2e) reader.skip(reader.length)
    },
    { readTimeout: 400 },
  )
  const resting = await open()
  await send(resting.socket, '.')
  const progressing = await open()
  const stalled = await open()
  await send(stalled.socket, '!')
  const dripping = drip(progressing.socket, stalled.connection.closed)
  t.is(await codeOf(stalled.connection), 'ERR_NETPOLL_READ_TIMEOUT')
  t.true(resting.connection.isActive())
  t.true(progressing.connection.isActive())
  await dripping
})

test('a handler that takes its time is not cut', async (t) => {
  const pending = deferred()
  let calls = 0
  const { open } = keeping(
    t,
    async ({ reader, writer }) => {
      calls++
      if (reader.length < 2) return
      await pending.promise
      writer.append(reader)
      writer.flush()
    },
    { readTimeout: 300 },
  )
  const slow = await open()
  await send(slow.socket, 's')
  await until(() => calls === 1)
  await send(slow.socket, 'o')
  await until(() => calls === 2)
  const stalled = await open()
  await send(stalled.socket, '!')
  await stalled.connection.closed
  pending.resolve()
  t.is(String(await take(slow.socket, 2)), 'so')
})

test('what pause() holds back does not time out until resume(), and then it does', async (t) => {
  const { open } = keeping(t, (connection) => connection.reader.peek(1)[0] === 0x70 && connection.pause(), {
    readTimeout: 50,
  })
  const paused = await open()
  await send(paused.socket, 'paused')
  const stalled = await open()
  await send(stalled.socket, '!')
  t.is(await codeOf(stalled.connection), 'ERR_NETPOLL_READ_TIMEOUT')
  await settled()
  t.true(paused.connection.isActive())
  paused.connection.resume()
  t.is(await codeOf(paused.connection), 'ERR_NETPOLL_READ_TIMEOUT')
})

test('a read timeout of 0 is none', async (t) => {
  const { open } = keeping(t, bare, { readTimeout: 50 })
  const patient = await open()
  patient.connection.setReadTimeout(0)
  await send(patient.socket, 'x')
  const stalled = await open()
  await send(stalled.socket, 'x')
  t.is(await codeOf(stalled.connection), 'ERR_NETPOLL_READ_TIMEOUT')
  await settled()
  t.true(patient.connection.isActive())
})

// ---- idle

test('a connection without traffic is closed after the idle timeout, not before', async (t) => {
  const start = performance.now()
  const { open } = keeping(t, bare, { idleTimeout: 100 })
  const { socket, connection } = await open()
  t.deepEqual(await outcome(socket), { bytes: Buffer.alloc(0), code: '' })
  t.true(performance.now() - start >= 99)
  t.is(await codeOf(connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
})

test('traffic in either direction holds the idle timeout', async (t) => {
  const { open } = keeping(t, ({ reader }) => reader.skip(reader.length), { idleTimeout: 500 })
  const [reading, writing, idle] = [await open(), await open(), await open()]
  const dripping = drip(reading.socket, idle.connection.closed)
  writing.socket.resume()
  let ended = false
  void idle.connection.closed.then(() => (ended = true))
  for (; !ended; await setTimeout(5)) {
    writing.connection.writer.writeString('x')
    writing.connection.writer.flush()
  }
  t.true(reading.connection.isActive())
  t.true(writing.connection.isActive())
  await dripping
})

test('a pending handler holds the idle timeout, and its end starts it again', async (t) => {
  const pending = deferred()
  const { open } = keeping(t, () => pending.promise, { idleTimeout: 400 })
  const [busy, idle] = [await open(), await open()]
  await send(busy.socket, 'x')
  t.is(await codeOf(idle.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
  const another = await open()
  await another.connection.closed
  t.true(busy.connection.isActive())
  pending.resolve()
  t.is(await codeOf(busy.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
})

test('pending output holds the idle timeout, and its end starts it again', async (t) => {
  const { open } = keeping(t, bare, { idleTimeout: 400 })
  const [full, idle] = [await open(), await open()]
  full.connection.writer.writeBinary(Buffer.alloc(30_000_000))
  t.false(full.connection.writer.flush())
  t.is(await codeOf(idle.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
  const another = await open()
  await another.connection.closed
  t.true(full.connection.isActive())
  t.is((await outcome(full.socket)).bytes.length, 30_000_000)
  t.is(await codeOf(full.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
})

test('setIdleTimeout changes it for one connection, and 0 is none', async (t) => {
  const { open } = keeping(t, bare, { idleTimeout: 400 })
  const patient = await open()
  patient.connection.setIdleTimeout(0)
  const idle = await open()
  t.is(await codeOf(idle.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
  const another = await open()
  another.connection.setIdleTimeout(50)
  await another.connection.closed
  t.true(patient.connection.isActive())
  patient.connection.setIdleTimeout(1)
  t.is(await codeOf(patient.connection), 'ERR_NETPOLL_IDLE_TIMEOUT')
})

// ---- write

test('output without progress ends the connection after the write timeout, and fails flushed()', async (t) => {
  const { connection, writer, peer } = await pair(t, { writeTimeout: 100 })
  const start = performance.now()
  writer.writeBinary(Buffer.alloc(30_000_000))
  t.false(writer.flush())
  await t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })
  t.true(performance.now() - start >= 99)
  t.is(await codeOf(connection), 'ERR_NETPOLL_WRITE_TIMEOUT')
  t.true((await outcome(peer)).bytes.length < 30_000_000)
})

test('a peer that reads slowly is served, however long it takes', async (t) => {
  const size = 30_000_000
  const { connection, writer, peer } = await pair(t, { writeTimeout: 2000 })
  const start = performance.now()
  writer.writeBinary(Buffer.alloc(size))
  writer.flush()
  const flushed = connection.flushed()
  for (let left = size; left > 0; left -= Math.min(100_000, left)) {
    await take(peer, Math.min(100_000, left))
    // Slow enough to be longer at it than the timeout.
    if (performance.now() - start < 2500) await setTimeout(10)
  }
  await flushed
  t.is(connection.bytesWritten, size)
  t.true(connection.isActive())
})

test('a connection without pending output has no write timeout', async (t) => {
  const { open } = keeping(t, bare, { writeTimeout: 50 })
  const [silent, full] = [await open(), await open()]
  full.connection.writer.writeBinary(Buffer.alloc(30_000_000))
  full.connection.writer.flush()
  t.is(await codeOf(full.connection), 'ERR_NETPOLL_WRITE_TIMEOUT')
  await settled()
  t.true(silent.connection.isActive())
})

test('the write timeout bounds a close() whose peer does not read', async (t) => {
  const { connection, writer, server } = await pair(t, { writeTimeout: 50 })
  writer.writeBinary(Buffer.alloc(30_000_000))
  writer.flush()
  connection.close()
  await connection.closed
  t.is(server.loop.connections, 0)
})

test('setWriteTimeout concerns output that is pending already, and 0 is none', async (t) => {
  const { open } = keeping(t, bare, { writeTimeout: 50 })
  const [patient, full] = [await open(), await open()]
  patient.connection.setWriteTimeout(0)
  for (const { connection } of [patient, full]) {
    connection.writer.writeBinary(Buffer.alloc(30_000_000))
    connection.writer.flush()
  }
  t.is(await codeOf(full.connection), 'ERR_NETPOLL_WRITE_TIMEOUT')
  await settled()
  t.true(patient.connection.isActive())
  patient.connection.setWriteTimeout(1)
  t.is(await codeOf(patient.connection), 'ERR_NETPOLL_WRITE_TIMEOUT')
})
