// ShardQueue: what many producers add to one connection, against the bytes that its peer receives.

import test from 'ava'
import { randomBytes } from 'node:crypto'
import { closeSync } from 'node:fs'
import { ShardQueue } from 'netpoll/mux'
import { dialConnection, LinkBuffer, setNumLoops, stats } from '../index.js'
import {
  connect,
  deferred,
  leaksNothing,
  outcome,
  pair,
  serve,
  settled,
  take,
  until,
} from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const KIB = 1 << 10
const MIB = 1 << 20

/** A pair with a queue on its connection; `flushes` counts those of the connection's Writer. */
async function queued(t, options) {
  const both = await pair(t, options)
  const counted = { ...both, queue: new ShardQueue(both.connection), flushes: 0 }
  const { flush } = both.writer
  both.writer.flush = function () {
    counted.flushes++
    return flush.call(this)
  }
  return counted
}

/** The same, with a flush() that was false: the peer reads nothing, and the kernel has not taken `filling`. */
async function blocked(t, options) {
  const both = await queued(t, { maxPendingBytes: 64 * MIB, ...options })
  const filling = randomBytes(16 * MIB)
  both.queue.add(filling)
  await until(() => both.flushes === 1)
  return { ...both, filling, flushesOf: () => both.flushes }
}

/** What the peer receives when the queue has been closed, and then the connection. */
async function sent({ queue, connection, peer }) {
  const received = outcome(peer)
  await queue.close()
  connection.end()
  return (await received).bytes
}

const tick = () => new Promise(process.nextTick)

// ---- what is sent, and when

test('what is added in the same tick goes with one flush, in order', async (t) => {
  const both = await queued(t)
  for (let i = 0; i < 1000; i++) both.queue.add(`${i},`)
  t.is(both.flushes, 0, 'not before the tick is over')
  await tick()
  t.is(both.flushes, 1)
  t.is(String(await sent(both)), Array.from({ length: 1000 }, (_, i) => `${i},`).join(''))
  t.is(both.flushes, 1, 'close() flushes only what waits')
})

test('what one producer adds alone goes out in the same tick, without a wait for others', async (t) => {
  const both = await queued(t)
  for (let i = 1; i <= 3; i++) {
    both.queue.add('ping')
    t.is(String(await take(both.peer, 4)), 'ping')
    t.is(both.flushes, i)
  }
})

test('producers that wake up from promises in the same turn share a flush', async (t) => {
  const both = await queued(t)
  const start = deferred()
  const producers = Array.from({ length: 50 }, async (_, i) => {
    await start.promise
    both.queue.add(`a${i};`)
    await Promise.resolve()
    both.queue.add(`b${i};`)
  })
  start.resolve()
  await Promise.all(producers)
  const items = String(await sent(both)).split(';')
  t.is(items.length, 101)
  t.is(both.flushes, 1)
})

test('each kind of item arrives as it was when it was added', async (t) => {
  const both = await queued(t)
  const { queue } = both
  const other = await pair(t)
  const large = randomBytes(100 * KIB)
  const small = Buffer.from('small')
  other.writer.writeString('written')
  other.peer.write('read')
  await until(() => other.reader.length === 4)

  queue.add(small, 'täxt', large, other.writer, other.reader, new Uint8Array([33]), '', Buffer.alloc(0))
  small.fill(0)
  t.is(other.writer.mallocLength, 0, 'a Writer is emptied')
  t.is(other.reader.length, 0, 'a Reader is emptied')
  const expected = [Buffer.from('smalltäxt'), large, Buffer.from('writtenread!')]
  t.deepEqual(await sent(both), Buffer.concat(expected))
})

