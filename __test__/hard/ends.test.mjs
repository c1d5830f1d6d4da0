// A process or a worker that ends under load, at random moments: it ends as it was asked to, and harms nobody.

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { chance, pick, seed } from '../fixtures/chance.mjs'
import { eachOf, patience, percentile, spread } from '../fixtures/figures.mjs'
import { end, start } from '../fixtures/program.mjs'

const RUNS = Number(process.env.NETPOLL_HARD_RUNS ?? 1000)
const AT_ONCE = 4
const DRIVERS = ['loop', 'thread', 'adaptive']
/** Workers that one process terminates, one after the other. */
const WORKERS = 10
/** What an end may take, in milliseconds, on a machine with nothing else to do. */
const GOAL = 200

const environment = (i) => ({
  ...process.env,
  NETPOLL_DRIVER: DRIVERS[i % DRIVERS.length],
  NETPOLL_NUM_LOOPS: String(1 + (i % 2)),
})

/** Where in a program its end comes from. */
const PLACES = {
  timer: 'setTimeout(finish, delay)',
  immediate: 'setTimeout(() => setImmediate(finish), delay)',
  microtask: 'setTimeout(() => queueMicrotask(finish), delay)',
  handler: 'setTimeout(() => { inHandler = finish }, delay)',
  peer: 'setTimeout(() => { inPeer = finish }, delay)',
}

/** Echoes through clients of its own for as long as it lives; `finish` comes at its moment. */
function loaded(prepare, finish, { place, delay, clients }) {
  return `
    import { writeSync } from 'node:fs'
    let inHandler, inPeer
    const delay = ${delay}
    let begun = false
    const finish = () => {
      if (begun) return
      begun = true
      writeSync(1, Date.now() + '\\n')
      ${finish}
    }
    ${prepare}
    ${PLACES[place]}
    const server = serve(({ reader, writer }) => {
      const view = reader.peek(1)
      writer.append(reader)
      writer.flush()
      if (inHandler) inHandler(view)
    })
    for (let i = 0; i < ${clients}; i++) {
      // One that shuts down may have closed its listener.
      const socket = await connect(server.port).catch(() => undefined)
      if (!socket) break
      socket.on('data', (bytes) => {
        socket.write(bytes)
        if (inPeer) inPeer()
      })
      socket.write(Buffer.alloc(i * 10_000 + 1, i))
    }
  `
}

function moment(i, name) {
  const random = chance(seed + i * 7 + name.length * 100_003)
  return {
    place: pick(random, Object.keys(PLACES)),
    delay: random() ** 2 * 60,
    clients: 1 + Math.floor(random() * 12),
  }
}

/** Runs the program RUNS times, and checks each end. */
async function ends(t, name, { prepare = '', finish = '', kill }, check) {
  const times = []
  await eachOf(RUNS, AT_ONCE, async (i) => {
    const when = moment(i, name)
    const child = start(loaded(prepare, finish, when), { env: environment(i) })
    const ended = end(child)
    let left = 0
    child.on('exit', () => (left = Date.now()))
    if (kill) await kill(child, when)
    const outcome = await ended
    check(outcome, `${name}, run ${i} of seed ${seed}: ${JSON.stringify({ ...when, ...outcome })}`)
    times.push(left - (kill ? when.killed : Number(outcome.stdout)))
  })
  t.log(`${RUNS} times ${name}, seed ${seed}; milliseconds from there to the end: ${spread(times)}`)
  t.true(percentile(times, 0.5) <= GOAL * patience(), `${spread(times)} ms`)
}

test.serial('process.exit() ends with its code, at random moments under load', (t) =>
  ends(t, 'exit', { finish: 'process.exit(42)' }, ({ code, signal, stderr }, which) =>
    t.deepEqual({ code, signal, stderr }, { code: 42, signal: null, stderr: '' }, which),
  ),
)

test.serial('an uncaught throw ends with code 1 and its text, at random moments under load', (t) =>
  ends(t, 'throw', { finish: `throw new Error('on purpose')` }, ({ code, signal, stderr }, which) => {
    t.deepEqual([code, signal], [1, null], which)
    t.regex(stderr, /Error: on purpose/, which)
  }),
)

/** SIGTERM from outside, so many milliseconds after the program has begun. */
async function terminate(child, when) {
  await once(child.stdout, 'data')
  await sleep(when.delay)
  when.killed = Date.now()
  child.kill('SIGTERM')
}

test.serial('SIGTERM ends as it does without this package, at random moments under load', (t) =>
  ends(t, 'SIGTERM', { kill: terminate }, ({ code, signal, stderr }, which) =>
    t.deepEqual({ code, signal, stderr }, { code: null, signal: 'SIGTERM', stderr: '' }, which),
  ),
)

test.serial('SIGTERM that shuts the loop down ends with code 0, at random moments under load', (t) =>
  ends(
    t,
    'shutdown',
    {
      prepare: `process.once('SIGTERM', () => {
        server.loop.shutdown({ timeout: 0 }).catch(() => undefined).then(() => process.exit(0))
      })`,
      kill: terminate,
    },
    ({ code, signal, stderr }, which) =>
      t.deepEqual({ code, signal, stderr }, { code: 0, signal: null, stderr: '' }, which),
  ),
)

const worker = JSON.stringify(fileURLToPath(new URL('../fixtures/echo_worker.mjs', import.meta.url)))

