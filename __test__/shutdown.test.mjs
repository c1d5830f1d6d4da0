// Semantics 9: what shutdown() waits for, what it closes at once, and what it cuts.

import { once } from 'node:events'
import net from 'node:net'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import {
  connect,
  deferred,
  leaksNothing,
  outcome,
  send,
  serve,
  settled,
  take,
  until,
} from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const bare = () => undefined

/** More than the kernel takes for a peer that reads nothing. */
const MUCH = 30_000_000

function echo({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

/** The code with which a connect to `port` fails, or ''. */
async function connectCode(port) {
  const socket = net.connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return ''
  } catch (error) {
    return error.code
  } finally {
    socket.destroy()
  }
}

test('a loop without connections stops at once: connects are refused, and the port is free', async (t) => {
  const { port, loop, served } = serve(bare)
  t.is(await loop.shutdown(), undefined)
  t.is(await served, undefined)
  t.is(await connectCode(port), 'ECONNREFUSED')
  const again = createListener('tcp', `127.0.0.1:${port}`)
  t.is(again.address().port, port)
  again.close()
})

test('a shutdown with a timeout keeps the process alive until it has settled', async (t) => {
  const { code, stdout, stderr } = await run(`
    let called
    const { port, loop } = serve(() => new Promise(() => (called = true)))
    const socket = await connect(port)
    socket.write('?')
    await until(() => called)
    socket.resetAndDestroy()
    await until(() => loop.connections === 0)
    await loop.shutdown({ timeout: 50 }).catch((error) => console.log(error.code))
  `)
  t.is(stdout, 'ERR_NETPOLL_SHUTDOWN_TIMEOUT\n', stderr)
  t.is(code, 0)
})

test('a loop whose signal is aborted leaves the listener of another loop alone', async (t) => {
  const { listener, port, stop } = serve(echo)
  t.teardown(stop)
  const aborted = createEventLoop(bare, { signal: AbortSignal.abort() })
  await t.throwsAsync(aborted.serve(listener), { code: 'ERR_NETPOLL_INVALID_STATE' })
  const peer = await connect(port)
  await send(peer, '?')
  t.is(String(await take(peer, 1)), '?')
  peer.destroy()
})

test('idle connections close at once, also those with a part of a message', async (t) => {
  const seen = []
  const { port, loop, served } = serve(({ reader }) => void seen.push(reader.length), {
    onDisconnect: () => void seen.push('disconnect'),
  })
  const silent = await connect(port)
  const partial = await connect(port)
  await send(partial, 'h')
  await until(() => seen.length === 1)
  await until(() => loop.connections === 2)
  await settled()
  const outcomes = [outcome(silent), outcome(partial)]
  await loop.shutdown()
  await served
  for (const { bytes, code } of await Promise.all(outcomes)) t.deepEqual([bytes.length, code], [0, ''])
  t.deepEqual(seen, [1, 'disconnect', 'disconnect'])
  silent.destroy()
  partial.destroy()
})

test('running handlers end, and their answers arrive, while connects are refused', async (t) => {
  const may = deferred()
  let running = 0
  const { port, loop, served } = serve(async ({ reader, writer }) => {
    reader.skip(reader.length)
    running++
    await may.promise
    writer.writeString('answered')
    writer.flush()
  })
  const sockets = [await connect(port), await connect(port)]
  for (const socket of sockets) await send(socket, 'x')
  await until(() => running === 2)
  let stopped = false
  const stop = loop.shutdown().then(() => (stopped = true))
  await until(async () => (await connectCode(port)) === 'ECONNREFUSED')
  await served
  await settled()
  t.false(stopped)
  may.resolve()
  for (const socket of sockets) {
    t.is(String((await outcome(socket)).bytes), 'answered')
    socket.destroy()
  }
  await stop
})

test('onConnect counts as a running handler', async (t) => {
  const may = deferred()
  let connecting = 0
  const { port, loop, stop } = serve(undefined, {
    async onConnect({ writer }) {
      connecting++
      await may.promise
      writer.writeString('welcome')
      writer.flush()
    },
  })
  t.teardown(stop)
  const socket = await connect(port)
  await until(() => connecting === 1)
  const stopping = loop.shutdown()
  may.resolve()
  t.is(String((await outcome(socket)).bytes), 'welcome')
  await stopping
  socket.destroy()
})

test('pending output is sent, however slowly the peer reads', async (t) => {
  let handled = 0
  const { port, loop, stop } = serve(({ reader, writer }) => {
    reader.skip(reader.length)
    writer.writeBinary(Buffer.alloc(MUCH, 3))
    writer.flush()
    handled++
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => handled === 1)
  let stopped = false
  const stopping = loop.shutdown().then(() => (stopped = true))
  await settled()
  t.false(stopped)
  const { bytes, code } = await outcome(socket)
  t.true(bytes.equals(Buffer.alloc(MUCH, 3)))
  t.is(code, '')
  await stopping
  socket.destroy()
})

test('past the timeout handlers that run are cut: it rejects, their waits fail, and connections are 0', async (t) => {
  const told = deferred()
  const { port, loop, served } = serve(({ reader }) => reader.waitRead(100), { onError: told.resolve })
  const socket = await connect(port)
  await send(socket, 'x')
  await settled()
  const ended = outcome(socket)
  const start = performance.now()
  const error = await t.throwsAsync(loop.shutdown({ timeout: 50 }), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  t.is(error.name, 'NetpollError')
  t.true(performance.now() - start >= 49)
  t.is(loop.connections, 0)
  t.is((await told.promise).code, 'ERR_NETPOLL_CONN_CLOSED')
  t.is((await ended).code, 'ECONNRESET')
  t.is(await served, undefined)
})

test('past the timeout pending output is cut', async (t) => {
  let handled = 0
  const { port, loop } = serve(({ writer }) => {
    writer.writeBinary(Buffer.alloc(MUCH))
    writer.flush()
    handled++
  })
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => handled === 1)
  await settled()
  await t.throwsAsync(loop.shutdown({ timeout: 20 }), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  t.is(loop.connections, 0)
  t.true((await outcome(socket)).bytes.length < MUCH)
})

test('past the timeout a handler that never ends, of a connection that has ended, is waited for no longer', async (t) => {
  const { port, loop } = serve(() => new Promise(bare))
  const socket = await connect(port)
  await send(socket, 'x')
  await settled()
  socket.resetAndDestroy()
  await until(() => loop.connections === 0)
  await t.throwsAsync(loop.shutdown({ timeout: 20 }), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
})

test('a timeout that is not reached cuts nothing', async (t) => {
  const may = deferred()
  const { port, loop } = serve(async ({ writer }) => {
    await may.promise
    writer.writeString('in time')
    writer.flush()
  })
  const socket = await connect(port)
  await send(socket, 'x')
  await settled()
  const stopping = loop.shutdown({ timeout: 60_000 })
  may.resolve()
  t.is(String((await outcome(socket)).bytes), 'in time')
  t.is(await stopping, undefined)
  socket.destroy()
})

test('with a timeout of 0 idle connections still end in order, and it resolves', async (t) => {
  const { port, loop } = serve(bare)
  const socket = await connect(port)
  await settled()
  const ended = outcome(socket)
  t.is(await loop.shutdown({ timeout: 0 }), undefined)
  t.is((await ended).code, '')
  socket.destroy()
})

test('a second call shares the outcome of the first', async (t) => {
  const { port, loop } = serve(() => new Promise(bare))
  const socket = await connect(port)
  await send(socket, 'x')
  await settled()
  const first = loop.shutdown({ timeout: 20 })
  const second = loop.shutdown()
  await t.throwsAsync(first, { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  await t.throwsAsync(second, { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  await t.throwsAsync(loop.shutdown(), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  socket.destroy()
})

test('a handler may shut its own loop down, and still answers', async (t) => {
  let stopping
  const { port, loop, served } = serve(({ writer }) => {
    stopping = loop.shutdown()
    writer.writeString('bye')
    writer.flush()
  })
  const socket = await connect(port)
  await send(socket, 'q')
  t.is(String((await outcome(socket)).bytes), 'bye')
  await stopping
  await served
  socket.destroy()
})

test('requests that came before it are answered, those behind them are not', async (t) => {
  const requests = []
  const { port, loop } = serve(({ reader, writer }) => {
    requests.push(reader.readString(1))
    if (requests.length === 1) void loop.shutdown()
    writer.writeString(requests.at(-1))
    writer.flush()
  })
  const socket = await connect(port)
  await send(socket, 'abc')
  const { bytes } = await outcome(socket)
  t.is(String(bytes), requests.join(''))
  t.is(requests[0], 'a')
  await loop.shutdown()
  socket.destroy()
})

test('it waits for onDisconnect and the close callbacks', async (t) => {
  const calls = []
  const { port, loop } = serve(bare, {
    onPrepare: (connection) => connection.addCloseCallback(() => calls.push('close')),
    onDisconnect: () => void calls.push('disconnect'),
  })
  const socket = await connect(port)
  await until(() => loop.connections === 1)
  await loop.shutdown()
  t.deepEqual(calls, ['disconnect', 'close'])
  socket.destroy()
})

test('another loop of the same environment notices nothing', async (t) => {
  const one = serve(echo)
  const other = serve(echo)
  t.teardown(other.stop)
  const socket = await connect(other.port)
  await connect(one.port).then((idle) => idle.resume())
  await one.loop.shutdown()
  await send(socket, 'still there')
  t.is(String(await take(socket, 11)), 'still there')
  socket.destroy()
})

test('a loop that never served shuts down as well', async (t) => {
  t.is(await createEventLoop(bare).shutdown(), undefined)
})

test.serial('loops that come and go leave nothing behind', async (t) => {
  await leaksNothing(async () => {
    for (let i = 0; i < 5; i++) {
      const { port, loop, served } = serve(echo)
      const socket = await connect(port)
      await send(socket, 'x')
      await take(socket, 1)
      await loop.shutdown()
      await served
      socket.destroy()
      await once(socket, 'close')
    }
  })
  t.pass()
})

test('of 1,000 requests that run 990 are answered, and 10 that hang are cut at the timeout', async (t) => {
  const COUNT = 1000
  const HANG = 10
  const TIMEOUT = 3000
  const answers = deferred()
  let running = 0
  const { port, loop, served } = serve(
    async ({ reader, writer }) => {
      const hangs = reader.readUInt16BE() < HANG
      running++
      await (hangs ? reader.waitRead(1) : answers.promise)
      writer.writeString('answer')
      writer.flush()
    },
    { onError: bare },
  )
  const ask = async (_, i) => {
    const socket = await connect(port)
    socket.write(Buffer.from([i >> 8, i & 255]))
    return outcome(socket)
  }
  const asked = Array.from({ length: COUNT }, ask)
  await until(() => running === COUNT, 'all requests run')
  const begun = performance.now()
  const shut = loop.shutdown({ timeout: TIMEOUT })
  t.is(await connectCode(port), 'ECONNREFUSED')
  answers.resolve()
  await t.throwsAsync(shut, { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  t.true(performance.now() - begun >= TIMEOUT - 1, 'not before')
  await served
  const answered = (await Promise.all(asked)).map(({ bytes }) => String(bytes))
  t.deepEqual(answered, [...Array(HANG).fill(''), ...Array(COUNT - HANG).fill('answer')])
  t.is(loop.connections, 0)
  createListener('tcp', `127.0.0.1:${port}`).close()
})
