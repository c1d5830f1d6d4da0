// Semantics 7: what a view shows, for how long, and what becomes of it when it is sent or detached.

import test from 'ava'
import { createHash, randomBytes } from 'node:crypto'
import { LinkBuffer, stats } from '../index.js'
import { collected } from './fixtures/garbage.mjs'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1 << 10
const MIB = 1 << 20

/** What detaches a view's memory, or (with what napi maps, in some versions of Node) tries to. */
const DETACHED_BY = {
  'a stream of bytes': (view) => {
    void new ReadableStream({ type: 'bytes', start: (controller) => controller.enqueue(view) })
    if (view.length !== 0) throw new Error('It was not detached')
  },
  'structuredClone()': (view) => {
    try {
      structuredClone(view.buffer, { transfer: [view.buffer] })
    } catch (error) {
      if (error.name !== 'DataCloneError') throw error
    }
  },
  // Node 20 has no transfer() yet.
  ...('transfer' in ArrayBuffer.prototype && { 'transfer()': (view) => void view.buffer.transfer() }),
}

function echoRanges({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

/** The same by way of the Writers' own blocks. */
function echoCopies({ reader, writer }) {
  while (reader.length > 0)
    writer.malloc(Math.min(reader.length, KIB)).set(reader.next(Math.min(reader.length, KIB)))
  writer.flush()
}

/** Other connections whose bytes go through all blocks that are free. */
async function traffic(t, bytes = 32 * MIB, onRequest = echoRanges) {
  const { port, stop } = serve(onRequest)
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      const peer = await connect(port)
      const received = outcome(peer)
      peer.end(Buffer.alloc(bytes / 4, 0xee))
      if ((await received).bytes.length !== bytes / 4) t.fail('The traffic itself went wrong')
    }),
  )
  await stop()
}

/** Sends `bytes` and waits until they can be read. */
async function bring({ peer, reader }, bytes) {
  const length = reader.length + bytes.length
  const sending = send(peer, bytes)
  await reader.waitRead(length)
  await sending
}

/** What the peer receives after a flush, when nothing else was sent before. */
async function flushed({ connection, writer, peer }) {
  writer.flush()
  connection.end()
  return (await outcome(peer)).bytes
}

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

test('views stay what they are until release(), whatever others receive and send', async (t) => {
  const both = await pair(t)
  const sent = randomBytes(3 * MIB)
  await bring(both, sent)
  const views = []
  const { reader } = both
  for (let size = 1; reader.length > 0; size *= 3) views.push(reader.next(Math.min(size, reader.length)))
  await traffic(t)
  t.true(Buffer.concat(views).equals(sent))
  reader.release()
})

test('views of a handler stay what they are while its promise is pending', async (t) => {
  const taken = deferred()
  const trafficDone = deferred()
  const shown = deferred()
  const sent = randomBytes(256 * KIB)
  const { port, stop } = serve(async ({ reader }) => {
    await reader.waitRead(sent.length)
    const views = [reader.next(3), reader.next(100 * KIB), reader.next(reader.length)]
    taken.resolve()
    await trafficDone.promise
    shown.resolve(Buffer.concat(views))
  })
  t.teardown(stop)
  const peer = await connect(port)
  t.teardown(() => void peer.destroy())
  peer.write(sent)
  await taken.promise
  await traffic(t)
  trafficDone.resolve()
  t.true((await shown.promise).equals(sent))
})

for (const end of ['close', 'reset']) {
  test(`views of a handler survive its own ${end}() until it ends`, async (t) => {
    const taken = deferred()
    const trafficDone = deferred()
    const shown = deferred()
    const sent = randomBytes(256 * KIB)
    const { port, stop } = serve(async (connection) => {
      const { reader } = connection
      await reader.waitRead(sent.length)
      const view = reader.next(sent.length)
      connection[end]()
      taken.resolve()
      await trafficDone.promise
      shown.resolve(Buffer.from(view))
    })
    t.teardown(stop)
    const peer = await connect(port)
    t.teardown(() => void peer.destroy())
    peer.write(sent)
    await taken.promise
    await traffic(t)
    trafficDone.resolve()
    t.true((await shown.promise).equals(sent))
  })
}