test('a LinkBuffer is emptied in add(), without a copy, also of what it has not flushed', async (t) => {
  const both = await queued(t)
  const { queue } = both
  const large = randomBytes(100 * KIB)
  const buffer = new LinkBuffer()
  buffer.writeString('flushed,')
  buffer.writeBinary(large)
  buffer.flush()
  buffer.writeString('unflushed,')
  queue.add(buffer)
  t.deepEqual([buffer.length, buffer.mallocLength], [0, 0])
  buffer.writeString('again,')
  queue.add(
    () => buffer,
    () => new LinkBuffer(),
  )
  buffer.writeString('more,')
  const expected = [Buffer.from('flushed,'), large, Buffer.from('unflushed,again,more,')]
  t.deepEqual(await sent(both), Buffer.concat(expected))
  buffer.writeString('it can be filled once more')
  buffer.close()
})

test('a function is called when its turn comes, once, and what it returns takes its place', async (t) => {
  const both = await queued(t)
  const { queue } = both
  const other = await pair(t)
  const called = []
  const getter = (name, result) => () => {
    called.push(name)
    return result
  }
  queue.add('a', getter(1, 'b'), getter(2, undefined), 'c')
  other.writer.writeString('d')
  queue.add(
    getter(3, other.writer),
    getter(4, Buffer.from('e')),
    () => {
      queue.add('later', () => '!')
      return 'f'
    },
    'g',
  )
  t.deepEqual(called, [])
  await tick()
  t.deepEqual(called, [1, 2, 3, 4])
  t.is(String(await take(both.peer, 13)), 'abcdefglater!', 'what a function adds goes behind all others')
  t.is(String(await sent(both)), '')
  t.deepEqual(called, [1, 2, 3, 4])
})

test('items of many producers are never mixed', async (t) => {
  const both = await queued(t)
  const received = outcome(both.peer)
  const PRODUCERS = 64
  const EACH = 200
  await Promise.all(
    Array.from({ length: PRODUCERS }, async (_, producer) => {
      for (let number = 0; number < EACH; number++) {
        const body = randomBytes(Math.floor(Math.random() * 300) + (number % 50 === 0 ? 20 * KIB : 0))
        const head = Buffer.alloc(12)
        head.writeUInt32BE(body.length, 0)
        head.writeUInt32BE(producer, 4)
        head.writeUInt32BE(number, 8)
        if (number % 3 === 0) both.queue.add(() => Buffer.concat([head, body]))
        else both.queue.add(head, body)
        if (number % 7 === 0) await new Promise(setImmediate)
      }
    }),
  )
  await both.queue.close()
  both.connection.end()
  const { bytes } = await received
  const next = new Array(PRODUCERS).fill(0)
  let at = 0
  for (; at < bytes.length; at += 12 + bytes.readUInt32BE(at)) {
    t.is(bytes.readUInt32BE(at + 8), next[bytes.readUInt32BE(at + 4)]++)
  }
  t.is(at, bytes.length)
  t.deepEqual(next, new Array(PRODUCERS).fill(EACH))
})

test('between drains the Writer is free for those who flush before they await', async (t) => {
  const both = await queued(t)
  both.queue.add('queued')
  both.writer.writeString('directXX')
  both.writer.mallocAck(6)
  t.is(both.writer.mallocLength, 6)
  both.writer.flush()
  t.is(String(await sent(both)), 'directqueued')
})

// ---- backpressure

test.serial('while flush() is false items wait, and then go with one flush', async (t) => {
  const both = await blocked(t)
  const { queue, filling, peer } = both
  for (let i = 0; i < 500; i++) {
    queue.add(i % 2 ? 'x'.repeat(100) : () => 'y'.repeat(100))
    await tick()
  }
  await settled()
  t.is(both.flushesOf(), 1, 'none while output is pending')
  const all = sent(both)
  const received = await all
  t.is(both.flushesOf(), 2)
  t.is(received.length, filling.length + 500 * 100)
  t.true(received.subarray(0, filling.length).equals(filling))
  t.is(String(received.subarray(filling.length)), ('y'.repeat(100) + 'x'.repeat(100)).repeat(250))
  peer.destroy()
})

