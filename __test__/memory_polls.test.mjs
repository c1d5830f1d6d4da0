// An environment with little memory and several polls: which share it, so that no message of any of them stalls.

import { createHash, randomBytes } from 'node:crypto'
import test from 'ava'
import { configure, stats } from '../index.js'
import { connect, serve, settled, take, until } from './fixtures/peer.mjs'

const MIB = 1024 * 1024
const LIMIT = 24 * MIB
const CLIENTS = 48

configure({ maxMemory: LIMIT, numLoops: 4 })
test.before(settled)

/** An answer for each message: what it was. */
const answer = ({ reader, writer }, size) => {
  writer.writeBinary(createHash('sha256').update(reader.next(size)).digest())
  writer.flush()
}

const HANDLERS = {
  'a handler that waits for a size': (size) => async (connection) => {
    await connection.reader.waitRead(size)
    answer(connection, size)
  },
  'a handler that returns until all is here': (size) => (connection) => {
    if (connection.reader.length >= size) answer(connection, size)
  },
  'a handler that waits for a delimiter': () => async (connection) => {
    answer(connection, await connection.reader.waitUntil('\n'))
  },
}

for (const [name, handler] of Object.entries(HANDLERS)) {
  for (const size of [MIB, 2 * MIB]) {
    test.serial(`${CLIENTS} messages of ${size / MIB} MiB for four polls all get through: ${name}`, async (t) => {
      const errors = []
      const { port, loop, stop } = serve(handler(size), {
        maxReadBytes: size,
        onError: (error) => errors.push(error.code),
      })
      const message = randomBytes(size).map((byte) => (byte === 10 ? 11 : byte))
      message[size - 1] = 10
      const digest = createHash('sha256').update(message).digest()
      const half = size / 2
      const crowd = []
      for (let i = 0; i < CLIENTS; i++) crowd.push(await connect(port))
      for (const socket of crowd) socket.write(message.subarray(0, half))
      await until(() => stats().bytesOut >= LIMIT / 2, 'they fill the memory')
      // One says nothing more until the others have their answers, and one goes away.
      const [silent, gone, ...others] = crowd
      gone.resetAndDestroy()
      for (const socket of others) socket.write(message.subarray(half))
      for (const socket of others) t.true(digest.equals(await take(socket, 32)), errors.join())
      silent.write(message.subarray(half))
      t.true(digest.equals(await take(silent, 32)), errors.join())
      t.true(errors.every((code) => code === 'ECONNRESET'), errors.join())
      for (const socket of crowd) socket.destroy()
      await until(() => loop.connections === 0)
      await stop()
      await until(() => stats().bytesOut < LIMIT / 4, 'the memory is back')
    })
  }
}
