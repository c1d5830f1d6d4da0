// What a connection tells of itself, and the options of its socket.

import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'
import { end, start } from './fixtures/program.mjs'
import { optionsOf } from './fixtures/socket_options.mjs'

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

/** What the kernel says of the server's socket. */
function socketOf({ localPort, remotePort }) {
  const filter = `sport = :${localPort} and dport = :${remotePort}`
  return execFileSync('ss', ['-Htnoi', filter], { encoding: 'utf8' })
}

test('bytesRead and bytesWritten are exact, also after the end', async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  t.deepEqual([connection.bytesRead, connection.bytesWritten], [0, 0])
  let [read, written] = [0, 0]
  for (const size of [1, 1000, 4096, 65_537, 1_000_000]) {
    await send(peer, Buffer.alloc(size))
    await reader.waitRead(size)
    reader.skip(size)
    read += size
    writer.writeBinary(Buffer.alloc(size * 2))
    writer.flush()
    const taken = take(peer, size * 2)
    await connection.flushed()
    t.is((await taken).length, size * 2)
    written += size * 2
    t.deepEqual([connection.bytesRead, connection.bytesWritten], [read, written])
  }
  peer.end()
  await connection.closed
  t.deepEqual([connection.bytesRead, connection.bytesWritten], [read, written])
  t.is(peer.bytesWritten, read)
  t.is(peer.bytesRead, written)
})

test('bytesRead counts what has been taken from the kernel, bytesWritten what it has taken', async (t) => {
  const { connection, writer, peer } = await pair(t)
  await send(peer, 'unread')
  await until(() => connection.bytesRead === 6)
  writer.writeString('unflushed')
  await settled()
  t.is(connection.bytesWritten, 0)
  writer.flush()
  await until(() => connection.bytesWritten === 9)
  t.is(String(await take(peer, 9)), 'unflushed')
})

test('the counts of one connection are not those of another that had its slot', async (t) => {
  const counts = []
  const { port, loop, stop } = serve((connection) => {
    echo(connection)
    counts.push(connection.bytesRead)
  })
  t.teardown(stop)
  for (let i = 1; i <= 20; i++) {
    const socket = await connect(port)
    socket.write('x'.repeat(i))
    await take(socket, i)
    socket.destroy()
    await until(() => loop.connections === 0)
  }
  t.deepEqual(
    counts,
    Array.from({ length: 20 }, (_, i) => i + 1),
  )
})

for (const [name, endIt] of [
  ['ends', (socket) => socket.end()],
  ['resets', (socket) => socket.resetAndDestroy()],
  ['destroys its socket', (socket) => socket.destroy()],
]) {
  test(`isActive() turns false in the midst of a synchronous handler when the peer ${name}`, async (t) => {
    const { code, stdout, stderr } = await inSynchronousHandler(endIt)
    t.is(code, 0, stderr)
    t.deepEqual(JSON.parse(stdout), [true, false])
  })

  test(`isActive() turns false in the midst of an asynchronous handler when the peer ${name}`, async (t) => {
    const seen = deferred()
    const began = deferred()
    const { port, stop } = serve(async (connection) => {
      const before = connection.isActive()
      began.resolve()
      await until(() => !connection.isActive())
      seen.resolve([before, connection.isActive()])
    })
    t.teardown(stop)
    const socket = await connect(port)
    socket.write('x')
    await began.promise
    endIt(socket)
    t.deepEqual(await seen.promise, [true, false])
    socket.destroy()
  })
}

/** A server whose handler never yields, with its peer here. */
async function inSynchronousHandler(endIt) {
  const child = start(`
    const { port, stop } = serve((connection) => {
      const before = connection.isActive()
      process.stderr.write('began')
      const end = Date.now() + 20_000
      while (connection.isActive() && Date.now() < end);
      console.log(JSON.stringify([before, connection.isActive()]))
      stop()
    })
    console.log(port)
  `)
  const [port] = await once(child.stdout, 'data')
  const socket = await connect(Number(port))
  socket.write('x')
  await once(child.stderr, 'data')
  const ended = end(child)
  endIt(socket)
  const result = await ended
  socket.destroy()
  return result
}

test('readable, writable and isActive() through a life', async (t) => {
  const { connection, reader, peer } = await pair(t, { allowHalfOpen: true })
  const now = () => [connection.isActive(), connection.readable, connection.writable]
  t.deepEqual(now(), [true, true, true])
  peer.end('last')
  await until(() => reader.ended || !connection.isActive())
  await reader.waitRead(4)
  t.deepEqual(now(), [false, true, true], 'bytes are left')
  reader.skip(4)
  await until(() => reader.ended)
  t.deepEqual(now(), [false, false, true], 'half-closed')
  connection.end()
  t.deepEqual(now(), [false, false, false])
  await connection.closed
  t.deepEqual(now(), [false, false, false])
})

