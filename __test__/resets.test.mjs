// Peers that vanish with a RST, alone and in crowds, in the midst of requests and of answers.

import { once } from 'node:events'
import test from 'ava'
import { connect, deferred, leaksNothing, serve, settled, take } from './fixtures/peer.mjs'

const KIB = 1024
const CLIENTS = 200

test.before(settled)

/** Connects a crowd, lets each do `what`, resets it, and waits until the server has seen all ends. */
async function crowdOfResets(t, onRequest, what, options) {
  let ended = 0
  const all = deferred()
  const server = serve(onRequest, {
    ...options,
    onPrepare: (connection) => {
      connection.addCloseCallback(() => {
        if (++ended === CLIENTS) all.resolve()
      })
    },
  })
  const crowd = await Promise.all(Array.from({ length: CLIENTS }, () => connect(server.port)))
  await Promise.all(
    crowd.map(async (socket) => {
      await what(socket)
      const closed = once(socket, 'close')
      socket.resetAndDestroy()
      await closed
    }),
  )
  await all.promise
  t.is(ended, CLIENTS)
  // The server is none the worse.
  const socket = await connect(server.port)
  socket.write(Buffer.alloc(8))
  t.is((await take(socket, 8)).length, 8)
  socket.destroy()
  await server.stop()
}

const write = (socket, bytes) => new Promise((resolve) => socket.write(bytes, resolve))

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

test.serial('resets in the midst of requests leave nothing behind, also without onError', (t) =>
  leaksNothing(() =>
    crowdOfResets(
      t,
      async (connection) => {
        await connection.reader.waitRead(8)
        echo(connection)
      },
      (socket) => write(socket, Buffer.alloc(7)),
    ),
  ),
)

test.serial('resets in the midst of answers leave nothing behind, also without onError', (t) =>
  leaksNothing(() =>
    crowdOfResets(
      t,
      async (connection) => {
        const { reader, writer } = connection
        if (reader.length === 8) return echo(connection)
        reader.skip(reader.length)
        writer.writeBinary(Buffer.alloc(512 * KIB, 1))
        writer.flush()
        await connection.flushed()
        writer.writeBinary(Buffer.alloc(8 * 1024 * KIB, 2))
        writer.flush()
        await connection.flushed()
      },
      async (socket) => {
        await write(socket, Buffer.alloc(9))
        await take(socket, 1)
      },
    ),
  ),
)

test.serial('resets while views and slices are out leave nothing behind', (t) =>
  leaksNothing(() =>
    crowdOfResets(
      t,
      async (connection) => {
        const { reader, writer } = connection
        if (reader.length === 8) return echo(connection)
        await reader.waitRead(40 * KIB)
        const slice = reader.slice(reader.length >> 1)
        const view = reader.next(reader.length)
        await t.throwsAsync(reader.waitRead(1))
        t.true(view.every((byte) => byte === 3) && slice.length > 0)
        slice.release()
        writer.writeBinary(view)
        t.false(writer.flush())
      },
      (socket) => write(socket, Buffer.alloc(40 * KIB, 3)),
    ),
  ),
)
