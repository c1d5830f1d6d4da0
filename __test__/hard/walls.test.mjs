// Servers at the end of what they have: descriptors, memory, CPU. The goals are those of docs/reliability.md.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { cpuOf, eachOf, memoryOf, patience, percentile, spread } from '../fixtures/figures.mjs'
import { connect, take, until } from '../fixtures/peer.mjs'
import { program, watched } from './watched.mjs'

const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB
const FRAME = 64 * KIB
/** How many GiB are read through a small heap. */
const READ = Number(process.env.NETPOLL_HARD_GIB ?? 10)

/** Percent of a core that a process uses while `what` goes on. */
async function cpuWhile(pid, what) {
  const [begun, used] = [performance.now(), cpuOf(pid)]
  await what
  return (cpuOf(pid) - used) / 10 / (performance.now() - begun)
}

/** Milliseconds that each of `count` echoes of a socket takes. */
async function pings(socket, count) {
  const times = []
  for (let i = 0; i < count; i++) {
    const begun = performance.now()
    socket.write('ping')
    await take(socket, 4)
    times.push(performance.now() - begun)
  }
  return times
}

test.serial(
  'with 64 descriptors and 500 clients, twice in a row, it rests, serves, and goes on',
  async (t) => {
    const server = await watched(t, { handler: 'echo' }, { limits: ['--nofile=64:64'] })
    for (const round of [1, 2]) {
      const clients = await Promise.all(Array.from({ length: 500 }, () => connect(server.port)))
      const served = new Set()
      const answers = clients.map(async (client) => {
        client.write('ask')
        const answer = String(await take(client, 3))
        served.add(client)
        return answer
      })
      await until(async () => served.size > 30 && served.size === (await server.report()).connections)

      const idle = await cpuWhile(server.pid, sleep(2000))
      t.true(idle < 5, `${idle} % of CPU while it is full`)
      const times = (await Promise.all([...served].slice(0, 10).map((client) => pings(client, 100)))).flat()
      t.true(percentile(times, 0.99) < 50 * patience(), `round trips: ${spread(times)} ms`)

      const begun = performance.now()
      const all = await Promise.all(
        clients.map(async (client, i) => {
          const answer = await answers[i]
          client.destroy()
          return answer
        }),
      )
      const took = performance.now() - begun
      t.deepEqual(all, Array(500).fill('ask'))
      t.true(took <= 2000 * patience(), `${took} ms until all are served`)
      await until(async () => (await server.report()).connections === 0)
      t.log(
        `round ${round}: ${idle.toFixed(1)} % CPU, echoes ${spread(times)} ms, all in ${Math.round(took)} ms`,
      )
    }
    t.deepEqual(await server.stop(), [0, null])
  },
)

test.serial('100,000 connections that are reset at once leave the listener as it was', async (t) => {
  const server = await watched(t, { handler: 'echo' })
  const socket = await connect(server.port)
  await pings(socket, 10)
  const before = server.descriptors()
  const begun = performance.now()
  const times = []
  for (const how of ['at once', 'written']) {
    const storm = once(spawn(process.execPath, [program('storm.mjs'), server.port, 50_000, how]), 'close')
    let over = false
    void storm.then(() => (over = true))
    while (!over) times.push(...(await pings(socket, 10)))
    t.deepEqual(await storm, [0, null])
  }
  const took = performance.now() - begun
  await until(async () => (await server.report()).connections === 1)
  t.true(server.descriptors() <= before, `${server.descriptors()} descriptors, ${before} before`)
  const { opened, closed } = await server.report()
  t.is(opened - closed, 1)
  t.true(percentile(times, 0.99) < 50 * patience(), `${spread(times)} ms`)
  t.log(
    `${Math.round(100_000 / (took / 1000))} a second, ${opened} accepted; others' echoes ${spread(times)} ms`,
  )
  socket.destroy()
  await server.stop()
})

test.serial('2,000 connections that are reset while they wait to be accepted harm nobody', async (t) => {
  const server = await watched(t, { handler: 'echo' })
  const socket = await connect(server.port)
  await pings(socket, 1)
  const before = server.descriptors()
  for (let round = 0; round < 3; round++) {
    server.child.kill('SIGSTOP')
    const storm = spawn(process.execPath, [program('storm.mjs'), server.port, 2000, 'written'])
    t.deepEqual(await once(storm, 'close'), [0, null])
    server.child.kill('SIGCONT')
    t.is((await pings(socket, 10)).length, 10)
  }
  await until(async () => (await server.report()).connections === 1)
  t.is(server.descriptors(), before)
  socket.destroy()
  await server.stop()
})

