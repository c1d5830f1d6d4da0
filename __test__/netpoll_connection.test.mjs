// What connection_test.go and connection_errors_test.go of cloudwego/netpoll assert, under the names that they
// have there. docs/parity.md says which of those tests are held by others of ours.

import test from 'ava'
import { randomBytes } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import { dialConnection, NetpollError, stats } from '../index.js'
import { dial, dialed, write } from './fixtures/dialed.mjs'
import { outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20

test('TestErrno: an error tells its code, and what failed, also when it is one of the system', async (t) => {
  const { connection, reader, peer } = await pair(t)
  const own = t.throws(() => reader.next(1))
  t.true(own instanceof NetpollError)
  t.is(own.code, 'ERR_NETPOLL_SHORT_READ')
  peer.resetAndDestroy()
  await connection.closed
  const system = await t.throwsAsync(reader.waitRead(1))
  t.true(system instanceof NetpollError)
  t.like(system, { code: 'ECONNRESET', errno: -104, syscall: 'read' })
  t.is(system.message, 'read ECONNRESET: connection reset by peer')
})

test('TestConnectionWrite: 10,000 writes of 256 bytes all arrive through onRequest', async (t) => {
  const size = 256
  const cycles = 10_000
  const received = []
  let count = 0
  const { port, stop } = serve(({ reader }) => {
    const bytes = reader.readBinary(Math.min(size, reader.length))
    count += bytes.length
    received.push(bytes)
  })
  t.teardown(stop)
  const client = await dial(t, port)
  const sent = randomBytes(size * cycles)
  for (let i = 0; i < cycles; i++) await write(client, sent.subarray(i * size, (i + 1) * size))
  await until(() => count >= sent.length)
  await settled()
  t.is(count, sent.length)
  t.true(Buffer.concat(received).equals(sent))
  t.is(client.bytesWritten, sent.length)
})

test('TestConnectionRead: next(256) gives 256 bytes, a thousand times, with release() in between', async (t) => {
  const size = 256
  const cycles = 1000
  const { accepted, client } = await dialed(t)
  const sent = randomBytes(size * cycles)
  const reading = (async () => {
    const { reader } = accepted
    for (let i = 0; i < cycles; i++) {
      await reader.waitRead(size)
      const bytes = reader.next(size)
      if (!bytes.equals(sent.subarray(i * size, (i + 1) * size))) return i
      reader.release()
    }
    return cycles
  })()
  for (let i = 0; i < cycles; i++) await write(client, sent.subarray(i * size, (i + 1) * size))
  t.is(await reading, cycles)
  t.is(accepted.reader.length, 0)
})

test('TestConnectionIOReader: what peek() gave stays valid after a copying read, until release()', async (t) => {
  const { reader, peer } = await pair(t)
  const sent = Buffer.from(Array.from({ length: 64 }, (_, i) => i))
  await send(peer, sent)
  await reader.waitRead(64)
  const peeked = reader.peek(16)
  t.is(peeked.length, 16)
  t.true(reader.readBinary(64).equals(sent))
  await send(peer, Buffer.alloc(256 * KIB, 0xff))
  await reader.waitRead(256 * KIB)
  t.true(peeked.equals(sent.subarray(0, 16)))
  reader.release()
})

test('TestConnectionReadAfterClosed: bytes sent before the peer closes are readable in full', async (t) => {
  const { connection, reader, peer } = await pair(t)
  const waiting = reader.waitRead(256)
  peer.end(Buffer.alloc(256, 7))
  await waiting
  await until(() => !connection.isActive())
  t.true(reader.next(256).equals(Buffer.alloc(256, 7)))
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_EOF' })
})

test('TestConnectionWaitReadHalfPacket: a wait for two pages is satisfied by the second half', async (t) => {
  const size = 8192
  const { reader, peer } = await pair(t)
  const sent = randomBytes(size)
  await send(peer, sent.subarray(0, size / 2))
  await until(() => reader.length === size / 2)
  let satisfied = false
  const waiting = reader.waitRead(size).then(() => (satisfied = true))
  await settled()
  t.false(satisfied)
  await send(peer, sent.subarray(size / 2))
  await waiting
  t.true(reader.next(size).equals(sent))
})

test('TestLargeBufferWrite: 128 flushes of 2 MiB to a slow reader succeed, and close() works while one waits', async (t) => {
  const size = 2 * MIB
  const rounds = 128
  const { connection, writer, peer } = await pair(t)
  const writing = (async () => {
    for (let i = 0; i < rounds; i++) {
      writer.malloc(size).fill(i)
      if (!writer.flush()) await connection.flushed()
    }
  })()
  const right = Buffer.alloc(64 * KIB)
  for (let i = 0; i < rounds; i++) {
    for (let taken = 0; taken < size; taken += right.length) {
      if (!(await take(peer, right.length)).equals(right.fill(i))) return t.fail(`round ${i}, at ${taken}`)
    }
  }
  await writing
  writer.malloc(32 * MIB).fill(255)
  t.false(writer.flush())
  const last = connection.flushed()
  connection.close()
  t.false(connection.isActive())
  t.throws(() => writer.malloc(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  // Other than netpoll's Close(), which drops it.
  t.true((await outcome(peer)).bytes.equals(Buffer.alloc(32 * MIB, 255)))
  await last
  await connection.closed
})

test('TestConnectionTimeout: the write timeout holds when set, not before, and closes the connection', async (t) => {
  const { connection, writer, peer } = await pair(t)
  await write(connection, Buffer.alloc(KIB))
  t.is((await take(peer, KIB)).length, KIB)
  connection.setWriteTimeout(50)
  writer.writeBinary(Buffer.alloc(32 * MIB))
  t.false(writer.flush())
  await t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })
  t.throws(() => writer.writeByte(1), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })
  await connection.closed
})