test('after our own end() it is readable and not writable, after close() neither', async (t) => {
  const { connection } = await pair(t)
  connection.end()
  t.deepEqual([connection.isActive(), connection.readable, connection.writable], [false, true, false])
  connection.close()
  t.deepEqual([connection.isActive(), connection.readable, connection.writable], [false, false, false])
})

test('ids are unique numbers', async (t) => {
  const { connection: one } = await pair(t)
  const { connection: two } = await pair(t)
  t.is(typeof one.id, 'number')
  t.not(one.id, two.id)
})

test('the context can be set', async (t) => {
  const contexts = []
  const { port, stop } = serve((connection, context) => {
    echo(connection)
    contexts.push(context)
    connection.context = { before: context }
  })
  t.teardown(stop)
  const socket = await connect(port)
  for (let i = 0; i < 2; i++) {
    socket.write('x')
    await take(socket, 1)
  }
  t.deepEqual(contexts, [undefined, { before: undefined }])
  socket.destroy()
})

test('Symbol.asyncDispose sends what was flushed, closes, and waits for the end', async (t) => {
  const { connection, writer, peer, server } = await pair(t)
  const got = outcome(peer)
  writer.writeString('bye')
  writer.flush()
  await connection[Symbol.asyncDispose]()
  t.is(server.loop.connections, 0)
  await connection[Symbol.asyncDispose]()
  t.deepEqual(await got, { bytes: Buffer.from('bye'), code: '' })
})

for (const handler of ['onConnect', 'onRequest']) {
  test(`Symbol.asyncDispose in an ${handler} that awaits it waits for the descriptor alone`, async (t) => {
    const seen = []
    const disconnected = deferred()
    const { port, loop, stop } = serve(undefined, {
      onConnect: () => undefined,
      onPrepare(connection) {
        const dispose = async () => {
          connection.writer.writeString('bye')
          connection.writer.flush()
          await connection[Symbol.asyncDispose]()
          seen.push(loop.connections)
          await connection[Symbol.asyncDispose]()
          seen.push('again')
        }
        if (handler === 'onConnect') connection.setOnConnect(dispose)
        else connection.setOnRequest(dispose)
      },
      onDisconnect: () => disconnected.resolve(seen.push('disconnect')),
    })
    t.teardown(stop)
    const peer = await connect(port)
    peer.write('hello')
    const { bytes } = await outcome(peer)
    await disconnected.promise
    t.is(String(bytes), 'bye')
    t.deepEqual(seen, [0, 'again', 'disconnect'])
  })
}

test('closed resolves once all callbacks have been called, asked for early or late', async (t) => {
  const { connection, peer } = await pair(t)
  const events = []
  connection.addCloseCallback(() => events.push('callback'))
  const { closed } = connection
  t.is(connection.closed, closed)
  peer.resetAndDestroy()
  await closed
  t.deepEqual(events, ['callback'])
  await connection.closed
})

// ---- options of the socket

test('setKeepAlive() turns probes on, with their delay, and off', async (t) => {
  const { connection } = await pair(t)
  t.notRegex(socketOf(connection), /keepalive/)
  connection.setKeepAlive(true, 100_000)
  await settled()
  t.regex(socketOf(connection), /timer:\(keepalive,1min[34]\d/)
  connection.setKeepAlive(false)
  await settled()
  t.notRegex(socketOf(connection), /keepalive/)
})

test('setNoDelay(), setUserTimeout() and setKeepAlive() are set, and unset again', async (t) => {
  const options = async (set) => {
    const { connection } = await pair(t)
    set(connection)
    return optionsOf((await connection.detach()).fd)
  }
  const before = await options(() => undefined)
  t.like(before, { noDelay: 1, userTimeout: 0, keepAlive: 0 })
  const changed = await options((connection) => {
    connection.setNoDelay(false)
    connection.setUserTimeout(1234)
    connection.setKeepAlive(true, 100_999)
  })
  t.deepEqual(changed, { ...before, noDelay: 0, userTimeout: 1234, keepAlive: 1, keepIdle: 100 })
  const back = await options((connection) => {
    connection.setNoDelay(false)
    connection.setNoDelay()
    connection.setUserTimeout(1234)
    connection.setUserTimeout(0)
    connection.setKeepAlive(true)
    connection.setKeepAlive()
  })
  t.deepEqual(back, before)
})

test('the options of a listener are those of its connections', async (t) => {
  for (const [given, expected] of [
    [
      { noDelay: false, keepAlive: true },
      { noDelay: 0, keepAlive: 1 },
    ],
    // The kernel doubles both.
    [
      { recvBuffer: 20_000, sendBuffer: 30_000 },
      { noDelay: 1, recvBuffer: 40_000, sendBuffer: 60_000 },
    ],
  ]) {
    const listener = createListener('tcp', '127.0.0.1:0', given)
    const detached = deferred()
    const loop = createEventLoop(undefined, {
      onConnect: (connection) => void connection.detach().then(detached.resolve, detached.reject),
    })
    const served = loop.serve(listener)
    const peer = await connect(listener.address().port)
    t.like(optionsOf((await detached.promise).fd), expected)
    peer.destroy()
    await loop.shutdown()
    await served
  }
})

test('the options of TCP harm no unix connection', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-connection-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'options.sock')
  const loop = createEventLoop(echo, {
    onConnect(connection) {
      connection.setNoDelay(true)
      connection.setKeepAlive(true, 1000)
      connection.setUserTimeout(1000)
    },
  })
  const served = loop.serve(createListener('unix', path))
  const socket = net.connect(path)
  socket.write('alive')
  t.is(String(await take(socket, 5)), 'alive')
  socket.destroy()
  await loop.shutdown()
  await served
})