const floods = {
  Buffers: [1000, (queue) => queue.add(Buffer.alloc(1000))],
  'large Buffers': [100 * KIB, (queue) => queue.add(Buffer.alloc(100 * KIB))],
  strings: [1000, (queue) => queue.add('x'.repeat(1000))],
  functions: [64, (queue) => queue.add(() => 'x')],
  'functions between bytes': [564, (queue) => queue.add('x'.repeat(500), () => 'x')],
}
for (const [kind, [size, add]] of Object.entries(floods)) {
  test.serial(`${kind} beyond maxPendingBytes throw OUTPUT_LIMIT and reset the connection`, async (t) => {
    const { queue, connection, peer, filling } = await blocked(t, { maxPendingBytes: 17 * MIB })
    const received = outcome(peer)
    // The kernel may still be at it.
    const room = () => 17 * MIB - (filling.length - connection.bytesWritten)
    const least = room()
    let added = 0
    const error = t.throws(() => {
      for (; added < 17 * MIB; added += size) add(queue)
    })
    t.is(error.code, 'ERR_NETPOLL_OUTPUT_LIMIT')
    t.true(added > least - 2 * size && added <= room(), `${added} of ${least} to ${room()} bytes`)
    t.throws(() => add(queue), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
    await t.throwsAsync(queue.close(), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
    t.true((await received).bytes.length < filling.length, 'what was pending is dropped')
    await connection.closed
  })
}

/** What a function may give back: a Writer or LinkBuffer that holds 100 KiB. */
const made = {
  Writer: ({ writer }) => {
    writer.writeString('x'.repeat(100 * KIB))
    return writer
  },
  LinkBuffer: () => {
    const buffer = new LinkBuffer()
    buffer.writeString('x'.repeat(50 * KIB))
    buffer.flush()
    buffer.writeString('x'.repeat(50 * KIB))
    return buffer
  },
}
for (const [kind, make] of Object.entries(made)) {
  test.serial(`what functions make beyond maxPendingBytes ends with OUTPUT_LIMIT: ${kind}`, async (t) => {
    const other = await pair(t)
    let failed, calls, connected
    const server = serve(undefined, {
      maxPendingBytes: MIB,
      onConnect: (connection) => void connected.resolve(connection),
      onError: (error) => void failed.push(error.code),
    })
    await leaksNothing(async () => {
      failed = []
      calls = 0
      connected = deferred()
      const peer = await connect(server.port)
      const connection = await connected.promise
      const queue = new ShardQueue(connection)
      for (let i = 0; i < 100; i++) {
        queue.add(() => {
          calls++
          return make(other)
        })
      }
      await t.throwsAsync(queue.close(), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
      await connection.closed
      peer.destroy()
    })
    t.is(calls, 11, 'none is called in vain')
    t.is(other.writer.mallocLength, 0, 'what the last one has made is dropped')
    t.deepEqual(failed, ['ERR_NETPOLL_OUTPUT_LIMIT'])
    await server.stop()
  })
}

// ---- the end

test('close() resolves when the kernel has taken all; the connection stays open', async (t) => {
  const both = await blocked(t)
  const { queue, connection, peer, filling } = both
  queue.add('last')
  let closed = false
  const closing = queue.close().then(() => (closed = true))
  await settled()
  t.false(closed)
  t.is((await take(peer, filling.length + 4)).length, filling.length + 4)
  await closing
  t.is(connection.bytesWritten, filling.length + 4)
  t.true(connection.isActive())
  both.writer.writeString('more')
  both.writer.flush()
  t.is(String(await take(peer, 4)), 'more')
})

test('close() of a queue that is empty resolves, and every call has the same outcome', async (t) => {
  const { queue } = await queued(t)
  const closing = queue.close()
  t.is(queue.close(), closing)
  await closing
  t.is(queue.close(), closing)
})

test('add() after close() throws CONN_CLOSED, and nothing of it is sent', async (t) => {
  const both = await queued(t)
  both.queue.add('in time')
  void both.queue.close()
  t.throws(() => both.queue.add('late'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  t.is(String(await sent(both)), 'in time')
})

for (const end of ['end', 'close', 'reset']) {
  test(`after the connection's ${end}() add() throws, and close() rejects with what waited`, async (t) => {
    const { queue, connection, peer } = await queued(t)
    const received = outcome(peer)
    queue.add('waits', () => 'too')
    connection[end]()
    t.throws(() => queue.add('late'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    await tick()
    await t.throwsAsync(queue.close(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    t.is(String((await received).bytes), '')
  })
}

test("after the connection's detach() what was flushed is sent, and what waited is dropped", async (t) => {
  const { queue, connection, peer } = await queued(t)
  queue.add('sent')
  await tick()
  queue.add('waits')
  const detached = connection.detach()
  t.throws(() => queue.add('late'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  await t.throwsAsync(queue.close(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  closeSync((await detached).fd)
  t.is(String((await outcome(peer)).bytes), 'sent')
})

const causes = { resetAndDestroy: 'ECONNRESET', destroy: /^(?:ERR_NETPOLL_EOF|ECONNRESET|EPIPE)$/ }
for (const [how, cause] of Object.entries(causes)) {
  test.serial(`when the peer ends by ${how}, close() rejects with the cause, and add() drops`, async (t) => {
    const { queue, connection, peer } = await blocked(t, { maxPendingBytes: 20 * MIB })
    queue.add('waits')
    const closing = t.throwsAsync(queue.close())
    const second = new ShardQueue(connection)
    second.add('is pending')
    await tick()
    second.add(Buffer.alloc(3 * MIB), () => 'waits')
    peer[how]()
    const { code } = await closing
    if (typeof cause === 'string') t.is(code, cause)
    else t.regex(code, cause)
    await connection.closed
    const large = Buffer.alloc(19 * MIB)
    t.notThrows(() => second.add('dropped', () => t.fail('called in vain'), large))
    await tick()
    t.is((await t.throwsAsync(second.close())).code, code)
  })
}

/** By when it ends: before the first drain, in the midst of one, or while items wait for the kernel. */
const leavings = {
  'before a drain': ({ connection }) => connection.close(),
  'in a drain': ({ connection, queue }) => {
    queue.add(() => void connection.reset())
    queue.add('x'.repeat(100 * KIB), () => 'y', 'x'.repeat(100 * KIB))
  },
  'by the peer': async ({ peer }) => {
    await tick()
    fill(peer.added)
    peer.resetAndDestroy()
  },
  'by reset()': async ({ connection, peer }) => {
    await tick()
    fill(peer.added)
    connection.reset()
  },
  'by close()': async ({ connection, peer }) => {
    await tick()
    fill(peer.added)
    connection.close()
    peer.destroy()
  },
}

/** Adds 6 MiB of blocks, with and without functions between. */
function fill({ queue, writer }) {
  for (let i = 0; i < 200; i++) {
    queue.add('x'.repeat(10 * KIB))
    if (i > 100) queue.add(() => 'y')
    writer.writeString('z'.repeat(20 * KIB))
    queue.add(writer)
  }
}

for (const [when, leave] of Object.entries(leavings)) {
  test.serial(`a connection that ends ${when} leaves none of what waited behind`, async (t) => {
    let accepted
    const onConnect = (connection) => void accepted.resolve(connection)
    const server = serve(undefined, { onConnect, maxPendingBytes: 64 * MIB })
    await leaksNothing(async () => {
      accepted = deferred()
      const peer = await connect(server.port)
      const connection = await accepted.promise
      const queue = new ShardQueue(connection)
      peer.added = { queue, writer: connection.writer }
      queue.add(Buffer.alloc(8 * MIB))
      fill(peer.added)
      await leave({ connection, queue, peer })
      await t.throwsAsync(queue.close())
      await connection.closed
      peer.destroy()
    })
    t.is(stats().pinnedSends, 0)
    await server.stop()
  })
}

// ---- other connections

test.serial('a dialed connection has a queue too, and goes on when its poll changes', async (t) => {
  const server = serve((connection, queue) => queue.add(connection.reader), {
    onPrepare: (connection) => new ShardQueue(connection),
  })
  const connections = await Promise.all(
    Array.from({ length: 8 }, () => dialConnection('tcp', `127.0.0.1:${server.port}`)),
  )
  const exchanged = connections.map(async (connection) => {
    const queue = new ShardQueue(connection)
    const messages = Array.from({ length: 300 }, () => randomBytes(10 * KIB))
    const received = []
    for (const [index, message] of messages.entries()) {
      queue.add(message.subarray(0, 5000), () => message.subarray(5000))
      if (index % 10 !== 9) continue
      await connection.reader.waitRead(100 * KIB)
      received.push(connection.reader.readBinary(100 * KIB))
    }
    await queue.close()
    t.true(Buffer.concat(received).equals(Buffer.concat(messages)))
    connection.close()
    await connection.closed
  })
  for (const loops of [3, 1, 2, 1]) await setNumLoops(loops)
  await Promise.all(exchanged)
  await server.stop()
})

// ---- failures

test('a function that throws is told to onError; the others still go, and the connection stays', async (t) => {
  const told = []
  const both = await queued(t, { onError: (error, connection) => void told.push([error, connection]) })
  const error = new Error('on purpose')
  const { queue, connection } = both
  queue.add(
    'a',
    () => {
      throw error
    },
    () => 5,
    'b',
  )
  await tick()
  t.is(told.length, 2)
  t.is(told[0][0], error)
  t.is(told[1][0].code, 'ERR_INVALID_ARG_TYPE')
  t.regex(told[1][0].message, /"item\(\)"/)
  t.true(told.every(([, about]) => about === connection))
  t.true(connection.isActive())
  t.is(String(await sent(both)), 'ab')
})

test('without onError the error of a function is uncaught, and the others still go', async (t) => {
  const { code, stdout, stderr } = await run(`
    import { ShardQueue } from 'netpoll/mux'
    process.on('uncaughtException', (error) => console.log('uncaught', error.message))
    const server = serve((connection) => {
      connection.reader.skip(connection.reader.length)
      const queue = new ShardQueue(connection)
      queue.add('a', () => { throw new Error('on purpose') }, 'b')
    })
    const socket = await connect(server.port)
    socket.write('x')
    console.log(String(await take(socket, 2)))
    socket.destroy()
    await server.stop()
  `)
  t.is(code, 0, stderr)
  t.is(stdout, 'uncaught on purpose\nab\n')
})

test('arguments are checked before anything is added', async (t) => {
  const both = await queued(t)
  const { queue, connection } = both
  for (const wrong of [undefined, null, {}, 'connection', both.peer]) {
    t.throws(() => new ShardQueue(wrong), { code: 'ERR_INVALID_ARG_TYPE' })
  }
  const options = [
    [{ shards: 0 }, 'ERR_OUT_OF_RANGE'],
    [{ shards: 1.5 }, 'ERR_OUT_OF_RANGE'],
    [{ shards: NaN }, 'ERR_OUT_OF_RANGE'],
    [{ shards: '4' }, 'ERR_INVALID_ARG_TYPE'],
    [{ size: 4 }, 'ERR_INVALID_ARG_VALUE'],
    [null, 'ERR_INVALID_ARG_TYPE'],
  ]
  for (const [wrong, code] of options) t.throws(() => new ShardQueue(connection, wrong), { code })
  for (const wrong of [undefined, null, 1, {}, [], Promise.resolve('x'), new ArrayBuffer(1)]) {
    t.throws(() => queue.add('first', wrong), { code: 'ERR_INVALID_ARG_TYPE' })
  }
  t.is(String(await sent(both)), '')
})

test('the order of add() does not depend on shards', async (t) => {
  for (const shards of [undefined, 1, 32]) {
    const both = await pair(t)
    const queue = new ShardQueue(both.connection, { shards })
    for (let i = 0; i < 100; i++) queue.add(`${i},`)
    const text = String(await sent({ ...both, queue }))
    t.is(text, Array.from({ length: 100 }, (_, i) => `${i},`).join(''))
  }
})
