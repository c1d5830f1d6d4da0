// What no test of cloudwego/netpoll holds, though users have met it: half-close, the end of a client without
// handlers, more pieces than one sendmsg takes, running out of descriptors as a client, hooks of many loops at once,
// several tasks that flush one connection, and delimiters at every edge of a block.

import test from 'ava'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { stats } from '../index.js'
import { dial, dialed } from './fixtures/dialed.mjs'
import { connect, leaksNothing, outcome, pair, send, serve, settled, until } from './fixtures/peer.mjs'
import { end } from './fixtures/program.mjs'

const KIB = 1 << 10
const MIB = 1 << 20

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

// ---- half-close

test('a client that sends, ends its side and reads gets its whole answer, 60 times of 60', async (t) => {
  const { port, loop, stop } = serve(async ({ reader, writer }) => {
    const question = reader.readString(reader.length)
    await settled()
    writer.writeString(question.repeat(1000))
    writer.flush()
  })
  t.teardown(stop)
  let answers = 0
  for (let i = 0; i < 60; i++) {
    const client = await dial(t, port)
    client.writer.writeString('ask')
    client.writer.flush()
    client.end()
    await client.reader.waitRead(3000)
    answers += client.reader.readString(3000) === 'ask'.repeat(1000)
    client.reader.release()
    await t.throwsAsync(client.reader.waitRead(1), { code: 'ERR_NETPOLL_EOF' })
    await client.closed
  }
  t.is(answers, 60)
  await until(() => loop.connections === 0)
})

// ---- the end of a bare client

const ENDS = {
  'ends its side': (connection) => connection.end(),
  closes: (connection) => connection.close(),
  resets: (connection) => connection.reset(),
}

for (const [how, finish] of Object.entries(ENDS)) {
  test.serial(
    `a client without handlers that its server ${how} closes by itself, and leaves nothing`,
    async (t) => {
      await leaksNothing(async () => {
        const { accepted, client, server } = await dialed(t)
        const calls = []
        client.addCloseCallback(() => calls.push('first'))
        client.addCloseCallback(() => calls.push('second'))
        t.true(client.isActive())
        finish(accepted)
        await client.closed
        t.false(client.isActive())
        t.deepEqual(calls, ['second', 'first'])
        await t.throwsAsync(client.reader.waitRead(1), {
          code: how === 'resets' ? 'ECONNRESET' : 'ERR_NETPOLL_EOF',
        })
        t.false(client.writer.flush())
        await accepted.closed
        await server.stop()
      })
    },
  )
}

test('a client that waits is woken by the end, and keeps what had come before', async (t) => {
  const { accepted, client } = await dialed(t)
  const waiting = client.reader.waitRead(100)
  accepted.writer.writeString('not enough')
  accepted.writer.flush()
  accepted.close()
  await t.throwsAsync(waiting, { code: 'ERR_NETPOLL_EOF' })
  t.is(client.reader.readString(10), 'not enough')
})

// ---- more pieces than one call takes

for (const pieces of [31, 32, 33, 64, 65, 1000]) {
  test(`one flush of ${pieces} pieces arrives in order`, async (t) => {
    const { connection, writer, peer } = await pair(t)
    const expected = []
    for (let i = 0; i < pieces; i++) {
      // Above the size that is copied, so that each is a piece of its own; every third is a small one in between.
      const bytes = randomBytes(i % 3 === 2 ? 1 + i : 16 * KIB + i)
      writer.writeBinary(bytes)
      expected.push(bytes)
    }
    const received = outcome(peer)
    writer.flush()
    await connection.flushed()
    connection.close()
    t.true((await received).bytes.equals(Buffer.concat(expected)))
    await until(() => stats().pinnedSends === 0)
  })
}

// ---- out of descriptors

test('a client without descriptors is told so, again and again, and dials when it has some', async (t) => {
  const { port, stop } = serve(echo)
  t.teardown(stop)
  const program = `
    import { dialConnection } from '${new URL('../index.js', import.meta.url)}'
    for (let round = 0; round < 3; round++) {
      const clients = []
      let error
      while (error === undefined && clients.length < 100) {
        await dialConnection('tcp', '127.0.0.1:${port}').then(
          (client) => clients.push(client),
          (reason) => (error = reason),
        )
      }
      const { reader, writer } = clients.at(-1)
      writer.writeString('hello')
      writer.flush()
      await reader.waitRead(5)
      console.log(error?.code, clients.length > 10, reader.readString(5))
      for (const client of clients) client.close()
      await Promise.all(clients.map((client) => client.closed))
    }
  `
  const limited = ['-c', 'ulimit -n 64 && exec "$0" "$@"', process.execPath]
  const { code, stdout, stderr } = await end(spawn('sh', [...limited, '--input-type=module', '-e', program]))
  t.is(stderr, '')
  t.is(stdout, 'EMFILE true hello\n'.repeat(3))
  t.is(code, 0)
})

// ---- hooks of many loops

const LIFE = ['prepare', 'connect', 'connected', 'request', 'disconnect', 'close']

/** A loop that writes down the hooks of each of its connections, in `lives`. */
function recording(lives) {
  return serve(
    ({ reader, context }) => {
      reader.skip(reader.length)
      context.push('request')
    },
    {
      onPrepare(connection) {
        const life = ['prepare']
        lives.push(life)
        connection.addCloseCallback(() => life.push('close'))
        return life
      },
      async onConnect(connection, life) {
        life.push('connect')
        await setImmediate()
        life.push('connected')
      },
      onDisconnect: (connection, life) => void life.push('disconnect'),
    },
  )
}

