// Semantics 2: when onRequest of a connection is called.

import test from 'ava'
import { setImmediate } from 'node:timers/promises'
import { connect, deferred, send, serve, settled, take, until } from './fixtures/peer.mjs'

/** Enough turns of everything for a handler that spins to be caught. */
async function quiet() {
  for (let i = 0; i < 20; i++) await setImmediate()
  await settled()
}

test('onRequest of one connection never overlaps itself', async (t) => {
  let running = 0
  let most = 0
  let bytes = 0
  const { port, stop } = serve(async ({ reader }) => {
    most = Math.max(most, ++running)
    bytes += reader.length
    reader.skip(reader.length)
    await setImmediate()
    running--
  })
  t.teardown(stop)
  const socket = await connect(port)
  for (let i = 0; i < 200; i++) {
    await send(socket, 'x')
    if (i % 3 === 0) await setImmediate()
  }
  await until(() => bytes === 200)
  t.is(most, 1)
  socket.destroy()
})

test('a promise keeps its connection busy until it settles, and no other', async (t) => {
  const pending = deferred()
  const calls = []
  const { port, stop } = serve(({ reader }) => {
    const text = reader.readString(reader.length)
    calls.push(text)
    return text === 'w' ? pending.promise : undefined
  })
  t.teardown(stop)
  const one = await connect(port)
  const two = await connect(port)
  await send(one, 'w')
  await until(() => calls.length === 1)
  await send(one, 'l')
  await send(two, 'o')
  await until(() => calls.length === 2)
  await settled()
  t.deepEqual(calls, ['w', 'o'])
  pending.resolve()
  await until(() => calls.length === 3)
  t.is(calls[2], 'l')
  one.destroy()
  two.destroy()
})

test('any thenable counts as a promise', async (t) => {
  const calls = []
  let settle
  const { port, stop } = serve(({ reader }) => {
    calls.push(reader.readString(1))
    return { then: (resolve) => void (settle = resolve) }
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'ab')
  await until(() => settle !== undefined)
  await quiet()
  t.deepEqual(calls, ['a'])
  settle()
  await until(() => calls.length === 2)
  t.deepEqual(calls, ['a', 'b'])
  socket.destroy()
})

test('a handler that takes one message a call is called until none is left', async (t) => {
  const calls = []
  const { port, stop } = serve(({ reader }) => void calls.push(reader.readString(2)))
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'aabbccdd')
  await until(() => calls.length === 4)
  await quiet()
  t.deepEqual(calls, ['aa', 'bb', 'cc', 'dd'])
  socket.destroy()
})

test('a handler that consumes nothing is called again only when new bytes came', async (t) => {
  const lengths = []
  const { port, stop } = serve(({ reader }) => void lengths.push(reader.length))
  t.teardown(stop)
  const socket = await connect(port)
  for (let i = 1; i <= 5; i++) {
    await send(socket, 'x')
    await until(() => lengths.length === i)
    await quiet()
  }
  t.deepEqual(lengths, [1, 2, 3, 4, 5])
  socket.destroy()
})

test('an async handler that consumes nothing does not spin either', async (t) => {
  let calls = 0
  const { port, stop } = serve(async ({ reader }) => {
    calls++
    reader.peek(1)
    await setImmediate()
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => calls === 1)
  await quiet()
  t.is(calls, 1)
  socket.destroy()
})

test('a handler that consumes all is not called again without news', async (t) => {
  let calls = 0
  const { port, stop } = serve(({ reader }) => {
    calls++
    reader.skip(reader.length)
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => calls === 1)
  await quiet()
  t.is(calls, 1)
  socket.destroy()
})

test('bytes that came while a handler was pending are news for the next call', async (t) => {
  const pending = deferred()
  const calls = []
  const { port, stop } = serve(async ({ reader }) => {
    calls.push(reader.length)
    await pending.promise
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'a')
  await until(() => calls.length === 1)
  await send(socket, 'b')
  await settled()
  pending.resolve()
  await until(() => calls.length === 2)
  await quiet()
  t.deepEqual(calls, [1, 2])
  socket.destroy()
})

test('a handler finds messages however they are cut, by returning until enough is here', async (t) => {
  const messages = ['', 'a', 'bc', 'x'.repeat(1000)]
  const stream = Buffer.concat(
    messages.map((text) => Buffer.from([text.length >> 8, text.length & 255, ...Buffer.from(text)])),
  )
  for (const cut of [1, 2, 3, 7, 500]) {
    const found = []
    const { port, stop } = serve(({ reader }) => {
      while (reader.length >= 2) {
        const size = reader.peek(2).readUInt16BE()
        if (reader.length < 2 + size) return
        reader.skip(2)
        found.push(reader.readString(size))
      }
    })
    const socket = await connect(port)
    socket.setNoDelay(true)
    for (let at = 0; at < stream.length; at += cut) await send(socket, stream.subarray(at, at + cut))
    await until(() => found.length === messages.length)
    t.deepEqual(found, messages)
    socket.destroy()
    await stop()
  }
})

test('a FIN is news once: what the last call leaves is dropped, and the connection ends', async (t) => {
  const calls = []
  let closed = 0
  const { port, stop } = serve(({ reader }) => void calls.push(`${reader.length} ${reader.ended}`), {
    onDisconnect: () => void closed++,
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => calls.length === 1)
  socket.end()
  await until(() => closed === 1)
  t.deepEqual(calls, ['1 false', '1 true'])
})

test('a FIN without unread bytes is no request', async (t) => {
  let calls = 0
  let closed = 0
  const { port, stop } = serve(({ reader }) => (calls++, reader.skip(reader.length)), {
    onDisconnect: () => void closed++,
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await until(() => calls === 1)
  socket.end()
  await until(() => closed === 1)
  t.is(calls, 1)
})

test('after a FIN a handler that takes one message a call still gets them all', async (t) => {
  const calls = []
  let closed = 0
  const { port, stop } = serve(({ reader }) => void calls.push(reader.readString(1)), {
    onDisconnect: () => void closed++,
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('abcde')
  await until(() => closed === 1)
  t.deepEqual(calls, ['a', 'b', 'c', 'd', 'e'])
})

test('an async handler that takes one message a call still gets them all after a FIN', async (t) => {
  const calls = []
  let closed = 0
  const { port, stop } = serve(
    async ({ reader }) => {
      await setImmediate()
      calls.push(reader.readString(1))
    },
    { onDisconnect: () => void closed++ },
  )
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('abcde')
  await until(() => closed === 1)
  t.deepEqual(calls, ['a', 'b', 'c', 'd', 'e'])
})

test('reader and writer work outside of handlers too, and what is flushed there goes out', async (t) => {
  let connection
  const { port, stop } = serve(undefined, { onConnect: (connected) => void (connection = connected) })
  t.teardown(stop)
  const socket = await connect(port)
  await until(() => connection !== undefined)
  connection.writer.writeString('unasked')
  connection.writer.flush()
  t.is(String(await take(socket, 7)), 'unasked')
  await send(socket, 'answer')
  await connection.reader.waitRead(6)
  t.is(connection.reader.readString(6), 'answer')
  socket.destroy()
})

test('unflushed bytes are kept at the end of a handler and go with the next flush()', async (t) => {
  const { port, stop } = serve(({ reader, writer }) => {
    writer.append(reader)
    if (writer.mallocLength >= 4) writer.flush()
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'ab')
  await settled()
  t.is(socket.read(), null)
  await send(socket, 'cd')
  t.is(String(await take(socket, 4)), 'abcd')
  socket.destroy()
})
