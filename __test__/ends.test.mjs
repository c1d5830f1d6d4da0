// Semantics 5: what a connection answers after the peer has ended it, after we have, and after a limit has.

import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import {
  connect,
  deferred,
  descriptors,
  leaksNothing,
  outcome,
  pair,
  send,
  serve,
  settled,
  until,
} from './fixtures/peer.mjs'

const bare = () => undefined

/** More than the kernel takes for a peer that reads nothing, and less than maxPendingBytes. */
const MUCH = 30_000_000

/** Output of which some stays pending as long as the peer does not read. */
function fill({ writer }) {
  writer.writeBinary(Buffer.alloc(MUCH, 1))
  return writer.flush()
}

const NUMBERS = ['Int8', 'UInt8', 'Int16BE', 'Int16LE', 'UInt16BE', 'UInt16LE', 'Int32BE', 'Int32LE']
  .concat(['UInt32BE', 'UInt32LE', 'FloatBE', 'FloatLE', 'DoubleBE', 'DoubleLE'])
  .map((name) => [name, 1])
  .concat(['BigInt64BE', 'BigInt64LE', 'BigUInt64BE', 'BigUInt64LE'].map((name) => [name, 1n]))

const WRITES = {
  malloc: [1],
  mallocAck: [0],
  writeString: ['x'],
  writeBinary: [Buffer.alloc(1)],
  writeByte: [1],
  writeDirect: [Buffer.alloc(1), 0],
  flush: [],
  ...Object.fromEntries(NUMBERS.map(([name, value]) => [`write${name}`, [value]])),
}

const READS = {
  next: [1],
  peek: [1],
  until: ['x'],
  skip: [1],
  readByte: [],
  readString: [1],
  readBinary: [1],
  slice: [1],
  release: [],
  ...Object.fromEntries(NUMBERS.map(([name]) => [`read${name}`, []])),
}

const SETTINGS = {
  setReadTimeout: [1000],
  setWriteTimeout: [1000],
  setIdleTimeout: [1000],
  setNoDelay: [true],
  setKeepAlive: [true],
  setUserTimeout: [1000],
  setOnRequest: [bare],
  setOnConnect: [bare],
  setOnDisconnect: [bare],
  addCloseCallback: [bare],
  pause: [],
  resume: [],
}

const WAITS = {
  waitRead: [1],
  waitUntil: ['x'],
}

/** Asserts that every method of the connection, its Reader and its Writer fails with `code`. */
async function allFail(t, connection, code) {
  const { reader, writer } = connection
  for (const [object, methods] of [
    [connection, SETTINGS],
    [reader, READS],
    [writer, WRITES],
  ]) {
    for (const [name, args] of Object.entries(methods)) {
      t.throws(() => object[name](...args), { code }, name)
    }
  }
  for (const [name, args] of Object.entries(WAITS)) {
    await t.throwsAsync(reader[name](...args), { code }, name)
  }
  await t.throwsAsync(connection.flushed(), { code })
  t.throws(() => writer.append(reader), { code })
  for (const name of ['end', 'close', 'reset']) t.notThrows(() => connection[name](), name)
  t.false(connection.isActive())
  t.false(connection.readable)
  t.false(connection.writable)
}

for (const own of ['close', 'reset']) {
  for (const when of ['at once', 'and when it has ended']) {
    test(`after our ${own}() every method fails with CONN_CLOSED ${when}`, async (t) => {
      const { connection, peer } = await pair(t)
      await send(peer, 'unread bytes')
      await connection.reader.waitRead(12)
      connection[own]()
      if (when !== 'at once') await connection.closed
      await allFail(t, connection, 'ERR_NETPOLL_CONN_CLOSED')
    })
  }
}

test('after our close(), a Reader and a Writer that are asked for late fail as well', async (t) => {
  const seen = deferred()
  const { port, stop } = serve(bare, {
    onPrepare(connection) {
      connection.close()
      seen.resolve(connection)
    },
  })
  t.teardown(stop)
  const socket = await connect(port)
  await allFail(t, await seen.promise, 'ERR_NETPOLL_CONN_CLOSED')
  socket.destroy()
})

