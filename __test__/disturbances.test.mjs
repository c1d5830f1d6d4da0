// What happens beside the traffic: signals, collections of garbage, handlers that fail. A little of each here, and as
// much as docs/reliability.md asks for by `npm run test:hard -- disturbances`.

import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { connect, outcome, serve, until } from './fixtures/peer.mjs'
import { end, start } from './fixtures/program.mjs'
import { eachOf } from './fixtures/figures.mjs'

const isHard = Boolean(process.env.NETPOLL_HARD)
const SIGNALS = isHard ? 30_000 : 1000
const ROUNDS = isHard ? 20_000 : 300
const FAILURES = isHard ? 10_000 : 400

/** Echoes messages of clients of its own and counts those that came back wrong, until it is told to end. */
const LOADED = `
  import { readFileSync, readdirSync } from 'node:fs'
  import { setNumLoops } from '${new URL('../index.js', import.meta.url).pathname}'
  const server = serve(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  await setNumLoops(2)
  let [rounds, wrong, over] = [0, 0, false]
  const message = Buffer.alloc(20_000)
  const client = async (i) => {
    const socket = await connect(server.port)
    while (!over) {
      const sent = Buffer.from(message.fill(i + rounds))
      socket.write(sent)
      if (!(await take(socket, sent.length)).equals(sent)) wrong++
      rounds++
    }
    socket.destroy()
  }
  const clients = Array.from({ length: 20 }, (_, i) => client(i))
  const stop = async () => {
    over = true
    await Promise.all(clients)
    await server.stop()
  }
`

for (const driver of ['loop', 'thread', 'adaptive']) {
  test.serial(
    `with the driver '${driver}' signals under load reach their JavaScript handlers, and no thread of a poll`,
    async (t) => {
      const program = `${LOADED}
        const heard = { SIGUSR1: 0, SIGPROF: 0 }
        for (const signal of Object.keys(heard)) process.on(signal, () => heard[signal]++)
        process.once('SIGTERM', async () => {
          await stop()
          console.log(JSON.stringify({ wrong, rounds, heard, masks: [...masks] }))
          process.exit()
        })
        await until(() => rounds > 100)
        const masks = new Set()
        for (const task of readdirSync('/proc/self/task')) {
          const status = readFileSync('/proc/self/task/' + task + '/status', 'utf8')
          if (/^Name:\\s+netpoll-/.test(status)) masks.add(/^SigBlk:\\s+(\\w+)$/m.exec(status)[1])
        }
        console.log('ready')`
      const child = start(program, { env: { ...process.env, NETPOLL_DRIVER: driver }, timeout: 300_000 })
      const ended = end(child)
      await new Promise((resolve) => child.stdout.once('data', resolve))
      for (let sent = 0; sent < SIGNALS; sent++) {
        child.kill(sent % 2 === 0 ? 'SIGUSR1' : 'SIGPROF')
        if (sent % 2 === 1) await sleep(1)
      }
      child.kill('SIGTERM')
      const { code, signal, stdout, stderr } = await ended
      t.deepEqual([code, signal, stderr], [0, null, ''])
      const { wrong, rounds, heard, masks } = JSON.parse(stdout.split('\n')[1])
      t.is(wrong, 0)
      t.true(rounds > 100 && heard.SIGUSR1 > 10 && heard.SIGPROF > 10, stdout)
      // Every signal that can be blocked, SIGKILL, SIGSTOP and those of the C library not among them.
      for (const mask of masks) t.is(BigInt(`0x${mask}`) & 0x7ffbfeffn, 0x7ffbfeffn, mask)
      t.true(masks.length > 0 || driver !== 'thread')
      t.log(`${heard.SIGUSR1 + heard.SIGPROF} of ${SIGNALS} signals heard one by one, ${rounds} round trips`)
    },
  )
}

for (const driver of ['loop', 'thread']) {
  test.serial(
    `with the driver '${driver}' collections all the time, which move what they can, change no byte`,
    async (t) => {
      const program = `${LOADED}
        const collecting = setInterval(() => globalThis.gc(), 1)
        const held = serve(async ({ reader, writer }) => {
          const view = reader.next(reader.length)
          const copy = Buffer.from(view)
          await new Promise(setImmediate)
          if (!view.equals(copy)) wrong++
          writer.writeBinary(view)
          writer.flush()
        })
        const holders = Array.from({ length: 5 }, async (_, i) => {
          const socket = await connect(held.port)
          while (!over) {
            const sent = Buffer.alloc(70_000, rounds + i)
            socket.write(sent)
            if (!(await take(socket, sent.length)).equals(sent)) wrong++
          }
          socket.destroy()
        })
        await until(() => rounds > ${ROUNDS})
        clearInterval(collecting)
        await stop()
        await Promise.all(holders)
        await held.stop()
        console.log(JSON.stringify({ wrong }))`
      const flags = ['--expose-gc', '--gc-interval=500', '--stress-compaction']
      const child = start(
        program,
        { env: { ...process.env, NETPOLL_DRIVER: driver }, timeout: 600_000 },
        flags,
      )
      const { code, signal, stdout, stderr } = await end(child)
      t.deepEqual([code, signal, stdout, stderr], [0, null, '{"wrong":0}\n', ''])
    },
  )
}

/** A rejection after so many awaits; none is a throw. */
async function failing(depth) {
  for (let left = depth; left > 0; left--) await undefined
  throw new Error(`at depth ${depth}`)
}

test.serial(
  `handlers that fail at any depth of awaits end their own connections alone, each once`,
  async (t) => {
    const told = new Map()
    const closed = []
    const unhandled = []
    const listen = (error) => unhandled.push(error)
    process.on('unhandledRejection', listen)
    t.teardown(() => process.off('unhandledRejection', listen))
    const server = serve(
      ({ reader, writer }) => {
        const depth = reader.readByte() - 48
        if (depth === 9) {
          writer.writeByte(57)
          return void writer.flush()
        }
        if (depth === 0) throw new Error('at depth 0')
        return failing(depth)
      },
      {
        onDisconnect: ({ id }) => void closed.push(id),
        onError: (error, { id }) => void told.set(id, [...(told.get(id) ?? []), error.message]),
      },
    )
    t.teardown(server.stop)
    const witness = await connect(server.port)
    await eachOf(FAILURES, 100, async (i) => {
      const socket = await connect(server.port)
      socket.write(String(i % 4))
      await outcome(socket)
      socket.destroy()
    })
    await until(() => closed.length === FAILURES, 'each has ended')
    t.is(new Set(closed).size, FAILURES)
    t.is(told.size, FAILURES)
    const counts = {}
    for (const messages of told.values()) counts[messages] = (counts[messages] ?? 0) + 1
    const each = FAILURES / 4
    t.deepEqual(counts, { 'at depth 0': each, 'at depth 1': each, 'at depth 2': each, 'at depth 3': each })
    t.deepEqual(unhandled, [])
    const answered = new Promise((resolve) => witness.once('data', resolve))
    witness.write('9')
    t.is(String(await answered), '9')
    t.is(server.loop.connections, 1)
    witness.destroy()
  },
)
