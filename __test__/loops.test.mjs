// Several polls in one environment: connections that move between them, and bytes that go from one to another. In
// processes of their own, for how many polls there are is the environment's.

import test from 'ava'
import { setLoadBalance, setNumLoops } from '../index.js'
import { run } from './fixtures/program.mjs'

const index = new URL('../index.js', import.meta.url).href
const path = new URL(import.meta.url).pathname

const PROGRAM = `
  import { createHash, randomBytes } from 'node:crypto'
  import { configure, setNumLoops, stats } from '${index}'
  const { environment } = (await import('node:module')).createRequire('${path}')('../dist/environment.js')
  import { descriptors } from '${new URL('fixtures/peer.mjs', import.meta.url).href}'
  const hash = (bytes) => createHash('sha256').update(bytes).digest('hex')
  const tell = (value) => console.log(JSON.stringify(value))
`

/** What a program prints as JSON. */
async function told(t, source, env = {}) {
  const { code, stdout, stderr } = await run(PROGRAM + source, {
    env: { ...process.env, NETPOLL_NUM_LOOPS: '1', ...env },
  })
  t.is(code, 0, stderr)
  return JSON.parse(stdout)
}

for (const [value, code] of [
  [0, 'ERR_OUT_OF_RANGE'],
  [-1, 'ERR_OUT_OF_RANGE'],
  [1.5, 'ERR_OUT_OF_RANGE'],
  [NaN, 'ERR_OUT_OF_RANGE'],
  [65, 'ERR_OUT_OF_RANGE'],
  ['2', 'ERR_INVALID_ARG_TYPE'],
  [undefined, 'ERR_INVALID_ARG_TYPE'],
]) {
  test(`setNumLoops(${JSON.stringify(value)}), a ${typeof value}, throws ${code} (${String(value)})`, (t) => {
    t.throws(() => setNumLoops(value), { code })
  })
}

test('setLoadBalance() of an unknown kind throws ERR_INVALID_ARG_VALUE', (t) => {
  t.throws(() => setLoadBalance('fair'), { code: 'ERR_INVALID_ARG_VALUE' })
})

for (const rings of ['4096', '8']) {
  test(`large messages of 40 connections survive polls that come and go, with rings of ${rings}`, async (t) => {
    const source = `
      const { port, stop } = serve(({ reader, writer }) => {
        writer.append(reader.slice(reader.length))
        writer.flush()
      })
      const first = await connect(port)
      first.write('?')
      await take(first, 1)
      // Both of its descriptors have been counted, and are gone then.
      first.destroy()
      await once(first, 'close')
      await until(() => stats().connections === 0)
      const before = descriptors()
      const sent = randomBytes(1 << 20)
      let going = true
      let wrong = 0
      let rounds = 0
      const call = async () => {
        const socket = await connect(port)
        while (going) {
          socket.write(sent)
          if (hash(await take(socket, sent.length)) !== hash(sent)) wrong++
          rounds++
        }
        socket.destroy()
      }
      const calls = Array.from({ length: 40 }, call)
      for (const count of [4, 2, 1, 3, 1, 5, 1]) {
        await setNumLoops(count)
        const reached = rounds + 40
        await until(() => rounds >= reached)
      }
      going = false
      await Promise.all(calls)
      await until(() => stats().connections === 0)
      await until(() => descriptors() === before, 'descriptors before = after')
      await stop()
      tell({ wrong, polls: stats().polls.length, blocks: stats().blocksOut <= 8 })
    `
    t.deepEqual(await told(t, source, { NETPOLL_RING_ENTRIES: rings }), { wrong: 0, polls: 1, blocks: true })
  })

  test(`blocks that a relay moves between connections of different polls arrive whole, with rings of ${rings}`, async (t) => {
    const source = `
      configure({ numLoops: 4 })
      const sides = []
      const relay = serve(
        ({ reader, context }) => {
          const { writer } = context.other
          writer.append(reader.slice(reader.length))
          writer.flush()
        },
        {
          onPrepare() {
            const side = { connection: null, other: null }
            sides.push(side)
            return side
          },
        },
      )
      const peers = []
      for (let i = 0; i < 8; i++) peers.push(await connect(relay.port))
      const open = () => environment().polls.flatMap((poll) => poll.connections.filter(Boolean))
      await until(() => open().length === 8)
      const byPort = new Map(open().map((connection) => [connection.remotePort, connection]))
      const connections = peers.map((peer) => byPort.get(peer.localPort))
      // Each sends to the next one, which is another poll's.
      for (const [i, connection] of connections.entries()) connection.context.other = connections[(i + 1) % 8]
      const crossing = connections.filter((connection, i) => connection.poll !== connections[(i + 1) % 8].poll).length
      const sent = peers.map(() => randomBytes(4 << 20))
      for (const [i, peer] of peers.entries()) peer.write(sent[i])
      const got = await Promise.all(peers.map((peer) => take(peer, 4 << 20)))
      const right = got.filter((bytes, i) => hash(bytes) === hash(sent[(i + 7) % 8])).length
      for (const peer of peers) peer.destroy()
      await relay.stop()
      tell({ crossing, right })
    `
    t.deepEqual(await told(t, source, { NETPOLL_RING_ENTRIES: rings }), { crossing: 8, right: 8 })
  })
}