const LIMITS = {
  ERR_NETPOLL_OUTPUT_LIMIT: [
    { maxPendingBytes: 1000 },
    ({ writer }) => {
      try {
        writer.writeString('x'.repeat(1001))
      } catch {
        // What it throws is another test's.
      }
    },
  ],
  ERR_NETPOLL_INPUT_LIMIT: [
    { maxReadBytes: 1000 },
    ({ reader }, peer) => {
      reader.waitUntil('\n').catch(bare)
      peer.write('x'.repeat(2000))
    },
  ],
  ERR_NETPOLL_IDLE_TIMEOUT: [{ idleTimeout: 1 }, bare],
  ERR_NETPOLL_WRITE_TIMEOUT: [{ writeTimeout: 10 }, fill],
  ERR_NETPOLL_READ_TIMEOUT: [
    { readTimeout: 10 },
    (connection, peer) => {
      connection.setOnRequest(bare)
      peer.write('left')
    },
  ],
}

function isRefused(connection) {
  try {
    return void connection.setNoDelay(true)
  } catch {
    return true
  }
}

for (const [code, [options, act]] of Object.entries(LIMITS)) {
  test(`after ${code} every method fails with it`, async (t) => {
    const { connection, peer } = await pair(t, options)
    act(connection, peer)
    await until(() => isRefused(connection))
    await allFail(t, connection, code)
    peer.resume()
    await connection.closed
    await allFail(t, connection, code)
  })
}

test("after the peer's RST writes are dropped, flush() is false, and what is here can be read", async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  await send(peer, 'still here')
  await reader.waitRead(10)
  peer.resetAndDestroy()
  await connection.closed
  for (const [name, args] of Object.entries(WRITES)) {
    if (name !== 'flush') t.notThrows(() => writer[name](...args), name)
  }
  t.false(writer.flush())
  t.is(writer.mallocLength, 0)
  t.is(reader.length, 10)
  t.true(reader.ended)
  t.is(reader.readString(10), 'still here')
  const error = await t.throwsAsync(reader.waitRead(1), { code: 'ECONNRESET' })
  t.like(error, { name: 'NetpollError', errno: -104, syscall: 'read' })
  await t.throwsAsync(reader.waitUntil('x'), { code: 'ECONNRESET' })
  await t.throwsAsync(connection.flushed(), { code: 'ECONNRESET' })
  for (const [name, args] of Object.entries(SETTINGS)) t.notThrows(() => connection[name](...args), name)
  t.notThrows(() => reader.release())
})

test('EPIPE is told as of a write, as in net', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'socket')
  let accepted
  const loop = createEventLoop(undefined, {
    onConnect(connection) {
      connection.pause()
      accepted.resolve(connection)
    },
  })
  const served = loop.serve(createListener('unix', path))
  t.teardown(async () => {
    await loop.shutdown({ timeout: 0 })
    await served
  })
  const attempt = async () => {
    accepted = deferred()
    const peer = net.connect(path)
    const connection = await accepted.promise
    await settled()
    peer.destroy()
    connection.writer.writeString('hello?')
    connection.writer.flush()
    const failed = connection.flushed().catch((error) => error)
    connection.resume()
    await connection.closed
    return failed
  }
  let error
  // The poll may be faster, and find the end before it sends.
  do error = await attempt()
  while (error?.code === 'ERR_NETPOLL_EOF')
  t.like(error, { code: 'EPIPE', message: 'write EPIPE: broken pipe', errno: -32, syscall: 'write' })
})

test("after the peer's FIN was answered the cause is EOF", async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  peer.end('rest')
  await reader.waitRead(4)
  await t.throwsAsync(reader.waitRead(5), { code: 'ERR_NETPOLL_EOF' })
  t.is(reader.readString(4), 'rest')
  reader.release()
  await connection.closed
  writer.writeString('too late')
  t.false(writer.flush())
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_EOF' })
  await t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_EOF' })
  t.is(connection.bytesRead, 4)
  t.is(connection.bytesWritten, 0)
})

test('however much is written after the end is dropped, and no limit is passed', async (t) => {
  const { connection, writer, peer } = await pair(t, { maxPendingBytes: 1000 })
  peer.resetAndDestroy()
  await connection.closed
  for (let i = 0; i < 100; i++) {
    writer.writeBinary(Buffer.alloc(900))
    t.false(writer.flush())
  }
  await t.throwsAsync(connection.flushed(), { code: 'ECONNRESET' })
})

