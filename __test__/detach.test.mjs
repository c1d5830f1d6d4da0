// detach(): the descriptor is given away open, and not a byte is lost or comes twice.

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import {
  connect,
  deferred,
  leaksNothing,
  outcome,
  pair,
  send,
  serve,
  settled,
  take,
  until,
} from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

/** The socket of net that goes on with what detach() gave. */
function adopt(t, { fd, unread }) {
  const socket = new net.Socket({ fd, allowHalfOpen: true })
  socket.on('error', () => undefined)
  t.teardown(() => void socket.destroy())
  if (unread.length !== 0) socket.unshift(unread)
  return socket
}

/** How an end of a connection is told: the calls that came. */
function watch(connection) {
  const calls = []
  connection.setOnDisconnect(() => void calls.push('disconnect'))
  connection.addCloseCallback(() => void calls.push('close'))
  return calls
}

test('a detached connection goes on in node:net, byte for byte in both directions', async (t) => {
  const { connection, reader, writer, peer, server } = await pair(t)
  const calls = watch(connection)
  await send(peer, 'consumed, unread')
  await reader.waitRead(16)
  t.is(reader.readString(10), 'consumed, ')
  writer.writeString('flushed')
  writer.flush()
  writer.writeString('dropped')
  const detached = await connection.detach()
  t.is(String(detached.unread), 'unread')
  await connection.closed
  t.deepEqual(calls, ['disconnect', 'close'])
  t.is(server.loop.connections, 0)
  t.is(String(await take(peer, 7)), 'flushed')

  const socket = adopt(t, detached)
  const [up, down] = [randomBytes(3_000_000), randomBytes(3_000_000)]
  peer.write(up)
  socket.write(down)
  const [got, had] = await Promise.all([take(socket, 6 + up.length), take(peer, down.length)])
  t.true(got.subarray(6).equals(up))
  t.is(String(got.subarray(0, 6)), 'unread')
  t.true(had.equals(down))
  socket.end('bye')
  t.deepEqual(await outcome(peer), { bytes: Buffer.from('bye'), code: '' })
})

test('bytes that come all the while are in unread or in the socket, in order and each once', async (t) => {
  for (let round = 0; round < 20; round++) {
    const { connection, reader, peer } = await pair(t)
    const sent = randomBytes(200_000 + round * 30_000)
    peer.write(sent)
    const consumed = []
    for (let i = 0; i <= round % 5; i++) {
      await reader.waitRead(1)
      consumed.push(reader.readBinary(Math.min(reader.length, 10_000)))
      reader.release()
    }
    const detached = await connection.detach()
    const before = Buffer.concat(consumed)
    const rest = await take(adopt(t, detached), sent.length - before.length)
    t.true(Buffer.concat([before, rest]).equals(sent))
  }
})

test('a handler may detach its connection, and goes on with views that stay what they are', async (t) => {
  const gone = deferred()
  const calls = []
  const { port, stop } = serve(
    async (connection) => {
      const view = connection.reader.next(4)
      gone.resolve(await connection.detach())
      await settled()
      calls.push(String(view))
      t.is(connection.reader.length, 0)
    },
    { onDisconnect: () => void calls.push('disconnect') },
  )
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'takerest')
  const detached = await gone.promise
  t.is(String(detached.unread), 'rest')
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['take', 'disconnect'], 'onDisconnect waits for the handler')
  const socket = adopt(t, detached)
  socket.write('answer')
  t.is(String(await take(peer, 6)), 'answer')
})

for (const hook of ['onPrepare', 'onConnect']) {
  test(`${hook} may detach, and no request follows`, async (t) => {
    const gone = deferred()
    const { port, loop, stop } = serve(() => t.fail(), {
      [hook]: (connection) => void connection.detach().then(gone.resolve, gone.reject),
    })
    t.teardown(stop)
    const peer = await connect(port)
    peer.write('hello')
    const socket = adopt(t, await gone.promise)
    t.is(String(await take(socket, 5)), 'hello')
    t.is(loop.connections, 0)
  })
}

