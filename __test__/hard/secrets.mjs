// A server of which each connection has a secret of its own, 8 bytes that it sends over and over, and clients that
// come, send, and go in all ways. What shows up where it does not belong is counted. The argument is JSON: the seed,
// what is done with bytes (one or several of the kinds below), how many clients, and how many of them at a time.

import { setImmediate } from 'node:timers/promises'
import { createEventLoop, createListener, stats } from '../../index.js'
import { chance, pick } from '../fixtures/chance.mjs'
import { eachOf } from '../fixtures/figures.mjs'
import { connect, send, take, until } from '../fixtures/peer.mjs'

const { seed, kinds, clients, width = 40 } = JSON.parse(process.argv[2])
const counts = { wrong: 0, foreign: 0, echoed: 0, checked: 0, done: 0, cut: 0, failures: {} }
const random = chance(seed)
const SECRET = 8
/** Views that were kept for too long, with the secret that they showed. */
const kept = []

const kindOf = (i) => kinds[i % kinds.length]
const secretOf = (i) => `S${i.toString(36).padStart(6, '0')};`

/** Whether there is nothing but the secret. */
function check(bytes, secret) {
  counts.checked++
  if (bytes.equals(Buffer.alloc(bytes.length, secret))) return true
  counts.wrong++
  const others = bytes.toString('latin1').match(/S[0-9a-z]{6};/g) ?? []
  if (others.some((one) => one !== secret)) counts.foreign++
  return false
}

/** So many turns of the loop that others have come in between. */
async function later() {
  for (let turns = Math.floor(random() * 4); turns > 0; turns--) await setImmediate()
}

function keep(view, secret) {
  kept.push([view, secret])
  if (kept.length > 200) kept.shift()
}

const KINDS = {
  async copies({ reader, writer }, n, secret) {
    const copy = reader.readBinary(n)
    await later()
    check(copy, secret)
    writer.writeBinary(copy)
  },
  async strings({ reader, writer }, n, secret) {
    const text = reader.readString(n, 'latin1')
    await later()
    check(Buffer.from(text, 'latin1'), secret)
    writer.writeString(text, 'latin1')
  },
  moves({ reader, writer }, n) {
    writer.append(reader.slice(n))
  },
  async slices({ reader, writer }, n, secret) {
    const slice = reader.slice(n)
    reader.release()
    await later()
    check(slice.peek(n), secret)
    writer.append(slice)
  },
  async dropped({ reader, writer }, n, secret) {
    const slice = reader.slice(n)
    const copy = slice.readBinary(n)
    slice.release()
    await later()
    check(copy, secret)
    writer.writeBinary(copy)
  },
  async views({ reader, writer }, n, secret) {
    const view = reader.next(n)
    await later()
    check(view, secret)
    writer.writeBinary(view)
    reader.release()
  },
  /** Nothing of what is kept too long is looked at. */
  async keeps({ reader, writer }, n, secret) {
    const view = reader.next(n)
    const copy = Buffer.from(view)
    keep(view, secret)
    reader.release()
    await later()
    check(copy, secret)
    writer.writeBinary(copy)
  },
  async closes(connection, n, secret) {
    await KINDS.views(connection, n, secret)
    if (random() < 0.2) {
      connection.writer.flush()
      connection[pick(random, ['close', 'reset', 'end'])]()
    }
  },
  /** What must not be done: views are looked at after their release. */
  async unsafe({ reader, writer }, n, secret) {
    const view = reader.next(n)
    writer.writeBinary(Buffer.from(view))
    keep(view, secret)
    reader.release()
    await later()
    const [late, own] = pick(random, kept)
    if (late.length > 0) check(late, own)
  },
  /** What takes a view's memory away. */
  async detaches({ reader, writer }, n, secret) {
    const view = reader.next(n)
    writer.writeBinary(Buffer.from(view))
    detach(view)
    await later()
    if (view.length > 0) check(view, secret)
  },
  /** Memory of the user that is given away while it is being sent. The one it goes to is the only one to notice. */
  async gives({ reader, writer }, n) {
    reader.skip(n)
    const bytes = Buffer.from(new ArrayBuffer(Math.max(n, 64 << 10)))
    writer.writeBinary(bytes)
    writer.flush()
    const { port1, port2 } = new MessageChannel()
    try {
      port1.postMessage(bytes.buffer, [bytes.buffer])
      counts.given = (counts.given ?? 0) + 1
    } catch (error) {
      if (error.name !== 'DataCloneError') throw error
      counts.refused = (counts.refused ?? 0) + 1
    }
    port1.close()
    port2.close()
  },
}

const WAYS = {
  stream: (view) => void new ReadableStream({ type: 'bytes', start: (to) => to.enqueue(view) }),
  clone: (view) => void structuredClone(view.buffer, { transfer: [view.buffer] }),
  post(view) {
    const { port1, port2 } = new MessageChannel()
    try {
      port1.postMessage(view, [view.buffer])
    } finally {
      port1.close()
      port2.close()
    }
  },
  // Node 20 has no transfer() yet.
  ...('transfer' in ArrayBuffer.prototype && { transfer: (view) => void view.buffer.transfer() }),
}

function detach(view) {
  const way = pick(random, Object.keys(WAYS))
  counts[way] = (counts[way] ?? 0) + 1
  try {
    WAYS[way](view)
  } catch (error) {
    // Some versions of Node refuse what napi maps.
    if (error.name !== 'DataCloneError') throw error
    counts.refused = (counts.refused ?? 0) + 1
  }
}

const listener = createListener('tcp', '127.0.0.1:0')
const loop = createEventLoop(
  async (connection, context) => {
    const { reader, writer } = connection
    const n = reader.length - (reader.length % SECRET)
    if (n === 0) return
    await KINDS[context.kind](connection, n, context.secret)
    if (connection.isActive()) writer.flush()
  },
  {
    async onConnect(connection) {
      await connection.reader.waitRead(SECRET)
      const secret = connection.reader.peek(SECRET).toString('latin1')
      const kind = kindOf(parseInt(secret.slice(1), 36))
      if (kind === 'pipes') pipe(connection)
      return { secret, kind }
    },
    onError({ code, message }) {
      counts.failures[code ?? message] = (counts.failures[code ?? message] ?? 0) + 1
    },
  },
)
loop.serve(listener)

function pipe(connection) {
  const duplex = connection.toDuplex()
  duplex.on('error', () => undefined)
  duplex.pipe(duplex)
}

/** One that is answered with what it sends, until it leaves in its own way or is closed. */
async function client(i) {
  const secret = secretOf(i)
  const socket = await connect(listener.address().port)
  const messages = 1 + Math.floor(random() * 6)
  for (let count = 0; count < messages; count++) {
    const size = SECRET * (1 + Math.floor(random() ** 4 * 40_000))
    const sending = send(socket, Buffer.alloc(size, secret)).catch(() => undefined)
    if (random() < 0.1) {
      counts.cut++
      if (random() < 0.5) socket.resetAndDestroy()
      else socket.destroy()
      return
    }
    const answer = await take(socket, size)
    await sending
    counts.echoed += answer.length
    // What this one is answered with is memory that was given away.
    if (kindOf(i) === 'gives') continue
    if (!check(answer, secret)) break
    if (answer.length < size) break
  }
  counts.done++
  socket.destroy()
}

await eachOf(clients, width, client)
await until(() => loop.connections === 0)
await loop.shutdown()
const { pinnedSends, polls } = stats()
console.log(
  JSON.stringify({ ...counts, pinnedSends, flips: polls.reduce((sum, { flips }) => sum + flips, 0) }),
)