test('TestConnectionTimeout: the read timeout holds when set, not before, and keeps the connection', async (t) => {
  const { connection, reader, peer } = await pair(t)
  const waiting = reader.waitRead(KIB)
  await settled()
  await send(peer, Buffer.alloc(KIB))
  await waiting
  connection.setReadTimeout(50)
  await t.throwsAsync(reader.waitRead(20 * KIB), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.is(reader.length, KIB)
  t.true(connection.isActive())
})

test('TestConnectionTimeout: the deadline of a read is a signal, past it a read fails at once', async (t) => {
  const { reader, peer } = await pair(t)
  const waiting = reader.waitRead(KIB)
  await send(peer, Buffer.alloc(KIB))
  await waiting
  const begin = performance.now()
  const signal = AbortSignal.timeout(50)
  await t.throwsAsync(reader.waitRead(100 * KIB, { signal }), { any: true, name: 'TimeoutError' })
  t.true(performance.now() - begin >= 49)
  await t.throwsAsync(reader.waitRead(10 * KIB, { signal }), { any: true, name: 'TimeoutError' })
  t.is(reader.length, KIB, 'nothing is lost')
})

test.serial('TestConnectionLargeMemory: 1 MiB that comes 1 KiB at a time takes 4 MiB at most', async (t) => {
  const { reader, peer } = await pair(t)
  await settled()
  const before = stats().bytesOut
  const waiting = reader.waitRead(MIB)
  for (let i = 0; i < 1024; i++) await send(peer, Buffer.alloc(KIB))
  await waiting
  t.true(stats().bytesOut - before <= 4 * MIB, `${stats().bytesOut - before}`)
  t.is(reader.next(MIB).length, MIB)
  t.true(stats().bytesOut - before <= 4 * MIB)
})

test('TestConnectionUntil: 20,000 lines of 501 bytes, then the rest is left, and the wait tells of the end', async (t) => {
  const pairs = 10_000
  const { reader, peer } = await pair(t)
  const message = Buffer.alloc(1002, 'x')
  message[500] = message[1001] = 10
  const writing = (async () => {
    for (let i = 0; i < pairs; i += 100) await send(peer, Buffer.alloc(100 * message.length, message))
    peer.end(message.subarray(0, 100))
  })()
  for (let i = 0; i < 2 * pairs; i++) {
    const size = await reader.waitUntil('\n')
    const line = reader.next(size)
    if (size !== 501 || line[500] !== 10) return t.fail(`line ${i} has ${size} bytes`)
    reader.release()
  }
  await t.throwsAsync(reader.waitUntil('\n'), { code: 'ERR_NETPOLL_EOF' })
  t.is(reader.until('\n'), undefined)
  t.is(reader.length, 100)
  t.true(reader.ended)
  await writing
})

test('TestBookSizeLargerThanMaxSize: messages of 32 MiB, 16 MiB and so on down to 1 byte arrive intact', async (t) => {
  const { accepted, client } = await dialed(t)
  const messages = []
  for (let size = 32 * MIB; size > 0; size >>= 1) messages.push(Buffer.alloc(size, 97 + (size % 26)))
  const writing = (async () => {
    for (const message of messages) await write(client, message)
  })()
  const { reader } = accepted
  for (const message of messages) {
    await reader.waitRead(message.length)
    t.true(reader.next(message.length).equals(message), `${message.length}`)
    reader.release()
  }
  await writing
  t.is(reader.length, 0)
})

test('TestParallelShortConnection: all bytes of 100 connections that send 1 KiB and close are received', async (t) => {
  let received = 0
  const { port, stop } = serve(({ reader }) => {
    received += reader.next(reader.length).length
  })
  t.teardown(stop)
  await Promise.all(
    Array.from({ length: 100 }, async () => {
      const client = await dial(t, port)
      t.is(client.writer.writeBinary(Buffer.alloc(KIB)), KIB)
      client.writer.flush()
      client.close()
      await client.closed
    }),
  )
  await until(() => received >= 100 * KIB)
  await settled()
  t.is(received, 100 * KIB)
})

test('TestConnectionServerClose: each hook of both sides is called once, and the client sees the end', async (t) => {
  const connections = 10
  const calls = []
  const { port, stop } = serve(
    (connection) => {
      calls.push('server request')
      t.is(connection.reader.readString(4), 'pong')
      connection.close()
    },
    {
      onPrepare() {
        calls.push('server prepare')
        return 'prepared'
      },
      onConnect(connection, context) {
        calls.push('server connect')
        t.is(context, 'prepared')
        connection.addCloseCallback(() => calls.push('server close'))
        connection.writer.writeString('ping')
        connection.writer.flush()
      },
    },
  )
  t.teardown(stop)
  const onRequest = async (connection) => {
    calls.push('client request')
    const { reader, writer } = connection
    t.is(reader.readString(4), 'ping')
    writer.writeString('pong')
    writer.flush()
    await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_EOF' })
    connection.close()
  }
  for (let i = 0; i < connections; i++) {
    const client = await dial(t, port)
    client.addCloseCallback(() => calls.push('client close'))
    client.setOnRequest(onRequest)
  }
  await until(() => calls.length >= 6 * connections)
  await settled()
  const counts = {}
  for (const call of calls) counts[call] = (counts[call] ?? 0) + 1
  t.deepEqual(counts, {
    'server prepare': connections,
    'server connect': connections,
    'server request': connections,
    'server close': connections,
    'client request': connections,
    'client close': connections,
  })
})

test('TestWriterAfterClose: every method of a Writer fails after close(), and none crashes', async (t) => {
  const { client } = await dialed(t)
  const { writer } = client
  client.close()
  t.false(client.isActive())
  const calls = {
    malloc: [1],
    mallocAck: [0],
    writeBinary: [Buffer.from('hi')],
    writeString: ['hi'],
    writeByte: [97],
    writeDirect: [Buffer.from('hi'), 0],
    append: [client.reader],
    flush: [],
  }
  for (const when of ['at once', 'when it has ended']) {
    for (const [method, args] of Object.entries(calls)) {
      t.throws(() => writer[method](...args), { code: 'ERR_NETPOLL_CONN_CLOSED' }, `${method} ${when}`)
    }
    await client.closed
  }
})

test('TestConnectionDailTimeoutAndClose: a dial of 1 ms connects or times out, a hundred times', async (t) => {
  const { port, stop } = serve(undefined, {
    onConnect: async (connection) => {
      await setTimeout(1)
      connection.close()
    },
  })
  t.teardown(stop)
  const codes = await Promise.all(
    Array.from({ length: 100 }, async () => {
      try {
        const client = await dialConnection('tcp', `127.0.0.1:${port}`, { timeout: 1 })
        client.close()
        await client.closed
        return 'connected'
      } catch (error) {
        return error.code
      }
    }),
  )
  t.is(codes.length, 100)
  for (const code of codes) t.true(['connected', 'ERR_NETPOLL_DIAL_TIMEOUT'].includes(code), code)
})