/** Ends of a connection, by its program or not, while room of malloc() waits to be filled. */
const ENDS_OF_ROOM = {
  'its peer resets it': ({ peer }) => peer.resetAndDestroy(),
  'it is closed': ({ connection }) => connection.close(),
  'idleTimeout ends it': ({ connection }) => connection.setIdleTimeout(1),
}

for (const [how, end] of Object.entries(ENDS_OF_ROOM)) {
  test(`room of malloc() is nobody else's, when ${how}, as long as somebody can fill it`, async (t) => {
    const both = await pair(t)
    let rooms = Array.from({ length: 40 }, () => both.writer.malloc(32 * KIB).fill(0xaa))
    // What is appended elsewhere goes along.
    const other = new LinkBuffer()
    rooms.push(other.malloc(KIB).fill(0xaa))
    both.writer.append(other)
    const before = stats().blocksOut
    end(both)
    await both.connection.closed
    // The Writers go on to other blocks.
    await traffic(t, 8 * MIB, echoCopies)
    t.true(rooms.every((room) => room.every((byte) => byte === 0xaa)))
    rooms = undefined
    other.close()
    // 20 blocks have waited.
    await collected(() => stats().blocksOut <= before - 18)
  })
}

test('a slice stays what it is after release() of its Reader, and after the connection has ended', async (t) => {
  const both = await pair(t)
  const sent = randomBytes(MIB)
  await bring(both, sent)
  const slice = both.reader.slice(sent.length)
  both.reader.release()
  both.connection.close()
  both.peer.destroy()
  await both.connection.closed
  await traffic(t)
  t.true(slice.next(sent.length).equals(sent))
  slice.release()
})

test('what is unread when a connection without onRequest ends can be read, views included', async (t) => {
  const both = await pair(t)
  const sent = randomBytes(300 * KIB)
  await bring(both, sent)
  both.peer.resetAndDestroy()
  await both.connection.closed
  await traffic(t)
  const { reader } = both
  const halves = [reader.next(100 * KIB), reader.readBinary(200 * KIB)]
  t.true(Buffer.concat(halves).equals(sent))
  t.throws(() => reader.next(1), { code: 'ERR_NETPOLL_SHORT_READ' })
})

/** What ends a connection without its program, which has read and holds views: with which options, and how. */
const ENDED_BY = {
  ERR_NETPOLL_IDLE_TIMEOUT: [{}, ({ connection }) => connection.setIdleTimeout(1)],
  ERR_NETPOLL_WRITE_TIMEOUT: [
    {},
    ({ connection, writer }) => {
      connection.setWriteTimeout(1)
      writer.malloc(32 * MIB)
      writer.flush()
    },
  ],
  ERR_NETPOLL_OUTPUT_LIMIT: [
    { maxPendingBytes: MIB },
    ({ writer }) => {
      try {
        writer.malloc(2 * MIB)
      } catch {}
    },
  ],
  ERR_NETPOLL_INPUT_LIMIT: [
    { maxReadBytes: 512 * KIB },
    async ({ reader, peer }) => {
      peer.write(Buffer.alloc(512 * KIB))
      await reader.waitUntil('not to be found').catch(() => undefined)
    },
  ],
  'the shutdown of its loop': [{}, ({ server }) => server.loop.shutdown()],
  "its peer's FIN": [{}, ({ peer, connection }) => void (peer.end(), connection.end())],
  "its peer's RST": [{}, ({ peer }) => peer.resetAndDestroy()],
}

