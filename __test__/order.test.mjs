// Semantics 1: in which order a connection's callbacks come, and that each comes once.

import { closeSync } from 'node:fs'
import test from 'ava'
import { setImmediate } from 'node:timers/promises'
import { createEventLoop, createListener } from '../index.js'
import { connect, deferred, outcome, send, serve, settled, take, until } from './fixtures/peer.mjs'

/** Serves with hooks that write down what is called. */
function recording(t, { onRequest, ...overrides } = {}) {
  const calls = []
  const server = serve(
    onRequest ??
      ((connection) => {
        calls.push(`request ${connection.reader.readString(connection.reader.length)}`)
      }),
    {
      onPrepare(connection) {
        calls.push('prepare')
        connection.addCloseCallback(() => calls.push('close'))
      },
      onConnect: () => void calls.push('connect'),
      onDisconnect: () => void calls.push('disconnect'),
      ...overrides,
    },
  )
  t.teardown(server.stop)
  return { ...server, calls }
}

test('the callbacks of a connection come in order, each once', async (t) => {
  const { port, calls } = recording(t)
  const socket = await connect(port)
  await send(socket, 'a')
  await until(() => calls.length === 3)
  await send(socket, 'b')
  await until(() => calls.length === 4)
  socket.end()
  await until(() => calls.includes('close'))
  await settled()
  t.deepEqual(calls, ['prepare', 'connect', 'request a', 'request b', 'disconnect', 'close'])
})

test('without other hooks a request is still followed by the close callbacks alone', async (t) => {
  const calls = []
  const { port, stop } = serve((connection) => {
    calls.push('request')
    connection.reader.skip(connection.reader.length)
    connection.addCloseCallback(() => calls.push('close'))
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('x')
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['request', 'close'])
})

test('onPrepare comes before anything is delivered, even when bytes came with the connect', async (t) => {
  const lengths = []
  const { port, stop } = serve(({ reader }) => void lengths.push(reader.readBinary(reader.length).length), {
    onPrepare: (connection) => void lengths.push(connection.reader.length),
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => lengths.length === 2)
  t.deepEqual(lengths, [0, 1])
})

test('no request comes before the promise of onConnect has settled', async (t) => {
  const connected = deferred()
  const { port, calls } = recording(t, { onConnect: () => connected.promise })
  const socket = await connect(port)
  await send(socket, 'e')
  await settled()
  t.deepEqual(calls, ['prepare'])
  connected.resolve()
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['prepare', 'request e'])
})

test('onConnect may speak first, and read its answer', async (t) => {
  const heard = []
  const { port, stop } = serve(({ reader }) => void heard.push(reader.readString(reader.length)), {
    async onConnect({ reader, writer }) {
      writer.writeString('who?')
      writer.flush()
      await reader.waitRead(2)
      heard.push(reader.readString(2))
    },
  })
  t.teardown(stop)
  const socket = await connect(port)
  t.is(String(await take(socket, 4)), 'who?')
  await send(socket, 'mex')
  await until(() => heard.length === 2)
  t.deepEqual(heard, ['me', 'x'])
})

test('what onPrepare returns is the context of everything that follows', async (t) => {
  const seen = []
  const mine = { of: 'this connection' }
  const { port, stop } = serve(
    (connection, context) => {
      connection.reader.skip(connection.reader.length)
      seen.push(context, connection.context)
    },
    {
      onPrepare: () => mine,
      onConnect: (connection, context) => void seen.push(context),
      onDisconnect: (connection, context) => void seen.push(context),
    },
  )
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('x')
  await until(() => seen.length === 4)
  t.true(seen.every((context) => context === mine))
})

for (const [kind, wrap] of [
  ['returns', (value) => value],
  ['resolves to', (value) => Promise.resolve(value)],
]) {
  test(`undefined that onConnect ${kind} keeps the context, anything else replaces it`, async (t) => {
    const values = [undefined, null, 0, '', false, 'text']
    const seen = []
    let next = 0
    const { port, stop } = serve(undefined, {
      onPrepare: () => 'prepared',
      onConnect: () => wrap(values[next++]),
      onDisconnect: (connection, context) => void seen.push(context),
    })
    t.teardown(stop)
    for (let i = 1; i <= values.length; i++) {
      const socket = await connect(port)
      socket.end()
      await until(() => seen.length === i)
    }
    t.deepEqual(seen, ['prepared', null, 0, '', false, 'text'])
  })
}

test('close() in onPrepare rejects the connection: only its close callbacks are called', async (t) => {
  const { port, calls, loop } = recording(t, {
    onPrepare(connection) {
      connection.addCloseCallback(() => calls.push('close'))
      connection.close()
    },
  })
  const socket = await connect(port)
  const ended = outcome(socket)
  socket.write('unwanted')
  t.is((await ended).bytes.length, 0)
  await until(() => loop.connections === 0)
  await settled()
  t.deepEqual(calls, ['close'])
  socket.destroy()
})

test('bytes that came before a FIN are all delivered before the end', async (t) => {
  let bytes = 0
  const ends = []
  const { port, stop } = serve(({ reader }) => ((bytes += reader.length), reader.skip(reader.length)), {
    onDisconnect: () => void ends.push(bytes),
  })
  t.teardown(stop)
  const sent = 5_000_000
  const socket = await connect(port)
  socket.end(Buffer.alloc(sent))
  await until(() => ends.length === 1)
  t.deepEqual(ends, [sent])
})

test('onDisconnect waits for the running request; isActive() tells of the end before', async (t) => {
  const calls = []
  const { port, stop } = serve(
    async (connection) => {
      connection.reader.skip(connection.reader.length)
      calls.push(`active ${connection.isActive()}`)
      await until(() => !connection.isActive())
      await settled()
      calls.push('request done')
    },
    { onDisconnect: () => void calls.push('disconnect') },
  )
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => calls.length === 1)
  socket.resetAndDestroy()
  await until(() => calls.length === 3)
  t.deepEqual(calls, ['active true', 'request done', 'disconnect'])
})