const NUMBERS = [
  [-1, 'ERR_OUT_OF_RANGE'],
  [NaN, 'ERR_OUT_OF_RANGE'],
  [1.5, 'ERR_OUT_OF_RANGE'],
  [2 ** 53, 'ERR_OUT_OF_RANGE'],
  [Infinity, 'ERR_OUT_OF_RANGE'],
  ['1', 'ERR_INVALID_ARG_TYPE'],
  [null, 'ERR_INVALID_ARG_TYPE'],
  [undefined, 'ERR_INVALID_ARG_TYPE'],
  [1n, 'ERR_INVALID_ARG_TYPE'],
]

for (const method of ['setReadTimeout', 'setWriteTimeout', 'setIdleTimeout', 'setUserTimeout']) {
  test(`${method}() takes milliseconds alone`, async (t) => {
    const { connection } = await pair(t)
    for (const [value, code] of NUMBERS) t.throws(() => connection[method](value), { code }, String(value))
    connection[method](60_000)
    connection[method](0)
    t.true(connection.isActive())
  })
}

test('setNoDelay() and setKeepAlive() check their arguments', async (t) => {
  const { connection } = await pair(t)
  for (const value of [1, 'true', null, {}]) {
    t.throws(() => connection.setNoDelay(value), { code: 'ERR_INVALID_ARG_TYPE' })
    t.throws(() => connection.setKeepAlive(value), { code: 'ERR_INVALID_ARG_TYPE' })
  }
  for (const [value, code] of NUMBERS.filter(([wrong]) => wrong !== undefined)) {
    t.throws(() => connection.setKeepAlive(true, value), { code }, String(value))
  }
  await settled()
  t.notRegex(socketOf(connection), /keepalive/)
})

for (const method of ['setOnRequest', 'setOnConnect', 'setOnDisconnect', 'addCloseCallback']) {
  test(`${method}() takes a function alone`, async (t) => {
    const { connection } = await pair(t)
    for (const value of [undefined, null, {}, 'f', 1]) {
      t.throws(() => connection[method](value), { code: 'ERR_INVALID_ARG_TYPE' })
    }
  })
}

const METHODS = {
  setReadTimeout: [1],
  setWriteTimeout: [1],
  setIdleTimeout: [1],
  setUserTimeout: [1],
  setNoDelay: [true],
  setKeepAlive: [true],
  setOnRequest: [() => undefined],
  setOnConnect: [() => undefined],
  setOnDisconnect: [() => undefined],
  addCloseCallback: [() => undefined],
  pause: [],
  resume: [],
}

for (const [name, endIt] of [
  ['close()', (connection) => connection.close()],
  ['reset()', (connection) => connection.reset()],
]) {
  test(`after ${name} methods throw CONN_CLOSED, waits reject with it, and ends are idempotent`, async (t) => {
    const { connection, reader, writer } = await pair(t)
    const wait = t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    endIt(connection)
    for (const moment of ['at once', 'after the end']) {
      for (const [method, args] of Object.entries(METHODS)) {
        t.throws(
          () => connection[method](...args),
          { code: 'ERR_NETPOLL_CONN_CLOSED' },
          `${method} ${moment}`,
        )
      }
      t.throws(() => reader.next(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
      t.throws(() => writer.writeString('x'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
      await t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
      connection.end()
      connection.close()
      connection.reset()
      connection.ref().unref().ref()
      await connection.closed
    }
    await wait
  })
}
