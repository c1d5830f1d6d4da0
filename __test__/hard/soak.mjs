// `npm run soak -- MINUTES`: all that clients and servers do, mixed at random, for so many minutes (5). In between it lets
// everything end, and compares: bytes sent and received, descriptors, blocks, memory. It prints its seed (NETPOLL_SEED
// makes it come again; NETPOLL_DRIVER says who runs the polls) and ends by itself, with 0 when all has come out.
// `npm run soak` gives malloc one arena: with several, what the threads leave half used hides whether memory is lost.

import { once } from 'node:events'
import net from 'node:net'
import { setImmediate, setTimeout as sleep } from 'node:timers/promises'
import { dialConnection, setLoadBalance, setNumLoops, stats } from '../../index.js'
import { chance, pick, seed } from '../fixtures/chance.mjs'
import { percentile } from '../fixtures/figures.mjs'
import { connect, descriptors, outcome, send, serve, take, until } from '../fixtures/peer.mjs'

const MIB = 1 << 20
const MINUTES = Number(process.argv[2] ?? 5)
const WIDTH = 40
/** A job that takes longer has stalled. */
const STALLED = 60_000
/** How often all is compared. */
const PERIOD = Math.min(60_000, (MINUTES * 60_000) / 10)
/**
 * By how much memory may grow after the first third of the time, and by hour in a run of an hour. What garbage and idle
 * heaps add comes and goes; a leak raises the least that there is.
 */
const GROWTH = 8 * MIB

const random = chance(seed)
const below = (limit) => Math.floor(random() * limit)
const sums = { jobs: 0, sent: 0, received: 0, cut: 0, loops: 0 }
const done = {}
const wrong = []
let times = []

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

const harmless = new Set(['ECONNRESET', 'EPIPE', 'ERR_NETPOLL_EOF', 'ERR_NETPOLL_CONN_CLOSED'])
const onError = (error) => {
  if (!harmless.has(error.code)) wrong.push(`a handler: ${error.stack ?? error}`)
}

const servers = {
  echo: serve(echo, { onError }),
  awaits: serve(
    async (connection) => {
      const bytes = connection.reader.readBinary(connection.reader.length)
      await setImmediate()
      connection.writer.writeBinary(bytes)
      if (!connection.writer.flush()) await connection.flushed()
    },
    { onError },
  ),
  idle: serve(echo, { onError, idleTimeout: 100 }),
  waits: serve((connection) => connection.reader.waitRead(1000), { onError() {}, readTimeout: 100 }),
  pipes: serve(undefined, {
    onError,
    onConnect(connection) {
      const duplex = connection.toDuplex()
      duplex.on('error', () => undefined)
      duplex.pipe(duplex)
    },
  }),
  detaches: serve(
    async (connection) => {
      const { fd, unread } = await connection.detach()
      const socket = new net.Socket({ fd, readable: true, writable: true })
      socket.on('error', () => undefined)
      socket.write(unread)
      socket.pipe(socket)
    },
    { onError },
  ),
}

/** Bytes of which each says where it is. */
const source = Buffer.from(
  Uint8Array.from({ length: 4 * MIB }, (_, i) => (i * 31 + (i >> 8) * 7 + (i >> 16)) & 255),
)

function pattern(length) {
  const start = below(source.length - length)
  return source.subarray(start, start + length)
}

/** What comes back has to be what was sent. */
function compare(sent, received) {
  sums.sent += sent.length
  sums.received += received.length
  if (!sent.equals(received)) wrong.push(`${received.length} of ${sent.length} bytes, or others`)
}

const echoing = () => pick(random, ['echo', 'awaits', 'pipes', 'detaches'])

const JOBS = {
  async 'small requests'() {
    const socket = await connect(servers[echoing()].port)
    for (let count = 1 + below(20); count > 0; count--) {
      const sent = pattern(1 + below(2000))
      const begun = performance.now()
      socket.write(sent)
      compare(sent, await take(socket, sent.length))
      times.push(performance.now() - begun)
    }
    socket.destroy()
  },
  async 'large messages'() {
    const socket = await connect(servers[echoing()].port)
    const sent = pattern(below(2 * MIB))
    const sending = send(socket, sent)
    compare(sent, await take(socket, sent.length))
    await sending
    socket.destroy()
  },
  async 'half-close'() {
    const socket = await connect(servers[echoing()].port)
    const sent = pattern(1 + below(200_000))
    const received = outcome(socket)
    socket.end(sent)
    compare(sent, (await received).bytes)
    socket.destroy()
  },
  async 'slow readers'() {
    const socket = await connect(servers[echoing()].port)
    const sent = pattern(below(MIB))
    const sending = send(socket, sent)
    const received = []
    for (let left = sent.length; left > 0; await setImmediate()) {
      const piece = await take(socket, Math.min(left, 16_384))
      if (piece.length === 0) break
      received.push(piece)
      left -= piece.length
    }
    compare(sent, Buffer.concat(received))
    await sending
    socket.destroy()
  },
  async resets() {
    const socket = await connect(servers[pick(random, Object.keys(servers))].port)
    socket.write(pattern(1 + below(100_000)))
    for (let turns = below(5); turns > 0; turns--) await setImmediate()
    const closed = once(socket, 'close')
    if (random() < 0.5) socket.resetAndDestroy()
    else socket.destroy()
    await closed
    sums.cut++
  },
  async dials() {
    const connection = await dialConnection('tcp', `127.0.0.1:${servers[echoing()].port}`)
    for (let count = 1 + below(5); count > 0; count--) {
      const sent = pattern(1 + below(100_000))
      connection.writer.writeBinary(sent)
      connection.writer.flush()
      await connection.reader.waitRead(sent.length)
      compare(sent, connection.reader.readBinary(sent.length))
      connection.reader.release()
    }
    connection[pick(random, ['close', 'reset'])]()
    await connection.closed
  },
  async timeouts() {
    const socket = await connect(servers[pick(random, ['idle', 'waits'])].port)
    socket.write('x')
    await outcome(socket)
    socket.destroy()
  },
  async loops() {
    setLoadBalance(pick(random, ['round-robin', 'random', 'least-connections']))
    if (random() < 0.9) return
    await (changing = changing.then(() => setNumLoops(1 + below(4))))
    sums.loops++
  },
}