for (const [what, [options, end]] of Object.entries(ENDED_BY)) {
  test(`views outside of handlers stay what they are when ${what} ends the connection`, async (t) => {
    const both = await pair(t, options)
    const sent = randomBytes(256 * KIB)
    await bring(both, sent)
    const views = [both.reader.next(100 * KIB), both.reader.peek(156 * KIB)]
    await end(both)
    await both.connection.closed
    await traffic(t)
    t.true(Buffer.concat(views).equals(sent))
  })

  test.serial(`views that were forgotten when ${what} ends the connection are given back`, async (t) => {
    await settled()
    const { blocksOut } = stats()
    // What is to be torn down refers to the connection.
    const teardowns = []
    const forget = async () => {
      const both = await pair({ teardown: (step) => teardowns.push(step) }, options)
      await bring(both, randomBytes(256 * KIB))
      both.reader.next(256 * KIB)
      await end(both)
      await both.connection.closed
    }
    await Promise.all(Array.from({ length: 8 }, forget))
    await Promise.all(teardowns.splice(0).map((step) => step()))
    t.true(stats().blocksOut >= blocksOut + 8)
    await collected(() => stats().blocksOut <= blocksOut + 1)
  })
}

test('a view that was taken after a handler stays what it is when the peer ends the connection', async (t) => {
  const both = await pair(t)
  const called = deferred()
  both.connection.setOnRequest(() => called.resolve())
  const sent = randomBytes(256 * KIB)
  both.peer.write(sent)
  await called.promise
  await both.reader.waitRead(sent.length)
  const view = both.reader.next(sent.length)
  both.peer.end()
  await both.connection.closed
  await traffic(t)
  t.true(view.equals(sent))
})

test.serial('release() gives views back also after a limit has ended the connection', async (t) => {
  await settled()
  const { blocksOut } = stats()
  const both = await pair(t)
  await bring(both, randomBytes(256 * KIB))
  both.reader.next(256 * KIB)
  both.connection.setIdleTimeout(1)
  await both.connection.closed
  t.throws(() => both.reader.release(), { code: 'ERR_NETPOLL_IDLE_TIMEOUT' })
  await until(() => stats().blocksOut <= blocksOut + 1)
})

for (const size of [16 * KIB, 64 * KIB, MIB, 3 * MIB]) {
  test(`a view of ${size} bytes that is written keeps its block until it is sent, beyond release()`, async (t) => {
    const both = await pair(t)
    const { reader, writer } = both
    const filling = randomBytes(16 * MIB)
    writer.writeBinary(filling)
    writer.flush()
    const sent = randomBytes(size)
    await bring(both, sent)
    writer.writeBinary(reader.next(size))
    reader.release()
    writer.flush()
    await traffic(t)
    t.true((await flushed(both)).equals(Buffer.concat([filling, sent])))
  })
}

test('a view that is written but not yet flushed keeps its block too', async (t) => {
  const both = await pair(t)
  const sent = randomBytes(MIB)
  await bring(both, sent)
  both.writer.writeBinary(both.reader.next(MIB))
  both.reader.release()
  await traffic(t)
  t.true((await flushed(both)).equals(sent))
})

const ECHOES = {
  'writeBinary(next(n))': (reader, writer, n) => writer.writeBinary(reader.next(n)),
  'writeBinary(peek(n))': (reader, writer, n) => {
    writer.writeBinary(reader.peek(n))
    reader.skip(n)
  },
  'append(slice(n))': (reader, writer, n) => writer.append(reader.slice(n)),
}

for (const [kind, echo] of Object.entries(ECHOES)) {
  test(`an echo of 64 KiB messages by ${kind} to a stalled peer is what was sent`, async (t) => {
    let refused = false
    const { port, stop, loop } = serve(({ reader, writer }) => {
      while (reader.length >= 64 * KIB) echo(reader, writer, 64 * KIB)
      if (!writer.flush()) refused = true
    })
    t.teardown(stop)
    const peer = await connect(port)
    const sent = randomBytes(32 * MIB)
    peer.end(sent)
    await until(() => refused)
    await traffic(t)
    const { bytes } = await outcome(peer)
    t.is(bytes.length, sent.length)
    t.is(sha256(bytes), sha256(sent))
    await until(() => loop.connections === 0)
  })
}

