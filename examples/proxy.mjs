// A relay between clients that cannot reach each other: each sends the name of a room and a newline, and the
// first two in a room are joined as if they were connected. The bytes are moved block by block from one
// connection to the other and never copied.
//
//   node examples/proxy.mjs [port]       then, in two terminals:  nc 127.0.0.1 8082  and type the room's name

import { createEventLoop, createListener } from '../index.js'

/** By room: the client that waits there. `join` gives it its peer. */
const waiting = new Map()

const loop = createEventLoop(serve, {
  allowHalfOpen: true, // one side's end is passed on to the other side, which may go on sending
  readTimeout: 10_000, // to name a room
  idleTimeout: 10_000, // to begin with it; a connection whose handler is pending is not idle
  onError: (error, { id }) => console.error(`proxy: connection ${id}: ${error.message}`),
})

/** Runs once per connection: it is pending for as long as the connection has something to send. */
async function serve(connection) {
  const { reader } = connection
  const length = await reader.waitUntil('\n')
  const room = reader.readString(length).trim()
  connection.setReadTimeout(0)
  await pump(connection, await peerIn(room, connection))
}

/** The other client of the room, once it is there; rejects when this one has gone before. */
function peerIn(room, connection) {
  const other = waiting.get(room)
  if (other) {
    waiting.delete(room)
    other.join(connection)
    return other.connection
  }
  return new Promise((join, leave) => {
    waiting.set(room, { connection, join })
    connection.addCloseCallback(() => {
      if (waiting.get(room)?.connection === connection) waiting.delete(room)
      leave(new Error(`left room ${room}`))
    })
  })
}

/** Moves all that comes from one connection to the other, at the pace of the slower one. */
async function pump(from, to) {
  try {
    while (await hasMore(from.reader)) {
      to.writer.append(from.reader.slice(from.reader.length))
      from.reader.release()
      if (!to.writer.flush()) await to.flushed()
    }
    to.end()
  } catch (error) {
    to.reset() // the other side must not take a cut stream for a complete one
    throw error
  }
}

/** Whether another byte has come; false when the peer has finished sending. */
async function hasMore(reader) {
  try {
    await reader.waitRead(1)
    return true
  } catch (error) {
    if (error.code === 'ERR_NETPOLL_EOF') return false
    throw error
  }
}

const listener = createListener('tcp', `127.0.0.1:${process.argv[2] ?? 8082}`)
console.log(`Relay on 127.0.0.1:${listener.address().port}`)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
await loop.serve(listener)

function stop() {
  loop.shutdown({ timeout: 1000 }).catch(() => {}) // who is not done by then is cut
}
