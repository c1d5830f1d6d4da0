// Several polls: setNumLoops() at any time, connections that move from one to another, and load balance.

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import { setImmediate } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import test from 'ava'
import { dialConnection, LinkBuffer, setLoadBalance, setNumLoops, stats } from '../index.js'
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
  take,
  until,
} from './fixtures/peer.mjs'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc')

const KIB = 1024
const MIB = 1024 * KIB

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

function threadName(task) {
  return readFileSync(`/proc/self/task/${task}/comm`, 'utf8')
}

function digest(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

async function ask({ reader, writer }, text) {
  writer.writeString(text)
  writer.flush()
  await reader.waitRead(text.length)
  return reader.readString(text.length)
}

/** The threads of this process that are polls. */
function threads() {
  return readdirSync('/proc/self/task').filter((task) => {
    try {
      return threadName(task).startsWith('netpoll-')
    } catch {
      return false
    }
  }).length
}

/** A pair() whose connection is at the second of two polls. */
async function away(t, options) {
  await setNumLoops(2)
  for (;;) {
    const made = await pair(t, options)
    if (made.connection.poll.index === 1) return made
  }
}

/** Runs `meanwhile` while the connection moves to the first poll. */
async function move(t, connection, meanwhile = () => undefined) {
  t.is(connection.poll.index, 1)
  const moved = setNumLoops(1)
  await meanwhile()
  await moved
  t.is(connection.poll.index, 0)
}

test.beforeEach(() => setNumLoops(1))

test.serial('what a Writer of another poll takes back is nothing that a LinkBuffer has shown', async (t) => {
  const { writer } = (await away(t)).connection
  const buffer = new LinkBuffer()
  writer.writeString('0123456789')
  buffer.append(writer)
  buffer.flush()
  const view = buffer.peek(10)
  writer.append(buffer)
  writer.mallocAck(0)
  writer.writeString('XXXXXXXXXX')
  t.is(view.toString(), '0123456789')
  buffer.close()
})

test.serial('the blocks of a slice that was forgotten come back although its poll has ended', async (t) => {
  const { connection, reader, peer } = await away(t)
  await send(peer, Buffer.alloc(512 * KIB))
  await reader.waitRead(512 * KIB)
  let slice = reader.slice(512 * KIB)
  await move(t, connection)
  const { bytesOut } = stats()
  t.is(slice.length, 512 * KIB)
  slice = null
  await until(async () => {
    gc()
    await settled()
    return stats().bytesOut <= bytesOut - 256 * KIB
  })
})

for (const [n, code] of [
  [0, 'ERR_OUT_OF_RANGE'],
  [-1, 'ERR_OUT_OF_RANGE'],
  [65, 'ERR_OUT_OF_RANGE'],
  [1.5, 'ERR_OUT_OF_RANGE'],
  [NaN, 'ERR_OUT_OF_RANGE'],
  [Infinity, 'ERR_OUT_OF_RANGE'],
  ['2', 'ERR_INVALID_ARG_TYPE'],
  [undefined, 'ERR_INVALID_ARG_TYPE'],
  [2n, 'ERR_INVALID_ARG_TYPE'],
]) {
  test.serial(`setNumLoops(${typeof n} ${n}) throws ${code} and changes nothing`, (t) => {
    const before = stats().polls.length
    t.throws(() => setNumLoops(n), { code })
    t.is(stats().polls.length, before)
  })
}

test.serial('setLoadBalance() of another kind throws ERR_INVALID_ARG_VALUE', (t) => {
  for (const kind of ['', 'ROUND-ROBIN', undefined, 1, null]) {
    t.throws(() => setLoadBalance(kind), { code: 'ERR_INVALID_ARG_VALUE' })
  }
})

test.serial('memory that JavaScript could take away is none for a poll', (t) => {
  const { environment } = createRequire(import.meta.url)('../dist/environment.js')
  const { native, polls } = environment()
  const { length } = polls[0].words
  t.throws(() => native.addPoll(new Int32Array(length)), { code: 'InvalidArg', message: /shared/ })
  const short = new Int32Array(new SharedArrayBuffer(4 * length - 4))
  t.throws(() => native.addPoll(short), { code: 'InvalidArg' })
  t.is(stats().polls.length, 1)
})

test.serial('polls, their threads and descriptors come and go', async (t) => {
  await settled()
  // The loop needs no threads; an adaptive poll has one from the first time that it is needed.
  const most = process.env.NETPOLL_DRIVER === 'loop' ? 0 : 64
  const least = process.env.NETPOLL_DRIVER === 'thread' ? 64 : 0
  const areThere = (n) => threads() >= Math.min(n, least) && threads() <= Math.min(n, most)
  const before = [threads(), descriptors()]
  t.true(areThere(1))
  for (const n of [4, 2, 64, 1, 3, 1]) {
    await setNumLoops(n)
    t.is(stats().polls.length, n)
    await until(() => areThere(n), `the threads of ${n} polls`)
  }
  await until(() => descriptors() <= before[1], `${descriptors()} descriptors`)
})

test.serial('calls take effect one after the other', async (t) => {
  const calls = [5, 1, 7, 2, 3]
  const order = []
  await Promise.all(calls.map((n) => setNumLoops(n).then(() => order.push([n, stats().polls.length]))))
  t.deepEqual(
    order.map(([n]) => n),
    calls,
  )
  t.is(stats().polls.length, 3)
})

test.serial('each poll has its counters, and what those that have ended did is not forgotten', async (t) => {
  const { connection, peer } = await away(t)
  await send(peer, 'x')
  await connection.reader.waitRead(1)
  const [first, second] = stats().polls
  t.true(second.connections >= 1 && second.driver === first.driver && second.flips === 0)
  t.true(second.turns > 0)
  const { turns, syscalls } = stats()
  await move(t, connection)
  t.is(stats().polls.length, 1)
  t.true(stats().turns >= turns && stats().syscalls >= syscalls)
})

// ---- a crowd

/** A client that sends without end and checks what comes back. */
class Client {
  constructor(socket, seed) {
    this.socket = socket
    this.seed = seed
    this.closed = false
    this.sent = 0
    this.received = 0
    this.out = createHash('sha256')
    this.in = createHash('sha256')
    socket.on('data', (bytes) => {
      this.in.update(bytes)
      this.received += bytes.length
    })
    socket.on('close', () => (this.closed = true))
  }

  async run(until_) {
    for (let i = 0; !until_(); i++) {
      const bytes = Buffer.alloc(1 + ((this.seed * 977 + i * 7919) % 4000), this.seed + i)
      this.out.update(bytes)
      this.sent += bytes.length
      await send(this.socket, bytes)
      if (this.sent - this.received > 20 * KIB) await until(() => this.sent - this.received < 10 * KIB)
    }
    await until(() => this.received === this.sent, `${this.received} of ${this.sent} bytes`)
    return this.in.digest('hex') === this.out.digest('hex')
  }
}

test.serial('hundreds of connections under load lose no byte while polls come and go', async (t) => {
  const CLIENTS = 300
  await leaksNothing(async () => {
    const { port, loop, stop } = serve(echo)
    const clients = []
    const runs = []
    let done = false
    for (let round = 0; clients.length < CLIENTS; round++) {
      await setNumLoops(4)
      for (let i = 0; i < 30; i++) {
        const client = new Client(await connect(port), clients.length)
        clients.push(client)
        runs.push(client.run(() => done))
      }
      for (const n of [2, 1, 3, 1]) {
        await setNumLoops(n)
        await setImmediate()
      }
    }
    await until(() => loop.connections === CLIENTS)
    done = true
    t.true((await Promise.all(runs)).every(Boolean), 'all is as it was sent')
    t.false(clients.some(({ closed }) => closed))
    for (const { socket } of clients) socket.destroy()
    await until(() => loop.connections === 0)
    await stop()
  })
  t.is(stats().pinnedSends, 0)
})

test.serial('what one connection relays to another of any other poll arrives as it was sent', async (t) => {
  await setNumLoops(4)
  const PAIRS = 12
  const SIZE = 3 * MIB
  await leaksNothing(async () => {
    let waiting = null
    const polls = new Set()
    const { port, stop } = serve(
      async (connection) => {
        const { context } = connection
        await context.met
        const { peer } = context
        polls.add(`${connection.poll.index} ${peer.poll.index}`)
        peer.writer.append(connection.reader.slice(connection.reader.length))
        if (!peer.writer.flush()) await peer.flushed()
      },
      {
        onPrepare() {
          const met = deferred()
          return { peer: null, met: met.promise, meet: met.resolve }
        },
        onConnect(connection, context) {
          if (waiting === null) {
            waiting = connection
            return
          }
          context.peer = waiting
          waiting.context.peer = connection
          waiting.context.meet()
          context.meet()
          waiting = null
        },
      },
    )
    const all = []
    const [sent, received] = [[], []]
    for (let number = 0; number < PAIRS; number++) {
      const one = await connect(port)
      await until(() => waiting !== null)
      const other = await connect(port)
      await until(() => waiting === null)
      const bytes = Buffer.alloc(SIZE, `${number} `)
      for (let at = 0; at < SIZE; at += 4096) bytes.writeUInt32BE(at, at)
      all.push(one, other)
      one.write(bytes)
      other.write(bytes)
      received.push(take(one, SIZE), take(other, SIZE))
      sent.push(bytes, bytes)
    }
    t.deepEqual((await Promise.all(received)).map(digest), sent.map(digest))
    t.true(
      [...polls].some((both) => both[0] !== both[2]),
      `${[...polls]}`,
    )
    for (const socket of all) socket.destroy()
    await stop()
  })
})

test.serial('hooks come in order, each once, while clients come and go and so do polls', async (t) => {
  const lives = []
  const { port, stop } = serve(
    ({ reader, context }) => {
      context.push(reader.readString(reader.length))
    },
    {
      onPrepare(connection) {
        const life = ['prepare']
        lives.push(life)
        connection.addCloseCallback(() => life.push('close'))
        return life
      },
      onConnect: (connection, life) => void life.push('connect'),
      onDisconnect: (connection, life) => void life.push('disconnect'),
    },
  )
  t.teardown(stop)
  const COUNT = 400
  let coming = true
  const clients = Promise.all(
    Array.from({ length: 10 }, async () => {
      for (let i = 0; i < COUNT / 10; i++) {
        const socket = await connect(port)
        socket.resume()
        socket.end('x')
        await once(socket, 'close')
      }
    }),
  ).finally(() => (coming = false))
  for (let i = 0; coming; i++) await setNumLoops([4, 1, 2, 3][i % 4])
  await clients
  await until(() => lives.length === COUNT && lives.every((life) => life.includes('close')))
  for (const life of lives) t.deepEqual(life, ['prepare', 'connect', 'x', 'disconnect', 'close'])
})

// ---- one connection that moves

test.serial('a connection that has moved is the same one to everybody', async (t) => {
  const { connection, writer, reader, peer } = await away(t)
  await send(peer, 'four')
  await reader.waitRead(4)
  writer.writeString('seven..')
  writer.flush()
  await connection.flushed()
  const { id, remotePort, localPort, remoteAddress } = connection
  t.is(remotePort, peer.localPort)
  await move(t, connection, async () => {
    t.true(connection.isActive() && connection.readable && connection.writable)
  })
  t.deepEqual(
    [connection.id, connection.remotePort, connection.localPort, connection.remoteAddress],
    [id, remotePort, localPort, remoteAddress],
  )
  t.deepEqual([connection.bytesRead, connection.bytesWritten], [4, 7])
  t.true(connection.isActive())
  t.is(reader.readString(4), 'four')
  await send(peer, 'more')
  await reader.waitRead(4)
  t.is(connection.bytesRead, 8)
  t.is((await connection.stats()).bytesRead, 8)
})

test.serial('the addresses of a connection that has moved can be asked for then', async (t) => {
  const { connection, peer } = await away(t)
  await move(t, connection)
  t.is(connection.remotePort, peer.localPort)
})

test.serial('what is written and flushed while a connection moves arrives in order', async (t) => {
  const { connection, writer, reader, peer } = await away(t, { writeHighWaterMark: 8 * MIB })
  await send(peer, Buffer.alloc(50 * KIB, 'echoed '))
  await reader.waitRead(50 * KIB)
  const expected = []
  const write = (bytes) => {
    expected.push(bytes)
    writer.writeBinary(bytes)
    writer.flush()
  }
  write(Buffer.alloc(100 * KIB, 'before '))
  await move(t, connection, async () => {
    for (let i = 0; connection.poll.index === 1; i++) {
      write(Buffer.alloc(1 + ((i * 977) % 30_000), `during ${i} `))
      // Bytes that another poll has lent.
      if (reader.length >= KIB) {
        expected.push(Buffer.from(reader.peek(KIB)))
        writer.append(reader.slice(KIB))
        writer.flush()
      }
      await setImmediate()
    }
  })
  write(Buffer.alloc(100 * KIB, 'after '))
  connection.end()
  const { bytes } = await outcome(peer)
  t.is(bytes.length, connection.bytesWritten)
  t.true(bytes.equals(Buffer.concat(expected)))
})

test.serial('a wait is satisfied by what comes after the move', async (t) => {
  const { connection, reader, peer } = await away(t)
  await send(peer, 'one')
  const wait = reader.waitUntil('\n')
  await move(t, connection, () => send(peer, ' two'))
  peer.write(' three\n')
  t.is(reader.readString(await wait), 'one two three\n')
})

test.serial('a message longer than readHighWaterMark is finished by the other poll', async (t) => {
  const { connection, reader, peer } = await away(t, { readHighWaterMark: 64 * KIB })
  const sent = Buffer.alloc(4 * MIB, 'long ')
  const wait = reader.waitRead(sent.length)
  const sending = send(peer, sent)
  await until(() => reader.length > 64 * KIB)
  await move(t, connection)
  await wait
  await sending
  t.true(reader.next(sent.length).equals(sent))
})

test.serial('pause() holds across the move, and resume() lets all come', async (t) => {
  const { connection, reader, peer } = await away(t)
  connection.pause()
  await settled()
  await send(peer, 'patience')
  await move(t, connection)
  await settled()
  t.is(reader.length, 0)
  connection.resume()
  await reader.waitRead(8)
  t.is(reader.readString(8), 'patience')
})

for (const when of ['before', 'during', 'after']) {
  test.serial(`a client that half-closes ${when} the move gets its whole answer`, async (t) => {
    const question = Buffer.alloc(2 * MIB, 'question ')
    const { connection, reader, writer, peer } = await away(t, { allowHalfOpen: true })
    const answer = outcome(peer)
    if (when === 'before') peer.end(question)
    await move(t, connection, async () => {
      if (when === 'during') peer.end(question)
    })
    if (when === 'after') peer.end(question)
    await reader.waitRead(question.length)
    writer.append(reader)
    reader.release()
    writer.flush()
    await until(() => reader.ended)
    connection.end()
    t.true((await answer).bytes.equals(question))
    await connection.closed
    t.is(connection.bytesWritten, question.length)
  })
}

test.serial('output that a stalled peer has not taken goes along, and flushed() waits for it', async (t) => {
  const { connection, writer, peer } = await away(t)
  const sent = Buffer.alloc(20 * MIB, 'pending ')
  writer.writeBinary(sent)
  t.false(writer.flush())
  let isFlushed = false
  const flushed = connection.flushed().then(() => (isFlushed = true))
  await settled()
  await move(t, connection)
  await settled()
  t.false(isFlushed)
  t.true(connection.bytesWritten > 0 && connection.bytesWritten < sent.length)
  const received = take(peer, sent.length)
  await flushed
  t.is(connection.bytesWritten, sent.length)
  t.true((await received).equals(sent))
  writer.writeString('x')
  t.true(writer.flush())
})

test.serial('writeTimeout counts on across the move', async (t) => {
  const { connection, writer, peer } = await away(t, { writeTimeout: 300 })
  writer.writeBinary(Buffer.alloc(20 * MIB))
  writer.flush()
  const flushed = t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })
  await move(t, connection)
  await flushed
  await connection.closed
  peer.resume()
})