test('hooks of three loops come in order, each once, also when a client sends and closes at once', async (t) => {
  const lives = []
  const servers = [recording(lives), recording(lives), recording(lives)]
  for (const { stop } of servers) t.teardown(stop)
  const connections = 600
  await Promise.all(
    Array.from({ length: 20 }, async (_, task) => {
      for (let i = task; i < connections; i += 20) {
        const socket = await connect(servers[i % 3].port)
        if (i % 2 === 0) socket.end('x')
        else {
          await send(socket, 'x')
          socket.end()
        }
        socket.resume()
      }
    }),
  )
  await until(() => lives.length === connections && lives.every((life) => life.includes('close')))
  await settled()
  for (const life of lives) t.deepEqual(life, LIFE)
})

// ---- several tasks that flush one connection

test('frames of eight tasks that flush one client, and wait when told to, arrive whole and in order', async (t) => {
  const frames = []
  let wrong = ''
  const { port, stop } = serve(({ reader }) => {
    while (reader.length >= 6) {
      const size = reader.peek(6).readUInt32LE(2)
      if (reader.length < 6 + size) return
      const task = reader.readUInt8()
      const number = reader.readUInt8()
      reader.skip(4)
      if (!reader.next(size).equals(Buffer.alloc(size, task * 16 + (number % 16))))
        wrong = `${task} ${number}`
      ;(frames[task] ??= []).push(number)
    }
  })
  t.teardown(stop)
  const client = await dial(t, port, { writeHighWaterMark: 64 * KIB })
  const work = async (task) => {
    for (let number = 0; number < 100; number++) {
      const size = 1 + ((task * 7919 + number * 977) % 40_000)
      const { writer } = client
      writer.writeUInt8(task)
      writer.writeUInt8(number)
      writer.writeUInt32LE(size)
      writer.writeBinary(Buffer.alloc(size, task * 16 + (number % 16)))
      if (!writer.flush()) await client.flushed()
      else if (number % task === 0) await setImmediate()
    }
  }
  await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(work))
  await client.flushed()
  client.end()
  await client.closed
  await until(() => frames.flat().length === 800)
  t.is(wrong, '')
  const numbers = Array.from({ length: 100 }, (_, i) => i)
  for (let task = 1; task <= 8; task++) t.deepEqual(frames[task], numbers)
})

// ---- waits and delimiters across blocks

const DELIMITERS = ['\n', '\r\n', '\0\0\0', 'ENDOFLINE', Buffer.from('aab')]
const EDGES = [1, 2, 7, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB]

/** Lines whose delimiters begin, end and lie at every distance around the edges of blocks, and their lengths. */
function lines(delimiter) {
  const ends = Buffer.from(delimiter)
  const pieces = []
  for (const edge of EDGES) {
    for (let off = -ends.length - 1; off <= 1; off++) {
      pieces.push(Buffer.concat([Buffer.alloc(Math.max(0, edge + off), 'a'), ends]))
    }
  }
  return pieces
}

for (const delimiter of DELIMITERS) {
  const name = JSON.stringify(String(delimiter))

  test(`until ${name} finds each line at every edge of a block, in one piece and cut into many`, async (t) => {
    const { reader, peer } = await pair(t)
    const expected = lines(delimiter)
    peer.write(Buffer.concat(expected))
    let at = 0
    for (const line of expected) {
      let found
      while ((found = reader.until(delimiter)) === undefined) await reader.waitRead(reader.length + 1)
      if (!found.equals(line)) return t.fail(`line ${at}: ${found.length} bytes for ${line.length}`)
      reader.release()
      at++
    }
    t.is(reader.length, 0)
  })

  test(`waitUntil ${name} tells the length of each line at every edge of a block`, async (t) => {
    const { reader, peer } = await pair(t)
    const expected = lines(delimiter)
    const whole = Buffer.concat(expected)
    const writing = (async () => {
      for (let from = 0, size = 1; from < whole.length; from += size, size = 1 + ((size * 31) % 60_000)) {
        await send(peer, whole.subarray(from, from + size))
      }
    })()
    for (const line of expected) {
      const size = await reader.waitUntil(delimiter)
      if (size !== line.length) return t.fail(`${size} bytes for ${line.length}`)
      t.true(reader.next(size).equals(line))
      reader.release()
    }
    await writing
    t.is(reader.length, 0)
  })
}

test('waitRead is satisfied by exactly its bytes at every edge of a block, whatever is consumed between', async (t) => {
  const { reader, peer } = await pair(t)
  const sizes = EDGES.flatMap((edge) => [edge - 1, edge, edge + 1]).filter((size) => size > 0)
  const whole = randomBytes(sizes.reduce((sum, size) => sum + size, 0))
  peer.write(whole)
  let at = 0
  for (const [i, size] of sizes.entries()) {
    await reader.waitRead(size)
    const bytes = i % 3 === 0 ? reader.next(size) : i % 3 === 1 ? reader.readBinary(size) : reader.slice(size)
    const taken = i % 3 === 2 ? bytes.readBinary(size) : bytes
    t.true(taken.equals(whole.subarray(at, at + size)), `${size} at ${at}`)
    if (i % 3 === 2) bytes.release()
    if (i % 2 === 0) reader.release()
    at += size
  }
  t.is(reader.length, 0)
})
