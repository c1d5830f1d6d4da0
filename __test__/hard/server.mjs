// A server whose process is watched from outside. Its argument is JSON: the name of a handler, options of the loop and of
// the listener, where it listens, and whether timers are watched. It prints its port, and answers each line of its
// input with a report; 'gc' collects before.

import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { createEventLoop, createListener, stats } from '../../index.js'
import { percentile } from '../fixtures/figures.mjs'

const KIB = 1024
const FRAME = 64 * KIB
const {
  handler,
  options = {},
  bytes = 0,
  address = '127.0.0.1:0',
  listens,
  timers,
} = JSON.parse(process.argv[2])
const counts = { calls: 0, opened: 0, closed: 0, written: 0, received: 0, wrong: 0, frames: 0 }
const failures = {}
const chunk = Buffer.alloc(FRAME, 1)
const awake = new WeakSet()
/** Milliseconds from the end of a handler that has consumed everything to the next call for its connection. */
const resumed = []
const rested = new WeakMap()
/** Milliseconds that timers of none have taken. */
const late = []

/** Counts a frame that says which one it is. */
function count(frame) {
  if (frame.readUInt32BE(0) !== counts.frames++) counts.wrong++
  counts.received += frame.length
}

const handlers = {
  echo({ reader, writer }) {
    writer.append(reader)
    writer.flush()
  },
  leaves: () => undefined,
  async sleeps(connection) {
    const { reader } = connection
    if (!awake.has(connection)) await setTimeout(5000)
    awake.add(connection)
    counts.received += reader.length
    reader.skip(reader.length)
  },
  async naps(connection) {
    if (rested.has(connection)) resumed.push(performance.now() - rested.get(connection))
    await setTimeout(50)
    counts.received += connection.reader.length
    connection.reader.skip(connection.reader.length)
    rested.set(connection, performance.now())
  },
  waits: ({ reader }) => reader.waitRead(100),
  views({ reader }) {
    while (reader.length >= FRAME) count(reader.next(FRAME))
  },
  copies({ reader }) {
    while (reader.length >= FRAME) count(reader.readBinary(FRAME))
  },
  ignores({ writer }) {
    while (counts.written < bytes) {
      counts.written += writer.writeBinary(chunk)
      writer.flush()
    }
  },
  async awaits(connection) {
    connection.reader.skip(connection.reader.length)
    while (counts.written < bytes) {
      counts.written += connection.writer.writeBinary(chunk)
      if (!connection.writer.flush()) await connection.flushed()
    }
    connection.close()
  },
  async streams(connection) {
    const duplex = connection.toDuplex()
    duplex.resume()
    while (counts.written < bytes) {
      counts.written += chunk.length
      if (!duplex.write(chunk)) await new Promise((resolve) => duplex.once('drain', resolve))
    }
    duplex.end()
  },
}

const listener = createListener('tcp', address, listens)
const loop = createEventLoop(
  (connection) => {
    counts.calls++
    return handlers[handler](connection)
  },
  {
    onPrepare(connection) {
      counts.opened++
      connection.addCloseCallback(() => counts.closed++)
    },
    onError({ code, message }) {
      failures[code ?? message] = (failures[code ?? message] ?? 0) + 1
    },
    ...options,
  },
)
loop.serve(listener)
console.log(listener.address().port)
if (timers) void watchTimers()
for await (const line of createInterface(process.stdin)) {
  const { turns, bytesOut, polls } = stats()
  const accepts = polls.reduce((sum, poll) => sum + poll.accepts, 0)
  const state = { turns, bytesOut, accepts, connections: loop.connections, ...(line === 'gc' && collected()) }
  if (line === 'delays') Object.assign(state, { resumed, late: percentile(late, 0.99) })
  console.log(JSON.stringify({ ...counts, ...state, failures }))
}
process.exit()

async function watchTimers() {
  for (;;) {
    const begun = performance.now()
    await setTimeout(0)
    late.push(performance.now() - begun)
  }
}

/** What is left after a collection. It needs a descriptor, which not every process has. */
function collected() {
  globalThis.gc()
  const { external, heapUsed } = process.memoryUsage()
  return { external, heapUsed, chunkBytes: stats().chunkBytes }
}