test.serial(
  'output that was dropped in the midst of a handler fails flushed(), so that no loop goes on for ever',
  async (t) => {
    const failed = deferred()
    const { port, stop } = serve(
      async (connection) => {
        connection.reader.skip(1)
        peer.resetAndDestroy()
        const end = Date.now() + 10_000
        while (connection.writable && Date.now() < end); // The poll sees it while this thread is busy.
        connection.writer.writeString('dropped')
        t.false(connection.writer.flush())
        await connection.flushed()
      },
      { onError: failed.resolve },
    )
    t.teardown(stop)
    const peer = await connect(port)
    await send(peer, 'x')
    t.is((await failed.promise).code, 'ECONNRESET')
  },
)

test.serial(
  'what a handler writes after the end and does not flush is given back when it has ended',
  async (t) => {
    await leaksNothing(async () => {
      const [entered, leave] = [deferred(), deferred()]
      const { port, loop, stop } = serve(async (connection) => {
        entered.resolve(connection)
        await leave.promise
        for (let i = 0; i < 64; i++) connection.writer.writeBinary(Buffer.alloc(8 << 10))
      })
      const peer = await connect(port)
      await send(peer, 'x')
      const connection = await entered.promise
      peer.resetAndDestroy()
      await until(() => loop.connections === 0)
      leave.resolve()
      await connection.closed
      await stop()
    })
    t.pass()
  },
)

for (const [when, ask] of [
  ['before', ({ writer }) => writer],
  ['after', () => undefined],
]) {
  const title = `what is written to a Writer that was made ${when} all has ended, and never flushed, is given back`
  test.serial(title, async (t) => {
    await leaksNothing(async () => {
      const accepted = deferred()
      const { port, stop } = serve(undefined, { onConnect: (each) => void accepted.resolve(each) })
      const peer = await connect(port)
      const connection = await accepted.promise
      ask(connection)
      peer.resetAndDestroy()
      await connection.closed
      const { writer } = connection
      for (let i = 0; i < 64; i++) writer.writeBinary(Buffer.alloc(8 << 10))
      t.is(writer.mallocLength, 64 * (8 << 10))
      await setImmediate()
      t.is(writer.mallocLength, 0)
      // Whoever writes does not know.
      writer.mallocAck(100)
      writer.writeDirect(Buffer.alloc(10), 50)
      t.false(writer.flush())
      writer.writeUInt8(1)
      await stop()
    })
  })
}

test('close() sends all that was flushed before it, then FIN; what was not flushed is dropped', async (t) => {
  const { connection, writer, peer } = await pair(t)
  fill(connection)
  writer.writeString('unflushed')
  connection.close()
  const { bytes, code } = await outcome(peer)
  t.is(bytes.length, MUCH)
  t.is(code, '')
  await connection.closed
  t.is(connection.bytesWritten, MUCH)
})

test('close() with unread input loses nothing of the output', async (t) => {
  const { connection, peer } = await pair(t)
  await send(peer, Buffer.alloc(100_000))
  await until(() => connection.bytesRead > 0)
  fill(connection)
  connection.close()
  const { bytes, code } = await outcome(peer)
  t.is(bytes.length, MUCH)
  t.is(code, '')
})

test.serial("close() frees the descriptor without waiting for the peer's FIN", async (t) => {
  const { connection } = await pair(t)
  const open = descriptors()
  connection.close()
  await connection.closed
  t.is(descriptors(), open - 1)
})

test('close() rejects the pending waits', async (t) => {
  const { connection, reader } = await pair(t)
  const wait = reader.waitRead(1)
  connection.close()
  await t.throwsAsync(wait, { code: 'ERR_NETPOLL_CONN_CLOSED' })
})

test('close(), end() and reset() can be called any number of times, in any order', async (t) => {
  const names = ['close', 'end', 'reset']
  for (const first of names) {
    for (const second of names) {
      const { connection, peer } = await pair(t)
      for (const name of [first, first, second, second, 'reset']) t.notThrows(() => connection[name]())
      await connection.closed
      for (const name of names) t.notThrows(() => connection[name]())
      peer.destroy()
    }
  }
})