test('what waits, is pending, is paused or timed goes along when a connection moves', async (t) => {
  const source = `
    configure({ numLoops: 2 })
    const { port, stop, loop } = serve(() => {}, {})
    const open = () => environment().polls.flatMap((poll) => poll.connections.filter(Boolean))
    const pairOn = async (index) => {
      for (;;) {
        const peer = await connect(port)
        await until(() => open().some((connection) => connection.remotePort === peer.localPort))
        const connection = open().find((connection) => connection.remotePort === peer.localPort)
        if (connection.poll.index === index) return { peer, connection }
      }
    }
    const waiting = await pairOn(1)
    const wait = waiting.connection.reader.waitRead(10)
    const pending = await pairOn(1)
    pending.peer.pause()
    const bytes = randomBytes(16 << 20)
    pending.connection.writer.writeBinary(bytes)
    pending.connection.writer.flush()
    const flushed = pending.connection.flushed()
    const paused = await pairOn(1)
    paused.connection.pause()
    paused.peer.write('held')
    const timed = await pairOn(1)
    timed.connection.setReadTimeout(300)
    const timeout = timed.connection.reader.waitRead(1).catch((error) => error.code)
    const before = pending.connection.bytesWritten

    await setNumLoops(1)
    const moved = [waiting, pending, paused, timed].every(({ connection }) => connection.poll.index === 0)
    const kept = pending.connection.bytesWritten >= before && pending.connection.isActive()
    waiting.peer.write('0123456789')
    await wait
    const came = waiting.connection.reader.readString(10)
    pending.peer.resume()
    const whole = hash(await take(pending.peer, bytes.length)) === hash(bytes)
    await flushed
    paused.connection.resume()
    await paused.connection.reader.waitRead(4)
    tell({ moved, kept, came, whole, then: paused.connection.reader.readString(4), timeout: await timeout })
    loop.shutdown({ timeout: 0 }).catch(() => {})
    process.exit()
  `
  t.deepEqual(await told(t, source), {
    moved: true,
    kept: true,
    came: '0123456789',
    whole: true,
    then: 'held',
    timeout: 'ERR_NETPOLL_READ_TIMEOUT',
  })
})

test('when one of two polls dies its connections fail, and the other one takes all that come', async (t) => {
  const source = `
    configure({ numLoops: 2 })
    const ends = []
    const { port } = serve(({ reader, writer }) => {
      writer.append(reader)
      writer.flush()
    }, {
      onDisconnect: (connection) => ends.push(connection.failure().code),
    })
    const sockets = []
    for (let i = 0; i < 6; i++) sockets.push(await connect(port))
    await until(() => stats().connections === 6)
    for (const socket of sockets) socket.on('error', () => {})
    environment().native.crash(1)
    await until(() => ends.length === 3)
    const late = []
    for (let i = 0; i < 4; i++) {
      const socket = await connect(port)
      socket.write('late')
      late.push(String(await take(socket, 4)))
    }
    await setNumLoops(2)
    const again = stats().polls.length
    tell({ ends, late, again })
    process.exit()
  `
  const { stdout, code } = await run(PROGRAM + source)
  t.is(code, 0)
  const line = stdout.split('\n').find((text) => text.startsWith('{'))
  t.deepEqual(JSON.parse(line), {
    ends: Array(3).fill('ERR_NETPOLL_POLL_DIED'),
    late: Array(4).fill('late'),
    again: 2,
  })
})
