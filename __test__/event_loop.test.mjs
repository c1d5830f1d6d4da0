// Event loops: their arguments, several listeners, maxConnections, the abort of their signal, and shutdown().

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener, NetpollError } from '../index.js'
import { connect, deferred, outcome, serve, settled, take, until } from './fixtures/peer.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-loop-'))
test.after.always(() => rmSync(folder, { recursive: true }))

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

async function refused(port) {
  const [error] = await once(net.connect(port, '127.0.0.1'), 'error')
  return error.code
}

// ---- arguments

for (const [handler, options] of [
  [undefined, undefined],
  [undefined, {}],
  [undefined, { onPrepare: () => 0 }],
  [null, undefined],
  ['echo', undefined],
  [{}, {}],
  [1, { onConnect: () => undefined }],
]) {
  test(`createEventLoop(${JSON.stringify(handler)}, ${options && JSON.stringify(Object.keys(options))}) lacks a function`, (t) => {
    t.throws(() => createEventLoop(handler, options), { code: 'ERR_INVALID_ARG_TYPE', instanceOf: TypeError })
  })
}

test('onRequest may be undefined when onConnect is given', (t) => {
  t.notThrows(() => createEventLoop(undefined, { onConnect: () => undefined }))
})

const TIMES = ['readTimeout', 'writeTimeout', 'idleTimeout']
const SIZES = ['readHighWaterMark', 'maxReadBytes', 'writeHighWaterMark', 'maxPendingBytes', 'maxConnections']
const HOOKS = ['onPrepare', 'onConnect', 'onDisconnect', 'onError']

for (const name of [...TIMES, ...SIZES]) {
  test(`${name} is an integer from ${TIMES.includes(name) ? 0 : 1} to 2^31-1`, (t) => {
    for (const value of [-1, NaN, 0.5, 2 ** 31, 2 ** 53, Infinity]) {
      t.throws(() => createEventLoop(echo, { [name]: value }), {
        code: 'ERR_OUT_OF_RANGE',
        instanceOf: RangeError,
      })
    }
    for (const value of ['1', null, {}, 1n, true]) {
      t.throws(() => createEventLoop(echo, { [name]: value }), { code: 'ERR_INVALID_ARG_TYPE' })
    }
    if (SIZES.includes(name)) {
      t.throws(() => createEventLoop(echo, { [name]: 0 }), { code: 'ERR_OUT_OF_RANGE' })
    } else t.notThrows(() => createEventLoop(echo, { [name]: 0 }))
    for (const value of [1, 2 ** 31 - 1, undefined])
      t.notThrows(() => createEventLoop(echo, { [name]: value }))
  })
}

for (const [name, wrong] of [
  ...HOOKS.map((hook) => [hook, 'f']),
  ['allowHalfOpen', 1],
  ['signal', {}],
  ['signal', new AbortController()],
]) {
  test(`${name} is no ${wrong.constructor.name}, and not null`, (t) => {
    t.throws(() => createEventLoop(echo, { [name]: wrong }), { code: 'ERR_INVALID_ARG_TYPE' })
    t.throws(() => createEventLoop(echo, { [name]: null }), { code: 'ERR_INVALID_ARG_TYPE' })
  })
}

test('options are an object of known names', (t) => {
  t.throws(() => createEventLoop(echo, { idleTimeOut: 5 }), { code: 'ERR_INVALID_ARG_VALUE' })
  for (const options of [null, 5, 'x', true]) {
    t.throws(() => createEventLoop(echo, options), { code: 'ERR_INVALID_ARG_TYPE' })
  }
})

for (const value of [undefined, null, {}, 8080, ':8080', net.createServer()]) {
  test(`serve() of ${value?.constructor.name ?? value} throws at once`, (t) => {
    t.throws(() => createEventLoop(echo).serve(value), {
      code: 'ERR_INVALID_ARG_TYPE',
      instanceOf: TypeError,
    })
  })
}

test('shutdown() takes milliseconds alone, and does nothing when it throws', async (t) => {
  const { loop, port, stop } = serve(echo)
  t.teardown(stop)
  for (const [options, code] of [
    [{ timeout: -1 }, 'ERR_OUT_OF_RANGE'],
    [{ timeout: NaN }, 'ERR_OUT_OF_RANGE'],
    [{ timeout: '5' }, 'ERR_INVALID_ARG_TYPE'],
    [{ timeOut: 5 }, 'ERR_INVALID_ARG_VALUE'],
    [5, 'ERR_INVALID_ARG_TYPE'],
  ]) {
    t.throws(() => loop.shutdown(options), { code })
  }
  const socket = await connect(port)
  socket.write('serving')
  t.is(String(await take(socket, 7)), 'serving')
  socket.destroy()
})

