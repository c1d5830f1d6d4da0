// Messages of every size, cut by the network at every kind of place, and taken in three ways.

import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import test from 'ava'
import { connect, send, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1024
const MIB = 1024 * KIB

test.before(settled)

/** Sizes at which something changes: reads, blocks, copies, marks. */
const SIZES = [
  ...[1, 2, 3, 5, 8, 63, 64, 65, 4095, 4096, 4097],
  ...[16 * KIB - 1, 16 * KIB, 64 * KIB - 5, 64 * KIB - 4, 64 * KIB, 64 * KIB + 1, 256 * KIB],
  ...[MIB - 1, MIB, MIB + 1, 3 * MIB, 8 * MIB],
]

/** u32 length, then the body; the answer is the SHA-256 of the body. */
const takers = {
  waitRead: async ({ reader, writer }) => {
    await reader.waitRead(4)
    const size = reader.readUInt32BE()
    await reader.waitRead(size)
    answer(writer, reader.next(size))
  },
  'a handler that returns until enough is here': ({ reader, writer }) => {
    while (reader.length >= 4) {
      const size = reader.peek(4).readUInt32BE()
      if (reader.length < 4 + size) return
      reader.skip(4)
      answer(writer, reader.next(size))
    }
  },
}

/** Takes what ends with the delimiter, whose last byte is nowhere else in it. */
const untilTaker =
  (delimiter) =>
  async ({ reader, writer }) => {
    const size = await reader.waitUntil(delimiter)
    answer(writer, reader.next(size).subarray(0, -delimiter.length))
  }

function answer(writer, body) {
  writer.writeBinary(createHash('sha256').update(body).digest())
  writer.flush()
}

function framed(body) {
  const head = Buffer.alloc(4)
  head.writeUInt32BE(body.length)
  return Buffer.concat([head, body])
}

/** A body without newlines, which is overwritten where it has some, and a delimiter that ends with one. */
const ended = (delimiter) => (body) => {
  for (let at = body.indexOf('\n'); at >= 0; at = body.indexOf('\n', at)) body[at] = 13
  return Buffer.concat([body, Buffer.from(delimiter)])
}

/** Where a message is cut: inside its head, right behind it, inside its end, and into odd pieces. */
function pieces(message, kind) {
  const cuts = {
    whole: [],
    head: [1, 3],
    'head and body': [4, 5],
    tail: [message.length - 3, message.length - 2, message.length - 1],
    thirds: [Math.floor(message.length / 3), Math.floor((2 * message.length) / 3)],
    blocks: Array.from(
      { length: Math.min(20, Math.floor(message.length / 65536)) },
      (_, i) => (i + 1) * 65536 - 1,
    ),
  }[kind]
  const places = [0, ...cuts.filter((cut) => cut > 0 && cut < message.length), message.length]
  return places.slice(1).map((end, index) => message.subarray(places[index], end))
}

const KINDS = ['whole', 'head', 'head and body', 'tail', 'thirds', 'blocks']

async function exchange(t, taker, make, sizes) {
  let connection
  const server = serve(taker, { onPrepare: (accepted) => void (connection = accepted) })
  const socket = await connect(server.port)
  socket.setNoDelay(true)
  let sent = 0
  for (const size of sizes) {
    const body = randomBytes(size)
    const message = make(body)
    for (const kind of size > MIB ? ['whole', 'thirds', 'tail'] : KINDS) {
      for (const piece of pieces(message, kind)) {
        await send(socket, piece)
        sent += piece.length
        // No piece is read together with the one behind it.
        await until(() => connection?.bytesRead === sent, `${size} bytes, ${kind}: ${sent} bytes are read`)
      }
      t.deepEqual(
        await take(socket, 32),
        createHash('sha256').update(body).digest(),
        `${size} bytes, ${kind}`,
      )
    }
  }
  socket.end()
  socket.resume()
  await once(socket, 'close')
  await server.stop()
}

async function byteByByte(t, taker, make) {
  let calls = 0
  const server = serve((connection) => {
    calls++
    return taker(connection)
  })
  const socket = await connect(server.port)
  socket.setNoDelay(true)
  const body = randomBytes(2000)
  const message = make(body)
  for (const byte of message) await send(socket, Buffer.of(byte))
  t.deepEqual(await take(socket, 32), createHash('sha256').update(body).digest())
  t.true(calls <= message.length + 1, `${calls} calls for ${message.length} bytes`)
  socket.destroy()
  await server.stop()
}

const ways = Object.entries(takers).map(([name, taker]) => [name, taker, framed])
for (const delimiter of ['\n', '\r\n\r\n']) {
  ways.push([`waitUntil(${JSON.stringify(delimiter)})`, untilTaker(delimiter), ended(delimiter)])
}

for (const [name, taker, make] of ways) {
  test(`messages of 1 B to 8 MiB, cut anywhere, are taken whole by ${name}`, (t) =>
    exchange(t, taker, make, SIZES))

  test(`a client that sends one byte at a time is understood by ${name}`, (t) => byteByByte(t, taker, make))
}

test('many messages in one piece are answered in order, the last one when its rest has come', async (t) => {
  const server = serve(takers['a handler that returns until enough is here'])
  const socket = await connect(server.port)
  const bodies = Array.from({ length: 500 }, (_, index) => randomBytes(1 + ((index * 37) % 900)))
  const stream = Buffer.concat(bodies.map(framed))
  await send(socket, stream.subarray(0, -1))
  await send(socket, stream.subarray(-1))
  const answers = await take(socket, 32 * bodies.length)
  t.deepEqual(answers, Buffer.concat(bodies.map((body) => createHash('sha256').update(body).digest())))
  socket.destroy()
  await server.stop()
})