test('reset() is a RST for the peer', async (t) => {
  const { connection, peer } = await pair(t)
  const ended = outcome(peer)
  connection.reset()
  t.is((await ended).code, 'ECONNRESET')
})

for (const first of ['reset', 'close']) {
  test(`reset() after ${first}() drops what is pending`, async (t) => {
    const { connection, peer } = await pair(t)
    fill(connection)
    connection[first]()
    await settled()
    connection.reset()
    await connection.closed
    t.true((await outcome(peer)).bytes.length < MUCH)
    t.true(connection.bytesWritten < MUCH)
  })
}

test('after end() writes throw CONN_CLOSED, and reading goes on', async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  writer.writeString('last')
  writer.flush()
  writer.writeString('unflushed')
  connection.end()
  for (const [name, args] of Object.entries(WRITES)) {
    t.throws(() => writer[name](...args), { code: 'ERR_NETPOLL_CONN_CLOSED' }, name)
  }
  await connection.flushed()
  t.is(String((await outcome(peer)).bytes), 'last')
  t.false(connection.writable)
  t.true(connection.readable)
  await send(peer, 'more')
  await reader.waitRead(4)
  t.is(reader.readString(4), 'more')
  peer.end()
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_EOF' })
  await connection.closed
})

test('a Writer that is asked for after end() fails as well', async (t) => {
  const { port, stop } = serve(bare, { onConnect: (accepted) => void seen.resolve(accepted) })
  t.teardown(stop)
  const seen = deferred()
  const socket = await connect(port)
  const connection = await seen.promise
  connection.end()
  t.throws(() => connection.writer.writeString('x'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  socket.destroy()
})

/** By name: how a connection with a pending wait and pending output ends, and what fails them. */
const ENDS = {
  "the peer's RST": [(connection, peer) => peer.resetAndDestroy(), ['ECONNRESET', 'ECONNRESET']],
  'reset()': [(connection) => connection.reset(), ['ERR_NETPOLL_CONN_CLOSED', 'ERR_NETPOLL_CONN_CLOSED']],
  'close(), and the peer reads': [
    (connection, peer) => {
      connection.close()
      peer.resume()
    },
    ['ERR_NETPOLL_CONN_CLOSED', 'resolved'],
  ],
  'close(), and the peer resets': [
    (connection, peer) => {
      connection.close()
      setTimeout(() => peer.resetAndDestroy(), 10)
    },
    ['ERR_NETPOLL_CONN_CLOSED', 'ERR_NETPOLL_CONN_CLOSED'],
  ],
  'close(), and reset()': [
    (connection) => {
      connection.close()
      connection.reset()
    },
    ['ERR_NETPOLL_CONN_CLOSED', 'ERR_NETPOLL_CONN_CLOSED'],
  ],
  'the write timeout': [
    (connection) => connection.setWriteTimeout(1),
    ['ERR_NETPOLL_WRITE_TIMEOUT', 'ERR_NETPOLL_WRITE_TIMEOUT'],
  ],
  'close(), and the write timeout': [
    (connection) => {
      connection.setWriteTimeout(1)
      connection.close()
    },
    ['ERR_NETPOLL_CONN_CLOSED', 'ERR_NETPOLL_WRITE_TIMEOUT'],
  ],
  'the shutdown of its loop': [
    (connection, peer, server) => server.loop.shutdown({ timeout: 1 }).catch(bare),
    ['ERR_NETPOLL_CONN_CLOSED', 'ERR_NETPOLL_CONN_CLOSED'],
  ],
}

for (const [name, [end, expected]] of Object.entries(ENDS)) {
  test(`waits, flushed() and closed settle after ${name}`, async (t) => {
    const { connection, reader, peer, server } = await pair(t)
    const settlings = [reader.waitRead(1)]
    t.false(fill(connection))
    settlings.push(connection.flushed())
    const codes = settlings.map((promise) =>
      promise.then(
        () => 'resolved',
        (error) => error.code,
      ),
    )
    end(connection, peer, server)
    t.deepEqual(await Promise.all(codes), expected)
    await t.notThrowsAsync(connection.closed)
    await t.notThrowsAsync(connection.closed)
  })
}

test('several flushed() resolve in the order of their calls', async (t) => {
  const { connection, peer } = await pair(t)
  const order = []
  const all = []
  for (let i = 0; i < 5; i++) {
    connection.writer.writeBinary(Buffer.alloc(5_000_000))
    connection.writer.flush()
    all.push(connection.flushed().then(() => order.push([i, connection.bytesWritten >= (i + 1) * 5_000_000])))
  }
  peer.resume()
  await Promise.all(all)
  t.deepEqual(
    order,
    [0, 1, 2, 3, 4].map((i) => [i, true]),
  )
})

test('iteration gives copies of what comes, and ends with the FIN', async (t) => {
  const { connection, peer } = await pair(t)
  const sent = Buffer.alloc(1_000_000, 'abc')
  peer.end(sent)
  const chunks = []
  for await (const chunk of connection) chunks.push(chunk)
  t.true(Buffer.concat(chunks).equals(sent))
  await connection.closed
})

async function iterate(connection) {
  for await (const chunk of connection) void chunk
  return 'ended'
}

test('iteration ends with our own close(), and rejects with the RST of the peer', async (t) => {
  const one = await pair(t)
  const first = iterate(one.connection)
  await settled()
  one.connection.close()
  t.is(await first, 'ended')
  const two = await pair(t)
  const second = iterate(two.connection)
  await settled()
  two.peer.resetAndDestroy()
  await t.throwsAsync(second, { code: 'ECONNRESET' })
})

test('iteration beside an onRequest rejects with INVALID_STATE', async (t) => {
  const { port, stop } = serve(bare, { onConnect: (connection) => void seen.resolve(connection) })
  t.teardown(stop)
  const seen = deferred()
  const socket = await connect(port)
  const connection = await seen.promise
  await t.throwsAsync(connection[Symbol.asyncIterator]().next(), { code: 'ERR_NETPOLL_INVALID_STATE' })
  socket.destroy()
})

for (const own of ['close', 'reset', 'end']) {
  for (const callback of [
    'onPrepare',
    'onConnect',
    'onRequest',
    'onDisconnect',
    'closeCallback',
    'onError',
  ]) {
    test.serial(`${own}() inside of ${callback} ends the connection and leaves nothing behind`, async (t) => {
      const calls = []
      const end = (name, connection) => {
        calls.push(name)
        if (callback === name) connection[own]()
      }
      const { port, loop, stop } = serve(
        (connection) => {
          end('onRequest', connection)
          if (callback === 'onError') throw new Error('on purpose')
        },
        {
          onPrepare(connection) {
            connection.addCloseCallback(() => end('closeCallback', connection))
            end('onPrepare', connection)
          },
          onConnect: (connection) => end('onConnect', connection),
          onDisconnect: (connection) => end('onDisconnect', connection),
          onError: (error, connection) => end('onError', connection),
        },
      )
      t.teardown(stop)
      await leaksNothing(async () => {
        calls.length = 0
        // A RST can come before the connect has been seen to succeed.
        const socket = await connect(port).catch(() => undefined)
        socket?.end('x')
        await until(() => calls.includes('closeCallback'))
        socket?.destroy()
        await until(() => loop.connections === 0)
      })
      t.is(calls.filter((name) => name === 'closeCallback').length, 1)
      t.true(calls.indexOf('onRequest') < calls.indexOf('closeCallback'))
    })
  }
}

test.serial('views stay what they are after close() until their handler has ended', async (t) => {
  const read = deferred()
  const size = 100_000
  const { port, stop } = serve(
    async (connection) => {
      const { reader, writer } = connection
      if (reader.length < size) return
      if (reader.peek(1)[0] !== 0x76) {
        writer.append(reader)
        writer.flush()
        return
      }
      const view = reader.next(size)
      connection.close()
      await overwritten()
      read.resolve(view.equals(Buffer.alloc(size, 'v')))
    },
    { onError: read.reject },
  )
  t.teardown(stop)
  /** Other bytes go through all blocks that are free. */
  const overwritten = async () => {
    const other = await connect(port)
    const received = outcome(other)
    other.end(Buffer.alloc(200 * size, 'o'))
    await received
  }
  const socket = await connect(port)
  await send(socket, Buffer.alloc(size, 'v'))
  t.true(await read.promise)
  socket.destroy()
})