test('onDisconnect waits for onConnect', async (t) => {
  const connected = deferred()
  const { port, calls } = recording(t, {
    async onConnect() {
      await connected.promise
      calls.push('connected')
    },
  })
  const socket = await connect(port)
  await until(() => calls.length === 1)
  socket.resetAndDestroy()
  await settled()
  t.deepEqual(calls, ['prepare'])
  connected.resolve()
  await until(() => calls.length === 4)
  t.deepEqual(calls, ['prepare', 'connected', 'disconnect', 'close'])
})

const ENDS = {
  "the peer's FIN": (connection, socket) => socket.end(),
  "the peer's RST": (connection, socket) => socket.resetAndDestroy(),
  'close()': (connection) => connection.close(),
  'reset()': (connection) => connection.reset(),
  'detach()': async (connection) => closeSync((await connection.detach()).fd),
  'a write timeout': (connection) => {
    connection.setWriteTimeout(1)
    connection.writer.writeBinary(Buffer.alloc(30_000_000))
    connection.writer.flush()
  },
  "end() and the peer's FIN": (connection, socket) => {
    connection.end()
    socket.end()
  },
  'an idle timeout': (connection) => connection.setIdleTimeout(1),
  'a read timeout': (connection, socket) => {
    connection.setOnRequest(() => undefined)
    connection.setReadTimeout(1)
    socket.write('left unread')
  },
  'a throw': (connection, socket) => {
    connection.setOnRequest(() => {
      throw new Error('on purpose')
    })
    socket.write('x')
  },
}

for (const [name, end] of Object.entries(ENDS)) {
  test(`onDisconnect and each close callback are called once, last added first, after ${name}`, async (t) => {
    const calls = []
    let connection
    const { port, stop, loop } = serve(({ reader }) => reader.skip(reader.length), {
      onPrepare(prepared) {
        connection = prepared
        connection.addCloseCallback(() => calls.push('first'))
        connection.addCloseCallback(() => calls.push('second'))
      },
      onConnect: () => connection.addCloseCallback(() => calls.push('third')),
      onDisconnect: () => void calls.push('disconnect'),
      onError: () => undefined,
    })
    t.teardown(stop)
    const socket = await connect(port)
    await until(() => connection !== undefined)
    await settled()
    await end(connection, socket)
    await connection.closed
    await settled()
    t.deepEqual(calls, ['disconnect', 'third', 'second', 'first'])
    t.is(loop.connections, 0)
    socket.destroy()
  })
}

