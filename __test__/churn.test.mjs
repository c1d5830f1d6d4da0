// A hundred thousand connections that come, ask once, and go.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { stats } from '../index.js'
import { descriptors, serve, settled, until } from './fixtures/peer.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const load = `${process.env.CARGO_TARGET_DIR ?? `${root}target`}/release/netpoll-load`
const CYCLES = 100_000

test.before('the load generator is built', (t) => {
  const { status, stderr } = spawnSync('cargo', ['build', '--release', '-p', 'netpoll-load'], { cwd: root })
  t.is(status, 0, `${stderr}`)
})
test.before(settled)

async function churn(port) {
  const options = { port, connections: 50, size: 100, duration: 2, warmup: 0 }
  const flags = Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`])
  const child = spawn(load, ['churn', ...flags], { stdio: ['ignore', 'ignore', 'inherit'] })
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
      onError: (error) => t.is(error.code, 'ECONNRESET'),
    },
  )
  t.teardown(server.stop)
  const before = { descriptors: descriptors(), blocks: stats().blocksOut }
  let memory = 0
  while (opened < CYCLES) {
    t.is(await churn(server.port), 0)
    await until(() => server.loop.connections === 0)
    memory ||= process.memoryUsage.rss()
  }
  t.is(ended, opened)
  t.is(disordered, 0)
  await settled()
  await until(() => descriptors() === before.descriptors, 'descriptors are back')
  t.true(stats().blocksOut <= before.blocks, `${stats().blocksOut} blocks`)
  t.is(stats().connections, 0)
  t.true(process.memoryUsage.rss() - memory < 32 * 1024 * 1024, 'memory does not grow with the cycles')
})
