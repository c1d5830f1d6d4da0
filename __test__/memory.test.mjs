// An environment with little memory: what stops, what fails, and what goes on.

import { createHash, randomBytes } from 'node:crypto'
import test from 'ava'
import { configure, stats } from '../index.js'
import { connect, deferred, pair, serve, settled, take, until } from './fixtures/peer.mjs'

const KIB = 1024
const MIB = 1024 * KIB
const LIMIT = 16 * MIB

// One poll: each has blocks that wait for the next read, and so little memory has no room for those of many.
configure({ maxMemory: LIMIT, numLoops: 1 })
test.before(settled)

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

test.serial(
  'what handlers do not take stays below maxMemory, and all of it comes when they do',
  async (t) => {
    const CLIENTS = 100
    const sent = randomBytes(MIB)
    const digest = createHash('sha256').update(sent).digest()
    const gate = deferred()
    const server = serve(async ({ reader, writer }) => {
      await gate.promise
      const hash = createHash('sha256')
      for (let left = sent.length; left > 0;) {
        await reader.waitRead(1)
        left -= reader.length
        hash.update(reader.next(reader.length))
        reader.release()
      }
      writer.writeBinary(hash.digest())
      writer.flush()
    })
    const upload = async () => {
      const socket = await connect(server.port)
      socket.write(sent)
      return socket
    }
    const crowd = await Promise.all(Array.from({ length: CLIENTS }, upload))
    await until(async () => stats().bytesOut >= (LIMIT * 3) / 4 && (await rests()))
    const { connections } = server.loop
    crowd.push(await upload())
    await rests()
    t.is(server.loop.connections, connections, 'the last one waits in the backlog')

    gate.resolve()
    const answers = await Promise.all(crowd.map((socket) => take(socket, 32)))
    for (const answer of answers) t.deepEqual(answer, digest)
    for (const socket of crowd) socket.destroy()
    await server.stop()
  },
)

const MESSAGES = {
  'a handler that returns until all is here': ({ reader, writer }) => {
    if (reader.length < MIB) return
    writer.append(reader.slice(MIB))
    writer.flush()
  },
  'a handler that waits for a size': async ({ reader, writer }) => {
    await reader.waitRead(MIB)
    writer.append(reader.slice(MIB))
    writer.flush()
  },
  'a handler that waits for a delimiter': async ({ reader, writer }) => {
    const size = await reader.waitUntil('\n')
    writer.append(reader.slice(size))
    writer.flush()
  },
}

for (const [name, handler] of Object.entries(MESSAGES)) {
  test.serial(
    `messages that are unfinished at once and larger than maxMemory all get through: ${name}`,
    async (t) => {
      const server = serve(handler)
      const message = randomBytes(MIB).map((byte) => (byte === 10 ? 11 : byte))
      message[MIB - 1] = 10
      const call = async () => {
        const socket = await connect(server.port)
        socket.write(message.subarray(0, MIB - 100))
        return socket
      }
      const crowd = await Promise.all(Array.from({ length: 64 }, call))
      await until(() => stats().bytesOut >= (LIMIT * 3) / 4, 'they have filled the memory')
      for (const socket of crowd) socket.write(message.subarray(MIB - 100))
      for (const answer of await Promise.all(crowd.map((socket) => take(socket, MIB))))
        t.true(message.equals(answer))
      for (const socket of crowd) socket.destroy()
      await server.stop()
    },
  )
}

test.serial('while others hold most of the memory with half a message, requests are answered', async (t) => {
  const slow = serve(({ reader }) => void (reader.length >= 2 * MIB && reader.skip(2 * MIB)))
  const fast = serve(echo)
  const crowd = []
  while (stats().bytesOut < (LIMIT * 7) / 8 - 2 * MIB) {
    const socket = await connect(slow.port)
    socket.write(Buffer.alloc(MIB))
    crowd.push(socket)
    await until(() => stats().bytesOut >= Math.min(crowd.length * MIB, (LIMIT * 3) / 4))
  }
  for (let count = 0; count < 20; count++) {
    const socket = await connect(fast.port)
    for (let request = 0; request < 20; request++) {
      socket.write(`request ${request}`)
      t.is((await take(socket, `request ${request}`.length)).toString(), `request ${request}`)
    }
    socket.destroy()
  }
  t.is(slow.loop.connections, crowd.length)
  for (const socket of crowd) socket.destroy()
  await slow.stop()
  await fast.stop()
})

