// A multiplexed RPC server: many calls at once on one connection, each answered when it is done. A frame is a u32
// with the length of what follows, a u32 with the call's number, both big endian, and JSON:
//
//   7 { "method": "add", "params": [1, 2] }   is answered by   7 { "result": 3 }   or   7 { "error": "..." }
//
//   node examples/mux.mjs [port]         then:  node examples/mux-client.mjs [port]

import { setTimeout } from 'node:timers/promises'
import { createEventLoop, createListener } from '../index.js'
import { ShardQueue } from '../mux.js'

const maxFrame = 1024 * 1024
const maxCalls = 1000 // at once, on one connection

const methods = {
  add: (a, b) => a + b,
  later: (milliseconds, value) => setTimeout(Math.min(milliseconds, 10_000), value),
}

const loop = createEventLoop(serve, {
  // The connection is closed already. Whoever sends such frames, or leaves in the middle, hears no more.
  onError: (error, { remoteAddress }) => console.error(`mux: ${remoteAddress}: ${error.message}`),
})

/** Runs once per connection: it is pending until the client has finished and all its calls are answered. */
async function serve(connection) {
  const { reader } = connection
  const queue = new ShardQueue(connection)
  const calls = new Set()
  while (await hasMore(reader)) {
    const { number, body } = await readFrame(reader)
    const answered = answer(connection, queue, number, body).finally(() => calls.delete(answered))
    calls.add(answered)
    if (calls.size === maxCalls) await Promise.race(calls)
  }
  await Promise.all(calls)
  await queue.close()
}

/** Whether another byte has come; false when the client has finished sending. */
async function hasMore(reader) {
  try {
    await reader.waitRead(1)
    return true
  } catch (error) {
    if (error.code === 'ERR_NETPOLL_EOF') return false
    throw error
  }
}

async function readFrame(reader) {
  await reader.waitRead(8)
  const length = reader.readUInt32BE()
  if (length < 4 || length > maxFrame) throw new RangeError(`a frame of ${length} bytes`)
  await reader.waitRead(length)
  const frame = { number: reader.readUInt32BE(), body: reader.readString(length - 4) }
  reader.release()
  return frame
}

async function answer(connection, queue, number, body) {
  const text = await call(body)
  const head = Buffer.alloc(8)
  head.writeUInt32BE(4 + Buffer.byteLength(text), 0)
  head.writeUInt32BE(number, 4)
  try {
    queue.add(head, text) // goes out with all that are done in this tick
    await connection.flushed() // so that a client which does not read its answers runs out of calls
  } catch {
    // The connection has ended, as the wait for the next frame is told too.
  }
}

async function call(body) {
  try {
    const { method, params } = JSON.parse(body)
    if (!Object.hasOwn(methods, method)) throw new TypeError(`no method ${method}`)
    return JSON.stringify({ result: await methods[method](...params) })
  } catch (error) {
    return JSON.stringify({ error: error.message })
  }
}

const listener = createListener('tcp', `127.0.0.1:${process.argv[2] ?? 8083}`)
console.log(`Multiplexed RPC server on 127.0.0.1:${listener.address().port}`)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
await loop.serve(listener)

function stop() {
  loop.shutdown({ timeout: 1000 }).catch(() => {}) // who is not done by then is cut
}
