// Semantics 11: the main thread and its workers each have an environment, and each ends by itself.

/* oxlint-disable unicorn/require-post-message-target-origin -- windows have one, workers have none */

import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { createListener } from '../index.js'
import { connect, descriptors, outcome, serve, settled, take, until } from './fixtures/peer.mjs'
import { end, run, start } from './fixtures/program.mjs'

const fixture = new URL('fixtures/echo_worker.mjs', import.meta.url)

/** A worker that serves at `port`. */
async function echoWorker(clients = 0) {
  const worker = new Worker(fixture, { workerData: { clients } })
  const [port] = await once(worker, 'message')
  return { worker, port }
}

/** MiB of address space. */
function mapped() {
  return Number(/^VmSize:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024
}

function threads() {
  return readdirSync('/proc/self/task').length
}

async function echoes(t, socket, text) {
  socket.write(text)
  t.is(String(await take(socket, text.length)), text)
}

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

const endings = {
  'terminate()': [(worker) => worker.terminate(), 1],
  'process.exit()': [(worker) => worker.postMessage('exit'), 5],
  'an uncaught throw': [(worker) => worker.postMessage('throw'), 1],
  'its natural end': [(worker) => worker.postMessage('shutdown'), 0],
}

for (const [name, [endIt, expected]] of Object.entries(endings)) {
  test.serial(`main and two workers serve; when one ends by ${name}, the others serve on`, async (t) => {
    const main = serve(echo)
    const [one, two] = [await echoWorker(), await echoWorker()]
    const sockets = []
    for (const { port } of [main, one, two]) sockets.push(await connect(port))
    for (const [i, socket] of sockets.entries()) await echoes(t, socket, `before ${i}`)

    one.worker.on('error', (error) => t.is(error.message, 'on purpose'))
    const exit = new Promise((resolve) => one.worker.on('exit', resolve))
    const cut = outcome(sockets[1].resume())
    void endIt(one.worker)
    t.is(await exit, expected)
    t.is((await cut).bytes.length, 0)

    for (const i of [0, 2]) await echoes(t, sockets[i], `after ${i}`)
    const late = await connect(two.port)
    await echoes(t, late, 'late')

    await main.stop()
    await echoes(t, sockets[2], 'without main')
    await two.worker.terminate()
    for (const socket of [...sockets, late]) socket.destroy()
  })
}

test.serial('workers that terminate under load, at any moment, harm nobody', async (t) => {
  const main = serve(echo)
  const socket = await connect(main.port)
  for (let i = 0; i < 20; i++) {
    const { worker, port } = await echoWorker(5)
    const foreign = await connect(port)
    foreign.on('data', (bytes) => foreign.write(bytes))
    foreign.write(Buffer.alloc(100_000))
    for (let turns = 0; turns < i * 3; turns++) await setImmediate()
    const exit = once(worker, 'exit')
    await worker.terminate()
    t.is((await exit)[0], 1)
    foreign.destroy()
    await echoes(t, socket, `round ${i}`)
  }
  socket.destroy()
  await main.stop()
})

test.serial('workers that terminate in their start, at any moment, harm nobody', async (t) => {
  for (let i = 0; i < 20; i++) {
    const worker = new Worker(fixture, { workerData: { clients: 3 } })
    await once(worker, 'online')
    for (let turns = 0; turns < i * 40; turns++) await setImmediate()
    await worker.terminate()
  }
  await settled()
  t.pass()
})

test.serial('the port of a worker that was terminated with live connections is free at once', async (t) => {
  for (let i = 0; i < 5; i++) {
    const { worker, port } = await echoWorker(3)
    const socket = await connect(port)
    await echoes(t, socket, 'live')
    await worker.terminate()
    createListener('tcp', `127.0.0.1:${port}`).close()
    socket.destroy()
  }
})

test.serial('100 workers, terminated with live connections, leave no thread and no descriptor', async (t) => {
  const cycle = async () => {
    const { worker, port } = await echoWorker()
    const sockets = [await connect(port), await connect(port)]
    for (const socket of sockets) await echoes(t, socket, 'live')
    const cut = sockets.map((socket) => outcome(socket.resume()))
    await worker.terminate()
    await Promise.all(cut)
    for (const socket of sockets) socket.destroy()
  }
  await cycle()
  await settled()
  const before = [threads(), descriptors()]
  for (let i = 0; i < 100; i += 4) await Promise.all([cycle(), cycle(), cycle(), cycle()])
  await until(
    () => threads() <= before[0] && descriptors() <= before[1],
    `${before} = ${threads()}, ${descriptors()}`,
  )
  t.pass()
})

test.serial('a process with workers under load ends by process.exit() with its code', async (t) => {
  for (let i = 0; i < 20; i++) {
    const { code, signal, stderr } = await run(`
      import { Worker } from 'node:worker_threads'
      const main = serve(() => {})
      for (let i = 0; i < 2; i++) {
        const worker = new Worker(new URL(${JSON.stringify(fixture.href)}), { workerData: { clients: 3 }, execArgv: [] })
        await once(worker, 'message')
      }
      for (let i = 0; i < ${i * 5}; i++) await new Promise(setImmediate)
      process.exit(9)
    `)
    t.deepEqual({ code, signal, stderr }, { code: 9, signal: null, stderr: '' })
  }
})

test.serial('a process whose worker throws unheard ends with code 1', async (t) => {
  const { code, signal, stderr } = await run(`
    import { Worker } from 'node:worker_threads'
    const main = serve(() => {})
    const worker = new Worker(new URL(${JSON.stringify(fixture.href)}), { workerData: { clients: 3 }, execArgv: [] })
    await once(worker, 'message')
    worker.postMessage('throw')
  `)
  t.deepEqual([code, signal], [1, null])
  t.regex(stderr, /on purpose/)
})

/** Takes all descriptors that there are, and gives them back. */
const ALL_DESCRIPTORS = `
  const { closeSync, openSync } = require('node:fs')
  const takeAll = () => {
    const held = []
    try {
      for (;;) held.push(openSync('/dev/null'))
    } catch {
      return () => held.forEach((descriptor) => closeSync(descriptor))
    }
  }
`

for (const [bell, env] of [
  ["libuv's", {}],
  ["Node-API's", { NETPOLL_WITHOUT_LIBUV: '1' }],
]) {
  test.serial(
    `a worker in which no poll can be started gets a typed error, and ends as any other; the bell is ${bell}`,
    async (t) => {
      const source = `${ALL_DESCRIPTORS}
      const { LinkBuffer } = require('./index.js')
      const giveBack = takeAll()
      let told
      try {
        new LinkBuffer()
      } catch ({ name, code, errno, syscall, message }) {
        told = { name, code, errno, syscall, message }
      }
      giveBack()
      require('node:worker_threads').parentPort.postMessage(told)
    `
      const { stdout, ...rest } = await run(
        `
      import { Worker } from 'node:worker_threads'
      const worker = new Worker(${JSON.stringify(source)}, { eval: true, execArgv: [] })
      const [told] = await once(worker, 'message')
      await once(worker, 'exit')
      console.log(JSON.stringify(told))
    `,
        { env: { ...process.env, ...env } },
      )
      t.deepEqual(rest, { code: 0, signal: null, stderr: '' })
      t.deepEqual(JSON.parse(stdout), {
        name: 'NetpollError',
        code: 'EMFILE',
        errno: -24,
        syscall: 'epoll_create1',
        message: 'epoll_create1 EMFILE: too many open files',
      })
    },
  )

  test.serial(
    `what could not be started keeps no memory, and is started when it can be; the bell is ${bell}`,
    async (t) => {
      const child = start(
        `
      import { createRequire } from 'node:module'
      import { readFileSync } from 'node:fs'
      import { LinkBuffer, setNumLoops, stats } from '${new URL('../index.js', import.meta.url).pathname}'
      const require = createRequire(import.meta.url)
      ${ALL_DESCRIPTORS}
      const status = readFileSync.bind(null, '/proc/self/status', 'utf8')
      const mapped = () => Number(/VmSize:\\s+(\\d+) kB/.exec(status())[1]) / 1024
      /** What it fails with while all descriptors are taken; the process has not grown when this resolves. */
      const failing = async (attempt) => {
        const codes = new Set()
        const times = async (count) => {
          const giveBack = takeAll()
          for (let i = 0; i < count; i++) await attempt().catch(({ code }) => codes.add(code))
          giveBack()
        }
        await times(2)
        const some = mapped()
        await times(20)
        // Each has 2 MiB of tables. What is collected is unmapped by a thread, some time after that.
        await until(() => (gc(), mapped() < some + 8), 'nothing is left of it')
        return [...codes]
      }
      const first = await failing(async () => new LinkBuffer())
      new LinkBuffer()
      const more = await failing(() => setNumLoops(2))
      await setNumLoops(2)
      console.log(JSON.stringify([first, more, stats().polls.length]))
    `,
        { env: { ...process.env, NETPOLL_NUM_LOOPS: '1', ...env } },
        ['--expose-gc'],
      )
      const { stdout, stderr, code } = await end(child)
      t.is(code, 0, stderr)
      const [first, more, polls] = JSON.parse(stdout)
      t.deepEqual([first, more, polls], [['EMFILE'], ['EMFILE'], 2])
    },
  )
}

test.serial('the memory of workers that have ended is unmapped', async (t) => {
  const few = async (count) => {
    for (let i = 0; i < count; i++) {
      const { worker, port } = await echoWorker()
      const socket = await connect(port)
      await echoes(t, socket, 'hello')
      socket.destroy()
      await worker.terminate()
    }
    return mapped()
  }
  const before = await few(4)
  const growth = (await few(16)) - before
  // A worker's blocks alone are 4 MiB and more.
  t.true(growth < 48, `${growth} MiB`)
})

const unreading = new URL(
  `data:text/javascript,${encodeURIComponent(`
    import { parentPort } from 'node:worker_threads'
    import { serve } from '${new URL('fixtures/peer.mjs', import.meta.url)}'
    const { port } = serve(() => parentPort.postMessage('unread'))
    parentPort.postMessage(port)
  `)}`,
)

/** What is mapped after so many of them have been terminated. */
async function mappedAfterUnread(count) {
  for (let i = 0; i < count; i++) {
    const worker = new Worker(unreading)
    const [port] = await once(worker, 'message')
    const socket = await connect(port)
    socket.write('hello')
    await once(worker, 'message')
    await worker.terminate()
    socket.destroy()
  }
  return mapped()
}

test.serial('the memory of workers that are terminated with unread input is unmapped', async (t) => {
  const before = await mappedAfterUnread(4)
  const growth = (await mappedAfterUnread(16)) - before
  t.true(growth < 48, `${growth} MiB`)
})
