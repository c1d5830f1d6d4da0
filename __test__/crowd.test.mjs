// A thousand clients at once, and each gets its own bytes back.

import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import test from 'ava'
import { connect, leaksNothing, serve } from './fixtures/peer.mjs'

const CLIENTS = 1000

/** Sends `messages` of its own one after the other, each when the answer to the one before has come. */
async function client(t, port, messages) {
  const socket = await connect(port)
  for (let count = 0; count < messages; count++) {
    const sent = randomBytes(1 + ((count * 7919) % 5000))
    socket.write(sent)
    const got = []
    for (let left = sent.length; left > 0;) {
      const chunk = socket.read() ?? (await once(socket, 'readable'), socket.read())
      if (chunk === null) continue
      got.push(chunk)
      left -= chunk.length
    }
    t.deepEqual(Buffer.concat(got), sent)
  }
  socket.end()
  socket.resume()
  await once(socket, 'close')
}

async function crowd(t, onRequest) {
  const server = serve(onRequest)
  await Promise.all(Array.from({ length: CLIENTS }, () => client(t, server.port, 5)))
  await server.stop()
  t.is(server.loop.connections, 0)
}

test.serial('a thousand clients get their own bytes back by blocks that are handed on', (t) =>
  leaksNothing(() =>
    crowd(t, ({ reader, writer }) => {
      writer.append(reader)
      writer.flush()
    }),
  ),
)

test.serial('a thousand clients get their own bytes back by copies, after other handlers have run', (t) =>
  leaksNothing(() =>
    crowd(t, async ({ reader, writer }) => {
      const bytes = reader.readBinary(reader.length)
      await new Promise(setImmediate)
      writer.writeBinary(bytes)
      writer.flush()
    }),
  ),
)

test.serial(
  'views that a thousand handlers keep over an await never show bytes of another connection',
  async (t) => {
    let wrong = 0
    const server = serve(async ({ reader, writer }) => {
      const view = reader.next(reader.length)
      const before = createHash('sha1').update(view).digest('hex')
      await new Promise(setImmediate)
      if (createHash('sha1').update(view).digest('hex') !== before) wrong++
      writer.writeBinary(view)
      writer.flush()
    })
    await Promise.all(Array.from({ length: CLIENTS }, () => client(t, server.port, 3)))
    await server.stop()
    t.is(wrong, 0)
  },
)