test('a unix connection can be detached as well', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-detach-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const listener = createListener('unix', join(folder, 'socket'))
  const gone = deferred()
  const loop = createEventLoop((connection) => void connection.detach().then(gone.resolve))
  const served = loop.serve(listener)
  const peer = net.connect(listener.address())
  t.teardown(() => void peer.destroy())
  peer.write('over unix')
  const socket = adopt(t, await gone.promise)
  t.is(String(await take(socket, 9)), 'over unix')
  socket.write('back')
  t.is(String(await take(peer, 4)), 'back')
  await loop.shutdown()
  await served
})

test('a detached descriptor can be given to another process', async (t) => {
  const { connection, reader, peer } = await pair(t)
  await send(peer, 'unread ')
  await reader.waitRead(7)
  const { fd, unread } = await connection.detach()
  const child = spawn('cat', { stdio: [fd, 'pipe', 'inherit'] })
  closeSync(fd)
  peer.end('in the socket')
  const [out] = await Promise.all([take(child.stdout, 13), once(child, 'exit')])
  t.is(String(Buffer.concat([unread, out])), 'unread in the socket')
})

test('all pending output is sent first, however slowly the peer reads', async (t) => {
  const size = 20_000_000
  const { connection, writer, peer } = await pair(t, { maxPendingBytes: 2 * size })
  const bytes = randomBytes(size)
  writer.writeBinary(bytes)
  writer.flush()
  const flushed = connection.flushed()
  let detached
  const promise = connection.detach().then((value) => (detached = value))
  await settled()
  t.is(detached, undefined)
  t.true((await take(peer, size)).equals(bytes))
  await flushed
  const socket = adopt(t, await promise)
  socket.end('behind')
  t.is(String((await outcome(peer)).bytes), 'behind')
})

test('after end() the FIN goes out, and reading goes on with the descriptor', async (t) => {
  const { connection, writer, peer } = await pair(t)
  writer.writeString('last')
  writer.flush()
  connection.end()
  const socket = adopt(t, await connection.detach())
  t.is(String((await outcome(peer)).bytes), 'last')
  peer.end('still')
  t.is(String((await outcome(socket)).bytes), 'still')
})

test('a connection that was given away counts no longer for maxConnections', async (t) => {
  const { connection, server } = await pair(t, { maxConnections: 1 })
  const socket = adopt(t, await connection.detach())
  t.is(server.loop.connections, 0)
  const next = await connect(server.port)
  t.teardown(() => void next.destroy())
  await until(() => server.loop.connections === 1)
  socket.destroy()
})

test('a paused connection leaves what it has not read in the socket', async (t) => {
  const { connection, peer } = await pair(t)
  connection.pause()
  await settled()
  await send(peer, 'held back')
  await settled()
  const detached = await connection.detach()
  t.is(detached.unread.length, 0)
  t.is(String(await take(adopt(t, detached), 9)), 'held back')
})

test("the peer's FIN stays in the socket", async (t) => {
  const { connection, peer } = await pair(t, { allowHalfOpen: true })
  peer.end('all')
  await until(() => !connection.isActive())
  const socket = adopt(t, await connection.detach())
  t.is(String((await outcome(socket)).bytes), 'all')
  socket.end('answer')
  t.is(String((await outcome(peer)).bytes), 'answer')
})

test('pending waits reject with CONN_CLOSED, and so does everything after it', async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  const code = 'ERR_NETPOLL_CONN_CLOSED'
  const wait = reader.waitRead(10)
  const detached = connection.detach()
  await t.throwsAsync(wait, { code })
  const refuses = async () => {
    await t.throwsAsync(connection.detach(), { code }, 'twice')
    t.throws(() => reader.readByte(), { code })
    t.throws(() => writer.writeByte(1), { code })
    t.throws(() => connection.pause(), { code })
    t.throws(() => connection.setOnRequest(() => undefined), { code })
    t.throws(() => connection.addCloseCallback(() => undefined), { code })
    await t.throwsAsync(connection.flushed(), { code })
    await t.throwsAsync(connection.stats(), { code })
    connection.end()
    connection.close()
    t.deepEqual([connection.isActive(), connection.readable, connection.writable], [false, false, false])
  }
  await refuses()
  const { fd } = await detached
  await connection.closed
  await refuses()
  connection.reset()
  peer.write('alive')
  const socket = adopt(t, { fd, unread: Buffer.alloc(0) })
  t.is(String(await take(socket, 5)), 'alive')
})

