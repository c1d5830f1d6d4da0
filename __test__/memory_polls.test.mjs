// An environment with little memory and several polls: which share it, so that no message of any of them stalls.

import { createHash, randomBytes } from 'node:crypto'
import test from 'ava'
import { configure, setNumLoops, stats } from '../index.js'
import { connect, serve, settled, take, until } from './fixtures/peer.mjs'

const MIB = 1024 * 1024
const LIMIT = 24 * MIB
const CLIENTS = 48
const SIZE = 2 * MIB

configure({ maxMemory: LIMIT })
test.before(settled)

/** An answer for each message: what it was. */
const answer = ({ reader, writer }, size) => {
  writer.writeBinary(createHash('sha256').update(reader.next(size)).digest())
  writer.flush()
}

const HANDLERS = {
  'a handler that waits for a size': async (connection) => {
    await connection.reader.waitRead(SIZE)
    answer(connection, SIZE)
  },
  'a handler that returns until all is here': (connection) => {
    if (connection.reader.length >= SIZE) answer(connection, SIZE)
  },
  'a handler that waits for a delimiter': async (connection) => {
    answer(connection, await connection.reader.waitUntil('\n'))
  },
}

for (const [name, handler] of Object.entries(HANDLERS)) {
  for (const polls of [4, 8]) {
    test.serial(
      `${CLIENTS} messages for ${polls} polls all get through, one after the other: ${name}`,
      async (t) => {
        await setNumLoops(polls)
        const errors = []
        const { port, loop, stop } = serve(handler, {
          maxReadBytes: SIZE,
          onError: (error) => errors.push(error.code),
        })
        const message = randomBytes(SIZE).map((byte) => (byte === 10 ? 11 : byte))
        message[SIZE - 1] = 10
        const digest = createHash('sha256').update(message).digest()
        const half = SIZE / 2
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
        t.true(
          errors.every((code) => code === 'ECONNRESET'),
          errors.join(),
        )
        for (const socket of crowd) socket.destroy()
        await until(() => loop.connections === 0)
        await stop()
        await until(() => stats().bytesOut < LIMIT / 4, 'the memory is back')
      },
    )
  }
}