/** Ends that do not wait for a handler that runs. */
const SUDDEN = [
  "the peer's RST",
  'close()',
  'reset()',
  'detach()',
  'a write timeout',
  "end() and the peer's FIN",
]

for (const name of SUDDEN) {
  test(`onDisconnect and the close callbacks wait for the running request after ${name}`, async (t) => {
    const calls = []
    const leave = deferred()
    const { port, stop, loop } = serve(
      async (connection) => {
        connection.reader.skip(1)
        connection.addCloseCallback(() => void calls.push('close'))
        calls.push('request')
        void ENDS[name](connection, socket)
        await leave.promise
        calls.push('end')
      },
      { onDisconnect: () => void calls.push('disconnect') },
    )
    t.teardown(stop)
    const socket = await connect(port)
    socket.write('x')
    await until(() => calls.length === 1)
    await until(() => loop.connections === 0)
    await settled()
    t.deepEqual(calls, ['request'])
    leave.resolve()
    await until(() => calls.length === 4)
    t.deepEqual(calls, ['request', 'end', 'disconnect', 'close'])
    socket.destroy()
  })
}

test('no request comes after onDisconnect, whatever the peer still sends', async (t) => {
  const { port, calls } = recording(t, {
    onRequest(connection) {
      calls.push('request')
      connection.close()
    },
  })
  const socket = await connect(port)
  socket.write('x')
  await until(() => calls.includes('close'))
  for (let i = 0; i < 10; i++) {
    socket.write('more')
    await setImmediate()
  }
  await settled()
  t.deepEqual(calls, ['prepare', 'connect', 'request', 'disconnect', 'close'])
  socket.destroy()
})

test('setOnRequest takes effect with the next call, and bytes already here count as new for it', async (t) => {
  const calls = []
  const { port, stop } = serve((connection) => {
    connection.setOnRequest(({ reader }) => void calls.push(`second ${reader.readString(reader.length)}`))
    calls.push(`first leaves ${connection.reader.length}`)
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'a')
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['first leaves 1', 'second a'])
  socket.destroy()
})

test('setOnRequest concerns its connection alone', async (t) => {
  const calls = []
  let first
  const { port, stop } = serve((connection) => void calls.push(`loop ${connection.reader.readString(1)}`), {
    onPrepare: (connection) => (first ??= connection),
  })
  t.teardown(stop)
  const one = await connect(port)
  await until(() => first !== undefined)
  first.setOnRequest((connection) => void calls.push(`own ${connection.reader.readString(1)}`))
  const two = await connect(port)
  await send(one, 'a')
  await until(() => calls.length === 1)
  await send(two, 'b')
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['own a', 'loop b'])
  one.destroy()
  two.destroy()
})

test('onPrepare can set the other hooks of its connection', async (t) => {
  const { port, calls } = recording(t, {
    onPrepare(connection) {
      connection.setOnConnect(() => void calls.push('own connect'))
      connection.setOnRequest(({ reader }) => void calls.push(`own ${reader.readString(reader.length)}`))
      connection.setOnDisconnect(() => void calls.push('own disconnect'))
    },
  })
  const socket = await connect(port)
  socket.end('x')
  await until(() => calls.length === 3)
  t.deepEqual(calls, ['own connect', 'own x', 'own disconnect'])
})

test('connections that came before serve() are served', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const socket = await connect(listener.address().port)
  await send(socket, 'patient')
  const loop = createEventLoop(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  const served = loop.serve(listener)
  t.is(String(await take(socket, 7)), 'patient')
  socket.destroy()
  await loop.shutdown()
  await served
})
