// A hundred thousand connections that come, say something, and go. NETPOLL_CYCLES makes it others.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import test from 'ava'
import { stats } from '../index.js'
import { descriptors, serve, settled, until } from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const load = `${process.env.CARGO_TARGET_DIR ?? `${root}target`}/release/netpoll-load`
const CYCLES = Number(process.env.NETPOLL_CYCLES ?? 100_000)
/** From there on memory must not grow. */
const WARM = CYCLES / 5

test.before('the load generator is built', (t) => {
  const { status, stderr } = spawnSync('cargo', ['build', '--release', '-p', 'netpoll-load'], { cwd: root })
  t.is(status, 0, `${stderr}`)
})
test.before(settled)

/** By how many MiB memory may grow after that: of a few cycles the heap alone takes more. */
const GROWTH = process.env.NETPOLL_HARD ? 5 : 32

/** Memory of the process without garbage. */
function memoryInUse() {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')()
  return process.memoryUsage.rss()
}

/** How clients go: by FIN when they are answered, by FIN and RST at once, and by both in the midst of an answer. */
const WAYS = [
  ['churn', { connections: 50, size: 100, duration: 2, warmup: 0 }],
  ['visit', { count: 20_000, size: 100 }],
  ['visit', { count: 4000, size: 200_000 }],
]

async function come(port, [command, options]) {
  const flags = Object.entries({ port, ...options }).flatMap(([name, value]) => [`--${name}`, `${value}`])
  const child = spawn(load, [command, ...flags], { stdio: ['ignore', 'ignore', 'inherit'] })
  return (await once(child, 'close'))[0]
}

test(`${CYCLES} connect, request, close cycles leak no descriptor, no block and no slot`, async (t) => {
  let opened = 0
  let ended = 0
  let disordered = 0
  /** Each hook of a connection finds it where the one before has left it. */
  const step = (context, from, to) => {
    if (!from.includes(context.step)) disordered++
    context.step = to
  }
  const server = serve(
    ({ reader, writer, context }) => {
      step(context, ['connected', 'requested'], 'requested')
      writer.append(reader)
      writer.flush()
    },
    {
      onPrepare: (connection) => {
        opened++
        connection.addCloseCallback(({ context }) => {
          step(context, ['disconnected'], 'closed')
          ended++
        })
        return { step: 'prepared' }
      },
      onConnect: (connection, context) => step(context, ['prepared'], 'connected'),
      onDisconnect: (connection, context) => step(context, ['connected', 'requested'], 'disconnected'),
      onError: ({ code }) => t.true(['ECONNRESET', 'EPIPE'].includes(code), code),
    },
  )
  t.teardown(server.stop)
  const before = { descriptors: descriptors(), blocks: stats().blocksOut }
  let memory = 0
  for (let round = 0; opened < CYCLES; round++) {
    t.is(await come(server.port, WAYS[round % WAYS.length]), 0)
    await until(() => server.loop.connections === 0)
    if (opened >= WARM && round >= WAYS.length) memory ||= memoryInUse()
  }
  t.is(ended, opened)
  t.is(disordered, 0)
  await settled()
  await until(() => descriptors() === before.descriptors, 'descriptors are back')
  t.true(stats().blocksOut <= before.blocks, `${stats().blocksOut} blocks`)
  t.is(stats().connections, 0)
  const grown = memory === 0 ? 0 : (memoryInUse() - memory) / 1024 / 1024
  t.log(`${opened} cycles, ${grown.toFixed(1)} MiB more after the first ${WARM}`)
  t.true(grown < GROWTH, `${grown} MiB more`)
})

test(`${CYCLES} connections that end at once skip no callback and lose no byte on four polls`, async (t) => {
  const size = 100
  const visits = ['visit', '--count', `${CYCLES}`, '--size', `${size}`]
  // In a process of its own, for how many polls there are is the environment's.
  const { code, stdout, stderr } = await run(
    `
    import { spawn } from 'node:child_process'
    import { setNumLoops, stats } from '${root}index.js'
    await setNumLoops(4)
    const lives = {}
    const polls = new Set()
    let prepared = 0
    let closed = 0
    let serials = 0
    const { port, stop } = serve(
      ({ reader, context }) => {
        if (context.bytes === 0) serials += reader.peek(4).readUInt32BE()
        context.bytes += reader.length
        reader.skip(reader.length)
        if (context.life.at(-1) !== 'request') context.life.push('request')
      },
      {
        onPrepare(connection) {
          prepared++
          polls.add(connection.poll.index)
          connection.addCloseCallback(({ context }) => {
            const life = [...context.life, 'close', context.bytes].join(' ')
            lives[life] = (lives[life] ?? 0) + 1
            closed++
          })
          return { life: ['prepare'], bytes: 0 }
        },
        onConnect(connection, { life }) {
          const connect = () => void life.push('connect')
          // Every third one takes its time.
          return prepared % 3 === 0 ? new Promise(setImmediate).then(connect) : connect()
        },
        onDisconnect: (connection, { life }) => void life.push('disconnect'),
      },
    )
    const load = spawn('${load}', [...${JSON.stringify(visits)}, '--port', String(port)], { stdio: 'inherit' })
    const [code] = await once(load, 'close')
    await until(() => closed === ${CYCLES}, 'all have come and gone')
    await stop()
    console.log(JSON.stringify({ code, lives, serials, polls: polls.size, open: stats().connections }))
  `,
    { timeout: CYCLES },
  )
  t.is(code, 0, stderr)
  t.deepEqual(JSON.parse(stdout), {
    code: 0,
    lives: { [`prepare connect request disconnect close ${size}`]: CYCLES },
    serials: (CYCLES * (CYCLES - 1)) / 2,
    polls: 4,
    open: 0,
  })
})