test('after close(), reset(), or the end by the peer it rejects with the cause', async (t) => {
  for (const [how, code] of [
    [({ connection }) => connection.close(), 'ERR_NETPOLL_CONN_CLOSED'],
    [({ connection }) => connection.reset(), 'ERR_NETPOLL_CONN_CLOSED'],
    [({ peer }) => void peer.end(), 'ERR_NETPOLL_EOF'],
    [({ peer }) => void peer.resetAndDestroy(), 'ECONNRESET'],
  ]) {
    const both = await pair(t)
    how(both)
    if (code !== 'ERR_NETPOLL_CONN_CLOSED') await both.connection.closed
    await t.throwsAsync(both.connection.detach(), { code })
    both.peer.destroy()
    await both.connection.closed
    await t.throwsAsync(both.connection.detach(), { code })
  }
})

const CUTS = {
  'never reads': [() => undefined, 'ERR_NETPOLL_WRITE_TIMEOUT', { writeTimeout: 200 }],
  resets: [({ peer }) => void peer.resetAndDestroy(), /^(?:ECONNRESET|EPIPE)$/],
  'is cut by reset()': [({ connection }) => connection.reset(), 'ERR_NETPOLL_CONN_CLOSED'],
  'is cut by shutdown()': [
    ({ server }) => void server.loop.shutdown({ timeout: 0 }).catch(() => undefined),
    'ERR_NETPOLL_CONN_CLOSED',
  ],
}

for (const [name, [how, code, options]] of Object.entries(CUTS)) {
  test(`a peer that ${name} while output is pending makes it reject, and the descriptor is closed`, async (t) => {
    const both = await pair(t, options)
    const { connection, writer, server } = both
    const calls = watch(connection)
    writer.writeBinary(Buffer.alloc(30_000_000))
    writer.flush()
    const detached = connection.detach()
    await settled()
    how(both)
    const error = await t.throwsAsync(detached)
    if (typeof code === 'string') t.is(error.code, code)
    else t.regex(error.code, code)
    await connection.closed
    t.deepEqual(calls, ['disconnect', 'close'])
    t.is(server.loop.connections, 0)
  })
}

test('a poll that dies makes it reject with POLL_DIED', async (t) => {
  const { stdout, code } = await run(`
    import { environment } from '${new URL('../dist/environment.js', import.meta.url).pathname}'
    const server = serve((connection) => {
      connection.writer.writeBinary(Buffer.alloc(30_000_000))
      connection.writer.flush()
      connection.detach().then(() => console.log('given'), (error) => {
        console.log(error.code)
        peer.destroy()
      })
      setImmediate(() => environment().native.crash(0))
    })
    server.served.catch(() => 0)
    const peer = await connect(server.port)
    peer.write('x')
  `)
  t.is(stdout.trim(), 'ERR_NETPOLL_POLL_DIED')
  t.is(code, 0)
})

test('an environment that ends before its detach() is answered closes the descriptor', async (t) => {
  const worker = new Worker(
    `
    const { serve } = await import(${JSON.stringify(new URL('fixtures/peer.mjs', import.meta.url).href)})
    const { parentPort } = await import('node:worker_threads')
    const server = serve((connection) => {
      void connection.detach()
      parentPort.postMessage('asked')
      // DETACHED comes, and nobody hears of it.
      for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)
    })
    parentPort.postMessage(server.port)
    `,
    { eval: true },
  )
  const [port] = await once(worker, 'message')
  const peer = await connect(port)
  const end = outcome(peer)
  peer.write('x')
  await once(worker, 'message')
  await worker.terminate()
  t.is((await end).bytes.length, 0)
})

test.serial('detaching leaves no block, no slot and no descriptor behind', (t) =>
  leaksNothing(async () => {
    const server = serve(async (connection) => {
      const { fd, unread } = await connection.detach()
      const socket = new net.Socket({ fd })
      socket.on('error', () => undefined)
      socket.end(unread)
      socket.resume()
    })
    await Promise.all(
      Array.from({ length: 200 }, async (_, i) => {
        const peer = await connect(server.port)
        peer.write(Buffer.alloc(1 + i * 300, i))
        peer.end()
        peer.resume()
        await once(peer, 'close')
      }),
    )
    await server.stop()
    t.is(server.loop.connections, 0)
  }),
)