test.serial(
  'worker.terminate() under load, at random moments, harms neither the process nor others',
  async (t) => {
    await eachOf(Math.ceil(RUNS / WORKERS), AT_ONCE, async (i) => {
      const random = chance(seed + i)
      const delays = Array.from({ length: WORKERS }, () => (random() < 0.3 ? -1 : 0) + random() ** 2 * 40)
      const { code, signal, stdout, stderr } = await end(
        start(
          `
        import { Worker } from 'node:worker_threads'
        const echo = ({ reader, writer }) => { writer.append(reader); writer.flush() }
        const main = serve(echo)
        const socket = await connect(main.port)
        let right = 0
        for (const delay of ${JSON.stringify(delays)}) {
          const worker = new Worker(${worker}, { workerData: { clients: 20 }, execArgv: [] })
          // A negative delay counts from its start, when it is about to load the package.
          await once(worker, delay < 0 ? 'online' : 'message')
          await new Promise((resolve) => setTimeout(resolve, delay < 0 ? -delay * 60 : delay))
          await worker.terminate()
          socket.write('still here')
          if ((await take(socket, 10)).toString() === 'still here') right++
        }
        socket.destroy()
        await main.stop()
        console.log(right)
        `,
          { env: environment(i) },
        ),
      )
      t.deepEqual(
        { code, signal, stdout, stderr },
        { code: 0, signal: null, stdout: `${WORKERS}\n`, stderr: '' },
        `process ${i} of seed ${seed}: ${delays}`,
      )
    })
  },
)

test.serial(
  'of a main thread and two workers any one ends, and the others go on with what they do',
  async (t) => {
    await eachOf(Math.ceil(RUNS / 20), AT_ONCE, async (i) => {
      const random = chance(seed + i)
      const how = pick(random, ['terminate', 'exit', 'throw', 'shutdown'])
      const { code, signal, stdout, stderr } = await end(
        start(
          `
        import { Worker } from 'node:worker_threads'
        const main = serve(({ reader, writer }) => { writer.append(reader); writer.flush() })
        const workers = []
        const ports = [main.port]
        for (let i = 0; i < 2; i++) {
          const worker = new Worker(${worker}, { workerData: { clients: 2 }, execArgv: [] })
          worker.on('error', () => {})
          workers.push(worker)
          ports.push((await once(worker, 'message'))[0])
        }
        const echoed = [0, 0, 0]
        const failed = []
        const sockets = []
        for (const [i, port] of ports.entries()) {
          const socket = await connect(port)
          for (const event of ['end', 'close', 'error']) socket.on(event, () => { failed[i] ??= true })
          socket.on('data', (bytes) => { echoed[i] += bytes.length; socket.write(bytes) })
          socket.write(Buffer.alloc(30_000, i))
          sockets.push(socket)
        }
        await new Promise((resolve) => setTimeout(resolve, ${random() * 30}))
        const ended = new Promise((resolve) => workers[0].on('exit', resolve))
        if (${how === 'terminate'}) await workers[0].terminate()
        else workers[0].postMessage('${how}')
        await ended
        const now = [...echoed]
        await until(() => echoed[0] > now[0] + 300_000 && echoed[2] > now[2] + 300_000, 'the others go on')
        console.log(JSON.stringify(failed))
        process.exit(0)
        `,
          { env: environment(i) },
        ),
      )
      const expected = { code: 0, signal: null, stdout: '[null,true]\n', stderr: '' }
      t.deepEqual({ code, signal, stdout, stderr }, expected, `${how}, run ${i} of seed ${seed}`)
    })
  },
)

for (const driver of DRIVERS) {
  test.serial(
    `with the driver '${driver}' a child sees none of 100 open connections, and keeps none open`,
    async (t) => {
      const { code, signal, stdout, stderr } = await end(
        start(
          `
        import { spawn } from 'node:child_process'
        const connections = []
        const server = serve(undefined, { onConnect: (connection) => { connections.push(connection) } })
        const sockets = []
        for (let i = 0; i < 100; i++) sockets.push(await connect(server.port))
        await until(() => connections.length === 100)
        const child = spawn('sh', ['-c', 'ls -l /proc/self/fd; exec cat'], { stdio: ['pipe', 'pipe', 'inherit'] })
        let listed = ''
        child.stdout.on('data', (text) => (listed += text))
        await until(() => /total [^]*\\n.* [0-9]+ -> /.test(listed))
        const ended = sockets.map((socket) => once(socket.resume(), 'end'))
        const begun = Date.now()
        for (const connection of connections) connection.close()
        await Promise.all(ended)
        const took = Date.now() - begun
        const alive = child.exitCode === null
        child.stdin.end()
        await once(child, 'close')
        for (const socket of sockets) socket.destroy()
        await server.stop()
        // The ends of its own standard streams are sockets of Node's.
        console.log(JSON.stringify({ sockets: listed.match(/ [0-9]+ -> socket:/g)?.length ?? 0, took, alive }))
        `,
          { env: { ...process.env, NETPOLL_DRIVER: driver } },
        ),
      )
      t.deepEqual([code, signal, stderr], [0, null, ''])
      const { sockets, took, alive } = JSON.parse(stdout)
      t.true(sockets <= 3, `${sockets} sockets in the child`)
      t.true(alive)
      t.true(took <= 100 * patience(), `${took} ms until all 100 have ended`)
    },
  )
}