const LORIS = 5000
const SLOW = {
  'are silent after a byte end by idleTimeout': { handler: 'leaves', options: { idleTimeout: 2000 } },
  'drip a byte a second end by readTimeout': { handler: 'waits', options: { readTimeout: 2000 } },
}

for (const [title, what] of Object.entries(SLOW)) {
  test.serial(`${LORIS} clients that ${title}, all of them, in 2 to 2.5 s`, async (t) => {
    const server = await watched(t, what)
    const times = []
    await Promise.all(
      Array.from({ length: LORIS }, async () => {
        const socket = await connect(server.port)
        const begun = performance.now()
        socket.write('x')
        const drip = what.handler === 'waits' ? setInterval(() => socket.write('x'), 1000) : undefined
        const over = new Promise((resolve) => socket.resume().once('end', resolve).once('close', resolve))
        await over
        clearInterval(drip)
        times.push(performance.now() - begun)
        socket.destroy()
      }),
    )
    await until(async () => (await server.report()).connections === 0)
    const { opened, closed } = await server.report()
    t.deepEqual([opened, closed], [LORIS, LORIS])
    t.true(Math.min(...times) >= 1950, `the first one ends after ${Math.min(...times)} ms`)
    t.true(percentile(times, 0.99) <= 2500 + 500 * patience(), `${spread(times)} ms`)
    t.log(`closed after ${spread(times)} ms, min ${Math.round(Math.min(...times))}`)
    await server.stop()
  })
}

test.serial(`${LORIS} idle connections take 4 KiB each above the kernel's`, async (t) => {
  const server = await watched(t, { handler: 'echo' })
  const warm = await connect(server.port)
  await pings(warm, 100)
  await server.report('gc')
  const before = memoryOf(server.pid)
  const sockets = []
  await eachOf(LORIS, 200, async () => {
    const socket = await connect(server.port)
    await pings(socket, 1)
    sockets.push(socket)
  })
  await server.report('gc')
  const each = (memoryOf(server.pid) - before) / LORIS
  t.log(`${Math.round(each)} bytes each`)
  t.true(each <= 4 * KIB, `${each} bytes`)
  for (const socket of [warm, ...sockets]) socket.destroy()
  await server.stop()
})

const STYLES = { ignores: 'ignores flush()', awaits: 'awaits flushed()', streams: 'writes to a Duplex' }

for (const [handler, style] of Object.entries(STYLES)) {
  test.serial(`a handler that ${style} for 1 GiB to a peer that does not read stays small`, async (t) => {
    const options = { writeHighWaterMark: MIB, maxPendingBytes: 2 * MIB }
    const server = await watched(t, { handler, options, bytes: GIB })
    const warm = await connect(server.port)
    warm.destroy()
    await until(async () => (await server.report('gc')).connections === 0)
    const before = memoryOf(server.pid)
    const socket = await connect(server.port)
    socket.write('go')
    let state = {}
    await until(async () => {
      const { written } = state
      await sleep(100)
      state = await server.report()
      return written > 0 && written === state.written
    })
    const grown = memoryOf(server.pid, 'VmHWM') - before
    t.log(`${(grown / MIB).toFixed(1)} MiB more at most, ${(state.written / MIB).toFixed(1)} MiB written`)
    t.true(grown <= 2 * MIB + 16 * MIB, `${grown / MIB} MiB`)
    if (handler === 'ignores') {
      t.deepEqual(state.failures, { ERR_NETPOLL_OUTPUT_LIMIT: 1 })
      t.is(state.connections, 0)
    } else {
      t.deepEqual(state.failures, {})
      let received = 0
      socket.on('data', (bytes) => (received += bytes.length))
      await once(socket, 'end')
      t.is(received, GIB)
    }
    socket.destroy()
    await server.stop()
  })
}