let changing = Promise.resolve()

async function job() {
  const name = pick(random, Object.keys(JOBS))
  const late = new AbortController()
  const stalled = sleep(STALLED, 'stalled', { signal: late.signal }).catch(() => undefined)
  const outcomeOf = await Promise.race([JOBS[name]().catch((error) => error), stalled])
  late.abort()
  if (outcomeOf !== undefined) wrong.push(`${name}: ${outcomeOf.stack ?? outcomeOf}`)
  done[name] = (done[name] ?? 0) + 1
  sums.jobs++
}

/** Jobs, WIDTH at a time, until `end`. */
async function work(end) {
  const lane = async () => {
    while (performance.now() < end && wrong.length === 0) await job()
  }
  await Promise.all(Array.from({ length: WIDTH }, lane))
}

/** What there is when nothing goes on. */
async function rest() {
  await until(() => Object.values(servers).every(({ loop }) => loop.connections === 0))
  await setNumLoops(1)
  // What was detached is closed by Node, in its own time.
  await until(() => baseline === undefined || descriptors() <= baseline.descriptors).catch(() => undefined)
  globalThis.gc()
  await setImmediate()
  globalThis.gc()
  const { blocksOut, pinnedSends, connections, polls } = stats()
  const flips = polls.reduce((sum, poll) => sum + poll.flips, 0)
  const rss = process.memoryUsage.rss()
  const p99 = times.length > 0 ? percentile(times, 0.99) : 0
  times = []
  return { descriptors: descriptors(), blocksOut, pinnedSends, connections, flips, rss, p99 }
}

function expect(what, actual, most) {
  if (actual > most) wrong.push(`${what}: ${actual}, at most ${most} expected`)
}

const begun = performance.now()
const end = begun + MINUTES * 60_000
endsBy(end - begun + 180_000)
console.log(`seed ${seed}, ${MINUTES} minutes, driver ${process.env.NETPOLL_DRIVER ?? 'adaptive'}`)
let baseline
const memory = []
while (performance.now() < end && wrong.length === 0) {
  await work(Math.min(end, performance.now() + PERIOD))
  const now = await rest()
  const minute = (performance.now() - begun) / 60_000
  if (baseline !== undefined) {
    expect('descriptors', now.descriptors, baseline.descriptors)
    expect('blocks', now.blocksOut, baseline.blocksOut + 4)
  }
  baseline ??= now
  expect('connections', now.connections, 0)
  expect('pinned sends', now.pinnedSends, 0)
  if (minute >= MINUTES / 3) memory.push({ minute, rss: now.rss })
  console.log(
    `${minute.toFixed(1)} min: ${sums.jobs} jobs, ${Math.round(sums.sent / MIB)} MiB, ${now.descriptors} descriptors, ` +
      `${now.blocksOut} blocks, RSS ${(now.rss / MIB).toFixed(1)} MiB, p99 ${now.p99.toFixed(1)} ms, ${now.flips} flips`,
  )
}
if (memory.length > 1) {
  const half = Math.ceil(memory.length / 2)
  const grown = least(memory.slice(half)) - least(memory.slice(0, half))
  const slope = (grown / MIB / (memory.at(-1).minute - memory[0].minute)) * 2 * 60
  const since = memory[0].minute.toFixed(1)
  console.log(
    `memory: at least ${(grown / MIB).toFixed(1)} MiB more since minute ${since}, ${slope.toFixed(1)} MiB/h`,
  )
  expect('more bytes of memory', grown, Math.max(GROWTH, (MINUTES / 60) * MIB))
}
if (sums.sent !== sums.received) wrong.push(`${sums.sent} bytes sent, ${sums.received} received`)
for (const { stop } of Object.values(servers)) await stop()
console.log(JSON.stringify({ ...sums, ...done }))
for (const line of wrong.slice(0, 20)) console.log(`  ✘ ${line}`)
console.log(`\n${wrong.length === 0 ? 1 : 0} passed, ${wrong.length === 0 ? 0 : 1} failed`)
process.exit(wrong.length === 0 ? 0 : 1)

function least(samples) {
  return Math.min(...samples.map(({ rss }) => rss))
}

/** It ends, whatever happens. */
function endsBy(milliseconds) {
  globalThis
    .setTimeout(() => {
      console.log(`it did not end; seed ${seed}\n\n0 passed, 1 failed`)
      process.exit(1)
    }, milliseconds)
    .unref()
}