test.serial('readTimeout and idleTimeout fire at the other poll', async (t) => {
  const reading = await away(t, { readTimeout: 200 })
  const wait = t.throwsAsync(reading.reader.waitRead(1), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  await move(t, reading.connection)
  await wait
  t.true(reading.connection.isActive())

  const idling = await away(t, { idleTimeout: 200 })
  await move(t, idling.connection)
  await idling.connection.closed
  t.throws(() => idling.reader.length + idling.reader.next(1), { code: 'ERR_NETPOLL_IDLE_TIMEOUT' })
})

const ENDS = {
  'close()': (connection) => connection.close(),
  'end()': (connection, peer) => (connection.end(), peer.end()),
  'reset()': (connection) => connection.reset(),
  "the peer's FIN": (connection, peer) => peer.end(),
  "the peer's RST": (connection, peer) => peer.resetAndDestroy(),
}

for (const [name, end] of Object.entries(ENDS)) {
  test.serial(`connections that end by ${name} while they move end once, and leave nothing`, async (t) => {
    await leaksNothing(async () => {
      const COUNT = 40
      await setNumLoops(4)
      const ended = []
      const connections = []
      const { port, loop, stop } = serve(undefined, {
        onConnect: (connection) => void connections.push(connection),
        onDisconnect: (connection) => void ended.push(connection.id),
      })
      const peers = new Map()
      for (let i = 0; i < COUNT; i++) {
        const peer = await connect(port)
        peer.resume()
        peers.set(peer.localPort, peer)
      }
      await until(() => connections.length === COUNT)
      for (const connection of connections) {
        connection.peer = peers.get(connection.remotePort)
        connection.writer.writeBinary(Buffer.alloc(64 * KIB))
        connection.writer.flush()
      }
      const moved = setNumLoops(1)
      // Some before MOVED, some between MOVED and ARRIVED, some after.
      for (const [i, connection] of connections.entries()) {
        if (i % 4 === 0) await setImmediate()
        end(connection, connection.peer)
      }
      await moved
      await until(() => loop.connections === 0)
      await settled()
      t.deepEqual(
        ended.toSorted((a, b) => a - b),
        connections.map(({ id }) => id).toSorted((a, b) => a - b),
      )
      for (const peer of peers.values()) peer.destroy()
      await stop()
    })
  })
}

test.serial('a connection that is detached while it moves is given away with all its bytes', async (t) => {
  const { connection, writer, reader, peer } = await away(t)
  writer.writeString('last words')
  writer.flush()
  const moved = setNumLoops(1)
  await setImmediate()
  peer.write('unread')
  const { fd, unread } = await connection.detach()
  await moved
  t.is(String(await take(peer, 10)), 'last words')
  t.throws(() => reader.length + reader.next(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
  const { Socket } = await import('node:net')
  const socket = new Socket({ fd })
  const rest = 'unread'.slice(unread.length)
  t.is(String(unread) + String(await take(socket, rest.length)), 'unread')
  socket.destroy()
})

test.serial('connections that were dialed move too', async (t) => {
  const { port, stop } = serve(echo)
  t.teardown(stop)
  await setNumLoops(3)
  const clients = []
  for (let i = 0; i < 9; i++) clients.push(await dialConnection('tcp', `127.0.0.1:${port}`))
  t.true(new Set(clients.map((client) => client.poll.index)).size > 1)
  const moved = setNumLoops(1)
  for (const [i, client] of clients.entries()) t.is(await ask(client, `during ${i}`), `during ${i}`)
  await moved
  for (const [i, client] of clients.entries()) t.is(await ask(client, `after ${i}`), `after ${i}`)
  t.true(clients.every((client) => client.poll.index === 0))
  for (const client of clients) client.close()
})

test.serial('dials that are under way when their poll goes are answered', async (t) => {
  const { port, stop } = serve(echo)
  t.teardown(stop)
  for (let round = 0; round < 10; round++) {
    await setNumLoops(4)
    const dials = Array.from({ length: 16 }, () => dialConnection('tcp', `127.0.0.1:${port}`))
    await setNumLoops(1)
    for (const client of await Promise.all(dials)) {
      t.is(client.poll.index, 0)
      client.close()
    }
  }
})

test.serial('shutdown() while connections move ends them all', async (t) => {
  await setNumLoops(4)
  const server = serve(echo)
  const sockets = []
  for (let i = 0; i < 40; i++) sockets.push(await connect(server.port))
  await until(() => server.loop.connections === 40)
  const ends = sockets.map((socket) => outcome(socket))
  const moved = setNumLoops(1)
  await setImmediate()
  await server.loop.shutdown()
  await server.served
  await Promise.all(ends)
  await moved
  for (const socket of sockets) socket.destroy()
  t.is(server.loop.connections, 0)
})

// ---- load balance

test.serial('at random each poll has its share of the connections', async (t) => {
  await setNumLoops(4)
  setLoadBalance('random')
  t.teardown(() => setLoadBalance('round-robin'))
  const { port, loop, stop } = serve(echo)
  t.teardown(stop)
  const sockets = await Promise.all(Array.from({ length: 200 }, () => connect(port)))
  await until(() => loop.connections === 200)
  const counts = stats().polls.map((poll) => poll.connections)
  t.true(
    counts.every((count) => count >= 20 && count <= 90),
    `${counts}`,
  )
  for (const socket of sockets) socket.destroy()
})

test.serial('least-connections fills up the polls that have come', async (t) => {
  const { port, loop, stop } = serve(echo)
  t.teardown(stop)
  const sockets = []
  const join = async (count) => {
    for (let i = 0; i < count; i++) sockets.push(await connect(port))
    await until(() => loop.connections === sockets.length)
  }
  await join(20)
  await setNumLoops(3)
  setLoadBalance('least-connections')
  t.teardown(() => setLoadBalance('round-robin'))
  await join(40)
  const counts = stats().polls.map((poll) => poll.connections)
  // settled() and others may have one that is about to go.
  t.true(
    counts.every((count) => count >= 19 && count <= 21),
    `${counts}`,
  )
  for (const socket of sockets) socket.destroy()
})

test.serial(
  'clients that come while a loop is shut down are closed, whichever poll they were given to',
  async (t) => {
    await setNumLoops(4)
    for (let round = 0; round < 30; round++) {
      const { port, loop, served } = serve(echo)
      const sockets = Array.from({ length: 24 }, () =>
        net.connect(port, '127.0.0.1').on('error', () => undefined),
      )
      const ends = sockets.map((socket) => new Promise((resolve) => socket.resume().on('close', resolve)))
      await once(sockets[round % sockets.length], 'connect')
      await loop.shutdown()
      await served
      await Promise.all(ends)
    }
    await until(() => stats().connections === 0)
    await setNumLoops(1)
    t.is(stats().connections, 0)
  },
)