test('a stale view that is written is sent with its length, and harms nobody', async (t) => {
  const both = await pair(t)
  const { reader, writer } = both
  await bring(both, randomBytes(64 * KIB))
  const view = reader.next(64 * KIB)
  reader.release()
  await traffic(t)
  t.is(writer.writeBinary(view), 64 * KIB)
  t.is((await flushed(both)).length, 64 * KIB)
})

// ---- detached: one by one, since all views that were cut from a chunk go together

for (const [how, detach] of Object.entries(DETACHED_BY)) {
  test.serial(`a view detached by ${how} leaves what is unread, and later views, as they are`, async (t) => {
    for (const size of [100, 64 * KIB, MIB, 2 * MIB]) {
      const both = await pair(t)
      const { reader } = both
      const sent = randomBytes(size)
      await bring(both, sent)
      const view = reader.peek(size)
      detach(view)
      t.true(reader.peek(size).equals(sent), `peek ${size}`)
      detach(reader.next(10))
      t.true(reader.next(size - 10).equals(sent.subarray(10)), `next ${size}`)
      reader.release()
    }
  })

  test.serial(`a view detached by ${how} leaves what is unread after the end as it is`, async (t) => {
    const both = await pair(t)
    const sent = randomBytes(1000)
    await bring(both, sent)
    both.peer.resetAndDestroy()
    await both.connection.closed
    detach(both.reader.peek(500))
    t.true(both.reader.next(1000).equals(sent))
  })

  test.serial(
    `a view detached by ${how} does not keep another one of its block from being sent`,
    async (t) => {
      const both = await pair(t)
      const { reader, writer } = both
      const sent = randomBytes(64 * KIB)
      await bring(both, sent)
      const other = reader.peek(10)
      writer.writeBinary(reader.next(sent.length))
      detach(other)
      t.true((await flushed(both)).equals(sent))
    },
  )

  test.serial(`room of malloc detached by ${how} is still sent`, async (t) => {
    const both = await pair(t)
    const room = both.writer.malloc(1000)
    room.fill('x')
    detach(room)
    both.writer.malloc(1000).fill('y')
    t.is((await flushed(both)).toString(), 'x'.repeat(1000) + 'y'.repeat(1000))
  })

  test.serial(
    `large room of malloc detached by ${how} after it was sent leaves other Writers alone`,
    async (t) => {
      const one = await pair(t)
      const room = one.writer.malloc(2 * MIB)
      room.write('abc')
      one.writer.mallocAck(3)
      one.writer.flush()
      t.is((await take(one.peer, 3)).toString(), 'abc')
      detach(room)
      const two = await pair(t)
      two.writer.writeString('of another')
      t.is((await flushed(two)).toString(), 'of another')
    },
  )

  test.serial(`a view detached by ${how} does not touch the other connections`, async (t) => {
    const { port, stop } = serve(({ reader, writer }) => {
      const view = reader.peek(1)
      writer.writeBinary(reader.next(Math.min(reader.length, MIB)))
      detach(view)
      writer.flush()
    })
    t.teardown(stop)
    const echoed = await Promise.all(
      Array.from({ length: 10 }, async (_, i) => {
        const peer = await connect(port)
        const sent = randomBytes(i % 2 === 0 ? 1000 : 3 * MIB)
        const received = outcome(peer)
        peer.end(sent)
        return (await received).bytes.equals(sent)
      }),
    )
    t.deepEqual(echoed, Array(10).fill(true))
  })
}

test.serial(
  'a chunk that was detached a thousand times is mapped anew each time, and is the same memory',
  async (t) => {
    const both = await pair(t)
    const { reader } = both
    const sent = randomBytes(1000)
    await bring(both, sent)
    const { chunkBytes } = stats()
    const read = sent.map(() => {
      const view = reader.next(1)
      const [byte] = view
      DETACHED_BY['a stream of bytes'](view)
      return byte
    })
    t.deepEqual(read, sent)
    t.is(stats().chunkBytes, chunkBytes)
  },
)
