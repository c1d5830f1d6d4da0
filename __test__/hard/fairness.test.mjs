// One connection that takes all it can get, or one process, and what is left for the others.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { eachOf, patience, percentile, spread } from '../fixtures/figures.mjs'
import { connect, until } from '../fixtures/peer.mjs'
import { watched } from './watched.mjs'

const KIB = 1024
const root = fileURLToPath(new URL('../..', import.meta.url))
const load = `${process.env.CARGO_TARGET_DIR ?? `${root}target`}/release/netpoll-load`

test.before('the load generator is built', (t) => {
  const { status, stderr } = spawnSync('cargo', ['build', '--release', '-p', 'netpoll-load'], { cwd: root })
  t.is(status, 0, `${stderr}`)
})

/** What the load generator has measured. */
async function measured(t, port, options) {
  const flags = Object.entries({ port, ...options }).flatMap(([name, value]) => [`--${name}`, `${value}`])
  const child = spawn(load, ['run', ...flags], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text) => (output += text))
  t.deepEqual(await once(child, 'close'), [0, null])
  return JSON.parse(output.trim().split('\n').at(-1))
}

for (const driver of ['loop', 'thread', 'adaptive']) {
  test.serial(
    `with the driver '${driver}' 100 connections and timers have their turn beside a firehose`,
    async (t) => {
      const env = { ...process.env, NETPOLL_DRIVER: driver }
      const server = await watched(t, { handler: 'echo', timers: true }, { env })
      // A request every 500 microseconds, of one after the other.
      const options = { connections: 100, size: 64, pace: 500, firehose: 64 * KIB, duration: 5, warmup: 1 }
      const { requests, errors, firehose, p50, p99 } = await measured(t, server.port, options)
      const { late } = await server.report('delays')
      t.log(`p50 ${p50} µs, p99 ${p99} µs, timers p99 ${late.toFixed(1)} ms, ${firehose / 1e6} MB/s beside`)
      t.is(errors, 0)
      t.true(requests > 5000 && firehose > 1e6, JSON.stringify({ requests, firehose }))
      t.true(p99 < 5000 * patience(), `${p99} µs`)
      t.true(late < 20 * patience(), `${late} ms`)
      await server.stop()
    },
  )

  test.serial(
    `with the driver '${driver}' timers have their turn beside 100 connections that never rest`,
    async (t) => {
      const env = { ...process.env, NETPOLL_DRIVER: driver }
      const server = await watched(t, { handler: 'echo', timers: true }, { env })
      const options = { connections: 100, size: 64, inflight: 4, duration: 5, warmup: 1 }
      const { requests, errors } = await measured(t, server.port, options)
      const { late } = await server.report('delays')
      t.log(`timers p99 ${late.toFixed(1)} ms beside ${Math.round(requests / 5)} requests a second`)
      t.is(errors, 0)
      t.true(requests > 10_000)
      t.true(late < 20 * patience(), `${late} ms`)
      await server.stop()
    },
  )
}

test.serial('a handler that has consumed what there is gets what waits in the kernel at once', async (t) => {
  const server = await watched(t, { handler: 'naps', options: { readHighWaterMark: 128 * KIB } })
  const socket = await connect(server.port)
  const bytes = Buffer.alloc(32 << 20, 1)
  socket.end(bytes)
  await until(async () => (await server.report()).received === bytes.length)
  const { resumed } = await server.report('delays')
  t.log(`${resumed.length} times, after ${spread(resumed)} ms`)
  t.true(resumed.length > 10)
  t.true(percentile(resumed, 0.9) <= 10 * patience(), `${spread(resumed)} ms`)
  socket.destroy()
  await server.stop()
})

test.serial('two processes at one port each get a fair part of 10,000 connections', async (t) => {
  const listens = { reusePort: true }
  const first = await watched(t, { handler: 'echo', listens })
  const second = await watched(t, { handler: 'echo', listens, address: `127.0.0.1:${first.port}` })
  await eachOf(10_000, 200, async () => {
    const socket = await connect(first.port)
    const closed = once(socket, 'close')
    socket.resetAndDestroy()
    await closed
  })
  let opened = []
  await until(async () => {
    const reports = await Promise.all([first.report(), second.report()])
    opened = reports.map((report) => report.accepts)
    return opened[0] + opened[1] >= 9900
  })
  t.log(`${opened.join(' and ')} connections`)
  for (const count of opened) t.true(count >= 3000, `${opened}`)
  await Promise.all([first.stop(), second.stop()])
})