// ---- serving

test('one loop serves several listeners of all kinds, and each serve() ends with its listener', async (t) => {
  const loop = createEventLoop(echo)
  const path = join(folder, 'several.sock')
  const listeners = [
    createListener('tcp4', '127.0.0.1:0'),
    createListener('tcp6', '[::1]:0'),
    createListener('unix', path),
  ]
  const ends = []
  const served = listeners.map((listener, i) => loop.serve(listener).then(() => ends.push(i)))
  const sockets = listeners.map((listener) => {
    const where = listener.address()
    return typeof where === 'string' ? net.connect(where) : net.connect(where.port, where.address)
  })
  for (const [i, socket] of sockets.entries()) {
    socket.write(`listener ${i}`)
    t.is(String(await take(socket, 10)), `listener ${i}`)
  }
  t.is(loop.connections, 3)
  listeners[1].close()
  await served[1]
  t.deepEqual(ends, [1])
  for (const socket of sockets) {
    socket.write('more')
    t.is(String(await take(socket, 4)), 'more')
    socket.destroy()
  }
  await loop.shutdown()
  await Promise.all(served)
  t.is(loop.connections, 0)
})

test('a loop whose listener was closed serves another', async (t) => {
  const { loop, listener, served, stop } = serve(echo)
  t.teardown(stop)
  listener.close()
  await served
  const successor = createListener('tcp', '127.0.0.1:0')
  const again = loop.serve(successor)
  const socket = await connect(successor.address().port)
  socket.write('again')
  t.is(String(await take(socket, 5)), 'again')
  socket.destroy()
  successor.close()
  await again
})

test('two loops keep to their own connections and handlers', async (t) => {
  const [one, two] = ['one', 'two'].map((name) =>
    serve(({ reader, writer }) => {
      reader.skip(reader.length)
      writer.writeString(name)
      writer.flush()
    }),
  )
  const sockets = [await connect(one.port), await connect(two.port)]
  for (const socket of sockets) socket.write('?')
  t.is(String(await take(sockets[0], 3)), 'one')
  t.is(String(await take(sockets[1], 3)), 'two')
  t.deepEqual([one.loop.connections, two.loop.connections], [1, 1])
  await one.loop.shutdown()
  sockets[1].write('?')
  t.is(String(await take(sockets[1], 3)), 'two')
  for (const socket of sockets) socket.destroy()
  await two.stop()
})

test('connections counts those that are open', async (t) => {
  const { loop, port, stop } = serve(echo, { onPrepare: () => undefined })
  t.teardown(stop)
  t.is(loop.connections, 0)
  const sockets = []
  for (let i = 1; i <= 5; i++) {
    sockets.push(await connect(port))
    await until(() => loop.connections === i)
  }
  for (const [i, socket] of sockets.entries()) {
    socket.destroy()
    await until(() => loop.connections === 4 - i)
  }
  t.is(loop.connections, 0)
})

test('connections beyond maxConnections are accepted and closed before onPrepare, of all listeners together', async (t) => {
  let prepared = 0
  const loop = createEventLoop(echo, { maxConnections: 3, onPrepare: () => void prepared++ })
  const listeners = [createListener('tcp', '127.0.0.1:0'), createListener('tcp', '127.0.0.1:0')]
  for (const listener of listeners) void loop.serve(listener)
  t.teardown(() => loop.shutdown({ timeout: 0 }))
  const sockets = []
  for (let i = 0; i < 3; i++) {
    sockets.push(await connect(listeners[i % 2].address().port))
    sockets[i].write('in')
    t.is(String(await take(sockets[i], 2)), 'in')
  }
  for (let i = 0; i < 10; i++) {
    const socket = await connect(listeners[i % 2].address().port)
    t.is((await outcome(socket)).bytes.length, 0)
    socket.destroy()
  }
  t.deepEqual([prepared, loop.connections], [3, 3])
  sockets[0].destroy()
  await until(() => loop.connections === 2)
  const next = await connect(listeners[0].address().port)
  next.write('next')
  t.is(String(await take(next, 4)), 'next')
  t.is(prepared, 4)
  for (const socket of [...sockets, next]) socket.destroy()
})

// ---- the end