test.serial('5 GiB written to one connection all arrive, past every count of 32 bits', async (t) => {
  const total = 5 * GIB
  const server = await watched(t, { handler: 'awaits', bytes: total })
  const socket = await connect(server.port)
  let received = 0
  let wrong = 0
  socket.on('data', (bytes) => {
    received += bytes.length
    if (bytes[0] !== 1 || bytes.at(-1) !== 1) wrong++
  })
  socket.write('go')
  await once(socket, 'end')
  t.deepEqual([received, wrong], [total, 0])
  const { written, failures } = await server.report()
  t.deepEqual([written, failures], [total, {}])
  socket.destroy()
  await server.stop()
})

test.serial('a handler that never consumes is called for news alone, and uses no CPU', async (t) => {
  const server = await watched(t, { handler: 'leaves' })
  const sockets = await Promise.all(Array.from({ length: 50 }, () => connect(server.port)))
  for (const socket of sockets) socket.write(Buffer.alloc(1000))
  await until(async () => (await server.report()).calls >= sockets.length)
  await sleep(200)
  const { calls } = await server.report()
  const idle = await cpuWhile(server.pid, sleep(3000))
  t.is((await server.report()).calls, calls)
  t.true(idle < 2, `${idle} % of CPU`)
  for (const socket of sockets) socket.write('more')
  await until(async () => (await server.report()).calls === calls + sockets.length)
  t.log(`${idle.toFixed(2)} % CPU, ${calls} calls for ${sockets.length} connections`)
  for (const socket of sockets) socket.destroy()
  await server.stop()
})

test.serial('100 firehoses whose handlers sleep fill no memory, and lose no byte', async (t) => {
  const options = { readHighWaterMark: 128 * KIB }
  const server = await watched(t, { handler: 'sleeps', options })
  const before = memoryOf(server.pid)
  const bytes = Buffer.alloc(16 * MIB, 1)
  const sockets = await Promise.all(Array.from({ length: 100 }, () => connect(server.port)))
  for (const socket of sockets) socket.write(bytes)
  await sleep(3000)
  const { received, bytesOut } = await server.report()
  t.is(received, 0)
  const most = sockets.length * (128 * KIB + MIB)
  t.true(bytesOut <= most, `${bytesOut / MIB} MiB of blocks`)
  t.log(
    `${(bytesOut / MIB).toFixed(1)} MiB of blocks, RSS ${((memoryOf(server.pid) - before) / MIB).toFixed(1)} MiB more`,
  )
  // The kernel's window is closed: who sends has to wait.
  t.true(sockets.every((socket) => socket.writableLength > 0))
  for (const socket of sockets) socket.end()
  await until(async () => (await server.report()).connections === 0)
  t.is((await server.report()).received, sockets.length * bytes.length)
  for (const socket of sockets) socket.destroy()
  await server.stop()
})

for (const [handler, share] of [
  ['views', 1],
  ['copies', 0.2],
]) {
  test.serial(`${READ * share} GiB read as ${handler} through a heap of 64 MiB`, async (t) => {
    const flags = ['--max-old-space-size=64']
    const server = await watched(t, { handler }, { flags })
    const frames = Math.round((READ * share * GIB) / FRAME)
    const begun = performance.now()
    const hose = once(
      spawn(process.execPath, [program('firehose.mjs'), server.port, frames], { stdio: 'inherit' }),
      'close',
    )
    t.deepEqual(await hose, [0, null])
    const seconds = (performance.now() - begun) / 1000
    await until(async () => (await server.report('gc')).connections === 0)
    const { wrong, received, external, chunkBytes } = await server.report('gc')
    t.deepEqual([wrong, received], [0, frames * FRAME])
    const peak = memoryOf(server.pid, 'VmHWM')
    t.log(
      `${(received / GIB / seconds).toFixed(2)} GiB/s, peak RSS ${Math.round(peak / MIB)} MiB, ` +
        `external ${(external / MIB).toFixed(1)} MiB, chunks ${(chunkBytes / MIB).toFixed(1)} MiB`,
    )
    t.true(peak < 200 * MIB, `${peak / MIB} MiB`)
    // Each chunk is seen twice: by the library, and through the views that it gives away. The rest is Node's own.
    t.true(external >= 2 * chunkBytes && external <= 2.2 * chunkBytes + 4 * MIB, `${external / MIB} MiB`)
    await server.stop()
  })
}
