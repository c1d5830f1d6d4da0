// Semantics 3: a peer that has finished sending still gets its answer, and what ends when.

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { connect, deferred, outcome, send, serve, settled, take, until } from './fixtures/peer.mjs'

function echo({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

for (const size of [1, 1 << 16, 8 << 20]) {
  test(`a client that sends ${size} bytes, ends and then reads gets them all back`, async (t) => {
    const { port, loop, stop } = serve(echo)
    t.teardown(stop)
    const sent = randomBytes(size)
    const socket = await connect(port)
    socket.end(sent)
    const { bytes, code } = await outcome(socket)
    t.true(bytes.equals(sent))
    t.is(code, '')
    await until(() => loop.connections === 0)
  })
}

test('a client that has ended gets the answer of a handler that takes its time', async (t) => {
  const { port, stop } = serve(async ({ reader, writer }) => {
    const question = reader.readString(reader.length)
    await until(() => reader.ended)
    await settled()
    writer.writeString(`${question}: 42`)
    writer.flush()
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('x')
  t.is(String((await outcome(socket)).bytes), 'x: 42')
})

test('a client that has ended gets an answer larger than what its kernel takes', async (t) => {
  const size = 20_000_000
  const { port, stop } = serve(async (connection) => {
    const { reader, writer } = connection
    reader.skip(reader.length)
    for (let left = size; left > 0; left -= 100_000) {
      writer.writeBinary(Buffer.alloc(100_000, 7))
      if (!writer.flush()) await connection.flushed()
    }
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('go')
  await settled()
  const { bytes } = await outcome(socket)
  t.is(bytes.length, size)
  t.true(bytes.equals(Buffer.alloc(size, 7)))
})

test('a half-closed connection is not active, not readable, and writable', async (t) => {
  const seen = deferred()
  const { port, stop } = serve(async (connection) => {
    const { reader } = connection
    await until(() => reader.ended)
    const { readable, writable } = connection
    const before = {
      active: connection.isActive(),
      readable,
      writable,
      length: reader.length,
      ended: reader.ended,
    }
    reader.skip(reader.length)
    seen.resolve([before, connection.readable])
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('abc')
  const [before, readable] = await seen.promise
  t.deepEqual(before, { active: false, readable: true, writable: true, length: 3, ended: true })
  t.false(readable)
  t.is((await outcome(socket)).code, '')
})

test.serial('isActive() tells of the FIN in the midst of a synchronous handler', async (t) => {
  const seen = deferred()
  const { port, stop } = serve((connection) => {
    const before = connection.isActive()
    socket.destroy()
    for (const end = Date.now() + 10_000; connection.isActive() && Date.now() < end;);
    seen.resolve([before, connection.isActive()])
  })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  t.deepEqual(await seen.promise, [true, false])
})

test('without allowHalfOpen a connection closes by itself when the peer has ended', async (t) => {
  let connection
  const { port, stop } = serve(echo, { onPrepare: (prepared) => void (connection = prepared) })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end()
  t.deepEqual(await outcome(socket), { bytes: Buffer.alloc(0), code: '' })
  await connection.closed
  t.false(connection.writable)
})

test('with allowHalfOpen it stays open until we end, too', async (t) => {
  let connection
  const { port, loop, stop } = serve(echo, {
    allowHalfOpen: true,
    onPrepare: (prepared) => void (connection = prepared),
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('ask')
  t.is(String(await take(socket, 3)), 'ask')
  await until(() => connection?.reader.ended)
  await settled()
  t.is(loop.connections, 1)
  t.true(connection.writable)
  connection.writer.writeString('and more')
  t.true(connection.writer.flush())
  connection.end()
  t.is(String((await outcome(socket)).bytes), 'and more')
  await connection.closed
  t.is(loop.connections, 0)
})

test('with allowHalfOpen a reset behind the FIN closes the connection, although nothing is sent', async (t) => {
  let connection
  const { port, loop, stop } = serve(echo, {
    allowHalfOpen: true,
    onPrepare: (prepared) => void (connection = prepared),
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end()
  await once(socket, 'finish')
  await until(() => connection?.reader.ended)
  await settled()
  t.is(loop.connections, 1)
  socket.resetAndDestroy()
  await connection.closed
  t.is(loop.connections, 0)
})

test('after our end() the peer may go on sending, and is read until its FIN', async (t) => {
  let bytes = 0
  let closed = 0
  const { port, stop } = serve(
    (connection) => {
      connection.end()
      bytes += connection.reader.length
      connection.reader.skip(connection.reader.length)
    },
    { onDisconnect: () => void closed++ },
  )
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  t.deepEqual(await outcome(socket), { bytes: Buffer.alloc(0), code: '' })
  for (let i = 0; i < 10; i++) {
    await send(socket, Buffer.alloc(100_000))
    await setImmediate()
  }
  await settled()
  t.is(closed, 0)
  socket.end()
  await until(() => closed === 1)
  t.is(bytes, 1_000_001)
})

test('end() sends what was flushed before its FIN', async (t) => {
  const size = 5_000_000
  const { port, stop } = serve((connection) => {
    connection.reader.skip(connection.reader.length)
    connection.writer.writeBinary(Buffer.alloc(size, 1))
    connection.writer.flush()
    connection.end()
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.write('x')
  const { bytes } = await outcome(socket)
  t.is(bytes.length, size)
  socket.destroy()
})

test('a connection without onRequest waits for its bytes to be read after a FIN', async (t) => {
  let connection
  const { port, loop, stop } = serve(undefined, { onConnect: (connected) => void (connection = connected) })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end('keep me')
  await until(() => connection?.reader.ended)
  await settled()
  t.is(loop.connections, 1)
  t.is(connection.reader.readString(7), 'keep me')
  connection.writer.writeString('kept')
  connection.writer.flush()
  connection.reader.release()
  t.is(String((await outcome(socket)).bytes), 'kept')
  await connection.closed
})