test.serial(
  'when memory stays full of half messages, the longest fails and the others get through',
  async (t) => {
    const errors = []
    const server = serve(
      async ({ reader, writer }) => {
        await reader.waitRead(8 * MIB)
        writer.writeUInt32BE(8 * MIB)
        reader.skip(8 * MIB)
        writer.flush()
      },
      { onError: (error) => errors.push(error.code) },
    )
    const upload = async () => {
      const socket = await connect(server.port)
      socket.on('error', () => {})
      socket.write(Buffer.alloc(8 * MIB))
      return socket
    }
    const crowd = await Promise.all([upload(), upload(), upload()])
    const answers = await Promise.all(crowd.map((socket) => take(socket, 4)))
    const answered = answers.filter(({ length }) => length === 4).length
    t.is(answered + errors.length, 3)
    t.true(answered >= 1)
    t.true(errors.every((code) => code === 'ERR_NETPOLL_INPUT_LIMIT'))
    for (const socket of crowd) socket.destroy()
    await server.stop()
  },
)

test.serial('a connection that fills the memory with its output fails, and no other', async (t) => {
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

test.serial(
  'when memory is full the connection with most pending output fails, not the one that fills it',
  async (t) => {
    const [heavy, light] = [await pair(t), await pair(t)]
    const fill = async ({ writer }, bytes) => {
      let written = 0
      while (stats().bytesOut < bytes && heavy.connection.isActive()) {
        // Little enough at a time that the poll sees it before memory is full to the last byte, and no more steps
        // than need be: each waits for a turn.
        for (let i = 0; i < 8; i++) written += writer.writeBinary(Buffer.alloc(8 * KIB, 1))
        writer.flush()
        const { turns } = stats()
        await until(() => stats().turns > turns)
      }
      return written
    }
    await fill(heavy, LIMIT - 3 * MIB)
    const failure = t.throwsAsync(heavy.connection.flushed(), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
    const written = await fill(light, LIMIT)
    await failure
    t.true(light.connection.isActive())
    light.peer.resume()
    await light.connection.flushed()
    t.is(light.connection.bytesWritten, written)
    await until(() => stats().bytesOut < LIMIT / 4, 'the memory is back')
  },
)

const unfinished = {
  'a handler that returns': ({ reader }) => {
    if (reader.length >= 20) reader.skip(20)
  },
  'a handler that waits': async ({ reader }) => {
    await reader.waitRead(20)
    reader.skip(20)
  },
}

for (const [name, handler] of Object.entries(unfinished)) {
  test.serial(`slow connections with half a message hold no block that others share: ${name}`, async (t) => {
    const SLOW = 100
    const slow = serve(handler)
    const fast = serve(echo)
    const busy = await connect(fast.port)
    await settled()
    const before = stats().bytesOut
    const crowd = []
    for (let count = 0; count < SLOW; count++) {
      const socket = await connect(slow.port)
      socket.write(Buffer.alloc(10))
      crowd.push(socket)
      // A shared block's worth of other traffic, so that each slow one has bytes in another block. In small
      // pieces: who sends large ones is read into larger blocks.
      for (let piece = 0; piece < 4; piece++) {
        busy.write(Buffer.alloc(16 * KIB))
        await take(busy, 16 * KIB)
      }
    }
    await settled()
    const held = stats().bytesOut - before
    t.true(held <= SLOW * 4 * KIB + MIB, `${held} bytes for ${SLOW} connections`)
    t.is(slow.loop.connections, SLOW)
    for (const socket of [...crowd, busy]) socket.destroy()
    await slow.stop()
    await fast.stop()
  })
}

/** Whether the poll turns ten times without a system call for a connection. */
async function rests() {
  const { turns, syscalls } = stats()
  await until(() => stats().turns >= turns + 10, 'it looks again and again whether there is room')
  return stats().syscalls === syscalls
}
