// An environment with little memory: what stops, what fails, and what goes on.

import { createHash, randomBytes } from 'node:crypto'
import test from 'ava'
import { configure, stats } from '../index.js'
import { connect, deferred, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1024
const MIB = 1024 * KIB
const LIMIT = 16 * MIB

configure({ maxMemory: LIMIT })
test.before(settled)

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

test.serial('a hundred uploads at once fill no more than the limit, and all of them arrive', async (t) => {
  const sent = randomBytes(MIB)
  const digest = createHash('sha256').update(sent).digest()
  let most = 0
  const server = serve(async (connection) => {
    const { reader, writer } = connection
    const hash = createHash('sha256')
    for (let left = sent.length; left > 0; ) {
      await reader.waitRead(1)
      left -= reader.length
      // The bytes stay here while the others' come in.
      const view = reader.next(reader.length)
      await new Promise(setImmediate)
      most = Math.max(most, stats().bytesOut)
      hash.update(view)
      reader.release()
    }
    writer.writeBinary(hash.digest())
    writer.flush()
  })
  const answers = await Promise.all(
    Array.from({ length: 100 }, async () => {
      const socket = await connect(server.port)
      socket.write(sent)
      const answer = await take(socket, 32)
      socket.destroy()
      return answer
    }),
  )
  for (const answer of answers) t.deepEqual(answer, digest)
  t.true(most <= LIMIT, `${most} bytes`)
  await server.stop()
})

test.serial('when memory is full the connection with most pending output fails, and no other', async (t) => {
  const failure = deferred()
  const greedy = serve(
    async (connection) => {
      const { reader, writer } = connection
      reader.skip(reader.length)
      for (;;) {
        writer.writeBinary(Buffer.alloc(8 * KIB, 1))
        if (!writer.flush()) await new Promise(setImmediate)
      }
    },
    { onError: (error, connection) => failure.resolve({ error, connection }) },
  )
  const modest = serve(echo)
  const neighbour = await connect(modest.port)
  neighbour.write('before')
  t.is((await take(neighbour, 6)).toString(), 'before')

  const peer = await connect(greedy.port)
  peer.pause()
  peer.write('go')
  const { error } = await failure.promise
  t.is(error.code, 'ERR_NETPOLL_OUTPUT_LIMIT')
  await until(() => greedy.loop.connections === 0)

  neighbour.write('after')
  t.is((await take(neighbour, 5)).toString(), 'after')
  await until(() => stats().bytesOut < LIMIT / 4, 'its memory is back')
  neighbour.destroy()
  peer.destroy()
  await greedy.stop()
  await modest.stop()
})

test.serial('a slow connection with the beginning of a message holds no block that others share', async (t) => {
  const SLOW = 100
  const slow = serve(({ reader }) => {
    if (reader.length >= 20) reader.skip(20)
  })
  const fast = serve(echo)
  const busy = await connect(fast.port)
  await settled()
  const before = stats().bytesOut
  const crowd = []
  for (let count = 0; count < SLOW; count++) {
    const socket = await connect(slow.port)
    socket.write(Buffer.alloc(10))
    crowd.push(socket)
    // A shared block's worth of other traffic, so that each slow one has bytes in another block.
    busy.write(Buffer.alloc(64 * KIB))
    await take(busy, 64 * KIB)
  }
  await settled()
  const held = stats().bytesOut - before
  t.true(held <= SLOW * 4 * KIB + MIB, `${held} bytes for ${SLOW} connections`)
  t.is(slow.loop.connections, SLOW)
  for (const socket of [...crowd, busy]) socket.destroy()
  await slow.stop()
  await fast.stop()
})