test('shutdown() closes idle connections, frees the port, and resolves serve()', async (t) => {
  const { loop, port, served } = serve(echo)
  const socket = await connect(port)
  socket.write('x')
  await take(socket, 1)
  const end = outcome(socket.resume())
  await loop.shutdown()
  await served
  t.deepEqual(await end, { bytes: Buffer.alloc(0), code: '' })
  t.is(loop.connections, 0)
  t.is(await refused(port), 'ECONNREFUSED')
  createListener('tcp', `127.0.0.1:${port}`).close()
})

test('shutdown() refuses new connects at once, and lets the running handler answer', async (t) => {
  const [began, proceed] = [deferred(), deferred()]
  const { loop, port, served } = serve(async ({ reader, writer }) => {
    reader.skip(reader.length)
    began.resolve()
    await proceed.promise
    writer.writeString('answer')
    writer.flush()
  })
  const socket = await connect(port)
  socket.write('?')
  await began.promise
  let stopped = false
  const shutdown = loop.shutdown().then(() => (stopped = true))
  t.is(await refused(port), 'ECONNREFUSED')
  await settled()
  t.false(stopped)
  const got = outcome(socket)
  proceed.resolve()
  t.deepEqual(await got, { bytes: Buffer.from('answer'), code: '' })
  await shutdown
  await served
})

test('past its timeout shutdown() cuts the rest and rejects; a second call shares the outcome', async (t) => {
  const began = deferred()
  const { loop, port, served } = serve(() => new Promise(() => began.resolve()))
  const socket = await connect(port)
  socket.write('?')
  await began.promise
  const end = outcome(socket.resume())
  const first = loop.shutdown({ timeout: 20 })
  t.is(loop.shutdown(), first)
  await t.throwsAsync(first, { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT', instanceOf: NetpollError })
  await end
  await served
  t.is(loop.connections, 0)
})

test('shutdown() with a timeout that is not needed resolves', async (t) => {
  const { loop, port, served } = serve(echo)
  const socket = await connect(port)
  socket.write('x')
  await take(socket, 1)
  await t.notThrowsAsync(loop.shutdown({ timeout: 50_000 }))
  await served
  socket.destroy()
})

test('a loop that is shut down serves nothing more', async (t) => {
  const loop = createEventLoop(echo)
  await loop.shutdown()
  const listener = createListener('tcp', '127.0.0.1:0')
  await t.throwsAsync(loop.serve(listener), { code: 'ERR_NETPOLL_INVALID_STATE' })
  listener.close()
})

test('Symbol.asyncDispose shuts down, and waits for handlers', async (t) => {
  const [began, proceed] = [deferred(), deferred()]
  let ended = false
  const { loop, port, served } = serve(async ({ reader }) => {
    reader.skip(reader.length)
    began.resolve()
    await proceed.promise
    ended = true
  })
  const socket = await connect(port)
  socket.write('?')
  await began.promise
  const disposed = loop[Symbol.asyncDispose]()
  proceed.resolve()
  await disposed
  await served
  t.true(ended)
  socket.destroy()
})

test('abort of the signal cuts what runs, resolves serve(), and frees the port', async (t) => {
  const controller = new AbortController()
  const began = deferred()
  const loop = createEventLoop(() => new Promise(() => began.resolve()), { signal: controller.signal })
  const listener = createListener('tcp', '127.0.0.1:0')
  const served = loop.serve(listener)
  const { port } = listener.address()
  const socket = await connect(port)
  socket.write('?')
  await began.promise
  const end = outcome(socket.resume())
  controller.abort()
  t.is(await served, undefined)
  await end
  // The peer may hear of the end before JavaScript does.
  await until(() => loop.connections === 0)
  t.is(await refused(port), 'ECONNREFUSED')
})

test('a loop whose signal was aborted before closes its listener, and serve() resolves', async (t) => {
  const loop = createEventLoop(echo, { signal: AbortSignal.abort() })
  const listener = createListener('tcp', '127.0.0.1:0')
  await loop.serve(listener)
  t.is(await refused(listener.address().port), 'ECONNREFUSED')
})

test('abort after shutdown() changes nothing', async (t) => {
  const controller = new AbortController()
  const loop = createEventLoop(echo, { signal: controller.signal })
  const served = loop.serve(createListener('tcp', '127.0.0.1:0'))
  await loop.shutdown()
  controller.abort()
  await served
  await t.notThrowsAsync(loop.shutdown())
})
